package core_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // a constant

const (
	budget = 10 * time.Minute
	days   = 24 * time.Hour
)

// drawing gives a schedule whose jitter is a share of what it may be.
func drawing(share float64) core.Schedule {
	return core.Schedule{Draw: func(n time.Duration) time.Duration { return min(time.Duration(share*float64(n)), n-1) }}
}

func TestTheLongestWaitsAreThreeTimesFiveSecondsThenGrow(t *testing.T) {
	t.Parallel()
	s := drawing(1)
	for attempts, want := range map[int]time.Duration{
		1: 5 * time.Second, 2: 5 * time.Second, 3: 5 * time.Second, 4: 10 * time.Second, 5: 20 * time.Second, 6: 40 * time.Second,
		8: 160 * time.Second, 9: 5 * time.Minute, 10: 5 * time.Minute, 1000: 5 * time.Minute,
	} {
		at := s.Next(core.Moment{Now: epoch, Attempts: attempts, WatchTime: epoch, Budget: budget, Deadline: epoch.Add(3 * days)})
		require.Equal(t, want, at.Sub(epoch), "attempt %d", attempts)
	}
}

func TestTheEndOfTheBudgetIsNotSleptThrough(t *testing.T) {
	t.Parallel()
	now := epoch.Add(budget - time.Minute)
	at := drawing(1).Next(core.Moment{Now: now, Attempts: 20, WatchTime: epoch, Budget: budget, Deadline: epoch.Add(3 * days)})
	require.Equal(t, epoch.Add(budget), at)
	at = drawing(0).Next(core.Moment{Now: at, Attempts: 21, WatchTime: epoch, Budget: budget, Deadline: epoch.Add(3 * days)})
	require.Equal(t, epoch.Add(budget+15*time.Minute), at)
}

func TestNextKeepsItsPromises(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		seconds := func(label string, from, to int) time.Duration {
			return time.Duration(rapid.IntRange(from, to).Draw(t, label)) * time.Second
		}
		m := core.Moment{
			WatchTime: epoch, Now: epoch.Add(seconds("now", 0, 400_000)), Attempts: rapid.IntRange(1, 5000).Draw(t, "attempts"),
			Budget: seconds("budget", 0, 7200), RetryAfter: seconds("retry after", 0, 1_000_000),
		}
		m.Deadline = m.Now.Add(seconds("deadline", 1, 1_000_000))
		at := core.Schedule{}.Next(m)
		wait := at.Sub(m.Now)
		require.False(t, at.After(m.Deadline), "nothing is due after the deadline")
		require.Positive(t, wait, "and nothing at once")
		switch {
		case at.Equal(m.Deadline):
		case m.RetryAfter > 0:
			require.Equal(t, m.RetryAfter, wait, "the wish of the CA wins")
		case m.Now.Before(epoch.Add(m.Budget)):
			require.LessOrEqual(t, wait, 5*time.Minute)
			require.False(t, at.After(epoch.Add(m.Budget)))
			require.True(t, wait >= time.Second || at.Equal(epoch.Add(m.Budget)))
		default:
			require.GreaterOrEqual(t, wait, 15*time.Minute)
			require.LessOrEqual(t, wait, time.Hour)
		}
	})
}

func TestTheJitterIsSpreadOverTheWholeWait(t *testing.T) {
	t.Parallel()
	early, late := 0, 0
	for range 2000 {
		at := core.Schedule{}.Next(core.Moment{Now: epoch, Attempts: 9, WatchTime: epoch, Budget: budget, Deadline: epoch.Add(3 * days)})
		if at.Sub(epoch) < 150*time.Second {
			early++
		} else {
			late++
		}
	}
	require.Greater(t, early, 800)
	require.Greater(t, late, 800)
}

func TestEveryPairOfStatesIsAllowedOrRefused(t *testing.T) {
	t.Parallel()
	allowed := map[[2]string]bool{
		{core.Waiting, core.Leased}: true, {core.Waiting, core.Done}: true, {core.Waiting, core.Abandoned}: true,
		{core.Leased, core.Waiting}: true, {core.Leased, core.Done}: true, {core.Leased, core.Abandoned}: true,
		{core.Done, core.Waiting}: true, {core.Abandoned, core.Waiting}: true,
	}
	for _, from := range core.States() {
		for _, to := range core.States() {
			require.Equal(t, allowed[[2]string{from, to}], core.CanMove(from, to), "%s to %s", from, to)
		}
	}
}
