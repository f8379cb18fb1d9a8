package core

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/errs"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// commercial is a fake CA with what commercial ones have besides: accounts, lists, approvals, cancellation, re-issue.
type commercial struct {
	*issuertest.Fake

	guard *account.Guard

	mu        sync.Mutex
	listed    []issuer.ListedOrder
	approval  string // of revocations: "" none is needed, "pending", "approved", "rejected"
	asked     []issuer.RevokeRequest
	cancelled []issuer.Ref
	refuse    error // to Cancel
	previous  []issuer.Ref
	gate      chan struct{} // Submit waits for it
}

const (
	commercialType   = "commercial"
	commercialIssuer = "iss-commercial"
)

func (c *commercial) Account() *account.Guard { return c.guard }

func (c *commercial) Submit(ctx context.Context, r issuer.SubmitRequest) (issuer.Submission, error) {
	c.mu.Lock()
	c.previous = append(c.previous, r.Previous)
	gate := c.gate
	c.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return c.Fake.Submit(ctx, r)
}

func (c *commercial) ListOrders(_ context.Context, r issuer.ListRequest) (issuer.Listing, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// One order per page.
	at := 0
	if r.Page != "" {
		if _, err := fmt.Sscan(r.Page, &at); err != nil {
			return issuer.Listing{}, err
		}
	}
	out := issuer.Listing{}
	if at < len(c.listed) {
		out.Orders = c.listed[at : at+1]
	}
	if at+1 < len(c.listed) {
		out.Next = fmt.Sprint(at + 1)
	}
	return out, nil
}

func (c *commercial) OrderKey(ref issuer.Ref) string { return ref["fake_order"] }

func (c *commercial) Cancel(_ context.Context, ref issuer.Ref) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse == nil {
		c.cancelled = append(c.cancelled, ref)
	}
	return c.refuse
}

func (c *commercial) Revoke(ctx context.Context, r issuer.RevokeRequest) (issuer.Revocation, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, r)
	switch c.approval {
	case "pending":
		return issuer.Revocation{State: issuer.AwaitingApproval, Request: issuer.Ref{"request_id": "77"}, Detail: "waits for an administrator"}, nil
	case "rejected":
		return issuer.Revocation{}, issuer.Permanent("REVOCATION_REJECTED", "an administrator said no")
	default:
		return c.Fake.Revoke(ctx, r)
	}
}

func (c *commercial) approve(state string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.approval = state
}

// withCommercial adds the issuer and gives its CA.
func (w *world) withCommercial() *commercial {
	w.t.Helper()
	c := &commercial{Fake: w.fake, guard: account.New(account.Config{}).Guard("account-1", account.Limits{})}
	t := w.fake.Type()
	t.Name = commercialType
	t.Capabilities = issuer.Capabilities{
		Async: true, Revocation: true, Find: true, List: true, Cancel: true, Reissue: true,
		Reasons: []issuer.Reason{issuer.Unspecified, issuer.KeyCompromise, issuer.Superseded},
	}
	t.New = func(context.Context, issuer.Config, issuer.Deps) (issuer.Issuer, error) { return c, nil }
	w.types = append(w.types, t)
	w.Core = w.replica()
	w.createIssuer(NewIssuer{ID: commercialIssuer, Name: "Commercial", Type: commercialType, Enabled: true})
	return c
}

func (w *world) orphans() []store.Orphan {
	w.t.Helper()
	order, err := w.OrderSorting().Parse("")
	require.NoError(w.t, err)
	rows, total, err := w.ListOrphans(w.ctx(), store.OrderFilter{IssuerID: commercialIssuer, Page: store.Page{Order: order, Size: 100}}, true)
	require.NoError(w.t, err)
	require.Len(w.t, rows, int(*total))
	return rows
}

func (w *world) adopt(id, certificateID string) (o store.Order, err error) {
	w.t.Helper()
	err = w.tx(func(ctx context.Context, tx pgx.Tx) (err error) {
		o, err = w.Adopt(ctx, tx, id, certificateID)
		return err
	})
	return o, err
}

// placed gives an order that the CA has not answered.
func (w *world) placed() store.Order {
	w.t.Helper()
	r := request(w.t, commercialIssuer)
	w.fake.PlanOrder(r.OrderID, issuertest.Plan{Polls: issuertest.Forever})
	o, err := w.Submit(w.ctx(), r)
	require.NoError(w.t, err)
	require.Equal(w.t, Pending, o.Status)
	return o
}

func parsedCSR(t *testing.T, text []byte) *x509.CertificateRequest {
	t.Helper()
	block, _ := pem.Decode(text)
	require.NotNil(t, block)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	require.NoError(t, err)
	return csr
}

func listedAs(key, orderID string, state issuer.State) issuer.ListedOrder {
	return issuer.ListedOrder{
		Key: key, Ref: issuer.Ref{"fake_order": key}, OrderID: orderID, State: state, CommonName: "www.example.com", DNSNames: []string{"www.example.com"},
		PlacedAt: time.Now().Add(-time.Hour), Detail: "seen in the list",
	}
}

func TestOrdersThatTheJournalDoesNotAccountForAreFoundOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := w.withCommercial()
	_, knownOrder := w.issue(commercialIssuer)
	given := w.placed()
	_, err := w.Cancel(w.ctx(), given.ID)
	require.NoError(t, err)
	fresh := listedAs("92", "", issuer.Pending)
	fresh.PlacedAt = time.Now()
	ca.listed = []issuer.ListedOrder{
		listedAs(knownOrder.CAKey, knownOrder.ID, issuer.Issued),
		listedAs("90", "", issuer.Pending),                    // somebody else's
		listedAs("91", knownOrder.ID, issuer.Issued),          // the CA made two of one request
		listedAs(given.CAKey, given.ID, issuer.Pending),       // cancelled here, not there
		listedAs("93", "ord-rejected-there", issuer.Rejected), // costs nothing
		fresh, // may be on its way into the journal
	}
	for range 2 {
		_, err = w.SweepOrphans(w.ctx())
		require.NoError(t, err)
	}
	found := map[string]string{}
	for _, o := range w.orphans() {
		found[o.CAKey] = o.Reason
	}
	require.Equal(t, map[string]string{"90": reasonNotInJournal, "91": reasonSecondOrder, given.CAKey: reasonGivenUp}, found)

	lost := request(t, commercialIssuer, "lost.example.com")
	w.fake.PlanOrder(lost.OrderID, issuertest.Plan{LostReplies: 1})
	_, err = w.Submit(w.ctx(), lost)
	require.NoError(t, err)
	require.Equal(t, Unknown, w.order(lost.OrderID).Status)
	nameless := listedAs("94", "", issuer.Pending)
	nameless.CommonName = "lost.example.com"
	ca.listed = append(ca.listed, nameless)

	w.clock.turn(time.Hour)
	_, err = w.SweepOrphans(w.ctx())
	require.NoError(t, err)
	require.Len(t, w.orphans(), 4, "what is still unknown after a while is no order on its way")
}

func TestAnAdoptedOrphanIsWatchedCheckedAndIssuedUnderItsOwnId(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := w.withCommercial()
	r, o := w.issue(commercialIssuer)
	// The CA made a second order of the request that the journal knows.
	second := issuertest.NewRequest(t, o.ID, issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, "www.example.com"))
	second.CSR = parsedCSR(t, r.CSR)
	second.Lifetime = 30 * time.Minute
	sub, err := w.fake.Submit(w.ctx(), second)
	require.NoError(t, err)
	key := sub.Ref["fake_order"]
	require.NotEqual(t, o.CAKey, key)
	ca.listed = []issuer.ListedOrder{listedAs(key, o.ID, issuer.Issued)}
	_, err = w.SweepOrphans(w.ctx())
	require.NoError(t, err)
	require.Len(t, w.orphans(), 1)
	id := w.orphans()[0].ID

	adopted, err := w.adopt(id, "")
	require.NoError(t, err)
	require.Equal(t, Pending, adopted.Status)
	require.Equal(t, r.CertificateID, adopted.CertificateID, "the CA says what it was placed for")
	require.Equal(t, "agent-1", adopted.AgentID, "who has the key of the CSR")
	again, err := w.adopt(id, r.CertificateID)
	require.NoError(t, err)
	require.Equal(t, adopted.ID, again.ID)
	require.Empty(t, w.orphans())
	require.Len(t, w.events("order.pending", id), 1)

	done, err := w.RecordPoll(w.ctx(), PollResult{OrderID: id, Outcome: Issued, CertificatePEM: string(sub.CertificatePEM) + string(sub.ChainPEM)})
	require.NoError(t, err)
	require.Equal(t, Issued, done.Status, done.ErrorMessage)
	require.Equal(t, 1, w.certificates(id))

	_, err = w.SweepOrphans(w.ctx())
	require.NoError(t, err)
	require.Empty(t, w.orphans())
}

func TestAnOrphanOfNobodyNeedsACertificateThatMayHaveItsNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := w.withCommercial()
	r, _ := w.issue(commercialIssuer)
	stranger := listedAs("90", "", issuer.Pending)
	stranger.DNSNames = append(stranger.DNSNames, "other.example.com")
	ca.listed = []issuer.ListedOrder{stranger, listedAs("91", "", issuer.Pending)}
	_, err := w.SweepOrphans(w.ctx())
	require.NoError(t, err)
	byKey := map[string]string{}
	for _, o := range w.orphans() {
		byKey[o.CAKey] = o.ID
	}
	for id, certificateID := range map[string]string{byKey["91"]: "", byKey["90"]: r.CertificateID} {
		_, err = w.adopt(id, certificateID)
		require.Equal(t, errs.Invalid, errs.KindOf(err), "%v", err)
		require.Equal(t, "certificate_id", errs.From(err).Violations()[0].Field)
	}
	_, err = w.adopt(byKey["91"], "cert-nobody-knows")
	require.Equal(t, errs.Invalid, errs.KindOf(err))

	o, err := w.adopt(byKey["91"], r.CertificateID)
	require.NoError(t, err)
	require.Empty(t, o.AgentID, "the key is the caller's")

	var dismissed store.Orphan
	dismiss := func(id string) error {
		return w.tx(func(ctx context.Context, tx pgx.Tx) (err error) {
			dismissed, err = w.Dismiss(ctx, tx, id, "bought by marketing")
			return err
		})
	}
	for range 2 {
		require.NoError(t, dismiss(byKey["90"]))
		require.Equal(t, orphanDismissed, dismissed.Status)
	}
	require.Equal(t, errs.Conflict, errs.KindOf(dismiss(byKey["91"])))
	_, err = w.adopt(byKey["90"], r.CertificateID)
	require.Error(t, err)
	_, err = w.SweepOrphans(w.ctx())
	require.NoError(t, err)
	require.Empty(t, w.orphans(), "what was decided stays so")
}

func TestACancelledOrderIsCancelledAtTheCAOrSaysThatItIsNot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := w.withCommercial()
	o := w.placed()
	got, err := w.Cancel(w.ctx(), o.ID)
	require.NoError(t, err)
	require.Equal(t, Cancelled, got.Status)
	require.Equal(t, reasonCancelledAtCA, w.order(o.ID).ErrorReason)
	require.Len(t, ca.cancelled, 1)

	ca.refuse = issuer.Permanent("TOO_LATE", "the order is being validated")
	o = w.placed()
	got, err = w.Cancel(w.ctx(), o.ID)
	require.NoError(t, err)
	require.Equal(t, Cancelled, got.Status)
	require.Equal(t, reasonCancelledHereOnly, got.ErrorReason)
	require.Contains(t, w.order(o.ID).ErrorMessage, "the order is being validated")
}

func TestAnOrderThatIsGivenUpAtItsDeadlineIsCancelledAtTheCAToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := w.withCommercial()
	o, err := w.RecordPoll(w.ctx(), PollResult{OrderID: w.placed().ID, Outcome: Failed, Reason: reasonDeadline, Message: "still pending at the CA at the deadline"})
	require.NoError(t, err)
	require.Equal(t, Failed, o.Status)
	require.Len(t, ca.cancelled, 1)
	require.Equal(t, reasonDeadline, w.order(o.ID).ErrorReason)
	require.Equal(t, "still pending at the CA at the deadline; the order is cancelled at the CA too", w.order(o.ID).ErrorMessage)
}

func TestARevocationThatAHumanHasToApproveWaitsAndAsksForNothingTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := w.withCommercial()
	r, o := w.issue(commercialIssuer)
	ca.approve("pending")
	done, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: keyCompromise})
	require.NoError(t, err)
	require.False(t, done)
	w.retryRevocations()
	changed := w.events("revocation.changed", r.CertificateID)
	require.Len(t, changed, 1, "told once")
	var m issuancev1.RevocationChanged
	require.NoError(t, changed[0].GetPayload().UnmarshalTo(&m))
	require.Equal(t, issuancev1.RevocationChanged_AWAITING_APPROVAL, m.GetState())
	require.Equal(t, []string{o.SerialNumber}, m.GetSerialNumbers())
	require.Nil(t, ca.asked[0].Request)
	require.Equal(t, issuer.Ref{"request_id": "77"}, ca.asked[1].Request, "the same request is asked about")
	require.Empty(t, w.events("revocation.done", r.CertificateID))

	ca.approve("")
	w.retryRevocations()
	require.Len(t, w.events("revocation.done", r.CertificateID), 1)
}

func TestARefusedRevocationIsToldAndMayBeAskedForAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := w.withCommercial()
	r, _ := w.issue(commercialIssuer)
	ca.approve("rejected")
	began := time.Now()
	_, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: keyCompromise, RevocationTime: began})
	require.NoError(t, err)
	require.Len(t, w.events("revocation.changed", r.CertificateID), 1)
	ca.approve("")
	done, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: keyCompromise, RevocationTime: began})
	require.NoError(t, err)
	require.False(t, done, "the same wish again is the same answer")
	done, err = w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: int16(issuer.Superseded), RevocationTime: began.Add(time.Second)})
	require.NoError(t, err)
	require.True(t, done)
}

func TestACAIsToldAReasonThatItKnows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := w.withCommercial()
	r, _ := w.issue(commercialIssuer)
	done, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: int16(issuer.PrivilegeWithdrawn)})
	require.NoError(t, err)
	require.True(t, done)
	require.Equal(t, issuer.Unspecified, ca.asked[0].Reason)

	r, _ = w.issue(commercialIssuer)
	done, err = w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: int16(issuer.CertificateHold)})
	require.NoError(t, err)
	require.False(t, done)
	require.Len(t, ca.asked, 1, "a hold is no revocation")
}

func TestARenewalNamesTheOrderThatItRenews(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := w.withCommercial()
	r, first := w.issue(commercialIssuer)
	submit := func(agentID string) store.Order {
		next := request(t, commercialIssuer)
		next.CertificateID, next.AgentID = r.CertificateID, agentID
		o, err := w.Submit(w.ctx(), next)
		require.NoError(t, err)
		require.Equal(t, Issued, o.Status)
		return o
	}
	second := submit("agent-1")
	require.Equal(t, first.ID, second.PreviousOrderID)
	other := submit("agent-2")
	require.Empty(t, other.PreviousOrderID, "another key holder has an order of its own")
	_, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, SerialNumbers: []string{second.SerialNumber}, Reason: keyCompromise})
	require.NoError(t, err)
	require.Empty(t, submit("agent-1").PreviousOrderID, "what is revoked is not renewed")
	require.Equal(t, []issuer.Ref{nil, {"fake_order": first.CAKey}, nil, nil}, ca.previous)
}

func TestACAThatHangsKeepsAFewCallersAndTheRestIsLeftToTheReconciler(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := w.withCommercial()
	ca.gate = make(chan struct{})
	var waiting sync.WaitGroup
	for range CallsPerIssuer {
		r := request(t, commercialIssuer)
		waiting.Go(func() {
			_, err := w.Submit(w.ctx(), r)
			require.NoError(t, err)
		})
	}
	require.Eventually(t, func() bool {
		ca.mu.Lock()
		defer ca.mu.Unlock()
		return len(ca.previous) == CallsPerIssuer
	}, 10*time.Second, time.Millisecond)

	r := request(t, commercialIssuer)
	o, err := w.Submit(w.ctx(), r)
	require.NoError(t, err)
	require.Equal(t, Created, o.Status, "the intent is stored, and the caller does not wait")
	select {
	case <-w.OrderKick():
	case <-time.After(10 * time.Second):
		t.Fatal("the reconciler is not told")
	}
	_, other := w.issue(fakeIssuer)
	require.Equal(t, Issued, other.Status, "other CAs go on")

	close(ca.gate)
	waiting.Wait()
	w.reconcile(w.Core)
	require.Equal(t, Issued, w.order(r.OrderID).Status)
	bought, err := w.fake.Bought(r.OrderID)
	require.NoError(t, err)
	require.Equal(t, 1, bought)
}
