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

	"github.com/certctl/certctl/pkg/disk"
	"github.com/certctl/certctl/pkg/secretbox"
)

// Files of the data directory that others may want to find.
const (
	APIKeyFile     = "api-key"
	CAFile         = "ca.crt"
	URLFile        = "url"
	internalFile   = "internal-secret"
	encryptionFile = "encryption-key"

	// databaseDir is where the private Postgres has its data.
	databaseDir = "postgres/data"
)

// Dir is a data directory.
type Dir string

// Open makes the directory if need be. Others may pass through it (Postgres runs as another user), not look into it. One that
// everybody may write to is refused: others could put their own keys in the place of ours.
func Open(path string) (Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(abs, 0o711); err != nil { //nolint:gosec // Postgres runs as another user and has to pass through
		return "", fmt.Errorf("make data directory: %w", err)
	}
	if err := disk.RefuseShared(abs); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	return Dir(abs), nil
}

// Path of a file in it.
func (d Dir) Path(name string) string { return filepath.Join(string(d), name) }

// InternalSecret is the secret by which services know each other, and by which the audit log proves that it is whole.
func (d Dir) InternalSecret() (secretbox.Secret, error) {
	if err := d.lost(internalFile); err != nil {
		return secretbox.Secret{}, err
	}
	return d.secret(internalFile)
}

// lost refuses to make a secret anew that the database in this directory stands on: it would be no use without the old one.
func (d Dir) lost(name string) error {
	if _, err := os.Stat(d.Path(name)); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := os.Stat(d.Path(databaseDir)); err != nil {
		return nil //nolint:nilerr // a first start, or a database elsewhere
	}
	return fmt.Errorf("%s is not there, but the database is that was made with it: put the file back from a backup, "+
		"or remove the directory %s with all that is in it to begin anew", d.Path(name), d)
}

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

// make makes a secret. Of two processes that start at once one makes it and both use it.
func (d Dir) make(name string) (secretbox.Secret, error) {
	s := base64.RawURLEncoding.EncodeToString(random())
	err := disk.Create(d.Path(name), []byte(s+"\n"), 0o600)
	if errors.Is(err, fs.ErrExist) {
		return d.secret(name)
	}
	return secretbox.NewSecret(s), err
}

func random() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails: see crypto/rand.Read
	return b
}

// Write replaces a file by rename, on disk before it returns.
func (d Dir) Write(name string, data []byte, mode fs.FileMode) error {
	return disk.Write(d.Path(name), data, mode)
}

// Box seals what is stored encrypted: with the given keys, or with one made in the directory.
func (d Dir) Box(given secretbox.Secret) (*secretbox.Box, error) {
	var keys []secretbox.Key
	var err error
	if !given.IsZero() {
		keys, err = secretbox.ParseKeys(given)
	} else if err = d.lost(encryptionFile); err == nil {
		keys, err = secretbox.LoadOrCreateKeys(d.Path(encryptionFile))
	}
	if err != nil {
		return nil, fmt.Errorf("encryption key: %w", err)
	}
	return secretbox.NewBox(keys...)
}
