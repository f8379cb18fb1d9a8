// Package issuertest holds what every issuer connector is tested with: Run, the conformance suite, and Fake, an issuer
// whose behaviour a test plans, for the tests of those who call issuers. It is for tests only.
package issuertest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

// promptly is how long a call may take that must not wait. It is generous: the machine may be busy.
const promptly = 10 * time.Second

// Suite is an issuer under test.
type Suite struct {
	Type issuer.Type
	// New makes an issuer with a CA of its own. It is called once per test.
	New func(t testing.TB) issuer.Issuer
	// Settle lets a simulated CA move between two polls; nil if nothing has to.
	Settle func(t testing.TB)
	// MaxPolls is after how many polls an order must have ended; 20 if zero.
	MaxPolls int
	// KeyAlgorithms that the CA takes; ECDSA P-256, P-384, RSA 2048 and Ed25519 if empty.
	KeyAlgorithms []certcheck.KeyAlgorithm
	// DNSOnly is for CAs that certify DNS names and nothing else.
	DNSOnly bool
	// Lifetime of the certificates that are asked for; the constant of this package if zero.
	Lifetime time.Duration
	// WholeDays is for CAs whose certificates end with a day: up to 24 hours more than were asked for.
	WholeDays bool
	// NoIdempotency is for CAs that make another order of the same request. Instead of submitting twice, the suite requires
	// that FindOrder finds the order, so that nobody needs to.
	NoIdempotency bool

	// Hold makes an issuer whose orders wait for a human; nil: orders cannot be cancelled, or never wait.
	Hold func(t testing.TB) issuer.Issuer
	// Wrong makes issuers of which one setting is wrong, by the name of the setting; for those that are a Tester.
	Wrong func(t testing.TB) map[string]issuer.Issuer
	// Approval makes an issuer whose revocations wait for a human, and decide, which approves or rejects what waits; nil:
	// revocations never wait.
	Approval func(t testing.TB) (i issuer.Issuer, decide func(approve bool))
}

// Run tests everything that callers rely on.
func Run(t *testing.T, s Suite) {
	t.Helper()
	if s.MaxPolls == 0 {
		s.MaxPolls = 20
	}
	if s.Lifetime == 0 {
		s.Lifetime = Lifetime
	}
	if len(s.KeyAlgorithms) == 0 {
		s.KeyAlgorithms = []certcheck.KeyAlgorithm{certcheck.ECDSAP256, certcheck.ECDSAP384, certcheck.RSA2048, certcheck.Ed25519}
	}
	for _, c := range []struct {
		name string
		test func(*testing.T, Suite)
	}{
		{"type says what the issuer can do", testType},
		{"settings with an unknown field are refused", testUnknownSetting},
		{"certificate is for the key and exactly the names", testIssues},
		{"names are those of the request, not those of the CSR", testForeignCSRNames},
		{"same order again is the same certificate", testSameOrder},
		{"same order at the same time is one certificate", testConcurrent},
		{"different orders are different certificates", testDifferentOrders},
		{"certificate ends when it was allowed to", testNotAfter},
		{"context that ended places no order", testCancelled},
		{"reference survives JSON and a new connector call", testRefJSON},
		{"poll of an unknown order is a permanent error", testUnknownRef},
		{"poll never waits", testPollPrompt},
		{"request without names is a permanent error", testNoNames},
		{"request without lifetime is a permanent error", testNoLifetime},
		{"broken key usage is a permanent error", testKeyUsage},
		{"revocation can be repeated", testRevoke},
		{"order whose reply was lost is found or may be placed again", testFind},
		{"order that was placed is found by everybody who looks", testFindAgain},
		{"list of orders holds each once, with a key that stays", testList},
		{"order that waits can be cancelled", testCancel},
		{"settings that are wrong are told by their name", testWrongSettings},
		{"revocation that waits for approval is asked for once", testApproval},
		{"CRL is signed and complete", testCRL},
		{"chain leads to a root", testChain},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, s)
		})
	}
}

func testType(t *testing.T, s Suite) {
	i, caps := s.New(t), s.Type.Capabilities
	require.NotEmpty(t, s.Type.Name)
	_, revokes := i.(issuer.Revoker)
	require.Equal(t, caps.Revocation, revokes, "Capabilities.Revocation and Revoker")
	_, signsCRL := i.(issuer.CRLSigner)
	require.Equal(t, caps.CRL, signsCRL, "Capabilities.CRL and CRLSigner")
	_, informs := i.(issuer.RenewalInformer)
	require.Equal(t, caps.ARI, informs, "Capabilities.ARI and RenewalInformer")
	_, finds := i.(issuer.Finder)
	require.Equal(t, caps.Find, finds, "Capabilities.Find and Finder")
	_, lists := i.(issuer.Lister)
	require.Equal(t, caps.List, lists, "Capabilities.List and Lister")
	_, cancels := i.(issuer.Canceller)
	require.Equal(t, caps.Cancel, cancels, "Capabilities.Cancel and Canceller")
}

func testUnknownSetting(t *testing.T, s Suite) {
	require.Error(t, s.Type.Validate(json.RawMessage(`{"no_such_setting_of_any_issuer":1}`), nil))
	require.Error(t, s.Type.Validate(json.RawMessage(`[]`), nil))
}

func testIssues(t *testing.T, s Suite) {
	i := s.New(t)
	for n, algorithm := range s.KeyAlgorithms {
		key := NewKey(t, algorithm)
		r := s.request(t, fmt.Sprintf("ord-issue-%d", n), key, s.names(t))
		s.check(t, i, r, s.finish(t, i, s.submit(t, i, r)))
	}
}

func testForeignCSRNames(t *testing.T, s Suite) {
	i, key := s.New(t), NewKey(t, certcheck.ECDSAP256)
	r := s.request(t, "ord-foreign", key, s.names(t))
	r.CSR = NewCSR(t, key, Names(t, "somebody-else.example.net"))
	sub, err := i.Submit(t.Context(), r)
	if err != nil {
		requirePermanent(t, err)
		return
	}
	s.check(t, i, r, s.finish(t, i, sub))
}

func testSameOrder(t *testing.T, s Suite) {
	if s.NoIdempotency {
		t.Skip("the CA would make another order")
	}
	i := s.New(t)
	r := s.request(t, "ord-same", NewKey(t, certcheck.ECDSAP256), s.names(t))
	first := s.submit(t, i, r)
	again := s.submit(t, i, r)
	require.Equal(t, first.Ref, again.Ref)
	a, b := s.finish(t, i, first), s.finish(t, i, again)
	require.Equal(t, string(a.CertificatePEM), string(b.CertificatePEM))
	late := s.finish(t, i, s.submit(t, i, r))
	require.Equal(t, string(a.CertificatePEM), string(late.CertificatePEM))
}

func testConcurrent(t *testing.T, s Suite) {
	if s.NoIdempotency {
		t.Skip("the CA would make other orders")
	}
	i := s.New(t)
	r := s.request(t, "ord-concurrent", NewKey(t, certcheck.ECDSAP256), s.names(t))
	var mu sync.Mutex
	var subs []issuer.Submission
	g, ctx := errgroup.WithContext(t.Context())
	for range 8 {
		g.Go(func() error {
			sub, err := i.Submit(ctx, r)
			mu.Lock()
			defer mu.Unlock()
			subs = append(subs, sub)
			return err
		})
	}
	require.NoError(t, g.Wait())
	want := s.finish(t, i, subs[0])
	for _, sub := range subs {
		require.Equal(t, string(want.CertificatePEM), string(s.finish(t, i, sub).CertificatePEM))
	}
}

func testDifferentOrders(t *testing.T, s Suite) {
	i, key := s.New(t), NewKey(t, certcheck.ECDSAP256)
	serials := map[string]bool{}
	for n := range 5 {
		r := s.request(t, fmt.Sprintf("ord-different-%d", n), key, s.names(t))
		leaf := s.check(t, i, r, s.finish(t, i, s.submit(t, i, r))).Leaf
		serials[issuer.FormatSerial(leaf.SerialNumber)] = true
	}
	require.Len(t, serials, 5)
}

func testNotAfter(t *testing.T, s Suite) {
	i := s.New(t)
	r := s.request(t, "ord-bound", NewKey(t, certcheck.ECDSAP256), s.names(t))
	r.NotAfter = time.Now().Add(s.Lifetime / 2)
	chain := s.check(t, i, r, s.finish(t, i, s.submit(t, i, r)))
	require.False(t, chain.Leaf.NotAfter.After(r.NotAfter))
}

func testCancelled(t *testing.T, s Suite) {
	i := s.New(t)
	r := s.request(t, "ord-cancelled", NewKey(t, certcheck.ECDSAP256), s.names(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := i.Submit(ctx, r)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "nothing was sent, so it may be sent again")
	s.check(t, i, r, s.finish(t, i, s.submit(t, i, r)))
}

func testRefJSON(t *testing.T, s Suite) {
	i := s.New(t)
	r := s.request(t, "ord-ref", NewKey(t, certcheck.ECDSAP256), s.names(t))
	sub := s.submit(t, i, r)
	require.NotEmpty(t, sub.Ref)
	text, err := json.Marshal(sub.Ref)
	require.NoError(t, err)
	var ref issuer.Ref
	require.NoError(t, json.Unmarshal(text, &ref))
	sub.Ref = ref
	s.check(t, i, r, s.finish(t, i, sub))
}

func testUnknownRef(t *testing.T, s Suite) {
	for _, ref := range []issuer.Ref{nil, {}, {"no_such_entry": "1"}} {
		_, err := s.New(t).Poll(t.Context(), ref)
		requirePermanent(t, err)
	}
}

func testPollPrompt(t *testing.T, s Suite) {
	if !s.Type.Capabilities.Async {
		t.Skip("answers at once")
	}
	i := s.New(t)
	sub := s.submit(t, i, s.request(t, "ord-prompt", NewKey(t, certcheck.ECDSAP256), s.names(t)))
	ctx, cancel := context.WithTimeout(t.Context(), promptly)
	defer cancel()
	for range 3 {
		_, err := i.Poll(ctx, sub.Ref)
		require.NoError(t, err)
	}
}

func testNoNames(t *testing.T, s Suite) {
	r := s.request(t, "ord-no-names", NewKey(t, certcheck.ECDSAP256), s.names(t))
	r.Names = certcheck.Names{}
	_, err := s.New(t).Submit(t.Context(), r)
	requirePermanent(t, err)
}

func testNoLifetime(t *testing.T, s Suite) {
	r := s.request(t, "ord-no-lifetime", NewKey(t, certcheck.ECDSAP256), s.names(t))
	r.Lifetime = 0
	_, err := s.New(t).Submit(t.Context(), r)
	requirePermanent(t, err)
}

func testKeyUsage(t *testing.T, s Suite) {
	r := s.request(t, "ord-key-usage", NewKey(t, certcheck.ECDSAP256), s.names(t))
	r.KeyUsage = x509.KeyUsageCertSign
	_, err := s.New(t).Submit(t.Context(), r)
	requirePermanent(t, err)
}

// request is NewRequest with the lifetime of the suite.
func (s Suite) request(t testing.TB, orderID string, key crypto.Signer, n certcheck.Names) issuer.SubmitRequest {
	t.Helper()
	r := NewRequest(t, orderID, key, n)
	r.Lifetime = s.Lifetime
	return r
}

// reason is one that the CA can be told.
func (s Suite) reason() issuer.Reason {
	if reasons := s.Type.Capabilities.Reasons; len(reasons) > 0 && !slices.Contains(reasons, issuer.Superseded) {
		return reasons[0]
	}
	return issuer.Superseded
}

// names are new ones for each order, of all kinds that the CA takes.
func (s Suite) names(t testing.TB) certcheck.Names {
	t.Helper()
	host := fmt.Sprintf("host-%s.example.com", rand.Text()[:8])
	raw := certcheck.RawNames{CommonName: host, DNSNames: []string{host, "*.apps.example.com"}}
	if !s.DNSOnly {
		raw.IPAddresses = []string{"192.0.2.7", "2001:db8::7"}
		raw.EmailAddresses = []string{"ops@example.com"}
		raw.URIs = []string{"spiffe://example.com/web"}
	}
	n, err := certcheck.ParseNames(raw)
	require.NoError(t, err)
	return n
}

func (s Suite) submit(t testing.TB, i issuer.Issuer, r issuer.SubmitRequest) issuer.Submission {
	t.Helper()
	sub, err := i.Submit(t.Context(), r)
	require.NoError(t, err)
	return sub
}

// finish polls until the order has ended.
func (s Suite) finish(t testing.TB, i issuer.Issuer, sub issuer.Submission) issuer.Submission {
	t.Helper()
	for n := 0; sub.State == issuer.Pending; n++ {
		require.Less(t, n, s.MaxPolls, "still pending")
		if s.Settle != nil {
			s.Settle(t)
		}
		var err error
		sub, err = i.Poll(t.Context(), sub.Ref)
		require.NoError(t, err)
	}
	require.Equal(t, issuer.Issued, sub.State, sub.Detail)
	return sub
}

// check holds an answer against its request as issuance does.
func (s Suite) check(t testing.TB, i issuer.Issuer, r issuer.SubmitRequest, sub issuer.Submission) certcheck.Chain {
	t.Helper()
	want := certcheck.Issued{
		PublicKey: r.CSR.PublicKey, Names: r.Names, Now: time.Now(), ExtKeyUsages: r.ExtKeyUsages,
		NotAfter: r.RequestedAt.Add(r.Lifetime + promptly),
	}
	if s.WholeDays {
		want.NotAfter = want.NotAfter.Add(24 * time.Hour)
	}
	if s.Type.Capabilities.SerialNumber {
		want.SerialNumber = r.SerialNumber
	}
	if p, ok := i.(issuer.ChainProvider); ok {
		chain, err := p.Chain(t.Context())
		require.NoError(t, err)
		want.Roots = chain[len(chain)-1:]
	}
	chain, err := certcheck.CheckIssued(slices.Concat(sub.CertificatePEM, sub.ChainPEM), want)
	require.NoError(t, err)
	return chain
}

func requirePermanent(t testing.TB, err error) {
	t.Helper()
	p, ok := issuer.AsPermanent(err)
	require.True(t, ok, "want a permanent error, got %v", err)
	require.Equal(t, issuer.OutcomePermanent, issuer.OutcomeOf(err))
	require.NotEmpty(t, p.Reason)
	require.NotEmpty(t, p.Message)
}
