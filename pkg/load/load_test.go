package load_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/load"
)

// take is a request that takes some time.
func take(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// near allows for the three digits of a histogram.
func near(t *testing.T, want, got time.Duration) {
	t.Helper()
	require.InEpsilon(t, want, got, 0.002)
}

func TestTheRateIsKeptWhateverAnswersTake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var mu sync.Mutex
		starts := make(map[int]time.Duration)
		r := load.Run(t.Context(), load.Plan{Rate: 10, Duration: 2 * time.Second, Workers: 8}, func(ctx context.Context, _, n int) error {
			mu.Lock()
			starts[n] = time.Since(begin)
			mu.Unlock()
			return take(ctx, 500*time.Millisecond)
		})
		require.Equal(t, 20, r.Planned)
		require.Zero(t, r.Failed)
		require.NoError(t, r.Err)
		for n, at := range starts {
			require.Equal(t, time.Duration(n)*100*time.Millisecond, at, "request %d", n)
		}
		require.Equal(t, 2400*time.Millisecond, r.Elapsed, "the last begins at 1.9 s, and is waited for")
		require.InDelta(t, 20/2.4, r.Throughput(), 1e-9)
		near(t, 500*time.Millisecond, r.Latency.P50)
		near(t, 500*time.Millisecond, r.Latency.Max)
	})
}

func TestAStallIsChargedToAllThatWouldHaveCome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		// One request of 1 s at 10/s with one worker: those behind it are late by what is left of that second.
		var took []time.Duration
		r := load.Run(t.Context(), load.Plan{Rate: 10, Duration: 2 * time.Second, Workers: 1}, func(ctx context.Context, _, n int) error {
			begin, d := time.Now(), time.Millisecond
			if n == 0 {
				d = time.Second
			}
			err := take(ctx, d)
			took = append(took, time.Since(begin))
			return err
		})
		require.Equal(t, 20, r.Planned)
		require.Len(t, took, 20)
		near(t, time.Second, r.Latency.Max)
		// 1000, 901, 802 … 109, 10, and nine of 1 ms that were on time again.
		near(t, 10*time.Millisecond, r.Latency.P50)
		near(t, 901*time.Millisecond, r.Latency.P95)
		for _, d := range took[1:] {
			require.Equal(t, time.Millisecond, d, "by its own start each but the first was fast")
		}
	})
}

func TestWithoutARateEachWorkerGoesOnAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		byWorker, numbers := make(map[int]int), make(map[int]bool)
		r := load.Run(t.Context(), load.Plan{Duration: time.Second, Workers: 3}, func(ctx context.Context, worker, n int) error {
			mu.Lock()
			byWorker[worker]++
			numbers[n] = true
			mu.Unlock()
			return take(ctx, 10*time.Millisecond)
		})
		require.Equal(t, map[int]int{0: 100, 1: 100, 2: 100}, byWorker)
		require.Len(t, numbers, 300, "each has a number of its own")
		require.Equal(t, 300, r.Planned)
		require.InDelta(t, 300, r.Throughput(), 1e-9)
		near(t, 10*time.Millisecond, r.Latency.P99)
	})
}

func TestTheEndOfTheContextEndsARun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 950*time.Millisecond)
		defer cancel()
		r := load.Run(ctx, load.Plan{Rate: 10, Duration: time.Hour, Workers: 2}, func(context.Context, int, int) error { return nil })
		require.Equal(t, 10, r.Planned)
		require.Equal(t, 950*time.Millisecond, r.Elapsed)

		ended, end := context.WithCancel(t.Context())
		end()
		r = load.Run(ended, load.Plan{Duration: time.Hour, Workers: 2}, func(context.Context, int, int) error { return nil })
		require.Zero(t, r.Planned)
		require.Zero(t, r.Latency.Max)
	})
}

func TestFailuresAreCountedAndAreInNoLatency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		r := load.Run(t.Context(), load.Plan{Rate: 10, Duration: time.Second, Workers: 4}, func(ctx context.Context, _, n int) error {
			if n%2 == 1 {
				_ = take(ctx, 5*time.Second) // would be the longest
				return broken
			}
			return take(ctx, 20*time.Millisecond)
		})
		require.Equal(t, 10, r.Planned)
		require.Equal(t, 5, r.Failed)
		require.ErrorIs(t, r.Err, broken)
		require.Less(t, r.Latency.P50, 5*time.Second)
		require.InDelta(t, 5/r.Elapsed.Seconds(), r.Throughput(), 1e-9)
	})
}

func TestNothingHasNoThroughput(t *testing.T) {
	t.Parallel()
	require.Zero(t, load.Result{}.Throughput())
	require.Zero(t, load.NewHistogram().Latency())
}

func TestALatencyIsWrittenInMilliseconds(t *testing.T) {
	t.Parallel()
	h := load.NewHistogram()
	h.Add(-time.Second) // a clock that went back
	h.Add(1500 * time.Microsecond)
	h.Add(time.Hour) // more than there is room for
	b, err := json.Marshal(h.Latency())
	require.NoError(t, err)
	var ms map[string]float64
	require.NoError(t, json.Unmarshal(b, &ms))
	require.InEpsilon(t, 1.5, ms["p50"], 0.002)
	require.InEpsilon(t, 600_000, ms["max"], 0.002)
	require.Len(t, ms, 6)
}
