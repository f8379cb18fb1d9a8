package local

import (
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
)

// maxKeyFile bounds what is read as a key, in bytes.
const maxKeyFile = 64 << 10

// othersBits are the permission bits for group and others.
const othersBits fs.FileMode = 0o077

// Files say where a subordinate CA is on disk.
type Files struct {
	Certificate string // PEM: the CA's certificate and those above it, in any order
	Key         string // PEM, without passphrase; readable by its owner only
	Root        string // PEM, optional: roots that Certificate does not hold
}

// LoadFiles reads a subordinate CA. The error is an *issuer.PermanentError whose reason says what is wrong; a key that
// group or others may access in any way is refused.
func LoadFiles(f Files, now time.Time) (CA, error) {
	certs, err := readCertificates(f.Certificate)
	if err != nil {
		return CA{}, err
	}
	var roots []*x509.Certificate
	if f.Root != "" {
		if roots, err = readCertificates(f.Root); err != nil {
			return CA{}, err
		}
	}
	text, err := readFile(f.Key, maxKeyFile, checkKeyMode)
	if err != nil {
		return CA{}, err
	}
	key, err := parseKey(text)
	if err != nil {
		return CA{}, fmt.Errorf("read %s: %w", f.Key, err)
	}
	return NewCA(certs, roots, key, now)
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	text, err := readFile(path, certcheck.MaxBundle, func(string, fs.FileInfo) error { return nil })
	if err != nil {
		return nil, err
	}
	certs, err := certcheck.ParseBundle(text)
	if err != nil {
		return nil, misread("CA_CERTIFICATE_UNREADABLE", "file "+path+" holds no readable certificates", err)
	}
	return certs, nil
}

// readFile checks the file that is open, not its name, so that nobody can put another in its place in between.
func readFile(path string, most int64, check func(string, fs.FileInfo) error) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, misread("CA_FILE_UNREADABLE", "file "+path+" cannot be opened", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, misread("CA_FILE_UNREADABLE", "file "+path+" cannot be read", err)
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, issuer.Misconfigured("CA_FILE_UNREADABLE", "%s is no file of at most %d bytes", path, most)
	}
	if err := check(path, info); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return nil, misread("CA_FILE_UNREADABLE", "file "+path+" cannot be read", err)
	}
	return text, nil
}

func checkKeyMode(path string, info fs.FileInfo) error {
	// Windows has no such bits; the directory's access list protects the key there.
	if runtime.GOOS == "windows" || info.Mode().Perm()&othersBits == 0 {
		return nil
	}
	return issuer.Misconfigured("CA_KEY_FILE_MODE", "key file %s has mode %04o: others than its owner may use it; run chmod 600 %s",
		path, info.Mode().Perm(), path)
}
