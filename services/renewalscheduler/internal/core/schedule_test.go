package core

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

func someStart() time.Time { return time.Date(2029, 3, 15, 12, 0, 0, 0, time.UTC) }

func drawPolicy(t *rapid.T) *store.Policy {
	p := &store.Policy{ID: "pol-x", Automatic: true, MaxAttempts: 5}
	switch rapid.IntRange(0, 2).Draw(t, "rule") {
	case 1:
		p.RenewAtFraction = rapid.Float64Range(0.000001, 0.999999).Draw(t, "fraction")
	case 2:
		p.RenewBefore = time.Duration(rapid.Int64Range(60, 20*365*86400).Draw(t, "before")) * time.Second
	}
	return p
}

func drawValidity(t *rapid.T) validity {
	start := someStart().Add(time.Duration(rapid.Int64Range(0, 10*365*86400).Draw(t, "start")) * time.Second)
	// Both ends of the range, and the short lives in between, are as likely as the long ones.
	lifetime := rapid.OneOf(rapid.Int64Range(600, 3600), rapid.Int64Range(3600, 7*86400), rapid.Int64Range(7*86400, 3650*86400)).Draw(t, "lifetime")
	return validity{start, start.Add(time.Duration(lifetime) * time.Second)}
}

func drawFreezes(t *rapid.T, v validity) []store.FreezeWindow {
	lifetime := int64(v.notAfter.Sub(v.notBefore) / time.Second)
	out := make([]store.FreezeWindow, rapid.IntRange(0, 8).Draw(t, "windows"))
	for i := range out {
		start := v.notBefore.Add(time.Duration(rapid.Int64Range(-lifetime, lifetime).Draw(t, "window start")) * time.Second)
		out[i] = store.FreezeWindow{Start: start, End: start.Add(time.Duration(rapid.Int64Range(1, 2*lifetime).Draw(t, "window length")) * time.Second)}
	}
	return out
}

func TestARenewalAlwaysLiesInsideTheLifetimeWithRoomBeforeTheEnd(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p, v := drawPolicy(t), drawValidity(t)
		p.FreezeWindows = drawFreezes(t, v)
		lifetime := v.notAfter.Sub(v.notBefore)

		r := renewalOf(p, rapid.String().Draw(t, "id"), v, time.Time{})

		require.False(t, r.Time.Before(v.notBefore.Add(lifetime/earliestPart)), "too early: %s of %s", r.Time.Sub(v.notBefore), lifetime)
		left := v.notAfter.Sub(r.Due)
		require.GreaterOrEqual(t, left, endMargin(lifetime))
		require.GreaterOrEqual(t, v.notAfter.Sub(r.Time), left/freezePart, "the freeze took the margin")
		require.False(t, r.Time.Before(r.Due))
	})
}

func TestARenewalWithoutFreezeIsAtMostTheSpreadLate(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p, v := drawPolicy(t), drawValidity(t)
		r := renewalOf(p, rapid.String().Draw(t, "id"), v, time.Time{})
		require.Equal(t, r.Due.Add(r.Spread), r.Time)
		require.Less(t, r.Spread, max(v.notAfter.Sub(r.Due)/spreadPart, 1))
		require.Nil(t, r.Frozen)
		require.Equal(t, r, renewalOf(p, "", v, time.Time{}).withSpreadOf(r), "only the spread depends on the id")
	})
}

// withSpreadOf is the renewal of another certificate under the same policy.
func (r renewal) withSpreadOf(o renewal) renewal {
	r.Spread, r.Time = o.Spread, o.Time
	return r
}

func TestAFreezeWindowIsKeptUnlessTheCertificateWouldComeTooNearItsEnd(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p, v := drawPolicy(t), drawValidity(t)
		p.FreezeWindows = drawFreezes(t, v)
		r := renewalOf(p, "cert-1", v, time.Time{})
		if !r.Forced {
			require.Nil(t, frozenAt(p, r.Time))
			return
		}
		require.NotNil(t, r.Frozen)
		require.Equal(t, later(r.Due.Add(r.Spread), v.notAfter.Add(-v.notAfter.Sub(r.Due)/freezePart-r.Spread)), r.Time)
	})
}

func TestRenewalTimes(t *testing.T) {
	t.Parallel()
	day := 24 * time.Hour
	for _, c := range []struct {
		name     string
		policy   store.Policy
		lifetime time.Duration
		want     time.Duration
	}{
		{"the default is two thirds", store.Policy{}, 90 * day, 60 * day},
		{"ten minutes", store.Policy{}, 10 * time.Minute, 400 * time.Second},
		{"ten years", store.Policy{}, 3650 * day, 3650 * day * 2 / 3},
		{"a fraction", store.Policy{RenewAtFraction: 0.5}, 90 * day, 45 * day},
		{"a duration before the end", store.Policy{RenewBefore: 30 * day}, 398 * day, 368 * day},
		{"a duration that still leaves a third", store.Policy{RenewBefore: 30 * day}, 47 * day, 17 * day},
		{"too short for the duration", store.Policy{RenewBefore: 30 * day}, 6 * day, 4 * day},
		{"31 days are too short for 30", store.Policy{RenewBefore: 30 * day}, 33 * day, 22 * day},
		{"a fraction too near to the end", store.Policy{RenewAtFraction: 0.9999}, 10 * time.Minute, 9 * time.Minute},
		{"a fraction too near to the start", store.Policy{RenewAtFraction: 0.0001}, 90 * day, 9 * day},
		{"a duration of a second", store.Policy{RenewBefore: time.Second}, 90 * day, 90*day - time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := validity{someStart(), someStart().Add(c.lifetime)}
			r := renewalOf(&c.policy, "cert-1", v, time.Time{})
			require.WithinDuration(t, someStart().Add(c.want), r.Due, time.Second)
		})
	}
}

func TestEqualCertificatesAreSpreadEvenly(t *testing.T) {
	t.Parallel()
	v := validity{someStart(), someStart().Add(90 * 24 * time.Hour)}
	const buckets, certificates = 10, 10_000
	var seen [buckets]int
	for i := range certificates {
		r := renewalOf(&store.Policy{}, fmt.Sprintf("cert-0197-%08d", i), v, time.Time{})
		seen[int(r.Spread*buckets/(3*24*time.Hour))]++
	}
	for _, n := range seen {
		require.InDelta(t, certificates/buckets, n, certificates/buckets/5)
	}
}

func TestTheEndOfAFreezeIsNoStampede(t *testing.T) {
	t.Parallel()
	v := validity{someStart(), someStart().Add(90 * 24 * time.Hour)}
	p := &store.Policy{FreezeWindows: []store.FreezeWindow{{Start: someStart().Add(59 * 24 * time.Hour), End: someStart().Add(70 * 24 * time.Hour)}}}
	times := map[time.Time]bool{}
	for i := range 1000 {
		r := renewalOf(p, fmt.Sprintf("cert-%d", i), v, time.Time{})
		require.NotNil(t, r.Frozen)
		times[r.Time] = true
	}
	require.Greater(t, len(times), 950)
}

func TestFreshJobsAfterFailuresComeBeforeTheEndAndNeverStop(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		left := time.Duration(rapid.Int64Range(60, 3650*86400).Draw(t, "left")) * time.Second
		failures := rapid.IntRange(1, 1000).Draw(t, "failures")
		d := delayAfter(failures, left)
		require.Less(t, d, left)
		require.GreaterOrEqual(t, d, minDelay)
		require.LessOrEqual(t, d, maxDelay)
		require.LessOrEqual(t, d, delayAfter(failures+1, left), "delays grow")
		expired := delayAfter(failures, -left)
		require.GreaterOrEqual(t, expired, firstDelay)
		require.LessOrEqual(t, expired, maxDelay)
	})
}
