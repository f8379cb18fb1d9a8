package account_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer/account"
)

var (
	ok     = account.Result{}             //nolint:gochecknoglobals // a constant
	failed = account.Result{Failed: true} //nolint:gochecknoglobals // a constant
)

// pass lets time go by on the clock of a synctest bubble: nothing really waits.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // in a bubble this is the way to move the clock
}

// call makes one call that goes as told.
func call(ctx context.Context, g *account.Guard, r account.Result) error {
	leave, err := g.Enter(ctx)
	if err == nil {
		leave(r)
	}
	return err
}

func requireBusy(t *testing.T, want account.Reason, err error) *account.BusyError {
	t.Helper()
	var busy *account.BusyError
	require.ErrorAs(t, err, &busy)
	require.Equal(t, want, busy.Reason)
	require.Positive(t, busy.After)
	return busy
}

// trip has a CA fail until its breaker is open.
func trip(t *testing.T, g *account.Guard) {
	t.Helper()
	for n := 0; g.State() == account.Closed; n++ {
		require.Less(t, n, 10)
		require.NoError(t, call(t.Context(), g, failed))
	}
	require.Equal(t, account.Open, g.State())
}

// --- accounts

func TestIssuersWithOneKeyShareOneGuardAndTheLastLimitsHold(t *testing.T) {
	t.Parallel()
	accounts := account.New(account.Config{})
	a := accounts.Guard("digicert:1", account.Limits{PerSecond: 5})
	b := accounts.Guard("digicert:1", account.Limits{PerSecond: 2})
	require.Same(t, a, b)
	require.InDelta(t, 2, a.Rate(), 1e-9)
	require.NotSame(t, a, accounts.Guard("digicert:2", account.Limits{}))
	require.Equal(t, "digicert:1", a.Key())
}

// --- rate

func TestTheProcessesOfAnAccountTogetherKeepItsRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		limits := account.Limits{PerSecond: 5, Burst: 10, Concurrency: 100}
		var mu sync.Mutex
		calls := 0
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for _, share := range []float64{0.6, 0.2, 0.2} {
			g := account.New(account.Config{Share: share}).Guard("a", limits)
			for range 20 { // all of them call as often as they may
				wg.Go(func() {
					for ctx.Err() == nil {
						err := call(ctx, g, ok)
						if busy, is := errors.AsType[*account.BusyError](err); is {
							pass(busy.After)
						} else if err == nil {
							mu.Lock()
							calls++
							mu.Unlock()
						}
					}
				})
			}
		}
		wg.Wait()
		require.LessOrEqual(t, calls, 500+10, "100 s of 5 calls a second, and the burst")
		require.Greater(t, calls, 400, "and little of it is lost")
	})
}

func TestACallThatWouldWaitForLongIsRefusedWithTheTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := account.New(account.Config{}).Guard("a", account.Limits{PerSecond: 0.1, Burst: 1})
		require.NoError(t, call(t.Context(), g, ok))
		busy := requireBusy(t, account.RateLimit, call(t.Context(), g, ok))
		require.InDelta(t, 10*time.Second, busy.After, float64(time.Millisecond))
		calls, again := g.Allowance()
		require.Zero(t, calls)
		pass(again)
		calls, _ = g.Allowance()
		require.Equal(t, 1, calls)
		require.NoError(t, call(t.Context(), g, ok), "the refused call has taken nothing")
	})
}

func TestAnUrgentCallIsMadeAndTheOthersWaitForIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := account.New(account.Config{}).Guard("a", account.Limits{PerSecond: 0.1, Burst: 1, Concurrency: 1})
		leave, err := g.Enter(t.Context())
		require.NoError(t, err)
		began := time.Now()
		require.NoError(t, call(account.Urgent(t.Context()), g, ok), "although one is under way and there is no token")
		require.LessOrEqual(t, time.Since(began), 2*time.Second)
		leave(ok)
		_, again := g.Allowance()
		require.Greater(t, again, 15*time.Second, "the rate is kept in the long run")
	})
}

// --- concurrency

func TestNoMoreCallsAreUnderWayThanMayBe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := account.New(account.Config{}).Guard("a", account.Limits{Concurrency: 2, PerSecond: 1000, Burst: 1000})
		first, err := g.Enter(t.Context())
		require.NoError(t, err)
		second, err := g.Enter(t.Context())
		require.NoError(t, err)
		calls, _ := g.Allowance()
		require.Zero(t, calls)
		requireBusy(t, account.Concurrency, call(t.Context(), g, ok))

		entered := make(chan error)
		go func() { entered <- call(t.Context(), g, ok) }()
		pass(time.Second)
		first(ok)
		require.NoError(t, <-entered, "a call that waits gets the place")
		second(ok)
		calls, _ = g.Allowance()
		require.Equal(t, 2, calls)
	})
}

func TestACallerThatGivesUpLeavesItsPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := account.New(account.Config{}).Guard("a", account.Limits{Concurrency: 1})
		leave, err := g.Enter(t.Context())
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, call(ctx, g, ok), context.DeadlineExceeded)
		leave(ok)
		require.NoError(t, call(t.Context(), g, ok))
	})
}

// --- breaker

func TestACAThatDoesNotAnswerIsLeftAloneUntilOneProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var told []string
		g := account.New(account.Config{OnAvailable: func(key string) { told = append(told, key) }}).Guard("a", account.Limits{})
		trip(t, g)
		began := time.Now()
		busy := requireBusy(t, account.BreakerOpen, call(t.Context(), g, ok))
		require.Zero(t, time.Since(began), "the refusal takes no time")
		require.Equal(t, 15*time.Second, busy.After)
		calls, again := g.Allowance()
		require.Zero(t, calls)
		require.Equal(t, 15*time.Second, again)

		pass(again + time.Millisecond)
		require.Equal(t, account.HalfOpen, g.State())
		calls, _ = g.Allowance()
		require.Equal(t, 1, calls, "one probe")
		probe, err := g.Enter(t.Context())
		require.NoError(t, err)
		calls, again = g.Allowance()
		require.Zero(t, calls, "and no second one while it is under way")
		require.Positive(t, again)
		requireBusy(t, account.BreakerOpen, call(t.Context(), g, ok))
		probe(failed)
		require.Equal(t, account.Open, g.State())
		require.Empty(t, told)

		pass(15*time.Second + time.Millisecond)
		require.NoError(t, call(t.Context(), g, ok))
		require.Equal(t, account.Closed, g.State())
		require.Equal(t, []string{"a"}, told, "who waits is told at once")
		calls, _ = g.Allowance()
		require.Equal(t, 8, calls, "and may use the whole quota")
	})
}

func TestARefusalIsAnAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := account.New(account.Config{}).Guard("a", account.Limits{PerSecond: 1000, Burst: 1000})
		for range 100 {
			for range 4 {
				require.NoError(t, call(t.Context(), g, failed))
			}
			require.NoError(t, call(t.Context(), g, ok))
		}
		require.Equal(t, account.Closed, g.State())
	})
}

func TestAnUrgentCallPassesAnOpenBreakerAndClosesItWhenTheCAIsBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		told := 0
		g := account.New(account.Config{OnAvailable: func(string) { told++ }}).Guard("a", account.Limits{})
		trip(t, g)
		require.NoError(t, call(account.Urgent(t.Context()), g, failed))
		require.Equal(t, account.Open, g.State())
		require.NoError(t, call(account.Urgent(t.Context()), g, ok))
		require.Equal(t, account.Closed, g.State())
		require.Equal(t, 1, told)
		require.NoError(t, call(t.Context(), g, ok))
	})
}

// --- rest

func TestACAThatAsksForRestGetsIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := account.New(account.Config{}).Guard("a", account.Limits{})
		require.NoError(t, call(t.Context(), g, account.Result{Throttled: true, RetryAfter: 90 * time.Second}))
		require.Equal(t, account.Closed, g.State(), "it did answer")
		busy := requireBusy(t, account.Throttled, call(t.Context(), g, ok))
		require.Equal(t, 90*time.Second, busy.After)
		calls, again := g.Allowance()
		require.Zero(t, calls)
		require.Equal(t, 90*time.Second, again)
		pass(again)
		require.NoError(t, call(t.Context(), g, ok))
	})
}

func TestWithoutATimeTheRestGrowsAndOneMomentCountsOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := account.New(account.Config{}).Guard("a", account.Limits{Concurrency: 4, PerSecond: 1000, Burst: 1000})
		for _, want := range []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second} {
			var leaves []func(account.Result)
			for range 4 {
				leave, err := g.Enter(t.Context())
				require.NoError(t, err)
				leaves = append(leaves, leave)
			}
			for _, leave := range leaves {
				leave(account.Result{Throttled: true})
			}
			_, again := g.Allowance()
			require.Equal(t, want, again)
			pass(again)
		}
		for range 10 {
			require.NoError(t, call(t.Context(), g, account.Result{Throttled: true}))
			_, again := g.Allowance()
			require.LessOrEqual(t, again, 5*time.Minute)
			pass(again)
		}
	})
}

func TestACallFromBeforeTheRestDoesNotEndIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		told := 0
		g := account.New(account.Config{OnAvailable: func(string) { told++ }}).Guard("a", account.Limits{})
		early, err := g.Enter(t.Context())
		require.NoError(t, err)
		pass(time.Second)
		require.NoError(t, call(t.Context(), g, account.Result{Throttled: true, RetryAfter: time.Minute}))
		early(ok)
		requireBusy(t, account.Throttled, call(t.Context(), g, ok))
		pass(time.Second)
		require.NoError(t, call(account.Urgent(t.Context()), g, ok), "what a person asks for is asked")
		require.NoError(t, call(t.Context(), g, ok), "and its answer ends the rest")
		require.Equal(t, 1, told)
	})
}

func TestAMistakenHeaderDoesNotPutAnAccountToSleepForEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := account.New(account.Config{}).Guard("a", account.Limits{})
		require.NoError(t, call(t.Context(), g, account.Result{Throttled: true, RetryAfter: 1000 * time.Hour}))
		_, again := g.Allowance()
		require.LessOrEqual(t, again, time.Hour)
	})
}

func TestABusyErrorSaysWhyAndForHowLong(t *testing.T) {
	t.Parallel()
	err := error(&account.BusyError{Reason: account.Throttled, After: 1500 * time.Millisecond})
	require.EqualError(t, err, "the CA account is not called for 1.5s: THROTTLED")
	_, is := errors.AsType[*account.BusyError](errors.Join(errors.New("poll"), err))
	require.True(t, is)
}
