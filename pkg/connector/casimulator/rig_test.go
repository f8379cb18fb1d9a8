package casimulator

import (
	"bytes"
	"context"
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
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// rig is a simulator that is served over TLS, and a client of nothing but net/http.
type rig struct {
	t      *testing.T
	dir    string
	ahead  atomic.Int64 // by how much the simulator's true time is ahead of ours
	sim    *Simulator
	at     Addresses
	stop   context.CancelFunc
	client *http.Client
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir()}
	r.start()
	t.Cleanup(r.end)
	return r
}

func (r *rig) now() time.Time { return time.Now().Add(time.Duration(r.ahead.Load())) }

func (r *rig) pass(d time.Duration) { r.ahead.Add(int64(d)) }

func (r *rig) start() {
	r.t.Helper()
	sim, err := New(Config{Dir: r.dir, Now: r.now})
	require.NoError(r.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	at, err := sim.Start(ctx, Listen{Address: "127.0.0.1:0", ControlAddress: "127.0.0.1:0"})
	require.NoError(r.t, err)
	r.sim, r.at, r.stop, r.client = sim, at, cancel, clientOf(r.t, sim, true)
}

func (r *rig) end() {
	r.client.CloseIdleConnections()
	r.stop()
	require.NoError(r.t, r.sim.Wait())
	require.NoError(r.t, r.sim.Close())
}

// restart is the end of the simulator and a new one on the same directory.
func (r *rig) restart() {
	r.t.Helper()
	r.end()
	r.start()
}

func clientOf(t *testing.T, sim *Simulator, withCertificate bool) *http.Client {
	t.Helper()
	ca, err := os.ReadFile(sim.CAFile())
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(ca))
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, Time: sim.now}
	if withCertificate {
		pair, err := tls.LoadX509KeyPair(sim.ClientCertificate())
		require.NoError(t, err)
		config.Certificates = []tls.Certificate{pair}
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
}

// answered is what came back.
type answered struct {
	status int
	header http.Header
	body   []byte
}

// into reads the body as JSON.
func (a answered) into(t *testing.T, v any) {
	t.Helper()
	require.NoError(t, json.Unmarshal(a.body, v), "%s", a.body)
}

// send is one request. A body that is not text is sent as JSON.
func (r *rig) send(method, url string, header http.Header, body any) (answered, error) {
	r.t.Helper()
	return r.sendIn(r.t.Context(), method, url, header, body)
}

func (r *rig) sendIn(ctx context.Context, method, url string, header http.Header, body any) (answered, error) {
	r.t.Helper()
	text, ok := body.(string)
	if !ok && body != nil {
		b, err := json.Marshal(body)
		require.NoError(r.t, err)
		text = string(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(text))
	require.NoError(r.t, err)
	request.Header = header.Clone()
	if request.Header == nil {
		request.Header = http.Header{}
	}
	if text != "" && request.Header.Get("Content-Type") == "" {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := r.client.Do(request)
	if err != nil {
		return answered{}, err
	}
	defer func() { _ = response.Body.Close() }()
	b, err := io.ReadAll(response.Body)
	return answered{response.StatusCode, response.Header, b}, err
}

// must is send with an answer of a status.
func (r *rig) must(status int, method, url string, header http.Header, body any) answered {
	r.t.Helper()
	a, err := r.send(method, url, header, body)
	require.NoError(r.t, err)
	require.Equal(r.t, status, a.status, "%s %s: %s", method, url, a.body)
	return a
}

// object is JSON as it is written by hand.
type object = map[string]any

// without is an object with one field less.
func without(o object, field string) object {
	c := object{}
	for k, v := range o {
		if k != field {
			c[k] = v
		}
	}
	return c
}

// and is an object with one field more, or another value of it.
func and(o object, field string, value any) object {
	c := without(o, field)
	c[field] = value
	return c
}

// newCSR makes a key and a request for names.
func newCSR(t *testing.T, commonName string, names ...string) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: commonName}, DNSNames: names,
	}, key)
	require.NoError(t, err)
	return key, der
}

func csrPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// parseOne reads a certificate, PEM.
func parseOne(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	require.NotNil(t, block, text)
	require.Empty(t, bytes.TrimSpace(rest))
	c, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return c
}

// requireChain holds a certificate against a chain of DER that ends in a root.
func requireChain(t *testing.T, leaf *x509.Certificate, chain []*x509.Certificate, now time.Time) {
	t.Helper()
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range chain {
		if bytes.Equal(c.RawIssuer, c.RawSubject) {
			roots.AddCert(c)
		} else {
			between.AddCert(c)
		}
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	require.NoError(t, err)
}

// lastViolation is the newest thing that a client did wrong.
func (r *rig) lastViolation() string {
	r.t.Helper()
	all := r.sim.Violations()
	require.NotEmpty(r.t, all)
	return all[len(all)-1].Message
}
