//go:build cluster

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/stretchr/testify/require"
)

type object = map[string]any

// api is a client of a release's gateway, by the address of its Service: the test runs where cluster addresses are reachable.
type api struct {
	r      *release
	client *http.Client
	key    string
}

// roots are the certificates that a client of the release trusts.
func (r *release) roots(pem string) *x509.CertPool {
	r.t.Helper()
	pool := x509.NewCertPool()
	require.True(r.t, pool.AppendCertsFromPEM([]byte(pem)))
	return pool
}

// ca is the gateway's CA as the chart publishes it.
func (r *release) ca() string {
	r.t.Helper()
	return r.kubectl("get", "configmap", r.name+"-server-ca", "-o", `jsonpath={.data.ca\.crt}`)
}

// host is the name of the gateway in the cluster.
func (r *release) host() string { return r.name + "-server." + r.ns + ".svc" }

// address is that of the gateway's Service.
func (r *release) address() string {
	r.t.Helper()
	return net.JoinHostPort(r.kubectl("get", "service", r.name+"-server", "-o", "jsonpath={.spec.clusterIP}"), "8443")
}

func (r *release) api(key, ca string) *api {
	r.t.Helper()
	address := r.address()
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: r.roots(ca), MinVersion: tls.VersionTLS13},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, network, address)
		},
		ForceAttemptHTTP2: true,
	}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &api{r: r, key: key, client: &http.Client{Transport: transport, Timeout: 20 * time.Second}}
}

// errRetry is an answer that says: later.
var errRetry = errors.New("try again")

// once makes a request. Failures that a client is told to repeat are errRetry: the connection was cut, or 429, 502, 503, 504.
func (a *api) once(ctx context.Context, method, path, key string, body object) (int, object, error) {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return 0, nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+a.r.host()+":8443"+path, bytes.NewReader(b))
	if err != nil {
		return 0, nil, err
	}
	if a.key != "" {
		req.Header.Set("Authorization", "Bearer "+a.key)
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	answer, err := a.client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errRetry, err)
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errRetry, err)
	}
	switch answer.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return answer.StatusCode, nil, fmt.Errorf("%w: %d %s", errRetry, answer.StatusCode, text)
	}
	var o object
	if err := json.Unmarshal(text, &o); err != nil {
		return answer.StatusCode, nil, fmt.Errorf("%s %s: %d %q: %w", method, path, answer.StatusCode, text, err)
	}
	return answer.StatusCode, o, nil
}

// do repeats what may be repeated, for a minute; a write has an idempotency key, so that it has its effect once. It answers how often
// it had to repeat.
func (a *api) do(ctx context.Context, method, path string, body object) (o object, retries int, err error) {
	deadline := time.Now().Add(time.Minute)
	key := ""
	if method != http.MethodGet {
		key = rand.Text()
	}
	for {
		var code int
		code, o, err = a.once(ctx, method, path, key, body)
		if errors.Is(err, errRetry) && time.Now().Before(deadline) {
			retries++
			select {
			case <-ctx.Done():
				return nil, retries, ctx.Err()
			case <-time.After(200 * time.Millisecond):
			}
			continue
		}
		if err == nil && code >= 300 {
			err = fmt.Errorf("%s %s: %d %v", method, path, code, o)
		}
		return o, retries, err
	}
}

func (a *api) must(method, path string, body object) object {
	a.r.t.Helper()
	o, _, err := a.do(a.r.t.Context(), method, path, body)
	require.NoError(a.r.t, err)
	return o
}

func (a *api) status(path string) int {
	a.r.t.Helper()
	var code int
	require.Eventually(a.r.t, func() bool {
		var err error
		code, _, err = a.once(a.r.t.Context(), http.MethodGet, path, "", nil)
		return err == nil
	}, patience, interval)
	return code
}

func str(o object, key string) string {
	s, _ := o[key].(string)
	return s
}

func list(o object, key string) (items []object) {
	all, _ := o[key].([]any)
	for _, i := range all {
		items = append(items, i.(object))
	}
	return items
}

// agent waits for the one agent, online, and answers its id.
func (a *api) agent() (id string) {
	a.r.t.Helper()
	require.Eventually(a.r.t, func() bool {
		agents := list(a.must(http.MethodGet, "/api/v1/agents", nil), "agents")
		require.LessOrEqual(a.r.t, len(agents), 1, "a pod that was made anew is to be the same agent")
		if len(agents) == 0 || str(agents[0], "status") != "ONLINE" {
			return false
		}
		id = str(agents[0], "id")
		return true
	}, patience, interval, "no agent is online")
	return id
}

// intact verifies the record.
func (a *api) intact() {
	a.r.t.Helper()
	verdict := a.must(http.MethodPost, "/api/v1/audit/verify", object{})
	require.Equal(a.r.t, true, verdict["valid"], "%v", verdict)
}
