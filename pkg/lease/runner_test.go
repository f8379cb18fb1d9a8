package lease_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/pg"
)

const eventually, often = 15 * time.Second, 5 * time.Millisecond

type harness struct {
	*lease.Runner
	reg  *prometheus.Registry
	logs *observer.ObservedLogs
}

func newRunner(t *testing.T, db *pg.DB, cfg lease.RunnerConfig, handle lease.Handler) harness {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	h := harness{reg: prometheus.NewRegistry(), logs: logs}
	cfg.Name = "jobs"
	r, err := lease.NewRunner(cfg, lease.RunnerDeps{Table: table(t, nil), DB: db.Pool, Handle: handle, Logger: zap.New(core), Registry: h.reg})
	require.NoError(t, err)
	h.Runner = r
	return h
}

// start runs the runner until the test, or the function returned, ends it.
func (h harness) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	return stop
}

func (h harness) rows(t *testing.T, result string) float64 {
	t.Helper()
	families, err := h.reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "certctl_lease_rows_total" && m.GetLabel()[len(m.GetLabel())-1].GetValue() == result {
				return m.GetCounter().GetValue()
			}
		}
	}
	require.Fail(t, "no such result", result)
	return 0
}

func finish(t *testing.T, db *pg.DB) lease.Handler {
	t.Helper()
	tab := table(t, nil)
	return func(ctx context.Context, l lease.Lease) error { return tab.Finish(ctx, db.Pool, l, "DONE") }
}

func count(t *testing.T, db *pg.DB, where string) int {
	t.Helper()
	var n int
	require.NoError(t, db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM jobs WHERE `+where).Scan(&n))
	return n
}

func TestThreeRunnersWorkEachRowExactlyOnce(t *testing.T) {
	t.Parallel()
	const n = 3000
	db := database(t)
	addJobs(t, db, n, time.Now().Add(-time.Second))
	done := finish(t, db)
	var worked sync.Map
	var twice, total atomic.Int64
	for range 3 {
		newRunner(t, db, lease.RunnerConfig{Slots: 20}, func(ctx context.Context, l lease.Lease) error {
			if _, again := worked.LoadOrStore(l.ID, true); again {
				twice.Add(1)
			}
			total.Add(1)
			return done(ctx, l)
		}).start(t)
	}
	require.Eventually(t, func() bool { return count(t, db, "state = 'DONE'") == n }, eventually, 20*time.Millisecond)
	require.Zero(t, twice.Load())
	require.EqualValues(t, n, total.Load())
	require.Zero(t, count(t, db, "attempts <> 1"))
}

// counting is a database that counts statements.
type counting struct {
	lease.DB
	n atomic.Int64
}

func (c *counting) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	c.n.Add(1)
	return c.DB.Query(ctx, sql, args...)
}

func (c *counting) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	c.n.Add(1)
	return c.DB.QueryRow(ctx, sql, args...)
}

func TestASweepThatFindsNothingCostsOneStatement(t *testing.T) {
	t.Parallel()
	db := database(t)
	addJobs(t, db, 1, time.Now().Add(time.Hour))
	sent := &counting{DB: db.Pool}
	r, err := lease.NewRunner(lease.RunnerConfig{Name: "jobs"}, lease.RunnerDeps{Table: table(t, nil), DB: sent, Handle: finish(t, db)})
	require.NoError(t, err)
	result, err := r.Sweep(t.Context())
	require.NoError(t, err)
	require.Zero(t, result.Rows)
	require.EqualValues(t, 1, sent.n.Load())
}

func TestTheSlotsBoundTheWorkAndASlowRowHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	db := database(t)
	addJobs(t, db, 50, time.Now().Add(-time.Second))
	done := finish(t, db)
	var active, most atomic.Int64
	release := make(chan struct{})
	h := newRunner(t, db, lease.RunnerConfig{Slots: 4, Interval: time.Hour}, func(ctx context.Context, l lease.Lease) error {
		for now := active.Add(1); ; {
			if was := most.Load(); was >= now || most.CompareAndSwap(was, now) {
				break
			}
		}
		defer active.Add(-1)
		if l.ID == "job-000001" {
			<-release
		}
		return done(ctx, l)
	})
	h.start(t)
	require.Eventually(t, func() bool { return count(t, db, "state = 'DONE'") == 49 }, eventually, often)
	require.Equal(t, "LEASED", read(t, db, "job-000001").State)
	require.LessOrEqual(t, most.Load(), int64(4))
	close(release)
	require.Eventually(t, func() bool { return count(t, db, "state = 'DONE'") == 50 }, eventually, often)
}

func TestAKickStartsNewWorkAtOnce(t *testing.T) {
	t.Parallel()
	db := database(t)
	h := newRunner(t, db, lease.RunnerConfig{Interval: time.Hour}, finish(t, db))
	h.start(t)
	for i := range 3 {
		_, err := db.Pool.Exec(t.Context(), `INSERT INTO jobs (id, due_time) VALUES ($1, now())`, fmt.Sprint(i))
		require.NoError(t, err)
		h.Kick()
		require.Eventually(t, func() bool { return count(t, db, "state = 'DONE'") == i+1 }, eventually, often)
	}
}

func TestAPanicInOneRowCostsOnlyThatRow(t *testing.T) {
	t.Parallel()
	db := database(t)
	addJobs(t, db, 10, time.Now().Add(-time.Second))
	done := finish(t, db)
	h := newRunner(t, db, lease.RunnerConfig{
		Slots: 2, Interval: 10 * time.Millisecond, Dead: "DEAD", Backoff: lease.Backoff{Base: time.Millisecond, Cap: time.Millisecond, MaxAttempts: 3},
	}, func(ctx context.Context, l lease.Lease) error {
		if l.ID == "job-000005" {
			panic("row 5 is odd")
		}
		return done(ctx, l)
	})
	h.start(t)
	require.Eventually(t, func() bool { return count(t, db, "state = 'DONE'") == 9 && count(t, db, "state = 'DEAD'") == 1 }, eventually, often)
	require.Equal(t, 3, read(t, db, "job-000005").Attempts)
	require.Eventually(t, func() bool { return h.rows(t, "dead") == 1 }, eventually, often)
	require.InDelta(t, 2, h.rows(t, "panic"), 0)
	require.Equal(t, 3, h.logs.FilterMessage("work on a row panicked").Len())
}

func TestAFailedRowIsTriedAgainWithBackoff(t *testing.T) {
	t.Parallel()
	db := database(t)
	addJobs(t, db, 1, time.Now().Add(-time.Second))
	h := newRunner(t, db, lease.RunnerConfig{Interval: time.Hour, Backoff: lease.Backoff{Base: time.Hour, Cap: time.Hour}}, func(context.Context, lease.Lease) error {
		return errBroken
	})
	res, err := h.Sweep(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, res.Rows)
	j := read(t, db, "job-000001")
	require.Equal(t, "WAITING", j.State)
	require.Equal(t, 1, j.Attempts)
	require.WithinRange(t, j.Due, time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
	require.False(t, j.Leased)
}

func TestARowHasATimeLimit(t *testing.T) {
	t.Parallel()
	db := database(t)
	addJobs(t, db, 1, time.Now().Add(-time.Second))
	var cause error
	h := newRunner(t, db, lease.RunnerConfig{LeaseFor: time.Hour, Timeout: 20 * time.Millisecond, Backoff: lease.Backoff{Base: time.Hour, Cap: time.Hour}},
		func(ctx context.Context, _ lease.Lease) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return ctx.Err()
		})
	_, err := h.Sweep(t.Context())
	require.NoError(t, err)
	require.ErrorIs(t, cause, context.DeadlineExceeded)
	require.Equal(t, "WAITING", read(t, db, "job-000001").State)
}

func TestTheLeaseOfLongWorkIsRenewed(t *testing.T) {
	t.Parallel()
	db := database(t)
	addJobs(t, db, 1, time.Now().Add(-time.Second))
	done := finish(t, db)
	tab := table(t, nil)
	h := newRunner(t, db, lease.RunnerConfig{LeaseFor: 600 * time.Millisecond, Timeout: time.Minute}, func(ctx context.Context, l lease.Lease) error {
		timer := time.NewTimer(2 * time.Second)
		defer timer.Stop()
		for {
			select {
			case <-timer.C:
				return done(ctx, l)
			case <-time.After(50 * time.Millisecond):
				others, err := tab.Claim(ctx, db.Pool, 1, time.Minute)
				if err != nil || len(others) > 0 {
					return errors.Join(err, errBroken)
				}
			}
		}
	})
	_, err := h.Sweep(t.Context())
	require.NoError(t, err)
	require.Equal(t, job{State: "DONE", Attempts: 1}, job{State: read(t, db, "job-000001").State, Attempts: read(t, db, "job-000001").Attempts})
}

func TestAWorkerWhoseLeaseIsTakenIsStoppedAndItsResultDropped(t *testing.T) {
	t.Parallel()
	db := database(t)
	addJobs(t, db, 1, time.Now().Add(-time.Second))
	tab := table(t, nil)
	h := newRunner(t, db, lease.RunnerConfig{LeaseFor: 300 * time.Millisecond, Timeout: time.Minute}, func(ctx context.Context, l lease.Lease) error {
		_, err := db.Pool.Exec(ctx, `UPDATE jobs SET lease_id = gen_random_uuid(), lease_until = now() + interval '1 hour' WHERE id = $1`, l.ID)
		if err != nil {
			return err
		}
		<-ctx.Done()
		if !errors.Is(context.Cause(ctx), lease.ErrLost) {
			return errBroken
		}
		return tab.Finish(context.WithoutCancel(ctx), db.Pool, l, "DONE")
	})
	_, err := h.Sweep(t.Context())
	require.NoError(t, err)
	require.InDelta(t, 1, h.rows(t, "lost"), 0)
	require.Equal(t, "LEASED", read(t, db, "job-000001").State)
}

func TestTheEndGivesRowsBackWithoutCountingAnAttempt(t *testing.T) {
	t.Parallel()
	db := database(t)
	addJobs(t, db, 1, time.Now().Add(-time.Second))
	begun := make(chan struct{})
	h := newRunner(t, db, lease.RunnerConfig{}, func(ctx context.Context, _ lease.Lease) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	})
	stop := h.start(t)
	<-begun
	stop()
	j := read(t, db, "job-000001")
	require.Equal(t, "WAITING", j.State)
	require.Zero(t, j.Attempts)
	require.Len(t, claim(t, table(t, nil), db, 1), 1, "due at once")
}
