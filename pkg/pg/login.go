package pg

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/secretbox"
)

const (
	// connectTimeout bounds one attempt to connect.
	connectTimeout = 5 * time.Second

	// scramIterations is what Postgres itself uses for the verifiers that it makes.
	scramIterations = 4096
)

// errBadURL never carries the cause: the text of a parse error quotes the URL, and the URL holds the password.
var errBadURL = errors.New("CERTCTL_DATABASE_URL is not a Postgres URL: it looks like " +
	"postgres://user:password@host:5432/database?sslmode=verify-full, and special characters in the password " +
	"are percent-encoded (%2F for /)")

// ErrNoRoleSecret tells that there is nothing to derive the passwords of the service roles from.
var ErrNoRoleSecret = errors.New("CERTCTL_DATABASE_URL has no password, and the passwords of the service roles are " +
	"derived from it: set CERTCTL_DATABASE_ROLE_SECRET to a long random string (the same for every service and for " +
	"certctl migrate), or CERTCTL_DATABASE_ROLES=shared to use the base login for everything")

// RoleName names the login role of a service.
func RoleName(service string) string { return "certctl_" + service }

// RolePassword derives the password of a role: the hex HMAC-SHA-256 over the role's name, keyed with the base
// password (or CERTCTL_DATABASE_ROLE_SECRET). So one secret is distributed, and no service can compute another's.
func RolePassword(base secretbox.Secret, role string) secretbox.Secret {
	mac := hmac.New(sha256.New, []byte(base.Reveal()))
	mac.Write([]byte(role))
	return secretbox.NewSecret(hex.EncodeToString(mac.Sum(nil)))
}

// parseBase reads the base URL; a password beside it wins over the one in it.
func parseBase(baseURL, password secretbox.Secret) (*pgx.ConnConfig, error) {
	text := baseURL.Reveal()
	if !strings.HasPrefix(text, "postgres://") && !strings.HasPrefix(text, "postgresql://") {
		return nil, errBadURL
	}
	cc, err := pgx.ParseConfig(text)
	if err != nil {
		return nil, errBadURL
	}
	if !password.IsZero() {
		cc.Password = password.Reveal()
	}
	if cc.ConnectTimeout == 0 || cc.ConnectTimeout > connectTimeout {
		cc.ConnectTimeout = connectTimeout
	}
	return cc, nil
}

// rolePasswords gives the passwords that a service's role may have. `certctl migrate` sets the first; the others are those
// from before, or from after the next migration: of the rest of the list, and of the base password, which counts where
// there is no list. The password is empty over a Unix socket when no secret is set: the embedded server's socket is
// private, and the server trusts whoever reaches it.
func rolePasswords(cc *pgx.ConnConfig, roleSecret secretbox.Secret, service string) ([]secretbox.Secret, error) {
	var secrets []secretbox.Secret
	if !roleSecret.IsZero() {
		var err error
		if secrets, err = roleSecret.List(1); err != nil {
			return nil, fmt.Errorf("CERTCTL_DATABASE_ROLE_SECRET: %w", err)
		}
	}
	if base := secretbox.NewSecret(cc.Password); !base.IsZero() && !base.In(secrets) {
		secrets = append(secrets, base)
	}
	if len(secrets) == 0 {
		if filepath.IsAbs(cc.Host) {
			return []secretbox.Secret{{}}, nil
		}
		return nil, ErrNoRoleSecret
	}
	passwords := make([]secretbox.Secret, 0, len(secrets))
	for _, s := range secrets {
		passwords = append(passwords, RolePassword(s, RoleName(service)))
	}
	return passwords, nil
}

// scramVerifier makes what Postgres stores for a password (RFC 5802 and RFC 7677; the format is that of
// pg_authid.rolpassword), so that the password itself is in no statement and in no log of the server.
func scramVerifier(password secretbox.Secret) (string, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails: crypto/rand ends the process instead
	salted, err := pbkdf2.Key(sha256.New, password.Reveal(), salt, scramIterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("derive scram key: %w", err)
	}
	sign := func(text string) []byte {
		mac := hmac.New(sha256.New, salted)
		mac.Write([]byte(text))
		return mac.Sum(nil)
	}
	stored := sha256.Sum256(sign("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", scramIterations, b64(salt), b64(stored[:]), b64(sign("Server Key"))), nil
}
