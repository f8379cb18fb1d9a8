package gateway_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/certctl/certctl/gateway"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/secretbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOnlyTLS13IsSpoken(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	_, err := tls.Dial("tcp", w.addr, &tls.Config{RootCAs: w.roots, MaxVersion: tls.VersionTLS12})
	require.ErrorContains(t, err, "protocol version")
	conn, err := tls.Dial("tcp", w.addr, &tls.Config{RootCAs: w.roots, NextProtos: []string{"h2"}})
	require.NoError(t, err)
	defer conn.Close()
	require.Equal(t, "h2", conn.ConnectionState().NegotiatedProtocol)
	require.EqualValues(t, tls.VersionTLS13, conn.ConnectionState().Version)
}

func TestHTTP1AndHTTP2AnswerAlike(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	two := w.get(t, "/api/v1/certificates")
	w.client.CloseIdleConnections()
	w.client = w.httpClient(false)
	defer w.client.CloseIdleConnections()
	one := w.get(t, "/api/v1/certificates")
	require.Equal(t, 2, two.ProtoMajor)
	require.Equal(t, 1, one.ProtoMajor)
	require.Equal(t, two.body, one.body)
	require.Equal(t, two.Header.Get("ETag"), one.Header.Get("ETag"))
}

func TestAChangedCertificateIsServedWithoutARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, cert, key := serverCert(t, "first")
	certFile, keyFile := writeFiles(t, dir, cert, key)
	w := start(t, func(c *gateway.Config, d *gateway.Deps) {
		c.TLSCertFile, c.TLSKeyFile, d.GetCertificate = certFile, keyFile, nil
	})
	served := func() string {
		conn, err := tls.Dial("tcp", w.addr, &tls.Config{InsecureSkipVerify: true}) // looks at the certificate only
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	require.Equal(t, "first", served())
	_, cert, key = serverCert(t, "second")
	require.NoError(t, os.WriteFile(certFile, cert, 0o600)) // for a moment the two do not fit
	require.Never(t, func() bool { return served() != "first" }, 1200*time.Millisecond, 100*time.Millisecond)
	require.NoError(t, os.WriteFile(keyFile, key, 0o600))
	require.Eventually(t, func() bool { return served() == "second" }, 5*time.Second, 50*time.Millisecond)
	require.Equal(t, 1, w.logs.FilterMessage("TLS certificate cannot be reloaded; the one before stays").Len())
}

func TestAKeyIsNeeded(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	for name, header := range map[string]string{
		"none": "Authorization: ", "wrong": "Authorization: Bearer wrong-key-0123456789", "basic": "Authorization: Basic YTpi",
		"prefix of one": "Authorization: Bearer " + adminKey[:15],
	} {
		a := w.get(t, "/api/v1/certificates", header)
		p := a.problem(t, http.StatusUnauthorized)
		require.Equal(t, 16, p.Code, name)
		require.Equal(t, `Bearer realm="certctl"`, a.Header.Get("WWW-Authenticate"))
	}
	require.Zero(t, w.inventory.lists.Load(), "nothing reached the service")
}

func TestAllKeysOfTheListWorkWithTheirNamesAndRoles(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	for key, want := range map[string]string{
		adminKey: `{"name":"admin-1","role":"admin"}`, viewerKey: `{"name":"dash","role":"viewer"}`, operatorKey: `{"name":"ci","role":"operator"}`,
	} {
		a := w.get(t, "/api/v1/auth/check", "Authorization: Bearer "+key)
		require.Equal(t, http.StatusOK, a.StatusCode)
		require.JSONEq(t, want, a.body)
	}
	w.get(t, "/api/v1/certificates", "Authorization: bearer "+viewerKey)
	caller, _ := w.inventory.last()
	require.Equal(t, rpcctx.Caller{Type: rpcctx.User, ID: "dash", Role: rpcctx.RoleViewer}, caller)
}

func TestRolesAreForTheServicesToJudge(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	p := w.get(t, "/api/v1/audit", "Authorization: Bearer "+viewerKey).problem(t, http.StatusForbidden)
	require.Equal(t, "ROLE_NOT_ALLOWED", p.reason())
	require.Equal(t, http.StatusOK, w.get(t, "/api/v1/audit").StatusCode)
}

func TestWithoutAuthenticationEverybodyIsOneAdmin(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *gateway.Config, _ *gateway.Deps) { c.AuthType = "none"; c.AuthSecret = secretbox.Secret{} })
	require.JSONEq(t, `{"name":"anonymous-admin","role":"admin"}`, w.get(t, "/api/v1/auth/check", "Authorization: ").body)
	a := w.request(t, http.MethodPost, "/api/v1/certificates", `{}`, "Authorization: ", "Sec-Fetch-Site: cross-site", "Origin: https://evil.example")
	require.Equal(t, "CROSS_ORIGIN", a.problem(t, http.StatusForbidden).reason())
}

func TestSettingsThatAreNotSafeStopTheStart(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	for name, c := range map[string]struct {
		cfg  gateway.Config
		want string
	}{
		"none for all":   {gateway.Config{AuthType: "none", ListenAddr: "0.0.0.0:8443"}, "loopback"},
		"none, any host": {gateway.Config{AuthType: "none", ListenAddr: ":8443"}, "loopback"},
		"none and *":     {gateway.Config{AuthType: "none", CORSOrigins: []string{"*"}}, "CORS"},
		"jwt":            {gateway.Config{AuthType: "jwt"}, "authenticating proxy"},
		"oidc":           {gateway.Config{AuthType: "oidc"}, "oauth2-proxy"},
		"no key":         {gateway.Config{}, "CERTCTL_AUTH_SECRET"},
		"short key":      {gateway.Config{AuthSecret: secretbox.NewSecret("short")}, "at least 16"},
		"no certificate": {gateway.Config{AuthSecret: secretbox.NewSecret(keyList)}, "TLS certificate"},
		"broken origin":  {gateway.Config{AuthSecret: secretbox.NewSecret(keyList), CORSOrigins: []string{"ui.example.com"}}, "origin"},
	} {
		_, err := gateway.New(c.cfg, gateway.Deps{Backends: s.dial(t), Log: nopLog(), Metrics: newRegistry()})
		require.ErrorContains(t, err, c.want, name)
	}
	acknowledged := gateway.Config{AuthType: "none", ListenAddr: "0.0.0.0:8443", AuthNoneAcknowledged: true}
	require.NoError(t, acknowledged.Validate())
}

func TestTooManyRequestsAreToldWhenToComeBack(t *testing.T) {
	t.Parallel()
	t.Run("of a caller", func(t *testing.T) {
		t.Parallel()
		w := start(t, func(c *gateway.Config, _ *gateway.Deps) { c.CallerRate = gateway.Rate{PerSecond: 0.01, Burst: 2} })
		for range 2 {
			require.Equal(t, http.StatusOK, w.get(t, "/api/v1/version").StatusCode)
		}
		a := w.get(t, "/api/v1/version")
		require.Equal(t, "RATE_LIMITED", a.problem(t, http.StatusTooManyRequests).reason())
		require.NotEmpty(t, a.Header.Get("Retry-After"))
		require.Equal(t, http.StatusOK, w.get(t, "/api/v1/version", "Authorization: Bearer "+viewerKey).StatusCode, "others go on")
	})
	t.Run("of an address", func(t *testing.T) {
		t.Parallel()
		w := start(t, func(c *gateway.Config, _ *gateway.Deps) { c.AddressRate = gateway.Rate{PerSecond: 0.01, Burst: 1} })
		require.Equal(t, http.StatusOK, w.get(t, "/health").StatusCode)
		require.Equal(t, http.StatusTooManyRequests, w.get(t, "/health").StatusCode)
	})
	t.Run("with wrong keys", func(t *testing.T) {
		t.Parallel()
		w := start(t, func(c *gateway.Config, _ *gateway.Deps) { c.FailureRate = gateway.Rate{PerSecond: 0.01, Burst: 1} })
		wrong := "Authorization: Bearer wrong-key-0123456789"
		require.Equal(t, http.StatusUnauthorized, w.get(t, "/api/v1/version", wrong).StatusCode)
		require.Equal(t, http.StatusTooManyRequests, w.get(t, "/api/v1/version", wrong).StatusCode)
		require.Equal(t, http.StatusOK, w.get(t, "/api/v1/version").StatusCode, "a right key is not locked out")
	})
}

func TestPathsAndVerbsThatAreNotThere(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	for _, path := range []string{
		"/api/v1/nothing", "/nothing", "/api/v1/certificates/", "/api/v1/certificates/a%2Frenew", "/api/v1//certificates", "/crl/iss-local", "/crl/.crl",
	} {
		require.Equal(t, 5, w.get(t, path).problem(t, http.StatusNotFound).Code, path)
	}
	a := w.request(t, http.MethodPut, "/api/v1/certificates", "{}")
	require.Equal(t, "METHOD_NOT_ALLOWED", a.problem(t, http.StatusMethodNotAllowed).reason())
	require.Equal(t, "GET, HEAD, POST", a.Header.Get("Allow"))
	require.Equal(t, http.StatusMethodNotAllowed, w.request(t, http.MethodDelete, "/health", "").StatusCode)
	require.Equal(t, http.StatusMethodNotAllowed, w.request(t, http.MethodOptions, "/api/v1/certificates", "").StatusCode)
}

func TestEveryAnswerHasARequestIDAndSecurityHeaders(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	a := w.get(t, "/api/v1/certificates", "X-Request-Id: my-id.1")
	require.Equal(t, "my-id.1", a.Header.Get("X-Request-Id"))
	_, md := w.inventory.last()
	require.Equal(t, []string{"my-id.1"}, md.Get("x-request-id"), "the service sees it too")
	b := w.get(t, "/nothing", `X-Request-Id: "forged" line`)
	require.Len(t, b.Header.Get("X-Request-Id"), 36)
	for _, h := range []http.Header{a.Header, b.Header} {
		require.Equal(t, "nosniff", h.Get("X-Content-Type-Options"))
		require.Contains(t, h.Get("Content-Security-Policy"), "default-src 'none'")
		require.Empty(t, h.Get("Strict-Transport-Security"), "not for loopback addresses")
		require.Empty(t, h.Get("Access-Control-Allow-Origin"))
	}
}

func TestCORSIsForConfiguredOriginsOnly(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *gateway.Config, _ *gateway.Deps) { c.CORSOrigins = []string{"https://ui.example.com"} })
	a := w.request(t, http.MethodOptions, "/api/v1/certificates", "", "Authorization: ", "Origin: https://ui.example.com", "Access-Control-Request-Method: POST")
	require.Equal(t, http.StatusNoContent, a.StatusCode)
	require.Equal(t, "https://ui.example.com", a.Header.Get("Access-Control-Allow-Origin"))
	require.Contains(t, a.Header.Get("Access-Control-Allow-Headers"), "Authorization")
	b := w.get(t, "/api/v1/certificates", "Origin: https://ui.example.com")
	require.Equal(t, "https://ui.example.com", b.Header.Get("Access-Control-Allow-Origin"))
	require.Contains(t, b.Header.Values("Vary"), "Origin")
	for _, a := range []answer{
		w.get(t, "/api/v1/certificates", "Origin: https://evil.example"),
		w.request(t, http.MethodOptions, "/api/v1/certificates", "", "Origin: https://evil.example", "Access-Control-Request-Method: POST"),
	} {
		require.Empty(t, a.Header.Get("Access-Control-Allow-Origin"))
	}
	c := w.request(t, http.MethodPost, "/api/v1/certificates", `{"name":"x"}`, "Origin: https://ui.example.com", "Sec-Fetch-Site: cross-site")
	require.Equal(t, http.StatusCreated, c.StatusCode)
}

func TestACRLIsSentInPiecesAndNeverCutShortInSilence(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	a := w.get(t, "/api/v1/issuers/iss-local/crl")
	require.Equal(t, "\x30\x02\x05\x00", a.body)
	require.Equal(t, "application/pkix-crl", a.Header.Get("Content-Type"))
	require.Equal(t, "private, no-cache", a.Header.Get("Cache-Control"))
	caller, _ := w.issuance.last()
	require.False(t, caller.IsAnonymous())
	require.Equal(t, http.StatusNotModified, w.get(t, "/api/v1/issuers/iss-local/crl", "If-None-Match: "+a.Header.Get("ETag")).StatusCode)
	w.issuance.forget()
	head := w.request(t, http.MethodHead, "/api/v1/issuers/iss-local/crl", "")
	require.Equal(t, "4", head.Header.Get("Content-Length"))
	require.Len(t, w.issuance.callers, 1, "only the first piece")
	require.Equal(t, http.StatusNotFound, w.get(t, "/api/v1/issuers/iss-other/crl").StatusCode)
	require.Equal(t, http.StatusBadRequest, w.get(t, "/api/v1/issuers/iss-local/crl?offset=2").StatusCode)

	older := w.get(t, "/crl/iss-older.crl", "Authorization: ")
	require.Equal(t, "\x30\x00", older.body)
	require.Empty(t, older.Header.Get("ETag"))

	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/crl/iss-broken.crl", http.NoBody)
	require.NoError(t, err)
	answer, err := w.client.Do(r) // fails here or while it is read, as it has not many bytes
	if err == nil {
		_, err = io.ReadAll(answer.Body)
		_ = answer.Body.Close()
	}
	require.Error(t, err)
}

func TestPublicRoutesNeedNoKey(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	anonymous := "Authorization: "
	require.JSONEq(t, `{"status":"healthy"}`, w.get(t, "/health", anonymous).body)
	a := w.get(t, "/crl/iss-local.crl", anonymous)
	require.Equal(t, http.StatusOK, a.StatusCode)
	require.Equal(t, "application/pkix-crl", a.Header.Get("Content-Type"))
	require.Equal(t, "\x30\x02\x05\x00", a.body)
	require.Equal(t, "4", a.Header.Get("Content-Length"))
	caller, _ := w.issuance.last()
	require.True(t, caller.IsAnonymous())
	require.Equal(t, http.StatusNotModified, w.get(t, "/crl/iss-local.crl", anonymous, "If-None-Match: "+a.Header.Get("ETag")).StatusCode)
	require.Equal(t, http.StatusNotFound, w.get(t, "/crl/iss-other.crl", anonymous).StatusCode)
	require.Equal(t, "/docs", w.get(t, "/", anonymous).Header.Get("Location"))
	for path, want := range map[string]string{"/docs": "<title>certctl API</title>", "/docs/page.js": "fetch('/openapi.json')", "/docs/page.css": ":root"} {
		a := w.get(t, path, anonymous)
		require.Equal(t, http.StatusOK, a.StatusCode)
		require.Contains(t, a.body, want)
		require.Contains(t, a.Header.Get("Content-Security-Policy"), "script-src 'self'")
	}
	require.Contains(t, w.get(t, "/openapi.json", anonymous).body, `"/api/v1/certificates/{id}/revoke"`)
}

func TestReadinessNamesTheServiceThatIsAway(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	a := w.get(t, "/ready", "Authorization: ")
	require.Equal(t, http.StatusOK, a.StatusCode, a.body)
	require.Contains(t, a.body, `"asyncpoller":{"ready":true`)
	require.Contains(t, a.body, `"chain verification"`)
	require.NotContains(t, a.body, "internal", "the text of errors is for the log")
	w.services.stop["audit"]()
	require.Eventually(t, func() bool {
		a = w.get(t, "/ready", "Authorization: ")
		return a.StatusCode == http.StatusServiceUnavailable
	}, 10*time.Second, 50*time.Millisecond)
	require.Contains(t, a.body, `"status":"not_ready"`)
	require.Contains(t, a.body, `"audit":{"ready":false,"message":"audit is not available"`)
	require.Contains(t, a.body, `"inventory":{"ready":true`)
}

func TestAServiceThatIsAwayIsNamed(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.services.stop["audit"]()
	var p problem
	require.Eventually(t, func() bool {
		a := w.get(t, "/api/v1/audit")
		if a.StatusCode != http.StatusServiceUnavailable {
			return false
		}
		p = a.problem(t, http.StatusServiceUnavailable)
		return true
	}, 5*time.Second, 20*time.Millisecond)
	require.Equal(t, "audit is not available", p.Message)
	require.Equal(t, map[string]any{"service": "audit"}, p.Details[0]["metadata"])
	require.Equal(t, http.StatusOK, w.get(t, "/api/v1/certificates").StatusCode, "the others go on")
}

func TestARequestHasOneLogLineWithoutItsSecrets(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.get(t, "/api/v1/certificates?name=x", "X-Request-Id: line-1")
	require.Eventually(t, func() bool { return w.logs.FilterMessage("request").Len() == 1 }, time.Second, time.Millisecond)
	line := w.logs.FilterMessage("request").All()[0]
	fields := line.ContextMap()
	require.Equal(t, "user:admin-1", fields["caller"])
	require.Equal(t, "line-1", fields["request_id"])
	require.EqualValues(t, 200, fields["code"])
	require.NotContains(t, fmt.Sprint(fields), adminKey)
	for _, l := range w.logs.All() {
		require.NotContains(t, strings.ToLower(fmt.Sprint(l.ContextMap())), adminKey)
	}
}

func TestRequestsUnderWayEndBeforeTheStop(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *gateway.Config, _ *gateway.Deps) { c.RequestTimeout = 700 * time.Millisecond })
	answered := make(chan int, 1)
	go func() {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/api/v1/certificates/slow", nil)
		if err != nil {
			answered <- -1
			return
		}
		r.Header.Set("Authorization", "Bearer "+adminKey)
		resp, err := w.client.Do(r)
		if err != nil {
			answered <- -2
			return
		}
		_ = resp.Body.Close()
		answered <- resp.StatusCode
	}()
	require.Eventually(t, func() bool {
		w.inventory.calls.mu.Lock()
		defer w.inventory.calls.mu.Unlock()
		return len(w.inventory.callers) == 1
	}, 5*time.Second, time.Millisecond)
	require.NoError(t, w.stop())
	require.Equal(t, http.StatusGatewayTimeout, <-answered, "it got its answer, which was to run out of time")
}
