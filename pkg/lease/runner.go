package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/tick"
)

// cleanupTime bounds the statement that gives a row back when the row's own time is over.
const cleanupTime = 5 * time.Second

// RunnerConfig sets up a runner.
type RunnerConfig struct {
	// Name is the metrics label, such as "polls".
	Name string
	// Slots is how many rows are worked on at a time. Zero means 10.
	Slots int
	// LeaseFor is how long a lease lasts; it is renewed while the handler works. Zero means 1 minute.
	LeaseFor time.Duration
	// Timeout bounds the work on one row. Zero means two thirds of LeaseFor, so that no renewal is needed.
	Timeout time.Duration
	// Interval is how often rows are looked for that became due by time alone. Zero means 5 s.
	Interval time.Duration
	// Backoff is for rows whose handler fails.
	Backoff Backoff
	// Dead is the state of a row whose attempts are used up. Empty: the row is tried again at the backoff's cap for ever.
	Dead string
}

func (c *RunnerConfig) setDefaults() {
	if c.Slots <= 0 {
		c.Slots = 10
	}
	if c.LeaseFor <= 0 {
		c.LeaseFor = time.Minute
	}
	if c.Timeout <= 0 {
		c.Timeout = c.LeaseFor * 2 / 3
	}
	if c.Interval <= 0 {
		c.Interval = 5 * time.Second
	}
	if c.Backoff.Base <= 0 {
		c.Backoff.Base = time.Second
	}
	if c.Backoff.Cap <= 0 {
		c.Backoff.Cap = 10 * time.Minute
	}
}

// Handler works on one row. When it returns nil it has finished or rescheduled the row itself, in the transaction of its
// result and as the last thing it did. When it fails or panics, the runner reschedules the row by the backoff. ErrLost is passed through: the row
// belongs to another worker. Its context ends with ErrLost as the cause when the lease is lost.
type Handler func(ctx context.Context, l Lease) error

// Claimer takes at most limit rows that are due.
type Claimer func(ctx context.Context, limit int, leaseFor time.Duration) ([]Lease, error)

// RunnerDeps are what a runner works with.
type RunnerDeps struct {
	Table  *Table
	DB     DB // a pool
	Handle Handler
	// Claim, when set, claims in place of Table.Claim, for a queue that shares out its slots. It may take fewer rows than
	// it could while more are due; whoever set it then kicks the runner when there is room for them.
	Claim  Claimer
	Logger *zap.Logger
	// Registry takes the metrics; nil means none.
	Registry prometheus.Registerer
}

// Runner claims rows and works on them, as many at a time as there are slots. A slot that becomes free is filled at
// once, so that a slow row holds up no other.
type Runner struct {
	cfg     RunnerConfig
	deps    RunnerDeps
	log     *zap.Logger
	kicker  *tick.Kicker
	metrics *metrics
}

// NewRunner returns a runner.
func NewRunner(cfg RunnerConfig, deps RunnerDeps) (*Runner, error) {
	cfg.setDefaults()
	if deps.Table == nil || deps.DB == nil || deps.Handle == nil {
		return nil, fmt.Errorf("runner %s: table, database and handler are needed", cfg.Name)
	}
	if deps.Logger == nil {
		deps.Logger = zap.NewNop()
	}
	m, err := newMetrics(cfg.Name, deps.Registry)
	if err != nil {
		return nil, err
	}
	return &Runner{cfg: cfg, deps: deps, log: deps.Logger.With(zap.String("queue", cfg.Name)), kicker: tick.NewKicker(), metrics: m}, nil
}

// Kick tells the runner that a row became due.
func (r *Runner) Kick() { r.kicker.Kick() }

// Run works until ctx ends; then the handlers' contexts end, it waits for them, and gives their rows back.
func (r *Runner) Run(ctx context.Context) error {
	_, err := r.work(ctx, false)
	return err
}

// Sweep works until no row is due and no slot is taken. It is the Run of a tick.Loop: when the context (the loop's
// budget) ends, no new work starts and what runs is drained.
func (r *Runner) Sweep(ctx context.Context) (tick.Result, error) { return r.work(ctx, true) }

// shift is one run of Run or Sweep.
type shift struct {
	*Runner
	group  errgroup.Group
	done   chan struct{}
	active int
	rows   int
	more   bool // there may be due rows that did not fit
}

func (r *Runner) work(ctx context.Context, untilIdle bool) (tick.Result, error) {
	ticker, err := tick.New(r.cfg.Interval, tick.DefaultJitter)
	if err != nil {
		return tick.Result{}, fmt.Errorf("runner %s: %w", r.cfg.Name, err)
	}
	defer ticker.Stop()
	s := &shift{Runner: r, done: make(chan struct{}, r.cfg.Slots)}
	failed := s.loop(ctx, ticker.C, untilIdle)
	_ = s.group.Wait() // the rows' errors are handled per row
	return tick.Result{Rows: s.rows}, failed
}

func (s *shift) loop(ctx context.Context, ticks <-chan time.Time, untilIdle bool) error {
	s.look(ctx)
	if untilIdle && !s.more {
		return nil
	}
	for ctx.Err() == nil {
		if err := s.fill(ctx); err != nil && ctx.Err() == nil {
			if untilIdle {
				return err
			}
			s.log.Warn("claiming rows failed", zap.Error(err))
		}
		if untilIdle && s.active == 0 && !s.more {
			s.look(ctx)
			return nil
		}
		s.wait(ctx, ticks)
	}
	return nil
}

// fill claims rows for the free slots.
func (s *shift) fill(ctx context.Context) error {
	free := s.cfg.Slots - s.active
	if !s.more || free == 0 {
		return nil
	}
	s.more = false
	claimed := time.Now()
	// A claim that is cut off may have been made all the same, and then the rows wait for their leases to run out.
	claimCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	leases, err := s.claim(claimCtx, free)
	if err != nil {
		return err
	}
	s.more = len(leases) == free
	for _, l := range leases {
		s.active++
		s.rows++
		s.group.Go(func() error {
			defer func() { s.done <- struct{}{} }()
			s.row(ctx, l, claimed)
			return nil
		})
	}
	return nil
}

func (r *Runner) claim(ctx context.Context, limit int) ([]Lease, error) {
	if r.deps.Claim != nil {
		return r.deps.Claim(ctx, limit, r.cfg.LeaseFor)
	}
	return r.deps.Table.Claim(ctx, r.deps.DB, limit, r.cfg.LeaseFor)
}

// wait blocks until there may be something to claim.
func (s *shift) wait(ctx context.Context, ticks <-chan time.Time) {
	select {
	case <-ctx.Done():
	case <-s.done:
		s.active--
		s.collect()
	case <-s.kicker.C():
		s.more = true
	case <-ticks:
		s.look(ctx)
	}
}

// collect frees the slots of all rows that have ended, so that one claim fills them.
func (s *shift) collect() {
	for {
		select {
		case <-s.done:
			s.active--
		default:
			return
		}
	}
}

// row works on one row and settles what the handler leaves.
func (s *shift) row(ctx context.Context, l Lease, claimed time.Time) {
	started := time.Now()
	err := s.handle(ctx, l, claimed)
	result := s.settle(ctx, l, err)
	s.metrics.observe(result, time.Since(started))
}

// handle calls the handler under the row's timeout and keeps the lease alive meanwhile.
func (r *Runner) handle(ctx context.Context, l Lease, claimed time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	ctx, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	ended := run.Go(func() error { return r.deps.Handle(ctx, l) })
	err := r.keepAlive(ctx, l, claimed, ended, lost)
	if err != nil && errors.Is(context.Cause(ctx), ErrLost) {
		return errors.Join(ErrLost, err)
	}
	return err
}

// keepAlive renews the lease each third of its time until the handler has ended, and ends the handler's context when it
// could not be renewed.
func (r *Runner) keepAlive(ctx context.Context, l Lease, claimed time.Time, ended <-chan error, lost context.CancelCauseFunc) error {
	ticker, err := tick.New(r.cfg.LeaseFor/3, 0)
	if err != nil {
		lost(err)
		return errors.Join(err, <-ended)
	}
	defer ticker.Stop()
	until := claimed.Add(r.cfg.LeaseFor)
	for {
		select {
		case err := <-ended:
			return err
		case now := <-ticker.C:
			extended := r.extend(ctx, l)
			switch {
			case extended == nil:
				until = now.Add(r.cfg.LeaseFor)
			case errors.Is(extended, ErrLost) || !time.Now().Before(until.Add(-r.cfg.LeaseFor/3)):
				lost(ErrLost)
			}
		}
	}
}

func (r *Runner) extend(ctx context.Context, l Lease) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.LeaseFor/4)
	defer cancel()
	return r.deps.Table.Extend(ctx, r.deps.DB, l, r.cfg.LeaseFor)
}

// settle gives the row back after a failure and tells how the work ended, for the metrics.
func (s *shift) settle(ctx context.Context, l Lease, err error) (result string) {
	if err == nil {
		return resultOK
	}
	if errors.Is(err, ErrLost) {
		s.log.Warn("lost the lease of a row", zap.String("row", l.ID), zap.Error(err))
		return resultLost
	}
	stopping := ctx.Err() != nil
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	p, panicked := errors.AsType[*run.PanicError](err)
	switch {
	case panicked:
		s.log.Error("work on a row panicked", zap.String("row", l.ID), zap.Error(p), zap.ByteString("stack", p.Stack))
		result = resultPanic
	case stopping:
		// The end of the process is no failed attempt.
		s.giveBack(l, s.deps.Table.Snooze(cleanup, s.deps.DB, l, time.Time{}))
		return resultStopped
	default:
		s.log.Warn("work on a row failed", zap.String("row", l.ID), zap.Int("attempts", l.Attempts), zap.Error(err))
		result = resultFailed
	}
	return s.retry(cleanup, l, result)
}

// retry reschedules a failed row, or buries it at the end of its attempts.
func (s *shift) retry(ctx context.Context, l Lease, result string) string {
	wait, again := s.cfg.Backoff.Next(l.Attempts)
	if !again && s.cfg.Dead != "" {
		s.giveBack(l, s.deps.Table.Finish(ctx, s.deps.DB, l, s.cfg.Dead))
		return resultDead
	}
	if !again {
		wait = s.cfg.Backoff.Cap
	}
	at := time.Now()
	if now := s.deps.Table.clock(); now != nil {
		at = *now
	}
	s.giveBack(l, s.deps.Table.Reschedule(ctx, s.deps.DB, l, at.Add(wait)))
	return result
}

// giveBack logs when a row could not be given back; its lease will run out.
func (s *shift) giveBack(l Lease, err error) {
	if err != nil {
		s.log.Warn("giving back a row failed", zap.String("row", l.ID), zap.Error(err))
	}
}

// look counts what waits. A rest costs this one read for each look; when it fails, the claim tells what there is.
func (s *shift) look(ctx context.Context) {
	stats, err := s.deps.Table.Stats(ctx, s.deps.DB)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("counting due rows failed", zap.Error(err))
		}
		s.more = true
		return
	}
	s.more = s.more || stats.Due > 0
	s.metrics.due.Set(float64(stats.Due))
	s.metrics.oldest.Set(stats.Oldest.Seconds())
}
