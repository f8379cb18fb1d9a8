package core

import (
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

const keyCompromise = int16(issuer.KeyCompromise)

func (w *world) issue(issuerID string) (SubmitRequest, store.Order) {
	w.t.Helper()
	r := request(w.t, issuerID)
	o, err := w.Submit(w.ctx(), r)
	require.NoError(w.t, err)
	require.Equal(w.t, Issued, o.Status)
	return r, o
}

func (w *world) crl(issuerID string) *x509.RevocationList {
	w.t.Helper()
	stored, err := w.CRL(w.ctx(), issuerID)
	require.NoError(w.t, err)
	list, err := x509.ParseRevocationList(stored.DER)
	require.NoError(w.t, err)
	return list
}

func TestARevokedCertificateIsInTheCRLAtOnceAndOpenSSLAgrees(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	require.NoError(t, err, "the test needs openssl")
	w := newWorld(t)
	require.Empty(t, w.crl(DefaultIssuerID).RevokedCertificateEntries)
	r, o := w.issue(DefaultIssuerID)
	_, kept := w.issue(DefaultIssuerID)

	done, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, SerialNumbers: []string{o.SerialNumber}, Reason: keyCompromise})
	require.NoError(t, err)
	require.True(t, done)

	dir := t.TempDir()
	stored, err := w.CRL(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)
	ca, err := w.CACertificates(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "crl"), stored.DER, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca"), ca, 0o600))
	out, err := exec.CommandContext(t.Context(), openssl, "crl", "-inform", "DER", "-in", filepath.Join(dir, "crl"),
		"-CAfile", filepath.Join(dir, "ca"), "-noout", "-text").CombinedOutput()
	require.NoError(t, err, string(out))
	text := strings.ToLower(string(out))
	require.Contains(t, text, "verify ok")
	require.Contains(t, text, o.SerialNumber)
	require.Contains(t, text, "key compromise")
	require.NotContains(t, text, kept.SerialNumber)
	require.Len(t, w.events("revocation.done", r.CertificateID), 1)
}

func TestTheFirstReasonStays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, _ := w.issue(DefaultIssuerID)
	for _, reason := range []issuer.Reason{issuer.Superseded, issuer.KeyCompromise} {
		done, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: int16(reason)})
		require.NoError(t, err)
		require.True(t, done)
	}
	list := w.crl(DefaultIssuerID)
	require.Len(t, list.RevokedCertificateEntries, 1)
	require.Equal(t, int(issuer.Superseded), list.RevokedCertificateEntries[0].ReasonCode)
	require.Len(t, w.events("revocation.done", r.CertificateID), 1)
}

func TestACAThatIsAwayIsToldLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, o := w.issue(fakeIssuer)
	w.fake.SetDown(issuer.RetryAfter(0, errors.New("maintenance")))
	done, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: keyCompromise})
	require.NoError(t, err)
	require.False(t, done)
	require.Empty(t, w.events("revocation.done", r.CertificateID))
	w.retryRevocations()
	_, revoked, err := w.fake.Revoked(o.ID)
	require.NoError(t, err)
	require.False(t, revoked)

	w.fake.SetDown(nil)
	w.retryRevocations()

	reason, revoked, err := w.fake.Revoked(o.ID)
	require.NoError(t, err)
	require.True(t, revoked)
	require.Equal(t, issuer.KeyCompromise, reason)
	require.Len(t, w.events("revocation.done", r.CertificateID), 1)
	done, err = w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: keyCompromise})
	require.NoError(t, err)
	require.True(t, done)
}

func TestACAWithoutRevocationIsNeverSaidToKnow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.createIssuer(NewIssuer{ID: "iss-blind", Name: "Blind", Type: "blind", Enabled: true})
	r, _ := w.issue("iss-blind")
	done, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: keyCompromise})
	require.NoError(t, err)
	require.False(t, done)
	require.Empty(t, w.events("revocation.done", r.CertificateID))
}

func TestARevocationThatMakesNoSenseIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, _ := w.issue(DefaultIssuerID)
	for _, reason := range []int16{-1, 7, 8, 11, 300} {
		_, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: reason})
		require.Equal(t, errs.Invalid, errs.KindOf(err), "reason %d", reason)
	}
	_, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, SerialNumbers: []string{"0A"}})
	require.Equal(t, errs.Invalid, errs.KindOf(err))
	done, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, SerialNumbers: []string{"abc"}})
	require.NoError(t, err)
	require.False(t, done, "nothing of that serial number was issued here")
	require.Empty(t, w.crl(DefaultIssuerID).RevokedCertificateEntries)
}

func TestReplicasNeverGiveTwoCRLsOneNumber(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	replicas := []*Core{w.Core, w.replica(), w.replica()}
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[int64]string{}
	for i := range 30 {
		wg.Go(func() {
			list, err := replicas[i%3].MakeCRL(w.ctx(), DefaultIssuerID)
			if !errs.IsKind(err, errs.Unavailable) {
				require.NoError(t, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if before, ok := seen[list.Number]; ok && err == nil {
				require.Equal(t, before, string(list.DER))
			}
			if err == nil {
				seen[list.Number] = string(list.DER)
			}
		})
	}
	wg.Wait()
	require.NotEmpty(t, seen)
}

func TestTheLoopMakesTheCRLsThatAreDueAndNoOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made, err := w.RefreshCRLs(w.ctx())
	require.NoError(t, err)
	require.Equal(t, 1, made, "the first one of iss-local")
	made, err = w.RefreshCRLs(w.ctx())
	require.NoError(t, err)
	require.Zero(t, made)

	r, _ := w.issue(DefaultIssuerID)
	_, err = w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: keyCompromise})
	require.NoError(t, err)
	select {
	case <-w.CRLKick():
	default:
		t.Fatal("nobody was woken")
	}
	made, err = w.RefreshCRLs(w.ctx())
	require.NoError(t, err)
	require.Equal(t, 1, made)

	w.clock.turn(13 * time.Hour)
	made, err = w.RefreshCRLs(w.ctx())
	require.NoError(t, err)
	require.Equal(t, 1, made, "the second half of its life")
}

func TestAnEntryStaysUntilACRLBeyondTheEndOfItsCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, _ := w.issue(DefaultIssuerID) // for one hour
	_, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: keyCompromise})
	require.NoError(t, err)
	require.Len(t, w.crl(DefaultIssuerID).RevokedCertificateEntries, 1)
	w.clock.turn(25 * time.Hour)
	require.Len(t, w.crl(DefaultIssuerID).RevokedCertificateEntries, 1)
	w.clock.turn(50 * time.Hour)
	require.Empty(t, w.crl(DefaultIssuerID).RevokedCertificateEntries)
}

func TestADeletedIssuerStillAnswersForWhatItIssued(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, o := w.issue(DefaultIssuerID)
	require.NoError(t, w.deleteIssuer(DefaultIssuerID))
	_, err := w.GetIssuer(w.ctx(), DefaultIssuerID)
	require.Equal(t, "ISSUER_NOT_FOUND", errs.ReasonOf(err))

	done, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: keyCompromise})
	require.NoError(t, err)
	require.True(t, done)
	require.Equal(t, o.SerialNumber, issuer.FormatSerial(w.crl(DefaultIssuerID).RevokedCertificateEntries[0].SerialNumber))
	require.NoError(t, w.Bootstrap(w.ctx()))
	_, err = w.GetIssuer(w.ctx(), DefaultIssuerID)
	require.Equal(t, "ISSUER_NOT_FOUND", errs.ReasonOf(err), "what was deleted is not made again")
	_, err = w.Submit(w.ctx(), request(t, DefaultIssuerID))
	require.Equal(t, errs.Invalid, errs.KindOf(err))
}

func TestACAThatPublishesItselfHasNoCRLHere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.CRL(w.ctx(), fakeIssuer)
	require.Equal(t, errs.NotFound, errs.KindOf(err))
	_, err = w.CRL(w.ctx(), "iss-none")
	require.Equal(t, errs.NotFound, errs.KindOf(err))
	pem, err := w.CACertificates(w.ctx(), fakeIssuer)
	require.NoError(t, err)
	require.Contains(t, string(pem), "BEGIN CERTIFICATE")
}
