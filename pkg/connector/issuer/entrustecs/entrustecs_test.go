package entrustecs_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/entrustecs"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/errs"
)

func order(t testing.TB, id string, names ...string) issuer.SubmitRequest {
	t.Helper()
	r := issuertest.NewRequest(t, id, issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, names...))
	r.Lifetime = lifetime
	return r
}

func place(t testing.TB, i issuer.Issuer, r issuer.SubmitRequest) issuer.Submission {
	t.Helper()
	sub, err := i.Submit(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, issuer.Issued, sub.State, sub.Detail)
	return sub
}

func leafOf(t testing.TB, sub issuer.Submission) *x509.Certificate {
	t.Helper()
	certs, err := certcheck.ParseBundle(sub.CertificatePEM)
	require.NoError(t, err)
	require.Len(t, certs, 1, "the leaf alone")
	return certs[0]
}

func lost(r issuer.SubmitRequest) issuer.FindRequest {
	return issuer.FindRequest{OrderID: r.OrderID, Names: r.Names, PublicKey: r.CSR.PublicKey, Since: r.RequestedAt.Add(-time.Hour), Previous: r.Previous}
}

func TestSettingsThatAreWrongAreNamed(t *testing.T) {
	t.Parallel()
	good := map[string]any{"username": "u", "cert_type": "STANDARD_SSL", "requester_name": "Ada", "requester_email": "ada@example.com", "requester_phone": "1"}
	raw, err := json.Marshal(good)
	require.NoError(t, err)
	s, err := entrustecs.ParseSettings(raw, []string{"api_key"})
	require.NoError(t, err)
	require.Equal(t, "https://api.entrust.net/enterprise", s.BaseURL)
	require.Equal(t, 1, s.ClientID)
	require.Equal(t, "auto", s.Renewal)
	for field, value := range map[string]any{
		"base_url": "http://x", "username": "a:b", "cert_type": "standard ssl", "client_id": -1, "requester_name": "", "requester_email": "ada",
		"requester_phone": "", "additional_emails": []string{"x"}, "renewal": "never", "lookup_settle_seconds": -1,
	} {
		bad := map[string]any{}
		for k, v := range good {
			bad[k] = v
		}
		bad[field] = value
		raw, err := json.Marshal(bad)
		require.NoError(t, err)
		_, err = entrustecs.ParseSettings(raw, []string{"api_key"})
		require.Equal(t, errs.Invalid, errs.KindOf(err), field)
		require.Equal(t, field, errs.From(err).Violations()[0].Field)
	}
	_, err = entrustecs.ParseSettings(raw, nil)
	require.ErrorContains(t, err, "api_key")
	good["client_id"], good["organization"] = 2, "Example"
	raw, err = json.Marshal(good)
	require.NoError(t, err)
	_, err = entrustecs.ParseSettings(raw, []string{"api_key"})
	require.ErrorContains(t, err, "organization")
}

// clock is a time that tests move.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// inTime is a simulator and an issuer that share a clock.
func inTime(t *testing.T, change ...func(map[string]any)) (*entrustecs.Issuer, *casimulator.Simulator, *clock) {
	t.Helper()
	c := &clock{}
	sim, err := casimulator.New(casimulator.Config{Dir: t.TempDir(), Now: c.now})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	at, err := sim.Start(ctx, casimulator.Listen{Address: "127.0.0.1:0", ControlAddress: "127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(func() {
		stop()
		_ = sim.Wait() // its end is that of the test
		require.NoError(t, sim.Close())
	})
	return openAt(t, config(t, sim, at, change...), issuer.Deps{Now: c.now}), sim, c
}

// renewal makes the order that renews another one.
func renewal(t *testing.T, id string, before issuer.Submission, c *clock) issuer.SubmitRequest {
	t.Helper()
	r := order(t, id, "www.example.com")
	r.RequestedAt = c.now()
	r.Previous, r.PreviousCertificate = before.Ref, leafOf(t, before)
	return r
}

// requested gives the last elements of the paths of the orders that were sent.
func requested(sim *casimulator.Simulator) []string {
	var out []string
	for _, r := range sim.Requests() {
		if r.Method == http.MethodPost {
			out = append(out, r.Path[strings.LastIndex(r.Path, "/")+1:])
		}
	}
	return out
}

func TestAnOldCertificateIsRenewedAndAYoungOneOrderedAnew(t *testing.T) {
	t.Parallel()
	i, sim, c := inTime(t)
	r := order(t, "ord-1", "www.example.com")
	r.Lifetime = 90 * 24 * time.Hour
	first := place(t, i, r)
	second := place(t, i, renewal(t, "ord-2", first, c))
	require.Equal(t, []string{"certificates", "certificates"}, requested(sim))
	c.pass(31 * 24 * time.Hour)
	next := renewal(t, "ord-3", first, c)
	third := place(t, i, next)
	require.Equal(t, []string{"certificates", "certificates", "renewals"}, requested(sim))
	require.NotEqual(t, i.OrderKey(second.Ref), i.OrderKey(third.Ref))
	require.True(t, certcheck.SameKey(leafOf(t, third).PublicKey, next.CSR.PublicKey))
	found, ok, err := i.FindOrder(t.Context(), lost(next))
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, i.OrderKey(third.Ref), i.OrderKey(found.Ref))
	require.Empty(t, sim.Violations())
}

func TestWhatCannotBeRenewedAnyMoreIsOrderedAnew(t *testing.T) {
	t.Parallel()
	i, sim, c := inTime(t)
	r := order(t, "ord-1", "www.example.com")
	r.Lifetime = 90 * 24 * time.Hour
	first := place(t, i, r)
	_, err := i.Revoke(t.Context(), issuer.RevokeRequest{Ref: first.Ref, Reason: issuer.KeyCompromise})
	require.NoError(t, err)
	c.pass(31 * 24 * time.Hour)
	place(t, i, renewal(t, "ord-2", first, c))
	require.Equal(t, []string{"certificates", "revocations", "renewals", "certificates"}, requested(sim))
	require.Len(t, sim.Orders(), 2)
}

func TestAReissueIsOnlyMadeWhenItIsWanted(t *testing.T) {
	t.Parallel()
	i, sim, c := inTime(t, func(s map[string]any) { s["renewal"] = "reissue" })
	first := place(t, i, order(t, "ord-1", "www.example.com"))
	second := place(t, i, renewal(t, "ord-2", first, c))
	require.Equal(t, []string{"certificates", "reissues"}, requested(sim))
	require.Equal(t, leafOf(t, first).NotAfter, leafOf(t, second).NotAfter, "it ends when the one before does")
	old, err := i.Poll(t.Context(), first.Ref)
	require.NoError(t, err)
	require.Equal(t, issuer.Issued, old.State)
	got, err := i.Revoke(t.Context(), issuer.RevokeRequest{Ref: first.Ref, Reason: issuer.Unspecified})
	require.NoError(t, err)
	require.Equal(t, issuer.Revoked, got.State)
	require.Contains(t, got.Detail, "re-issued")
	require.Equal(t, 1, sim.Orders()[0].Billed+sim.Orders()[1].Billed)
	require.Empty(t, violationsOtherThan(sim, "revocations"))
}

func violationsOtherThan(sim *casimulator.Simulator, path string) []casimulator.Violation {
	var out []casimulator.Violation
	for _, v := range sim.Violations() {
		if !strings.HasSuffix(v.Path, path) {
			out = append(out, v)
		}
	}
	return out
}

func TestRevocationNeedsNoMoreThanTheCertificate(t *testing.T) {
	t.Parallel()
	i, sim := connect(t, casimulator.Scenario{})
	sub := place(t, i, order(t, "ord-1", "www.example.com"))
	got, err := i.Revoke(t.Context(), issuer.RevokeRequest{Certificate: leafOf(t, sub), Reason: issuer.KeyCompromise})
	require.NoError(t, err)
	require.Equal(t, issuer.Revoked, got.State)
	require.Len(t, sim.Orders()[0].Revoked, 1)
	other, err := issuertest.NewFake(issuertest.FakeConfig{})
	require.NoError(t, err)
	foreign, err := other.Submit(t.Context(), order(t, "ord-2", "www.example.com"))
	require.NoError(t, err)
	for _, r := range []issuer.RevokeRequest{
		{Ref: sub.Ref, Reason: issuer.Superseded}, {Reason: issuer.Unspecified}, {Ref: issuer.Ref{"tracking_id": "99"}, Reason: issuer.Unspecified},
		{Certificate: leafOf(t, foreign), Reason: issuer.Unspecified},
	} {
		_, err := i.Revoke(t.Context(), r)
		_, ok := issuer.AsPermanent(err)
		require.True(t, ok, "%v", err)
	}
}

func TestAnOrderThatWaitsIsFoundByItsTrackingInformation(t *testing.T) {
	t.Parallel()
	i, sim := connect(t, casimulator.Scenario{}, func(s map[string]any) { s["queue_for_approval"] = true })
	r := order(t, "ord-wait", "www.example.com")
	sub, err := i.Submit(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, issuer.Pending, sub.State)
	require.Contains(t, sub.Detail, "approval")
	twin := lost(r)
	twin.OrderID = "ord-other"
	_, ok, err := i.FindOrder(t.Context(), twin)
	requireInconclusive(t, ok, err) // it is another order's, whatever its key
	found, ok, err := i.FindOrder(t.Context(), lost(r))
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, i.OrderKey(sub.Ref), i.OrderKey(found.Ref))
	require.NoError(t, sim.Decide(casimulator.EntrustECS, sim.Orders()[0].ID, "approve", ""))
	found, err = i.Poll(t.Context(), found.Ref)
	require.NoError(t, err)
	require.Equal(t, issuer.Issued, found.State)
	require.True(t, certcheck.SameKey(leafOf(t, found).PublicKey, r.CSR.PublicKey))
	_, err = i.Poll(t.Context(), found.Ref)
	require.NoError(t, err)
	err = i.Cancel(t.Context(), found.Ref)
	refused, ok := issuer.AsPermanent(err)
	require.True(t, ok, "%v", err)
	require.Equal(t, "ORDER_ISSUED", refused.Reason, "it is too late")
}

func TestAnOrderThatWasDeclinedSaysSo(t *testing.T) {
	t.Parallel()
	i, sim := connect(t, casimulator.Scenario{}, func(s map[string]any) { s["queue_for_approval"] = true })
	sub, err := i.Submit(t.Context(), order(t, "ord-declined", "www.example.com"))
	require.NoError(t, err)
	require.NoError(t, sim.Decide(casimulator.EntrustECS, sim.Orders()[0].ID, "reject", "not today"))
	sub, err = i.Poll(t.Context(), sub.Ref)
	require.NoError(t, err)
	require.Equal(t, issuer.Rejected, sub.State)
	require.Equal(t, "Entrust calls the request DECLINED: not today", sub.Detail)
}

func TestAnOrderIsMissingOnlyAfterAWhile(t *testing.T) {
	t.Parallel()
	i, _ := connect(t, casimulator.Scenario{}, func(s map[string]any) { s["lookup_settle_seconds"] = 900 })
	find := lost(order(t, "ord-missing", "www.example.com"))
	_, ok, err := i.FindOrder(t.Context(), find)
	require.NoError(t, err)
	require.False(t, ok)
	find.LastSubmitted = time.Now().Add(-5 * time.Minute)
	_, ok, err = i.FindOrder(t.Context(), find)
	require.False(t, ok)
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err))
	wait, ok := issuer.RetryDelay(err)
	require.True(t, ok)
	require.InDelta(t, 10*time.Minute, wait, float64(2*time.Second))
	_, err = i.ListOrders(t.Context(), issuer.ListRequest{Page: "-1"})
	require.Error(t, err)
}
