package inventory_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/rpcctx"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

func mask(paths ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: paths} }

func update(id string, c *inventoryv1.Certificate, paths ...string) *inventoryv1.UpdateCertificateRequest {
	c.Id = id
	return &inventoryv1.UpdateCertificateRequest{Certificate: c, UpdateMask: mask(paths...)}
}

func TestEveryFilterFindsWhatItNamesAndNothingElse(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := r.enroll(t, "filters")
	r.target(t, "t-f", h.id)
	plain, rich := wanted("c-plain"), wanted("c-rich", "t-f")
	c := rich.GetCertificate()
	c.Name, c.CommonName, c.ProfileId, c.PolicyId = "Rich Uncle", "rich.example.org", "prof-x", "pol-x"
	c.IssuerId, c.Owner, c.Team, c.Environment = "iss-x", "o", "te", "en"
	c.Labels = map[string]string{"app": "shop", "tier": "1"}
	c.IpAddresses = []string{"192.0.2.7"}
	for _, req := range []*inventoryv1.CreateCertificateRequest{plain, rich} {
		_, err := r.certificates().CreateCertificate(t.Context(), req)
		require.NoError(t, err)
	}
	l := r.issue(t, "c-rich", h.id)
	r.issue(t, "c-rich", h.id)
	now := time.Now()
	for name, req := range map[string]*inventoryv1.ListCertificatesRequest{
		"status":         {Status: []inventoryv1.Certificate_Status{inventoryv1.Certificate_ACTIVE, inventoryv1.Certificate_REVOKED}},
		"issuer":         {IssuerId: "iss-x"},
		"profile":        {ProfileId: "prof-x"},
		"policy":         {PolicyId: "pol-x"},
		"target":         {TargetId: "t-f"},
		"agent":          {AgentId: h.id},
		"owner":          {Owner: "o"},
		"team":           {Team: "te"},
		"environment":    {Environment: "en"},
		"name":           {Name: "ch UNC"},
		"common name":    {Name: "example.org"},
		"address":        {Name: "192.0.2."},
		"old serial":     {SerialNumber: "00:" + strings.ToUpper(l.serial)},
		"fingerprint":    {FingerprintSha256: strings.ToUpper(l.fingerprint)},
		"expires before": {ExpiresBefore: timestamppb.New(now.Add(48 * time.Hour))},
		"expires after":  {ExpiresAfter: timestamppb.New(now)},
		"labels":         {Label: map[string]string{"app": "shop", "tier": "1"}},
		"all together":   {Owner: "o", Name: "rich", Label: map[string]string{"app": "shop"}, AgentId: h.id, Status: []inventoryv1.Certificate_Status{2}},
	} {
		req.IncludeTotal = true
		a, err := r.certificates().ListCertificates(t.Context(), req)
		require.NoError(t, err, name)
		require.Equal(t, []string{"c-rich"}, ids(a.GetCertificates()), name)
		require.Equal(t, int32(1), a.GetTotalSize(), name)
	}
	for name, req := range map[string]*inventoryv1.ListCertificatesRequest{
		"no wildcard": {Name: "%"}, "no placeholder": {Name: "c_rich"}, "other label": {Label: map[string]string{"app": "x"}},
	} {
		a, err := r.certificates().ListCertificates(t.Context(), req)
		require.NoError(t, err, name)
		require.Empty(t, a.GetCertificates(), name)
	}
}

func TestABadListRequestNamesItsField(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	r.certificate(t, "c-1")
	r.certificate(t, "c-2")
	first, err := r.certificates().ListCertificates(t.Context(), &inventoryv1.ListCertificatesRequest{PageSize: 1})
	require.NoError(t, err)
	token := first.GetNextPageToken()
	require.NotEmpty(t, token)
	for field, requests := range map[string][]*inventoryv1.ListCertificatesRequest{
		"page_size":  {{PageSize: -1}},
		"order_by":   {{OrderBy: "colour"}, {OrderBy: "name sideways"}},
		"status":     {{Status: []inventoryv1.Certificate_Status{77}}, {Status: []inventoryv1.Certificate_Status{0}}},
		"page_token": {{PageToken: "x"}, {PageToken: token, Owner: "o"}, {PageToken: token, OrderBy: "name"}, {PageToken: token[1:]}},
	} {
		for _, req := range requests {
			_, err := r.certificates().ListCertificates(t.Context(), req)
			requireFields(t, err, field)
		}
	}
}

func TestTextThatCannotBeStoredIsTheCallersMistake(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	for name, call := range map[string]func() error{
		"filter": func() error {
			_, err := r.certificates().ListCertificates(t.Context(), &inventoryv1.ListCertificatesRequest{Owner: "a\x00b"})
			return err
		},
		"label filter": func() error {
			_, err := r.certificates().ListCertificates(t.Context(), &inventoryv1.ListCertificatesRequest{Label: map[string]string{"a": "\x00"}})
			return err
		},
		"id": func() error {
			_, err := r.certificates().GetCertificate(t.Context(), &inventoryv1.GetCertificateRequest{Id: "\x00"})
			return err
		},
		"description": func() error {
			c := wanted("c-nul")
			c.Certificate.Owner = "\x00"
			_, err := r.certificates().CreateCertificate(t.Context(), c)
			return err
		},
	} {
		require.Equal(t, errs.Invalid, errs.KindOf(call()), name)
	}
}

func TestPagesAreStableUnderWrites(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	want := []string{}
	for i := range 9 {
		id := named("c-%d", i)
		r.certificate(t, id)
		want = append(want, id)
	}
	for _, id := range []string{"c-2", "c-5"} { // some have an end, some have none
		r.issue(t, id, "")
	}
	for _, order := range []string{"name", "name desc", "create_time", "create_time desc", "expires_at", "expires_at desc", "not_after", "update_time"} {
		var got []string
		req := &inventoryv1.ListCertificatesRequest{PageSize: 2, OrderBy: order}
		for page := 0; ; page++ {
			a, err := r.certificates().ListCertificates(t.Context(), req)
			require.NoError(t, err)
			got = append(got, ids(a.GetCertificates())...)
			if req.PageToken = a.GetNextPageToken(); req.GetPageToken() == "" {
				break
			}
			if order == "name" && page == 1 {
				r.certificate(t, "c-0a") // before the place of the reader: it is neither shown nor does it move others
			}
		}
		if order == "name" {
			require.Equal(t, want, got)
			_, err := r.certificates().DeleteCertificate(t.Context(), &inventoryv1.DeleteCertificateRequest{Id: "c-0a"})
			require.NoError(t, err)
			want = append(want, "c-0a")
			continue
		}
		sorted := slices.Sorted(slices.Values(got))
		require.Equal(t, slices.Sorted(slices.Values(want)), sorted, order)
		if strings.HasPrefix(order, "expires_at") {
			place := slices.Index(got, "c-2")
			require.Equal(t, strings.HasSuffix(order, "desc"), place > 2, "those without an end sort last")
		}
	}
}

func TestARepeatedRequestAnswersTheSame(t *testing.T) {
	t.Parallel()
	w, r := one(t)
	req := wanted("")
	req.Certificate.Name, req.Certificate.DnsNames, req.RequestId = "idem", []string{"idem.example.com"}, "key-1"
	first, err := r.certificates().CreateCertificate(t.Context(), req)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(first.GetCertificate().GetId(), "cert-"))
	again, err := r.certificates().CreateCertificate(t.Context(), req)
	require.NoError(t, err)
	require.Equal(t, first.GetCertificate().GetId(), again.GetCertificate().GetId())
	eventually(t, func() bool { return len(w.audit.audited(t, first.GetCertificate().GetId())) == 1 }, "one event")

	req.Certificate.Owner = "other"
	_, err = r.certificates().CreateCertificate(t.Context(), req)
	requireReason(t, err, errs.Conflict, "IDEMPOTENCY_KEY_REUSED")
	_, err = r.certificates().CreateCertificate(t.Context(), wanted(first.GetCertificate().GetId()))
	requireReason(t, err, errs.AlreadyExists, "CERTIFICATE_EXISTS")
}

func TestAWriteCanBeBoundToARevision(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	r.certificate(t, "c-rev")
	req := update("c-rev", &inventoryv1.Certificate{Owner: "a", Labels: map[string]string{"x": "1"}}, "owner", "labels", "status")
	req.IfRevision = 1
	a, err := r.certificates().UpdateCertificate(t.Context(), req)
	require.NoError(t, err)
	require.Equal(t, int32(2), a.GetCertificate().GetRevision())
	require.Equal(t, "a", a.GetCertificate().GetOwner())
	require.Equal(t, inventoryv1.Certificate_PENDING, a.GetCertificate().GetStatus(), "output-only fields are ignored")
	_, err = r.certificates().UpdateCertificate(t.Context(), req)
	requireReason(t, err, errs.PreconditionFailed, "REVISION_MISMATCH")
	ctx := metadata.AppendToOutgoingContext(t.Context(), mutation.IfMatchMetadata, `"1"`)
	_, err = r.certificates().DeleteCertificate(ctx, &inventoryv1.DeleteCertificateRequest{Id: "c-rev"})
	requireReason(t, err, errs.PreconditionFailed, "REVISION_MISMATCH")

	_, err = r.certificates().UpdateCertificate(t.Context(), update("c-rev", &inventoryv1.Certificate{}, "colour"))
	requireFields(t, err, "update_mask")
	_, err = r.certificates().UpdateCertificate(t.Context(), update("c-none", &inventoryv1.Certificate{}, "owner"))
	requireReason(t, err, errs.NotFound, "CERTIFICATE_NOT_FOUND")
}

func TestWhatCannotBeRightIsRefusedByField(t *testing.T) {
	t.Parallel()
	w, r := one(t)
	bad := wanted("Bad ID", "t-none")
	bad.Certificate.Name, bad.Certificate.IssuerId, bad.Certificate.DnsNames = "", "", nil
	_, err := r.certificates().CreateCertificate(t.Context(), bad)
	requireFields(t, err, "id", "name", "issuer_id", "dns_names")
	_, err = r.certificates().CreateCertificate(t.Context(), wanted("c-t", "t-none"))
	requireFields(t, err, "target_ids[0]")
	policy := wanted("c-p")
	policy.Certificate.PolicyId = "pol-missing"
	w.issuance.violations = []*issuancev1.FieldViolation{{Field: "dns_names[0]", Description: "not allowed"}}
	_, err = r.certificates().CreateCertificate(t.Context(), policy)
	requireFields(t, err, "dns_names[0]", "policy_id")

	config, err := structpb.NewStruct(map[string]any{"bad": true})
	require.NoError(t, err)
	target := &inventoryv1.Target{Id: "t-x", Name: "x", AgentId: "agent-none", Type: "file"}
	_, err = r.targets().CreateTarget(t.Context(), &inventoryv1.CreateTargetRequest{Target: target})
	requireFields(t, err, "agent_id")
	target.Config = config
	_, err = r.targets().CreateTarget(t.Context(), &inventoryv1.CreateTargetRequest{Target: target})
	requireFields(t, err, "config.bad")
	target.Endpoint = &typev1.Endpoint{Address: "no port"}
	_, err = r.targets().CreateTarget(t.Context(), &inventoryv1.CreateTargetRequest{Target: target})
	requireFields(t, err, "endpoint.address")
}

func TestRolesBoundWhatUsersMayDo(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	for role, may := range map[rpcctx.Role]bool{rpcctx.RoleAdmin: true, rpcctx.RoleOperator: true, rpcctx.RoleViewer: false, rpcctx.RoleAuditor: false} {
		c := inventoryv1.NewCertificateServiceClient(r.server.AsRole(t, role))
		_, err := c.ListCertificates(t.Context(), &inventoryv1.ListCertificatesRequest{})
		require.NoError(t, err)
		_, err = c.CreateCertificate(t.Context(), wanted("c-"+string(role)))
		require.Equal(t, may, err == nil, "%s: %v", role, err)
		_, err = inventoryv1.NewInventoryInternalServiceClient(r.server.AsRole(t, role)).CountReferences(t.Context(), &inventoryv1.CountReferencesRequest{IssuerId: "x"})
		requireReason(t, err, errs.PermissionDenied, "ROLE_NOT_ALLOWED")
	}
	n, err := r.internal().CountReferences(t.Context(), &inventoryv1.CountReferencesRequest{IssuerId: "iss-local"})
	require.NoError(t, err)
	require.Equal(t, int32(2), n.GetCertificates())
}

func TestAChangeRaisesTheRevisionOfItsCollection(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	read := func(collection string) int64 {
		a, err := eventv1.NewRevisionServiceClient(r.peer).GetRevision(t.Context(), &eventv1.GetRevisionRequest{Collection: collection})
		require.NoError(t, err)
		return a.GetRevision()
	}
	before := read("certificates")
	r.certificate(t, "c-bump")
	require.Greater(t, read("certificates"), before)
	targets := read("targets")
	r.target(t, "t-bump", r.enroll(t, "bump").id)
	require.Greater(t, read("targets"), targets)
	require.Zero(t, read("discovered-certificates"))
	d, err := inventoryv1.NewDiscoveryServiceClient(r.admin).ListDiscoveredCertificates(t.Context(), &inventoryv1.ListDiscoveredCertificatesRequest{IncludeTotal: true})
	require.NoError(t, err)
	require.Zero(t, d.GetTotalSize())
}

func TestVersionsAreListedNewestFirstAndDownloaded(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	r.certificate(t, "c-v")
	var last leaf
	for range 3 {
		last = r.issue(t, "c-v", "")
	}
	var got []int32
	req := &inventoryv1.ListCertificateVersionsRequest{CertificateId: "c-v", PageSize: 2, IncludeTotal: true}
	for {
		a, err := r.certificates().ListCertificateVersions(t.Context(), req)
		require.NoError(t, err)
		require.Equal(t, int32(3), a.GetTotalSize())
		for _, v := range a.GetVersions() {
			got = append(got, v.GetVersion())
		}
		if req.PageToken = a.GetNextPageToken(); req.GetPageToken() == "" {
			break
		}
	}
	require.Equal(t, []int32{3, 2, 1}, got)
	b, err := r.certificates().DownloadCertificateVersion(t.Context(), &inventoryv1.DownloadCertificateVersionRequest{CertificateId: "c-v", Version: 3})
	require.NoError(t, err)
	require.Equal(t, "application/x-pem-file", b.GetContentType())
	require.Equal(t, last.issued.GetCertificatePem()+last.issued.GetChainPem(), string(b.GetData()))
	_, err = r.certificates().GetCertificateVersion(t.Context(), &inventoryv1.GetCertificateVersionRequest{CertificateId: "c-v", Version: 4})
	requireReason(t, err, errs.NotFound, "VERSION_NOT_FOUND")
	_, err = r.certificates().GetCertificateVersion(t.Context(), &inventoryv1.GetCertificateVersionRequest{CertificateId: "c-none", Version: 1})
	requireReason(t, err, errs.NotFound, "CERTIFICATE_NOT_FOUND")
}
