package tick_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/tick"
)

type fixture struct {
	*tick.Group
	reg  *prometheus.Registry
	logs *observer.ObservedLogs
}

func newGroup(t *testing.T, cfg tick.Config) fixture {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	reg := prometheus.NewRegistry()
	g, err := tick.NewGroup(cfg, tick.Deps{Logger: zap.New(core), Registry: reg})
	require.NoError(t, err)
	return fixture{Group: g, reg: reg, logs: logs}
}

// run starts the group and returns a function that ends it and gives Run's answer.
func (f fixture) run(t *testing.T) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	return func() error {
		cancel()
		return <-ended
	}
}

func counting(n *atomic.Int64) func(context.Context) (tick.Result, error) {
	return func(context.Context) (tick.Result, error) {
		n.Add(1)
		return tick.Result{Rows: 3, Note: "work comes later"}, nil
	}
}

func TestEveryLoopRunsSoonAfterTheStartAndThenAtItsInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newGroup(t, tick.Config{})
		var daily, fast atomic.Int64
		require.NoError(t, f.Register(tick.Loop{Name: "daily", Description: "once a day", Interval: 24 * time.Hour, Run: counting(&daily)}))
		require.NoError(t, f.Register(tick.Loop{Name: "fast", Interval: 10 * time.Second, Run: counting(&fast)}))
		for _, s := range f.States() {
			require.True(t, s.LastRun.IsZero())
		}
		stop := f.run(t)
		pass(2 * time.Second)
		synctest.Wait()
		require.EqualValues(t, 1, daily.Load())
		require.EqualValues(t, 1, fast.Load())
		pass(1000 * time.Second)
		synctest.Wait()
		require.InDelta(t, 100, fast.Load(), 6)
		require.EqualValues(t, 1, daily.Load())

		states := f.States()
		require.Equal(t, "daily", states[0].Name)
		require.Equal(t, "once a day", states[0].Description)
		require.Equal(t, "work comes later", states[0].Note)
		require.Equal(t, 3, states[0].LastRows)
		require.EqualValues(t, 1, states[0].Runs)
		require.False(t, states[0].LastRun.IsZero())
		require.NoError(t, stop())
	})
}

func TestAKickStartsARunAtOnceAndOneDuringARunLeadsToOneMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newGroup(t, tick.Config{})
		var n atomic.Int64
		kick := tick.NewKicker()
		require.NoError(t, f.Register(tick.Loop{Name: "l", Interval: time.Hour, Kick: kick.C(), Run: func(ctx context.Context) (tick.Result, error) {
			n.Add(1)
			pass(time.Second)
			return tick.Result{}, nil
		}}))
		stop := f.run(t)
		pass(10 * time.Second)
		require.EqualValues(t, 1, n.Load())

		kick.Kick()
		synctest.Wait()
		require.EqualValues(t, 2, n.Load(), "a kick does not wait for the tick")
		for range 5 {
			kick.Kick()
			synctest.Wait()
		}
		require.EqualValues(t, 2, n.Load(), "a running loop is not run twice at a time")
		pass(10 * time.Second)
		require.EqualValues(t, 3, n.Load(), "many kicks during a run are one more run")
		require.NoError(t, stop())
	})
}

func TestTheFloorKeepsKickedRunsApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newGroup(t, tick.Config{})
		var n atomic.Int64
		kick := tick.NewKicker()
		require.NoError(t, f.Register(tick.Loop{Name: "l", Interval: time.Hour, Floor: 5 * time.Second, Kick: kick.C(), Run: counting(&n)}))
		stop := f.run(t)
		for range 1000 {
			kick.Kick()
			pass(100 * time.Millisecond)
		}
		require.InDelta(t, 20, n.Load(), 2)
		require.NoError(t, stop())
	})
}

func TestATickDuringARunIsSkipped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newGroup(t, tick.Config{})
		var active, most, n atomic.Int64
		require.NoError(t, f.Register(tick.Loop{Name: "slow", Interval: time.Second, Budget: time.Hour, Run: func(ctx context.Context) (tick.Result, error) {
			most.Store(max(most.Load(), active.Add(1)))
			defer active.Add(-1)
			n.Add(1)
			pass(10*time.Second + time.Second/2)
			return tick.Result{}, nil
		}}))
		stop := f.run(t)
		pass(120 * time.Second)
		require.EqualValues(t, 1, most.Load())
		require.LessOrEqual(t, n.Load(), int64(12), "no run follows at once for a tick that was missed")
		require.NoError(t, stop())
	})
}

func TestABudgetEndsARunAndAnErrorIsSeen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newGroup(t, tick.Config{})
		require.NoError(t, f.Register(tick.Loop{Name: "l", Interval: time.Hour, Budget: 3 * time.Second, Run: func(ctx context.Context) (tick.Result, error) {
			<-ctx.Done()
			return tick.Result{}, ctx.Err()
		}}))
		stop := f.run(t)
		pass(10 * time.Second)
		s := f.States()[0]
		require.Equal(t, 3*time.Second, s.LastDuration)
		require.Equal(t, context.DeadlineExceeded.Error(), s.LastError)
		require.EqualValues(t, 1, s.Errors)
		require.Equal(t, 1, f.logs.FilterMessage("loop run failed").Len())
		require.NoError(t, stop())
	})
}

func TestAPanicIsRecoveredLoggedAndCountedAndTheLoopGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newGroup(t, tick.Config{})
		var n atomic.Int64
		require.NoError(t, f.Register(tick.Loop{Name: "l", Interval: time.Minute, Run: func(ctx context.Context) (tick.Result, error) {
			if n.Add(1) == 1 {
				panic("row 7 is odd")
			}
			return tick.Result{Rows: 2}, nil
		}}))
		stop := f.run(t)
		pass(30 * time.Second)
		s := f.States()[0]
		require.EqualValues(t, 1, s.Panics)
		require.Contains(t, s.LastError, "row 7 is odd")
		require.Equal(t, 1, f.logs.FilterMessage("loop panicked").Len())
		pass(time.Minute)
		s = f.States()[0]
		require.EqualValues(t, 2, s.Runs)
		require.Empty(t, s.LastError)
		require.NoError(t, stop())

		want := map[string]float64{"certctl_loop_panics_total": 1, "certctl_loop_errors_total": 1, "certctl_loop_rows_total": 2}
		for name, value := range want {
			require.InDelta(t, value, gathered(t, f.reg, name), 0, name)
		}
		require.Positive(t, gathered(t, f.reg, "certctl_loop_last_run_timestamp_seconds"))
	})
}

func gathered(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		m := f.GetMetric()[0]
		return m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	require.Fail(t, "no such metric", name)
	return 0
}

func TestTheEndDrainsRunsThroughTheirContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newGroup(t, tick.Config{})
		var cleaned atomic.Bool
		require.NoError(t, f.Register(tick.Loop{Name: "l", Interval: time.Hour, Run: func(ctx context.Context) (tick.Result, error) {
			<-ctx.Done()
			pass(5 * time.Second)
			cleaned.Store(true)
			return tick.Result{}, ctx.Err()
		}}))
		stop := f.run(t)
		pass(3 * time.Second)
		require.True(t, f.States()[0].Running)
		require.NoError(t, stop())
		require.True(t, cleaned.Load())
		require.Empty(t, f.States()[0].LastError, "a shutdown is no failure")
	})
}

func TestALoopThatIgnoresItsContextDoesNotHoldUpTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newGroup(t, tick.Config{Drain: 7 * time.Second})
		release := make(chan struct{})
		require.NoError(t, f.Register(tick.Loop{Name: "deaf", Interval: time.Hour, Run: func(context.Context) (tick.Result, error) {
			<-release
			return tick.Result{}, nil
		}}))
		stop := f.run(t)
		pass(3 * time.Second)
		began := time.Now()
		require.ErrorContains(t, stop(), "deaf")
		require.Equal(t, 7*time.Second, time.Since(began))
		close(release)
	})
}

func TestALoopThatCannotRunIsRefused(t *testing.T) {
	t.Parallel()
	run := func(context.Context) (tick.Result, error) { return tick.Result{}, errors.New("never") }
	f := newGroup(t, tick.Config{})
	require.NoError(t, f.Register(tick.Loop{Name: "a", Interval: time.Second, Run: run}))
	require.ErrorContains(t, f.Register(tick.Loop{Name: "a", Interval: time.Second, Run: run}), "taken")
	require.ErrorContains(t, f.Register(tick.Loop{Interval: time.Second, Run: run}), "name")
	require.ErrorContains(t, f.Register(tick.Loop{Name: "b", Run: run}), "positive")
	require.ErrorContains(t, f.Register(tick.Loop{Name: "c", Interval: time.Second}), "nothing to run")
}

func TestTheMetricsTakeTheServiceFromTheRegistry(t *testing.T) {
	t.Parallel()
	for _, service := range []string{"audit", "inventory"} {
		reg := metrics.New(service)
		g, err := tick.NewGroup(tick.Config{}, tick.Deps{Registry: reg})
		require.NoError(t, err)
		require.NoError(t, g.Register(tick.Loop{Name: "l", Interval: time.Second, Run: counting(new(atomic.Int64))}))
		n, err := testutil.GatherAndCount(reg, "certctl_loop_last_run_timestamp_seconds")
		require.NoError(t, err)
		require.Equal(t, 1, n, "a loop that never ran is visible")
	}
}
