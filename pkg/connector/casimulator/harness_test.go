package casimulator_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
)

// rig is a simulator that listens, and a plain client that knows the APIs by their documentation.
type rig struct {
	sim     *casimulator.Simulator
	at      casimulator.Addresses
	client  *http.Client
	headers map[string]string
}

func start(t *testing.T, c casimulator.Config) *rig {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	sim, err := casimulator.New(c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sim.Close()) })
	at, err := sim.Start(t.Context(), casimulator.Listen{Address: "127.0.0.1:0", ControlAddress: "127.0.0.1:0"})
	require.NoError(t, err)
	return &rig{sim: sim, at: at, client: client(t, sim, false), headers: map[string]string{}}
}

// digicert and sectigo are the rig with what each CA asks of its clients.
func (r *rig) digicert() *rig {
	return r.with(map[string]string{"X-DC-DEVKEY": r.sim.Credentials().DigiCertAPIKey})
}

func (r *rig) sectigo() *rig {
	c := r.sim.Credentials()
	return r.with(map[string]string{"login": c.SectigoLogin, "password": c.SectigoPassword, "customerUri": c.SectigoCustomerURI})
}

func (r *rig) with(headers map[string]string) *rig {
	other := *r
	other.headers = headers
	return &other
}

// client trusts the simulator, and presents its client certificate if it is asked to.
func client(t *testing.T, sim *casimulator.Simulator, certificate bool) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	text, err := os.ReadFile(sim.CAFile())
	require.NoError(t, err)
	require.True(t, roots.AppendCertsFromPEM(text))
	config := &tls.Config{RootCAs: roots}
	if certificate {
		pair, err := tls.LoadX509KeyPair(sim.ClientCertificate())
		require.NoError(t, err)
		config.Certificates = []tls.Certificate{pair}
	}
	transport := &http.Transport{TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// answer is a reply that was read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// try sends a request; body is JSON text, or something that becomes it.
func (r *rig) try(t *testing.T, method, path string, body any) (answer, error) {
	t.Helper()
	var send io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		send = strings.NewReader(b)
	default:
		text, err := json.Marshal(b)
		require.NoError(t, err)
		send = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(t.Context(), method, "https://"+r.at.CAs+path, send)
	require.NoError(t, err)
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	for name, value := range r.headers {
		request.Header.Set(name, value)
	}
	response, err := r.client.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return answer{status: response.StatusCode, header: response.Header, body: text}, err
}

// do is try for requests that get an answer with a status.
func (r *rig) do(t *testing.T, status int, method, path string, body any) answer {
	t.Helper()
	a, err := r.try(t, method, path, body)
	require.NoError(t, err)
	require.Equal(t, status, a.status, "%s %s: %s", method, path, a.body)
	return a
}

// control is one call of the control API.
func (r *rig) control(t *testing.T, status int, method, path, body string) answer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.at.Control+"/control/v1"+path, strings.NewReader(body))
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request) //nolint:forbidigo // the time of the test bounds it
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, status, response.StatusCode, "%s %s: %s", method, path, text)
	return answer{status: response.StatusCode, header: response.Header, body: text}
}

// object reads a JSON object.
func (a answer) object(t *testing.T) map[string]any {
	t.Helper()
	var v map[string]any
	d := json.NewDecoder(bytes.NewReader(a.body))
	d.UseNumber()
	require.NoError(t, d.Decode(&v), "%s", a.body)
	return v
}

// get reads a value at a path of keys and indexes.
func (a answer) get(t *testing.T, path ...any) any {
	t.Helper()
	var v any = a.object(t)
	for _, step := range path {
		switch s := step.(type) {
		case string:
			m, ok := v.(map[string]any)
			require.True(t, ok, "%s: no object at %v", a.body, path)
			v = m[s]
		case int:
			l, ok := v.([]any)
			require.True(t, ok && s < len(l), "%s: no list at %v", a.body, path)
			v = l[s]
		}
	}
	return v
}

func (a answer) text(t *testing.T, path ...any) string {
	t.Helper()
	switch v := a.get(t, path...).(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	default:
		require.Failf(t, "no text", "%s at %v", a.body, path)
		return ""
	}
}

var signer = sync.OnceValue(func() crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
})

// csr is for the one key of these tests.
func csr(t testing.TB, commonName string, names ...string) string {
	t.Helper()
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csrDER(t, commonName, names...)}))
}

func csrDER(t testing.TB, commonName string, names ...string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: commonName}, DNSNames: names}, signer())
	require.NoError(t, err)
	return der
}

// certificates reads PEM.
func certificates(t *testing.T, text []byte) []*x509.Certificate {
	t.Helper()
	var out []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		out = append(out, c)
	}
	return out
}

// verified checks what a client would: key, chain, names.
func verified(t *testing.T, chain []*x509.Certificate, name string) {
	t.Helper()
	require.NotEmpty(t, chain)
	leaf, root := chain[0], chain[len(chain)-1]
	require.Equal(t, signer().Public(), leaf.PublicKey)
	roots, above := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, c := range chain[1:] {
		above.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: above, DNSName: name})
	require.NoError(t, err)
}

// clock is a time that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func onlyOrder(t *testing.T, sim *casimulator.Simulator) casimulator.Order {
	t.Helper()
	orders := sim.Orders()
	require.Len(t, orders, 1)
	return orders[0]
}

// jsonNumber makes a number of a number's text.
func jsonNumber(text string) json.Number { return json.Number(text) }
