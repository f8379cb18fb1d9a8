package digicert_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
)

// issued is a certificate that is there, and the request that renews it.
func issued(t testing.TB, i issuer.Issuer, change func(*issuer.SubmitRequest)) (first issuer.Submission, renewal issuer.SubmitRequest) {
	t.Helper()
	old := request(t, "renewed")
	if change != nil {
		change(&old)
	}
	first = finish(t, i, submit(t, i, old))
	renewal = request(t, "renewed")
	renewal.OrderID, renewal.Previous, renewal.PreviousCertificate = "renewal", first.Ref, check(t, old, first).Leaf
	if change != nil {
		renewal.CSR = old.CSR
	}
	return first, renewal
}

func TestRenewalOfAPaidOrderIsAReissue(t *testing.T) {
	t.Parallel()
	for _, sameCSR := range []bool{false, true} {
		c := newCA(t, casimulator.Scenario{})
		i := c.issuer(t, nil)
		var change func(*issuer.SubmitRequest)
		if sameCSR {
			change = func(*issuer.SubmitRequest) {}
		}
		first, r := issued(t, i, change)
		c.sim.Play(casimulator.Scenario{Latency: time.Hour})
		sub := submit(t, i, r)
		require.Equal(t, first.Ref["order_id"], sub.Ref["order_id"])
		require.NotEqual(t, first.Ref["certificate_id"], sub.Ref["certificate_id"])
		again, err := i.Poll(t.Context(), sub.Ref)
		require.NoError(t, err)
		require.Equal(t, issuer.Pending, again.State, "the old certificate is not the new one")
		c.decide(t, "issue")
		chain := check(t, r, finish(t, i, sub))
		require.NotEqual(t, r.PreviousCertificate.SerialNumber, chain.Leaf.SerialNumber)
		orders := c.sim.Orders()
		require.Len(t, orders, 1)
		require.Equal(t, 1, orders[0].Billed)
		require.Equal(t, 2, orders[0].Certificates)
		c.requireClean(t)
	}
}

func TestReissueWhoseReplyWasLostIsFoundUnderItsOrder(t *testing.T) {
	t.Parallel()
	for _, skipApproval := range []bool{true, false} {
		c := newCA(t, casimulator.Scenario{})
		first, r := issued(t, c.issuer(t, nil), nil)
		i := c.issuer(t, func(s map[string]any) { s["skip_approval"] = skipApproval })
		_, found := find(t, i, r)
		require.False(t, found)
		c.sim.Set(casimulator.Fault{CA: casimulator.DigiCert, Operation: "reissue", Kind: casimulator.DropAfter, Times: 1})
		_, err := i.Submit(t.Context(), r)
		require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "%v", err)
		sub, found := find(t, i, r)
		require.True(t, found)
		require.Equal(t, first.Ref["order_id"], sub.Ref["order_id"])
		if !skipApproval {
			polled, err := i.Poll(t.Context(), sub.Ref)
			require.NoError(t, err)
			require.Equal(t, issuer.Pending, polled.State)
			c.decide(t, "approve")
		}
		check(t, r, finish(t, i, sub))
		require.Equal(t, 2, c.sim.Orders()[0].Certificates)
	}
}

func TestReissueThatIsRejectedHasEnded(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	_, r := issued(t, c.issuer(t, nil), nil)
	i := c.issuer(t, func(s map[string]any) { s["skip_approval"] = false })
	sub := submit(t, i, r)
	c.decide(t, "reject")
	sub, err := i.Poll(t.Context(), sub.Ref)
	require.NoError(t, err)
	require.Equal(t, issuer.Rejected, sub.State)
	require.Contains(t, sub.Detail, "rejected")
}

func TestCancelledReissueLeavesTheOrder(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	first, r := issued(t, c.issuer(t, nil), nil)
	i := c.issuer(t, func(s map[string]any) { s["skip_approval"] = false })
	sub := submit(t, i, r)
	require.NoError(t, i.Cancel(t.Context(), sub.Ref))
	require.NoError(t, i.Cancel(t.Context(), sub.Ref))
	sub, err := i.Poll(t.Context(), sub.Ref)
	require.NoError(t, err)
	require.Equal(t, issuer.Rejected, sub.State)
	sub, err = i.Poll(t.Context(), first.Ref)
	require.NoError(t, err)
	require.Equal(t, issuer.Issued, sub.State)
}

func TestNothingIsRevokedOrReissuedWhileAReissueIsPending(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	first, r := issued(t, c.issuer(t, nil), nil)
	i := c.issuer(t, func(s map[string]any) { s["skip_approval"] = false })
	submit(t, i, r)
	_, err := i.Revoke(t.Context(), issuer.RevokeRequest{Ref: first.Ref, Certificate: r.PreviousCertificate, Reason: issuer.Superseded})
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%v", err)
	other := request(t, "renewed")
	other.Previous, other.PreviousCertificate = r.Previous, r.PreviousCertificate
	_, err = i.Submit(t.Context(), other)
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%v", err)
	require.Len(t, c.sim.Orders(), 1)
}

func TestRenewalOfAnOrderThatEndsSoonIsARenewalOrder(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	first, r := issued(t, c.issuer(t, func(s map[string]any) { s["order_validity_days"] = 20 }), nil)
	i := c.issuer(t, nil)
	c.sim.Set(casimulator.Fault{CA: casimulator.DigiCert, Operation: "submit", Kind: casimulator.DropAfter, Times: 1})
	_, err := i.Submit(t.Context(), r)
	require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "%v", err)
	sub, found := find(t, i, r)
	require.True(t, found)
	require.NotEqual(t, first.Ref["order_id"], sub.Ref["order_id"])
	check(t, r, finish(t, i, sub))
	require.Len(t, c.sim.Orders(), 2)
	c.requireClean(t)
}

func TestRenewalAsTheSettingsSay(t *testing.T) {
	t.Parallel()
	for _, renewal := range []string{"renewal_order", "new_order"} {
		c := newCA(t, casimulator.Scenario{})
		i := c.issuer(t, func(s map[string]any) { s["renewal"] = renewal })
		first, r := issued(t, i, nil)
		sub := finish(t, i, submit(t, i, r))
		require.NotEqual(t, first.Ref["order_id"], sub.Ref["order_id"])
		check(t, r, sub)
		again, found := find(t, i, r)
		require.True(t, found)
		require.Equal(t, sub.Ref["order_id"], again.Ref["order_id"])
	}
}

func TestOrderThatIsGoneIsOrderedAnew(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	i := c.issuer(t, nil)
	_, r := issued(t, i, nil)
	r.Previous = issuer.Ref{"order_id": "999999999"}
	check(t, r, finish(t, i, submit(t, i, r)))
	require.Len(t, c.sim.Orders(), 2)
}

func TestRevokedReissueIsToldFromItsOrder(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	i := c.issuer(t, nil)
	first, r := issued(t, i, nil)
	second := finish(t, i, submit(t, i, r))
	revoke := issuer.RevokeRequest{Ref: second.Ref, Certificate: check(t, r, second).Leaf, Reason: issuer.KeyCompromise}
	ctx := account.Urgent(t.Context())
	c.sim.Set(casimulator.Fault{CA: casimulator.DigiCert, Operation: "revoke", Kind: casimulator.DropAfter, Times: 1})
	_, err := i.Revoke(ctx, revoke)
	require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "%v", err)
	revocation, err := i.Revoke(ctx, revoke)
	require.NoError(t, err)
	require.Equal(t, issuer.Revoked, revocation.State)
	require.Len(t, c.sim.Orders()[0].Revoked, 1, "the old certificate is not revoked with it")
	revocation, err = i.Revoke(ctx, issuer.RevokeRequest{Ref: first.Ref, Certificate: r.PreviousCertificate, Reason: issuer.Superseded})
	require.NoError(t, err)
	require.Equal(t, issuer.Revoked, revocation.State)
	require.Len(t, c.sim.Orders()[0].Revoked, 2)
}

func TestListShowsForWhichOrderEachWasPlaced(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	i := c.issuer(t, func(s map[string]any) { s["burst"], s["requests_per_second"] = 500, 500 })
	first, r := issued(t, i, nil)
	finish(t, i, submit(t, i, r)) // a re-issue is no order of its own
	const others = 30
	for n := range others {
		submit(t, i, request(t, "listed-"+string(rune('a'+n/26))+string(rune('a'+n%26))))
	}
	seen := map[string]string{}
	page := issuer.ListRequest{Since: time.Now().Add(-time.Hour)}
	for pages := 1; ; pages++ {
		listing, err := i.ListOrders(t.Context(), page)
		require.NoError(t, err)
		for _, o := range listing.Orders {
			seen[o.OrderID] = o.Key
			require.WithinDuration(t, time.Now(), o.PlacedAt, time.Minute)
		}
		if page.Page = listing.Next; page.Page == "" {
			require.Equal(t, 2, pages)
			break
		}
	}
	require.Len(t, seen, others+1)
	require.Equal(t, first.Ref["order_id"], seen["renewed"])
	none, err := i.ListOrders(t.Context(), issuer.ListRequest{Since: time.Now().Add(time.Hour)})
	require.NoError(t, err)
	require.Equal(t, issuer.Listing{}, none)
}
