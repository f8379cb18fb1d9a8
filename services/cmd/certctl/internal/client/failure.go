package client

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

// The exit codes; see the package comment.
const (
	exitError    = 1
	exitUsage    = 2
	exitNotFound = 3
	exitTimeout  = 4
)

// Failure is an error for people: what happened, which fields are wrong, and what to do.
type Failure struct {
	Message string
	// Fields are the fields that the server refused.
	Fields []errs.Violation
	// Hint says what to do; it may have several lines.
	Hint string
	// Code is the exit code.
	Code  int
	cause error
}

// Error gives all of it, on several lines. Texts from outside are cleaned for the terminal.
func (f *Failure) Error() string {
	lines := []string{cleanLines(f.Message)}
	for _, v := range f.Fields {
		lines = append(lines, "  "+show.Clean(v.Field)+": "+show.Clean(v.Description))
	}
	if f.Hint != "" {
		lines = append(lines, cleanLines(f.Hint))
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the cause.
func (f *Failure) Unwrap() error { return f.cause }

func cleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = show.Clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

// ExitCode gives the code to exit with after an error of a command; 0 for nil.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	var f *Failure
	if errors.As(err, &f) && f.Code != 0 {
		return f.Code
	}
	return exitError
}

// usage is an error about the command line.
func usage(message string) *Failure { return &Failure{Message: message, Code: exitUsage} }

func usagef(format string, a ...any) *Failure { return usage(fmt.Sprintf(format, a...)) }

func unknownCommand(c *cobra.Command, name string) error {
	message := fmt.Sprintf("%q is no command of %q", name, c.CommandPath())
	c.SuggestionsMinimumDistance = max(1, len(name)/3)
	if near := c.SuggestionsFor(name); len(near) > 0 {
		slices.Sort(near)
		message += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return &Failure{Message: message, Hint: "see: " + c.CommandPath() + " --help", Code: exitUsage}
}

// explain makes a Failure of what a call answered.
func (s *session) explain(err error) error {
	var f *Failure
	if err == nil || errors.As(err, &f) {
		return err
	}
	if _, remote := status.FromError(err); !remote && !isContext(err) {
		return &Failure{Message: err.Error(), Code: exitError, cause: err}
	}
	e := errs.From(err)
	f = &Failure{Message: e.Message(), Fields: e.Violations(), Code: exitError, cause: err}
	if len(f.Fields) > 0 {
		f.Message = "the server refused the request:"
	}
	s.advise(f, e)
	return f
}

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// adviseRole says who may: for the rule of the second person it is not a matter of roles.
func (s *session) adviseRole(reason string) string {
	if reason == "OWN_REQUEST" || reason == "OWN_APPROVAL" {
		return "somebody else has to do it, with an API key of another name"
	}
	return "the role of the API key (" + s.keyPlace() + ") does not allow it"
}

// advise adds what to do.
func (s *session) advise(f *Failure, e *errs.Error) {
	switch e.Kind() {
	case errs.NotFound:
		f.Code = exitNotFound
	case errs.Unauthenticated:
		f.Hint = s.adviseKey()
	case errs.PermissionDenied:
		f.Hint = s.adviseRole(e.Reason())
	case errs.Conflict, errs.AlreadyExists:
		if id := e.Meta()["job_id"]; id != "" {
			f.Hint = "follow it with: certctl jobs watch " + id
		}
		if e.Reason() == "NOT_DUE" {
			f.Hint = "renew it all the same with --force"
		}
	case errs.PreconditionFailed:
		f.Hint = "it was changed meanwhile: get it again and repeat the change"
	case errs.ResourceExhausted:
		if d, ok := e.RetryDelay(); ok {
			f.Hint = fmt.Sprintf("try again in %s", d)
		}
	case errs.DeadlineExceeded:
		f.Message = fmt.Sprintf("%s did not answer in time", s.access.url)
	case errs.Canceled:
		f.Message = "interrupted"
	case errs.Internal:
		if id, ok := s.requestID.Load().(string); ok && id != "" {
			f.Hint = "the server's log has more, under request id " + id
		}
	case errs.Unavailable:
		s.adviseConnection(f)
	default:
	}
}

func (s *session) keyPlace() string {
	if s.access.keyFrom == "" {
		return "none was found"
	}
	return "from " + s.access.keyFrom
}

func (s *session) adviseKey() string {
	if s.access.keyFrom == "" {
		return "no API key was sent: set CERTCTL_API_KEY or CERTCTL_API_KEY_FILE, or give --api-key-file"
	}
	return "the API key was " + s.keyPlace() + "; is it one of CERTCTL_AUTH_SECRET of the server?"
}

// adviseConnection tells a gateway that says a service is away from one that cannot be reached or trusted.
func (s *session) adviseConnection(f *Failure) {
	if s.spoke() {
		f.Hint = "try again in a moment"
		return
	}
	handshake := s.handshake.last()
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(handshake, &authority):
		f.Message = fmt.Sprintf("the certificate of %s is from a CA that is not trusted (trusted: %s)", s.access.url, s.access.caFrom)
		f.Hint = "name the file of its CA with --ca or CERTCTL_CA; `certctl serve` keeps it as ca.crt in its data directory"
	case errors.As(handshake, &name):
		f.Message = fmt.Sprintf("the certificate of %s is for another name: %v", s.access.url, name)
		f.Hint = "use a name that the certificate has, or add this one to CERTCTL_TLS_NAMES of the server"
	case errors.As(handshake, &invalid):
		f.Message = fmt.Sprintf("the certificate of %s is not valid: %v", s.access.url, invalid)
	case handshake != nil:
		f.Message = fmt.Sprintf("no TLS with %s: %v", s.access.url, handshake)
		f.Hint = "is it a certctl gateway? It speaks TLS 1.3 only"
	default:
		f.Message = fmt.Sprintf("%s cannot be reached: %s", s.access.url, status.Convert(f.cause).Message())
		f.Hint = "is the server running? Start one with: certctl serve\nor name another with --url or CERTCTL_URL"
	}
}
