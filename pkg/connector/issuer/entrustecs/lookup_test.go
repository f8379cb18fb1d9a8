package entrustecs_test

import (
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

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/faulttest"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/entrustecs"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

// quarter is a lifetime within which a certificate becomes old enough to be renewed.
const quarter = 90 * 24 * time.Hour

func requireInconclusive(t *testing.T, ok bool, err error) {
	t.Helper()
	require.False(t, ok)
	refused, permanent := issuer.AsPermanent(err)
	require.True(t, permanent, "that it is not there cannot be told: %v", err)
	require.Equal(t, "LOOKUP_NOT_CONCLUSIVE", refused.Reason)
	require.Contains(t, refused.Message, "tracking information")
	require.Contains(t, refused.Message, "LOOKUP_NOT_CONCLUSIVE", "people see the sentence only")
	require.Contains(t, refused.Message, "cancel this order")
}

// aged makes a certificate that is old enough to be renewed.
func aged(t *testing.T, i issuer.Issuer, c *clock) issuer.Submission {
	t.Helper()
	r := order(t, "ord-1", "www.example.com")
	r.Lifetime = quarter
	first := place(t, i, r)
	c.pass(31 * 24 * time.Hour)
	return first
}

func TestARenewalWhoseReplyWasLostIsNotBoughtAgain(t *testing.T) {
	t.Parallel()
	i, sim, c := inTime(t)
	first := aged(t, i, c)
	sim.Set(
		casimulator.Fault{CA: casimulator.EntrustECS, Operation: "renew", Kind: casimulator.NeedsApproval, Times: 1},
		casimulator.Fault{CA: casimulator.EntrustECS, Operation: "renew", Kind: casimulator.DropAfter, Times: 1},
	)
	next := renewal(t, "ord-2", first, c)
	_, err := i.Submit(t.Context(), next)
	require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "%v", err)
	_, err = i.Submit(t.Context(), next)
	require.Error(t, err)
	require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "the renewal that is there may be this one: %v", err)
	require.Contains(t, err.Error(), "RENEWING")
	require.Len(t, sim.Orders(), 2, "nothing was bought a second time")
}

func TestWhatFollowsTheCertificateBeforeIsNeverSaidNotToBeThere(t *testing.T) {
	t.Parallel()
	i, sim, c := inTime(t, func(s map[string]any) { s["lookup_settle_seconds"] = 1 })
	first := aged(t, i, c)
	sim.Set(
		casimulator.Fault{CA: casimulator.EntrustECS, Operation: "renew", Kind: casimulator.NeedsApproval, Times: 1},
		casimulator.Fault{CA: casimulator.EntrustECS, Operation: "renew", Kind: casimulator.DropAfter, Times: 1},
	)
	next := renewal(t, "ord-2", first, c)
	_, err := i.Submit(t.Context(), next)
	require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "%v", err)
	c.pass(time.Hour)
	sim.Set(casimulator.Fault{CA: casimulator.EntrustECS, Operation: "list", Kind: casimulator.Forgotten})
	_, ok, err := i.FindOrder(t.Context(), lost(next))
	require.False(t, ok)
	require.Error(t, err)
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%v", err)
	require.Contains(t, err.Error(), "RENEWING")
	sim.Reset()
}

func TestARenewalThatNoListShowsMayBeThereAllTheSame(t *testing.T) {
	t.Parallel()
	i, _, c := inTime(t, func(s map[string]any) { s["lookup_settle_seconds"] = 1 })
	first := aged(t, i, c)
	find := lost(renewal(t, "ord-2", first, c))
	find.LastSubmitted = c.now()
	c.pass(time.Hour)
	_, ok, err := i.FindOrder(t.Context(), find)
	requireInconclusive(t, ok, err)
	fresh := order(t, "ord-young", "young.example.com")
	fresh.RequestedAt = c.now()
	young := place(t, i, fresh)
	r := order(t, "ord-3", "young.example.com")
	r.RequestedAt, r.Previous = c.now(), young.Ref
	c.pass(time.Minute)
	_, ok, err = i.FindOrder(t.Context(), lost(r))
	require.NoError(t, err, "a certificate that is too young to be renewed was ordered anew, which is listed")
	require.False(t, ok)
}

func TestARequestThatIsApprovedAndNotIssuedIsNotSaidNotToBeThere(t *testing.T) {
	t.Parallel()
	for _, decision := range []string{"approve", "reject"} {
		i, sim := connect(t, casimulator.Scenario{Latency: time.Hour}, func(s map[string]any) { s["queue_for_approval"] = true })
		sim.Set(casimulator.Fault{CA: casimulator.EntrustECS, Operation: "submit", Kind: casimulator.DropAfter, Times: 1})
		r := order(t, "ord-approved", "www.example.com")
		_, err := i.Submit(t.Context(), r)
		require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "%v", err)
		require.NoError(t, sim.Decide(casimulator.EntrustECS, sim.Orders()[0].ID, decision, ""))
		_, ok, err := i.FindOrder(t.Context(), lost(r))
		requireInconclusive(t, ok, err)
	}
}

// replacing is an Entrust that re-issues under the same tracking id.
func replacing(t *testing.T, current func() any, listed []any, revoked *[]string) *entrustecs.Issuer {
	t.Helper()
	answer := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /enterprise/v2/certificates/7", func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, current()) })
	mux.HandleFunc("GET /enterprise/v2/certificates", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, map[string]any{"summary": map[string]any{"total": len(listed)}, "certificates": listed})
	})
	mux.HandleFunc("POST /enterprise/v2/certificates/{id}/revocations", func(w http.ResponseWriter, r *http.Request) {
		*revoked = append(*revoked, r.PathValue("id"))
		answer(w, 400, map[string]any{"status": 400, "errors": []any{map[string]string{"message": "no"}}})
	})
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	trust := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(trust, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	sim, at := faulttest.Start(t, casimulator.Scenario{})
	return open(t, config(t, sim, at, func(s map[string]any) { s["base_url"], s["ca_file"] = server.URL+"/enterprise/v2", trust }))
}

func TestTheCertificateThatIsInUseIsNotRevokedForTheOneBefore(t *testing.T) {
	t.Parallel()
	fake, err := issuertest.NewFake(issuertest.FakeConfig{})
	require.NoError(t, err)
	pair := make([]issuer.Submission, 2)
	for n := range pair {
		pair[n], err = fake.Submit(t.Context(), order(t, fmt.Sprintf("ord-%d", n), "www.example.com"))
		require.NoError(t, err)
	}
	old, next := leafOf(t, pair[0]), leafOf(t, pair[1])
	for _, status := range []string{"ACTIVE", "REISSUED", "REVOKED"} {
		var revoked []string
		shown := map[string]any{"trackingId": 7, "status": status, "endEntityCert": string(pair[1].CertificatePEM), "serialNumber": fmt.Sprintf("%X", next.SerialNumber)}
		i := replacing(t, func() any { return shown }, nil, &revoked)
		_, err := i.Revoke(t.Context(), issuer.RevokeRequest{Ref: issuer.Ref{"tracking_id": "7"}, Certificate: old, Reason: issuer.KeyCompromise})
		refused, ok := issuer.AsPermanent(err)
		require.True(t, ok, "%s: %v", status, err)
		require.Equal(t, "CERTIFICATE_NOT_FOUND", refused.Reason)
		require.Empty(t, revoked, "it is another certificate by now")
		_, err = i.Revoke(t.Context(), issuer.RevokeRequest{Ref: issuer.Ref{"tracking_id": "7"}, Reason: issuer.KeyCompromise})
		require.Equal(t, issuer.OutcomePermanent, issuer.OutcomeOf(err), "which one is meant is not known")
		require.Empty(t, revoked)
		got, err := i.Revoke(t.Context(), issuer.RevokeRequest{Ref: issuer.Ref{"tracking_id": "7"}, Certificate: next, Reason: issuer.KeyCompromise})
		require.Equal(t, []string{"7"}, revoked)
		require.Equal(t, status != "ACTIVE", err == nil, "%v", err)
		if err == nil {
			require.Equal(t, issuer.Revoked, got.State)
		}
	}
}
