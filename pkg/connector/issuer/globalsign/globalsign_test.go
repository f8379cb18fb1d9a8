package globalsign_test

import (
	"crypto/x509"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/faulttest"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/globalsign"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

// order makes an order for names, with a key of its own unless one is given.
func order(t testing.TB, id string, names ...string) issuer.SubmitRequest {
	t.Helper()
	return issuertest.NewRequest(t, id, issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, names...))
}

// place gets a certificate.
func place(t testing.TB, i issuer.Issuer, r issuer.SubmitRequest) issuer.Submission {
	t.Helper()
	sub, err := i.Submit(t.Context(), r)
	require.NoError(t, err)
	sub, err = i.Poll(t.Context(), sub.Ref)
	require.NoError(t, err)
	require.Equal(t, issuer.Issued, sub.State)
	return sub
}

func leafOf(t testing.TB, sub issuer.Submission) *x509.Certificate {
	t.Helper()
	certs, err := certcheck.ParseBundle(sub.CertificatePEM)
	require.NoError(t, err)
	return certs[0]
}

// count tells how many requests there were to a path.
func count(sim *casimulator.Simulator, operation string) int {
	n := 0
	for _, r := range sim.Requests() {
		if r.Operation == operation {
			n++
		}
	}
	return n
}

func TestManyCallsShareOneLogin(t *testing.T) {
	t.Parallel()
	i, sim := connect(t, casimulator.Scenario{})
	var g errgroup.Group
	for n := range 20 {
		r := order(t, fmt.Sprintf("ord-%d", n), fmt.Sprintf("host-%d.example.com", n))
		g.Go(func() error { _, err := i.Submit(t.Context(), r); return err })
	}
	require.NoError(t, g.Wait())
	require.Equal(t, 1, count(sim, "login"))
	require.Equal(t, 1, count(sim, "profiles"))
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

func TestATokenIsRenewedBeforeItEnds(t *testing.T) {
	t.Parallel()
	sim, at := faulttest.Start(t, casimulator.Scenario{})
	var c clock
	i := open(t, config(t, sim, at), issuer.Deps{Now: c.now})
	for logins := range 3 {
		require.NoError(t, errOf(i.Chain(t.Context())))
		_, err := i.ListOrders(t.Context(), issuer.ListRequest{})
		require.NoError(t, err)
		require.Equal(t, logins+1, count(sim, "login"))
		c.pass(9*time.Minute + time.Second)
	}
}

func errOf(_ []*x509.Certificate, err error) error { return err }

func TestATokenThatEndedEarlyIsReplacedOnce(t *testing.T) {
	t.Parallel()
	i, sim := connect(t, casimulator.Scenario{})
	sub, err := i.Submit(t.Context(), order(t, "ord-token", "www.example.com"))
	require.NoError(t, err)
	sim.Set(casimulator.Fault{CA: casimulator.GlobalSign, Kind: casimulator.TokenExpired, Times: 1})
	sub, err = i.Poll(t.Context(), sub.Ref)
	require.NoError(t, err)
	require.Equal(t, issuer.Issued, sub.State)
	require.Equal(t, 2, count(sim, "login"))

	sim.Set(casimulator.Fault{CA: casimulator.GlobalSign, Kind: casimulator.TokenExpired})
	_, err = i.Poll(t.Context(), sub.Ref)
	refused, ok := issuer.AsPermanent(err)
	require.True(t, ok, "%v", err)
	require.Equal(t, issuer.FaultConfiguration, refused.Fault, "a new token that is not taken either is no accident")
	require.Equal(t, 3, count(sim, "login"))
}

func TestAnOrderIsNotPlacedTwiceWhenItsTokenEnded(t *testing.T) {
	t.Parallel()
	i, sim := connect(t, casimulator.Scenario{})
	sim.Set(casimulator.Fault{CA: casimulator.GlobalSign, Operation: "submit", Kind: casimulator.TokenExpired, Times: 1})
	place(t, i, order(t, "ord-once", "www.example.com"))
	require.Len(t, sim.Orders(), 1)
	require.Empty(t, sim.Violations())
}

func TestAReplacedClientCertificateIsUsedAtOnce(t *testing.T) {
	t.Parallel()
	i, sim := connect(t, casimulator.Scenario{})
	place(t, i, order(t, "ord-before", "www.example.com"))
	require.NoError(t, sim.RotateClientCertificate())
	place(t, i, order(t, "ord-after", "www.example.com"))
	require.Empty(t, sim.Violations())
}

func TestAnExhaustedQuotaIsSaid(t *testing.T) {
	t.Parallel()
	none := 0
	i, _ := connect(t, casimulator.Scenario{GlobalSign: casimulator.GlobalSignAccount{Quota: &none}})
	refused, ok := issuer.AsPermanent(i.Test(t.Context()))
	require.True(t, ok)
	require.Equal(t, "QUOTA_EXHAUSTED", refused.Reason)
	_, err := i.Submit(t.Context(), order(t, "ord-quota", "www.example.com"))
	refused, ok = issuer.AsPermanent(err)
	require.True(t, ok, "%v", err)
	require.Contains(t, refused.Message, "quota")
}

func TestAnAccountThatWantsSignedKeysIsToldSo(t *testing.T) {
	t.Parallel()
	i, sim := connect(t, casimulator.Scenario{GlobalSign: casimulator.GlobalSignAccount{KeyFormat: "PKCS8", PublicKeySignature: casimulator.PresenceRequired}})
	_, submitted := i.Submit(t.Context(), order(t, "ord-signed", "www.example.com"))
	for _, err := range []error{i.Test(t.Context()), submitted} {
		refused, ok := issuer.AsPermanent(err)
		require.True(t, ok, "%v", err)
		require.Equal(t, "KEY_FORMAT_NOT_SUPPORTED", refused.Reason)
	}
	require.Empty(t, sim.Orders())
}

func TestALifetimeIsShortenedToThePolicy(t *testing.T) {
	t.Parallel()
	i, _ := connect(t, casimulator.Scenario{GlobalSign: casimulator.GlobalSignAccount{ValiditySeconds: 3600}})
	leaf := leafOf(t, place(t, i, order(t, "ord-short", "www.example.com")))
	require.Equal(t, time.Hour, leaf.NotAfter.Sub(leaf.NotBefore))
}

func TestARefusalNamesTheFieldsOfThePolicy(t *testing.T) {
	t.Parallel()
	i, sim := connect(t, casimulator.Scenario{})
	place(t, i, order(t, "ord-first", "www.example.com"))
	before := count(sim, "profiles")
	r := order(t, "ord-usage", "www.example.com")
	r.ExtKeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	_, err := i.Submit(t.Context(), r)
	refused, ok := issuer.AsPermanent(err)
	require.True(t, ok, "%v", err)
	require.Equal(t, issuer.FaultRequest, refused.Fault)
	require.Contains(t, refused.Message, "extended_key_usages")
	place(t, i, order(t, "ord-next", "www.example.com"))
	require.Equal(t, before+1, count(sim, "profiles"), "the policy may have been changed: it is read anew")
}

func TestRevocationNeedsNoMoreThanTheCertificate(t *testing.T) {
	t.Parallel()
	i, sim := connect(t, casimulator.Scenario{})
	sub := place(t, i, order(t, "ord-revoke", "www.example.com"))
	got, err := i.Revoke(t.Context(), issuer.RevokeRequest{Certificate: leafOf(t, sub), Reason: issuer.PrivilegeWithdrawn})
	require.NoError(t, err)
	require.Equal(t, issuer.Revoked, got.State)
	require.Len(t, sim.Orders()[0].Revoked, 1)
	sub, err = i.Poll(t.Context(), sub.Ref)
	require.NoError(t, err)
	require.Equal(t, issuer.Rejected, sub.State, "a certificate that is revoked is nobody's")

	for _, r := range []issuer.RevokeRequest{
		{Ref: sub.Ref, Reason: issuer.CertificateHold}, {Reason: issuer.Superseded}, {Ref: issuer.Ref{"certificate": "AB"}, Reason: issuer.Superseded},
	} {
		_, err := i.Revoke(t.Context(), r)
		require.Equal(t, issuer.OutcomePermanent, issuer.OutcomeOf(err))
		_, ok := issuer.AsPermanent(err)
		require.True(t, ok)
	}
}

func lost(r issuer.SubmitRequest) issuer.FindRequest {
	return issuer.FindRequest{OrderID: r.OrderID, Names: r.Names, PublicKey: r.CSR.PublicKey, Since: r.RequestedAt.Add(-time.Hour)}
}

func TestAnOrderIsMissingOnlyAfterAWhile(t *testing.T) {
	t.Parallel()
	sim, at := faulttest.Start(t, casimulator.Scenario{})
	i := open(t, config(t, sim, at, func(s map[string]any) { delete(s, "lookup_settle_seconds") }), issuer.Deps{})
	r := order(t, "ord-missing", "www.example.com")
	for _, c := range []struct {
		since, last time.Duration
		settled     bool
	}{{-time.Minute, 0, false}, {-16 * time.Minute, 0, true}, {-time.Hour, -time.Minute, false}, {-time.Hour, -16 * time.Minute, true}} {
		find := lost(r)
		find.Since = time.Now().Add(c.since)
		if c.last != 0 {
			find.LastSubmitted = time.Now().Add(c.last)
		}
		_, found, err := i.FindOrder(t.Context(), find)
		require.False(t, found)
		if c.settled {
			require.NoError(t, err)
			continue
		}
		require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err))
		wait, ok := issuer.RetryDelay(err)
		require.True(t, ok)
		require.InDelta(t, 14*time.Minute, wait, float64(2*time.Second))
	}
}

func TestACertificateThatIsRenewedIsNotTakenForItsRenewal(t *testing.T) {
	t.Parallel()
	i, _ := connect(t, casimulator.Scenario{})
	r := order(t, "ord-old", "www.example.com")
	old := place(t, i, r)
	find := lost(r)
	found, ok, err := i.FindOrder(t.Context(), find)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, old.Ref, found.Ref)
	find.Previous = old.Ref
	_, ok, err = i.FindOrder(t.Context(), find)
	require.NoError(t, err)
	require.False(t, ok)
}

func TestAKeyThatIsUsedAgainForOtherNamesIsTheSecondChoice(t *testing.T) {
	t.Parallel()
	i, _ := connect(t, casimulator.Scenario{})
	key := issuertest.NewKey(t, certcheck.ECDSAP256)
	other := place(t, i, issuertest.NewRequest(t, "ord-other", key, issuertest.Names(t, "other.example.com")))
	r := issuertest.NewRequest(t, "ord-mine", key, issuertest.Names(t, "www.example.com"))
	mine := place(t, i, r)
	found, ok, err := i.FindOrder(t.Context(), lost(r))
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, mine.Ref, found.Ref)
	absent := issuertest.NewRequest(t, "ord-absent", key, issuertest.Names(t, "absent.example.com"))
	found, ok, err = i.FindOrder(t.Context(), lost(absent))
	require.NoError(t, err)
	require.True(t, ok, "the CA made something else of the order")
	require.Contains(t, []issuer.Ref{mine.Ref, other.Ref}, found.Ref)
}

func TestABusyAccountIsLookedThroughInSteps(t *testing.T) {
	t.Parallel()
	i, sim := connect(t, casimulator.Scenario{})
	const others = 120
	var g errgroup.Group
	g.SetLimit(8)
	r := order(t, "ord-wanted", "wanted.example.com")
	key := issuertest.NewKey(t, certcheck.ECDSAP256)
	for n := range others {
		other := issuertest.NewRequest(t, fmt.Sprintf("ord-%d", n), key, issuertest.Names(t, fmt.Sprintf("host-%d.example.com", n)))
		g.Go(func() error { _, err := i.Submit(t.Context(), other); return err })
	}
	require.NoError(t, g.Wait())
	_, err := i.Submit(t.Context(), r)
	require.NoError(t, err)
	find, steps := lost(r), 0
	for {
		found, ok, err := i.FindOrder(t.Context(), find)
		if err == nil {
			require.True(t, ok)
			require.True(t, certcheck.SameKey(leafOf(t, found).PublicKey, r.CSR.PublicKey))
			break
		}
		require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err))
		steps++
		require.Less(t, steps, 5, "it goes on where it stopped")
	}
	before := count(sim, "status")
	_, ok, err := i.FindOrder(t.Context(), find)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, before+1, count(sim, "status"), "what was compared once is known")

	seen, page := map[string]bool{}, issuer.ListRequest{Since: time.Now().Add(-time.Hour)}
	for {
		listing, err := i.ListOrders(t.Context(), page)
		require.NoError(t, err)
		for _, o := range listing.Orders {
			require.False(t, seen[o.Key])
			seen[o.Key] = true
			require.WithinDuration(t, time.Now(), o.PlacedAt, 10*time.Minute)
		}
		if page.Page = listing.Next; page.Page == "" {
			break
		}
	}
	require.Len(t, seen, others+1)
	require.Empty(t, sim.Violations())
}

func TestALookupNeedsThePublicKey(t *testing.T) {
	t.Parallel()
	i, _ := connect(t, casimulator.Scenario{})
	_, _, err := i.FindOrder(t.Context(), issuer.FindRequest{OrderID: "ord-1", Since: time.Now().Add(-time.Hour)})
	refused, ok := issuer.AsPermanent(err)
	require.True(t, ok)
	require.Equal(t, "PUBLIC_KEY_MISSING", refused.Reason)
	_, err = i.ListOrders(t.Context(), issuer.ListRequest{Page: "x"})
	require.Error(t, err)
}

func TestTheAccountIsThatOfTheKey(t *testing.T) {
	t.Parallel()
	sim, at := faulttest.Start(t, casimulator.Scenario{})
	a, b := open(t, config(t, sim, at), issuer.Deps{}), open(t, config(t, sim, at), issuer.Deps{})
	require.Equal(t, a.Account().Key(), b.Account().Key())
	require.NotContains(t, a.Account().Key(), sim.Credentials().GlobalSignAPIKey)
	require.Equal(t, globalsign.TypeName, globalsign.Type().Name)
}
