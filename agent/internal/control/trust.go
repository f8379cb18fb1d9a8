package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"go.uber.org/zap"
	"google.golang.org/grpc/credentials"
)

// maxCA bounds one file with roots, bytes.
const maxCA = 1 << 20

// trust is what the server's certificate must chain to. It is read again for each connection, so that an agent outlives that
// the file or the mounted directory is given a new CA; what cannot be read leaves the last good roots in place.
type trust struct {
	path string // empty: the system's roots
	log  *zap.Logger

	mu   sync.Mutex
	pool *x509.CertPool
	sum  [sha256.Size]byte
	// said is the error that was logged last, so that a server that is away for long does not fill the log with it.
	said string
}

// openTrust reads the roots for the first time; then they must be there.
func openTrust(path string, log *zap.Logger) (*trust, error) {
	t := &trust{path: path, log: log}
	if path == "" {
		return t, nil
	}
	content, err := readCA(path)
	if err != nil {
		return nil, fmt.Errorf("read --server-ca: %w", err)
	}
	t.pool, t.sum = poolOf(content), sha256.Sum256(content)
	return t, nil
}

// roots answers the current ones; nil: the system's.
func (t *trust) roots() *x509.CertPool {
	if t.path == "" {
		return nil
	}
	content, err := readCA(t.path)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		if err.Error() != t.said {
			t.log.Error("the server's CA cannot be read any more; the one before stays trusted", zap.Error(err))
		}
		t.said = err.Error()
		return t.pool
	}
	t.said = ""
	if sum := sha256.Sum256(content); sum != t.sum {
		t.pool, t.sum = poolOf(content), sum
		t.log.Info("the server's CA has changed; new connections trust the new one", zap.String("path", t.path))
	}
	return t.pool
}

// readCA answers the PEM of a file, or of all *.crt and *.pem files of a directory. At least one certificate is in it.
func readCA(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		content, err := readRoots(path)
		if err == nil && poolOf(content) == nil {
			return nil, fmt.Errorf("no certificate in %s: it must be PEM", path)
		}
		return content, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var all []byte
	for _, e := range entries {
		if !isCA(e.Name()) {
			continue
		}
		content, err := readRoots(filepath.Join(path, e.Name()))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotRegular) {
			continue // gone since it was listed, or a directory of that name
		}
		if err != nil {
			return nil, err
		}
		all = append(append(all, content...), '\n')
	}
	if poolOf(all) == nil {
		return nil, fmt.Errorf("no certificate in the directory %s: it must hold one in a file *.crt or *.pem", path)
	}
	return all, nil
}

// isCA tells by its name whether a file of a directory is meant. Names with a dot are how a mounted volume is kept: what is
// behind them has another name, too.
func isCA(name string) bool {
	return !strings.HasPrefix(name, ".") && (strings.HasSuffix(name, ".crt") || strings.HasSuffix(name, ".pem"))
}

var errNotRegular = errors.New("it is not a regular file")

// readRoots reads a file, through symbolic links.
func readRoots(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, errNotRegular)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxCA+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxCA {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxCA)
	}
	return bytes.TrimSpace(b), nil
}

// poolOf is nil without a certificate.
func poolOf(content []byte) *x509.CertPool {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		return nil
	}
	return pool
}

// pinned are transport credentials that trust what trust says at the time of the handshake.
type pinned struct {
	credentials.TransportCredentials
	config *tls.Config
	trust  *trust
}

func newPinned(config *tls.Config, t *trust) pinned {
	return pinned{credentials.NewTLS(config), config, t}
}

// ClientHandshake implements credentials.TransportCredentials.
func (p pinned) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config := p.config.Clone()
	config.RootCAs = p.trust.roots()
	return credentials.NewTLS(config).ClientHandshake(ctx, authority, raw)
}

// Clone implements credentials.TransportCredentials.
func (p pinned) Clone() credentials.TransportCredentials { return newPinned(p.config.Clone(), p.trust) }
