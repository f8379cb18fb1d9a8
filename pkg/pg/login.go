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

// parseBase reads the base URL.
func parseBase(baseURL secretbox.Secret) (*pgx.ConnConfig, error) {
	text := baseURL.Reveal()
	if !strings.HasPrefix(text, "postgres://") && !strings.HasPrefix(text, "postgresql://") {
		return nil, errBadURL
	}
	cc, err := pgx.ParseConfig(text)
	if err != nil {
		return nil, errBadURL
	}
	if cc.ConnectTimeout == 0 || cc.ConnectTimeout > connectTimeout {
		cc.ConnectTimeout = connectTimeout
	}
	return cc, nil
}

// rolePassword gives the password for a service's role. It is empty over a Unix socket when no secret is set:
// the embedded server's socket is private, and the server trusts whoever reaches it.
func rolePassword(cc *pgx.ConnConfig, roleSecret secretbox.Secret, service string) (secretbox.Secret, error) {
	base := roleSecret
	if base.IsZero() {
		base = secretbox.NewSecret(cc.Password)
	}
	if base.IsZero() {
		if filepath.IsAbs(cc.Host) {
			return secretbox.Secret{}, nil
		}
		return secretbox.Secret{}, ErrNoRoleSecret
	}
	return RolePassword(base, RoleName(service)), nil
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
