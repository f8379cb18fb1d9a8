// Package errs holds the one coded error of certctl. An *Error has a kind that tells the caller what it means, a
// reason that programs can compare, a message for people, and a cause that is logged and never shown. It crosses
// the wire as a gRPC status with google.rpc details (ErrorInfo, BadRequest, RetryInfo) and From restores it on
// the other side.
//
//	kind                gRPC code            HTTP
//	Invalid             INVALID_ARGUMENT     400
//	Unauthenticated     UNAUTHENTICATED      401
//	PermissionDenied    PERMISSION_DENIED    403
//	NotFound            NOT_FOUND            404
//	AlreadyExists       ALREADY_EXISTS       409
//	Conflict            ABORTED              409
//	PreconditionFailed  FAILED_PRECONDITION  412
//	ResourceExhausted   RESOURCE_EXHAUSTED   429
//	Canceled            CANCELLED            499
//	Internal            INTERNAL             500
//	Unimplemented       UNIMPLEMENTED        501
//	Unavailable         UNAVAILABLE          503
//	DeadlineExceeded    DEADLINE_EXCEEDED    504
//
// FAILED_PRECONDITION becomes 412 and not grpc-gateway's 400: certctl uses it for If-Match alone (RFC 9110,
// section 13.1.1), and ABORTED for a resource in the wrong state.
package errs

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Domain is the ErrorInfo domain of every error made here; reasons are unique within it.
const Domain = "certctl"

// Violation is one field of a request that is not as it must be. Field is the proto field path, such as
// "certificate.subject_alternative_names[2]".
type Violation struct {
	Field       string
	Description string
}

// Error is a coded error. Its methods With, Wrap and RetryAfter give changed copies, so an *Error in a package
// variable may be shared. errors.Is finds two errors the same when kind and reason are.
type Error struct {
	kind       Kind
	reason     string
	message    string
	meta       map[string]string
	violations []Violation
	retryAfter time.Duration
	cause      error
}

// New makes an error. The reason is UPPER_SNAKE_CASE, such as "CERTIFICATE_NOT_FOUND"; the message is shown to the
// caller, so it holds nothing internal: put that into Wrap.
func New(kind Kind, reason, format string, a ...any) *Error {
	if kind == None {
		kind = Internal
	}
	return &Error{kind: kind, reason: valid(reason), message: text(format, a)}
}

// Field makes an Invalid error about one field of the request.
func Field(field, format string, a ...any) *Error {
	var v Violations
	v.Add(field, format, a...)
	return v.asError()
}

// With gives a copy with one more ErrorInfo metadata entry. It is shown to the caller.
func (e *Error) With(key, value string) *Error {
	c := *e
	c.meta = maps.Clone(e.meta)
	if c.meta == nil {
		c.meta = make(map[string]string, 1)
	}
	c.meta[valid(key)] = valid(value)
	return &c
}

// Wrap gives a copy with an internal cause: Error prints it and errors.Is sees it, the caller does not.
func (e *Error) Wrap(cause error) *Error {
	c := *e
	c.cause = cause
	return &c
}

// RetryAfter gives a copy that tells the caller when to try again.
func (e *Error) RetryAfter(d time.Duration) *Error {
	c := *e
	c.retryAfter = max(d, 0)
	return &c
}

// Error gives message and cause, for logs. What may be shown is Message.
func (e *Error) Error() string {
	if e.cause == nil {
		return e.Message()
	}
	return e.Message() + ": " + e.cause.Error()
}

// Unwrap gives the internal cause.
func (e *Error) Unwrap() error { return e.cause }

// Is tells whether target is an *Error of the same kind and reason.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error) // errors.Is does the unwrapping and asks here per layer
	return ok && t.kind == e.kind && t.reason == e.reason
}

// Kind tells what the error means to the caller.
func (e *Error) Kind() Kind { return e.kind }

// Reason is the code that programs compare; one without a reason of its own has that of its kind.
func (e *Error) Reason() string {
	if e.reason == "" {
		return e.kind.mapping().reason
	}
	return e.reason
}

// Message is the sentence for the caller: without the cause.
func (e *Error) Message() string {
	if e.message == "" {
		return e.kind.mapping().message
	}
	return e.message
}

// Meta gives a copy of the ErrorInfo metadata.
func (e *Error) Meta() map[string]string { return maps.Clone(e.meta) }

// Violations gives a copy of the fields that are not as they must be.
func (e *Error) Violations() []Violation { return slices.Clone(e.violations) }

// RetryDelay tells when to try again; ok is false when the error does not say.
func (e *Error) RetryDelay() (d time.Duration, ok bool) { return e.retryAfter, e.retryAfter > 0 }

// KindOf gives the kind of err as From sees it; None for nil.
func KindOf(err error) Kind {
	if err == nil {
		return None
	}
	return From(err).Kind()
}

// ReasonOf gives the reason of err as From sees it; "" for nil.
func ReasonOf(err error) string {
	if err == nil {
		return ""
	}
	return From(err).Reason()
}

// MetaOf gives the ErrorInfo metadata of err as From sees it; nil for nil and for an error without any.
func MetaOf(err error) map[string]string {
	if err == nil {
		return nil
	}
	return From(err).Meta()
}

// IsKind tells whether err is of one of the kinds.
func IsKind(err error, kinds ...Kind) bool { return err != nil && slices.Contains(kinds, KindOf(err)) }

// asCoded finds the outermost *Error of a chain.
func asCoded(err error) (*Error, bool) {
	var e *Error
	ok := errors.As(err, &e)
	return e, ok && e != nil
}

// text formats a message; without arguments the format is the message, so that a stray % stays.
func text(format string, a []any) string {
	if len(a) == 0 {
		return valid(format)
	}
	return valid(fmt.Sprintf(format, a...))
}

// valid makes s fit for a proto string: a status with invalid UTF-8 would lose its details on the wire.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
