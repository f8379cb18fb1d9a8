package issuertest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

// The tests of what only some issuers do.

func testRevoke(t *testing.T, s Suite) {
	i := s.New(t)
	revoker, ok := i.(issuer.Revoker)
	if !ok {
		t.Skip("does not revoke")
	}
	r := s.request(t, "ord-revoke", NewKey(t, certcheck.ECDSAP256), s.names(t))
	sub := s.finish(t, i, s.submit(t, i, r))
	revoke := issuer.RevokeRequest{
		Ref: sub.Ref, Certificate: s.check(t, i, r, sub).Leaf, Reason: s.reason(), RevokedAt: time.Now(),
	}
	for range 2 { // a revoked certificate is a success
		revocation, err := revoker.Revoke(t.Context(), revoke)
		require.NoError(t, err)
		require.Equal(t, issuer.Revoked, revocation.State)
	}
	revoke.Reason = issuer.RemoveFromCRL
	_, err := revoker.Revoke(t.Context(), revoke)
	requirePermanent(t, err)
}

func testFind(t *testing.T, s Suite) {
	i := s.New(t)
	finder, ok := i.(issuer.Finder)
	if !ok {
		t.Skip("does not find orders")
	}
	r := s.request(t, "ord-find", NewKey(t, certcheck.ECDSAP256), s.names(t))
	_, found, err := finder.FindOrder(t.Context(), findRequest(r))
	require.NoError(t, err)
	require.False(t, found, "nothing was placed")
	sub := s.submit(t, i, r)
	again, found, err := finder.FindOrder(t.Context(), findRequest(r))
	require.NoError(t, err)
	if s.NoIdempotency {
		require.True(t, found, "who cannot submit twice has to find")
	} else if !found {
		again = s.submit(t, i, r)
	}
	require.Equal(t, string(s.finish(t, i, sub).CertificatePEM), string(s.finish(t, i, again).CertificatePEM))
}

// findRequest describes an order that was submitted so long ago that the CA shows it.
func findRequest(r issuer.SubmitRequest) issuer.FindRequest {
	return issuer.FindRequest{
		OrderID: r.OrderID, CSRSHA256: sha256.Sum256(r.CSR.Raw), Names: r.Names, SerialNumber: r.SerialNumber,
		Since: r.RequestedAt.Add(-time.Hour), PublicKey: r.CSR.PublicKey, Previous: r.Previous,
	}
}

func testFindAgain(t *testing.T, s Suite) {
	i := s.New(t)
	finder, ok := i.(issuer.Finder)
	if !ok || !s.NoIdempotency {
		t.Skip("orders are submitted again")
	}
	r := s.request(t, "ord-find-again", NewKey(t, certcheck.ECDSAP256), s.names(t))
	other := s.request(t, "ord-find-other", NewKey(t, certcheck.ECDSAP256), r.Names)
	want := s.finish(t, i, s.submit(t, i, r))
	s.submit(t, i, other)
	var g errgroup.Group
	results := make([]issuer.Submission, 4)
	for n := range results {
		g.Go(func() error {
			sub, found, err := finder.FindOrder(t.Context(), findRequest(r))
			if err == nil && !found {
				err = errors.New("not found")
			}
			results[n] = sub
			return err
		})
	}
	require.NoError(t, g.Wait())
	for _, sub := range results {
		require.Equal(t, string(want.CertificatePEM), string(s.finish(t, i, sub).CertificatePEM))
	}
}

func testList(t *testing.T, s Suite) {
	i := s.New(t)
	lister, ok := i.(issuer.Lister)
	if !ok {
		t.Skip("does not list orders")
	}
	subs := map[string]issuer.Submission{}
	for n := range 3 {
		r := s.request(t, fmt.Sprintf("ord-list-%d", n), NewKey(t, certcheck.ECDSAP256), s.names(t))
		sub := s.finish(t, i, s.submit(t, i, r))
		key := lister.OrderKey(sub.Ref)
		require.NotEmpty(t, key)
		subs[key] = sub
	}
	require.Len(t, subs, 3)
	seen := map[string]issuer.ListedOrder{}
	page := issuer.ListRequest{Since: time.Now().Add(-time.Hour)}
	for pages := 0; ; pages++ {
		require.Less(t, pages, 20, "the list has no end")
		listing, err := lister.ListOrders(t.Context(), page)
		require.NoError(t, err)
		for _, o := range listing.Orders {
			require.NotContains(t, seen, o.Key)
			seen[o.Key] = o
		}
		if page.Page = listing.Next; page.Page == "" {
			break
		}
	}
	for key, sub := range subs {
		require.Contains(t, seen, key)
		require.Equal(t, key, lister.OrderKey(seen[key].Ref))
		listed, err := i.Poll(t.Context(), seen[key].Ref)
		require.NoError(t, err)
		leaves, err := certcheck.ParseBundle(sub.CertificatePEM)
		require.NoError(t, err)
		bundle, err := certcheck.ParseBundle(slices.Concat(listed.CertificatePEM, listed.ChainPEM))
		require.NoError(t, err)
		require.True(t, slices.ContainsFunc(bundle, leaves[0].Equal))
	}
}

func testCancel(t *testing.T, s Suite) {
	if s.Hold == nil {
		t.Skip("no order waits")
	}
	i := s.Hold(t)
	canceller, ok := i.(issuer.Canceller)
	require.True(t, ok)
	sub := s.submit(t, i, s.request(t, "ord-cancel", NewKey(t, certcheck.ECDSAP256), s.names(t)))
	require.Equal(t, issuer.Pending, sub.State)
	sub, err := i.Poll(t.Context(), sub.Ref)
	require.NoError(t, err)
	require.Equal(t, issuer.Pending, sub.State)
	require.NotEmpty(t, sub.Detail, "a person sees what the order waits for")
	for range 2 { // one that has ended is a success
		require.NoError(t, canceller.Cancel(t.Context(), sub.Ref))
	}
	sub, err = i.Poll(t.Context(), sub.Ref)
	if err != nil {
		requirePermanent(t, err)
		return
	}
	require.Equal(t, issuer.Rejected, sub.State)
	require.NotEmpty(t, sub.Detail)
}

func testWrongSettings(t *testing.T, s Suite) {
	i := s.New(t)
	tester, ok := i.(issuer.Tester)
	if !ok {
		t.Skip("cannot test its settings")
	}
	require.NoError(t, tester.Test(t.Context()))
	if s.Wrong == nil {
		return
	}
	for field, wrong := range s.Wrong(t) {
		tester, ok := wrong.(issuer.Tester)
		require.True(t, ok)
		err := tester.Test(t.Context())
		requirePermanent(t, err)
		p, _ := issuer.AsPermanent(err)
		require.Equal(t, issuer.FaultConfiguration, p.Fault)
		require.Equal(t, field, p.Field, err)
	}
}

func testApproval(t *testing.T, s Suite) {
	if s.Approval == nil {
		t.Skip("no revocation waits")
	}
	for _, approve := range []bool{true, false} {
		i, decide := s.Approval(t)
		revoker, ok := i.(issuer.Revoker)
		require.True(t, ok)
		r := s.request(t, fmt.Sprintf("ord-approval-%t", approve), NewKey(t, certcheck.ECDSAP256), s.names(t))
		sub := s.finish(t, i, s.submit(t, i, r))
		revoke := issuer.RevokeRequest{Ref: sub.Ref, Certificate: s.check(t, i, r, sub).Leaf, Reason: s.reason(), RevokedAt: time.Now()}
		first, err := revoker.Revoke(t.Context(), revoke)
		require.NoError(t, err)
		require.Equal(t, issuer.AwaitingApproval, first.State)
		require.NotEmpty(t, first.Request)
		lost, err := revoker.Revoke(t.Context(), revoke) // as if the reply had been lost
		require.NoError(t, err)
		require.Equal(t, first.Request, lost.Request, "it is asked for once")
		revoke.Request = first.Request
		again, err := revoker.Revoke(t.Context(), revoke)
		require.NoError(t, err)
		require.Equal(t, issuer.AwaitingApproval, again.State)
		decide(approve)
		last, err := revoker.Revoke(t.Context(), revoke)
		if !approve {
			requirePermanent(t, err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, issuer.Revoked, last.State)
	}
}

func testCRL(t *testing.T, s Suite) {
	i := s.New(t)
	signer, ok := i.(issuer.CRLSigner)
	if !ok {
		t.Skip("does not sign CRLs")
	}
	provider, ok := i.(issuer.ChainProvider)
	require.True(t, ok, "who signs CRLs gives the chain that verifies them")
	chain, err := provider.Chain(t.Context())
	require.NoError(t, err)
	now := time.Now().UTC().Truncate(time.Second)
	entries, err := issuer.NewCRLEntries(issuer.CRLEntry{SerialNumber: big.NewInt(42), RevokedAt: now, Reason: issuer.KeyCompromise})
	require.NoError(t, err)
	signed, err := signer.SignCRL(t.Context(), issuer.CRLRequest{Number: big.NewInt(7), ThisUpdate: now, NextUpdate: now.Add(time.Hour), Entries: entries})
	require.NoError(t, err)
	crl, err := x509.ParseRevocationList(DER(t, signed, entries))
	require.NoError(t, err)
	require.NoError(t, crl.CheckSignatureFrom(chain[0]))
	require.Zero(t, crl.Number.Cmp(big.NewInt(7)))
	require.Len(t, crl.RevokedCertificateEntries, 1)
	require.Zero(t, crl.RevokedCertificateEntries[0].SerialNumber.Cmp(big.NewInt(42)))
	require.Equal(t, int(issuer.KeyCompromise), crl.RevokedCertificateEntries[0].ReasonCode)
}

// DER is all of a CRL.
func DER(t testing.TB, signed issuer.SignedCRL, entries issuer.CRLEntries) []byte {
	t.Helper()
	der := bytes.NewBuffer(slices.Clone(signed.Head))
	if entries.Size > 0 {
		require.NoError(t, entries.Write(der))
	}
	der.Write(signed.Tail)
	return der.Bytes()
}

func testChain(t *testing.T, s Suite) {
	p, ok := s.New(t).(issuer.ChainProvider)
	if !ok {
		t.Skip("does not give its chain")
	}
	chain, err := p.Chain(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, chain)
	for n, c := range chain[1:] {
		require.NoError(t, chain[n].CheckSignatureFrom(c))
	}
}
