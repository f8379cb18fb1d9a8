package pg

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// SQLSTATE codes that this package decides by (PostgreSQL manual, appendix A).
const (
	codeInvalidAuthorization = "28000"
	codeInvalidPassword      = "28P01"
	codeInvalidCatalog       = "3D000"
	codeInsufficientRights   = "42501"
	codeLockNotAvailable     = "55P03"
	codeUndefinedTable       = "42P01"
	codeInvalidSchema        = "3F000"
	codeUniqueViolation      = "23505"
	codeDuplicateObject      = "42710"
	codeDuplicateSchema      = "42P06"
	codeSerializationFailure = "40001"
	codeDeadlock             = "40P01"
	codeDiskFull             = "53100"
	codeTooManyConnections   = "53300"
	codeAdminShutdown        = "57P01"
	codeCrashShutdown        = "57P02"
	codeCannotConnectNow     = "57P03"
	codeInternalError        = "XX000" // among others "tuple concurrently updated"
	classConnection          = "08"
	classResources           = "53" // no room on the disk, no memory, no connection left
)

// Problem is a failure that an operator can mend: what is wrong and what to do, over its cause.
type Problem struct {
	Advice string
	Cause  error
}

// Error gives the advice first and the cause last.
func (p *Problem) Error() string { return p.Advice + " [" + p.Cause.Error() + "]" }

// Unwrap returns the cause.
func (p *Problem) Unwrap() error { return p.Cause }

// Diagnose explains a refused or failed connection in a *Problem that wraps err. Errors that need no explanation, and
// those that are explained already, come back as they are. It decides by SQLSTATE and by type, never by text.
func Diagnose(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Problem](err); ok {
		return err
	}
	who := loginOf(err)
	var advice string
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		advice = adviseState(e.Code, who)
	} else {
		advice = adviseNetwork(err, who)
	}
	if advice == "" {
		return err
	}
	return &Problem{Advice: advice, Cause: err}
}

// Unstorable tells whether Postgres refused a text for its characters: it has NUL in it or is not UTF-8. REST never lets
// one through; a gRPC client can send it.
func Unstorable(err error) bool {
	return hasCode(err, "22021", "22P05") // character_not_in_repertoire, untranslatable_character
}

// Transient tells whether waiting may mend err: the server is down, starting, ending, out of connections, memory or room on its disk, or gave a
// transaction or the wait for a lock up. It says nothing about whether a statement that failed so had its effect.
func Transient(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(e.Code, classConnection) || strings.HasPrefix(e.Code, classResources) || slices.Contains([]string{
			codeSerializationFailure, codeDeadlock, codeLockNotAvailable, codeAdminShutdown, codeCrashShutdown, codeCannotConnectNow,
		}, e.Code)
	}
	if errors.Is(err, context.Canceled) || isTLS(err) {
		return false
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	for _, target := range []error{pgconn.ErrConnClosed, io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, fs.ErrNotExist} {
		if errors.Is(err, target) {
			return true
		}
	}
	return pgconn.SafeToRetry(err)
}

// login is whom and what a failed connection was for.
type login struct{ user, database, address string }

func loginOf(err error) login {
	e, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok {
		return login{user: "the role", database: "the database", address: "the server"}
	}
	network, address := pgconn.NetworkAddress(e.Config.Host, e.Config.Port)
	if network == "unix" {
		address = "the Unix socket " + address
	}
	return login{user: e.Config.User, database: e.Config.Database, address: address}
}

func adviseState(code string, who login) string {
	switch code {
	case codeInvalidPassword:
		return fmt.Sprintf("Postgres refuses the password of role %q (SQLSTATE 28P01). A database keeps the password that it was given, "+
			"also when CERTCTL_DATABASE_URL changes, and the roles certctl_… have passwords derived from that one (or from CERTCTL_DATABASE_ROLE_SECRET). "+
			"Two ways out: put the old password back into CERTCTL_DATABASE_URL; or set the new one in Postgres as a superuser "+
			"(ALTER ROLE <the user of CERTCTL_DATABASE_URL> PASSWORD '…') and run `certctl migrate`, which gives the certctl_… roles theirs again", who.user)
	case codeInvalidAuthorization:
		return fmt.Sprintf("Postgres does not let role %q in (SQLSTATE 28000): the role does not exist or may not log in, or pg_hba.conf has no line for this "+
			"user, database, address and TLS mode. Run `certctl migrate` to make the certctl_… roles; if they are there, add a line to pg_hba.conf or set sslmode "+
			"in CERTCTL_DATABASE_URL as that file asks", who.user)
	case codeInvalidCatalog:
		return fmt.Sprintf("the database %q does not exist (SQLSTATE 3D000): create it (CREATE DATABASE %q) and run `certctl migrate`, or mend the name at the "+
			"end of CERTCTL_DATABASE_URL", who.database, who.database)
	case codeTooManyConnections:
		return fmt.Sprintf("Postgres has no connection left for role %q (SQLSTATE 53300): its CONNECTION LIMIT (the service's number in CERTCTL_DATABASE_POOL_QUOTAS) "+
			"or the server's max_connections is reached. Each replica needs 2, and one more replica has to have room: run fewer, or raise the quota and "+
			"CERTCTL_DATABASE_MAX_CONNS and run `certctl migrate`, and keep max_connections above CERTCTL_DATABASE_MAX_CONNS", who.user)
	case codeDiskFull:
		return "the disk of Postgres is full (SQLSTATE 53100): make room there"
	case codeUndefinedTable, codeInvalidSchema:
		return "the schema is not there yet: run `certctl migrate` (in Kubernetes the job …-migrate does)"
	case codeCannotConnectNow:
		return "Postgres is starting, stopping or recovering (SQLSTATE 57P03): wait, and look at its log if it lasts"
	default:
		return ""
	}
}

// adviseUnreadable explains a schema that its service may not read. It is apart from what Diagnose knows by the state alone:
// the same refusal of `certctl migrate` itself has another way out.
func adviseUnreadable(err error, schema string) error {
	if !hasCode(err, codeInsufficientRights) {
		return err
	}
	return &Problem{Advice: fmt.Sprintf("the role may not read the schema %q (SQLSTATE 42501): run `certctl migrate`, which gives it its rights "+
		"(in Kubernetes the job …-migrate does)", schema), Cause: err}
}

func adviseNetwork(err error, who login) string {
	_, dialing := errors.AsType[*pgconn.ConnectError](err)
	switch {
	case !dialing:
		return ""
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing listens on %s: start Postgres, or mend host and port in CERTCTL_DATABASE_URL", who.address)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("%s is not there: Postgres is not running or has its socket elsewhere (unix_socket_directories); "+
			"start it, or mend host= in CERTCTL_DATABASE_URL", who.address)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("%s may not be opened by this user: run certctl as the user that owns it, or connect by TCP", who.address)
	case isTLS(err):
		return fmt.Sprintf("the TLS connection to Postgres on %s was not made: the server's certificate does not verify, or it does not speak TLS. Name the "+
			"CA with sslrootcert= in CERTCTL_DATABASE_URL, use the host name that is in the certificate, or set sslmode as the server asks (disable only on a private network)", who.address)
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Sprintf("the host name %q of CERTCTL_DATABASE_URL cannot be resolved: mend the name, or the resolver", e.Name)
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return fmt.Sprintf("%s does not answer: check the address, and firewalls and network policies between here and there", who.address)
	}
	return adviseRefusedTLS(err, who)
}

// adviseRefusedTLS handles what has no type of its own: a server that answers "no" to the request for TLS. It is what
// remains when TLS was demanded and the network was fine.
func adviseRefusedTLS(err error, who login) string {
	e, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok || e.Config.TLSConfig == nil {
		return ""
	}
	if _, network := errors.AsType[net.Error](err); network || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ""
	}
	return fmt.Sprintf("Postgres on %s was asked for TLS and did not agree: switch TLS on there (ssl = on), or set sslmode=disable in "+
		"CERTCTL_DATABASE_URL if the network between is private", who.address)
}

func isTLS(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	_, ok := errors.AsType[tls.AlertError](err)
	return ok
}
