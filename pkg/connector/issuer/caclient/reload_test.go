package caclient_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuer/caclient"
)

// pair makes a self-signed certificate and its key as PEM.
func pair(t testing.TB, name string) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// mutual is a server that tells clients who they are, and counts its open connections.
type mutual struct {
	server *httptest.Server
	refuse func(name string) bool

	mu   sync.Mutex
	open map[net.Conn]bool
}

func newMutual(t testing.TB, refuse func(name string) bool) *mutual {
	t.Helper()
	m := &mutual{refuse: refuse, open: map[net.Conn]bool{}}
	m.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer(200, "application/json", fmt.Sprintf(`{"name":%q}`, r.TLS.PeerCertificates[0].Subject.CommonName))(w, r)
	}))
	m.server.TLS = &tls.Config{
		MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			if refuse != nil && refuse(s.PeerCertificates[0].Subject.CommonName) {
				return errors.New("refused")
			}
			return nil
		},
	}
	m.server.Config.ConnState = func(c net.Conn, state http.ConnState) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if state == http.StateClosed {
			delete(m.open, c)
		} else {
			m.open[c] = true
		}
	}
	m.server.StartTLS()
	t.Cleanup(m.server.Close)
	return m
}

func (m *mutual) connections() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.open)
}

func name(t testing.TB, client *caclient.Client) string {
	t.Helper()
	var into struct{ Name string }
	_, err := client.JSON(t.Context(), question, &into)
	require.NoError(t, err)
	return into.Name
}

func TestClientCertificateIsReadAgainWhenThePairChanges(t *testing.T) {
	t.Parallel()
	m := newMutual(t, nil)
	cfg := config(t, m.server)
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "client.pem"), filepath.Join(dir, "client-key.pem")
	put := func(file string, raw []byte) { require.NoError(t, os.WriteFile(file, raw, 0o600)) }
	oldCert, oldKey := pair(t, "old")
	put(certFile, oldCert)
	put(keyFile, oldKey)
	cfg.Settings.ClientCertFile, cfg.Settings.ClientKeyFile = certFile, keyFile
	client := newClient(t, cfg)
	require.Equal(t, "old", name(t, client))

	newCert, newKey := pair(t, "new")
	put(certFile, newCert)
	require.Equal(t, "old", name(t, client), "half a pair is none")
	require.NoError(t, os.Remove(keyFile))
	require.Equal(t, "old", name(t, client), "nor is one without a key")
	put(keyFile, newKey[:20])
	require.Equal(t, "old", name(t, client), "nor with a broken one")
	put(keyFile, newKey)
	require.Equal(t, "new", name(t, client))
	require.Eventually(t, func() bool { return m.connections() == 1 }, 10*time.Second, 5*time.Millisecond, "connections of the old pair are closed")

	put(keyFile, oldKey) // the other order
	require.Equal(t, "new", name(t, client))
	put(certFile, oldCert)
	require.Equal(t, "old", name(t, client))
}

func TestRefusedClientCertificateIsToldFromALostReply(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		m := newMutual(t, func(name string) bool { return name == "refused" })
		m.server.TLS.MaxVersion = version
		cfg := config(t, m.server)
		cert, key := pair(t, "refused")
		dir := t.TempDir()
		cfg.Settings.ClientCertFile, cfg.Settings.ClientKeyFile = filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
		require.NoError(t, os.WriteFile(cfg.Settings.ClientCertFile, cert, 0o600))
		require.NoError(t, os.WriteFile(cfg.Settings.ClientKeyFile, key, 0o600))
		client := newClient(t, cfg)
		require.Eventually(t, func() bool { // the alert may be overtaken by the end of the connection
			_, err := client.JSON(account.Urgent(t.Context()), change, nil)
			p, ok := issuer.AsPermanent(err)
			return ok && p.Reason == "CLIENT_CERTIFICATE_REFUSED" && p.Field == "client_cert_file" && p.Fault == issuer.FaultConfiguration
		}, 10*time.Second, 5*time.Millisecond)
	}
}

func TestCAFileIsReadAgainWhenItChanges(t *testing.T) {
	t.Parallel()
	server, _ := serve(t, answer(200, "application/json", `{}`))
	cfg := config(t, server)
	right, err := os.ReadFile(cfg.Settings.CAFile)
	require.NoError(t, err)
	other, _ := pair(t, "other")
	require.NoError(t, os.WriteFile(cfg.Settings.CAFile, other, 0o600))
	client := newClient(t, cfg)
	_, err = client.JSON(t.Context(), question, nil)
	require.ErrorContains(t, err, "certificate")
	require.NoError(t, os.WriteFile(cfg.Settings.CAFile, right, 0o600))
	_, err = client.JSON(t.Context(), question, nil)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(cfg.Settings.CAFile, []byte("rubbish"), 0o600))
	_, err = client.JSON(t.Context(), question, nil)
	require.NoError(t, err, "what cannot be used is not used")
}

func TestFilesThatCannotBeUsedAnyMoreAreToldByTest(t *testing.T) {
	t.Parallel()
	m := newMutual(t, nil)
	cfg := config(t, m.server)
	dir := t.TempDir()
	cfg.Settings.ClientCertFile, cfg.Settings.ClientKeyFile = filepath.Join(dir, "client.pem"), filepath.Join(dir, "client-key.pem")
	put := func(file string, raw []byte) { require.NoError(t, os.WriteFile(file, raw, 0o600)) }
	right, err := os.ReadFile(cfg.Settings.CAFile)
	require.NoError(t, err)
	oldCert, oldKey := pair(t, "old")
	put(cfg.Settings.ClientCertFile, oldCert)
	put(cfg.Settings.ClientKeyFile, oldKey)
	client := newClient(t, cfg)
	told := func(field string) {
		t.Helper()
		require.Equal(t, "old", name(t, client), "what was used before stays in use")
		p, ok := issuer.AsPermanent(client.TestError(nil))
		require.True(t, ok, "and it is told")
		require.Equal(t, field, p.Field)
		require.Equal(t, issuer.FaultConfiguration, p.Fault)
	}
	require.Equal(t, "old", name(t, client))
	require.NoError(t, client.TestError(nil))

	newCert, _ := pair(t, "new")
	put(cfg.Settings.ClientCertFile, newCert)
	told("client_cert_file")
	require.NoError(t, os.Remove(cfg.Settings.ClientCertFile))
	told("client_cert_file")
	put(cfg.Settings.ClientCertFile, oldCert)
	require.Equal(t, "old", name(t, client))
	require.NoError(t, client.TestError(nil), "mended")

	put(cfg.Settings.CAFile, []byte("rubbish"))
	told("ca_file")
	put(cfg.Settings.CAFile, right)
	require.Equal(t, "old", name(t, client))
	require.NoError(t, client.TestError(nil))
}
