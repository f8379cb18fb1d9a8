package core

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/page"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	renewalschedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
	"github.com/certctl/certctl/services/inventory/internal/view"
)

// ListCertificates lists certificates.
func (c *Core) ListCertificates(ctx context.Context, r *inventoryv1.ListCertificatesRequest) (*inventoryv1.ListCertificatesResponse, error) {
	statuses, err := enumNames(r.GetStatus(), inventoryv1.Certificate_Status_name)
	if err != nil {
		return nil, err
	}
	f := store.CertificateFilter{
		Statuses: statuses, IssuerID: r.GetIssuerId(), ProfileID: r.GetProfileId(), PolicyID: r.GetPolicyId(), TargetID: r.GetTargetId(),
		AgentID: r.GetAgentId(), Owner: r.GetOwner(), Team: r.GetTeam(), Environment: r.GetEnvironment(), Name: r.GetName(),
		SerialNumber: normalHex(r.GetSerialNumber(), true), FingerprintSHA256: normalHex(r.GetFingerprintSha256(), false), Labels: r.GetLabel(),
		ExpiresBefore: timeOf(r.GetExpiresBefore()), ExpiresAfter: timeOf(r.GetExpiresAfter()),
	}
	p, err := listPage(ctx, c, r, lister[store.Certificate]{
		collection: store.Certificates,
		rows: func(ctx context.Context, s store.Slice) ([]store.Certificate, error) {
			return c.store.ListCertificates(ctx, f, s)
		},
		count:  func(ctx context.Context) (int32, error) { return c.store.CountCertificates(ctx, f) },
		cursor: certificateCursor,
	})
	if err != nil {
		return nil, err
	}
	return &inventoryv1.ListCertificatesResponse{Certificates: view.Each(p.rows, view.Certificate), NextPageToken: p.next, TotalSize: p.total}, nil
}

func certificateCursor(v store.Certificate, field string) (page.Value, page.Value) {
	id := page.TextValue(v.ID)
	switch field {
	case "name":
		return page.TextValue(v.Name), id
	case "not_after", "expires_at":
		if v.NotAfter == nil {
			return page.Value{}, id
		}
		return page.TimeValue(*v.NotAfter), id
	case "update_time":
		return page.TimeValue(v.UpdateTime), id
	default:
		return page.TimeValue(v.CreateTime), id
	}
}

func timeOf(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	v := t.AsTime()
	return &v
}

// normalHex brings hex as people copy it ("00:AB:…") to how it is stored.
func normalHex(s string, number bool) string {
	out := strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(s))
	if number && out != "" {
		if out = strings.TrimLeft(out, "0"); out == "" {
			out = "0"
		}
	}
	return out
}

// GetCertificate answers one.
func (c *Core) GetCertificate(ctx context.Context, r *inventoryv1.GetCertificateRequest) (*inventoryv1.GetCertificateResponse, error) {
	row, err := c.store.Certificate(ctx, r.GetId())
	if row, err = found(row, err, resourceCertificate, r.GetId()); err != nil {
		return nil, err
	}
	return &inventoryv1.GetCertificateResponse{Certificate: view.Certificate(row)}, nil
}

// GetCertificates answers those that there are.
func (c *Core) GetCertificates(ctx context.Context, r *inventoryv1.GetCertificatesRequest) (*inventoryv1.GetCertificatesResponse, error) {
	rows, err := c.store.GetCertificates(ctx, r.GetIds())
	if err != nil {
		return nil, err
	}
	return &inventoryv1.GetCertificatesResponse{Certificates: view.Each(rows, view.Certificate)}, nil
}

// CreateCertificate stores what is wanted.
func (c *Core) CreateCertificate(ctx context.Context, r *inventoryv1.CreateCertificateRequest) (*inventoryv1.CreateCertificateResponse, error) {
	row := view.CertificateRow(r.GetCertificate())
	return store.Mutate(ctx, c.store, store.Mutation[*inventoryv1.CreateCertificateResponse]{
		Request: r,
		Empty:   func() *inventoryv1.CreateCertificateResponse { return &inventoryv1.CreateCertificateResponse{} },
		Prepare: func(ctx context.Context) error {
			setDefaults(&row)
			if err := checkShape(row); err != nil {
				return err
			}
			return c.checkWithPeers(ctx, &row, true)
		},
		Apply: func(ctx context.Context, t *store.Tx) (*inventoryv1.CreateCertificateResponse, error) {
			stored, err := c.insertCertificate(ctx, t, row)
			if err != nil {
				return nil, err
			}
			return &inventoryv1.CreateCertificateResponse{Certificate: view.Certificate(stored)}, nil
		},
	})
}

func (c *Core) insertCertificate(ctx context.Context, t *store.Tx, row store.Certificate) (store.Certificate, error) {
	if row.ID == "" {
		id, err := newID("cert")
		if err != nil {
			return row, err
		}
		row.ID = id
	}
	if err := c.checkTargets(ctx, t, row.TargetIDs); err != nil {
		return row, err
	}
	stored, err := t.InsertCertificate(ctx, row)
	if store.IsUnique(err, "certificates_pkey") {
		return row, errs.New(errs.AlreadyExists, "CERTIFICATE_EXISTS", "certificate %s exists already", row.ID).With("id", row.ID)
	}
	if err != nil {
		return row, err
	}
	if err := c.certificatesChanged(ctx, t, "certificate.created", stored); err != nil {
		return row, err
	}
	audit(ctx, t, "certificate.created", resourceCertificate, stored.ID, map[string]any{
		"name": stored.Name, "dns_names": stored.DNSNames, "issuer_id": stored.IssuerID, "profile_id": stored.ProfileID,
		"policy_id": stored.PolicyID, "target_ids": stored.TargetIDs,
	})
	t.Changed(store.Certificates)
	return stored, nil
}

func setDefaults(row *store.Certificate) {
	if row.ProfileID == "" {
		row.ProfileID = DefaultProfile
	}
	if row.PolicyID == "" {
		row.PolicyID = DefaultPolicy
	}
	row.TargetIDs = slices.Compact(slices.Sorted(slices.Values(row.TargetIDs)))
}

// checkShape looks at what inventory can judge itself.
func checkShape(row store.Certificate) error {
	var v errs.Violations
	checkID(&v, row.ID)
	checkName(&v, row.Name)
	checkLabels(&v, row.Labels)
	if row.IssuerID == "" {
		v.Add("issuer_id", "is required")
	}
	if len(row.DNSNames)+len(row.IPAddresses)+len(row.EmailAddresses)+len(row.URIs) == 0 {
		v.Add("dns_names", "at least one of dns_names, ip_addresses, email_addresses and uris is needed")
	}
	for _, f := range []struct{ field, value string }{{"owner", row.Owner}, {"team", row.Team}, {"environment", row.Environment}} {
		if strings.ContainsRune(f.value, 0) {
			v.Add(f.field, "holds a NUL character")
		}
	}
	return v.Err()
}

// checkWithPeers asks issuance for names, issuer, profile and key, and the scheduler for the policy; names come back normalised.
func (c *Core) checkWithPeers(ctx context.Context, row *store.Certificate, policy bool) error {
	var v errs.Violations
	answer, err := c.issuance.CheckCertificateRequest(ctx, &issuancev1.CheckCertificateRequestRequest{
		IssuerId: row.IssuerID, ProfileId: row.ProfileID, Names: view.Names(*row), KeyAlgorithm: view.KeyAlgorithm(row.KeyAlgorithm),
	})
	if err != nil {
		return behind("issuance", err)
	}
	for _, bad := range answer.GetViolations() {
		v.Add(bad.GetField(), "%s", bad.GetDescription())
	}
	if policy {
		policies, err := c.scheduler.BatchGetPolicies(ctx, &renewalschedulerv1.BatchGetPoliciesRequest{Ids: []string{row.PolicyID}})
		if err != nil {
			return behind("renewalscheduler", err)
		}
		if len(policies.GetPolicies()) == 0 {
			v.Add("policy_id", "there is no policy %q", row.PolicyID)
		}
	}
	if err := v.Err(); err != nil {
		return err
	}
	if n := answer.GetNames(); n != nil {
		row.CommonName, row.DNSNames, row.IPAddresses = n.GetCommonName(), n.GetDnsNames(), n.GetIpAddresses()
		row.EmailAddresses, row.URIs = n.GetEmailAddresses(), n.GetUris()
	}
	if k := answer.GetKeyAlgorithm(); k != typev1.KeyAlgorithm_KEY_ALGORITHM_UNSPECIFIED {
		row.KeyAlgorithm = view.KeyAlgorithmName(k)
	}
	return nil
}

// behind says which service a call could not reach; what a reachable one answers stays as it is.
func behind(service string, err error) error {
	if errs.IsKind(err, errs.Unavailable, errs.DeadlineExceeded) {
		return errs.New(errs.Unavailable, "SERVICE_UNAVAILABLE", "service %s is not available; try again", service).
			With("service", service).RetryAfter(time.Second).Wrap(err)
	}
	return err
}

// checkTargets wants every target to exist on an agent that is not retired.
func (c *Core) checkTargets(ctx context.Context, t *store.Tx, ids []string) error {
	targets, err := t.GetTargetAgents(ctx, ids)
	if err != nil {
		return err
	}
	byID := make(map[string]store.TargetAgent, len(targets))
	for _, target := range targets {
		byID[target.ID] = target
	}
	var v errs.Violations
	for i, id := range ids {
		field := "target_ids[" + strconv.Itoa(i) + "]"
		switch target, ok := byID[id]; {
		case !ok:
			v.Add(field, "there is no target %q", id)
		case target.AgentStatus == store.AgentRetired:
			v.Add(field, "target %q is on agent %q, which is retired", id, target.AgentID)
		}
	}
	return v.Err()
}

// certificatesChanged tells the scheduler what certificates are now and who has no key for them yet.
func (c *Core) certificatesChanged(ctx context.Context, t *store.Tx, typ string, rows ...store.Certificate) error {
	ids := make([]string, 0, len(rows))
	for _, row := range rows {
		ids = append(ids, row.ID)
	}
	holders, err := t.KeyHolders(ctx, ids)
	if err != nil {
		return err
	}
	without := map[string][]string{}
	for _, h := range holders {
		if h.Version == 0 {
			without[h.CertificateID] = append(without[h.CertificateID], h.AgentID)
		}
	}
	for _, row := range rows {
		tell(t, toScheduler, typ, resourceCertificate, row.ID, &inventoryv1.CertificateChanged{
			Certificate: view.Certificate(row), AgentsWithoutVersion: without[row.ID], Actor: actor(ctx),
		})
	}
	return nil
}
