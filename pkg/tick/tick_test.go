package tick_test

import (
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/tick"
)

func start(t *testing.T, interval time.Duration, jitter float64) *tick.Ticker {
	t.Helper()
	tk, err := tick.New(interval, jitter)
	require.NoError(t, err)
	return tk
}

// gaps returns the times between n ticks, the first counted from the start.
func gaps(t *testing.T, tk *tick.Ticker, n int) []time.Duration {
	t.Helper()
	out := make([]time.Duration, 0, n)
	last := time.Now()
	for range n {
		now := <-tk.C
		out = append(out, now.Sub(last))
		last = now
	}
	return out
}

func TestEachTickIsInsideTheEnvelope(t *testing.T) {
	t.Parallel()
	for _, interval := range []time.Duration{time.Millisecond, 30 * time.Second, 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			tk := start(t, interval, tick.DefaultJitter)
			defer tk.Stop()
			for i, gap := range gaps(t, tk, 1000) {
				require.InDelta(t, float64(interval), float64(gap), 0.10*float64(interval)+1, "tick %d", i)
			}
		})
	}
}

func TestTheMeanDoesNotDriftAndBothHalvesOfTheEnvelopeAreUsed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 10_000
		tk := start(t, time.Minute, tick.DefaultJitter)
		defer tk.Stop()
		began := time.Now()
		var early, late, farEarly, farLate int
		for _, gap := range gaps(t, tk, n) {
			switch {
			case gap < time.Minute:
				early++
			case gap > time.Minute:
				late++
			}
			switch {
			case gap < 55*time.Second:
				farEarly++
			case gap > 65*time.Second:
				farLate++
			}
		}
		require.InEpsilon(t, float64(n*time.Minute), float64(time.Since(began)), 0.03)
		require.InDelta(t, n/2, early, n/20, "ticks before the interval")
		require.InDelta(t, n/2, late, n/20, "ticks after the interval")
		require.InDelta(t, n/12, farEarly, n/40, "ticks near the early edge")
		require.InDelta(t, n/12, farLate, n/40, "ticks near the late edge")
	})
}

func TestTheFirstTickComesAfterOneInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tk := start(t, time.Minute, tick.DefaultJitter)
		defer tk.Stop()
		pass(54*time.Second - 1)
		synctest.Wait()
		require.Empty(t, tk.C)
		pass(12*time.Second + 1)
		synctest.Wait()
		require.Len(t, tk.C, 1)
	})
}

func TestZeroJitterIsExact(t *testing.T) {
	t.Parallel()
	for name, jitter := range map[string]float64{"zero": 0, "negative": -0.5, "not a number": math.NaN(), "minus infinity": math.Inf(-1)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tk := start(t, 7*time.Second, jitter)
				defer tk.Stop()
				for _, gap := range gaps(t, tk, 500) {
					require.Equal(t, 7*time.Second, gap)
				}
			})
		})
	}
}

func TestJitterOfOneOrMoreIsClamped(t *testing.T) {
	t.Parallel()
	for _, jitter := range []float64{1, 1.5, 100, math.Inf(1)} {
		synctest.Test(t, func(t *testing.T) {
			tk := start(t, time.Second, jitter)
			defer tk.Stop()
			var longest, shortest time.Duration = 0, time.Hour
			for _, gap := range gaps(t, tk, 2000) {
				longest, shortest = max(longest, gap), min(shortest, gap)
			}
			require.Positive(t, shortest)
			require.Less(t, longest, 2*time.Second)
			require.Less(t, shortest, 100*time.Millisecond, "the clamp must leave the jitter wide")
			require.Greater(t, longest, 1900*time.Millisecond)
		})
	}
}

func TestAnIntervalThatIsNotPositiveIsRefused(t *testing.T) {
	t.Parallel()
	for _, interval := range []time.Duration{0, -1, -time.Hour} {
		tk, err := tick.New(interval, tick.DefaultJitter)
		require.ErrorContains(t, err, "interval must be positive")
		require.Nil(t, tk)
	}
}

func TestStopFreesTheGoroutineAndClosesTheChannel(t *testing.T) {
	t.Parallel()
	// The bubble fails by itself when a goroutine is left over.
	synctest.Test(t, func(t *testing.T) {
		tk := start(t, time.Second, tick.DefaultJitter)
		pass(10 * time.Second)
		tk.Stop()
		_, open := <-tk.C
		require.False(t, open, "a tick from before Stop must not be seen after it")
	})
}

func TestStopMayBeCalledAgainAndByManyAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tk := start(t, time.Second, tick.DefaultJitter)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(tk.Stop)
		}
		wg.Wait()
		tk.Stop()
		_, open := <-tk.C
		require.False(t, open)
	})
}

func TestASlowReaderGetsNoBacklog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tk := start(t, time.Second, 0)
		defer tk.Stop()
		<-tk.C
		pass(100*time.Second + time.Second/2)
		synctest.Wait()
		require.LessOrEqual(t, len(tk.C), 1)
		<-tk.C
		waited := time.Now()
		<-tk.C
		require.Equal(t, time.Second/2, time.Since(waited), "the tick after the waiting one comes at its own time")
	})
}

func TestJitteredNeverOverflowsOrReachesZero(t *testing.T) {
	t.Parallel()
	for range 1000 {
		require.Positive(t, tick.Jittered(math.MaxInt64, 0.9))
		require.Positive(t, tick.Jittered(1, 1))
		require.Positive(t, tick.Jittered(0, 0))
	}
}

// pass lets time go by for whoever calls it, on the clock of a synctest bubble: nothing really waits.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // in a bubble this is the way to move the clock
}
