package core

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	zx509 "github.com/zmap/zcrypto/x509"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/revision"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
)

func TestALocalOrderIsIssuedAtOnceAndEverybodyIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := request(t, DefaultIssuerID, "www.example.com", "*.example.com")

	o, err := w.Submit(w.ctx(), r)

	require.NoError(t, err)
	require.Equal(t, Issued, o.Status)
	leaf := w.leaf(o.ID)
	require.Equal(t, o.SerialNumber, issuer.FormatSerial(leaf.SerialNumber))
	require.Equal(t, []string{"www.example.com", "*.example.com"}, leaf.DNSNames)
	require.WithinDuration(t, time.Now().Add(time.Hour), leaf.NotAfter, time.Minute)
	stored := w.order(o.ID)
	require.Equal(t, o.Revision, stored.Revision)
	require.Equal(t, o.SerialNumber, stored.SerialNumber)

	issued := w.events("certificate.issued", r.CertificateID)
	require.Len(t, issued, 1)
	var payload issuancev1.CertificateIssued
	require.NoError(t, issued[0].GetPayload().UnmarshalTo(&payload))
	require.Equal(t, r.OrderID, payload.GetOrderId())
	require.Equal(t, "agent-1", payload.GetAgentId())
	require.Contains(t, payload.GetChainPem(), "BEGIN CERTIFICATE")
	require.Equal(t, time.Hour, payload.GetLifetime().AsDuration())
	require.Len(t, w.events("order.changed", o.ID), 1)
	require.Len(t, w.events("audit.record", o.ID), 2, "submitted and issued")
}

func TestWhatTheLocalIssuerSignsHasNoLint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, algorithm := range []certcheck.KeyAlgorithm{certcheck.ECDSAP256, certcheck.RSA2048} {
		raw := certcheck.RawNames{CommonName: "www.example.com", DNSNames: []string{"www.example.com"}}
		o, err := w.Submit(w.ctx(), requestFor(t, DefaultIssuerID, raw, issuertest.NewKey(t, algorithm)))
		require.NoError(t, err)
		c, err := zx509.ParseCertificate(w.leaf(o.ID).Raw)
		require.NoError(t, err)
		registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{lint.RFC5280, lint.RFC5480}})
		require.NoError(t, err)
		for name, result := range zlint.LintCertificateEx(c, registry).Results {
			require.Less(t, result.Status, lint.Warn, "%s: %s", name, result.Details)
		}
	}
}

func TestAKnownOrderAnswersAsItStands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := request(t, DefaultIssuerID)
	first, err := w.Submit(w.ctx(), r)
	require.NoError(t, err)

	again, err := w.Submit(w.ctx(), r)
	require.NoError(t, err)
	require.Equal(t, first.SerialNumber, again.SerialNumber)
	require.Equal(t, 1, w.certificates(r.OrderID))

	other := r
	other.CertificateID = "cert-other"
	_, err = w.Submit(w.ctx(), other)
	require.Equal(t, "ORDER_ID_REUSED", errs.ReasonOf(err))
	require.Equal(t, errs.Conflict, errs.KindOf(err))
}

func TestTwoReplicasThatSubmitTheSameOrderSignOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	replicas := []*Core{w.Core, w.replica()}
	for range 10 {
		r := request(t, fakeIssuer)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				_, err := replicas[i%2].Submit(w.ctx(), r)
				require.NoError(t, err)
			})
		}
		wg.Wait()
		require.Equal(t, Issued, w.order(r.OrderID).Status)
		bought, err := w.fake.Bought(r.OrderID)
		require.NoError(t, err)
		require.Equal(t, 1, bought)
		require.Equal(t, 1, w.certificates(r.OrderID))
	}
}

func TestAnOrderEndsWithOneCertificateWhereverTheProcessDies(t *testing.T) {
	t.Parallel()
	for _, issuerID := range []string{DefaultIssuerID, fakeIssuer} {
		for _, point := range []string{pointChecked, pointIntent, pointCalled, pointStored} {
			t.Run(issuerID+" "+point, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				r := request(t, issuerID)
				dying := w.replica()
				dying.checkpoint = func(at, _ string) error {
					if at == point {
						return errKilled
					}
					return nil
				}
				_, err := dying.Submit(w.ctx(), r)
				require.ErrorIs(t, err, errKilled)

				// The reconciler dies once too, at the same point and where it begins.
				for _, second := range []string{point, pointReconcile} {
					dying = w.replica()
					dying.checkpoint = func(at, _ string) error {
						if at == second {
							return errKilled
						}
						return nil
					}
					w.reconcile(dying)
				}
				w.reconcile(w.Core)
				// The caller heard nothing and asks again.
				o, err := w.Submit(w.ctx(), r)
				require.NoError(t, err)

				require.Equal(t, Issued, o.Status)
				require.Equal(t, 1, w.certificates(r.OrderID))
				require.Len(t, w.events("certificate.issued", r.CertificateID), 1)
				if issuerID == fakeIssuer {
					bought, err := w.fake.Bought(r.OrderID)
					require.NoError(t, err)
					require.Equal(t, 1, bought)
				}
			})
		}
	}
}

func TestACAThatShowsOrdersLateIsGivenTimeFromTheLastSubmissionOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := request(t, fakeIssuer)
	die := func(point string) *Core {
		dying := w.replica()
		dying.checkpoint = func(at, _ string) error {
			if at == point {
				return errKilled
			}
			return nil
		}
		return dying
	}
	_, err := die(pointIntent).Submit(w.ctx(), r)
	require.ErrorIs(t, err, errKilled)
	before := w.order(r.OrderID).SubmitTime

	w.reconcile(die(pointCalled)) // the CA has nothing of the order, and so gets it

	o := w.order(r.OrderID)
	require.Equal(t, Submitting, o.Status)
	require.True(t, o.SubmitTime.After(before), "the time of the call before, which the CA never saw, would be too early")
	find, err := w.findRequest(w.ctx(), o)
	require.NoError(t, err)
	require.Equal(t, o.SubmitTime, find.LastSubmitted)
}

func TestTheSameSerialNumberIsSignedAfterACrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := request(t, DefaultIssuerID)
	dying := w.replica()
	dying.checkpoint = func(at, _ string) error {
		if at == pointCalled {
			return errKilled
		}
		return nil
	}
	_, err := dying.Submit(w.ctx(), r)
	require.ErrorIs(t, err, errKilled)
	intent := w.order(r.OrderID)
	require.Equal(t, Submitting, intent.Status)
	require.NotEmpty(t, intent.SerialNumber)

	w.reconcile(w.Core)

	require.Equal(t, intent.SerialNumber, issuer.FormatSerial(w.leaf(r.OrderID).SerialNumber))
}

func TestTwoReconcilersDoNotMeetOnOneOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := request(t, fakeIssuer)
	w.fake.PlanOrder(r.OrderID, issuertest.Plan{LostReplies: 1})
	o, err := w.Submit(w.ctx(), r)
	require.NoError(t, err)
	require.Equal(t, Unknown, o.Status)
	other := w.replica()

	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() { w.reconcile([]*Core{w.Core, other}[i%2]) })
	}
	wg.Wait()

	require.Equal(t, Issued, w.order(r.OrderID).Status)
	require.Equal(t, 1, w.certificates(r.OrderID))
	require.Len(t, w.events("certificate.issued", r.CertificateID), 1)
	bought, err := w.fake.Bought(r.OrderID)
	require.NoError(t, err)
	require.Equal(t, 1, bought)
}

func TestAnAnswerAfterTheLeaseIsDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := request(t, DefaultIssuerID)
	slow := w.replica()
	slow.checkpoint = func(at, _ string) error {
		if at == pointCalled {
			w.reconcile(w.Core) // another replica finds the lease run out and finishes the order
		}
		return nil
	}

	o, err := slow.Submit(w.ctx(), r)

	require.NoError(t, err)
	require.Equal(t, Issued, o.Status)
	require.Equal(t, 1, w.certificates(r.OrderID))
	require.Len(t, w.events("certificate.issued", r.CertificateID), 1)
}

func TestALostReplyIsLookedUpBeforeAnythingElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := request(t, fakeIssuer)
	w.fake.PlanOrder(r.OrderID, issuertest.Plan{LostReplies: 1, FindErrors: []error{issuer.RetryAfter(0, errors.New("away"))}})
	o, err := w.Submit(w.ctx(), r)
	require.NoError(t, err)
	require.Equal(t, Unknown, o.Status)
	require.Equal(t, reasonLost, o.ErrorReason)

	w.reconcile(w.Core)
	require.Equal(t, Unknown, w.order(r.OrderID).Status, "the CA could not be asked")
	w.reconcile(w.Core)

	require.Equal(t, Issued, w.order(r.OrderID).Status)
	submits, err := w.fake.Submits(r.OrderID)
	require.NoError(t, err)
	require.Equal(t, 1, submits)
}

func TestALostReplyOfACAWithoutLookupStaysUnknownUntilItIsCancelled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.createIssuer(NewIssuer{ID: "iss-blind", Name: "Blind", Type: "blind", Enabled: true})
	r := request(t, "iss-blind")
	w.fake.PlanOrder(r.OrderID, issuertest.Plan{LostReplies: 1})
	_, err := w.Submit(w.ctx(), r)
	require.NoError(t, err)

	for range 3 {
		w.reconcile(w.Core)
	}
	o := w.order(r.OrderID)
	require.Equal(t, Unknown, o.Status)
	require.Equal(t, reasonNoLookup, o.ErrorReason)
	require.Contains(t, o.ErrorMessage, "cancel this order")
	bought, err := w.fake.Bought(r.OrderID)
	require.NoError(t, err)
	require.Equal(t, 1, bought)

	o, err = w.Cancel(w.ctx(), r.OrderID)
	require.NoError(t, err)
	require.Equal(t, Cancelled, o.Status)
	o, err = w.Cancel(w.ctx(), r.OrderID)
	require.NoError(t, err, "cancelling again")
	require.Equal(t, Cancelled, o.Status)
}

func TestACAThatHangsLeavesTheOrderUnknownAndItIsFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.CallTimeout = 50 * time.Millisecond
	r := request(t, fakeIssuer)
	w.fake.PlanOrder(r.OrderID, issuertest.Plan{HangSubmit: true})

	o, err := w.Submit(w.ctx(), r)
	require.NoError(t, err)
	require.Equal(t, Unknown, o.Status)
	w.reconcile(w.Core)

	require.Equal(t, Issued, w.order(r.OrderID).Status)
	bought, err := w.fake.Bought(r.OrderID)
	require.NoError(t, err)
	require.Equal(t, 1, bought)
}

func TestACallerWhoLeavesLosesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := request(t, fakeIssuer)
	ctx, leave := context.WithCancel(w.ctx())
	w.checkpoint = func(at, _ string) error {
		if at == pointIntent {
			leave()
		}
		return nil
	}
	_, err := w.Submit(ctx, r)
	require.NoError(t, err)
	require.Equal(t, Issued, w.order(r.OrderID).Status)
}

func TestAnOrderWaitsForACAThatIsAwayAndFailsAtItsDeadline(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fake.SetDown(issuer.RetryAfter(0, errors.New("maintenance")))
	r, late := request(t, fakeIssuer), request(t, fakeIssuer)
	for _, each := range []SubmitRequest{r, late} {
		o, err := w.Submit(w.ctx(), each)
		require.NoError(t, err)
		require.Equal(t, Created, o.Status)
		require.Equal(t, reasonUnavailable, o.ErrorReason)
	}
	_, err := w.deps.DB.Pool.Exec(w.ctx(), `UPDATE orders SET deadline_time = now() - interval '1 hour' WHERE id = $1`, late.OrderID)
	require.NoError(t, err)

	w.reconcile(w.Core)
	require.Equal(t, Created, w.order(r.OrderID).Status)
	require.Equal(t, Failed, w.order(late.OrderID).Status)
	w.fake.SetDown(nil)
	w.reconcile(w.Core)

	require.Equal(t, Issued, w.order(r.OrderID).Status)
	bought, err := w.fake.Bought(r.OrderID)
	require.NoError(t, err)
	require.Equal(t, 1, bought)
}

func TestACertificateThatIsNotWhatWasAskedForIsNotStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, plan := range map[string]issuertest.Plan{"key": {WrongKey: true}, "names": {ExtraName: "evil.example.org"}} {
		r := request(t, fakeIssuer)
		w.fake.PlanOrder(r.OrderID, plan)
		o, err := w.Submit(w.ctx(), r)
		require.NoError(t, err)
		require.Equal(t, Failed, o.Status, name)
		require.Equal(t, reasonMismatch, o.ErrorReason)
		require.Zero(t, w.certificates(r.OrderID))
		require.Empty(t, w.events("certificate.issued", r.CertificateID))
	}
}

func TestAnOrderThatTheCARefusesIsRejectedAndSaysWhy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, misconfigured := request(t, fakeIssuer), request(t, fakeIssuer)
	w.fake.PlanOrder(r.OrderID, issuertest.Plan{SubmitErrors: []error{issuer.Permanent("CAA_FORBIDS", "CAA forbids it")}})
	o, err := w.Submit(w.ctx(), r)
	require.NoError(t, err)
	require.Equal(t, Rejected, o.Status)
	require.Equal(t, "CAA_FORBIDS", o.ErrorReason)
	require.Equal(t, "CAA forbids it", o.ErrorMessage)

	w.fake.PlanOrder(misconfigured.OrderID, issuertest.Plan{SubmitErrors: []error{issuer.Misconfigured("KEY_REVOKED", "the API key is revoked")}})
	o, err = w.Submit(w.ctx(), misconfigured)
	require.NoError(t, err)
	require.Equal(t, Failed, o.Status)
}

func TestABadCSRLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.createProfile(narrow())
	names := certcheck.RawNames{CommonName: "www.example.com", DNSNames: []string{"www.example.com"}}
	key := issuertest.NewKey(t, certcheck.ECDSAP256)
	good := csrPEM(t, key, names)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	other := csrPEM(t, key, certcheck.RawNames{CommonName: "www.example.com", DNSNames: []string{"www.example.com", "evil.example.org"}})
	fewer := csrPEM(t, key, certcheck.RawNames{DNSNames: []string{"other.example.com"}})
	block, _ := pem.Decode(good)
	broken := bytes.Clone(block.Bytes)
	broken[len(broken)-1] ^= 1

	for name, c := range map[string]struct {
		change func(*SubmitRequest)
		field  string
	}{
		"other names":          {func(r *SubmitRequest) { r.CSR = other }, "csr_pem"},
		"missing names":        {func(r *SubmitRequest) { r.CSR = fewer }, "csr_pem"},
		"weak key":             {func(r *SubmitRequest) { r.CSR = csrPEM(t, weak, names) }, "csr_pem"},
		"broken signature":     {func(r *SubmitRequest) { r.CSR = pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: broken}) }, "csr_pem"},
		"too large":            {func(r *SubmitRequest) { r.CSR = []byte(strings.Repeat("x", certcheck.MaxCSR+1)) }, "csr_pem"},
		"trailing data":        {func(r *SubmitRequest) { r.CSR = append(bytes.Clone(good), good...) }, "csr_pem"},
		"trailing data in DER": {func(r *SubmitRequest) { r.CSR = append(bytes.Clone(block.Bytes), 0) }, "csr_pem"},
		"no CSR":               {func(r *SubmitRequest) { r.CSR = []byte("hello") }, "csr_pem"},
		"other algorithm":      {func(r *SubmitRequest) { r.KeyAlgorithm = "RSA_2048" }, "csr_pem"},
		"unknown issuer":       {func(r *SubmitRequest) { r.IssuerID = "iss-nobody" }, "issuer_id"},
		"unknown profile":      {func(r *SubmitRequest) { r.ProfileID = "prof-nobody" }, "profile_id"},
		"name not allowed": {func(r *SubmitRequest) {
			r.ProfileID = narrowProfile
			r.Names = certcheck.RawNames{DNSNames: []string{"www.example.org"}}
		}, "dns_names[0]"},
		"wildcard not allowed": {func(r *SubmitRequest) {
			r.ProfileID = narrowProfile
			r.Names = certcheck.RawNames{DNSNames: []string{"*.example.com"}}
		}, "dns_names[0]"},
		"key not allowed": {func(r *SubmitRequest) { r.ProfileID, r.KeyAlgorithm = narrowProfile, "RSA_2048" }, "key_algorithm"},
		"no names":        {func(r *SubmitRequest) { r.Names = certcheck.RawNames{} }, "dns_names"},
		"no name at all":  {func(r *SubmitRequest) { r.Names = certcheck.RawNames{DNSNames: []string{"not a name"}} }, "dns_names[0]"},
	} {
		r := requestFor(t, DefaultIssuerID, names, key)
		r.CSR = good
		c.change(&r)
		_, err := w.Submit(w.ctx(), r)
		require.Equal(t, errs.Invalid, errs.KindOf(err), "%s: %v", name, err)
		require.Equal(t, c.field, errs.From(err).Violations()[0].Field, name)
		_, err = w.GetOrder(w.ctx(), r.OrderID)
		require.Equal(t, errs.NotFound, errs.KindOf(err), name)
	}
	require.NoError(t, w.CheckCSR(w.ctx(), CSRRequest{CSR: block.Bytes, Request: Request{IssuerID: DefaultIssuerID, Names: names}}), "DER is fine too")
}

func TestAChangedProfileCountsFromTheNextOrderOnInEveryReplica(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := w.replica()
	_, err := other.Submit(w.ctx(), request(t, DefaultIssuerID))
	require.NoError(t, err, "the other replica now remembers the profile")

	w.updateProfile(openProfile, func(p *profileEdit) { p.AllowedSANPatterns = []string{"*.example.org"} })

	_, err = other.Submit(w.ctx(), request(t, DefaultIssuerID))
	require.Equal(t, errs.Invalid, errs.KindOf(err))
	_, err = other.Submit(w.ctx(), request(t, DefaultIssuerID, "www.example.org"))
	require.NoError(t, err)
}

func TestADisabledIssuerTakesNoOrders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := w.replica()
	_, err := other.Submit(w.ctx(), request(t, DefaultIssuerID))
	require.NoError(t, err)

	off := false
	w.updateIssuer(DefaultIssuerID, IssuerEdit{Enabled: &off})

	_, err = other.Submit(w.ctx(), request(t, DefaultIssuerID))
	require.Equal(t, errs.Invalid, errs.KindOf(err))
	require.ErrorContains(t, err, "disabled")
}

func TestAnIssuedOrderCostsFourStatements(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.Submit(w.ctx(), request(t, DefaultIssuerID))
	require.NoError(t, err, "what is remembered from now on")
	counter := w.countStatements()

	_, err = w.Submit(w.ctx(), request(t, DefaultIssuerID))

	require.NoError(t, err)
	require.Len(t, counter(), 4, "%v", counter())
}

func TestTheLeafIsWithinTheLifeOfItsCA(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.createProfile(narrowFor(10 * 365 * 24 * time.Hour))
	r := request(t, DefaultIssuerID)
	r.ProfileID = narrowProfile
	_, err := w.Submit(w.ctx(), r)
	require.NoError(t, err)
	text, err := w.CACertificates(w.ctx(), DefaultIssuerID)
	require.NoError(t, err)
	block, _ := pem.Decode(text)
	ca, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	require.False(t, w.leaf(r.OrderID).NotAfter.After(ca.NotAfter))
}

func TestWhatACASaysIsStoredWhateverBytesItHas(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, text := range map[string]string{
		"a character across the limit": strings.Repeat("a", 999) + strings.Repeat("é", 20),
		"NUL":                          "no\x00thing",
		"no UTF-8":                     "caf\xe9",
	} {
		r := request(t, fakeIssuer)
		w.fake.PlanOrder(r.OrderID, issuertest.Plan{SubmitErrors: []error{issuer.Permanent("CA_SAYS_NO", "%s", text)}})
		o, err := w.Submit(w.ctx(), r)
		require.NoError(t, err, name)
		require.Equal(t, Rejected, o.Status, name)
		require.LessOrEqual(t, len(w.order(r.OrderID).ErrorMessage), 1003, name)
	}
}

func TestAnOrderThatWaitsIsHeldAgainstTheRulesAsTheyAre(t *testing.T) {
	t.Parallel()
	off := false
	for name, change := range map[string]func(w *world){
		"issuer disabled": func(w *world) { w.updateIssuer(fakeIssuer, IssuerEdit{Enabled: &off}) },
		"names narrowed": func(w *world) {
			w.updateProfile(openProfile, func(p *profileEdit) { p.AllowedSANPatterns = []string{"*.corp.example"} })
		},
		"lifetime shortened": func(w *world) {
			w.updateProfile(openProfile, func(p *profileEdit) { p.MaxValidity = 20 * time.Minute })
		},
		"key forbidden": func(w *world) {
			w.updateProfile(openProfile, func(p *profileEdit) { p.AllowedKeyAlgorithms = []string{"RSA_4096"} })
		},
		"usage taken away": func(w *world) {
			w.updateProfile(openProfile, func(p *profileEdit) { p.ExtendedKeyUsages = []string{"CLIENT_AUTH"} })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			r := request(t, fakeIssuer)
			w.fake.SetDown(issuer.RetryAfter(0, errors.New("maintenance")))
			o, err := w.Submit(w.ctx(), r)
			require.NoError(t, err)
			require.Equal(t, Created, o.Status)
			w.fake.SetDown(nil)
			change(w)

			w.reconcile(w.Core)

			o = w.order(r.OrderID)
			require.Equal(t, Failed, o.Status)
			require.Equal(t, "NOT_ALLOWED_ANY_MORE", o.ErrorReason)
			bought, err := w.fake.Bought(r.OrderID)
			require.NoError(t, err)
			require.Zero(t, bought)
		})
	}
}

func TestANewOrderRaisesTheRevisionBeforeTheCAHasAnswered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before, err := revision.Get(w.ctx(), w.deps.DB.Pool, collectionOrders)
	require.NoError(t, err)
	w.checkpoint = func(at, _ string) error {
		if at == pointIntent {
			return errKilled
		}
		return nil
	}
	_, err = w.Submit(w.ctx(), request(t, fakeIssuer))
	require.ErrorIs(t, err, errKilled)
	after, err := revision.Get(w.ctx(), w.deps.DB.Pool, collectionOrders)
	require.NoError(t, err)
	require.Equal(t, before+1, after, "the list has one order more")
}

func TestACertificateSurvivesADatabaseThatDoesNotTakeItAtFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.createIssuer(NewIssuer{ID: "iss-blind", Name: "Blind", Type: "blind", Enabled: true})
	var role string
	require.NoError(t, w.deps.DB.Pool.QueryRow(w.ctx(), `SELECT current_user`).Scan(&role))
	admin := w.db.Admin(t)
	grant := func(what, to string) {
		_, err := admin.Exec(w.ctx(), what+` INSERT ON issuance.issued_certificates `+to+` `+pgx.Identifier{role}.Sanitize())
		require.NoError(t, err)
	}
	grant("REVOKE", "FROM")
	r := request(t, "iss-blind")
	var wg sync.WaitGroup
	wg.Go(func() {
		o, err := w.Submit(w.ctx(), r)
		require.NoError(t, err)
		require.Equal(t, Issued, o.Status)
	})
	require.Eventually(t, func() bool { return w.logs.FilterMessageSnippet("could not be stored").Len() > 0 }, 10*time.Second, time.Millisecond)
	grant("GRANT", "TO")
	wg.Wait()
	require.Equal(t, 1, w.certificates(r.OrderID))
}
