package globalsign_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
)

// echo refuses a request and repeats all that was sent.
func echo(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"description":%q,"errors":{"body":%q}}`, r.Header.Get("Authorization"), body)
	}
}

func TestACAThatRepeatsSecretsDoesNotSpreadThem(t *testing.T) {
	t.Parallel()
	const token = "canary-token-1234567890"
	for _, status := range []int{400, 401, 403, 404, 409, 422, 429, 500, 503} {
		closed := http.NewServeMux()
		closed.HandleFunc("/", echo(status))
		open := http.NewServeMux()
		open.HandleFunc("/", echo(status))
		open.HandleFunc("POST /v2/login", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]string{"access_token": token}) })
		for _, mux := range []*http.ServeMux{closed, open} {
			i := scripted(t, mux)
			_, submitted := i.Submit(t.Context(), order(t, "ord-1", "www.example.com"))
			order, polled := i.Poll(t.Context(), issuer.Ref{"certificate": "AB"})
			if order.State == issuer.Rejected { // 422 is the CA's no, and its words are shown
				require.Equal(t, 422, status)
				polled = errors.New(order.Detail)
			}
			_, revoked := i.Revoke(t.Context(), issuer.RevokeRequest{Ref: issuer.Ref{"certificate": "AB"}, Reason: issuer.Superseded})
			for _, err := range []error{submitted, polled, revoked, i.Test(t.Context())} {
				require.Error(t, err)
				for _, secret := range []string{token, "0123456789abcdef"} { // key and secret of the simulator begin so
					require.NotContains(t, fmt.Sprintf("%v %+v", err, err), secret)
				}
			}
		}
	}
}
