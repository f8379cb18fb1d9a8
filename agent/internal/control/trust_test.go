package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sync/errgroup"
)

// selfSigned is a server's certificate that nobody but its owner has signed, and that is no CA's.
func selfSigned(t *testing.T) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"certctl-server"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// shake does a handshake with a server that has a certificate.
func shake(t *testing.T, trust *trust, server tls.Certificate) error {
	t.Helper()
	ours, theirs := net.Pipe()
	credentials := newPinned(&tls.Config{MinVersion: tls.VersionTLS13, ServerName: "certctl-server"}, trust).Clone()
	var g errgroup.Group
	g.Go(func() error {
		conn := tls.Server(theirs, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{server}, NextProtos: []string{"h2"}})
		_ = conn.HandshakeContext(t.Context()) // what counts is what the agent says
		return theirs.Close()
	})
	conn, _, err := credentials.ClientHandshake(t.Context(), "certctl-server", ours)
	if err == nil {
		_ = conn.Close()
	}
	require.NoError(t, ours.Close())
	require.NoError(t, g.Wait())
	return err
}

func put(t *testing.T, content []byte, path ...string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(path...), content, 0o600))
}

// observed opens a path, and gives what is logged.
func observed(t *testing.T, path string) (*trust, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	trust, err := openTrust(path, zap.New(core))
	require.NoError(t, err)
	return trust, logs
}

func TestTheServersOwnCertificateIsTrustedAndReplaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "server.crt")
	first, firstPEM := selfSigned(t)
	second, secondPEM := selfSigned(t)
	put(t, firstPEM, path)
	trust, logs := observed(t, path)
	require.NoError(t, shake(t, trust, first))
	require.Error(t, shake(t, trust, second))
	put(t, secondPEM, path)
	require.NoError(t, shake(t, trust, second))
	require.Error(t, shake(t, trust, first))
	require.Equal(t, 1, logs.FilterMessage("the server's CA has changed; new connections trust the new one").Len())
}

func TestWhatCannotBeReadLeavesTheLastRootsInPlace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "ca.crt")
	server, content := selfSigned(t)
	for name, broken := range map[string]func() error{
		"removed":                 func() error { return os.Remove(path) },
		"emptied":                 func() error { return os.WriteFile(path, nil, 0o600) },
		"half":                    func() error { return os.WriteFile(path, content[:len(content)/2], 0o600) },
		"replaced by a directory": func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		"large":                   func() error { return os.WriteFile(path, make([]byte, maxCA+1), 0o600) },
	} {
		for _, opened := range []string{path, dir} {
			put(t, content, path)
			trust, logs := observed(t, opened)
			require.NoError(t, broken(), name)
			require.NoError(t, shake(t, trust, server), name)
			require.NoError(t, shake(t, trust, server), name)
			require.Equal(t, 1, logs.FilterMessage("the server's CA cannot be read any more; the one before stays trusted").Len(), name)
			require.NoError(t, os.RemoveAll(path))
			put(t, content, path)
			require.NoError(t, shake(t, trust, server), name)
		}
	}
}

// volume is a directory as kubelet mounts one: names are links into a directory of which another link tells which one it is.
type volume struct {
	dir string
	n   int
}

func (v *volume) write(t *testing.T, files map[string][]byte) {
	t.Helper()
	v.n++
	data := filepath.Join(v.dir, "..2026_"+string(rune('a'+v.n)))
	require.NoError(t, os.Mkdir(data, 0o755))
	for name, content := range files {
		put(t, content, data, name)
		if _, err := os.Lstat(filepath.Join(v.dir, name)); err != nil {
			require.NoError(t, os.Symlink(filepath.Join("..data", name), filepath.Join(v.dir, name)))
		}
	}
	next := filepath.Join(v.dir, "..data_tmp")
	require.NoError(t, os.Symlink(filepath.Base(data), next))
	require.NoError(t, os.Rename(next, filepath.Join(v.dir, "..data")))
}

func TestAMountedDirectoryIsReadAndReadAgain(t *testing.T) {
	t.Parallel()
	v := &volume{dir: t.TempDir()}
	first, firstPEM := selfSigned(t)
	second, secondPEM := selfSigned(t)
	third, thirdPEM := selfSigned(t)
	v.write(t, map[string][]byte{"tls.crt": firstPEM, "other.pem": secondPEM, "notes.txt": thirdPEM, ".hidden.crt": thirdPEM})
	require.NoError(t, os.Mkdir(filepath.Join(v.dir, "directory.pem"), 0o755))
	trust, _ := observed(t, v.dir)
	require.NoError(t, shake(t, trust, first))
	require.NoError(t, shake(t, trust, second))
	require.Error(t, shake(t, trust, third))
	v.write(t, map[string][]byte{"tls.crt": thirdPEM, "ca.crt": firstPEM})
	require.NoError(t, shake(t, trust, third))
	require.NoError(t, shake(t, trust, first))
	require.Error(t, shake(t, trust, second), "it is in the volume no more, only its name is")
}

func TestWithoutARootTheStartSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "nowhere"): "no such file",
		dir:                           "it must hold one in a file *.crt or *.pem",
		"/dev/null":                   "not a regular file",
	} {
		_, err := openTrust(path, zap.NewNop())
		require.ErrorContains(t, err, "--server-ca")
		require.ErrorContains(t, err, want)
	}
	put(t, []byte("no PEM"), dir, "ca.crt")
	_, err := openTrust(filepath.Join(dir, "ca.crt"), zap.NewNop())
	require.ErrorContains(t, err, "no certificate in "+filepath.Join(dir, "ca.crt"))
	trust, err := openTrust("", zap.NewNop())
	require.NoError(t, err)
	require.Nil(t, trust.roots(), "the system's")
}
