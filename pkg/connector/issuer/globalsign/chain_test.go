package globalsign_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/faulttest"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/globalsign"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
)

// authority is an issuing CA with a certificate of its own.
type authority struct{ certificate, chain []string }

func newAuthority(t *testing.T, name string) (a authority, serial string) {
	t.Helper()
	m, err := local.Generate(local.Subject{CommonName: name}, time.Now())
	require.NoError(t, err)
	ca, err := m.CA(time.Now())
	require.NoError(t, err)
	i, err := local.New(local.Config{CA: ca}, issuer.Deps{})
	require.NoError(t, err)
	sub, err := i.Submit(t.Context(), order(t, "ord-"+name, "www.example.com"))
	require.NoError(t, err)
	for _, c := range ca.Chain() {
		a.chain = append(a.chain, string(certcheck.EncodePEM(c)))
	}
	a.certificate = []string{string(sub.CertificatePEM)}
	return a, fmt.Sprintf("%X", leafOf(t, sub).SerialNumber)
}

// scripted is an HVCA that answers as it is told.
func scripted(t *testing.T, handler http.Handler) *globalsign.Issuer {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	trust := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(trust, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	sim, at := faulttest.Start(t, casimulator.Scenario{})
	return open(t, config(t, sim, at, func(s map[string]any) { s["base_url"], s["ca_file"] = server.URL, trust }), issuer.Deps{})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	_ = json.NewEncoder(w).Encode(v)
}

func TestTheChainFollowsTheIssuingCA(t *testing.T) {
	t.Parallel()
	one, serialOne := newAuthority(t, "one")
	two, serialTwo := newAuthority(t, "two")
	var current atomic.Pointer[authority]
	current.Store(&one)
	reads := atomic.Int64{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v2/login", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]string{"access_token": "t"}) })
	mux.HandleFunc("GET /v2/trustchain", func(w http.ResponseWriter, _ *http.Request) {
		reads.Add(1)
		answer(w, current.Load().chain)
	})
	for serial, a := range map[string]authority{serialOne: one, serialTwo: two} {
		mux.HandleFunc("GET /v2/certificates/"+serial, func(w http.ResponseWriter, _ *http.Request) {
			answer(w, map[string]any{"certificate": a.certificate[0], "status": "issued", "updated_at": 1})
		})
	}
	i := scripted(t, mux)
	for n, c := range []struct {
		serial string
		ca     authority
	}{{serialOne, one}, {serialOne, one}, {serialTwo, two}, {serialTwo, two}} {
		current.Store(&c.ca)
		ref := issuer.Ref{"certificate": c.serial}
		sub, err := i.Poll(t.Context(), ref)
		require.NoError(t, err)
		require.Equal(t, issuer.Issued, sub.State, "the case of a status does not count")
		require.Equal(t, c.ca.chain[0], string(sub.ChainPEM), "without the root")
		require.EqualValues(t, 1+n/2, reads.Load())
	}
}

func TestAStateThatIsNotKnownLeavesTheOrderOpen(t *testing.T) {
	t.Parallel()
	a, serial := newAuthority(t, "one")
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v2/login", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]string{"access_token": "t"}) })
	mux.HandleFunc("GET /v2/certificates/"+serial, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"certificate": a.certificate[0], "status": "SUSPENDED"})
	})
	sub, err := scripted(t, mux).Poll(t.Context(), issuer.Ref{"certificate": serial})
	require.NoError(t, err)
	require.Equal(t, issuer.Pending, sub.State)
	require.Contains(t, sub.Detail, "SUSPENDED")
}

func TestAnswersThatCannotBeRightAreNotBelieved(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v2/login", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]string{"access_token": "t"}) })
	mux.HandleFunc("GET /v2/validationpolicy", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]any{}) })
	mux.HandleFunc("POST /v2/certificates", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }) // no Location
	mux.HandleFunc("GET /v2/stats/issued", func(w http.ResponseWriter, _ *http.Request) { answer(w, []any{}) })                 // no Total-Count
	mux.HandleFunc("GET /v2/trustchain", func(w http.ResponseWriter, _ *http.Request) { answer(w, []string{}) })
	mux.HandleFunc("GET /v2/certificates/AB", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]any{"status": "ISSUED"}) })
	i := scripted(t, mux)
	r := order(t, "ord-1", "www.example.com")
	_, err := i.Submit(t.Context(), r)
	require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "it was accepted")
	_, _, findErr := i.FindOrder(t.Context(), lost(r))
	_, pollErr := i.Poll(t.Context(), issuer.Ref{"certificate": "AB"})
	_, chainErr := i.Chain(t.Context())
	for _, err := range []error{findErr, pollErr, chainErr} {
		require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%v", err)
	}
}
