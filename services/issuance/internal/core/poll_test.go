package core

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/errs"
	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// orderRow is an order as a transition changes it.
type orderRow = store.Order

func pendingPlan() issuertest.Plan { return issuertest.Plan{Polls: 1, RetryAfter: 30 * time.Second} }

// pending places an order that the CA answers later.
func (w *world) pending() SubmitRequest {
	w.t.Helper()
	r := request(w.t, fakeIssuer)
	w.fake.PlanOrder(r.OrderID, pendingPlan())
	o, err := w.Submit(w.ctx(), r)
	require.NoError(w.t, err)
	require.Equal(w.t, Pending, o.Status)
	return r
}

// answer polls the fake CA as asyncpoller does until it has an answer.
func (w *world) answer(orderID string) PollResult {
	w.t.Helper()
	ref, err := decodeReference(string(w.order(orderID).CAReference))
	require.NoError(w.t, err)
	for range 5 {
		s, err := w.fake.Poll(w.ctx(), ref)
		require.NoError(w.t, err)
		if s.State == issuer.Issued {
			return PollResult{OrderID: orderID, Outcome: Issued, CertificatePEM: string(s.CertificatePEM) + string(s.ChainPEM), Attempts: 2}
		}
	}
	w.t.Fatal("the fake CA never issues")
	return PollResult{}
}

func TestAPendingOrderIsWatchedAndIssuedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.pending()
	watch := w.events("order.pending", r.OrderID)
	require.Len(t, watch, 1)
	var payload asyncpollerv1.CreatePollRequest
	require.NoError(t, watch[0].GetPayload().UnmarshalTo(&payload))
	require.Equal(t, fakeIssuer, payload.GetIssuerId())
	require.Contains(t, payload.GetCaReference(), "fake_order")
	require.WithinDuration(t, time.Now().Add(30*time.Second), payload.GetDueTime().AsTime(), 5*time.Second)
	require.WithinDuration(t, time.Now().Add(30*24*time.Hour), payload.GetDeadlineTime().AsTime(), 5*time.Second)

	next := time.Now().Add(time.Minute)
	o, err := w.RecordPoll(w.ctx(), PollResult{OrderID: r.OrderID, Outcome: Pending, Attempts: 1, NextPollTime: next})
	require.NoError(t, err)
	require.Equal(t, Pending, o.Status)
	require.WithinDuration(t, next, w.order(r.OrderID).NextPollTime, time.Millisecond)

	result := w.answer(r.OrderID)
	for range 3 {
		o, err = w.RecordPoll(w.ctx(), result)
		require.NoError(t, err)
		require.Equal(t, Issued, o.Status)
	}
	require.Equal(t, 1, w.certificates(r.OrderID))
	require.Len(t, w.events("certificate.issued", r.CertificateID), 1)
	require.EqualValues(t, 2, o.PollAttempts)

	o, err = w.RecordPoll(w.ctx(), PollResult{OrderID: r.OrderID, Outcome: Failed})
	require.NoError(t, err, "late news change nothing")
	require.Equal(t, Issued, o.Status)
}

func TestAPollResultIsCheckedLikeAnyCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, other := w.pending(), w.pending()
	result := w.answer(other.OrderID)
	result.OrderID = r.OrderID

	o, err := w.RecordPoll(w.ctx(), result)

	require.NoError(t, err)
	require.Equal(t, Failed, o.Status)
	require.Equal(t, reasonMismatch, o.ErrorReason)
	require.Zero(t, w.certificates(r.OrderID))
}

func TestACertificateForACancelledOrderIsOnRecordAndCanBeRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.pending()
	result := w.answer(r.OrderID)
	_, err := w.Cancel(w.ctx(), r.OrderID)
	require.NoError(t, err)

	for range 2 {
		o, err := w.RecordPoll(w.ctx(), result)
		require.NoError(t, err)
		require.Equal(t, Cancelled, o.Status)
	}

	require.Equal(t, 1, w.certificates(r.OrderID))
	require.Empty(t, w.events("certificate.issued", r.CertificateID))
	done, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: keyCompromise})
	require.NoError(t, err)
	require.True(t, done)
}

func TestTheDeadlineOfAPendingOrderIsThatOfItsIssuer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	days := 3 * 24 * time.Hour
	require.NoError(t, w.tx(func(ctx context.Context, tx pgx.Tx) error {
		_, err := w.UpdateIssuer(ctx, tx, fakeIssuer, 0, IssuerEdit{PendingDeadline: &days})
		return err
	}))
	o := w.order(w.pending().OrderID)
	require.WithinDuration(t, time.Now().Add(days), o.DeadlineTime, time.Minute)
	require.WithinDuration(t, time.Now().Add(24*time.Hour), o.DueTime, time.Minute, "and it is looked after each day")
}

func TestAPendingOrderIsLookedAfterEachDay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.pending()
	before := w.order(r.OrderID)
	w.clock.turn(25 * time.Hour)
	w.reconcile(w.Core)
	after := w.order(r.OrderID)
	require.Equal(t, Pending, after.Status)
	require.Equal(t, before.DeadlineTime, after.DeadlineTime, "the deadline is the order's own")
	require.Len(t, w.events("order.pending", r.OrderID), 2, "the watch is made again if it was lost")
}

func TestRejectedAndFailedPollsEndTheOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, outcome := range []string{Rejected, Failed} {
		r := w.pending()
		o, err := w.RecordPoll(w.ctx(), PollResult{OrderID: r.OrderID, Outcome: outcome, Message: "no such domain"})
		require.NoError(t, err)
		require.Equal(t, outcome, o.Status)
		require.Equal(t, "no such domain", o.ErrorMessage)
		require.NotEmpty(t, o.ErrorReason)
	}
}

func TestAPendingOrderWhoseWatchEndedIsWatchedAgainAndNeverBoughtTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.pending()
	w.clock.turn(31 * 24 * time.Hour)
	o, err := w.Submit(w.ctx(), r)
	require.NoError(t, err)
	require.Equal(t, Pending, o.Status)
	require.Len(t, w.events("order.pending", r.OrderID), 1, "who looks at an order prolongs nothing")

	w.reconcile(w.Core) // the watch was lost altogether
	require.True(t, w.order(r.OrderID).DeadlineTime.After(w.now()))
	require.Len(t, w.events("order.pending", r.OrderID), 2)

	bought, err := w.fake.Bought(r.OrderID)
	require.NoError(t, err)
	require.Equal(t, 1, bought)
}

func TestPollingByHandAsksThePollerOrMakesAWatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.pending()
	_, err := w.Poll(w.ctx(), r.OrderID)
	require.NoError(t, err)
	require.Equal(t, []string{r.OrderID}, w.peers.polled)

	w.peers.pollErr = errs.New(errs.NotFound, "POLL_NOT_FOUND", "no such poll")
	_, err = w.Poll(w.ctx(), r.OrderID)
	require.NoError(t, err)
	require.Len(t, w.events("order.pending", r.OrderID), 2)

	w.peers.pollErr = errs.New(errs.Unavailable, "AWAY", "away")
	_, err = w.Poll(w.ctx(), r.OrderID)
	require.Equal(t, errs.Unavailable, errs.KindOf(err))
}

func TestCancellingFollowsTheState(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.pending()
	o, err := w.Cancel(w.ctx(), r.OrderID)
	require.NoError(t, err)
	require.Equal(t, Cancelled, o.Status)
	require.Equal(t, []string{r.OrderID}, w.peers.cancelled)

	issued := request(t, DefaultIssuerID)
	_, err = w.Submit(w.ctx(), issued)
	require.NoError(t, err)
	_, err = w.Cancel(w.ctx(), issued.OrderID)
	require.Equal(t, errs.Conflict, errs.KindOf(err))
	require.Equal(t, Issued, errs.MetaOf(err)["status"])

	_, err = w.Cancel(w.ctx(), "ord-none")
	require.Equal(t, "ORDER_NOT_FOUND", errs.ReasonOf(err))
}

func TestCredentialsAreForPolledIssuersOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.createIssuer(NewIssuer{ID: "iss-blind", Name: "Blind", Type: "blind", Enabled: true, Settings: Settings{"token": "s3cret"}})

	c, err := w.IssuerCredentials(w.ctx(), "iss-blind", "")
	require.NoError(t, err)
	require.JSONEq(t, `{"token":"s3cret"}`, string(c.Config))
	again, err := w.IssuerCredentials(w.ctx(), "iss-blind", c.ConfigHash)
	require.NoError(t, err)
	require.Empty(t, again.Config)

	_, err = w.IssuerCredentials(w.ctx(), DefaultIssuerID, "")
	require.Equal(t, errs.PermissionDenied, errs.KindOf(err), "the keys of the local CA stay here")
}

func TestNothingIsStuck(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pending()
	n, err := w.Stuck(context.WithoutCancel(w.ctx()))
	require.NoError(t, err)
	require.Zero(t, n)
	_, err = w.deps.DB.Pool.Exec(w.ctx(), `UPDATE orders SET due_time = now() - interval '2 hours'`)
	require.NoError(t, err)
	n, err = w.Stuck(w.ctx())
	require.NoError(t, err)
	require.Equal(t, 1, n)
}
