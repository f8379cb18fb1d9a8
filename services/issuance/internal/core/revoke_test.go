package core

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpcctx"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
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
	_, der, err := w.CRL(w.ctx(), issuerID)
	require.NoError(w.t, err)
	list, err := x509.ParseRevocationList(der)
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
	_, der, err := w.CRL(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)
	ca, err := w.CACertificates(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "crl"), der, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca"), ca, 0o600))
	out, err := exec.CommandContext(t.Context(), openssl, "crl", "-inform", "DER", "-in", filepath.Join(dir, "crl"),
		"-CAfile", filepath.Join(dir, "ca"), "-noout", "-text").CombinedOutput()
	require.NoError(t, err, string(out))
	text := strings.ToLower(string(out))
	require.Contains(t, text, "verify ok")
	require.Contains(t, text, o.SerialNumber)
	require.Contains(t, text, "key compromise")
	require.NotContains(t, text, kept.SerialNumber)
	require.Empty(t, w.events("revocation.done", r.CertificateID), "who asked has heard it")
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
	require.NoError(t, w.tx(storing(w.Core, RevokeRequest{CertificateID: r.CertificateID})))
	require.Len(t, w.events("revocation.done", r.CertificateID), 1, "the answers may have been lost")
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
	revoked := w.copies(30)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[int64]string{}
	for i := range 30 {
		wg.Go(func() {
			w.revokeCopies(revoked[i : i+1])
			require.NoError(t, replicas[i%3].MakeCRL(w.ctx(), DefaultIssuerID))
			list, der, err := replicas[(i+1)%3].CRL(w.ctx(), DefaultIssuerID)
			require.NoError(t, err)
			parsed, err := x509.ParseRevocationList(der)
			require.NoError(t, err)
			require.Contains(t, serials(parsed), revoked[i], "what was revoked before the question")
			mu.Lock()
			defer mu.Unlock()
			if before, ok := seen[list.Number]; ok {
				require.Equal(t, before, string(der))
			}
			seen[list.Number] = string(der)
		})
	}
	wg.Wait()
	all := w.crl(DefaultIssuerID)
	require.ElementsMatch(t, revoked, serials(all), "each once")
}

func serials(list *x509.RevocationList) (out []string) {
	for _, e := range list.RevokedCertificateEntries {
		out = append(out, issuer.FormatSerial(e.SerialNumber))
	}
	return out
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
	_, _, err := w.CRL(w.ctx(), fakeIssuer)
	require.Equal(t, errs.NotFound, errs.KindOf(err))
	_, _, err = w.CRL(w.ctx(), "iss-none")
	require.Equal(t, errs.NotFound, errs.KindOf(err))
	pem, err := w.CACertificates(w.ctx(), fakeIssuer)
	require.NoError(t, err)
	require.Contains(t, string(pem), "BEGIN CERTIFICATE")
}

func TestALocalRevocationIsDoneAtOnceAlsoWhenItsEventWasFaster(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, o := w.issue(DefaultIssuerID)
	revocation := RevokeRequest{CertificateID: r.CertificateID, SerialNumbers: []string{o.SerialNumber}, Reason: keyCompromise}
	require.NoError(t, w.tx(storing(w.Core, revocation)))
	// A loop has taken all that it can get.
	_, err := w.deps.DB.Pool.Exec(w.ctx(), `UPDATE revocations SET lease_id = gen_random_uuid(), lease_until = now() + interval '1 hour' WHERE due_time IS NOT NULL`)
	require.NoError(t, err)

	done, err := w.Revoke(w.ctx(), revocation)

	require.NoError(t, err)
	require.True(t, done)
	require.Len(t, w.events("revocation.done", r.CertificateID), 1)
	require.Len(t, w.crl(DefaultIssuerID).RevokedCertificateEntries, 1)
}

func TestNoLoopTakesARevocationFromTheCallThatIsOnItsWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, _ := w.issue(fakeIssuer)
	revocation := RevokeRequest{CertificateID: r.CertificateID, Reason: keyCompromise}
	require.NoError(t, w.tx(storing(w.Core, revocation)))
	table, err := store.RevocationLeases()
	require.NoError(t, err)
	leases, err := table.Claim(w.ctx(), w.deps.DB.Pool, 100, time.Minute)
	require.NoError(t, err)
	require.Empty(t, leases)

	done, err := w.Revoke(w.ctx(), revocation)

	require.NoError(t, err)
	require.True(t, done)
}

func storing(c *Core, requests ...RevokeRequest) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error {
		_, err := c.StoreRevocations(ctx, tx, requests...)
		return err
	}
}

// hanging is a CA that never answers a revocation.
type hanging struct{ *issuertest.Fake }

func (hanging) Revoke(ctx context.Context, _ issuer.RevokeRequest) (issuer.Revocation, error) {
	<-ctx.Done()
	return issuer.Revocation{}, issuer.RetryAfter(0, ctx.Err())
}

func TestACAThatHangsHoldsACallUpNoLongerThanTheCallersTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	typ := w.fake.Type()
	typ.Name = "hanging"
	typ.New = func(context.Context, issuer.Config, issuer.Deps) (issuer.Issuer, error) { return hanging{w.fake}, nil }
	w.types = append(w.types, typ)
	w.Core = w.replica()
	w.createIssuer(NewIssuer{ID: "iss-hanging", Name: "Hanging", Type: "hanging", Enabled: true})
	first, _ := w.issue("iss-hanging")
	for range 2 {
		more := request(t, "iss-hanging")
		more.CertificateID = first.CertificateID
		_, err := w.Submit(w.ctx(), more)
		require.NoError(t, err)
	}
	ctx, cancel := context.WithTimeout(w.ctx(), 500*time.Millisecond)
	defer cancel()
	begin := time.Now()

	done, err := w.Revoke(ctx, RevokeRequest{CertificateID: first.CertificateID, Reason: keyCompromise})

	require.NoError(t, err)
	require.False(t, done)
	require.Less(t, time.Since(begin), 4*time.Second, "less than one call to a CA takes at most")
	var free int
	require.NoError(t, w.deps.DB.Pool.QueryRow(w.ctx(), `SELECT count(*) FROM revocations WHERE status = 'PENDING' AND lease_id IS NULL`).Scan(&free))
	require.Equal(t, 3, free, "all wait for the loop")
}

// gated is a local CA whose CRLs wait at a gate.
type gated struct {
	*local.Issuer

	entered chan struct{}
	open    chan struct{}
}

func (g gated) SignCRL(ctx context.Context, r issuer.CRLRequest) (issuer.SignedCRL, error) {
	select {
	case g.entered <- struct{}{}:
	default:
	}
	<-g.open
	return g.Issuer.SignCRL(ctx, r)
}

func TestACRLThatWasBegunBeforeARevocationIsNotTheAnswerAfterIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	entered, open := make(chan struct{}, 1), make(chan struct{})
	typ := local.Type()
	typ.New = func(ctx context.Context, c issuer.Config, d issuer.Deps) (issuer.Issuer, error) {
		i, err := local.Type().New(ctx, c, d)
		if err != nil {
			return nil, err
		}
		return gated{i.(*local.Issuer), entered, open}, nil
	}
	w.types = issuer.Types{typ, w.fake.Type()}
	w.Core = w.replica()
	r, o := w.issue(DefaultIssuerID)
	statements := w.countStatements()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _, err := w.CRL(w.ctx(), DefaultIssuerID)
		require.NoError(t, err)
	})
	<-entered
	_, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, Reason: keyCompromise})
	require.NoError(t, err)

	const askers = 20
	before := len(statements())
	for range askers {
		wg.Go(func() {
			_, der, err := w.CRL(w.ctx(), DefaultIssuerID)
			require.NoError(t, err)
			parsed, err := x509.ParseRevocationList(der)
			require.NoError(t, err)
			require.Len(t, parsed.RevokedCertificateEntries, 1)
			require.Equal(t, o.SerialNumber, issuer.FormatSerial(parsed.RevokedCertificateEntries[0].SerialNumber))
		})
	}
	require.Eventually(t, func() bool { return len(statements()) >= before+askers }, 10*time.Second, time.Millisecond)
	close(open)
	wg.Wait()
}

func TestARevocationCostsThreeStatementsAndFiftyCostNoMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	revoke := func() RevokeRequest {
		r, o := w.issue(DefaultIssuerID)
		return RevokeRequest{CertificateID: r.CertificateID, SerialNumbers: []string{o.SerialNumber}, Reason: keyCompromise}
	}
	one := revoke()
	fifty := make([]RevokeRequest, 50)
	for i := range fifty {
		fifty[i] = revoke()
	}
	counter := w.countStatements()

	done, err := w.Revoke(w.ctx(), one)
	require.NoError(t, err)
	require.True(t, done)
	require.Len(t, counter(), 3, "%v", counter())
	require.NoError(t, w.tx(storing(w.Core, fifty...)))
	require.Len(t, counter(), 6, "%v", counter())
	// The event of a revocation that the call has brought already.
	require.NoError(t, w.tx(storing(w.Core, fifty...)))
	require.Len(t, counter(), 9, "%v", counter())
	require.Len(t, w.crl(DefaultIssuerID).RevokedCertificateEntries, 51)
}

func TestRevocationsThatComeTogetherShareStatementsAndKeepWhoAskedForThem(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const many = 20
	list := make([]RevokeRequest, many)
	for i := range list {
		r, o := w.issue([]string{DefaultIssuerID, fakeIssuer}[i%2])
		list[i] = RevokeRequest{CertificateID: r.CertificateID, SerialNumbers: []string{o.SerialNumber}, Reason: keyCompromise}
	}
	list[6].SerialNumbers = []string{"abcdef"} // was not issued here: nothing says that a CA knows of it
	holder, err := w.db.Admin(t).Begin(t.Context())
	require.NoError(t, err)
	_, err = holder.Exec(t.Context(), `LOCK TABLE issuance.revocations IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	counter := w.countStatements()

	var begun, ended sync.WaitGroup
	done := make([]bool, many)
	failed := make([]error, many)
	for i, r := range list {
		begun.Add(1)
		ended.Go(func() {
			ctx := rpcctx.WithRequestID(rpcctx.WithCaller(t.Context(), rpcctx.Caller{Type: rpcctx.User, ID: fmt.Sprintf("user-%d", i), Role: rpcctx.RoleOperator}), fmt.Sprintf("req-%d", i))
			begun.Done()
			done[i], failed[i] = w.Revoke(ctx, r)
		})
	}
	begun.Wait()
	require.Eventually(t, func() bool { return len(counter()) > 0 }, 10*time.Second, time.Millisecond, "the first waits, and the others for it")
	require.NoError(t, holder.Rollback(t.Context()))
	ended.Wait()

	stored := 0
	for _, sql := range counter() {
		if strings.Contains(sql, "INSERT INTO revocations") {
			stored++
		}
	}
	require.Less(t, stored, many/2, "not one by one")
	for i, r := range list {
		require.NoError(t, failed[i])
		require.Equal(t, i != 6, done[i], "each has its own answer: %d", i)
		if i == 6 {
			continue
		}
		rows, err := store.RevocationsOf(w.ctx(), w.deps.DB.Pool, []store.SerialNumber{{IssuerID: []string{DefaultIssuerID, fakeIssuer}[i%2], SerialNumber: r.SerialNumbers[0]}})
		require.NoError(t, err)
		require.Len(t, rows, 1)
		recorded := w.events("audit.record", rows[0].ID)
		require.NotEmpty(t, recorded)
		require.Equal(t, fmt.Sprintf("req-%d", i), recorded[0].GetRequestId())
		record := &auditv1.Record{}
		require.NoError(t, recorded[0].GetPayload().UnmarshalTo(record))
		require.Equal(t, "revocation.recorded", record.GetAction())
		require.Equal(t, fmt.Sprintf("user-%d", i), record.GetActor().GetId(), "the record names who asked for it")
	}
}

// asked counts what a CA is asked to revoke.
type asked struct {
	*issuertest.Fake

	times *atomic.Int32
}

func (a asked) Revoke(ctx context.Context, r issuer.RevokeRequest) (issuer.Revocation, error) {
	a.times.Add(1)
	return a.Fake.Revoke(ctx, r)
}

// TestTheEventOfARevocationThatTheCAKnowsHasItToldAgainAndTheCANotAsked: what inventory was answered, it may have lost.
func TestTheEventOfARevocationThatTheCAKnowsHasItToldAgainAndTheCANotAsked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var times atomic.Int32
	typ := w.fake.Type()
	typ.Name = "asked"
	typ.New = func(context.Context, issuer.Config, issuer.Deps) (issuer.Issuer, error) {
		return asked{w.fake, &times}, nil
	}
	w.types = append(w.types, typ)
	w.Core = w.replica()
	w.createIssuer(NewIssuer{ID: "iss-asked", Name: "Asked", Type: "asked", Enabled: true})
	r, o := w.issue("iss-asked")
	revocation := RevokeRequest{CertificateID: r.CertificateID, SerialNumbers: []string{o.SerialNumber}, Reason: keyCompromise}
	done, err := w.Revoke(w.ctx(), revocation)
	require.NoError(t, err)
	require.True(t, done)
	told := len(w.events("revocation.done", r.CertificateID))

	w.Core = w.replica() // another process: the event comes after a restart
	require.NoError(t, w.tx(storing(w.Core, revocation)))
	w.retryRevocations()

	require.Len(t, w.events("revocation.done", r.CertificateID), told+1)
	require.EqualValues(t, 1, times.Load())
}

func TestOfSeveralRevocationsOfOneCertificateTheFirstStaysAlsoWhenTheyComeTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, o := w.issue(DefaultIssuerID)
	other, _ := w.issue(DefaultIssuerID)
	first := RevokeRequest{CertificateID: r.CertificateID, SerialNumbers: []string{o.SerialNumber}, Reason: keyCompromise, RequestID: "req-1"}
	again := RevokeRequest{CertificateID: r.CertificateID, Reason: int16(issuer.Superseded), RequestID: "req-2"}
	foreign := RevokeRequest{CertificateID: other.CertificateID, SerialNumbers: []string{o.SerialNumber}} // is not that certificate's

	require.NoError(t, w.tx(storing(w.Core, first, again, foreign)))

	entries := w.crl(DefaultIssuerID).RevokedCertificateEntries
	require.Len(t, entries, 1)
	require.EqualValues(t, keyCompromise, entries[0].ReasonCode)
	told := w.events("revocation.done", r.CertificateID)
	require.Len(t, told, 2)
	require.Equal(t, "req-1", told[0].GetRequestId())
}

func TestTheNextCRLReadsOnlyWhatNoneHasListedWhicheverReplicaMakesIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	revoked := w.copies(4)
	w.revokeCopies(revoked[:1])
	require.Equal(t, revoked[:1], serials(w.crl(DefaultIssuerID)))
	// What was listed before is not looked at again.
	_, err := w.deps.DB.Pool.Exec(w.ctx(), `UPDATE revocations SET reason = 5 WHERE serial_number = $1`, revoked[0])
	require.NoError(t, err)
	for n, c := range []*Core{w.Core, w.replica(), w.Core} {
		w.revokeCopies(revoked[n+1 : n+2])
		_, der, err := c.CRL(w.ctx(), DefaultIssuerID)
		require.NoError(t, err)
		list, err := x509.ParseRevocationList(der)
		require.NoError(t, err)
		require.Equal(t, revoked[:n+2], serials(list))
		require.EqualValues(t, keyCompromise, list.RevokedCertificateEntries[0].ReasonCode)
	}
	w.clock.turn(w.cfg.CRLValidity)
	require.Equal(t, 5, w.crl(DefaultIssuerID).RevokedCertificateEntries[0].ReasonCode, "a new generation reads all")
}

// copies makes certificates that issuer iss-local has issued, and gives their serial numbers.
func (w *world) copies(n int) (serials []string) {
	w.t.Helper()
	_, o := w.issue(DefaultIssuerID)
	_, err := w.deps.DB.Pool.Exec(w.ctx(), `INSERT INTO orders SELECT (jsonb_populate_record(o, jsonb_build_object('id', 'copy-' || n))).*
 FROM orders o, generate_series(1, $2::int) AS n WHERE o.id = $1`, o.ID, n)
	require.NoError(w.t, err)
	rows, err := w.deps.DB.Pool.Query(w.ctx(), `INSERT INTO issued_certificates SELECT (jsonb_populate_record(c,
  jsonb_build_object('order_id', 'copy-' || n, 'serial_number', '10' || lpad(to_hex(n), 8, '0')))).*
 FROM issued_certificates c, generate_series(1, $2::int) AS n WHERE c.order_id = $1 RETURNING serial_number`, o.ID, n)
	require.NoError(w.t, err)
	serials, err = pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(w.t, err)
	return serials
}

// revokeCopies stores revocations as Revoke does for an issuer with a CRL.
func (w *world) revokeCopies(serials []string) {
	w.t.Helper()
	_, err := w.deps.DB.Pool.Exec(w.ctx(), `INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revocation_time, not_after, status)
 SELECT order_id, issuer_id, serial_number, certificate_id, 1, now(), not_after, 'DONE' FROM issued_certificates WHERE serial_number = ANY($1)`, serials)
	require.NoError(w.t, err)
}

func TestOneCRLListsMoreThanATransactionAndAPartHold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const many = 2*crlBatch + 1
	revoked := w.copies(many)
	w.revokeCopies(revoked)
	first := w.crl(DefaultIssuerID)
	require.ElementsMatch(t, revoked, serials(first))
	again := w.crl(DefaultIssuerID)
	require.Equal(t, first.Number, again.Number, "all are noted: no other CRL is made for them")

	whole, der, err := w.CRL(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)
	size, fromParts := whole.Bytes()
	require.Len(t, der, int(size))
	require.Greater(t, fromParts, int64(crlWhole))
	for _, offset := range []int64{0, 1, int64(len(whole.Head)) + 1, size - 1, size} {
		_, piece, err := w.ReadCRL(w.ctx(), DefaultIssuerID, whole.Number, offset)
		require.NoError(t, err)
		require.True(t, bytes.HasPrefix(der[offset:], piece), "from byte %d on", offset)
		require.Equal(t, offset == size, len(piece) == 0)
	}
	_, _, err = w.ReadCRL(w.ctx(), DefaultIssuerID, whole.Number, size+1)
	require.Equal(t, errs.Invalid, errs.KindOf(err))
	_, _, err = w.ReadCRL(w.ctx(), DefaultIssuerID, 0, 1)
	require.Equal(t, errs.Invalid, errs.KindOf(err), "of which one?")
	_, _, err = w.ReadCRL(w.ctx(), DefaultIssuerID, whole.Number+1, 0)
	require.Equal(t, "CRL_NOT_FOUND", errs.ReasonOf(err))

	w.clock.turn(w.cfg.CRLValidity)
	require.NoError(t, w.MakeCRL(w.ctx(), DefaultIssuerID))
	next := w.crl(DefaultIssuerID)
	require.ElementsMatch(t, revoked, serials(next), "in a generation of their own, in which they are read in the order of serial numbers")
	_, piece, err := w.ReadCRL(w.ctx(), DefaultIssuerID, whole.Number, 0)
	require.NoError(t, err)
	require.True(t, bytes.HasPrefix(der, piece), "who reads the one before goes on")
}

// TestACRLThatIsNotStoredIsMadeByWhoComesNext has the process end where its entries are in the parts and no CRL has them.
func TestACRLThatIsNotStoredIsMadeByWhoComesNext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	require.Empty(t, w.crl(DefaultIssuerID).RevokedCertificateEntries)
	revoked := w.copies(2)
	w.revokeCopies(revoked[:1])
	_, err := w.listRevocations(w.ctx(), DefaultIssuerID, w.now())
	require.NoError(t, err)
	other := w.replica()
	made, err := other.RefreshCRLs(w.ctx())
	require.NoError(t, err)
	require.Equal(t, 1, made)
	require.Equal(t, revoked[:1], serials(w.crl(DefaultIssuerID)))
}

func TestOldCRLsAndTheirPartsGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.revokeCopies(w.copies(1))
	_, err := w.deps.DB.Pool.Exec(w.ctx(), `UPDATE revocations SET not_after = not_after + interval '1 year'`)
	require.NoError(t, err)
	kept := func(every time.Duration) (lists, generations int) {
		for range 15 {
			w.clock.turn(every)
			require.NoError(t, w.MakeCRL(w.ctx(), DefaultIssuerID))
		}
		require.NoError(t, w.deps.DB.Pool.QueryRow(w.ctx(), `SELECT (SELECT count(*) FROM crls), (SELECT count(DISTINCT generation) FROM crl_parts)`).Scan(&lists, &generations))
		return lists, generations
	}
	lists, generations := kept(10 * time.Second)
	require.Equal(t, 15, lists, "none has been the newest for long")
	require.Equal(t, 1, generations)
	lists, generations = kept(w.cfg.CRLValidity/2 + time.Minute)
	require.Equal(t, 10, lists)
	require.Equal(t, 10, generations, "each has begun one")
	lists, generations = kept(10 * time.Second)
	require.GreaterOrEqual(t, lists, 15, "who reads one may need longer than ten others take to be made")
	require.Equal(t, 2, generations, "and the one that was the newest a quarter of an hour ago is kept")
}

// TestWhatTheVersionBeforeHasListedIsListedFromThenOn has it make CRLs before there are parts, and beside them.
func TestWhatTheVersionBeforeHasListedIsListedFromThenOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	revoked := w.copies(4)
	// It notes its number in what it lists, knows of no parts, and has all of a CRL in der.
	older := func(serials []string) {
		w.revokeCopies(serials)
		var number int64
		require.NoError(t, w.deps.DB.Pool.QueryRow(w.ctx(), `INSERT INTO crls (issuer_id, number, der, entries, this_update, next_update)
 SELECT $1, COALESCE(max(number), 0) + 1, '\x3000', 1, $2, $3 FROM crls WHERE issuer_id = $1 RETURNING number`,
			DefaultIssuerID, w.now(), w.now().Add(w.cfg.CRLValidity)).Scan(&number))
		_, err := w.deps.DB.Pool.Exec(w.ctx(), `UPDATE revocations SET crl_number = $1 WHERE crl_number IS NULL`, number)
		require.NoError(t, err)
	}
	older(revoked[:1])
	require.ElementsMatch(t, revoked[:1], serials(w.crl(DefaultIssuerID)))
	w.revokeCopies(revoked[1:2])
	require.ElementsMatch(t, revoked[:2], serials(w.crl(DefaultIssuerID)))
	older(revoked[2:3])
	w.revokeCopies(revoked[3:])
	list, der, err := w.CRL(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)
	parsed, err := x509.ParseRevocationList(der)
	require.NoError(t, err)
	require.ElementsMatch(t, revoked, serials(parsed))
	var read []byte
	require.NoError(t, w.deps.DB.Pool.QueryRow(w.ctx(), `SELECT der FROM crls WHERE number = $1`, list.Number).Scan(&read))
	require.Equal(t, der, read, "it reads those of the new version")
}

// TestALargeCRLIsLeftToTheLoop has one that pretends to be large.
func TestALargeCRLIsLeftToTheLoop(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	revoked := w.copies(2)
	w.revokeCopies(revoked[:1])
	require.Equal(t, revoked[:1], serials(w.crl(DefaultIssuerID)))
	_, err := w.deps.DB.Pool.Exec(w.ctx(), `UPDATE crls SET entries = $1`, crlPrompt+1)
	require.NoError(t, err)
	w.revokeCopies(revoked[1:])
	require.Equal(t, revoked[:1], serials(w.crl(DefaultIssuerID)), "who asks has the last one")
	<-w.CRLKick()
	made, err := w.RefreshCRLs(w.ctx())
	require.NoError(t, err)
	require.Equal(t, 1, made)
	require.Equal(t, revoked, serials(w.crl(DefaultIssuerID)))
}

func TestTheLoopRestsAfterACRLThatTookLong(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, o := w.issue(DefaultIssuerID)
	require.Empty(t, w.crl(DefaultIssuerID).RevokedCertificateEntries)
	w.rests.set(DefaultIssuerID, time.Now().Add(time.Hour))
	_, err := w.Revoke(w.ctx(), RevokeRequest{CertificateID: r.CertificateID, SerialNumbers: []string{o.SerialNumber}, Reason: keyCompromise})
	require.NoError(t, err)

	for range 2 {
		<-w.CRLKick()
		made, err := w.RefreshCRLs(w.ctx())
		require.NoError(t, err)
		require.Zero(t, made, "it looks again later")
	}
	w.rests.set(DefaultIssuerID, time.Time{})
	made, err := w.RefreshCRLs(w.ctx())
	require.NoError(t, err)
	require.Equal(t, 1, made)
	require.Len(t, w.crl(DefaultIssuerID).RevokedCertificateEntries, 1)
}
