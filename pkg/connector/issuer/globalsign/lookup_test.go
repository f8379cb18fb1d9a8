package globalsign_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
)

// listing is an HVCA that lists one certificate, which it gives as handler does.
func listing(t *testing.T, serial string, handler http.HandlerFunc) *http.ServeMux {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v2/login", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]string{"access_token": "t"}) })
	mux.HandleFunc("GET /v2/stats/issued", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Total-Count", "1")
		answer(w, []any{map[string]any{"serial_number": serial, "not_before": time.Now().Unix(), "not_after": time.Now().Add(time.Hour).Unix()}})
	})
	mux.HandleFunc("GET /v2/certificates/{serial}", handler)
	return mux
}

func TestAListedCertificateThatCannotBeReadMayBeTheOrders(t *testing.T) {
	t.Parallel()
	refuse := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(status)
			_, _ = fmt.Fprint(w, `{"description":"no"}`)
		}
	}
	rubbish := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			answer(w, map[string]any{"certificate": text, "status": "ISSUED"})
		}
	}
	for name, c := range map[string]struct {
		serial  string
		handler http.HandlerFunc
	}{
		"forgotten": {"AB", refuse(404)}, "400": {"AB", refuse(400)}, "409": {"AB", refuse(409)}, "422": {"AB", refuse(422)},
		"rubbish": {"AB", rubbish("AAEC")}, "broken": {"AB", rubbish("-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n")},
		"no serial number": {"none", refuse(404)},
	} {
		i := scripted(t, listing(t, c.serial, c.handler))
		_, ok, err := i.FindOrder(t.Context(), lost(order(t, "ord-1", "www.example.com")))
		require.False(t, ok, name)
		require.Error(t, err, name)
		require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%s: %v", name, err)
	}
}

func TestACertificateThatCannotBeReadIsAskedForAgain(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"AAEC", "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n"} {
		a, _ := newAuthority(t, "one")
		mux := listing(t, "AB", func(w http.ResponseWriter, _ *http.Request) {
			answer(w, map[string]any{"certificate": text, "status": "ISSUED"})
		})
		mux.HandleFunc("GET /v2/trustchain", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.chain) })
		_, err := scripted(t, mux).Poll(t.Context(), issuer.Ref{"certificate": "AB"})
		require.Error(t, err)
		require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%v", err)
	}
}
