package outbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/tick"
)

// maxBatchBytes keeps a batch below gRPC's usual limit of 4 MiB for a message.
const maxBatchBytes = 2 << 20

// RelayConfig sets up a relay.
type RelayConfig struct {
	// Source is the name of the service whose outbox it is.
	Source string
	// Interval is how often the relay looks while there was nothing to deliver and nobody kicks it: it kicks itself after commits, and a
	// notification can be lost only together with the connection that listens, after which all look. Zero means 1 min. While something
	// is left, such as what another replica has under way, it looks after LeaseFor: what a dead replica has left is taken up by then.
	Interval time.Duration
	// Batch is how many events one delivery has at most. Zero means 500.
	Batch int
	// Gather is how far apart looks begin that find no full batch: what comes in between goes together, because a delivery
	// costs the same for one event as for many. The first event after a rest is sent at once. Zero means 50 ms.
	Gather time.Duration
	// Patient are destinations that nobody waits for, such as a record: for those Gather is ten times as long.
	Patient []string
	// LeaseFor is how long a dead replica keeps a destination from the others. Zero means 6 s.
	LeaseFor time.Duration
	// Timeout bounds one delivery; it is less than LeaseFor. Zero means two thirds of it.
	Timeout time.Duration
	// Backoff is for events that the receiver wants again later, and for receivers that cannot be reached. The zero value
	// means 200 ms up to 1 min, without end.
	Backoff lease.Backoff
}

func (c *RelayConfig) setDefaults() {
	if c.Batch <= 0 {
		c.Batch = 500
	}
	if c.Gather <= 0 {
		c.Gather = 50 * time.Millisecond
	}
	if c.LeaseFor <= 0 {
		c.LeaseFor = 6 * time.Second
	}
	if c.Interval <= 0 {
		c.Interval = time.Minute
	}
	if c.Timeout <= 0 || c.Timeout >= c.LeaseFor {
		c.Timeout = c.LeaseFor * 2 / 3
	}
	if c.Backoff.Base <= 0 {
		c.Backoff.Base = 200 * time.Millisecond
	}
	if c.Backoff.Cap <= 0 {
		c.Backoff.Cap = time.Minute
	}
	c.Backoff.MaxAttempts = 0 // a fact is never given up because its receiver is away
}

// RelayDeps are what a relay works with.
type RelayDeps struct {
	DB *pg.DB
	// Sinks are the receivers, by destination.
	Sinks  map[string]eventv1.EventSinkServiceClient
	Logger *zap.Logger
	// Registry takes the metrics; nil means none.
	Registry prometheus.Registerer
}

// Relay delivers the events of one outbox. Of several replicas, one at a time serves a destination: it holds the
// destination's row in outbox_leases and has one batch in flight. The statements after a delivery need no fence: an event
// that the receiver has applied may be deleted by anybody, and for one that is delivered twice there is the inbox.
type Relay struct {
	routes  []*route
	metrics *metrics
}

// route is the way to one destination.
type route struct {
	cfg         RelayConfig
	destination string
	sink        eventv1.EventSinkServiceClient
	db          *pg.DB
	log         *zap.Logger
	metrics     *metrics
	kicker      *tick.Kicker
	patience    time.Duration // how far apart looks begin that find no full batch

	leaseID    uuid.UUID
	leaseUntil time.Time // by this process's clock; zero when not held
	left       bool      // there may be events: those of the last look were not all, or not for long
	batch      int       // how many events are sent at a time
	looked     time.Time // when it was last looked
	observed   time.Time // when the events were last counted
}

// NewRelay returns a relay.
func NewRelay(cfg RelayConfig, deps RelayDeps) (*Relay, error) {
	cfg.setDefaults()
	if deps.DB == nil || cfg.Source == "" {
		return nil, errors.New("outbox relay: a source and a database are needed")
	}
	if deps.Logger == nil {
		deps.Logger = zap.NewNop()
	}
	m, err := newMetrics(deps.Registry)
	if err != nil {
		return nil, err
	}
	r := &Relay{metrics: m}
	for _, name := range slices.Sorted(maps.Keys(deps.Sinks)) {
		m.announce(name)
		patience := cfg.Gather
		if slices.Contains(cfg.Patient, name) {
			patience *= 10
		}
		r.routes = append(r.routes, &route{
			cfg: cfg, destination: name, sink: deps.Sinks[name], db: deps.DB, metrics: m, kicker: tick.NewKicker(), patience: patience,
			log: deps.Logger.With(zap.String("destination", name)), leaseID: uuid.New(), batch: cfg.Batch,
		})
	}
	return r, nil
}

// Kick tells the relay that there are new events: after a commit, or on a notification on Channel.
func (r *Relay) Kick() {
	for _, route := range r.routes {
		route.kicker.Kick()
	}
}

// KickFor is Kick for one destination, the payload of a notification on Channel. Any other text is a kick for all: after a gap
// there is none.
func (r *Relay) KickFor(destination string) {
	for _, route := range r.routes {
		if route.destination == destination {
			route.kicker.Kick()
			return
		}
	}
	r.Kick()
}

// Run delivers until ctx ends, then lets go of its destinations.
func (r *Relay) Run(ctx context.Context) error {
	var group errgroup.Group
	for _, route := range r.routes {
		group.Go(func() error { return route.run(ctx) })
	}
	return group.Wait()
}

func (r *route) run(ctx context.Context) error {
	defer r.release(ctx)
	failures := 0
	r.observe(ctx)
	for ctx.Err() == nil {
		more, err := r.protected(ctx)
		if err != nil && ctx.Err() == nil {
			failures++
			// A receiver that cannot apply so many in the time that a delivery has would never apply any.
			r.batch = max(r.batch/2, 1)
			r.log.Warn("delivering events failed", zap.Int("failures", failures), zap.Error(err))
			r.pause(ctx, failures)
			continue
		}
		failures = 0
		r.batch = min(r.batch*2, r.cfg.Batch)
		if !more {
			r.wait(ctx)
			r.gather(ctx)
		}
	}
	return nil
}

// wait blocks until there may be something to deliver. A rest costs one statement for each Interval, the one that counts; a
// count reads much when much is left, so that looks make one in half an Interval at the most.
func (r *route) wait(ctx context.Context) {
	for {
		rest := r.cfg.Interval
		if r.left {
			rest = min(rest, r.cfg.LeaseFor)
		}
		timer := time.NewTimer(tick.Jittered(rest, tick.DefaultJitter))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-r.kicker.C():
			timer.Stop()
			return
		case <-timer.C:
		}
		if time.Since(r.observed) < r.cfg.Interval/2 || r.observe(ctx) {
			return
		}
		r.left = false
	}
}

// gather lets events come together when the last look has only just begun.
func (r *route) gather(ctx context.Context) {
	if rest := r.patience - time.Since(r.looked); rest > 0 {
		_ = tick.Wait(ctx, rest)
	}
}

// pause keeps kicks from hammering a receiver that is away.
func (r *route) pause(ctx context.Context, failures int) {
	wait, _ := r.cfg.Backoff.Next(failures)
	_ = tick.Wait(ctx, wait)
	if ctx.Err() == nil {
		r.observe(ctx)
	}
}

// protected is step with panics turned into errors.
func (r *route) protected(ctx context.Context) (more bool, err error) {
	err = run.Safely(func() (err error) {
		more, err = r.step(ctx)
		return err
	})
	return more, err
}

// step delivers one batch and tells whether there may be more.
func (r *route) step(ctx context.Context) (more bool, err error) {
	r.looked, r.left = time.Now(), true
	held, err := r.hold(ctx)
	if err != nil || !held {
		return false, err
	}
	batch, more, err := r.read(ctx)
	if err != nil || len(batch) == 0 {
		return false, err
	}
	return more, r.deliver(ctx, batch)
}

const holdLease = `INSERT INTO outbox_leases AS l (destination, lease_id, lease_until)
VALUES ($1, $2, statement_timestamp() + $3::interval)
ON CONFLICT (destination) DO UPDATE SET lease_id = EXCLUDED.lease_id, lease_until = EXCLUDED.lease_until
 WHERE l.lease_id = EXCLUDED.lease_id OR l.lease_until <= statement_timestamp()`

// hold takes or renews the lease on the destination, if there is anything to deliver. It leaves time for a whole delivery.
func (r *route) hold(ctx context.Context) (bool, error) {
	now := time.Now()
	if now.Add(r.cfg.Timeout).Before(r.leaseUntil) {
		return true, nil
	}
	if due, err := r.look(ctx); err != nil || !due {
		return false, err
	}
	tag, err := r.db.Pool.Exec(ctx, holdLease, r.destination, r.leaseID, r.cfg.LeaseFor)
	if err != nil {
		r.leaseUntil = time.Time{}
		return false, fmt.Errorf("hold the lease on %s: %w", r.destination, err)
	}
	if tag.RowsAffected() == 0 {
		r.leaseUntil = time.Time{}
		return false, nil
	}
	r.leaseUntil = now.Add(r.cfg.LeaseFor)
	return true, nil
}

// look tells whether an event is due, and notes whether there is one at all.
func (r *route) look(ctx context.Context) (due bool, err error) {
	err = r.db.Pool.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM outbox WHERE destination = $1 AND NOT dead AND due_time <= statement_timestamp()),
 EXISTS (SELECT 1 FROM outbox WHERE destination = $1 AND NOT dead)`, planned, r.destination).Scan(&due, &r.left)
	if err != nil {
		return false, fmt.Errorf("look into the outbox: %w", err)
	}
	return due, nil
}

// release lets another replica go on at once.
func (r *route) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if _, err := r.db.Pool.Exec(ctx, `DELETE FROM outbox_leases WHERE destination = $1 AND lease_id = $2`, r.destination, r.leaseID); err != nil {
		r.log.Warn("releasing the lease failed", zap.Error(err))
	}
	r.leaseUntil = time.Time{}
}

// observe counts the events, and tells whether there may be any that are to be delivered.
func (r *route) observe(ctx context.Context) bool {
	r.observed = time.Now()
	backlog, err := r.metrics.count(ctx, r.db, r.destination)
	if err != nil && ctx.Err() == nil {
		r.log.Warn("counting events failed", zap.Error(err))
	}
	return err != nil || backlog > 0
}
