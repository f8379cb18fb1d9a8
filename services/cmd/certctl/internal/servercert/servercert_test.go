package servercert_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

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
	s, err := servercert.New(dir, servercert.Config{Names: []string{"certctl.example.com", "192.0.2.1"}}, c.now)
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
	_, err := servercert.New(dir, servercert.Config{}, c.now)
	require.NoError(t, err)
	old := pinned(t, dir)
	c.at = c.at.AddDate(20, 0, 0)
	s, err := servercert.New(dir, servercert.Config{}, c.now)
	require.NoError(t, err)
	cert, err := s.Certificate()
	require.NoError(t, err)
	require.NotEqual(t, old, pinned(t, dir))
	verify(t, pinned(t, dir), cert, "localhost", c.at)
}

func TestWhatAgentsHavePinnedStaysValidWhenTheCAIsRenewed(t *testing.T) {
	t.Parallel()
	dir, c := setup(t)
	_, err := servercert.New(dir, servercert.Config{}, c.now)
	require.NoError(t, err)
	old := pinned(t, dir)
	c.at = c.at.AddDate(9, 6, 0) // the CA has half a year left and is renewed with its key
	s, err := servercert.New(dir, servercert.Config{}, c.now)
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
		_, err := servercert.New(d, servercert.Config{}, c.now)
		require.NoError(t, err)
	}
	b, err := os.ReadFile(other.Path("ca.key"))
	require.NoError(t, err)
	require.NoError(t, one.Write("ca.key", b, 0o600))
	_, err = servercert.New(one, servercert.Config{}, c.now)
	require.ErrorContains(t, err, "do not belong together")
}

func TestALostKeyOfTheCAIsNotReplacedInSilence(t *testing.T) {
	t.Parallel()
	dir, c := setup(t)
	_, err := servercert.New(dir, servercert.Config{}, c.now)
	require.NoError(t, err)
	require.NoError(t, os.Remove(dir.Path("ca.key")))
	_, err = servercert.New(dir, servercert.Config{}, c.now)
	require.ErrorContains(t, err, "put the key back")
	require.NoFileExists(t, dir.Path("ca.key"))
}

func TestReplicasWithOneCAFromOutsideAreTrustedAlike(t *testing.T) {
	t.Parallel()
	maker, c := setup(t)
	_, err := servercert.New(maker, servercert.Config{}, c.now)
	require.NoError(t, err)
	given := servercert.Config{CACertFile: maker.Path(home.CAFile), CAKeyFile: maker.Path("ca.key"), Names: []string{"certctl-server"}}
	for range 2 {
		dir, _ := setup(t)
		s, err := servercert.New(dir, given, c.now)
		require.NoError(t, err)
		cert, err := s.Certificate()
		require.NoError(t, err)
		verify(t, pinned(t, maker), cert, "certctl-server", c.at)
		require.NoFileExists(t, dir.Path(home.CAFile))
		require.NoFileExists(t, dir.Path("ca.key"))
	}
	c.at = c.at.AddDate(11, 0, 0)
	dir, _ := setup(t)
	_, err = servercert.New(dir, given, c.now)
	require.ErrorContains(t, err, "CERTCTL_TLS_CA_CERT_FILE")
	require.ErrorContains(t, err, "ended at")
	given.CAKeyFile = filepath.Join(t.TempDir(), "nowhere")
	_, err = servercert.New(dir, given, c.now)
	require.ErrorContains(t, err, "CERTCTL_TLS_CA_KEY_FILE")
}
