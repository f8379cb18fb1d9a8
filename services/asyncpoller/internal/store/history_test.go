package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

var asked = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // a constant

func entry(attempt int) core.Entry {
	at := asked.Add(time.Duration(attempt) * time.Minute)
	return core.Entry{
		Attempt: attempt, Time: at, Duration: 1234 * time.Millisecond, Result: core.ResultPending,
		Reason: "CA_STILL_PENDING", Message: fmt.Sprintf("answer %d", attempt), NextTime: at.Add(time.Hour),
	}
}

// ask has an order asked about n times.
func (b bundle) ask(t *testing.T, n int) lease.Lease {
	t.Helper()
	var l lease.Lease
	for range n {
		l = b.claim(t, core.Claim{Limit: 1, PerIssuer: 1})[0].Lease
		require.NoError(t, b.Reschedule(t.Context(), l, core.Note{Entry: entry(l.Attempts)}, time.Now().Add(-time.Hour)))
	}
	return l
}

func (b bundle) history(t *testing.T, id string) []core.Entry {
	t.Helper()
	got, err := b.Histories(t.Context(), id, "unknown")
	require.NoError(t, err)
	require.NotContains(t, got, "unknown")
	for i := range got[id] {
		got[id][i].Time, got[id][i].NextTime = got[id][i].Time.UTC(), got[id][i].NextTime.UTC()
	}
	return got[id]
}

func (b bundle) answers(t *testing.T) (n int) {
	t.Helper()
	require.NoError(t, b.db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM poll_answers`).Scan(&n))
	return n
}

func TestTheLastTwentyAnswersOfAnOrderAreKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 1)
	b.ask(t, 3)
	require.Equal(t, []core.Entry{entry(3), entry(2), entry(1)}, b.history(t, "a-000001"), "the newest first, whole")
	b.ask(t, 50)
	got := b.history(t, "a-000001")
	require.Len(t, got, core.HistorySize)
	for i, e := range got {
		require.Equal(t, 53-i, e.Attempt)
	}
	require.Equal(t, core.HistorySize, b.answers(t), "no row is left of the others")
}

func TestTheEndIsInTheHistoryAndALostLeaseIsNot(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 1)
	old := b.ask(t, 1)
	c := b.claim(t, core.Claim{Limit: 1, PerIssuer: 1})[0]
	late := entry(2)
	late.Result = core.ResultRejected
	require.ErrorIs(t, b.Reschedule(t.Context(), old, core.Note{Entry: late}, time.Now()), lease.ErrLost)
	require.ErrorIs(t, b.End(t.Context(), old, core.Note{Entry: late}, core.Done, c.Poll.DeadlineTime), lease.ErrLost)
	require.Len(t, b.history(t, "a-000001"), 1, "who has lost the lease writes nothing")

	end := entry(2)
	end.Result, end.NextTime = core.ResultIssued, time.Time{}
	require.NoError(t, b.End(t.Context(), c.Lease, core.Note{Entry: end}, core.Done, c.Poll.DeadlineTime))
	require.Equal(t, []core.Entry{end, entry(1)}, b.history(t, "a-000001"))
}

func TestAHistoryIsForgottenWithItsPoll(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 2)
	for range 4 {
		b.ask(t, 1)
	}
	for _, c := range b.claim(t, core.Claim{Limit: 2, PerIssuer: 2}) {
		require.NoError(t, b.End(t.Context(), c.Lease, core.Note{Entry: entry(c.Lease.Attempts)}, core.Done, c.Poll.DeadlineTime))
	}
	require.Equal(t, 6, b.answers(t))
	_, err := b.db.Pool.Exec(t.Context(), `UPDATE polls SET end_time = now() - interval '8 days' WHERE order_id = 'a-000001'`)
	require.NoError(t, err)
	n, err := b.Prune(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Empty(t, b.history(t, "a-000001"))
	require.Len(t, b.history(t, "a-000002"), b.answers(t))
}

func TestPendingOrdersAreCountedByIssuer(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 5)
	b.add(t, "b", 3)
	b.add(t, "c", 1)
	_, err := b.db.Pool.Exec(t.Context(), `UPDATE polls SET deadline_time = now() - interval '1 hour' WHERE order_id IN ('a-000002', 'a-000003')`)
	require.NoError(t, err)
	_, err = b.db.Pool.Exec(t.Context(), `UPDATE polls SET create_time = $1 WHERE order_id = 'b-000002'`, asked)
	require.NoError(t, err)
	require.NoError(t, b.Close(t.Context(), "c-000001", core.Done, ""))
	require.NoError(t, b.Close(t.Context(), "a-000003", core.Done, ""))
	got, err := b.Census(t.Context())
	require.NoError(t, err)
	require.Len(t, got, 2, "what has ended does not count")
	require.Equal(t, "a", got[0].IssuerID)
	require.Equal(t, 4, got[0].Orders)
	require.Equal(t, 1, got[0].Overdue)
	require.Equal(t, 3, got[1].Orders)
	require.Zero(t, got[1].Overdue)
	require.True(t, asked.Equal(got[1].Oldest))
}
