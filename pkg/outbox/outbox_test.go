package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/testpg"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const eventually, often = 15 * time.Second, 5 * time.Millisecond

const source, destination = "inventory", "audit"

// seen is the receiver's state: what was applied, in its order.
const seen = `CREATE TABLE seen (
    place       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id    uuid NOT NULL,
    resource_id text NOT NULL,
    value       bigint NOT NULL,
    request_id  text NOT NULL
);`

func schema(name string) pg.Schema {
	return pg.Schema{Name: name, FS: fstest.MapFS{
		"migrations/00001_outbox.sql": {Data: []byte("-- +goose Up\n" + outbox.Schema + "\n" + seen)},
	}}
}

type world struct {
	data           *testpg.Database
	sender, target *pg.DB
}

func newWorld(t *testing.T) *world {
	t.Helper()
	d := testpg.NewDatabase(t, schema(source), schema(destination))
	return &world{data: d, sender: d.Open(t, source), target: d.Open(t, destination)}
}

// event is a fact about a resource; its value is its number in that resource's history.
func event(resource string, value int64) outbox.Event {
	return outbox.Event{Type: "thing.changed", ResourceType: "thing", ResourceID: resource, Destination: destination, Payload: wrapperspb.Int64(value)}
}

func (w *world) add(t *testing.T, events ...outbox.Event) {
	t.Helper()
	require.NoError(t, w.sender.Tx(t.Context(), func(ctx context.Context, tx pgx.Tx) error { return outbox.Add(ctx, tx, events...) }))
}

func valueOf(e *eventv1.Event) (int64, error) {
	var v wrapperspb.Int64Value
	err := e.GetPayload().UnmarshalTo(&v)
	return v.GetValue(), err
}

func record(ctx context.Context, tx pgx.Tx, e *eventv1.Event) error {
	v, err := valueOf(e)
	if err != nil {
		return outbox.Reject(err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO seen (event_id, resource_id, value, request_id) VALUES ($1, $2, $3, $4)`, e.GetId(), e.GetResourceId(), v, rpcctx.RequestID(ctx))
	return err
}

// values gives what was applied for a resource, in order.
func (w *world) values(t *testing.T, resource string) []int64 {
	t.Helper()
	rows, err := w.target.Pool.Query(t.Context(), `SELECT value FROM seen WHERE resource_id = $1 ORDER BY place`, resource)
	require.NoError(t, err)
	v, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	require.NoError(t, err)
	return v
}

func (w *world) left(t *testing.T, where string) int {
	t.Helper()
	var n int
	require.NoError(t, w.sender.Pool.QueryRow(t.Context(), `SELECT count(*) FROM outbox WHERE `+where).Scan(&n))
	return n
}

// client is a receiver in the same process; before and after stand for what may happen on the way.
type client struct {
	sink          *outbox.Sink
	before, after func(*eventv1.DeliverRequest) error
}

func (c *client) Deliver(ctx context.Context, req *eventv1.DeliverRequest, _ ...grpc.CallOption) (*eventv1.DeliverResponse, error) {
	if c.before != nil {
		if err := c.before(req); err != nil {
			return nil, err
		}
	}
	res, err := c.sink.Deliver(ctx, req)
	if err == nil && c.after != nil {
		err = c.after(req)
	}
	return res, err
}

func (w *world) client(t *testing.T, apply outbox.Apply) *client {
	t.Helper()
	s, err := outbox.NewSink(outbox.SinkDeps{DB: w.target, Apply: apply})
	require.NoError(t, err)
	return &client{sink: s}
}

type relay struct {
	*outbox.Relay
	reg *prometheus.Registry
}

func (w *world) relay(t *testing.T, cfg outbox.RelayConfig, to eventv1.EventSinkServiceClient) relay {
	t.Helper()
	cfg.Source = source
	reg := prometheus.NewRegistry()
	r, err := outbox.NewRelay(cfg, outbox.RelayDeps{DB: w.sender, Sinks: map[string]eventv1.EventSinkServiceClient{destination: to}, Registry: reg})
	require.NoError(t, err)
	return relay{Relay: r, reg: reg}
}

// start runs the relay until the test, or the function returned, ends it.
func (r relay) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	return stop
}

func fast() outbox.RelayConfig {
	return outbox.RelayConfig{Interval: 10 * time.Millisecond, Backoff: lease.Backoff{Base: time.Millisecond, Cap: 5 * time.Millisecond}}
}

func count(from, to int64) []int64 {
	var out []int64
	for i := from; i <= to; i++ {
		out = append(out, i)
	}
	return out
}

func TestAnEventArrivesWithAllItsFieldsAndLeavesTheOutbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var got *eventv1.Event
	stop := w.relay(t, fast(), w.client(t, func(_ context.Context, _ pgx.Tx, e *eventv1.Event) error {
		got = e
		return nil
	})).start(t)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	e := event("thing-1", 7)
	e.Time = at
	ctx := rpcctx.WithRequestID(t.Context(), "req-12345678")
	require.NoError(t, w.sender.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error { return outbox.Add(ctx, tx, e) }))
	require.Eventually(t, func() bool { return w.left(t, "TRUE") == 0 }, eventually, often)
	stop()
	require.Equal(t, "thing.changed", got.GetType())
	require.Equal(t, source, got.GetSource())
	require.Equal(t, "thing", got.GetResourceType())
	require.Equal(t, "thing-1", got.GetResourceId())
	require.Equal(t, "req-12345678", got.GetRequestId())
	require.Equal(t, at, got.GetTime().AsTime())
	require.Equal(t, uuid.Version(7), uuid.MustParse(got.GetId()).Version())
	v, err := valueOf(got)
	require.NoError(t, err)
	require.EqualValues(t, 7, v)
}

func TestAnEventOfATransactionThatIsRolledBackIsNeverSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.relay(t, fast(), w.client(t, record)).start(t)
	failed := errors.New("changed my mind")
	err := w.sender.Tx(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(outbox.Add(ctx, tx, event("a", 1)), failed)
	})
	require.ErrorIs(t, err, failed)
	w.add(t, event("a", 2))
	require.Eventually(t, func() bool { return len(w.values(t, "a")) > 0 }, eventually, often)
	require.Equal(t, []int64{2}, w.values(t, "a"))
}

func TestAnEventThatLacksSomethingIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, bad := range []outbox.Event{{}, {Type: "x", ResourceType: "y", ResourceID: "z"}, {ID: "no-uuid", Type: "x", ResourceType: "y", ResourceID: "z", Destination: "audit"}} {
		require.Error(t, w.sender.Tx(t.Context(), func(ctx context.Context, tx pgx.Tx) error { return outbox.Add(ctx, tx, bad) }))
	}
	w.add(t)
	require.Zero(t, w.left(t, "TRUE"))
}

func TestTheOrderOfEachResourceIsKeptThroughFailuresAndTwoRelays(t *testing.T) {
	t.Parallel()
	const resources, each = 8, 40
	w := newWorld(t)
	var mu sync.Mutex
	calls := 0
	c := w.client(t, func(ctx context.Context, tx pgx.Tx, e *eventv1.Event) error {
		mu.Lock()
		calls++
		broken := calls%13 == 0
		mu.Unlock()
		if broken {
			return errors.New("come again")
		}
		return record(ctx, tx, e)
	})
	cfg := fast()
	cfg.Batch = 17
	for range 2 {
		w.relay(t, cfg, c).start(t)
	}
	for value := int64(1); value <= each; value++ {
		var events []outbox.Event
		for r := range resources {
			events = append(events, event(fmt.Sprint(r), value))
		}
		w.add(t, events...)
	}
	require.Eventually(t, func() bool { return w.left(t, "TRUE") == 0 }, eventually, 20*time.Millisecond)
	for r := range resources {
		require.Equal(t, count(1, each), w.values(t, fmt.Sprint(r)), "resource %d", r)
	}
}

func TestARelayThatDiesBetweenDeliveryAndDeletionHasItAppliedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client(t, record)
	var mu sync.Mutex
	deliveries := map[string]int{}
	c.after = func(req *eventv1.DeliverRequest) error {
		mu.Lock()
		defer mu.Unlock()
		var lost error
		for _, e := range req.GetEvents() {
			if deliveries[e.GetId()]++; deliveries[e.GetId()] == 1 {
				lost = status.Error(codes.Unavailable, "the answer is lost")
			}
		}
		return lost
	}
	w.add(t, event("a", 1), event("a", 2))
	w.relay(t, fast(), c).start(t)
	require.Eventually(t, func() bool { return w.left(t, "TRUE") == 0 }, eventually, often)
	require.Equal(t, []int64{1, 2}, w.values(t, "a"))
	mu.Lock()
	defer mu.Unlock()
	for id, n := range deliveries {
		require.Equal(t, 2, n, id)
	}
}

func TestAPatientDestinationGetsItsFirstEventAtOnceAndTheNextOnesTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sizes := make(chan int, 100)
	c := w.client(t, record)
	c.after = func(req *eventv1.DeliverRequest) error {
		sizes <- len(req.GetEvents())
		return nil
	}
	cfg := outbox.RelayConfig{Interval: time.Hour, Gather: 300 * time.Millisecond, Patient: []string{destination}}
	r := w.relay(t, cfg, c)
	began := time.Now()
	w.add(t, event("a", 1))
	r.start(t)
	require.Equal(t, 1, <-sizes)
	for v := range int64(5) {
		w.add(t, event("a", v+2))
		r.Kick()
	}
	require.Equal(t, 5, <-sizes)
	require.GreaterOrEqual(t, time.Since(began), 3*time.Second, "ten times as long as the others'")
	require.Equal(t, count(1, 6), w.values(t, "a"))
}

func TestAPoisonEventIsKeptAsDeadAndBlocksNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.relay(t, fast(), w.client(t, func(ctx context.Context, tx pgx.Tx, e *eventv1.Event) error {
		if v, _ := valueOf(e); v == 2 {
			return outbox.Reject(errors.New("cannot be read\x00"))
		}
		return record(ctx, tx, e)
	}))
	w.add(t, event("a", 1), event("a", 2), event("a", 3), event("b", 1))
	stop := r.start(t)
	require.Eventually(t, func() bool { return w.left(t, "NOT dead") == 0 }, eventually, often)
	require.Equal(t, []int64{1, 3}, w.values(t, "a"))
	require.Equal(t, []int64{1}, w.values(t, "b"))
	require.Equal(t, 1, w.left(t, "dead AND last_error LIKE '%cannot be read%' AND attempts = 1"))
	require.Eventually(t, func() bool { return r.gauge(t, "certctl_outbox_dead_events") == 1 }, eventually, often)
	require.Zero(t, r.gauge(t, "certctl_outbox_backlog_events"))
	stop()
}

func (r relay) gauge(t *testing.T, name string) float64 {
	t.Helper()
	families, err := r.reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return -1
}

func TestAnEventThatMakesTheReceiverRefuseTheWholeRequestIsFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client(t, record)
	c.before = func(req *eventv1.DeliverRequest) error {
		for _, e := range req.GetEvents() {
			if v, _ := valueOf(e); v == 5 {
				return status.Error(codes.InvalidArgument, "events: validation failed")
			}
		}
		return nil
	}
	for v := range int64(9) {
		w.add(t, event("a", v+1))
	}
	w.relay(t, fast(), c).start(t)
	require.Eventually(t, func() bool { return w.left(t, "NOT dead") == 0 }, eventually, often)
	require.Equal(t, []int64{1, 2, 3, 4, 6, 7, 8, 9}, w.values(t, "a"))
	require.Equal(t, 1, w.left(t, "dead"))
}

func TestARetriedEventHoldsBackItsResourceAndNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var mu sync.Mutex
	closed := true
	c := w.client(t, func(ctx context.Context, tx pgx.Tx, e *eventv1.Event) error {
		mu.Lock()
		defer mu.Unlock()
		if closed && e.GetResourceId() == "a" {
			panic("not ready")
		}
		return record(ctx, tx, e)
	})
	w.add(t, event("a", 1), event("b", 1))
	w.relay(t, fast(), c).start(t)
	require.Eventually(t, func() bool { return len(w.values(t, "b")) == 1 && w.left(t, "attempts > 1") == 1 }, eventually, often)
	w.add(t, event("a", 2), event("b", 2))
	require.Eventually(t, func() bool { return len(w.values(t, "b")) == 2 }, eventually, often)
	require.Empty(t, w.values(t, "a"))
	mu.Lock()
	closed = false
	mu.Unlock()
	require.Eventually(t, func() bool { return w.left(t, "TRUE") == 0 }, eventually, often)
	require.Equal(t, []int64{1, 2}, w.values(t, "a"))
}

func TestAReceiverThatIsAwayCostsNoAttemptAndLosesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client(t, record)
	var mu sync.Mutex
	calls := 0
	c.before = func(*eventv1.DeliverRequest) error {
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls <= 3 {
			return status.Error(codes.Unavailable, "away")
		}
		return nil
	}
	w.add(t, event("a", 1), event("a", 2))
	w.relay(t, fast(), c).start(t)
	require.Eventually(t, func() bool { return w.left(t, "TRUE") == 0 }, eventually, often)
	require.Equal(t, []int64{1, 2}, w.values(t, "a"))
	require.Zero(t, w.left(t, "attempts > 0"))
}

func TestAReceiverThatTakesTooLongForManyEventsGetsFewerAtATime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client(t, record)
	var most atomic.Int64
	c.before = func(req *eventv1.DeliverRequest) error {
		if n := int64(len(req.GetEvents())); n > 3 {
			return status.Error(codes.DeadlineExceeded, "too slow for so many")
		} else if n > most.Load() {
			most.Store(n)
		}
		return nil
	}
	var events []outbox.Event
	for v := range int64(100) {
		events = append(events, event("a", v+1))
	}
	w.add(t, events...)
	w.relay(t, fast(), c).start(t)
	require.Eventually(t, func() bool { return w.left(t, "TRUE") == 0 }, eventually, often)
	require.Equal(t, count(1, 100), w.values(t, "a"))
	require.Greater(t, most.Load(), int64(1), "not one by one for ever")
}

func TestOneRelayAtATimeServesADestinationAndAnotherTakesOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	served := make([]int, 2)
	var mu sync.Mutex
	var stops []func()
	for i := range served {
		c := w.client(t, record)
		c.before = func(req *eventv1.DeliverRequest) error {
			mu.Lock()
			defer mu.Unlock()
			served[i] += len(req.GetEvents())
			return nil
		}
		stops = append(stops, w.relay(t, fast(), c).start(t))
	}
	counts := func() [2]int {
		mu.Lock()
		defer mu.Unlock()
		return [2]int(served)
	}
	for v := range int64(20) {
		w.add(t, event("a", v))
		require.Eventually(t, func() bool { return w.left(t, "TRUE") == 0 }, eventually, often)
	}
	got := counts()
	require.Zero(t, min(got[0], got[1]), "both relays were at work")
	holder := 0
	if got[1] > 0 {
		holder = 1
	}
	stops[holder]()
	w.add(t, event("a", 20))
	require.Eventually(t, func() bool { return w.left(t, "TRUE") == 0 }, eventually, often)
	require.Equal(t, 1, counts()[1-holder])
}

func TestTheLeaseOfADeadRelayRunsOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	begun := time.Now()
	_, err := w.sender.Pool.Exec(t.Context(), `INSERT INTO outbox_leases VALUES ('audit', gen_random_uuid(), now() + interval '500 milliseconds')`)
	require.NoError(t, err)
	w.add(t, event("a", 1))
	w.relay(t, fast(), w.client(t, record)).start(t)
	require.Eventually(t, func() bool { return len(w.values(t, "a")) == 1 }, eventually, often)
	require.GreaterOrEqual(t, time.Since(begun), 500*time.Millisecond)
}

func TestACommitWakesTheRelayThroughTheDatabase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.relay(t, outbox.RelayConfig{Interval: time.Hour}, w.client(t, record))
	r.start(t)
	listening := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- w.sender.Listen(ctx, []string{outbox.Channel(source)}, func(n pg.Notification) {
			if n.Resync {
				close(listening)
			}
			r.KickFor(n.Payload)
		})
	}()
	<-listening
	for v := range int64(5) {
		w.add(t, event("a", v))
		require.Eventually(t, func() bool { return len(w.values(t, "a")) == int(v)+1 }, eventually, time.Millisecond)
	}
	cancel()
	require.NoError(t, <-ended)
}

// TestWhatADeadReplicaHasLeftIsTakenUpThoughNothingElseHappens: who was told of an event that another replica has under way looks again after
// a lease, however seldom it looks when there is nothing.
func TestWhatADeadReplicaHasLeftIsTakenUpThoughNothingElseHappens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.relay(t, outbox.RelayConfig{Interval: time.Hour, LeaseFor: 300 * time.Millisecond}, w.client(t, record))
	_, err := w.sender.Pool.Exec(t.Context(), `INSERT INTO outbox_leases VALUES ($1, gen_random_uuid(), now() + interval '400 milliseconds')`, destination)
	require.NoError(t, err)
	w.add(t, event("a", 1))
	r.start(t)
	require.Eventually(t, func() bool { return len(w.values(t, "a")) == 1 }, eventually, often)
}

func TestARestCostsOneStatementForEachInterval(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := testpg.NewSlow("", 0)
	w.sender = w.data.OpenTraced(t, source, all)
	const interval, looks = 100 * time.Millisecond, 8
	began := time.Now()
	w.relay(t, outbox.RelayConfig{Interval: interval}, w.client(t, record)).start(t)
	require.Eventually(t, func() bool { return all.Seen() >= 2+looks }, eventually, often)
	n := all.Seen() // before the time: what comes in between counts for nothing
	rested := time.Duration(n-2) * interval
	require.GreaterOrEqual(t, time.Since(began), rested-rested/10, "%d statements, of which two are of the start: a count and a look", n)
}

func TestAKickThatFindsNothingCostsOneStatement(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := testpg.NewSlow("", 0)
	w.sender = w.data.OpenTraced(t, source, all)
	r := w.relay(t, outbox.RelayConfig{Interval: time.Hour, Gather: time.Millisecond}, w.client(t, record))
	r.start(t)
	for n := 2; n <= 7; n++ {
		require.Eventually(t, func() bool { return all.Seen() >= n }, eventually, often)
		require.Equal(t, n, all.Seen())
		r.Kick()
	}
}

func TestADeliveryWithTheSameEventTwiceAppliesItOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client(t, func(ctx context.Context, tx pgx.Tx, e *eventv1.Event) error {
		_, err := tx.Exec(ctx, `INSERT INTO seen (event_id, resource_id, value, request_id) VALUES ($1, $2, 1, '')`, e.GetId(), e.GetResourceId())
		return err
	})
	e := &eventv1.Event{Id: uuid.NewString(), Type: "x", ResourceType: "thing", ResourceId: "a"}
	for range 2 {
		res, err := c.Deliver(t.Context(), &eventv1.DeliverRequest{Events: []*eventv1.Event{e, e}})
		require.NoError(t, err)
		require.Len(t, res.GetResults(), 2)
		for _, r := range res.GetResults() {
			require.Equal(t, eventv1.EventResult_APPLIED, r.GetOutcome())
		}
	}
	require.Len(t, w.values(t, "a"), 1)
}

func TestABadIdIsRejectedAndItsNeighboursAreApplied(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client(t, func(ctx context.Context, tx pgx.Tx, e *eventv1.Event) error {
		_, err := tx.Exec(ctx, `INSERT INTO seen (event_id, resource_id, value, request_id) VALUES ($1, $2, 1, '')`, e.GetId(), e.GetResourceId())
		return err
	})
	res, err := c.Deliver(t.Context(), &eventv1.DeliverRequest{Events: []*eventv1.Event{
		{Id: "nonsense", ResourceId: "a"}, {Id: uuid.NewString(), ResourceId: "b"},
	}})
	require.NoError(t, err)
	require.Equal(t, eventv1.EventResult_REJECTED, res.GetResults()[0].GetOutcome())
	require.Equal(t, eventv1.EventResult_APPLIED, res.GetResults()[1].GetOutcome())
	require.Len(t, w.values(t, "b"), 1)
}

func TestADeliveryStaysBelowTheSizeOfAMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client(t, func(context.Context, pgx.Tx, *eventv1.Event) error { return nil })
	var mu sync.Mutex
	largest := 0
	c.before = func(req *eventv1.DeliverRequest) error {
		mu.Lock()
		defer mu.Unlock()
		largest = max(largest, proto.Size(req))
		return nil
	}
	for range 5 {
		e := event("a", 0)
		e.Payload = wrapperspb.Bytes(make([]byte, 900<<10))
		w.add(t, e)
	}
	w.relay(t, fast(), c).start(t)
	require.Eventually(t, func() bool { return w.left(t, "TRUE") == 0 }, eventually, often)
	mu.Lock()
	defer mu.Unlock()
	require.Greater(t, largest, 1<<20)
	require.LessOrEqual(t, largest, 2<<20)
}

func TestAReceiverWithoutItsDatabaseAnswersUnavailable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client(t, record)
	w.target.Close()
	_, err := c.Deliver(t.Context(), &eventv1.DeliverRequest{Events: []*eventv1.Event{{Id: uuid.NewString()}}})
	require.Equal(t, codes.Unavailable, status.Code(err))
}

// BenchmarkCommitToApplied measures from a commit, with a kick, to the event applied at the receiver.
func BenchmarkCommitToApplied(b *testing.B) {
	d := testpg.NewDatabase(b, schema(source), schema(destination))
	sender, target := d.Open(b, source), d.Open(b, destination)
	done := make(chan struct{}, 1)
	s, err := outbox.NewSink(outbox.SinkDeps{DB: target, Apply: record, After: func() { done <- struct{}{} }})
	require.NoError(b, err)
	r, err := outbox.NewRelay(outbox.RelayConfig{Source: source}, outbox.RelayDeps{
		DB: sender, Sinks: map[string]eventv1.EventSinkServiceClient{destination: &client{sink: s}},
	})
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	var total time.Duration
	for b.Loop() {
		require.NoError(b, sender.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error { return outbox.Add(ctx, tx, event("a", 1)) }))
		committed := time.Now()
		r.Kick()
		<-done
		total += time.Since(committed)
	}
	b.ReportMetric(float64(total.Microseconds())/float64(b.N), "µs-after-commit/op")
	cancel()
	require.NoError(b, <-ended)
}

func TestABatchIsAppliedTogetherAndFallsBackToSingleEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var batches atomic.Int64
	s, err := outbox.NewSink(outbox.SinkDeps{DB: w.target, Apply: record, ApplyBatch: func(ctx context.Context, tx pgx.Tx, events []*eventv1.Event) error {
		batches.Add(1)
		for _, e := range events {
			if v, _ := valueOf(e); v == 99 {
				return errors.New("one of them is bad")
			}
			if err := record(ctx, tx, e); err != nil {
				return err
			}
		}
		return nil
	}})
	require.NoError(t, err)
	w.add(t, event("a", 1), event("a", 2))
	w.relay(t, fast(), &client{sink: s}).start(t)
	require.Eventually(t, func() bool { return w.left(t, "TRUE") == 0 }, eventually, often)
	require.EqualValues(t, 1, batches.Load())
	w.add(t, event("a", 3), event("a", 99))
	require.Eventually(t, func() bool { return w.left(t, "TRUE") == 0 }, eventually, often)
	require.Equal(t, []int64{1, 2, 3, 99}, w.values(t, "a"))
}

func TestTheInboxForgetsOldEventsOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.target.Pool.Exec(t.Context(), `INSERT INTO inbox (event_id, create_time)
		SELECT gen_random_uuid(), now() - interval '8 days' FROM generate_series(1, 12000)
		UNION ALL SELECT gen_random_uuid(), now() - interval '6 days' FROM generate_series(1, 3)`)
	require.NoError(t, err)
	res, err := outbox.PruneLoop(w.target).Run(t.Context())
	require.NoError(t, err)
	require.Equal(t, 12000, res.Rows)
	var n int
	require.NoError(t, w.target.Pool.QueryRow(t.Context(), `SELECT count(*) FROM inbox`).Scan(&n))
	require.Equal(t, 3, n)
}
