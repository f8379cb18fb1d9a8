package e2e_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/targettest"
)

// simulator is `certctl ca-simulator`, a process beside an installation, and whoever works at the CAs.
type simulator struct {
	*process

	dir     string
	cas     string // address
	control string // address
}

// caOrder is an order as the CA knows it.
type caOrder struct {
	CA           string   `json:"ca"`
	ID           string   `json:"id"`
	Reference    string   `json:"reference"`
	CommonName   string   `json:"common_name"`
	State        string   `json:"state"`
	Certificates int      `json:"certificates"`
	Revoked      []string `json:"revoked"`
}

// simulates starts a simulator.
func (in *installation) simulates(t *testing.T) *simulator {
	t.Helper()
	s := &simulator{dir: filepath.Join(filepath.Dir(in.dir), "simulator"), cas: targettest.FreeAddress(t), control: targettest.FreeAddress(t)}
	s.process = &process{name: "simulator", path: binaries.certctl, env: environment(),
		args: []string{"ca-simulator", "--data", s.dir, "--listen", s.cas, "--control", s.control}}
	in.add(t, s.process)
	s.ready(t, in)
	return s
}

func (s *simulator) ready(t *testing.T, in *installation) {
	t.Helper()
	in.wait(t, "the simulator", func() bool {
		status, _, err := s.ask(t.Context(), http.MethodGet, "/violations", "")
		_, missing := os.Stat(filepath.Join(s.dir, "digicert.json"))
		return err == nil && status == http.StatusOK && missing == nil
	})
}

// ask uses the control API.
func (s *simulator) ask(ctx context.Context, method, path, body string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.control+"/control/v1"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	client := http.Client{Timeout: patience}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return resp.StatusCode, b, err
}

func (s *simulator) tell(t *testing.T, method, path, body string) []byte {
	t.Helper()
	status, answer, err := s.ask(t.Context(), method, path, body)
	require.NoError(t, err)
	require.Less(t, status, 300, "%s %s: %s", method, path, answer)
	return answer
}

// orders are those of a common name, at all CAs; empty: all.
func (s *simulator) orders(t *testing.T, commonName string) []caOrder {
	t.Helper()
	var all, named []caOrder
	require.NoError(t, json.Unmarshal(s.tell(t, http.MethodGet, "/orders", ""), &all))
	for _, o := range all {
		if commonName == "" || o.CommonName == commonName {
			named = append(named, o)
		}
	}
	return named
}

// content sees that nothing was asked of the CAs that they would not take.
func (s *simulator) content(t *testing.T) {
	t.Helper()
	require.JSONEq(t, "[]", string(s.tell(t, http.MethodGet, "/violations", "")))
}

// issuer connects certctl to a CA with the settings that the simulator wrote, and with some others.
func (s *simulator) issuer(t *testing.T, in *installation, id, ca string, other ...string) {
	t.Helper()
	out := in.certctl(t, append([]string{"issuers", "create", "--id", id, "--name", id, "--type", ca, "--config", "@" + filepath.Join(s.dir, ca+".json")}, other...)...)
	require.Regexp(t, `yes +OK +now`, out)
}

// byHand orders at DigiCert as a colleague who has never heard of certctl.
func (s *simulator) byHand(t *testing.T, commonName string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	body, err := json.Marshal(object{
		"certificate": object{"common_name": commonName, "csr": csrPEM(csrDER(t, key, commonName)), "signature_hash": "sha256", "server_platform": object{"id": -1},
			"cert_validity": object{"days": 60}},
		"organization": object{"id": 123456}, "order_validity": object{"years": 1}, "skip_approval": true,
	})
	require.NoError(t, err)
	ca, err := os.ReadFile(filepath.Join(s.dir, "ca.pem"))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(ca))
	client := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+s.cas+"/digicert/services/v2/order/certificate/ssl_basic", bytes.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("X-DC-DEVKEY", "DIGICERT-SIMULATOR-KEY") //nolint:canonicalheader // as DigiCert writes it
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, resp.StatusCode, "%s", answer)
}
