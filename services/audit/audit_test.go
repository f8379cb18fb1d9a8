package audit_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/pkg/testrpc"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/audit"
)

const (
	patient = 15 * time.Second
	often   = 10 * time.Millisecond
)

// bench is audit with its database, served in memory.
type bench struct {
	database *testpg.Database
	service  *audit.Service
	rpc      *testrpc.Server
	admin    *pgxpool.Pool
	metrics  *metrics.Registry
	began    time.Time
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return benchOn(t, testpg.NewDatabase(t, audit.Schema()), "the internal secret of the test", zaptest.NewLogger(t))
}

// benchOn is a replica of audit.
func benchOn(t testing.TB, d *testpg.Database, secret string, log *zap.Logger) *bench {
	t.Helper()
	b := &bench{database: d, admin: d.Admin(t), metrics: metrics.New("audit"), began: time.Date(2027, 3, 4, 5, 6, 7, 0, time.UTC)}
	var err error
	b.service, err = audit.New(audit.Config{InternalSecret: secretbox.NewSecret(secret), ChainVerifyInterval: time.Hour},
		audit.Deps{DB: d.Open(t, "audit"), Log: log, Metrics: b.metrics})
	require.NoError(t, err)
	b.rpc = testrpc.Serve(t, testrpc.Config{Table: b.service.AuthzTable(), Register: b.service.Register})
	return b
}

func (b *bench) auditor(t *testing.T) auditv1.AuditServiceClient {
	t.Helper()
	return auditv1.NewAuditServiceClient(b.rpc.AsRole(t, rpcctx.RoleAuditor))
}

// event is a delivered record about the n-th certificate; several happen within one second.
func (b *bench) event(t testing.TB, n int, change func(*auditv1.Record)) *eventv1.Event {
	t.Helper()
	data, err := structpb.NewStruct(map[string]any{"n": n, "names": []any{"a.example"}})
	require.NoError(t, err)
	r := &auditv1.Record{
		Actor: &typev1.Actor{Type: typev1.Actor_USER, Id: "alice"}, Action: "certificate.created",
		Resource: &auditv1.Resource{Type: "certificate", Id: fmt.Sprintf("cert-%d", n)}, Data: data,
	}
	if change != nil {
		change(r)
	}
	return b.carrying(t, n, r)
}

func (b *bench) carrying(t testing.TB, n int, payload proto.Message) *eventv1.Event {
	t.Helper()
	e := &eventv1.Event{
		Id: uuid.Must(uuid.NewV7()).String(), Type: "audit.record", RequestId: fmt.Sprintf("req-%d", n),
		Time: timestamppb.New(b.began.Add(time.Duration(n/3) * time.Second)),
	}
	if payload != nil {
		var err error
		e.Payload, err = anypb.New(payload)
		require.NoError(t, err)
	}
	return e
}

func (b *bench) deliver(t *testing.T, events ...*eventv1.Event) []eventv1.EventResult_Outcome {
	t.Helper()
	resp, err := eventv1.NewEventSinkServiceClient(b.rpc.AsPeer(t, "inventory")).Deliver(t.Context(), &eventv1.DeliverRequest{Events: events})
	require.NoError(t, err)
	outcomes := make([]eventv1.EventResult_Outcome, 0, len(events))
	for _, r := range resp.GetResults() {
		outcomes = append(outcomes, r.GetOutcome())
	}
	require.Len(t, outcomes, len(events))
	return outcomes
}

// fill records n events.
func (b *bench) fill(t *testing.T, n int) {
	t.Helper()
	events := make([]*eventv1.Event, 0, n)
	for i := range n {
		events = append(events, b.event(t, i, nil))
	}
	for _, outcome := range b.deliver(t, events...) {
		require.Equal(t, eventv1.EventResult_APPLIED, outcome)
	}
}

func (b *bench) list(t *testing.T, r *auditv1.ListEventsRequest) *auditv1.ListEventsResponse {
	t.Helper()
	resp, err := b.auditor(t).ListEvents(t.Context(), r)
	require.NoError(t, err)
	return resp
}

func sequences(events []*auditv1.Event) []int64 {
	list := make([]int64, 0, len(events))
	for _, e := range events {
		list = append(list, e.GetSequence())
	}
	return list
}

func TestWhatAPeerDeliversIsRecordedAsItWas(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	sent := b.event(t, 3, func(r *auditv1.Record) { r.Outcome = auditv1.Event_DENIED })
	require.Equal(t, []eventv1.EventResult_Outcome{eventv1.EventResult_APPLIED}, b.deliver(t, sent))
	got := b.list(t, &auditv1.ListEventsRequest{}).GetEvents()
	require.Len(t, got, 1)
	e := got[0]
	require.Equal(t, "evt-"+sent.GetId(), e.GetId())
	require.EqualValues(t, 1, e.GetSequence())
	require.Equal(t, b.began.Add(time.Second), e.GetTime().AsTime())
	require.Equal(t, "alice", e.GetActor().GetId())
	require.Equal(t, typev1.Actor_USER, e.GetActor().GetType())
	require.Equal(t, "certificate.created", e.GetAction())
	require.Equal(t, "certificate", e.GetResource().GetType())
	require.Equal(t, "cert-3", e.GetResource().GetId())
	require.Equal(t, auditv1.Event_DENIED, e.GetOutcome())
	require.Equal(t, "req-3", e.GetRequestId())
	require.Equal(t, map[string]any{"n": 3.0, "names": []any{"a.example"}}, e.GetData().AsMap())

	one, err := b.auditor(t).GetEvent(t.Context(), &auditv1.GetEventRequest{Id: e.GetId()})
	require.NoError(t, err)
	require.True(t, proto.Equal(e, one.GetEvent()))
	_, err = b.auditor(t).GetEvent(t.Context(), &auditv1.GetEventRequest{Id: "evt-none"})
	require.Equal(t, "EVENT_NOT_FOUND", errs.ReasonOf(err))
}

func TestARepeatedDeliveryIsRecordedOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	first, second := b.event(t, 1, nil), b.event(t, 2, nil)
	applied := eventv1.EventResult_APPLIED
	require.Equal(t, []eventv1.EventResult_Outcome{applied}, b.deliver(t, first))
	require.Equal(t, []eventv1.EventResult_Outcome{applied, applied, applied}, b.deliver(t, first, second, second))
	require.Equal(t, []int64{2, 1}, sequences(b.list(t, &auditv1.ListEventsRequest{}).GetEvents()))
}

func TestWhatIsNoAuditRecordIsRejectedAndTheRestRecorded(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	timeless := b.event(t, 7, nil)
	timeless.Time = nil
	events := []*eventv1.Event{
		b.event(t, 1, nil),
		b.carrying(t, 2, wrapperspb.String("not an audit record")),
		b.carrying(t, 3, nil),
		b.event(t, 4, func(r *auditv1.Record) { r.Action = "" }),
		// Postgres has no text with a NUL: the event must not hold up all that come after it.
		b.event(t, 5, func(r *auditv1.Record) { r.Resource.Id = "a\x00b" }),
		b.event(t, 6, func(r *auditv1.Record) { r.Outcome = 99 }),
		b.event(t, 9, func(r *auditv1.Record) { r.Action = "audit.head_mismatch" }),
		timeless,
		b.event(t, 8, nil),
	}
	rejected, applied := eventv1.EventResult_REJECTED, eventv1.EventResult_APPLIED
	require.Equal(t, []eventv1.EventResult_Outcome{applied, rejected, rejected, rejected, rejected, rejected, rejected, rejected, applied}, b.deliver(t, events...))
	got := b.list(t, &auditv1.ListEventsRequest{OrderBy: "sequence asc"}).GetEvents()
	require.Equal(t, []int64{1, 2}, sequences(got))
	require.Equal(t, "cert-8", got[1].GetResource().GetId())
}

func TestOnlyAuditorsAndAdminsReadAndOnlyPeersDeliver(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(t, 1)
	type call func(context.Context, *grpc.ClientConn) error
	reads := map[string]call{
		"ListEvents": func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := auditv1.NewAuditServiceClient(c).ListEvents(ctx, &auditv1.ListEventsRequest{})
			return err
		},
		"GetEvent": func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := auditv1.NewAuditServiceClient(c).GetEvent(ctx, &auditv1.GetEventRequest{Id: "evt-none"})
			return err
		},
		"GetCheckpoint": func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := auditv1.NewAuditServiceClient(c).GetCheckpoint(ctx, &auditv1.GetCheckpointRequest{})
			return err
		},
		"VerifyEvents": func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := auditv1.NewAuditServiceClient(c).VerifyEvents(ctx, &auditv1.VerifyEventsRequest{})
			return err
		},
	}
	writes := map[string]call{
		"Deliver": func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := eventv1.NewEventSinkServiceClient(c).Deliver(ctx, &eventv1.DeliverRequest{})
			return err
		},
		"GetRevision": func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := eventv1.NewRevisionServiceClient(c).GetRevision(ctx, &eventv1.GetRevisionRequest{Collection: "audit"})
			return err
		},
	}
	check := func(calls map[string]call, allowed ...rpcctx.Role) {
		for name, call := range calls {
			for _, role := range rpcctx.Roles() {
				kind := errs.KindOf(call(t.Context(), b.rpc.AsRole(t, role)))
				if slices.Contains(allowed, role) {
					require.Contains(t, []errs.Kind{errs.None, errs.NotFound}, kind, "%s as %s", name, role)
				} else {
					require.Equal(t, errs.PermissionDenied, kind, "%s as %s", name, role)
				}
			}
			require.Equal(t, errs.Unauthenticated, errs.KindOf(call(t.Context(), b.rpc.AsStranger(t))), name)
		}
	}
	check(reads, rpcctx.RoleAdmin, rpcctx.RoleAuditor)
	check(writes, rpcctx.RolePeer)
}

func TestVerificationNamesTheFirstInvalidEvent(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(t, 9)
	client := b.auditor(t)
	r, err := client.VerifyEvents(t.Context(), &auditv1.VerifyEventsRequest{})
	require.NoError(t, err)
	require.True(t, r.GetValid())
	require.EqualValues(t, 9, r.GetEventsChecked())
	require.Nil(t, r.GetFirstInvalidEvent())
	require.EqualValues(t, 9, r.GetHead().GetSequence())

	var id string
	require.NoError(t, b.admin.QueryRow(t.Context(), `UPDATE audit.events SET actor_id = 'mallory' WHERE sequence = 6 RETURNING id`).Scan(&id))
	_, err = b.admin.Exec(t.Context(), `UPDATE audit.events SET action = 'x' WHERE sequence = 8`)
	require.NoError(t, err)
	r, err = client.VerifyEvents(t.Context(), &auditv1.VerifyEventsRequest{})
	require.NoError(t, err)
	require.False(t, r.GetValid())
	require.EqualValues(t, 6, r.GetFirstInvalidEvent().GetSequence())
	require.Equal(t, id, r.GetFirstInvalidEvent().GetId())
	require.Equal(t, "HASH_MISMATCH", r.GetFirstInvalidEvent().GetReason())
	require.EqualValues(t, 5, r.GetEventsChecked())
	require.EqualValues(t, 5, r.GetHead().GetSequence(), "what is said to fit is what fits")

	r, err = client.VerifyEvents(t.Context(), &auditv1.VerifyEventsRequest{FirstSequence: 7})
	require.NoError(t, err)
	require.EqualValues(t, 8, r.GetFirstInvalidEvent().GetSequence())
	r, err = client.VerifyEvents(t.Context(), &auditv1.VerifyEventsRequest{FirstSequence: 2, LastSequence: 5})
	require.NoError(t, err)
	require.True(t, r.GetValid())
	require.EqualValues(t, 4, r.GetEventsChecked())
}

func TestPagesShowEachEventOnceWhileOthersComeIn(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"", "sequence asc", "time desc", "time asc"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.fill(t, 11)
			want := sequences(b.list(t, &auditv1.ListEventsRequest{OrderBy: order, PageSize: 100}).GetEvents())
			require.Len(t, want, 11)
			var got []int64
			r := &auditv1.ListEventsRequest{OrderBy: order, PageSize: 3}
			for {
				p := b.list(t, r)
				require.LessOrEqual(t, len(p.GetEvents()), 3)
				got = append(got, sequences(p.GetEvents())...)
				if p.GetNextPageToken() == "" {
					break
				}
				r.PageToken = p.GetNextPageToken()
				if len(got) < 9 { // later in time and sequence than all that is there
					b.deliver(t, b.event(t, 100+len(got), nil))
				}
			}
			require.Equal(t, want, got[:len(want)])
			require.Len(t, slices.Compact(slices.Sorted(slices.Values(got))), len(got), "an event is shown twice")
		})
	}
}

func TestFiltersSelectAndTotalsCount(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(t, 9)
	b.deliver(t, b.event(t, 40, func(r *auditv1.Record) {
		r.Action, r.Outcome, r.Actor = "certificates_x.deleted", auditv1.Event_FAILURE, &typev1.Actor{Type: typev1.Actor_AGENT, Id: "agt-1"}
	}))
	for name, c := range map[string]struct {
		r    *auditv1.ListEventsRequest
		want []int64
	}{
		"actor":            {&auditv1.ListEventsRequest{ActorId: "agt-1"}, []int64{10}},
		"actor type":       {&auditv1.ListEventsRequest{ActorType: typev1.Actor_AGENT}, []int64{10}},
		"action":           {&auditv1.ListEventsRequest{Action: "certificates_x.deleted"}, []int64{10}},
		"prefix":           {&auditv1.ListEventsRequest{Action: "certificate.*", ResourceId: "cert-2"}, []int64{3}},
		"no wildcard":      {&auditv1.ListEventsRequest{Action: "certificate%"}, nil},
		"prefix, escaped":  {&auditv1.ListEventsRequest{Action: "certificates%.*"}, nil},
		"resource":         {&auditv1.ListEventsRequest{ResourceType: "certificate", ResourceId: "cert-4"}, []int64{5}},
		"outcome":          {&auditv1.ListEventsRequest{Outcome: auditv1.Event_FAILURE}, []int64{10}},
		"request":          {&auditv1.ListEventsRequest{RequestId: "req-7"}, []int64{8}},
		"time, half open":  {&auditv1.ListEventsRequest{After: timestamppb.New(b.began.Add(time.Second)), Before: timestamppb.New(b.began.Add(2 * time.Second))}, []int64{6, 5, 4}},
		"nothing like it":  {&auditv1.ListEventsRequest{ActorId: "nobody"}, nil},
		"two that exclude": {&auditv1.ListEventsRequest{ActorId: "alice", Outcome: auditv1.Event_FAILURE}, nil},
	} {
		c.r.IncludeTotal = true
		got := b.list(t, c.r)
		require.ElementsMatch(t, c.want, sequences(got.GetEvents()), name)
		require.EqualValues(t, len(c.want), got.GetTotalSize(), name)
	}
	p := b.list(t, &auditv1.ListEventsRequest{PageSize: 2, IncludeTotal: true})
	require.Len(t, p.GetEvents(), 2)
	require.EqualValues(t, 10, p.GetTotalSize(), "the total is that of the list, not of the page")
	require.Nil(t, b.list(t, &auditv1.ListEventsRequest{}).TotalSize, "nobody pays for a count that nobody asked for")
}

func TestAMalformedRequestIsInvalidAndNamesItsField(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(t, 4)
	token := b.list(t, &auditv1.ListEventsRequest{PageSize: 2}).GetNextPageToken()
	require.NotEmpty(t, token)
	list := func(r *auditv1.ListEventsRequest) func(auditv1.AuditServiceClient) error {
		return func(c auditv1.AuditServiceClient) error {
			_, err := c.ListEvents(t.Context(), r)
			return err
		}
	}
	verify := func(first, last int64) func(auditv1.AuditServiceClient) error {
		return func(c auditv1.AuditServiceClient) error {
			_, err := c.VerifyEvents(t.Context(), &auditv1.VerifyEventsRequest{FirstSequence: first, LastSequence: last})
			return err
		}
	}
	for name, c := range map[string]struct {
		call  func(auditv1.AuditServiceClient) error
		field string
	}{
		"negative size":           {list(&auditv1.ListEventsRequest{PageSize: -1}), "page_size"},
		"no token":                {list(&auditv1.ListEventsRequest{PageToken: "x"}), "page_token"},
		"a changed token":         {list(&auditv1.ListEventsRequest{PageToken: token[1:]}), "page_token"},
		"another list's token":    {list(&auditv1.ListEventsRequest{PageToken: token, ActorId: "alice"}), "page_token"},
		"another order's token":   {list(&auditv1.ListEventsRequest{PageToken: token, OrderBy: "time"}), "page_token"},
		"unknown order":           {list(&auditv1.ListEventsRequest{OrderBy: "actor_id"}), "order_by"},
		"SQL as order":            {list(&auditv1.ListEventsRequest{OrderBy: "sequence desc; DROP TABLE events"}), "order_by"},
		"unknown direction":       {list(&auditv1.ListEventsRequest{OrderBy: "time down"}), "order_by"},
		"last before first":       {verify(3, 2), "last_sequence"},
		"beyond the end":          {verify(6, 0), "first_sequence"},
		"negative first sequence": {verify(-1, 0), "first_sequence"},
	} {
		err := c.call(b.auditor(t))
		require.Equal(t, 400, errs.KindOf(err).HTTPStatus(), name)
		require.Equal(t, c.field, errs.From(err).Violations()[0].Field, name)
	}
}

func TestTheListsRevisionRisesWithEachNewEvent(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	revisions := eventv1.NewRevisionServiceClient(b.rpc.AsPeer(t, rpc.Gateway))
	ctx := rpcctx.WithCaller(t.Context(), rpcctx.ServiceCaller(rpc.Gateway)) // the gateway asks for itself
	get := func() int64 {
		r, err := revisions.GetRevision(ctx, &eventv1.GetRevisionRequest{Collection: "audit"})
		require.NoError(t, err)
		return r.GetRevision()
	}
	require.Zero(t, get())
	e := b.event(t, 1, nil)
	b.deliver(t, e)
	require.EqualValues(t, 1, get())
	b.deliver(t, e)
	require.EqualValues(t, 1, get(), "a repeat changes nothing")
	_, err := revisions.GetRevision(ctx, &eventv1.GetRevisionRequest{Collection: "jobs"})
	require.Equal(t, errs.Invalid, errs.KindOf(err))
}

// runLoops works the loops until each has run once.
func (b *bench) runLoops(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g := run.NewGroup(ctx, run.Config{ShutdownTimeout: patient})
	g.Go("loops", b.service.Run)
	require.Eventually(t, func() bool {
		for _, l := range b.service.Loops() {
			if l.Runs == 0 {
				return false
			}
		}
		return true
	}, patient, often, "a loop did not run")
	cancel()
	require.NoError(t, g.Wait())
}

func TestEveryLoopRunsAfterTheStartAndAnchorsTheChain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.auditor(t).GetCheckpoint(t.Context(), &auditv1.GetCheckpointRequest{})
	require.Equal(t, "CHECKPOINT_NOT_FOUND", errs.ReasonOf(err))
	b.fill(t, 5)
	b.runLoops(t)
	loops := b.service.Loops()
	require.Len(t, loops, 1)
	require.Equal(t, "chain verification", loops[0].Name)
	require.Equal(t, time.Hour, loops[0].Interval)
	require.Empty(t, loops[0].LastError)
	require.Equal(t, 5, loops[0].LastRows)
	c, err := b.auditor(t).GetCheckpoint(t.Context(), &auditv1.GetCheckpointRequest{})
	require.NoError(t, err)
	require.EqualValues(t, 5, c.GetCheckpoint().GetSequence())
	require.Equal(t, b.list(t, &auditv1.ListEventsRequest{PageSize: 1}).GetEvents()[0].GetHash(), c.GetCheckpoint().GetHash())
	require.False(t, b.broken(t))
}

func TestABrokenChainRaisesItsMetricAndIsNotAnchored(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(t, 5)
	_, err := b.admin.Exec(t.Context(), `UPDATE audit.events SET actor_id = 'mallory' WHERE sequence = 2`)
	require.NoError(t, err)
	b.runLoops(t)
	require.True(t, b.broken(t))
	require.Contains(t, b.service.Loops()[0].Note, "event 2")
	_, err = b.auditor(t).GetCheckpoint(t.Context(), &auditv1.GetCheckpointRequest{})
	require.Equal(t, "CHECKPOINT_NOT_FOUND", errs.ReasonOf(err))
}

func TestTheLoopFindsAChangeBeforeTheLastCheckpoint(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(t, 5)
	b.runLoops(t)
	restart := func() *bench {
		b := benchOn(t, b.database, "the internal secret of the test", zaptest.NewLogger(t))
		b.runLoops(t)
		return b
	}
	b.fill(t, 2)
	again := restart()
	require.False(t, again.broken(t))
	require.Equal(t, 7, again.service.Loops()[0].LastRows, "all of it")
	_, err := b.admin.Exec(t.Context(), `UPDATE audit.events SET actor_id = 'mallory' WHERE sequence = 2`)
	require.NoError(t, err)
	again = restart()
	require.True(t, again.broken(t))
	require.Contains(t, again.service.Loops()[0].Note, "event 2")
}

func TestTheLoopVerifiesAlsoWhenItCannotSeal(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(t, 5)
	for _, sql := range []string{`UPDATE audit.events SET actor_id = 'mallory' WHERE sequence = 2`, `UPDATE audit.head SET key_ids = '{}', macs = '{}'`,
		`REVOKE UPDATE ON audit.head FROM ` + b.role(t)} {
		_, err := b.admin.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	b.runLoops(t)
	require.Contains(t, b.service.Loops()[0].LastError, "seal the end of the chain")
	require.True(t, b.broken(t))
}

// role is who audit is in the database.
func (b *bench) role(t *testing.T) (name string) {
	t.Helper()
	require.NoError(t, b.database.Open(t, "audit").Pool.QueryRow(t.Context(), `SELECT current_user`).Scan(&name))
	return name
}

// broken tells what the metric says about the chain.
func (b *bench) broken(t *testing.T) bool {
	t.Helper()
	families, err := b.metrics.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "certctl_audit_chain_broken" {
			return f.GetMetric()[0].GetGauge().GetValue() > 0
		}
	}
	require.Fail(t, "there is no metric for a broken chain")
	return false
}

func TestTheMetricsOfTheServiceAreSound(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	problems, err := testutil.GatherAndLint(b.metrics, "certctl_audit_chain_broken")
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestTheLoopSealsAnewAndSaysWhenASecretMayGo(t *testing.T) {
	t.Parallel()
	const before, after = "the internal secret of before", "the internal secret of after"
	core, logs := observer.New(zap.InfoLevel)
	log := zap.New(core)
	first := benchOn(t, testpg.NewDatabase(t, audit.Schema()), before, log)
	first.fill(t, 3)
	first.runLoops(t)
	const says = "every anchor of the audit chain is sealed with each secret of CERTCTL_INTERNAL_SECRET; any of them is enough for audit when all its replicas say so"
	require.Zero(t, logs.FilterMessage(says).Len(), "there is one secret only")

	early := benchOn(t, first.database, after, log)
	early.runLoops(t)
	require.True(t, early.broken(t), "a chain that cannot be verified is not called whole")
	require.Equal(t, 1, logs.FilterMessage("audit chain cannot be verified").Len())
	r, err := early.auditor(t).VerifyEvents(t.Context(), &auditv1.VerifyEventsRequest{})
	require.NoError(t, err)
	require.False(t, r.GetValid())
	require.Equal(t, "SECRET_UNKNOWN", r.GetFirstInvalidEvent().GetReason())
	require.Contains(t, r.GetFirstInvalidEvent().GetMessage(), "CERTCTL_INTERNAL_SECRET")

	benchOn(t, first.database, before+","+after, log).runLoops(t)
	require.Equal(t, 1, logs.FilterMessage(says).Len())
	last := benchOn(t, first.database, after, log)
	last.runLoops(t)
	require.False(t, last.broken(t))
	require.Zero(t, logs.FilterMessage("audit chain is broken").Len())
}

func TestAShortInternalSecretIsRefused(t *testing.T) {
	t.Parallel()
	_, err := audit.New(audit.Config{InternalSecret: secretbox.NewSecret("the internal secret of the test,short"), ChainVerifyInterval: time.Hour},
		audit.Deps{DB: testpg.New(t, audit.Schema()), Log: zap.NewNop()})
	require.ErrorContains(t, err, "item 2 of 2 has 5 bytes")
}
