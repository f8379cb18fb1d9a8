package asyncpoller_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/pkg/testrpc"
	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/asyncpoller"
)

const (
	patient = 20 * time.Second
	often   = 10 * time.Millisecond
)

// ca is an issuer as issuance has it, with the CA behind it.
type ca struct {
	*issuertest.Fake

	typ      string
	revision int
	settings map[string]any
	err      error // of GetIssuerCredentials

	mu     sync.Mutex
	polled map[string]int // polls of an order that run now
	twice  []string       // orders that were asked about twice at a time
	built  []issuer.Config
	refuse error // of New
	// limits, when set, make the connector go through the guard of an account, as those of commercial CAs do.
	limits *account.Limits
	guard  *account.Guard // of the last connector that was built
	asked  []time.Time    // when the CA was asked, on the clock of the pollers
	clock  func() time.Time
}

// Poll notes polls that overlap.
func (c *ca) Poll(ctx context.Context, ref issuer.Ref) (issuer.Submission, error) {
	key := fmt.Sprint(ref)
	c.mu.Lock()
	if c.polled[key]++; c.polled[key] > 1 {
		c.twice = append(c.twice, key)
	}
	c.asked = append(c.asked, c.clock())
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.polled[key]--
	}()
	return c.Fake.Poll(ctx, ref)
}

func (c *ca) issuerType() issuer.Type {
	t := c.Type()
	t.Name, t.SecretFields = c.typ, []string{"api_key"}
	t.New = func(_ context.Context, cfg issuer.Config, deps issuer.Deps) (issuer.Issuer, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.built = append(c.built, cfg)
		if c.limits != nil {
			c.guard = deps.Accounts.Guard("account of "+c.typ, *c.limits)
			return &metered{ca: c, guard: c.guard}, c.refuse
		}
		return c, c.refuse
	}
	return t
}

// metered is a connector of one replica that goes through the guard of its account.
type metered struct {
	*ca

	guard *account.Guard
}

// Account implements issuer.Metered.
func (m *metered) Account() *account.Guard { return m.guard }

// Poll asks the CA if the guard lets it.
func (m *metered) Poll(ctx context.Context, ref issuer.Ref) (issuer.Submission, error) {
	leave, err := m.guard.Enter(ctx)
	if err != nil {
		return issuer.Submission{}, issuer.RetryAfter(0, err)
	}
	s, err := m.ca.Poll(ctx, ref)
	_, answered := issuer.AsPermanent(err)
	leave(account.Result{Failed: err != nil && !answered})
	return s, err
}

// times gives when the CA was asked.
func (c *ca) times() []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.asked)
}

func (c *ca) builds() []issuer.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.built)
}

// order is an order in the journal.
type order struct {
	id, issuerID, reference string
	status                  issuancev1.Order_Status
	applied                 int // moves into a final state
	calls                   []*issuancev1.RecordPollResultRequest
}

// world is issuance and its CAs. It keeps state as they do, and complains about calls that it would not understand.
type world struct {
	issuancev1.UnimplementedIssuanceInternalServiceServer

	mu     sync.Mutex
	ahead  time.Duration
	cas    map[string]*ca // by issuer id
	orders map[string]*order
	wrong  []string
	asked  int                                             // for credentials
	down   error                                           // of RecordPollResult
	hear   func(*issuancev1.RecordPollResultRequest) error // after a result was applied: its reply is lost
}

func (w *world) do(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn()
}

// clock is that of the pollers.
func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.ahead)
}

func (w *world) turn(d time.Duration) { w.do(func() { w.ahead += d }) }

// turnIfWaiting turns the clock unless an order is being asked about, whose lease would run out by that.
func (s *site) turnIfWaiting(id string, d time.Duration) {
	s.t.Helper()
	if s.poll(id).GetState() == asyncpollerv1.Poll_WAITING {
		s.turn(d)
	}
}

// complain notes a call that is wrong; the lock is held.
func (w *world) complain(format string, a ...any) error {
	w.wrong = append(w.wrong, fmt.Sprintf(format, a...))
	return errs.New(errs.Invalid, "WRONG_CALL", format, a...)
}

func (w *world) fromPoller(ctx context.Context) error {
	if c := rpcctx.CallerFrom(ctx); c.ID != "asyncpoller" {
		return w.complain("%s calls", c)
	}
	return nil
}

// GetIssuerCredentials answers as issuance does.
func (w *world) GetIssuerCredentials(ctx context.Context, r *issuancev1.GetIssuerCredentialsRequest) (*issuancev1.GetIssuerCredentialsResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.fromPoller(ctx); err != nil {
		return nil, err
	}
	w.asked++
	c := w.cas[r.GetIssuerId()]
	if c == nil {
		return nil, errs.New(errs.NotFound, "ISSUER_NOT_FOUND", "issuer %s not found", r.GetIssuerId())
	}
	if c.err != nil {
		return nil, c.err
	}
	out := &issuancev1.GetIssuerCredentialsResponse{Type: c.typ, ConfigHash: fmt.Sprintf("hash %d", c.revision)}
	if r.GetConfigHash() == out.GetConfigHash() {
		return out, nil
	}
	var err error
	out.Config, err = json.Marshal(c.settings)
	return out, err
}

// RecordPollResult answers as issuance does: what is final stays.
func (w *world) RecordPollResult(ctx context.Context, r *issuancev1.RecordPollResultRequest) (*issuancev1.RecordPollResultResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down != nil {
		return nil, w.down
	}
	o := w.orders[r.GetOrderId()]
	if o == nil {
		return nil, errs.New(errs.NotFound, "ORDER_NOT_FOUND", "order %s not found", r.GetOrderId())
	}
	if err := w.judge(ctx, o, r); err != nil {
		return nil, err
	}
	o.calls = append(o.calls, proto.CloneOf(r))
	w.apply(o, r)
	if w.hear != nil {
		if err := w.hear(r); err != nil {
			return nil, err
		}
	}
	return &issuancev1.RecordPollResultResponse{Order: &issuancev1.Order{Id: o.id, IssuerId: o.issuerID, Status: o.status}}, nil
}

func (w *world) judge(ctx context.Context, o *order, r *issuancev1.RecordPollResultRequest) error {
	if err := w.fromPoller(ctx); err != nil {
		return err
	}
	if r.GetPollAttempts() < 1 {
		return w.complain("order %s: attempt %d", o.id, r.GetPollAttempts())
	}
	if ref := r.GetCaReference(); ref != "" && !json.Valid([]byte(ref)) {
		return w.complain("order %s: reference %s", o.id, ref)
	}
	block, _ := pem.Decode([]byte(r.GetCertificatePem()))
	if (r.GetOutcome() == issuancev1.RecordPollResultRequest_ISSUED) != (block != nil) {
		return w.complain("order %s: %s with certificate %q", o.id, r.GetOutcome(), r.GetCertificatePem())
	}
	switch r.GetOutcome() {
	case issuancev1.RecordPollResultRequest_STILL_PENDING:
		return nil
	case issuancev1.RecordPollResultRequest_ISSUED:
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil || !slices.Contains(leaf.DNSNames, o.id+".example.com") {
			return w.complain("order %s: another certificate (%v)", o.id, err)
		}
	case issuancev1.RecordPollResultRequest_REJECTED, issuancev1.RecordPollResultRequest_FAILED:
		if r.GetProblem().GetReason() == "" || r.GetProblem().GetMessage() == "" {
			return w.complain("order %s: %s without a reason", o.id, r.GetOutcome())
		}
	default:
		return w.complain("order %s: outcome %s", o.id, r.GetOutcome())
	}
	if r.GetNextPollTime() != nil {
		return w.complain("order %s: %s and yet polled again", o.id, r.GetOutcome())
	}
	return nil
}

func (w *world) apply(o *order, r *issuancev1.RecordPollResultRequest) {
	if o.status != issuancev1.Order_PENDING {
		return
	}
	switch r.GetOutcome() {
	case issuancev1.RecordPollResultRequest_ISSUED:
		o.status = issuancev1.Order_ISSUED
	case issuancev1.RecordPollResultRequest_REJECTED:
		o.status = issuancev1.Order_REJECTED
	case issuancev1.RecordPollResultRequest_FAILED:
		o.status = issuancev1.Order_FAILED
	default:
		if r.GetCaReference() != "" {
			o.reference = r.GetCaReference()
		}
		return
	}
	o.applied++
}

// site is pollers in their world.
type site struct {
	*world
	t       testing.TB
	db      *testpg.Database
	peers   *testrpc.Server
	logs    *observer.ObservedLogs
	logger  *zap.Logger
	replica *replica
}

// replica is one running process.
type replica struct {
	service *asyncpoller.Service
	server  *testrpc.Server
	db      *pg.DB
	stop    func()
	metrics *metrics.Registry
}

// newWorld makes a site without a poller.
func newWorld(t testing.TB) *site {
	t.Helper()
	zc, logs := observer.New(zap.DebugLevel)
	s := &site{
		t: t, db: testpg.NewDatabase(t, asyncpoller.Schema()), logs: logs, logger: zap.New(zc),
		world: &world{cas: map[string]*ca{}, orders: map[string]*order{}},
	}
	table := rpc.AuthzTable{}
	for _, m := range issuancev1.IssuanceInternalService_ServiceDesc.Methods {
		table["/"+issuancev1.IssuanceInternalService_ServiceDesc.ServiceName+"/"+m.MethodName] = rpc.Allow(rpcctx.RolePeer)
	}
	s.peers = testrpc.Serve(t, testrpc.Config{Table: table, Register: func(r grpc.ServiceRegistrar) {
		issuancev1.RegisterIssuanceInternalServiceServer(r, s.world)
	}})
	s.addCA("iss-a")
	s.addCA("iss-b")
	t.Cleanup(func() {
		s.do(func() {
			require.Empty(t, s.wrong)
			for _, c := range s.cas {
				require.Empty(t, c.twice)
			}
		})
	})
	return s
}

// newSite makes a site with one poller.
func newSite(t testing.TB, change ...func(*asyncpoller.Config)) *site {
	t.Helper()
	s := newWorld(t)
	s.replica = s.start(change...)
	return s
}

func (s *site) addCA(id string) *ca {
	fake, err := issuertest.NewFake(issuertest.FakeConfig{})
	require.NoError(s.t, err)
	c := &ca{Fake: fake, typ: "type-of-" + id, settings: map[string]any{"url": "https://ca.example", "api_key": "key 0"},
		polled: map[string]int{}, clock: s.clock}
	s.cas[id] = c
	return c
}

// start starts a replica.
func (s *site) start(change ...func(*asyncpoller.Config)) *replica {
	s.t.Helper()
	cfg := asyncpoller.Config{PollInterval: often}
	for _, c := range change {
		c(&cfg)
	}
	var types issuer.Types
	s.do(func() {
		for _, c := range s.cas {
			types = append(types, c.issuerType())
		}
	})
	r := &replica{db: s.db.Open(s.t, "asyncpoller"), metrics: metrics.New("asyncpoller")}
	var err error
	r.service, err = asyncpoller.New(cfg, asyncpoller.Deps{
		DB: r.db, Log: s.logger, Metrics: r.metrics, IssuerTypes: types, Now: s.clock,
		Peers: asyncpoller.Peers{Issuance: s.peers.AsPeer(s.t, "asyncpoller")},
	})
	require.NoError(s.t, err)
	r.server = testrpc.Serve(s.t, testrpc.Config{Table: r.service.AuthzTable(), Register: r.service.Register})
	g := run.NewGroup(context.WithoutCancel(s.t.Context()), run.Config{})
	g.Go("service", r.service.Run)
	r.stop = sync.OnceFunc(func() {
		g.Stop(nil)
		require.NoError(s.t, g.Wait())
	})
	s.t.Cleanup(r.stop)
	return r
}

// place has issuance place an order at a CA, which answers that it is pending.
func (s *site) place(id, issuerID string, p issuertest.Plan) *asyncpollerv1.CreatePollRequest {
	s.t.Helper()
	if p.Polls == 0 {
		p.Polls = issuertest.Forever
	}
	c := s.cas[issuerID]
	c.PlanOrder(id, p)
	request := issuertest.NewRequest(s.t, id, issuertest.NewKey(s.t, certcheck.ECDSAP256), issuertest.Names(s.t, id+".example.com"))
	sub, err := c.Submit(s.t.Context(), request)
	require.NoError(s.t, err)
	require.Equal(s.t, issuer.Pending, sub.State)
	ref, err := json.Marshal(sub.Ref)
	require.NoError(s.t, err)
	s.do(func() {
		s.orders[id] = &order{id: id, issuerID: issuerID, reference: string(ref), status: issuancev1.Order_PENDING}
	})
	return &asyncpollerv1.CreatePollRequest{
		OrderId: id, IssuerId: issuerID, CaReference: string(ref),
		DueTime: timestamppb.New(s.clock()), DeadlineTime: timestamppb.New(s.clock().Add(72 * time.Hour)),
	}
}

func (s *site) client() asyncpollerv1.PollInternalServiceClient {
	return asyncpollerv1.NewPollInternalServiceClient(s.replica.server.AsPeer(s.t, "issuance"))
}

// watch places an order and has it watched.
func (s *site) watch(id, issuerID string, p issuertest.Plan) {
	s.t.Helper()
	_, err := s.client().CreatePoll(s.t.Context(), s.place(id, issuerID, p))
	require.NoError(s.t, err)
}

func event(t testing.TB, kind, orderID string, payload proto.Message) *eventv1.Event {
	t.Helper()
	p, err := anypb.New(payload)
	require.NoError(t, err)
	return &eventv1.Event{
		Id: uuid.NewString(), Type: kind, Source: "issuance", ResourceType: "order", ResourceId: orderID, Payload: p, Time: timestamppb.Now(),
	}
}

func (s *site) deliver(events ...*eventv1.Event) []eventv1.EventResult_Outcome {
	s.t.Helper()
	sink := eventv1.NewEventSinkServiceClient(s.replica.server.AsPeer(s.t, "issuance"))
	got, err := sink.Deliver(s.t.Context(), &eventv1.DeliverRequest{Events: events})
	require.NoError(s.t, err)
	var out []eventv1.EventResult_Outcome
	for _, r := range got.GetResults() {
		out = append(out, r.GetOutcome())
	}
	return out
}

func (s *site) poll(id string) *asyncpollerv1.Poll {
	s.t.Helper()
	got, err := s.client().BatchGetPolls(s.t.Context(), &asyncpollerv1.BatchGetPollsRequest{OrderIds: []string{id}})
	require.NoError(s.t, err)
	if len(got.GetPolls()) == 0 {
		return nil
	}
	return got.GetPolls()[0]
}

// order gives a copy of an order.
func (s *site) order(id string) order {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := *s.orders[id]
	o.calls = slices.Clone(o.calls)
	return o
}

func (s *site) eventually(what string, is func() bool) {
	s.t.Helper()
	require.Eventually(s.t, is, patient, often, what)
}

// never looks for a while whether something happens that must not.
func (s *site) never(what string, is func() bool) {
	s.t.Helper()
	require.Never(s.t, is, 300*time.Millisecond, often, what)
}

// metric gives the value of a gauge or counter whose labels, beside the service, have these values; -1: there is none.
func (r *replica) metric(t testing.TB, name string, labels ...string) float64 {
	t.Helper()
	families, err := r.metrics.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			values := map[string]bool{}
			for _, l := range m.GetLabel() {
				values[l.GetValue()] = true
			}
			if !slices.ContainsFunc(labels, func(l string) bool { return !values[l] }) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

// series gives what a replica exports: by metric, its labels and their values.
func (r *replica) series(t testing.TB) map[string]map[string]bool {
	t.Helper()
	families, err := r.metrics.Gather()
	require.NoError(t, err)
	out := map[string]map[string]bool{}
	for _, f := range families {
		labels := map[string]bool{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				labels[l.GetName()], labels[l.GetName()+"="+l.GetValue()] = true, true
			}
		}
		out[f.GetName()] = labels
	}
	return out
}

// heard waits until issuance has been told of an order n times, and gives the last result.
func (s *site) heard(id string, n int) *issuancev1.RecordPollResultRequest {
	s.t.Helper()
	s.eventually(fmt.Sprintf("result %d of %s", n, id), func() bool { return len(s.order(id).calls) >= n })
	return s.order(id).calls[n-1]
}

// waiting waits until an order is not being asked about after n attempts.
func (s *site) waiting(id string, n int32) *asyncpollerv1.Poll {
	s.t.Helper()
	return s.state(id, asyncpollerv1.Poll_WAITING, n)
}

func (s *site) state(id string, want asyncpollerv1.Poll_State, n int32) *asyncpollerv1.Poll {
	s.t.Helper()
	s.eventually(id+" "+want.String(), func() bool { p := s.poll(id); return p.GetState() == want && p.GetAttempts() >= n })
	return s.poll(id)
}

// polls tells how often the CA was asked.
func (s *site) polls(id string) int {
	s.t.Helper()
	n, err := s.cas[s.order(id).issuerID].Polls(id)
	require.NoError(s.t, err)
	return n
}

func (s *site) logged(message string) bool {
	return slices.ContainsFunc(s.logs.All(), func(e observer.LoggedEntry) bool { return strings.Contains(e.Message, message) })
}
