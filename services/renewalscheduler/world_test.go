package renewalscheduler_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/pkg/testrpc"
	"github.com/certctl/certctl/pkg/tick"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/renewalscheduler"
)

const (
	day     = 24 * time.Hour
	patient = 20 * time.Second
	often   = 20 * time.Millisecond
)

// world is what surrounds the scheduler: inventory with its agents, issuance with its CA, and audit. It keeps state as they
// do, and complains about calls that they would not understand.
type world struct {
	inventoryv1.UnimplementedInventoryInternalServiceServer
	issuancev1.UnimplementedIssuanceInternalServiceServer
	eventv1.UnimplementedEventSinkServiceServer

	mu          sync.Mutex
	now         time.Time
	lifetime    time.Duration
	certs       map[string]*inventoryv1.CertificateRecord
	agents      map[string]string // status
	tasks       map[string]*inventoryv1.CreateCsrTaskRequest
	cancelled   map[string]bool
	orders      map[string]*issuancev1.SubmitOrderRequest
	statuses    map[string]issuancev1.Order_Status
	profiles    map[string]*issuancev1.Profile
	deployments map[string]*inventoryv1.Deployment
	requests    map[string]string // request key → deployment id
	references  int32
	audit       []*auditv1.Record
	wrong       []string // calls that no right scheduler makes

	// How the others behave.
	agentAnswer  func(agent string) (csr string, problem *typev1.Problem, permanent bool) // "", nil: silent
	orderAnswer  func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status
	orderTrouble *typev1.Problem          // of all orders
	loseReplies  int                      // of SubmitOrder, after accepting
	down         map[string]error         // by method
	hold         map[string]chan struct{} // by method: calls wait for it
	csrProblems  []*issuancev1.FieldViolation

	events chan *eventv1.Event
	sink   eventv1.EventSinkServiceClient
}

func newWorld() *world {
	return &world{
		now: time.Now().UTC().Truncate(time.Second), lifetime: 90 * day,
		certs: map[string]*inventoryv1.CertificateRecord{}, agents: map[string]string{},
		tasks: map[string]*inventoryv1.CreateCsrTaskRequest{}, cancelled: map[string]bool{},
		orders: map[string]*issuancev1.SubmitOrderRequest{}, statuses: map[string]issuancev1.Order_Status{},
		profiles:    map[string]*issuancev1.Profile{"prof-default": {Id: "prof-default"}, "prof-approval": {Id: "prof-approval", RequiresApproval: true}},
		deployments: map[string]*inventoryv1.Deployment{}, requests: map[string]string{},
		agentAnswer: func(agent string) (string, *typev1.Problem, bool) { return "CSR of " + agent, nil, false },
		orderAnswer: func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_ISSUED },
		down:        map[string]error{}, hold: map[string]chan struct{}{},
		events: make(chan *eventv1.Event, 10_000),
	}
}

// do runs fn under the lock, for tests that look or change.
func (w *world) do(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn()
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) advance(d time.Duration) {
	w.do(func() { w.now = w.now.Add(d) })
}

// enter fails or holds a call as the test wants.
func (w *world) enter(ctx context.Context, method string) error {
	w.mu.Lock()
	err, hold := w.down[method], w.hold[method]
	w.mu.Unlock()
	if err != nil {
		return err
	}
	if hold == nil {
		return nil
	}
	select {
	case <-hold:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// complain notes a call that is wrong; the lock is held.
func (w *world) complain(format string, a ...any) error {
	w.wrong = append(w.wrong, fmt.Sprintf(format, a...))
	return errs.New(errs.Invalid, "WRONG_CALL", format, a...)
}

func (w *world) emit(kind, resource, id string, payload proto.Message) {
	p, err := anypb.New(payload)
	if err != nil {
		panic(err)
	}
	w.events <- &eventv1.Event{Id: uuid.NewString(), Type: kind, Source: "world", ResourceType: resource, ResourceId: id, Payload: p, Time: timestamppb.Now()}
}

// pump delivers events as an outbox does: again until they are applied, now and then twice.
func (w *world) pump(ctx context.Context) error {
	for n := 0; ; n++ {
		var e *eventv1.Event
		select {
		case <-ctx.Done():
			return nil
		case e = <-w.events:
		}
		for again := n % 5; again >= 0 && ctx.Err() == nil; {
			r, err := w.sink.Deliver(ctx, &eventv1.DeliverRequest{Events: []*eventv1.Event{e}})
			if err == nil && r.GetResults()[0].GetOutcome() == eventv1.EventResult_REJECTED {
				w.do(func() { _ = w.complain("event %s rejected: %s", e.GetType(), r.GetResults()[0].GetMessage()) })
				break
			}
			if err == nil && r.GetResults()[0].GetOutcome() == eventv1.EventResult_APPLIED {
				again -= 4
			}
		}
	}
}

// Deliver is audit's sink.
func (w *world) Deliver(_ context.Context, req *eventv1.DeliverRequest) (*eventv1.DeliverResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	res := &eventv1.DeliverResponse{}
	for _, e := range req.GetEvents() {
		r := &auditv1.Record{}
		if err := e.GetPayload().UnmarshalTo(r); err != nil {
			return nil, w.complain("audit payload: %v", err)
		}
		w.audit = append(w.audit, r)
		res.Results = append(res.Results, &eventv1.EventResult{Outcome: eventv1.EventResult_APPLIED})
	}
	return res, nil
}

func (w *world) BatchGetCertificates(ctx context.Context, req *inventoryv1.BatchGetCertificatesRequest) (*inventoryv1.BatchGetCertificatesResponse, error) {
	if err := w.enter(ctx, "BatchGetCertificates"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	res := &inventoryv1.BatchGetCertificatesResponse{}
	for _, id := range req.GetIds() {
		rec := w.certs[id]
		if rec == nil {
			continue
		}
		rec, _ = proto.Clone(rec).(*inventoryv1.CertificateRecord)
		for _, h := range rec.GetKeyHolders() {
			h.AgentStatus, h.AgentName = w.agents[h.GetAgentId()], "host of "+h.GetAgentId()
		}
		res.Records = append(res.Records, rec)
	}
	return res, nil
}

func (w *world) CreateCsrTask(ctx context.Context, req *inventoryv1.CreateCsrTaskRequest) (*inventoryv1.CreateCsrTaskResponse, error) {
	if err := w.enter(ctx, "CreateCsrTask"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.agents[req.GetAgentId()] == "" {
		return nil, errs.New(errs.NotFound, "AGENT_NOT_FOUND", "agent %s not found", req.GetAgentId())
	}
	if known := w.tasks[req.GetTaskId()]; known != nil {
		if known.GetAgentId() != req.GetAgentId() || !proto.Equal(known.GetCsr(), req.GetCsr()) {
			return nil, w.complain("task %s is another", req.GetTaskId())
		}
		return &inventoryv1.CreateCsrTaskResponse{}, nil
	}
	if req.GetDeadlineTime().AsTime().Before(w.now) || len(req.GetCsr().GetNames().GetDnsNames()) == 0 {
		return nil, w.complain("task %s is senseless: %v", req.GetTaskId(), req)
	}
	w.tasks[req.GetTaskId()] = req
	csr, problem, permanent := w.agentAnswer(req.GetAgentId())
	if csr != "" || problem != nil {
		w.emit("task.finished", "certificate", req.GetCsr().GetCertificateId(), &inventoryv1.TaskFinished{
			TaskId: req.GetTaskId(), AgentId: req.GetAgentId(), CertificateId: req.GetCsr().GetCertificateId(), CsrPem: csr, Problem: problem, Permanent: permanent,
		})
	}
	return &inventoryv1.CreateCsrTaskResponse{}, nil
}

func (w *world) CancelTask(ctx context.Context, req *inventoryv1.CancelTaskRequest) (*inventoryv1.CancelTaskResponse, error) {
	if err := w.enter(ctx, "CancelTask"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cancelled[req.GetTaskId()] = true
	return &inventoryv1.CancelTaskResponse{}, nil
}

func (w *world) CountReferences(context.Context, *inventoryv1.CountReferencesRequest) (*inventoryv1.CountReferencesResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &inventoryv1.CountReferencesResponse{Certificates: w.references}, nil
}

func (w *world) RequestDeployment(ctx context.Context, req *inventoryv1.RequestDeploymentRequest) (*inventoryv1.RequestDeploymentResponse, error) {
	if err := w.enter(ctx, "RequestDeployment"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	id := "dep-" + req.GetCertificateId() + "-" + req.GetTargetId()
	d := w.deployments[id]
	if d == nil {
		d = &inventoryv1.Deployment{Id: id, CertificateId: req.GetCertificateId(), TargetId: req.GetTargetId()}
		w.deployments[id] = d
	}
	if w.requests[req.GetRequestKey()] == "" {
		d.Status = inventoryv1.Deployment_PENDING
	}
	w.requests[req.GetRequestKey()] = id
	c, _ := proto.Clone(d).(*inventoryv1.Deployment)
	return &inventoryv1.RequestDeploymentResponse{Deployment: c}, nil
}

// deployed has an agent report on a deployment.
func (w *world) deployed(jobID string, status inventoryv1.Deployment_Status, change func(*inventoryv1.Deployment)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.deployments[w.requests[jobID]]
	d.Status = status
	if change != nil {
		change(d)
	}
	c, _ := proto.Clone(d).(*inventoryv1.Deployment)
	w.emit("deployment.changed", "certificate", d.GetCertificateId(), &inventoryv1.DeploymentChanged{Deployment: c, RequestKey: jobID})
}

func (w *world) BatchGetDeployments(_ context.Context, req *inventoryv1.BatchGetDeploymentsRequest) (*inventoryv1.BatchGetDeploymentsResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	res := &inventoryv1.BatchGetDeploymentsResponse{}
	for _, id := range slices.Sorted(maps.Keys(w.deployments)) {
		if d := w.deployments[id]; slices.Contains(req.GetCertificateIds(), d.GetCertificateId()) {
			c, _ := proto.Clone(d).(*inventoryv1.Deployment)
			res.Deployments = append(res.Deployments, c)
		}
	}
	return res, nil
}

func (w *world) BatchGetProfiles(ctx context.Context, req *issuancev1.BatchGetProfilesRequest) (*issuancev1.BatchGetProfilesResponse, error) {
	if err := w.enter(ctx, "BatchGetProfiles"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	res := &issuancev1.BatchGetProfilesResponse{}
	for _, id := range req.GetIds() {
		if p := w.profiles[id]; p != nil {
			c, _ := proto.Clone(p).(*issuancev1.Profile)
			res.Profiles = append(res.Profiles, c)
		}
	}
	return res, nil
}

func (w *world) CheckCsr(context.Context, *issuancev1.CheckCsrRequest) (*issuancev1.CheckCsrResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &issuancev1.CheckCsrResponse{Violations: w.csrProblems}, nil
}

func (w *world) SubmitOrder(ctx context.Context, req *issuancev1.SubmitOrderRequest) (*issuancev1.SubmitOrderResponse, error) {
	if err := w.enter(ctx, "SubmitOrder"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if known := w.orders[req.GetOrderId()]; known == nil {
		w.orders[req.GetOrderId()] = req
		w.decideOrder(req.GetOrderId(), w.orderAnswer(req))
	} else if !proto.Equal(known, req) {
		return nil, w.complain("order %s is another", req.GetOrderId())
	}
	if w.loseReplies > 0 {
		w.loseReplies--
		return nil, errs.New(errs.Unavailable, "LOST", "the reply was lost")
	}
	return &issuancev1.SubmitOrderResponse{Order: w.order(req.GetOrderId())}, nil
}

func (w *world) order(id string) *issuancev1.Order {
	req := w.orders[id]
	return &issuancev1.Order{Id: id, CertificateId: req.GetCertificateId(), Status: w.statuses[id], AgentId: req.GetAgentId(), JobId: req.GetJobId(), LastError: w.orderTrouble}
}

// decideOrder is the CA's decision; the lock is held.
func (w *world) decideOrder(id string, status issuancev1.Order_Status) {
	w.statuses[id] = status
	req := w.orders[id]
	w.emit("order.changed", "order", id, &issuancev1.OrderChanged{Order: w.order(id)})
	if status != issuancev1.Order_ISSUED {
		return
	}
	rec := w.certs[req.GetCertificateId()]
	cert := rec.GetCertificate()
	cert.CurrentVersion++
	cert.NotBefore, cert.NotAfter = timestamppb.New(w.now), timestamppb.New(w.now.Add(w.lifetime))
	if cert.GetStatus() != inventoryv1.Certificate_REVOKED && cert.GetStatus() != inventoryv1.Certificate_ARCHIVED {
		cert.Status = inventoryv1.Certificate_ACTIVE
	}
	for _, h := range rec.GetKeyHolders() {
		if h.GetAgentId() == req.GetAgentId() {
			h.Version, h.NotAfter = cert.GetCurrentVersion(), cert.GetNotAfter()
		}
	}
	w.emit("version.stored", "certificate", cert.GetId(), &inventoryv1.VersionStored{
		CertificateId: cert.GetId(), Version: cert.GetCurrentVersion(), AgentId: req.GetAgentId(), OrderId: id,
		NotBefore: cert.GetNotBefore(), NotAfter: cert.GetNotAfter(),
	})
}

// site is a scheduler in its world.
type site struct {
	*world
	t     testing.TB
	db    *testpg.Database
	peers *testrpc.Server
	// replica is the first one; more are made by start.
	replica *replica
}

// replica is one running process of the scheduler.
type replica struct {
	server  *testrpc.Server
	service *renewalscheduler.Service
	stop    func()
}

// newSite starts one scheduler whose loops run often.
func newSite(t testing.TB, change ...func(*renewalscheduler.Config)) *site {
	t.Helper()
	s := &site{world: newWorld(), t: t, db: testpg.NewDatabase(t, renewalscheduler.Schema())}
	peers := rpc.Allow(rpcctx.RolePeer)
	table := rpc.AuthzTable{"/certctl.event.v1.EventSinkService/Deliver": peers}
	for _, d := range []grpc.ServiceDesc{inventoryv1.InventoryInternalService_ServiceDesc, issuancev1.IssuanceInternalService_ServiceDesc} {
		for _, m := range d.Methods {
			table["/"+d.ServiceName+"/"+m.MethodName] = peers
		}
	}
	s.peers = testrpc.Serve(t, testrpc.Config{Table: table, Register: func(r grpc.ServiceRegistrar) {
		inventoryv1.RegisterInventoryInternalServiceServer(r, s.world)
		issuancev1.RegisterIssuanceInternalServiceServer(r, s.world)
		eventv1.RegisterEventSinkServiceServer(r, s.world)
	}})
	s.replica = s.start(change...)
	s.sink = eventv1.NewEventSinkServiceClient(s.replica.server.AsPeer(t, "inventory"))
	g := run.NewGroup(context.WithoutCancel(t.Context()), run.Config{})
	g.Go("events", s.pump)
	t.Cleanup(func() {
		g.Stop(nil)
		require.NoError(t, g.Wait())
		s.do(func() { require.Empty(t, s.wrong) })
	})
	return s
}

// start starts a replica on the same database.
func (s *site) start(change ...func(*renewalscheduler.Config)) *replica {
	s.t.Helper()
	return s.startOn(s.db.Open(s.t, "renewalscheduler"), change...)
}

func (s *site) startOn(db *pg.DB, change ...func(*renewalscheduler.Config)) *replica {
	s.t.Helper()
	cfg := renewalscheduler.Config{
		InternalSecret: secretbox.NewSecret("a secret of sixteen bytes"), RenewalCheckInterval: time.Hour, JobProcessorInterval: 50 * time.Millisecond,
	}
	for _, c := range change {
		c(&cfg)
	}
	conn := s.peers.AsPeer(s.t, "renewalscheduler")
	service, err := renewalscheduler.New(cfg, renewalscheduler.Deps{
		DB: db, Log: zap.NewNop(), Metrics: metrics.New("renewalscheduler"), Now: s.clock,
		Peers: renewalscheduler.Peers{Inventory: conn, Issuance: conn, Audit: conn},
	})
	require.NoError(s.t, err)
	r := &replica{service: service, server: testrpc.Serve(s.t, testrpc.Config{Table: service.AuthzTable(), Register: service.Register})}
	g := run.NewGroup(context.WithoutCancel(s.t.Context()), run.Config{})
	g.Go("service", service.Run)
	r.stop = sync.OnceFunc(func() {
		g.Stop(nil)
		require.NoError(s.t, g.Wait())
	})
	s.t.Cleanup(r.stop)
	return r
}

// as connects as an operator of a name.
func (s *site) as(name string) schedulerv1.JobServiceClient {
	return schedulerv1.NewJobServiceClient(s.replica.server.As(s.t, rpcctx.Caller{Type: rpcctx.User, ID: name, Role: rpcctx.RoleOperator}))
}

func (s *site) policies() schedulerv1.PolicyServiceClient {
	return schedulerv1.NewPolicyServiceClient(s.replica.server.AsRole(s.t, rpcctx.RoleAdmin))
}

// wanted describes a certificate.
type wanted struct {
	id, profile, policy string
	agents              []string
}

// create has anna create a certificate.
func (s *site) create(c wanted) string {
	s.t.Helper()
	if c.profile == "" {
		c.profile = "prof-default"
	}
	if c.policy == "" {
		c.policy = "pol-default"
	}
	cert := &inventoryv1.Certificate{
		Id: c.id, Name: c.id, DnsNames: []string{c.id + ".example.com"}, IssuerId: "iss-local", ProfileId: c.profile, PolicyId: c.policy,
		Status: inventoryv1.Certificate_PENDING, KeyAlgorithm: typev1.KeyAlgorithm_ECDSA_P256,
	}
	rec := &inventoryv1.CertificateRecord{Certificate: cert}
	for _, a := range c.agents {
		cert.TargetIds = append(cert.TargetIds, "target-"+a)
		rec.KeyHolders = append(rec.KeyHolders, &inventoryv1.KeyHolder{AgentId: a})
	}
	s.do(func() {
		for _, a := range c.agents {
			if s.agents[a] == "" {
				s.agents[a] = "ONLINE"
			}
		}
		s.certs[c.id] = rec
	})
	s.tell("certificate.created", c.id, "anna")
	return c.id
}

// tell emits an event about a certificate as it is.
func (s *site) tell(kind, id, by string) {
	s.do(func() {
		cert, _ := proto.Clone(s.certs[id].GetCertificate()).(*inventoryv1.Certificate)
		s.emit(kind, "certificate", id, &inventoryv1.CertificateChanged{Certificate: cert, Actor: &typev1.Actor{Type: typev1.Actor_USER, Id: by}})
	})
}

// close revokes or archives a certificate.
func (s *site) close(id string, status inventoryv1.Certificate_Status, kind string) {
	s.do(func() { s.certs[id].GetCertificate().Status = status })
	s.tell(kind, id, "anna")
}

// jobs lists the jobs of a certificate, newest first.
func (s *site) jobs(id string) []*schedulerv1.Job {
	s.t.Helper()
	r, err := s.as("reader").ListJobs(s.t.Context(), &schedulerv1.ListJobsRequest{CertificateId: id, PageSize: 1000})
	require.NoError(s.t, err)
	return r.GetJobs()
}

// job waits until the newest job of a certificate is as wanted.
func (s *site) job(id string, status schedulerv1.Job_Status, and ...func(*schedulerv1.Job) bool) *schedulerv1.Job {
	s.t.Helper()
	var found *schedulerv1.Job
	ok := eventually(s.t, func() bool {
		jobs := s.jobs(id)
		if len(jobs) == 0 {
			return false
		}
		found = jobs[0]
		if found.GetStatus() != status {
			return false
		}
		for _, f := range and {
			if !f(found) {
				return false
			}
		}
		return s.jobs(id)[0].GetId() == found.GetId()
	})
	require.True(s.t, ok, "wanted %s, the jobs of %s are %v", status, id, s.jobs(id))
	return found
}

// nth is true for the newest of n jobs.
func (s *site) nth(n int) func(*schedulerv1.Job) bool {
	return func(j *schedulerv1.Job) bool { return len(s.jobs(j.GetCertificateId())) == n }
}

func (s *site) get(id string) *schedulerv1.Job {
	s.t.Helper()
	r, err := s.as("reader").GetJob(s.t.Context(), &schedulerv1.GetJobRequest{Id: id})
	require.NoError(s.t, err)
	return r.GetJob()
}

func (s *site) explain(id string) *schedulerv1.ExplainCertificateResponse {
	s.t.Helper()
	r, err := s.as("reader").ExplainCertificate(s.t.Context(), &schedulerv1.ExplainCertificateRequest{CertificateId: id})
	require.NoError(s.t, err)
	return r
}

// renewTime waits until the certificate has a time to renew.
func (s *site) renewTime(id string) time.Time {
	s.t.Helper()
	var at time.Time
	require.True(s.t, eventually(s.t, func() bool {
		if r := s.explain(id); r.GetRenewTime() != nil {
			at = r.GetRenewTime().AsTime()
			return true
		}
		return false
	}), "no time to renew: %v", s.explain(id))
	return at
}

// until moves the clock.
func (s *site) until(at time.Time) {
	s.do(func() {
		if at.After(s.now) {
			s.now = at
		}
	})
}

func (s *site) counts() (tasks, orders int) {
	s.do(func() { tasks, orders = len(s.tasks), len(s.orders) })
	return tasks, orders
}

// actions lists the audit actions about a resource.
func (s *site) actions(id string) (out []string) {
	s.do(func() {
		for _, r := range s.audit {
			if r.GetResource().GetId() == id {
				out = append(out, r.GetAction())
			}
		}
	})
	return out
}

// eventually waits for a condition.
func eventually(t testing.TB, condition func() bool) bool {
	t.Helper()
	ticker, err := tick.New(often, 0)
	require.NoError(t, err)
	defer ticker.Stop()
	end := time.Now().Add(patient)
	for !condition() {
		if time.Now().After(end) {
			return false
		}
		<-ticker.C
	}
	return true
}
