package casimulator_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
)

func into[T any](t *testing.T, a answer) T {
	t.Helper()
	var v T
	require.NoError(t, json.NewDecoder(bytes.NewReader(a.body)).Decode(&v), "%s", a.body)
	return v
}

func TestControlShowsTheTruth(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{Scenario: casimulator.Scenario{Approval: casimulator.Approval{Needed: true}}}).digicert()
	id, certificate := dcSubmit(t, r, "example.com", nil)
	sectigoEnrol(t, r.sectigo(), "example.org")
	require.Equal(t, r.sim.Orders(), into[[]casimulator.Order](t, r.control(t, http.StatusOK, "GET", "/orders", "")))
	require.Len(t, into[[]casimulator.Order](t, r.control(t, http.StatusOK, "GET", "/orders?ca=sectigo", "")), 1)
	require.Equal(t, "/digicert/services/v2/order/certificate/ssl_basic", into[[]casimulator.Request](t, r.control(t, http.StatusOK, "GET", "/requests", ""))[0].Path)
	require.JSONEq(t, "[]", string(r.control(t, http.StatusOK, "GET", "/violations", "").body))

	for _, name := range []string{"12345", "ref-nothing"} {
		r.control(t, http.StatusNotFound, "POST", "/orders/"+name+"/approve", "")
	}
	r.control(t, http.StatusBadRequest, "POST", "/orders/"+id+"/applaud", "")
	approved := r.control(t, http.StatusOK, "POST", "/orders/"+id+"/approve", "")
	require.Equal(t, "issued", approved.text(t, "state"))
	r.control(t, http.StatusBadRequest, "POST", "/orders/"+id+"/approve", "")
	r.control(t, http.StatusBadRequest, "POST", "/orders/"+certificate+"/issue", "")
	r.control(t, http.StatusOK, "POST", "/orders/ref-example.org/reject?reason=never", "")
	require.Equal(t, casimulator.Rejected, r.sim.Orders()[1].State)
	require.Equal(t, 1, r.sim.Orders()[0].Certificates)
}

func TestControlIssuesAtOnceAndApprovesRevocations(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{Scenario: casimulator.Scenario{Approval: casimulator.Approval{Needed: true}, Latency: 1 << 50}}).digicert()
	id, certificate := dcSubmit(t, r, "example.com", nil)
	r.control(t, http.StatusOK, "POST", "/orders/"+id+"/issue", "")
	require.Equal(t, "issued", dcStatus(t, r, id))
	revoke := map[string]any{"revocation_reason": "superseded"}
	r.do(t, http.StatusCreated, "PUT", dcBase+"/certificate/"+certificate+"/revoke", revoke)
	r.control(t, http.StatusOK, "POST", "/orders/"+id+"/reject", "")
	require.Empty(t, onlyOrder(t, r.sim).Revoked)
	r.do(t, http.StatusCreated, "PUT", dcBase+"/certificate/"+certificate+"/revoke", revoke)
	r.control(t, http.StatusOK, "POST", "/orders/"+id+"/approve", "")
	require.Len(t, onlyOrder(t, r.sim).Revoked, 1)
	r.control(t, http.StatusBadRequest, "POST", "/orders/"+id+"/reject", "")
}

func TestControlSetsFaultsAsAScenarioDoes(t *testing.T) {
	t.Parallel()
	r := start(t, casimulator.Config{}).digicert()
	r.control(t, http.StatusNoContent, "PUT", "/faults", "- {ca: digicert, operation: probe, fault: server_error, status: 503, retry_after: 20s, times: 2}")
	r.do(t, http.StatusServiceUnavailable, "GET", dcBase+"/user/me", nil)
	set := r.control(t, http.StatusOK, "GET", "/faults", "").body
	require.JSONEq(t, `[{"ca":"digicert","operation":"probe","fault":"server_error","status":503,"retry_after":"20s","times":2}]`, string(set))
	r.control(t, http.StatusNoContent, "PUT", "/faults", string(set)) // what it shows it takes, and counts anew
	r.do(t, http.StatusServiceUnavailable, "GET", dcBase+"/user/me", nil)
	r.control(t, http.StatusNoContent, "DELETE", "/faults", "")
	r.do(t, http.StatusOK, "GET", dcBase+"/user/me", nil)
	require.Contains(t, r.control(t, http.StatusBadRequest, "PUT", "/faults", "- {fault: none}").text(t, "error"), "there is none")
	r.control(t, http.StatusNoContent, "PUT", "/scenario", "approval: manual")
	id, _ := dcSubmit(t, r, "example.com", nil)
	require.Equal(t, "pending", dcStatus(t, r, id))
	r.control(t, http.StatusBadRequest, "PUT", "/scenario", "approvals: manual")
	r.control(t, http.StatusBadRequest, "POST", "/clock", `{"offset":"tomorrow"}`)

	r.do(t, http.StatusNotFound, "GET", dcBase+"/nothing", nil)
	violations := into[[]casimulator.Violation](t, r.control(t, http.StatusOK, "GET", "/violations", ""))
	require.Equal(t, "there is no such resource", violations[0].Message)
	r.control(t, http.StatusNoContent, "POST", "/reset", "")
	require.Empty(t, r.sim.Violations())
	require.Empty(t, r.sim.Requests())
	require.Len(t, r.sim.Orders(), 1, "orders stay")
	r.do(t, http.StatusOK, "GET", "/control/v1/orders", nil) // one host has everything
}

func TestRecordsAreBounded(t *testing.T) {
	t.Parallel()
	sim := open(t, casimulator.Config{})
	for range 20_050 {
		ask(t, sim, "GET", "/digicert/nothing", "")
	}
	require.Len(t, sim.Requests(), 20_000)
	require.Len(t, sim.Violations(), 20_000)
	require.False(t, sim.Requests()[0].At.After(sim.Requests()[19_999].At))
}

func TestControlIsNotAtAnAddressThatOthersReach(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]int{"127.0.0.1:0": http.StatusOK, "0.0.0.0:0": http.StatusNotFound} {
		sim := open(t, casimulator.Config{})
		at, err := sim.Start(t.Context(), casimulator.Listen{Address: listen, ControlAddress: "127.0.0.1:0"})
		require.NoError(t, err)
		_, port, err := net.SplitHostPort(at.CAs)
		require.NoError(t, err)
		pem, err := os.ReadFile(sim.CAFile())
		require.NoError(t, err)
		roots := x509.NewCertPool()
		require.True(t, roots.AppendCertsFromPEM(pem))
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
		t.Cleanup(client.CloseIdleConnections)
		status := func(url string) int {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
			require.NoError(t, err)
			response, err := client.Do(request)
			require.NoError(t, err)
			require.NoError(t, response.Body.Close())
			return response.StatusCode
		}
		require.Equal(t, want, status("https://127.0.0.1:"+port+"/control/v1/orders"), listen)
		require.Equal(t, http.StatusUnauthorized, status("https://127.0.0.1:"+port+"/digicert/services/v2/user/me"), listen)
		require.Equal(t, http.StatusOK, status("http://"+at.Control+"/control/v1/orders"))
	}
}
