package core_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

const ownDeadline = days

// last gives what issuance was told last of an order.
func (h *hall) last(id string) core.Result {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range slices.Backward(h.told) {
		if r.OrderID == id {
			return r
		}
	}
	return core.Result{}
}

func TestAnOrderIsAskedAboutUntilItsOwnDeadlineAndThenOnceMore(t *testing.T) {
	t.Parallel()
	inHall(t, map[string]*clerk{"ca": {answer: pendingWithoutAWish}}, func(h *hall) {
		began := time.Now()
		h.add("ca", 1, 0)
		pass(9 * time.Minute)
		require.Empty(t, h.last("ca-000000").Reason, "somebody waits for it")
		pass(2 * time.Minute)
		require.Equal(t, core.ReasonStillPending, h.last("ca-000000").Reason, "the wait budget is over")
		require.Equal(t, core.StillPending, h.last("ca-000000").Outcome)
		pass(ownDeadline - 2*time.Hour)
		require.Equal(t, core.StillPending, h.last("ca-000000").Outcome)
		require.Equal(t, core.Waiting, h.row("ca-000000").State)
		slow := h.calls("ca", began.Add(20*time.Minute))
		for i := 1; i < len(slow); i++ {
			gap := slow[i].Sub(slow[i-1])
			require.GreaterOrEqual(t, gap, 15*time.Minute)
			require.LessOrEqual(t, gap, time.Hour+10*time.Second)
		}
		pass(3 * time.Hour)
		require.Equal(t, core.Failed, h.last("ca-000000").Outcome)
		require.Equal(t, core.ReasonDeadline, h.last("ca-000000").Reason)
		calls := h.calls("ca", time.Time{})
		require.WithinDuration(t, began.Add(ownDeadline), calls[len(calls)-1], 10*time.Second, "it was asked for the last time then")
		row := h.row("ca-000000")
		require.Equal(t, core.Done, row.State)
		end := row.History[len(row.History)-1]
		require.Equal(t, core.ResultFailed, end.Result)
		require.Equal(t, core.ReasonDeadline, end.Reason)
		require.True(t, end.NextTime.IsZero())
		require.Equal(t, core.ResultPending, row.History[0].Result)
		require.Equal(t, 2, row.History[1].Attempt)
	})
}

func TestAnOrderThatCouldNotBeAskedAboutAtItsDeadlineIsNotGivenUpAtOnce(t *testing.T) {
	t.Parallel()
	inHall(t, map[string]*clerk{"ca": {answer: pendingWithoutAWish}, "gone": {answer: pendingWithoutAWish}}, func(h *hall) {
		began := time.Now()
		h.add("ca", 1, 0)
		h.add("gone", 1, 0)
		pass(ownDeadline - 2*time.Hour)
		h.do(func() { h.cas["ca"].answer, h.cas["gone"].answer = down, down })
		pass(12 * time.Hour)
		require.Equal(t, core.Waiting, h.row("ca-000000").State, "perhaps it is issued, and paid for")
		require.Equal(t, core.ReasonUnavailable, h.last("ca-000000").Reason)
		h.do(func() { h.cas["ca"].answer = issued })
		pass(2 * time.Hour)
		require.Equal(t, core.Done, h.row("ca-000000").State)
		require.Equal(t, core.Issued, h.last("ca-000000").Outcome)

		pass(24 * time.Hour)
		require.Equal(t, core.Done, h.row("gone-000000").State, "but not for ever")
		require.Equal(t, core.ReasonDeadline, h.last("gone-000000").Reason)
		calls := h.calls("gone", time.Time{})
		require.WithinDuration(t, began.Add(ownDeadline+days), calls[len(calls)-1], 10*time.Second)
	})
}
