package issuance_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/pkg/testrpc"
	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/issuance"
)

// peer is all other services: it takes every event and has no certificates.
type peer struct {
	inventoryv1.UnimplementedInventoryInternalServiceServer
	asyncpollerv1.UnimplementedPollInternalServiceServer
	eventv1.UnimplementedEventSinkServiceServer

	mu           sync.Mutex
	events       []*eventv1.Event
	certificates int32
}

func (p *peer) CountReferences(context.Context, *inventoryv1.CountReferencesRequest) (*inventoryv1.CountReferencesResponse, error) {
	return &inventoryv1.CountReferencesResponse{Certificates: p.certificates}, nil
}

func (p *peer) Deliver(_ context.Context, r *eventv1.DeliverRequest) (*eventv1.DeliverResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, r.GetEvents()...)
	out := &eventv1.DeliverResponse{}
	for range r.GetEvents() {
		out.Results = append(out.Results, &eventv1.EventResult{Outcome: eventv1.EventResult_APPLIED})
	}
	return out, nil
}

func (p *peer) has(kind, resourceID string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if e.GetType() == kind && e.GetResourceId() == resourceID {
			return true
		}
	}
	return false
}

// system is a running issuance with its peers.
type system struct {
	*testrpc.Server

	t       *testing.T
	service *issuance.Service
	peer    *peer
	fake    *issuertest.Fake
}

func start(t *testing.T) *system {
	t.Helper()
	p := &peer{}
	others := testrpc.Serve(t, testrpc.Config{
		Table: rpc.AuthzTable{
			eventv1.EventSinkService_Deliver_FullMethodName:                          rpc.Allow(rpcctx.RolePeer),
			inventoryv1.InventoryInternalService_BatchGetCertificates_FullMethodName: rpc.Allow(rpcctx.RolePeer),
			inventoryv1.InventoryInternalService_CreateCsrTask_FullMethodName:        rpc.Allow(rpcctx.RolePeer),
			inventoryv1.InventoryInternalService_CancelTask_FullMethodName:           rpc.Allow(rpcctx.RolePeer),
			inventoryv1.InventoryInternalService_RequestDeployment_FullMethodName:    rpc.Allow(rpcctx.RolePeer),
			inventoryv1.InventoryInternalService_BatchGetDeployments_FullMethodName:  rpc.Allow(rpcctx.RolePeer),
			inventoryv1.InventoryInternalService_CountReferences_FullMethodName:      rpc.Allow(rpcctx.RolePeer),
			asyncpollerv1.PollInternalService_CreatePoll_FullMethodName:              rpc.Allow(rpcctx.RolePeer),
			asyncpollerv1.PollInternalService_PollNow_FullMethodName:                 rpc.Allow(rpcctx.RolePeer),
			asyncpollerv1.PollInternalService_CancelPoll_FullMethodName:              rpc.Allow(rpcctx.RolePeer),
			asyncpollerv1.PollInternalService_BatchGetPolls_FullMethodName:           rpc.Allow(rpcctx.RolePeer),
		},
		Register: func(r grpc.ServiceRegistrar) {
			inventoryv1.RegisterInventoryInternalServiceServer(r, p)
			asyncpollerv1.RegisterPollInternalServiceServer(r, p)
			eventv1.RegisterEventSinkServiceServer(r, p)
		},
	})
	fake, err := issuertest.NewFake(issuertest.FakeConfig{})
	require.NoError(t, err)
	box, err := secretbox.NewBox(secretbox.GenerateKey())
	require.NoError(t, err)
	conn := others.AsPeer(t, "issuance")
	s, err := issuance.New(issuance.Config{
		InternalSecret: testrpc.Secret(), BootstrapLocalIssuer: true, ReconcileInterval: 20 * time.Millisecond, ReconcileDelay: time.Millisecond,
		EnrolmentGCInterval: time.Hour, CRLGenerationInterval: time.Hour, RevocationInterval: 20 * time.Millisecond,
	}, issuance.Deps{
		DB: testpg.New(t, issuance.Schema()), Metrics: prometheus.NewRegistry(), Box: box, IssuerTypes: issuer.Types{local.Type(), fake.Type()},
		Peers: issuance.Peers{Inventory: conn, RenewalScheduler: conn, AsyncPoller: conn, Audit: conn},
	})
	require.NoError(t, err)
	require.NoError(t, s.Bootstrap(t.Context()))
	out := &system{t: t, service: s, peer: p, fake: fake, Server: testrpc.Serve(t, testrpc.Config{Table: s.AuthzTable(), Register: s.Register})}
	require.NoError(t, s.AuthzTable().CheckComplete(out.RPC))
	return out
}

// run runs the service until the test ends.
func (s *system) run() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.service.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		require.NoError(s.t, <-ended)
	})
}

func (s *system) admin() *grpc.ClientConn { return s.AsRole(s.t, rpcctx.RoleAdmin) }

func (s *system) orders() issuancev1.IssuanceInternalServiceClient {
	return issuancev1.NewIssuanceInternalServiceClient(s.AsPeer(s.t, "renewalscheduler"))
}

func submission(t *testing.T, issuerID string) *issuancev1.SubmitOrderRequest {
	t.Helper()
	names := []string{"www.example.com"}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: names[0]}, DNSNames: names},
		issuertest.NewKey(t, certcheck.ECDSAP256))
	require.NoError(t, err)
	return &issuancev1.SubmitOrderRequest{
		OrderId: "ord-" + uuid.NewString(), CertificateId: "cert-" + uuid.NewString(), JobId: "job-" + uuid.NewString(), IssuerId: issuerID, ProfileId: "prof-default",
		Names: &typev1.Names{CommonName: names[0], DnsNames: names}, CsrPem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
	}
}

func TestAnOrderGoesThroughAndAllPeersAreTold(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.run()
	r := submission(t, "iss-local")

	got, err := s.orders().SubmitOrder(t.Context(), r)

	require.NoError(t, err)
	require.Equal(t, issuancev1.Order_ISSUED, got.GetOrder().GetStatus())
	require.Eventually(t, func() bool {
		return s.peer.has("certificate.issued", r.GetCertificateId()) && s.peer.has("order.changed", r.GetOrderId()) && s.peer.has("audit.record", r.GetOrderId())
	}, 10*time.Second, 5*time.Millisecond)
	batch, err := s.orders().BatchGetOrders(t.Context(), &issuancev1.BatchGetOrdersRequest{Ids: []string{r.GetOrderId(), "ord-none"}})
	require.NoError(t, err)
	require.Len(t, batch.GetOrders(), 1)
	require.True(t, proto.Equal(got.GetOrder().GetIssueTime(), batch.GetOrders()[0].GetIssueTime()))
}

func TestTheLoopsFindALostOrderByThemselves(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.run()
	_, err := issuancev1.NewIssuerServiceClient(s.admin()).CreateIssuer(t.Context(), &issuancev1.CreateIssuerRequest{
		Issuer: &issuancev1.Issuer{Id: "iss-fake", Name: "Fake", Type: issuertest.FakeTypeName},
	})
	require.NoError(t, err)
	r := submission(t, "iss-fake")
	s.fake.PlanOrder(r.GetOrderId(), issuertest.Plan{LostReplies: 1})
	got, err := s.orders().SubmitOrder(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, issuancev1.Order_UNKNOWN, got.GetOrder().GetStatus())
	require.Equal(t, "CA_REPLY_LOST", got.GetOrder().GetLastError().GetReason())

	require.Eventually(t, func() bool { return s.peer.has("certificate.issued", r.GetCertificateId()) }, 10*time.Second, 5*time.Millisecond)

	bought, err := s.fake.Bought(r.GetOrderId())
	require.NoError(t, err)
	require.Equal(t, 1, bought)
}

func TestEachLoopRunsAndSaysWhatItIs(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.run()
	want := []string{"CRL generation", "enrolment GC", "order reconcile", "orphan search", "revocation retry", "CA renewal", "secret re-encryption", "idempotency key prune", "inbox prune"}
	require.Eventually(t, func() bool {
		for _, l := range s.service.Loops() {
			if l.Runs == 0 {
				return false
			}
		}
		return true
	}, 20*time.Second, 10*time.Millisecond)
	var names []string
	for _, l := range s.service.Loops() {
		names = append(names, l.Name)
		require.Empty(t, l.LastError, l.Name)
	}
	require.Equal(t, want, names)
	require.Contains(t, s.service.Loops()[1].Note, "nothing to do")
}

func TestARevocationThatComesAsAnEventIsAppliedOnce(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.run()
	r := submission(t, "iss-local")
	got, err := s.orders().SubmitOrder(t.Context(), r)
	require.NoError(t, err)
	serial := got.GetOrder().GetSerialNumber()
	payload, err := anypb.New(&inventoryv1.CertificateChanged{
		Certificate: &inventoryv1.Certificate{Id: r.GetCertificateId()}, RevocationReason: typev1.RevocationReason_KEY_COMPROMISE,
		RevokedVersions: []*inventoryv1.RevokedVersion{{Version: 1, SerialNumber: serial}},
	})
	require.NoError(t, err)
	event := &eventv1.Event{Id: uuid.NewString(), Type: "certificate.revoked", Source: "inventory", Time: timestamppb.Now(), Payload: payload}
	foreign := &eventv1.Event{Id: uuid.NewString(), Type: "weather.changed", Source: "inventory"}
	sink := eventv1.NewEventSinkServiceClient(s.AsPeer(t, "inventory"))

	for range 2 {
		answer, err := sink.Deliver(t.Context(), &eventv1.DeliverRequest{Events: []*eventv1.Event{event, foreign}})
		require.NoError(t, err)
		require.Equal(t, eventv1.EventResult_APPLIED, answer.GetResults()[0].GetOutcome())
		require.Equal(t, eventv1.EventResult_REJECTED, answer.GetResults()[1].GetOutcome())
	}

	require.Eventually(t, func() bool { return s.peer.has("revocation.done", r.GetCertificateId()) }, 10*time.Second, 5*time.Millisecond)
	body, err := issuancev1.NewCrlServiceClient(s.AsRole(t, rpcctx.RoleNone)).GetCrl(t.Context(), &issuancev1.GetCrlRequest{IssuerId: "iss-local"})
	require.NoError(t, err)
	require.Equal(t, "application/pkix-crl", body.GetContentType())
	list, err := x509.ParseRevocationList(body.GetData())
	require.NoError(t, err)
	require.Len(t, list.RevokedCertificateEntries, 1)
	require.Equal(t, serial, issuer.FormatSerial(list.RevokedCertificateEntries[0].SerialNumber))
}

func TestIssuersOverTheAPI(t *testing.T) {
	t.Parallel()
	s := start(t)
	issuers := issuancev1.NewIssuerServiceClient(s.admin())
	config, err := structpb.NewStruct(map[string]any{"common_name": "Team CA"})
	require.NoError(t, err)
	create := &issuancev1.CreateIssuerRequest{Issuer: &issuancev1.Issuer{Id: "iss-team", Name: "Team", Type: "local", Config: config}, RequestId: "key-1"}
	made, err := issuers.CreateIssuer(t.Context(), create)
	require.NoError(t, err)
	i := made.GetIssuer()
	require.True(t, i.GetEnabled())
	require.True(t, i.GetCapabilities().GetCrl())
	require.Equal(t, map[string]any{"common_name": "Team CA", "material": map[string]any{"set": true}}, i.GetConfig().AsMap())
	require.NotContains(t, made.String(), "PRIVATE KEY")

	again, err := issuers.CreateIssuer(t.Context(), create)
	require.NoError(t, err)
	require.True(t, proto.Equal(made, again), "the same request_id answers the same")
	_, err = issuers.CreateIssuer(t.Context(), &issuancev1.CreateIssuerRequest{Issuer: create.GetIssuer()})
	require.Equal(t, codes.AlreadyExists, status.Code(err))

	// What came from the API may be sent back.
	i.Name, i.GetConfig().GetFields()["crl_urls"] = "Renamed", structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewStringValue("http://x.example.com/crl")}})
	updated, err := issuers.UpdateIssuer(t.Context(), &issuancev1.UpdateIssuerRequest{Issuer: i,
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name", "config", "status", "revision"}}, IfRevision: 1})
	require.NoError(t, err)
	require.Equal(t, "Renamed", updated.GetIssuer().GetName())
	require.EqualValues(t, 2, updated.GetIssuer().GetRevision())
	_, err = issuers.UpdateIssuer(metadata.AppendToOutgoingContext(t.Context(), mutation.IfMatchMetadata, `"1"`), &issuancev1.UpdateIssuerRequest{Issuer: i,
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}}})
	require.Equal(t, errs.PreconditionFailed, errs.KindOf(err))

	// The gateway's masks name the settings that a PATCH has.
	merge, err := structpb.NewStruct(map[string]any{"issuing_certificate_urls": []any{"http://x.example.com/ca"}})
	require.NoError(t, err)
	updated, err = issuers.UpdateIssuer(t.Context(), &issuancev1.UpdateIssuerRequest{Issuer: &issuancev1.Issuer{Id: "iss-team", Config: merge},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"config.issuing_certificate_urls"}}})
	require.NoError(t, err)
	require.Contains(t, updated.GetIssuer().GetConfig().AsMap(), "crl_urls")
	require.Contains(t, updated.GetIssuer().GetConfig().AsMap(), "issuing_certificate_urls")

	for field, mask := range map[string]string{"type": "type", "update_mask": "colour"} {
		_, err = issuers.UpdateIssuer(t.Context(), &issuancev1.UpdateIssuerRequest{Issuer: i, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{mask}}})
		require.Equal(t, errs.Invalid, errs.KindOf(err))
		require.Equal(t, field, errs.From(err).Violations()[0].Field)
	}

	tested, err := issuers.TestIssuer(t.Context(), &issuancev1.TestIssuerRequest{Id: "iss-team"})
	require.NoError(t, err)
	require.Equal(t, issuancev1.Issuer_OK, tested.GetIssuer().GetStatus())
	s.peer.certificates = 1
	_, err = issuers.DeleteIssuer(t.Context(), &issuancev1.DeleteIssuerRequest{Id: "iss-team"})
	require.Equal(t, "ISSUER_IN_USE", errs.ReasonOf(err))
	s.peer.certificates = 0
	_, err = issuers.DeleteIssuer(t.Context(), &issuancev1.DeleteIssuerRequest{Id: "iss-team"})
	require.NoError(t, err)
	_, err = issuers.DeleteIssuer(t.Context(), &issuancev1.DeleteIssuerRequest{Id: "iss-team"})
	require.Equal(t, errs.NotFound, errs.KindOf(err))
}

// corporate is a subordinate CA on disk, to be spoilt.
type corporate struct {
	rootKey, key crypto.Signer
	ca, root     x509.Certificate
	dir          string
	parts        []string // of the certificate file
	keyMode      os.FileMode
	keyText      []byte
	rootFile     string
}

func (c *corporate) path(name string) string { return filepath.Join(c.dir, name) }

func newCorporate(t *testing.T) *corporate {
	t.Helper()
	now := time.Now()
	authority := x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
	}
	c := &corporate{
		rootKey: issuertest.NewKey(t, certcheck.ECDSAP256), key: issuertest.NewKey(t, certcheck.ECDSAP256), ca: authority, root: authority,
		dir: t.TempDir(), parts: []string{"ca", "root"}, keyMode: 0o600,
	}
	c.ca.Subject, c.root.Subject = pkix.Name{CommonName: "Corporate CA"}, pkix.Name{CommonName: "Corporate Root"}
	return c
}

// config writes the files and gives the settings that name them.
func (c *corporate) config(t *testing.T) *structpb.Struct {
	t.Helper()
	root, err := x509.CreateCertificate(rand.Reader, &c.root, &c.root, c.rootKey.Public(), c.rootKey)
	require.NoError(t, err)
	parent, err := x509.ParseCertificate(root)
	require.NoError(t, err)
	ca, err := x509.CreateCertificate(rand.Reader, &c.ca, parent, c.key.Public(), c.rootKey)
	require.NoError(t, err)
	var text []byte
	for _, part := range c.parts {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: map[string][]byte{"ca": ca, "root": root}[part]})...)
	}
	if c.keyText == nil {
		der, err := x509.MarshalPKCS8PrivateKey(c.key)
		require.NoError(t, err)
		c.keyText = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	require.NoError(t, os.WriteFile(c.path("ca.pem"), text, 0o600))
	require.NoError(t, os.WriteFile(c.path("ca.key"), c.keyText, 0o600))
	require.NoError(t, os.Chmod(c.path("ca.key"), c.keyMode))
	settings := map[string]any{"certificate_file": c.path("ca.pem"), "key_file": c.path("ca.key")}
	if c.rootFile != "" {
		settings["root_file"] = c.rootFile
	}
	out, err := structpb.NewStruct(settings)
	require.NoError(t, err)
	return out
}

func TestASubordinateCAWithAFlawIsRefusedAndTheFieldIsNamed(t *testing.T) {
	t.Parallel()
	s := start(t)
	issuers := issuancev1.NewIssuerServiceClient(s.admin())
	const certificate, key, root = "config.certificate_file", "config.key_file", "config.root_file"
	hour := time.Now().Add(-time.Hour)
	for name, c := range map[string]struct {
		field, says string
		spoil       func(*corporate)
	}{
		"no CA bit":            {certificate, "basicConstraints", func(c *corporate) { c.ca.IsCA, c.ca.KeyUsage = false, x509.KeyUsageDigitalSignature }},
		"no keyCertSign":       {certificate, "keyCertSign", func(c *corporate) { c.ca.KeyUsage = x509.KeyUsageCRLSign }},
		"no cRLSign":           {certificate, "cRLSign", func(c *corporate) { c.ca.KeyUsage = x509.KeyUsageCertSign }},
		"expired":              {certificate, "has expired", func(c *corporate) { c.ca.NotBefore, c.ca.NotAfter = hour.Add(-time.Hour), hour }},
		"not valid yet":        {certificate, "not valid yet", func(c *corporate) { c.ca.NotBefore = time.Now().Add(time.Hour) }},
		"expired root":         {certificate, "has expired", func(c *corporate) { c.root.NotBefore, c.root.NotAfter = hour.Add(-time.Hour), hour }},
		"incomplete chain":     {certificate, "root_file", func(c *corporate) { c.parts = []string{"ca"} }},
		"path length":          {certificate, "below it", func(c *corporate) { c.root.MaxPathLenZero = true }},
		"no certificate in it": {certificate, "no readable certificates", func(c *corporate) { c.parts = nil }},
		"another key":          {key, "none of the CA certificates", func(c *corporate) { c.parts = []string{"root"} }},
		"key for the group":    {key, "chmod 600", func(c *corporate) { c.keyMode = 0o640 }},
		"key for others":       {key, "chmod 600", func(c *corporate) { c.keyMode = 0o604 }},
		"no key in it":         {key, "not PEM", func(c *corporate) { c.keyText = []byte("hello") }},
		"key with passphrase": {key, "passphrase", func(c *corporate) {
			c.keyText = pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})
		}},
		"no root file": {root, "does not exist", func(c *corporate) { c.rootFile = c.path("gone.pem") }},
		"relative":     {root, "absolute", func(c *corporate) { c.rootFile = "root.pem" }},
	} {
		files := newCorporate(t)
		c.spoil(files)
		_, err := issuers.CreateIssuer(t.Context(), &issuancev1.CreateIssuerRequest{
			Issuer: &issuancev1.Issuer{Id: "iss-corporate", Name: "Corporate", Type: "local", Config: files.config(t)},
		})
		require.Equal(t, codes.InvalidArgument, status.Code(err), "%s: %v", name, err)
		found := errs.From(err).Violations()
		require.Len(t, found, 1, name)
		require.Equal(t, c.field, found[0].Field, "%s: %s", name, found[0].Description)
		require.Contains(t, found[0].Description, c.says, name)
		require.NotContains(t, err.Error(), "PRIVATE KEY", name)
	}
	_, err := issuers.GetIssuer(t.Context(), &issuancev1.GetIssuerRequest{Id: "iss-corporate"})
	require.Equal(t, errs.NotFound, errs.KindOf(err), "nothing of them was stored")
}

func TestASubordinateCAWorksFromItsFilesToItsCRL(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.run()
	issuers := issuancev1.NewIssuerServiceClient(s.admin())
	files := newCorporate(t)
	made, err := issuers.CreateIssuer(t.Context(), &issuancev1.CreateIssuerRequest{
		Issuer: &issuancev1.Issuer{Id: "iss-corporate", Name: "Corporate", Type: "local", Config: files.config(t)},
	})
	require.NoError(t, err)
	require.Equal(t, 49*time.Hour, made.GetIssuer().GetCapabilities().GetMaxValidity().AsDuration(), "whole seconds")
	tested, err := issuers.TestIssuer(t.Context(), &issuancev1.TestIssuerRequest{Id: "iss-corporate"})
	require.NoError(t, err)
	require.Equal(t, issuancev1.Issuer_OK, tested.GetIssuer().GetStatus())

	r := submission(t, "iss-corporate")
	got, err := s.orders().SubmitOrder(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, issuancev1.Order_ISSUED, got.GetOrder().GetStatus())
	done, err := s.orders().RevokeVersions(t.Context(), &issuancev1.RevokeVersionsRequest{
		CertificateId: r.GetCertificateId(), SerialNumbers: []string{got.GetOrder().GetSerialNumber()}, Reason: typev1.RevocationReason_KEY_COMPROMISE,
	})
	require.NoError(t, err)
	require.True(t, done.GetDone())

	public := issuancev1.NewCrlServiceClient(s.AsRole(t, rpcctx.RoleNone))
	ca, err := public.GetCaCertificate(t.Context(), &issuancev1.GetCaCertificateRequest{IssuerId: "iss-corporate"})
	require.NoError(t, err)
	chain, err := certcheck.ParseBundle(ca.GetData())
	require.NoError(t, err)
	require.Len(t, chain, 2)
	require.Equal(t, "Corporate CA", chain[0].Subject.CommonName)
	crl, err := public.GetCrl(t.Context(), &issuancev1.GetCrlRequest{IssuerId: "iss-corporate"})
	require.NoError(t, err)
	list, err := x509.ParseRevocationList(crl.GetData())
	require.NoError(t, err)
	require.NoError(t, list.CheckSignatureFrom(chain[0]))
	require.Len(t, list.RevokedCertificateEntries, 1)
}

func TestALocalRevocationIsDoneWhetherCallOrEventComesFirst(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.run()
	sink := eventv1.NewEventSinkServiceClient(s.AsPeer(t, "inventory"))
	revoker := issuancev1.NewIssuanceInternalServiceClient(s.AsPeer(t, "inventory"))
	for range 10 {
		r := submission(t, "iss-local")
		got, err := s.orders().SubmitOrder(t.Context(), r)
		require.NoError(t, err)
		serial := got.GetOrder().GetSerialNumber()
		payload, err := anypb.New(&inventoryv1.CertificateChanged{
			Certificate:     &inventoryv1.Certificate{Id: r.GetCertificateId()},
			RevokedVersions: []*inventoryv1.RevokedVersion{{Version: 1, SerialNumber: serial}},
		})
		require.NoError(t, err)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := sink.Deliver(t.Context(), &eventv1.DeliverRequest{Events: []*eventv1.Event{
				{Id: uuid.NewString(), Type: "certificate.revoked", Source: "inventory", Time: timestamppb.Now(), Payload: payload},
			}})
			require.NoError(t, err)
		})
		wg.Go(func() {
			answer, err := revoker.RevokeVersions(t.Context(), &issuancev1.RevokeVersionsRequest{CertificateId: r.GetCertificateId(), SerialNumbers: []string{serial}})
			require.NoError(t, err)
			require.True(t, answer.GetDone())
		})
		wg.Wait()
	}
}

func TestListsPageToTheirEndAndRefuseForeignTokens(t *testing.T) {
	t.Parallel()
	s := start(t)
	profiles := issuancev1.NewProfileServiceClient(s.admin())
	for n := range 7 {
		_, err := profiles.CreateProfile(t.Context(), &issuancev1.CreateProfileRequest{Profile: &issuancev1.Profile{
			Id: fmt.Sprintf("prof-%d", n), Name: fmt.Sprintf("P%d", n%3), MaxValidity: durationpb.New(time.Hour),
		}})
		require.NoError(t, err)
	}
	for _, orderBy := range []string{"", "name", "name desc", "create_time"} {
		seen, token := map[string]bool{}, ""
		for {
			got, err := profiles.ListProfiles(t.Context(), &issuancev1.ListProfilesRequest{PageSize: 3, PageToken: token, OrderBy: orderBy, IncludeTotal: true})
			require.NoError(t, err)
			require.EqualValues(t, 8, got.GetTotalSize())
			for _, p := range got.GetProfiles() {
				require.False(t, seen[p.GetId()])
				seen[p.GetId()] = true
			}
			if token = got.GetNextPageToken(); token == "" {
				break
			}
			_, err = profiles.ListProfiles(t.Context(), &issuancev1.ListProfilesRequest{PageToken: token + "x", OrderBy: orderBy})
			require.Equal(t, errs.Invalid, errs.KindOf(err))
		}
		require.Len(t, seen, 8, orderBy)
	}
	for field, r := range map[string]*issuancev1.ListProfilesRequest{"page_size": {PageSize: -1}, "order_by": {OrderBy: "colour"}, "page_token": {PageToken: "x"}} {
		_, err := profiles.ListProfiles(t.Context(), r)
		require.Equal(t, field, errs.From(err).Violations()[0].Field)
	}
	orders := issuancev1.NewOrderServiceClient(s.admin())
	r := submission(t, "iss-local")
	_, err := s.orders().SubmitOrder(t.Context(), r)
	require.NoError(t, err)
	for _, f := range []*issuancev1.ListOrdersRequest{
		{}, {JobId: r.GetJobId()}, {CertificateId: r.GetCertificateId()}, {IssuerId: "iss-local"}, {Status: []issuancev1.Order_Status{issuancev1.Order_ISSUED}},
		{CreatedBefore: timestamppb.New(time.Now().Add(time.Minute)), CreatedAfter: timestamppb.New(time.Now().Add(-time.Minute))},
	} {
		f.IncludeTotal = true
		got, err := orders.ListOrders(t.Context(), f)
		require.NoError(t, err)
		require.Len(t, got.GetOrders(), 1)
		require.EqualValues(t, 1, got.GetTotalSize())
	}
	_, err = orders.ListOrders(t.Context(), &issuancev1.ListOrdersRequest{Status: []issuancev1.Order_Status{77}})
	require.Equal(t, errs.Invalid, errs.KindOf(err))
}

func TestChecksAnswerWithTheFieldsOfACertificate(t *testing.T) {
	t.Parallel()
	s := start(t)
	ok, err := s.orders().CheckCertificateRequest(t.Context(), &issuancev1.CheckCertificateRequestRequest{
		IssuerId: "iss-local", Names: &typev1.Names{DnsNames: []string{"WWW.Example.com", "www.example.com", "bücher.example"}},
	})
	require.NoError(t, err)
	require.Empty(t, ok.GetViolations())
	require.Equal(t, []string{"www.example.com", "xn--bcher-kva.example"}, ok.GetNames().GetDnsNames())
	require.Equal(t, typev1.KeyAlgorithm_ECDSA_P256, ok.GetKeyAlgorithm())

	bad, err := s.orders().CheckCertificateRequest(t.Context(), &issuancev1.CheckCertificateRequestRequest{
		IssuerId: "iss-none", ProfileId: "prof-none", Names: &typev1.Names{DnsNames: []string{"www.example.com", "not a name"}},
	})
	require.NoError(t, err)
	var fields []string
	for _, v := range bad.GetViolations() {
		fields = append(fields, v.GetField())
	}
	require.Equal(t, []string{"issuer_id", "profile_id", "dns_names[1]"}, fields)

	r := submission(t, "iss-local")
	csr, err := s.orders().CheckCsr(t.Context(), &issuancev1.CheckCsrRequest{IssuerId: "iss-local", Names: &typev1.Names{DnsNames: []string{"other.example.com"}}, CsrPem: r.GetCsrPem()})
	require.NoError(t, err)
	require.Equal(t, "csr_pem", csr.GetViolations()[0].GetField())
}

func TestRolesAndPeersHaveTheirLimits(t *testing.T) {
	t.Parallel()
	s := start(t)
	viewer, operator, poller := s.AsRole(t, rpcctx.RoleViewer), s.AsRole(t, rpcctx.RoleOperator), s.AsPeer(t, "asyncpoller")
	_, err := issuancev1.NewIssuerServiceClient(viewer).ListIssuers(t.Context(), &issuancev1.ListIssuersRequest{})
	require.NoError(t, err)
	for name, call := range map[string]func() error{
		"viewer creates": func() error {
			_, err := issuancev1.NewProfileServiceClient(viewer).CreateProfile(t.Context(), &issuancev1.CreateProfileRequest{Profile: &issuancev1.Profile{Name: "x"}})
			return err
		},
		"operator deletes": func() error {
			_, err := issuancev1.NewIssuerServiceClient(operator).DeleteIssuer(t.Context(), &issuancev1.DeleteIssuerRequest{Id: "iss-local"})
			return err
		},
		"admin submits": func() error {
			_, err := issuancev1.NewIssuanceInternalServiceClient(s.admin()).SubmitOrder(t.Context(), submission(t, "iss-local"))
			return err
		},
		"another peer asks for credentials": func() error {
			_, err := s.orders().GetIssuerCredentials(t.Context(), &issuancev1.GetIssuerCredentialsRequest{IssuerId: "iss-local"})
			return err
		},
		"another peer records a poll": func() error {
			_, err := s.orders().RecordPollResult(t.Context(), &issuancev1.RecordPollResultRequest{OrderId: "ord-1", Outcome: issuancev1.RecordPollResultRequest_FAILED})
			return err
		},
		"the poller asks for the keys of the local CA": func() error {
			_, err := issuancev1.NewIssuanceInternalServiceClient(poller).GetIssuerCredentials(t.Context(), &issuancev1.GetIssuerCredentialsRequest{IssuerId: "iss-local"})
			return err
		},
	} {
		require.Equal(t, http.StatusForbidden, errs.KindOf(call()).HTTPStatus(), name)
	}
	_, err = issuancev1.NewIssuanceInternalServiceClient(poller).RecordPollResult(t.Context(),
		&issuancev1.RecordPollResultRequest{OrderId: "ord-1", Outcome: issuancev1.RecordPollResultRequest_FAILED})
	require.Equal(t, errs.NotFound, errs.KindOf(err))
	revision, err := eventv1.NewRevisionServiceClient(viewer).GetRevision(t.Context(), &eventv1.GetRevisionRequest{Collection: "profiles"})
	require.NoError(t, err)
	require.EqualValues(t, 1, revision.GetRevision())
}

func TestTwoReplicasThatStartAtOnceBootstrapOnce(t *testing.T) {
	t.Parallel()
	s := start(t)
	before, err := issuancev1.NewCrlServiceClient(s.AsRole(t, rpcctx.RoleNone)).GetCaCertificate(t.Context(), &issuancev1.GetCaCertificateRequest{IssuerId: "iss-local"})
	require.NoError(t, err)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { require.NoError(t, s.service.Bootstrap(t.Context())) })
	}
	wg.Wait()
	after, err := issuancev1.NewCrlServiceClient(s.AsRole(t, rpcctx.RoleNone)).GetCaCertificate(t.Context(), &issuancev1.GetCaCertificateRequest{IssuerId: "iss-local"})
	require.NoError(t, err)
	require.Equal(t, string(before.GetData()), string(after.GetData()))
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
