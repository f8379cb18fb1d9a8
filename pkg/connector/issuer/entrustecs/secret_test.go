package entrustecs_test

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/faulttest"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

func TestACAThatRepeatsSecretsDoesNotSpreadThem(t *testing.T) {
	t.Parallel()
	sim, at := faulttest.Start(t, casimulator.Scenario{})
	own := sim.Credentials()
	basic := base64.StdEncoding.EncodeToString([]byte(own.EntrustECSUser + ":" + own.EntrustECSKey))
	for _, status := range []int{400, 401, 403, 404, 409, 422, 429, 500, 503} {
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, key, _ := r.BasicAuth()
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, `{"status":%d,"errors":[{"message":%q}]}`, status, r.Header.Get("Authorization")+" "+key)
		}))
		t.Cleanup(server.Close)
		trust := filepath.Join(t.TempDir(), "ca.pem")
		require.NoError(t, os.WriteFile(trust, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
		i := open(t, config(t, sim, at, func(s map[string]any) { s["base_url"], s["ca_file"] = server.URL+"/enterprise", trust }))
		ref := issuer.Ref{"tracking_id": "7"}
		_, submitted := i.Submit(t.Context(), order(t, "ord-1", "www.example.com"))
		_, polled := i.Poll(t.Context(), ref)
		_, revoked := i.Revoke(t.Context(), issuer.RevokeRequest{Ref: ref, Reason: issuer.Unspecified})
		for _, err := range []error{submitted, polled, revoked, i.Cancel(t.Context(), ref), i.Test(t.Context())} {
			require.Error(t, err)
			for _, secret := range []string{own.EntrustECSKey, basic} {
				require.NotContains(t, fmt.Sprintf("%v %+v", err, err), secret)
			}
		}
	}
}
