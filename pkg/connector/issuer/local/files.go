package local

import (
	"crypto"
	"crypto/x509"
	"errors"
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

// The settings that name the files, for errors.
const (
	fieldCertificate = "certificate_file"
	fieldKey         = "key_file"
	fieldRoot        = "root_file"
)

// LoadFiles reads a subordinate CA. The error is an *issuer.PermanentError whose reason says what is wrong and whose
// field says which of the settings certificate_file, key_file and root_file to look at; a key that group or others may
// access in any way is refused.
func LoadFiles(f Files, now time.Time) (CA, error) {
	certs, err := readCertificates(f.Certificate)
	if err != nil {
		return CA{}, inField(fieldCertificate, err)
	}
	var roots []*x509.Certificate
	if f.Root != "" {
		if roots, err = readCertificates(f.Root); err != nil {
			return CA{}, inField(fieldRoot, err)
		}
	}
	key, err := readKey(f.Key)
	if err != nil {
		return CA{}, inField(fieldKey, err)
	}
	ca, err := NewCA(certs, roots, key, now)
	if p, ok := issuer.AsPermanent(err); ok && (p.Reason == reasonKeyMismatch || p.Reason == reasonKeyUnsupported) {
		return CA{}, inField(fieldKey, err)
	}
	return ca, inField(fieldCertificate, err)
}

// inField says which setting an error is about.
func inField(field string, err error) error {
	p, ok := issuer.AsPermanent(err)
	if !ok || p.Field != "" {
		return err
	}
	located := *p
	located.Field = field
	return &located
}

func readKey(path string) (crypto.Signer, error) {
	text, err := readFile(path, maxKeyFile, checkKeyMode)
	if err != nil {
		return nil, err
	}
	return parseKey(text)
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
	// Opening a pipe would wait for whoever writes to it.
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, issuer.Misconfigured("CA_FILE_UNREADABLE", "%s is no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, misread("CA_FILE_UNREADABLE", "file "+path+" "+openProblem(err), err)
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

// openProblem says in a few words why a file could not be opened.
func openProblem(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "does not exist on the server"
	case errors.Is(err, fs.ErrPermission):
		return "may not be read by certctl"
	default:
		return "cannot be opened"
	}
}

func checkKeyMode(path string, info fs.FileInfo) error {
	// Windows has no such bits; the directory's access list protects the key there.
	if runtime.GOOS == "windows" || info.Mode().Perm()&othersBits == 0 {
		return nil
	}
	return issuer.Misconfigured("CA_KEY_FILE_MODE", "key file %s has mode %04o: others than its owner may use it; run chmod 600 %s",
		path, info.Mode().Perm(), path)
}
