package core

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEveryPairOfStatesIsAllowedOrRefusedByTheTable(t *testing.T) {
	t.Parallel()
	allowed := map[[2]string]bool{
		{Created, Submitting}: true, {Created, Failed}: true, {Created, Cancelled}: true,
		{Submitting, Created}: true, {Submitting, Pending}: true, {Submitting, Issued}: true, {Submitting, Rejected}: true,
		{Submitting, Failed}: true, {Submitting, Unknown}: true, {Submitting, Submitting}: true,
		{Pending, Pending}: true, {Pending, Issued}: true, {Pending, Rejected}: true, {Pending, Failed}: true, {Pending, Cancelled}: true,
		{Unknown, Unknown}: true, {Unknown, Submitting}: true, {Unknown, Pending}: true, {Unknown, Issued}: true, {Unknown, Rejected}: true,
		{Unknown, Failed}: true, {Unknown, Cancelled}: true,
	}
	for _, from := range States() {
		for _, to := range States() {
			require.Equal(t, allowed[[2]string{from, to}], CanMove(from, to), "%s to %s", from, to)
		}
	}
}

func TestTheDatabaseMovesAnOrderOnlyAsTheTableSays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := request(t, DefaultIssuerID)
	_, err := w.Submit(w.ctx(), r)
	require.NoError(t, err)
	for _, from := range States() {
		for _, to := range States() {
			_, err := w.deps.DB.Pool.Exec(w.ctx(), `UPDATE orders SET status = $2,
 due_time = CASE WHEN $3 THEN NULL ELSE now() END, end_time = CASE WHEN $3 THEN now() END WHERE id = $1`, r.OrderID, from, final(from))
			require.NoError(t, err)
			o := w.order(r.OrderID)

			_, err = w.move(w.ctx(), o, transition{to: to, change: func(o *orderRow) { o.DueTime = w.now() }})

			if CanMove(from, to) {
				require.NoError(t, err, "%s to %s", from, to)
				require.Equal(t, to, w.order(r.OrderID).Status)
				continue
			}
			require.Error(t, err, "%s to %s", from, to)
			require.Equal(t, from, w.order(r.OrderID).Status)
		}
	}
}

func TestAStateThatDoesNotExistIsRefusedByTheDatabase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := request(t, DefaultIssuerID)
	_, err := w.Submit(w.ctx(), r)
	require.NoError(t, err)
	for _, statement := range []string{
		`UPDATE orders SET status = 'LOST'`,
		`UPDATE orders SET due_time = now()`,                    // final, and due
		`UPDATE orders SET status = 'PENDING', end_time = NULL`, // not final, and never due
	} {
		_, err = w.deps.DB.Pool.Exec(w.ctx(), statement)
		require.ErrorContains(t, err, "23514", statement)
	}
}

func TestAStaleCopyMovesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := request(t, fakeIssuer)
	w.fake.PlanOrder(r.OrderID, pendingPlan())
	stale, err := w.Submit(w.ctx(), r)
	require.NoError(t, err)
	_, err = w.RecordPoll(w.ctx(), PollResult{OrderID: r.OrderID, Outcome: Pending, Attempts: 3})
	require.NoError(t, err)

	o, err := w.move(w.ctx(), stale, transition{to: Failed, change: func(*orderRow) {}})

	require.NoError(t, err)
	require.Equal(t, Pending, o.Status, "the answer is the order as it is")
	require.Equal(t, Pending, w.order(r.OrderID).Status)
}
