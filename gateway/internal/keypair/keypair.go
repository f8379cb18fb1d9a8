// Package keypair gives the server's certificate from files, and sees when they change.
package keypair

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/logx"
)

// checkEvery bounds how often the files are looked at: handshakes can be many.
const checkEvery = time.Second

// Files are a certificate with its chain, and its private key, both PEM.
type Files struct {
	cert, key string
	log       *zap.Logger

	mu      sync.Mutex
	current *tls.Certificate
	tried   stamp // what was read last, whether it fitted or not
	checked time.Time
	broken  bool // the last look failed, and the log says so
}

// stamp tells whether files are still the same.
type stamp struct{ cert, key fileStamp }

type fileStamp struct {
	modified time.Time
	size     int64
}

// Load reads the files; they must be there and fit.
func Load(cert, key string, log *zap.Logger) (*Files, error) {
	if cert == "" || key == "" {
		return nil, errors.New("TLS certificate: both the certificate's and the key's file are needed")
	}
	f := &Files{cert: cert, key: key, log: log}
	s, err := f.stamp()
	if err != nil {
		return nil, err
	}
	return f, f.load(s)
}

// GetCertificate is for tls.Config. It loads the files again when they have changed; while they do not fit, as between
// the two writes of a renewal, the certificate before stays.
func (f *Files) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.checked) >= checkEvery {
		f.checked = now
		f.refresh()
	}
	return f.current, nil
}

func (f *Files) refresh() {
	s, err := f.stamp()
	if err == nil {
		if s == f.tried {
			return
		}
		err = f.load(s)
	}
	if err == nil {
		f.broken = false
		f.log.Info("TLS certificate reloaded", logx.Path(f.cert))
		return
	}
	if !f.broken {
		f.broken = true
		f.log.Warn("TLS certificate cannot be reloaded; the one before stays", logx.Path(f.cert), logx.Error(err))
	}
}

func (f *Files) load(s stamp) error {
	f.tried = s
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("load TLS certificate: %w", err)
	}
	f.current = &pair
	return nil
}

func (f *Files) stamp() (stamp, error) {
	cert, err := stampOf(f.cert)
	if err != nil {
		return stamp{}, err
	}
	key, err := stampOf(f.key)
	return stamp{cert: cert, key: key}, err
}

func stampOf(path string) (fileStamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}, fmt.Errorf("look at TLS file: %w", err)
	}
	return fileStamp{modified: info.ModTime(), size: info.Size()}, nil
}
