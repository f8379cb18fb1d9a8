package store_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

func quota(account string, calls int) core.Quota { return core.Quota{Account: account, Calls: calls} }

func TestAClaimTakesNoMoreThanTheAccountsAllow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, id := range []string{"a", "b", "c", "d"} {
		b.add(t, id, 50)
	}
	_, err := b.db.Pool.Exec(t.Context(), `UPDATE polls SET due_time = now() - interval '1 day' + right(order_id, 6)::integer * interval '1 ms'`)
	require.NoError(t, err)
	got := b.claim(t, core.Claim{Limit: 100, PerIssuer: 8, Quotas: map[string]core.Quota{
		"a": quota("one", 5), "b": quota("one", 5), // two issuers with one account share what it allows
		"c": quota("two", 0), // its breaker is open
		"d": quota("three", 99),
	}})
	taken := count(got)
	require.Equal(t, 5, taken["a"]+taken["b"])
	require.Equal(t, 3, taken["a"], "and the oldest due come first, whoever's they are")
	require.Zero(t, taken["c"])
	require.Equal(t, 8, taken["d"], "an account that allows more has no more than its share")

	rest := b.claim(t, core.Claim{Limit: 100, PerIssuer: 50})
	require.Equal(t, map[string]int{"a": 47, "b": 48, "c": 50, "d": 42}, count(append(slices.Clone(rest), b.claim(t, core.Claim{Limit: 100, PerIssuer: 50})...)),
		"rows that were looked at and not taken are free")
}

func TestWhatSomebodyAskedForIsClaimedBeyondTheAllowanceAndTheShare(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 20)
	b.hasten(t, "a-000015")
	c := core.Claim{Limit: 100, PerIssuer: 8, Hastened: 2, Quotas: map[string]core.Quota{"a": quota("one", 0)}}
	got := b.claim(t, c)
	require.Len(t, got, 1)
	require.Equal(t, "a-000015", got[0].Lease.ID)
	require.True(t, got[0].Poll.Hastened)

	for _, id := range []string{"a-000016", "a-000017", "a-000018"} {
		b.hasten(t, id)
	}
	c.Busy = map[string]int{"a": 8}
	require.Len(t, b.claim(t, c), 2, "two more than the share: a CA that hangs has no more slots than that")
	c.Busy = map[string]int{"a": 10}
	require.Empty(t, b.claim(t, c))
	c.Busy, c.Quotas = map[string]int{"a": 3}, nil
	got = b.claim(t, c)
	require.Len(t, got, 5, "with the one that was asked for in the share")
	require.Equal(t, 1, hastened(got))
}

func (b bundle) hasten(t *testing.T, id string) core.Poll {
	t.Helper()
	p, ok, err := b.Hasten(t.Context(), id)
	require.NoError(t, err)
	require.True(t, ok)
	return p
}

func hastened(list []core.Claimed) (n int) {
	for _, c := range list {
		if c.Poll.Hastened {
			n++
		}
	}
	return n
}

func TestWhatSomebodyAskedForComesFirst(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 20)
	b.hasten(t, "a-000020")
	got := b.claim(t, core.Claim{Limit: 1, PerIssuer: 8, Hastened: 2})
	require.Equal(t, "a-000020", got[0].Lease.ID)
}

func TestAHastenedPollIsSoUntilItIsAnswered(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 1)
	is := func() bool {
		got, err := b.Get(t.Context(), "a-000001")
		require.NoError(t, err)
		return got[0].Hastened
	}
	for _, end := range []func(c core.Claimed) error{
		func(c core.Claimed) error { return b.Reschedule(t.Context(), c.Lease, core.Note{}, time.Now()) },
		func(c core.Claimed) error {
			return b.End(t.Context(), c.Lease, core.Note{}, core.Done, c.Poll.DeadlineTime)
		},
	} {
		require.False(t, is())
		b.hasten(t, "a-000001")
		require.True(t, is())
		c := b.claim(t, core.Claim{Limit: 1, PerIssuer: 1})[0]
		require.NoError(t, b.Defer(t.Context(), c.Lease, time.Now().Add(-time.Second), c.Poll.Hastened))
		require.True(t, is(), "nobody has answered")
		c = b.claim(t, core.Claim{Limit: 1, PerIssuer: 1})[0]
		require.True(t, c.Poll.Hastened)
		require.NoError(t, end(c))
	}
	require.False(t, is())
}

func TestAPollThatIsHastenedWhileItIsClaimedStaysDueIfNobodyWasAsked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 1)
	c := b.claim(t, core.Claim{Limit: 1, PerIssuer: 1})[0]
	require.False(t, c.Poll.Hastened)
	p := b.hasten(t, "a-000001")
	require.Equal(t, core.Leased, p.State)
	require.True(t, p.Hastened)
	require.NoError(t, b.Defer(t.Context(), c.Lease, time.Now().Add(time.Hour), c.Poll.Hastened))
	c = b.claim(t, core.Claim{Limit: 1, PerIssuer: 1})[0]
	require.True(t, c.Poll.Hastened)
	due := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	require.NoError(t, b.Defer(t.Context(), c.Lease, due, c.Poll.Hastened))
	got, err := b.Get(t.Context(), "a-000001")
	require.NoError(t, err)
	require.True(t, due.Equal(got[0].DueTime), "but one that was hastened before waits as it was told")
	require.True(t, got[0].Hastened)
}

func TestADeferredPollHasNotBeenTried(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 1)
	due := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	c := b.claim(t, core.Claim{Limit: 1, PerIssuer: 1})[0]
	require.NoError(t, b.Defer(t.Context(), c.Lease, due, false))
	got, err := b.Get(t.Context(), "a-000001")
	require.NoError(t, err)
	require.Equal(t, core.Waiting, got[0].State)
	require.Zero(t, got[0].Attempts)
	require.True(t, due.Equal(got[0].DueTime))
	histories, err := b.Histories(t.Context(), "a-000001")
	require.NoError(t, err)
	require.Empty(t, histories)
	require.Error(t, b.Defer(t.Context(), c.Lease, due, false), "the lease is gone")
}
