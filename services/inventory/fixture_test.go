package inventory_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/pkg/testrpc"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	renewalschedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/inventory"
)

const patience = 10 * time.Second

// peer is a fake of issuance, renewalscheduler and audit: it answers what inventory asks and keeps what it is told.
type peer struct {
	issuancev1.UnimplementedIssuanceInternalServiceServer
	renewalschedulerv1.UnimplementedSchedulerInternalServiceServer
	eventv1.UnimplementedEventSinkServiceServer

	mu         sync.Mutex
	events     []*eventv1.Event
	revoked    []*issuancev1.RevokeVersionsRequest
	revokeDone bool
	revokeErr  error
	violations []*issuancev1.FieldViolation
	countErr   error
}

func (p *peer) CheckCertificateRequest(_ context.Context, r *issuancev1.CheckCertificateRequestRequest) (*issuancev1.CheckCertificateRequestResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &issuancev1.CheckCertificateRequestResponse{Violations: p.violations, Names: r.GetNames(), KeyAlgorithm: 1}, nil
}

func (p *peer) RevokeVersions(_ context.Context, r *issuancev1.RevokeVersionsRequest) (*issuancev1.RevokeVersionsResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.revoked = append(p.revoked, r)
	return &issuancev1.RevokeVersionsResponse{Done: p.revokeDone}, p.revokeErr
}

func (p *peer) BatchGetPolicies(_ context.Context, r *renewalschedulerv1.BatchGetPoliciesRequest) (*renewalschedulerv1.BatchGetPoliciesResponse, error) {
	out := &renewalschedulerv1.BatchGetPoliciesResponse{}
	for _, id := range r.GetIds() {
		if id != "pol-missing" {
			out.Policies = append(out.Policies, &renewalschedulerv1.PolicySummary{Id: id})
		}
	}
	return out, nil
}

func (p *peer) CountJobs(context.Context, *renewalschedulerv1.CountJobsRequest) (*renewalschedulerv1.CountJobsResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &renewalschedulerv1.CountJobsResponse{Jobs: map[string]int32{"COMPLETED": 7}, Stuck: 2}, p.countErr
}

func (p *peer) Deliver(_ context.Context, r *eventv1.DeliverRequest) (*eventv1.DeliverResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := &eventv1.DeliverResponse{}
	for _, e := range r.GetEvents() {
		p.events = append(p.events, e)
		out.Results = append(out.Results, &eventv1.EventResult{Outcome: eventv1.EventResult_APPLIED})
	}
	return out, nil
}

// told gives the payloads of the events of a type.
func told[M proto.Message](t testing.TB, p *peer, typ string, empty func() M) []M {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []M
	for _, e := range p.events {
		if e.GetType() == typ {
			m := empty()
			require.NoError(t, e.GetPayload().UnmarshalTo(m))
			out = append(out, m)
		}
	}
	return out
}

// audited gives the actions that audit was told of a resource; "" is all.
func (p *peer) audited(t testing.TB, resourceID string) []string {
	t.Helper()
	var out []string
	for _, r := range told(t, p, "audit.record", func() *auditv1.Record { return &auditv1.Record{} }) {
		if resourceID == "" || r.GetResource().GetId() == resourceID {
			out = append(out, r.GetAction())
		}
	}
	return out
}

func (p *peer) table() rpc.AuthzTable {
	t := rpc.AuthzTable{}
	for _, d := range []grpc.ServiceDesc{issuancev1.IssuanceInternalService_ServiceDesc, renewalschedulerv1.SchedulerInternalService_ServiceDesc, eventv1.EventSinkService_ServiceDesc} {
		for _, m := range d.Methods {
			t["/"+d.ServiceName+"/"+m.MethodName] = rpc.Allow(rpcctx.RolePeer)
		}
	}
	return t
}

func newPeer(t testing.TB) (*peer, *grpc.ClientConn) {
	t.Helper()
	p := &peer{revokeDone: true}
	s := testrpc.Serve(t, testrpc.Config{Table: p.table(), Register: func(r grpc.ServiceRegistrar) {
		issuancev1.RegisterIssuanceInternalServiceServer(r, p)
		renewalschedulerv1.RegisterSchedulerInternalServiceServer(r, p)
		eventv1.RegisterEventSinkServiceServer(r, p)
	}})
	return p, s.AsPeer(t, "inventory")
}

// validator takes every configuration of type "file" that is an object without "bad".
type validator struct{}

func (validator) Validate(typ string, config json.RawMessage) error {
	if typ != "file" {
		return errs.Field("type", "unknown target type %q", typ)
	}
	var c map[string]any
	if err := json.Unmarshal(config, &c); err != nil {
		return errs.Field("config", "is not an object")
	}
	if _, bad := c["bad"]; bad {
		return errs.Field("config.bad", "is bad")
	}
	return nil
}

// world is one database with the peers of inventory.
type world struct {
	database                    *testpg.Database
	issuance, scheduler, audit  *peer
	toIssuance, toSched, toAudi *grpc.ClientConn
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := newPeers(t)
	w.database = testpg.NewDatabase(t, inventory.Schema())
	return w
}

// newPeers is a world without its database.
func newPeers(t testing.TB) *world {
	t.Helper()
	w := &world{}
	w.issuance, w.toIssuance = newPeer(t)
	w.scheduler, w.toSched = newPeer(t)
	w.audit, w.toAudi = newPeer(t)
	return w
}

// replica is one running inventory.
type replica struct {
	service *inventory.Service
	server  *testrpc.Server
	db      *pg.DB
	stop    func()

	admin *grpc.ClientConn
	peer  *grpc.ClientConn
	anon  *grpc.ClientConn
}

const standing = "standing-join-token-of-the-fleet"

// quick has short times, so that loops are seen at work.
func quick() inventory.Config {
	return inventory.Config{
		InternalSecret: testrpc.Secret(), AgentJoinToken: secretbox.NewSecret(standing), DispatchInterval: 20 * time.Millisecond,
		RetryBase: time.Millisecond, RetryMax: 2 * time.Millisecond, EndpointHealthInterval: 20 * time.Millisecond,
		ShortLivedInterval: 20 * time.Millisecond, AgentHealthInterval: 20 * time.Millisecond, PresenceInterval: 20 * time.Millisecond,
		CredentialCheckInterval: 20 * time.Millisecond,
	}
}

func (w *world) start(t testing.TB, cfg inventory.Config) *replica {
	t.Helper()
	return w.startOn(t, cfg, w.database.Open(t, "inventory"))
}

func (w *world) startOn(t testing.TB, cfg inventory.Config, db *pg.DB) *replica {
	t.Helper()
	r := &replica{db: db}
	var err error
	r.service, err = inventory.New(cfg, inventory.Deps{
		DB: r.db, Log: zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)), Targets: validator{},
		Peers: inventory.Peers{Issuance: w.toIssuance, RenewalScheduler: w.toSched, Audit: w.toAudi},
	})
	require.NoError(t, err)
	r.server = testrpc.Serve(t, testrpc.Config{
		Table: r.service.AuthzTable(), Register: r.service.Register,
		Change: func(c *rpc.ServerConfig, _ *rpc.ServerDeps) { c.LongLivedStreams = r.service.LongLivedStreams() },
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	g := run.NewGroup(ctx, run.Config{})
	g.Go("inventory", r.service.Run)
	r.stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, g.Wait())
	})
	t.Cleanup(r.stop)
	r.admin, r.peer, r.anon = r.server.AsRole(t, rpcctx.RoleAdmin), r.server.AsPeer(t, "issuance"), r.server.AsRole(t, rpcctx.RoleNone)
	return r
}

// one starts a world with one replica.
func one(t testing.TB) (*world, *replica) {
	t.Helper()
	w := newWorld(t)
	return w, w.start(t, quick())
}

func (r *replica) certificates() inventoryv1.CertificateServiceClient {
	return inventoryv1.NewCertificateServiceClient(r.admin)
}

func (r *replica) targets() inventoryv1.TargetServiceClient {
	return inventoryv1.NewTargetServiceClient(r.admin)
}

func (r *replica) registry() inventoryv1.AgentRegistryServiceClient {
	return inventoryv1.NewAgentRegistryServiceClient(r.admin)
}

func (r *replica) internal() inventoryv1.InventoryInternalServiceClient {
	return inventoryv1.NewInventoryInternalServiceClient(r.peer)
}

// host is a fake agent.
type host struct {
	id, instance, credential string
	conn                     *grpc.ClientConn
}

func enrollment(name, token string) *agentv1.EnrollRequest {
	return &agentv1.EnrollRequest{
		JoinToken: token, Name: name, InstanceId: uuid.NewString(), Host: &agentv1.HostInfo{Hostname: name, Os: "linux", Capabilities: []string{"file"}},
		Labels: map[string]string{"zone": "a"},
	}
}

func (r *replica) enroll(t testing.TB, name string) *host {
	t.Helper()
	req := enrollment(name, standing)
	a, err := agentv1.NewAgentServiceClient(r.anon).Enroll(t.Context(), req)
	require.NoError(t, err)
	return &host{id: a.GetAgentId(), instance: req.GetInstanceId(), credential: a.GetCredential(), conn: r.anon}
}

// on gives the same agent as it calls another replica.
func (h *host) on(r *replica) *host {
	c := *h
	c.conn = r.anon
	return &c
}

func (h *host) ctx(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "certctl-credential", h.credential)
}

func (h *host) client() agentv1.AgentServiceClient { return agentv1.NewAgentServiceClient(h.conn) }

// line is an open stream; what came down is in messages, which is closed with err.
type line struct {
	stream   agentv1.AgentService_ConnectClient
	messages chan *agentv1.ConnectResponse
	err      error
}

func (h *host) connect(t testing.TB) *line {
	t.Helper()
	ctx, cancel := context.WithCancel(h.ctx(context.WithoutCancel(t.Context())))
	t.Cleanup(cancel)
	s, err := h.client().Connect(ctx)
	require.NoError(t, err)
	require.NoError(t, s.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.Hello{
		Host: &agentv1.HostInfo{Hostname: "h", Os: "linux", Version: "9.9", Capabilities: []string{"file"}}, SessionId: "s",
	}}}))
	l := &line{stream: s, messages: make(chan *agentv1.ConnectResponse, 100)}
	run.Go(func() error {
		defer close(l.messages)
		for {
			m, err := s.Recv()
			if err != nil {
				l.err = err
				return nil
			}
			l.messages <- m
		}
	})
	require.NotNil(t, l.next(t).GetWelcome())
	return l
}

// next waits for a message; nil is the end of the stream.
func (l *line) next(t testing.TB) *agentv1.ConnectResponse {
	t.Helper()
	select {
	case m := <-l.messages:
		return m
	case <-time.After(patience):
		require.FailNow(t, "nothing came on the stream")
		return nil
	}
}

// hint waits for a hint about work.
func (l *line) hint(t testing.TB) int64 {
	t.Helper()
	for {
		m := l.next(t)
		require.NotNil(t, m, "the stream ended: %v", l.err)
		if h := m.GetWorkHint(); h != nil {
			return h.GetRevision()
		}
	}
}

func (h *host) list(t testing.TB, after int64) []*agentv1.Assignment {
	t.Helper()
	a, err := h.client().ListAssignments(h.ctx(t.Context()), &agentv1.ListAssignmentsRequest{AfterRevision: after})
	require.NoError(t, err)
	return a.GetAssignments()
}

// work waits for one open assignment that the condition takes.
func (h *host) work(t testing.TB, want func(*agentv1.Assignment) bool) *agentv1.Assignment {
	t.Helper()
	var got *agentv1.Assignment
	require.Eventually(t, func() bool {
		for _, a := range h.list(t, 0) {
			if want(a) {
				got = a
				return true
			}
		}
		return false
	}, patience, 5*time.Millisecond)
	return got
}

func isDeploy(a *agentv1.Assignment) bool { return a.GetDeploy() != nil }
func isVerify(a *agentv1.Assignment) bool { return a.GetVerify() != nil }

func (h *host) report(t testing.TB, r *agentv1.ReportAssignmentRequest) *agentv1.ReportAssignmentResponse {
	t.Helper()
	a, err := h.client().ReportAssignment(h.ctx(t.Context()), r)
	require.NoError(t, err)
	return a
}

func servedReport(a *agentv1.Assignment, fingerprint string) *agentv1.ReportAssignmentRequest {
	return &agentv1.ReportAssignmentRequest{AssignmentId: a.GetId(), LeaseId: a.GetLeaseId(), Report: &agentv1.ReportAssignmentRequest_Deploy{
		Deploy: &agentv1.DeployResult{ServedFingerprintSha256: fingerprint, VerifiedAddress: "127.0.0.1:443", VerifyTime: timestamppb.Now()},
	}}
}

func failureReport(a *agentv1.Assignment, f *agentv1.Failure) *agentv1.ReportAssignmentRequest {
	return &agentv1.ReportAssignmentRequest{AssignmentId: a.GetId(), LeaseId: a.GetLeaseId(), Report: &agentv1.ReportAssignmentRequest_Failure{Failure: f}}
}

func (r *replica) target(t testing.TB, id, agentID string) {
	t.Helper()
	config, err := structpb.NewStruct(map[string]any{"fullchain_path": "/etc/ssl/" + id + ".pem", "key_path": "/etc/ssl/" + id + ".key"})
	require.NoError(t, err)
	_, err = r.targets().CreateTarget(t.Context(), &inventoryv1.CreateTargetRequest{Target: &inventoryv1.Target{
		Id: id, Name: id, AgentId: agentID, Type: "file", Config: config,
	}})
	require.NoError(t, err)
}

func wanted(id string, targets ...string) *inventoryv1.CreateCertificateRequest {
	return &inventoryv1.CreateCertificateRequest{Certificate: &inventoryv1.Certificate{
		Id: id, Name: id, DnsNames: []string{id + ".example.com"}, IssuerId: "iss-local", TargetIds: targets,
	}}
}

func (r *replica) certificate(t testing.TB, id string, targets ...string) {
	t.Helper()
	_, err := r.certificates().CreateCertificate(t.Context(), wanted(id, targets...))
	require.NoError(t, err)
}

func (r *replica) get(t testing.TB, id string) *inventoryv1.Certificate {
	t.Helper()
	a, err := r.certificates().GetCertificate(t.Context(), &inventoryv1.GetCertificateRequest{Id: id})
	require.NoError(t, err)
	return a.GetCertificate()
}

// leaf is a certificate as issuance tells it.
type leaf struct {
	issued      *issuancev1.CertificateIssued
	fingerprint string
	serial      string
	key         string
}

func newLeaf(t testing.TB, certificateID, agentID string, lifetime time.Duration) leaf {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: certificateID}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
		DNSNames: []string{certificateID + ".example.com"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	parsed, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	fp, spki := sha256.Sum256(der), sha256.Sum256(parsed.RawSubjectPublicKeyInfo)
	return leaf{
		issued: &issuancev1.CertificateIssued{
			OrderId: "ord-" + uuid.NewString(), CertificateId: certificateID, AgentId: agentID,
			CertificatePem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), ChainPem: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
		},
		fingerprint: hex.EncodeToString(fp[:]), serial: serial.Text(16), key: hex.EncodeToString(spki[:]),
	}
}

// deliver hands an event over and answers its outcome.
func (r *replica) deliver(t testing.TB, typ string, m proto.Message) eventv1.EventResult_Outcome {
	t.Helper()
	payload, err := anypb.New(m)
	require.NoError(t, err)
	a, err := eventv1.NewEventSinkServiceClient(r.peer).Deliver(t.Context(), &eventv1.DeliverRequest{Events: []*eventv1.Event{{
		Id: uuid.Must(uuid.NewV7()).String(), Type: typ, ResourceType: "order", ResourceId: "o", Payload: payload,
	}}})
	require.NoError(t, err)
	return a.GetResults()[0].GetOutcome()
}

func (r *replica) issue(t testing.TB, certificateID, agentID string) leaf {
	t.Helper()
	l := newLeaf(t, certificateID, agentID, 24*time.Hour)
	require.Equal(t, eventv1.EventResult_APPLIED, r.deliver(t, "certificate.issued", l.issued))
	return l
}

func (r *replica) deployments(t testing.TB, certificateID string) []*inventoryv1.Deployment {
	t.Helper()
	a, err := inventoryv1.NewDeploymentServiceClient(r.admin).ListDeployments(t.Context(), &inventoryv1.ListDeploymentsRequest{CertificateId: certificateID, OrderBy: "create_time"})
	require.NoError(t, err)
	return a.GetDeployments()
}

// reaches waits until the certificate's one deployment has the status.
func (r *replica) reaches(t testing.TB, certificateID string, status inventoryv1.Deployment_Status) *inventoryv1.Deployment {
	t.Helper()
	var d *inventoryv1.Deployment
	require.Eventually(t, func() bool {
		all := r.deployments(t, certificateID)
		if len(all) != 1 {
			return false
		}
		d = all[0]
		return d.GetStatus() == status
	}, patience, 5*time.Millisecond, "want %s", status)
	return d
}

func eventually(t testing.TB, condition func() bool, what string) {
	t.Helper()
	require.Eventually(t, condition, patience, 5*time.Millisecond, what)
}

func requireReason(t testing.TB, err error, kind errs.Kind, reason string) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, kind, errs.KindOf(err), "%v", err)
	require.Equal(t, reason, errs.ReasonOf(err))
}

func requireFields(t testing.TB, err error, fields ...string) {
	t.Helper()
	require.Equal(t, errs.Invalid, errs.KindOf(err), "%v", err)
	var got []string
	for _, v := range errs.From(err).Violations() {
		got = append(got, v.Field)
	}
	slices.Sort(got)
	slices.Sort(fields)
	require.Equal(t, fields, got)
}

func ids(certificates []*inventoryv1.Certificate) []string {
	out := []string{}
	for _, c := range certificates {
		out = append(out, c.GetId())
	}
	return out
}

func csrTask(agentID, certificateID string) *inventoryv1.CreateCsrTaskRequest {
	return &inventoryv1.CreateCsrTaskRequest{
		TaskId: uuid.NewString(), AgentId: agentID, DeadlineTime: timestamppb.New(time.Now().Add(time.Hour)),
		Csr: &agentv1.CreateCsr{CertificateId: certificateID, KeyAlgorithm: 1},
	}
}

func named(format string, a ...any) string { return fmt.Sprintf(format, a...) }
