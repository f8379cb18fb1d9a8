package servercert_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/certctl/certctl/services/cmd/certctl/internal/home"
	"github.com/certctl/certctl/services/cmd/certctl/internal/servercert"
)

type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func setup(t *testing.T) (home.Dir, *clock) {
	t.Helper()
	dir, err := home.Open(t.TempDir())
	require.NoError(t, err)
	return dir, &clock{time.Now()}
}

// verify checks the certificate as a client that pinned the CA file would.
func verify(t *testing.T, pinned []byte, cert *tls.Certificate, name string, at time.Time) {
	t.Helper()
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(pinned))
	_, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: at})
	require.NoError(t, err)
}

func pinned(t *testing.T, dir home.Dir) []byte {
	t.Helper()
	b, err := os.ReadFile(dir.Path(home.CAFile))
	require.NoError(t, err)
	return b
}

func TestTheCertificateIsRenewedBeforeItEnds(t *testing.T) {
	t.Parallel()
	dir, c := setup(t)
	s, err := servercert.New(dir, servercert.Config{Names: []string{"certctl.example.com", "192.0.2.1"}}, zap.NewNop(), c.now)
	require.NoError(t, err)
	first, err := s.Certificate()
	require.NoError(t, err)
	ca := pinned(t, dir)
	for _, name := range []string{"localhost", "127.0.0.1", "certctl.example.com", "192.0.2.1"} {
		verify(t, ca, first, name, c.at)
	}
	again, err := s.Certificate()
	require.NoError(t, err)
	require.Same(t, first, again)
	c.at = first.Leaf.NotAfter.Add(-time.Hour)
	second, err := s.Certificate()
	require.NoError(t, err)
	require.NotEqual(t, first.Leaf.SerialNumber, second.Leaf.SerialNumber)
	verify(t, ca, second, "localhost", c.at)
}

func TestAServerThatWasOffUntilEverythingHadEndedComesBack(t *testing.T) {
	t.Parallel()
	dir, c := setup(t)
	_, err := servercert.New(dir, servercert.Config{}, zap.NewNop(), c.now)
	require.NoError(t, err)
	old := pinned(t, dir)
	c.at = c.at.AddDate(20, 0, 0)
	s, err := servercert.New(dir, servercert.Config{}, zap.NewNop(), c.now)
	require.NoError(t, err)
	cert, err := s.Certificate()
	require.NoError(t, err)
	require.NotEqual(t, old, pinned(t, dir))
	verify(t, pinned(t, dir), cert, "localhost", c.at)
}

func TestWhatAgentsHavePinnedStaysValidWhenTheCAIsRenewed(t *testing.T) {
	t.Parallel()
	dir, c := setup(t)
	_, err := servercert.New(dir, servercert.Config{}, zap.NewNop(), c.now)
	require.NoError(t, err)
	old := pinned(t, dir)
	c.at = c.at.AddDate(9, 6, 0) // the CA has half a year left and is renewed with its key
	s, err := servercert.New(dir, servercert.Config{}, zap.NewNop(), c.now)
	require.NoError(t, err)
	cert, err := s.Certificate()
	require.NoError(t, err)
	require.NotEqual(t, old, pinned(t, dir))
	verify(t, old, cert, "localhost", c.at)
}

func TestACAWithTheKeyOfAnotherIsNamed(t *testing.T) {
	t.Parallel()
	one, c := setup(t)
	other, _ := setup(t)
	for _, d := range []home.Dir{one, other} {
		_, err := servercert.New(d, servercert.Config{}, zap.NewNop(), c.now)
		require.NoError(t, err)
	}
	b, err := os.ReadFile(other.Path("ca.key"))
	require.NoError(t, err)
	require.NoError(t, one.Write("ca.key", b, 0o600))
	_, err = servercert.New(one, servercert.Config{}, zap.NewNop(), c.now)
	require.ErrorContains(t, err, "do not belong together")
}

func TestALostKeyOfTheCAIsNotReplacedInSilence(t *testing.T) {
	t.Parallel()
	dir, c := setup(t)
	_, err := servercert.New(dir, servercert.Config{}, zap.NewNop(), c.now)
	require.NoError(t, err)
	require.NoError(t, os.Remove(dir.Path("ca.key")))
	_, err = servercert.New(dir, servercert.Config{}, zap.NewNop(), c.now)
	require.ErrorContains(t, err, "put the key back")
	require.NoFileExists(t, dir.Path("ca.key"))
}

func TestReplicasWithOneCAFromOutsideAreTrustedAlike(t *testing.T) {
	t.Parallel()
	maker, c := setup(t)
	_, err := servercert.New(maker, servercert.Config{}, zap.NewNop(), c.now)
	require.NoError(t, err)
	given := servercert.Config{CACertFile: maker.Path(home.CAFile), CAKeyFile: maker.Path("ca.key"), Names: []string{"certctl-server"}}
	for range 2 {
		dir, _ := setup(t)
		s, err := servercert.New(dir, given, zap.NewNop(), c.now)
		require.NoError(t, err)
		cert, err := s.Certificate()
		require.NoError(t, err)
		verify(t, pinned(t, maker), cert, "certctl-server", c.at)
		require.NoFileExists(t, dir.Path(home.CAFile))
		require.NoFileExists(t, dir.Path("ca.key"))
	}
	c.at = c.at.AddDate(11, 0, 0)
	dir, _ := setup(t)
	_, err = servercert.New(dir, given, zap.NewNop(), c.now)
	require.ErrorContains(t, err, "CERTCTL_TLS_CA_CERT_FILE")
	require.ErrorContains(t, err, "ended at")
	given.CAKeyFile = filepath.Join(t.TempDir(), "nowhere")
	_, err = servercert.New(dir, given, zap.NewNop(), c.now)
	require.ErrorContains(t, err, "CERTCTL_TLS_CA_KEY_FILE")
}

// outside makes a CA as somebody else does.
func outside(t *testing.T, key crypto.Signer, at time.Time, change func(*x509.Certificate)) servercert.Config {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a CA"}, NotBefore: at, NotAfter: at.AddDate(0, 0, 60),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	dir := t.TempDir()
	cfg := servercert.Config{CACertFile: filepath.Join(dir, "ca.crt"), CAKeyFile: filepath.Join(dir, "ca.key")}
	require.NoError(t, os.WriteFile(cfg.CACertFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(cfg.CAKeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	return cfg
}

func asItIs(*x509.Certificate) {}

func ed25519Key(t *testing.T) crypto.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	return key
}

func TestACAFromOutsideMayHaveAnyKeyThatSigns(t *testing.T) {
	t.Parallel()
	dir, c := setup(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	for _, key := range []crypto.Signer{rsaKey, ed25519Key(t)} {
		cfg := outside(t, key, c.at, asItIs)
		s, err := servercert.New(dir, cfg, zap.NewNop(), c.now)
		require.NoError(t, err)
		cert, err := s.Certificate()
		require.NoError(t, err)
		ca, err := os.ReadFile(cfg.CACertFile)
		require.NoError(t, err)
		verify(t, ca, cert, "localhost", c.at)
	}
}

func TestACAThatCannotSignIsRefused(t *testing.T) {
	t.Parallel()
	dir, c := setup(t)
	for want, change := range map[string]func(*x509.Certificate){
		"may not sign certificates": func(ca *x509.Certificate) { ca.KeyUsage = x509.KeyUsageCRLSign },
		"begins at":                 func(ca *x509.Certificate) { ca.NotBefore = c.at.Add(time.Hour) },
		"is no CA":                  func(ca *x509.Certificate) { ca.IsCA = false },
	} {
		_, err := servercert.New(dir, outside(t, ed25519Key(t), c.at, change), zap.NewNop(), c.now)
		require.ErrorContains(t, err, want)
	}
}

func TestACertificateThatCannotBeReplacedIsUsedWhileItIsValid(t *testing.T) {
	t.Parallel()
	dir, c := setup(t)
	cfg := outside(t, ed25519Key(t), c.at, func(ca *x509.Certificate) { ca.NotAfter = c.at.AddDate(3, 0, 0) })
	core, logs := observer.New(zap.WarnLevel)
	s, err := servercert.New(dir, cfg, zap.New(core), c.now)
	require.NoError(t, err)
	first, err := s.Certificate()
	require.NoError(t, err)
	away := cfg.CACertFile + ".away"
	require.NoError(t, os.Rename(cfg.CACertFile, away))
	c.at = first.Leaf.NotAfter.Add(-time.Hour)
	for range 3 { // handshakes
		got, err := s.Certificate()
		require.NoError(t, err)
		require.Same(t, first, got)
	}
	require.Equal(t, 1, logs.Len())
	require.Contains(t, logs.All()[0].ContextMap()["error"], "CERTCTL_TLS_CA_CERT_FILE")

	c.at = first.Leaf.NotAfter
	_, err = s.Certificate()
	require.ErrorContains(t, err, "CERTCTL_TLS_CA_CERT_FILE")
	require.NoError(t, os.Rename(away, cfg.CACertFile))
	second, err := s.Certificate()
	require.NoError(t, err)
	require.NotSame(t, first, second)
}

func TestACertificateThatEndsWithItsCAIsNotMadeForEachHandshake(t *testing.T) {
	t.Parallel()
	dir, c := setup(t)
	begin := c.at.UTC()
	core, logs := observer.New(zap.WarnLevel)
	s, err := servercert.New(dir, outside(t, ed25519Key(t), begin, asItIs), zap.New(core), c.now)
	require.NoError(t, err)
	first, err := s.Certificate()
	require.NoError(t, err)
	for day := range 59 {
		c.at = begin.AddDate(0, 0, day)
		got, err := s.Certificate()
		require.NoError(t, err)
		require.Same(t, first, got)
	}
	require.Equal(t, 59, logs.FilterMessageSnippet("ends soon").Len(), "once a day")
	require.Equal(t, 59, logs.Len())
}
