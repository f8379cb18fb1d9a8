package entrustgateway_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/faulttest"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/entrustgateway"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/errs"
)

func order(t testing.TB, id string, names ...string) issuer.SubmitRequest {
	t.Helper()
	return issuertest.NewRequest(t, id, issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, names...))
}

func enrol(t testing.TB, i issuer.Issuer, r issuer.SubmitRequest) issuer.Submission {
	t.Helper()
	sub, err := i.Submit(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, issuer.Issued, sub.State, "the gateway answers at once")
	return sub
}

func leafOf(t testing.TB, sub issuer.Submission) *x509.Certificate {
	t.Helper()
	certs, err := certcheck.ParseBundle(sub.CertificatePEM)
	require.NoError(t, err)
	return certs[0]
}

func lost(r issuer.SubmitRequest) issuer.FindRequest {
	return issuer.FindRequest{OrderID: r.OrderID, Names: r.Names, PublicKey: r.CSR.PublicKey, Since: r.RequestedAt.Add(-time.Hour)}
}

func TestSettingsThatAreWrongAreNamed(t *testing.T) {
	t.Parallel()
	good := map[string]any{
		"base_url": "https://cagw.example.com/cagw/v1", "ca_id": "partition~ca", "profile_id": "tls", "client_cert_file": "/c", "client_key_file": "/k",
	}
	raw, err := json.Marshal(good)
	require.NoError(t, err)
	s, err := entrustgateway.ParseSettings(raw)
	require.NoError(t, err)
	require.Equal(t, "https://cagw.example.com/cagw", s.BaseURL)
	require.Equal(t, "interval", s.ValidityForm)
	for field, value := range map[string]any{
		"base_url": "", "ca_id": "", "profile_id": "a b", "ca_client_id": "a\nb", "client_key_file": "", "validity_form": "years",
		"lookup_settle_seconds": 1e6, "properties": map[string]string{"": "x"}, "subject_variables": map[string]string{"o": ""}, "reference_property": "a b",
	} {
		bad := map[string]any{}
		for k, v := range good {
			bad[k] = v
		}
		bad[field] = value
		raw, err := json.Marshal(bad)
		require.NoError(t, err)
		_, err = entrustgateway.ParseSettings(raw)
		require.Equal(t, errs.Invalid, errs.KindOf(err), field)
		require.Equal(t, field, errs.From(err).Violations()[0].Field)
	}
}

func TestOldOrdersAreFoundManyPagesBack(t *testing.T) {
	t.Parallel()
	i, sim := connect(t, casimulator.Scenario{})
	wanted := order(t, "ord-wanted", "wanted.example.com")
	first := enrol(t, i, wanted)
	key := issuertest.NewKey(t, certcheck.ECDSAP256)
	var g errgroup.Group
	g.SetLimit(8)
	const others = 120 // the simulator has pages of 50
	for n := range others {
		r := issuertest.NewRequest(t, fmt.Sprintf("ord-%d", n), key, issuertest.Names(t, fmt.Sprintf("host-%d.example.com", n)))
		g.Go(func() error { _, err := i.Submit(t.Context(), r); return err })
	}
	require.NoError(t, g.Wait())
	last := order(t, "ord-last", "last.example.com")
	enrol(t, i, last)
	for _, r := range []issuer.SubmitRequest{wanted, last} {
		found, ok, err := i.FindOrder(t.Context(), lost(r))
		require.NoError(t, err)
		require.True(t, ok)
		require.True(t, certcheck.SameKey(leafOf(t, found).PublicKey, r.CSR.PublicKey))
	}
	renewal := lost(wanted)
	renewal.Previous = first.Ref
	_, ok, err := i.FindOrder(t.Context(), renewal)
	require.NoError(t, err)
	require.False(t, ok, "the certificate that is renewed is not its renewal")

	seen, page := map[string]bool{}, issuer.ListRequest{Since: time.Now().Add(-time.Hour)}
	for {
		listing, err := i.ListOrders(t.Context(), page)
		require.NoError(t, err)
		for _, o := range listing.Orders {
			require.False(t, seen[o.Key])
			require.NotEmpty(t, o.CommonName)
			seen[o.Key] = true
		}
		if page.Page = listing.Next; page.Page == "" {
			break
		}
	}
	require.Len(t, seen, others+2)
	require.Empty(t, sim.Violations())
}

func TestAnOrderIsMissingOnlyAfterAWhile(t *testing.T) {
	t.Parallel()
	i, _ := connect(t, casimulator.Scenario{}, func(s map[string]any) { s["lookup_settle_seconds"] = 900 })
	find := lost(order(t, "ord-missing", "www.example.com"))
	_, ok, err := i.FindOrder(t.Context(), find)
	require.NoError(t, err)
	require.False(t, ok)
	find.LastSubmitted = time.Now()
	_, ok, err = i.FindOrder(t.Context(), find)
	require.False(t, ok)
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err))
	wait, ok := issuer.RetryDelay(err)
	require.True(t, ok)
	require.InDelta(t, 15*time.Minute, wait, float64(2*time.Second))
	find.PublicKey = nil
	_, _, err = i.FindOrder(t.Context(), find)
	refused, ok := issuer.AsPermanent(err)
	require.True(t, ok)
	require.Equal(t, "PUBLIC_KEY_MISSING", refused.Reason)
}

func TestAnOrderThatTheFeedTellsOfIsNotMissingWhenItCannotBeFetched(t *testing.T) {
	t.Parallel()
	for _, fault := range []casimulator.Fault{
		{Operation: "collect", Kind: casimulator.HTMLPage, Status: http.StatusNotFound, Times: 1}, {Operation: "collect", Kind: casimulator.Forgotten, Times: 1},
	} {
		i, sim := connect(t, casimulator.Scenario{Faults: []casimulator.Fault{{Operation: "submit", Kind: casimulator.DropAfter, Times: 1}}})
		r := order(t, "ord-lost", "www.example.com")
		_, err := i.Submit(t.Context(), r)
		require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "%v", err)
		sim.Set(fault)
		find := lost(r)
		find.LastSubmitted = find.Since
		sub, ok, err := i.FindOrder(t.Context(), find)
		require.True(t, ok || issuer.OutcomeOf(err) == issuer.OutcomeRetry, "%s: %v: an order that is said to be missing is placed again", fault.Kind, err)
		if ok {
			sub, err = i.Poll(t.Context(), sub.Ref)
		} else {
			sub, _, err = i.FindOrder(t.Context(), find)
		}
		require.NoError(t, err)
		require.Equal(t, issuer.Issued, sub.State)
	}
}

func TestARevocationThatWaitsIsSeenWhenItIsDone(t *testing.T) {
	t.Parallel()
	i, sim := connect(t, casimulator.Scenario{})
	sub := enrol(t, i, order(t, "ord-revoke", "www.example.com"))
	sim.Set(casimulator.Fault{CA: casimulator.EntrustGateway, Operation: "revoke", Kind: casimulator.NeedsApproval, Times: 1})
	r := issuer.RevokeRequest{Ref: sub.Ref, Certificate: leafOf(t, sub), Reason: issuer.KeyCompromise}
	first, err := i.Revoke(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, issuer.AwaitingApproval, first.State)
	require.NotEmpty(t, first.Detail)
	r.Request = first.Request
	again, err := i.Revoke(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, issuer.AwaitingApproval, again.State)
	require.Equal(t, first.Request, again.Request)
	require.NoError(t, sim.Decide(casimulator.EntrustGateway, sim.Orders()[0].ID, "approve", ""))
	last, err := i.Revoke(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, issuer.Revoked, last.State)
	polled, err := i.Poll(t.Context(), sub.Ref)
	require.NoError(t, err)
	require.Equal(t, issuer.Rejected, polled.State)
}

func TestWhatCannotBeRevokedIsSaid(t *testing.T) {
	t.Parallel()
	i, _ := connect(t, casimulator.Scenario{})
	sub := enrol(t, i, order(t, "ord-revoke", "www.example.com"))
	for _, r := range []issuer.RevokeRequest{
		{Ref: sub.Ref, Reason: issuer.CertificateHold}, {Reason: issuer.Superseded}, {Ref: issuer.Ref{"certificate": "ab"}, Reason: issuer.Superseded},
	} {
		_, err := i.Revoke(t.Context(), r)
		_, ok := issuer.AsPermanent(err)
		require.True(t, ok, "%v", err)
	}
	got, err := i.Revoke(t.Context(), issuer.RevokeRequest{Certificate: leafOf(t, sub), Reason: issuer.Superseded})
	require.NoError(t, err)
	require.Equal(t, issuer.Revoked, got.State)
}

// scripted is a gateway that answers as it is told.
func scripted(t *testing.T, mux *http.ServeMux) *entrustgateway.Issuer {
	t.Helper()
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	trust := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(trust, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	sim, at := faulttest.Start(t, casimulator.Scenario{})
	return open(t, config(t, sim, at, func(s map[string]any) { s["base_url"], s["ca_file"] = server.URL+"/cagw", trust }))
}

func say(mux *http.ServeMux, pattern string, status int, body string) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	})
}

const ofCA = "/cagw/v1/certificate-authorities/{ca}"

func TestAGatewayThatOffersLittleIsWorkedWith(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	say(mux, "GET "+ofCA+"/profiles/{id}", 403, `{"type":"ErrorResponse","error":{"code":"forbidden","message":"no"}}`)
	say(mux, "POST "+ofCA+"/enrollments", 201, `{"type":"EnrollmentResponse","enrollment":{"id":"e-1","status":"waiting for Bob"},"message":{"message":"soon"}}`)
	say(mux, "GET "+ofCA+"/enrollments/{id}", 501, `{"type":"ErrorResponse","error":{"code":"not-implemented"}}`)
	say(mux, "GET "+ofCA+"/certificate-events", 404, `{"type":"ErrorResponse","error":{"code":"not-found"}}`)
	i := scripted(t, mux)
	r := order(t, "ord-1", "www.example.com")
	sub, err := i.Submit(t.Context(), r)
	require.NoError(t, err, "who may enrol need not be allowed to read profiles")
	require.Equal(t, issuer.Pending, sub.State)
	require.Equal(t, "e-1", sub.Ref["enrollment_id"])
	require.Contains(t, sub.Detail, "waiting for Bob")
	sub, err = i.Poll(t.Context(), sub.Ref)
	require.NoError(t, err)
	require.Equal(t, issuer.Pending, sub.State)
	_, _, err = i.FindOrder(t.Context(), lost(r))
	refused, ok := issuer.AsPermanent(err)
	require.True(t, ok, "that it is not there cannot be told: %v", err)
	require.Equal(t, "LOOKUP_NOT_SUPPORTED", refused.Reason)
}

func TestAnEnrolmentThatIsNotOfferedIsAWrongSetting(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	say(mux, "GET "+ofCA+"/profiles/{id}", 200, `{"profile":{}}`)
	say(mux, "POST "+ofCA+"/enrollments", 501, `{"type":"ErrorResponse","error":{"code":"not-implemented"}}`)
	_, err := scripted(t, mux).Submit(t.Context(), order(t, "ord-1", "www.example.com"))
	refused, ok := issuer.AsPermanent(err)
	require.True(t, ok, "%v", err)
	require.Equal(t, "NOT_SUPPORTED", refused.Reason)
	require.Equal(t, issuer.FaultConfiguration, refused.Fault)
}

func TestAnEnrolmentIsRefusedByItsStatus(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]issuer.State{
		`{"enrollment":{"id":"e-1","status":"REJECTED"},"message":{"message":"not you"}}`: issuer.Rejected,
		`{"enrollment":{"id":"e-1","status":"ACCEPTED"}}`:                                 issuer.Pending,
		`{"enrollment":{"id":"e-1"}}`:                                                     issuer.Pending,
	} {
		mux := http.NewServeMux()
		say(mux, "GET "+ofCA+"/enrollments/{id}", 200, body)
		sub, err := scripted(t, mux).Poll(t.Context(), issuer.Ref{"enrollment_id": "e-1"})
		require.NoError(t, err)
		require.Equal(t, want, sub.State)
	}
}

func TestAnAnswerWithoutAnythingIsLost(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	say(mux, "GET "+ofCA+"/profiles/{id}", 200, `{"profile":{}}`)
	say(mux, "POST "+ofCA+"/enrollments", 200, `{"type":"EnrollmentResponse","enrollment":{}}`)
	_, err := scripted(t, mux).Submit(t.Context(), order(t, "ord-1", "www.example.com"))
	require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err))
	_, ok := issuer.AsUnknownOutcome(err)
	require.True(t, ok)
}
