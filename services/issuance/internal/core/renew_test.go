package core

import (
	"crypto/x509"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

const day = 24 * time.Hour

func (w *world) chain(issuerID string) []*x509.Certificate {
	w.t.Helper()
	text, err := w.CACertificates(w.ctx(), issuerID)
	require.NoError(w.t, err)
	out, err := certcheck.ParseBundle(text)
	require.NoError(w.t, err)
	return out
}

func TestALocalCAIsRenewedInTimeByOneReplicaAndStaysTheSameCA(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	replicas := []*Core{w.Core, w.replica(), w.replica()}
	r, o := w.issue(DefaultIssuerID)
	before := w.chain(DefaultIssuerID)
	n, err := w.RenewCAs(w.ctx())
	require.NoError(t, err)
	require.Zero(t, n, "nothing is due")
	row, err := w.GetIssuer(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)

	w.clock.turn(1300 * day)
	var renewed atomic.Int64
	var wg sync.WaitGroup
	for i := range 9 {
		wg.Go(func() {
			n, err := replicas[i%3].RenewCAs(w.ctx())
			require.NoError(t, err)
			renewed.Add(int64(n))
		})
	}
	wg.Wait()

	require.EqualValues(t, 1, renewed.Load())
	require.Len(t, w.events("audit.record", DefaultIssuerID), 2, "created and renewed")
	after := w.chain(DefaultIssuerID)
	require.False(t, before[0].Equal(after[0]))
	require.True(t, before[1].Equal(after[1]), "the root stays")
	require.Equal(t, before[0].RawSubject, after[0].RawSubject)
	require.True(t, after[0].NotAfter.After(before[0].NotAfter.AddDate(3, 0, 0)))
	require.NoError(t, w.leaf(o.ID).CheckSignatureFrom(after[0]))
	again, err := w.GetIssuer(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)
	require.Equal(t, row.Revision, again.Revision, "nobody edited it")
	require.NotEqual(t, row.ConfigHash, again.ConfigHash)

	// One CRL serves what was issued before and after, and every replica signs with the new certificate.
	done, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, SerialNumbers: []string{o.SerialNumber}})
	require.NoError(t, err)
	require.True(t, done)
	list := w.crl(DefaultIssuerID)
	require.Len(t, list.RevokedCertificateEntries, 1)
	require.NoError(t, list.CheckSignatureFrom(before[0]))
	require.NoError(t, list.CheckSignatureFrom(after[0]))
	for _, c := range replicas {
		o, err := c.Submit(w.ctx(), request(t, DefaultIssuerID))
		require.NoError(t, err)
		require.Equal(t, Issued, o.Status)
		require.NoError(t, w.leaf(o.ID).CheckSignatureFrom(after[0]))
	}
	_, err = w.TestIssuer(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)
}

func TestALocalCAIsRenewedForTheLongestProfile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.createProfile(narrowFor(4 * 365 * day))
	w.clock.turn(800 * day) // more than half of its life is left
	n, err := w.RenewCAs(w.ctx())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	r := request(t, DefaultIssuerID)
	r.ProfileID = narrowProfile
	_, err = w.Submit(w.ctx(), r)
	require.NoError(t, err)
	require.WithinDuration(t, w.clock.now().Add(4*365*day), w.leaf(r.OrderID).NotAfter, time.Minute)
}

func TestALocalCAThatExpiredWhileItWasOffIsRenewedToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.clock.turn(6 * 365 * day)
	w.Core = w.replica()
	_, err := w.CACertificates(w.ctx(), DefaultIssuerID)
	require.ErrorContains(t, err, "expired")

	_, err = w.RenewCAs(w.ctx())

	require.NoError(t, err)
	w.issue(DefaultIssuerID)
}

func TestARootThatEndsSoonIsSaidAndNotRenewedForNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, passed := range []time.Duration{8 * 365 * day, 600 * day} {
		w.clock.turn(passed)
		_, err := w.RenewCAs(w.ctx())
		require.NoError(t, err)
	}
	n, err := w.RenewCAs(w.ctx())
	require.NoError(t, err)
	require.Zero(t, n)
	require.NotZero(t, w.logs.FilterMessageSnippet("the root of a local CA ends soon").Len())
}

func TestFilesThatWereRenewedOnDiskAreInUseWithoutARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.corporate()
	w.issue("iss-corporate")
	before := w.chain("iss-corporate")
	n, err := w.RenewCAs(w.ctx())
	require.NoError(t, err)
	require.Zero(t, n)

	f.renew()
	n, err = w.RenewCAs(w.ctx())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	after := w.chain("iss-corporate")
	require.False(t, before[0].Equal(after[0]))
	_, o := w.issue("iss-corporate")
	require.NoError(t, w.leaf(o.ID).CheckSignatureFrom(after[0]))

	newCAFiles(t).copyTo(f)
	_, err = w.RenewCAs(w.ctx())
	require.ErrorContains(t, err, "another CA")
	require.Equal(t, after, w.chain("iss-corporate"))
}

func TestARenewalThatComesTooLateChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stale, err := store.GetIssuer(w.ctx(), w.deps.DB.Pool, DefaultIssuerID)
	require.NoError(t, err)
	w.clock.turn(1300 * day)
	w.updateIssuer(DefaultIssuerID, IssuerEdit{Merge: Settings{"crl_urls": []any{"http://crl.example.com/local.crl"}}})
	before := w.chain(DefaultIssuerID)

	did, err := w.renewMaterial(w.ctx(), stale, 90*day)

	require.NoError(t, err)
	require.False(t, did)
	require.Equal(t, before, w.chain(DefaultIssuerID))
}
