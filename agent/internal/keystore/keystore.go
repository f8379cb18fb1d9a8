// Package keystore makes the private keys of this host and keeps them. A key never leaves it but into the files of a
// target.
//
// There is a file for each key, named after the assignment that asked for it, so that an assignment that comes twice
// finds its key again and the key of the certificate in service is never touched.
package keystore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/disk"
	"github.com/certctl/certctl/pkg/secretbox"
)

var (
	// ErrNotFound says that the host has no such key.
	ErrNotFound = errors.New("no such key on this host")
	// ErrRefused says that a request for a key cannot be met however often it is repeated.
	ErrRefused = errors.New("refused")
)

// Algorithm of a key.
type Algorithm string

// The algorithms that can be made.
const (
	ECDSAP256 Algorithm = "ECDSA_P256"
	ECDSAP384 Algorithm = "ECDSA_P384"
	RSA2048   Algorithm = "RSA_2048"
	RSA3072   Algorithm = "RSA_3072"
	RSA4096   Algorithm = "RSA_4096"
	Ed25519   Algorithm = "ED25519"
)

const extension = ".key"

// Store is a directory of keys: DIR/<certificate id>/<assignment id>.key, PKCS #8 PEM, 0600 in 0700.
type Store struct{ dir string }

// Open makes the directory if need be.
func Open(dir string) (*Store, error) {
	if err := disk.PrivateDir(dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		// What a crash left there may be half a key.
		if err := disk.Sweep(filepath.Join(dir, e.Name())); err != nil {
			return nil, err
		}
	}
	return &Store{dir: dir}, nil
}

// safeName keeps what the server says from becoming a path.
var safeName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

func (s *Store) folder(certificateID string) (string, error) {
	if !safeName.MatchString(certificateID) {
		return "", fmt.Errorf("%w: certificate id %q cannot be a folder's name", ErrRefused, certificateID)
	}
	return filepath.Join(s.dir, certificateID), nil
}

// Make answers the key of an assignment: the one that was made for it before, or a new one, on disk before it returns.
func (s *Store) Make(certificateID, assignmentID string, a Algorithm) (crypto.Signer, error) {
	folder, err := s.folder(certificateID)
	if err != nil {
		return nil, err
	}
	if !safeName.MatchString(assignmentID) {
		return nil, fmt.Errorf("%w: assignment id %q cannot be a file's name", ErrRefused, assignmentID)
	}
	path := filepath.Join(folder, assignmentID+extension)
	key, err := load(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	key, err = generate(a)
	if err != nil {
		return nil, err
	}
	if err := disk.PrivateDir(folder); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	defer clear(block)
	defer clear(der)
	if err := disk.Write(path, block, 0o600); err != nil {
		return nil, fmt.Errorf("store key: %w", err)
	}
	return key, nil
}

func generate(a Algorithm) (crypto.Signer, error) {
	switch a {
	case ECDSAP256, "":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ECDSAP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	default:
		return nil, fmt.Errorf("%w: key algorithm %q is not known to this agent; update the agent", ErrRefused, a)
	}
}

func load(path string) (crypto.Signer, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	defer clear(b)
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("read key %s: no PEM in it", filepath.Base(path))
	}
	defer clear(block.Bytes)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", filepath.Base(path), err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("read key %s: it cannot sign", filepath.Base(path))
	}
	return signer, nil
}

// Find answers the PEM of the certificate's key whose public half has this SHA-256 (over SubjectPublicKeyInfo,
// lower-case hex), or ErrNotFound.
func (s *Store) Find(certificateID, publicKeySHA256 string) (secretbox.Secret, error) {
	folder, err := s.folder(certificateID)
	if err != nil {
		return secretbox.Secret{}, err
	}
	paths, err := keyFiles(folder)
	if err != nil {
		return secretbox.Secret{}, err
	}
	for _, p := range paths {
		sum, err := sumOf(p.path)
		if err == nil && sum == publicKeySHA256 {
			b, err := os.ReadFile(p.path)
			if err != nil {
				return secretbox.Secret{}, fmt.Errorf("read key: %w", err)
			}
			return secretbox.NewSecret(string(b)), nil
		}
	}
	return secretbox.Secret{}, ErrNotFound
}

func sumOf(path string) (string, error) {
	key, err := load(path)
	if err != nil {
		return "", err
	}
	return PublicKeySHA256(key.Public())
}

// PublicKeySHA256 names a key by its public half.
func PublicKeySHA256(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

type keyFile struct {
	path string
	made time.Time
}

// keyFiles lists a certificate's keys, newest first.
func keyFiles(folder string) ([]keyFile, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	var files []keyFile
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasSuffix(e.Name(), extension) || !info.Mode().IsRegular() {
			continue
		}
		files = append(files, keyFile{filepath.Join(folder, e.Name()), info.ModTime()})
	}
	slices.SortFunc(files, func(a, b keyFile) int { return b.made.Compare(a.made) })
	return files, nil
}

// Prune removes the certificate's keys that were made before the one in service and are older than keep. The one just
// before it stays, for a way back.
func (s *Store) Prune(certificateID, inServiceSHA256 string, keep time.Duration) error {
	folder, err := s.folder(certificateID)
	if err != nil {
		return err
	}
	files, err := keyFiles(folder)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(files, func(f keyFile) bool {
		sum, err := sumOf(f.path)
		return err == nil && sum == inServiceSHA256
	})
	if at < 0 || at+2 >= len(files) {
		return nil
	}
	for _, f := range files[at+2:] {
		if time.Since(f.made) < keep {
			continue
		}
		if err := disk.Remove(f.path); err != nil {
			return fmt.Errorf("remove old key: %w", err)
		}
	}
	return nil
}
