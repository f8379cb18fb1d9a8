package casimulator_test

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
)

// fuzzed is a simulator that everything may be sent to.
func fuzzed(f *testing.F) *casimulator.Simulator {
	f.Helper()
	sim, err := casimulator.New(casimulator.Config{Dir: f.TempDir(), Scenario: casimulator.Scenario{Unlimited: true}})
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, sim.Close()) })
	return sim
}

func send(t testing.TB, sim *casimulator.Simulator, method, path, body string) int {
	t.Helper()
	request := httptest.NewRequestWithContext(t.Context(), method, "/", strings.NewReader(body))
	target, err := request.URL.Parse(path)
	if err != nil || !strings.HasPrefix(target.Path, "/") {
		t.Skip("no path")
	}
	request.URL = target
	c := sim.Credentials()
	for name, value := range map[string]string{
		"X-DC-DEVKEY": c.DigiCertAPIKey, "login": c.SectigoLogin, "password": c.SectigoPassword, "customerUri": c.SectigoCustomerURI,
		"Content-Type": "application/json",
	} {
		request.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	sim.Handler().ServeHTTP(w, request)
	return w.Code
}

func FuzzSubmission(f *testing.F) {
	sim := fuzzed(f)
	f.Add(orderJSON(f, "example.com"))
	f.Add(`{"orgId":4711,"csr":"","certType":224,"term":90,"subjAltNames":",,a"}`)
	f.Add(`{"certificate":{"common_name":"a","cert_validity":{"days":-1,"years":9223372036854775807}},"order_validity":{"days":-5}}`)
	f.Fuzz(func(t *testing.T, body string) {
		for _, path := range []string{dcBase + "/order/certificate/ssl_basic", sectigoBase + "/enroll"} {
			before := len(sim.Orders())
			code := send(t, sim, "POST", path, body)
			require.NotEqual(t, 500, code)
			require.Equal(t, code < 300, len(sim.Orders()) == before+1, "%d", code)
		}
	})
}

func FuzzQuery(f *testing.F) {
	sim := fuzzed(f)
	require.Equal(f, 201, send(f, sim, "POST", dcBase+"/order/certificate/ssl_basic", orderJSON(f, "example.com")))
	f.Add("filters[date_created]=2026-01-01...2026-02-01&offset=1&limit=2&sort=-id")
	f.Add("filters[status_last_updated]=>2026-01-01&minutes=99999999999")
	f.Add("position=9223372036854775807&size=-1")
	f.Fuzz(func(t *testing.T, query string) {
		for _, path := range []string{dcBase + "/order/certificate", dcBase + "/order/certificate/status-changes", dcBase + "/request", sectigoBase} {
			require.Contains(t, []int{200, 400, 301, 404, 405}, send(t, sim, "GET", path+"?"+strings.ReplaceAll(query, "#", ""), ""))
		}
	})
}
