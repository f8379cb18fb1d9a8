// Package home is the data directory: the secrets of an installation that nobody set from outside are made there once.
package home

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/certctl/certctl/pkg/secretbox"
)

// Files of the data directory that others may want to find.
const (
	APIKeyFile     = "api-key"
	CAFile         = "ca.crt"
	URLFile        = "url"
	internalFile   = "internal-secret"
	encryptionFile = "encryption-key"
)

// Dir is a data directory.
type Dir string

// Open makes the directory if need be. Others may pass through it (Postgres runs as another user), not look into it.
func Open(path string) (Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(abs, 0o711); err != nil { //nolint:gosec // Postgres runs as another user and has to pass through
		return "", fmt.Errorf("make data directory: %w", err)
	}
	return Dir(abs), nil
}

// Path of a file in it.
func (d Dir) Path(name string) string { return filepath.Join(string(d), name) }

// InternalSecret is the secret by which services know each other.
func (d Dir) InternalSecret() (secretbox.Secret, error) { return d.secret(internalFile) }

// APIKey is the admin's key.
func (d Dir) APIKey() (secretbox.Secret, error) { return d.secret(APIKeyFile) }

// secret reads a secret, or makes it: 32 random bytes, base64url.
func (d Dir) secret(name string) (secretbox.Secret, error) {
	path := d.Path(name)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return d.make(name)
	}
	if err != nil {
		return secretbox.Secret{}, fmt.Errorf("read %s: %w", name, err)
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return secretbox.Secret{}, fmt.Errorf("%s is empty; remove it to have a new one made", path)
	}
	return secretbox.NewSecret(s), nil
}

func (d Dir) make(name string) (secretbox.Secret, error) {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		return secretbox.Secret{}, fmt.Errorf("make %s: %w", name, err)
	}
	s := base64.RawURLEncoding.EncodeToString(b)
	return secretbox.NewSecret(s), d.Write(name, []byte(s+"\n"), 0o600)
}

// Write replaces a file by rename, on disk before it returns.
func (d Dir) Write(name string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(string(d), ".new-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already when it was renamed
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Rename(f.Name(), d.Path(name)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// Box seals what is stored encrypted: with the given keys, or with one made in the directory.
func (d Dir) Box(given secretbox.Secret) (*secretbox.Box, error) {
	var keys []secretbox.Key
	var err error
	if given.IsZero() {
		keys, err = secretbox.LoadOrCreateKeys(d.Path(encryptionFile))
	} else {
		keys, err = secretbox.ParseKeys(given)
	}
	if err != nil {
		return nil, fmt.Errorf("encryption key: %w", err)
	}
	return secretbox.NewBox(keys...)
}
