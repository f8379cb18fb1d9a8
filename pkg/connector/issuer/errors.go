package issuer

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Outcome is what a caller has to do after an error of a connector.
type Outcome uint8

// The outcomes.
const (
	// OutcomeUnknown: the CA may or may not have acted. After Submit, the order has to be reconciled before anything
	// else.
	OutcomeUnknown Outcome = iota
	// OutcomeRetry: the CA has done nothing; the same call may be made again later.
	OutcomeRetry
	// OutcomePermanent: the CA has done nothing and will not, however often it is asked.
	OutcomePermanent
)

// String names the outcome for logs.
func (o Outcome) String() string {
	switch o {
	case OutcomeRetry:
		return "retry"
	case OutcomePermanent:
		return "permanent"
	default:
		return "unknown"
	}
}

// Fault is whose doing a permanent error is.
type Fault uint8

// The faults.
const (
	FaultRequest       Fault = iota // this request; others may pass
	FaultConfiguration              // settings or credentials of the issuer; no request will pass
)

// PermanentError says that repeating the call does not help.
type PermanentError struct {
	Fault   Fault
	Reason  string // UPPER_SNAKE_CASE, for programs
	Message string // for people; holds no secrets
	Cause   error  // for logs; may be nil
	// Field is the setting that is at fault, such as "key_file"; empty when it is none or more than one.
	Field string
}

func (e *PermanentError) Error() string { return withCause(e.Message, e.Cause) }
func (e *PermanentError) Unwrap() error { return e.Cause }

// RetryError says that the CA has done nothing and the call may be repeated.
type RetryError struct {
	After   time.Duration // the CA's wish; zero if it has none
	Message string
	Cause   error
}

func (e *RetryError) Error() string { return withCause(e.Message, e.Cause) }
func (e *RetryError) Unwrap() error { return e.Cause }

// UnknownOutcomeError says that the request may have reached the CA and its reply was lost.
type UnknownOutcomeError struct {
	// Ref is what is known of the order; it may help Finder and is often nil.
	Ref   Ref
	Cause error
}

func (e *UnknownOutcomeError) Error() string {
	return withCause("the reply of the CA was lost", e.Cause)
}
func (e *UnknownOutcomeError) Unwrap() error { return e.Cause }

// ReasonOrderNotFound is that of a PermanentError of Poll: the CA says that it has no such order. Whoever asks does not take
// that as the end at once, as it is also what an account that was mixed up answers to everything.
const ReasonOrderNotFound = "ORDER_NOT_FOUND"

// Permanent makes the error for a request that the CA will never fulfil.
func Permanent(reason, format string, a ...any) error {
	return &PermanentError{Fault: FaultRequest, Reason: reason, Message: fmt.Sprintf(format, a...)}
}

// Misconfigured makes the error for settings or credentials that do not work.
func Misconfigured(reason, format string, a ...any) error {
	return &PermanentError{Fault: FaultConfiguration, Reason: reason, Message: fmt.Sprintf(format, a...)}
}

// RetryAfter makes the error for a call that did nothing and may be repeated, after d if the CA named a time.
func RetryAfter(d time.Duration, cause error) error {
	return &RetryError{After: max(d, 0), Message: "the CA is not available", Cause: cause}
}

// UnknownOutcome makes the error for a reply that may have been lost.
func UnknownOutcome(ref Ref, cause error) error {
	return &UnknownOutcomeError{Ref: ref, Cause: cause}
}

// OutcomeOf tells what a caller has to do. An error of no type of this package is OutcomeUnknown, contexts that ended
// included: to reconcile once too often costs a call, to submit once too often costs a certificate. Of wrapped errors
// the outermost that is typed decides, of joined ones the most cautious.
func OutcomeOf(err error) Outcome {
	switch e := err.(type) { //nolint:errorlint // walks the tree itself, as errors.As takes the first of joined errors
	case *RetryError:
		return OutcomeRetry
	case *PermanentError:
		return OutcomePermanent
	case *UnknownOutcomeError:
		return OutcomeUnknown
	case interface{ Unwrap() error }:
		return OutcomeOf(e.Unwrap())
	case interface{ Unwrap() []error }:
		out := OutcomePermanent
		for _, each := range e.Unwrap() {
			out = min(out, OutcomeOf(each))
		}
		return out
	}
	return OutcomeUnknown
}

// AsPermanent finds the PermanentError in err.
func AsPermanent(err error) (*PermanentError, bool) {
	var e *PermanentError
	ok := errors.As(err, &e)
	return e, ok
}

// AsUnknownOutcome finds the UnknownOutcomeError in err.
func AsUnknownOutcome(err error) (*UnknownOutcomeError, bool) {
	var e *UnknownOutcomeError
	ok := errors.As(err, &e)
	return e, ok
}

// RetryDelay gives the time after which the CA wants to be asked again; ok is false when err does not say.
func RetryDelay(err error) (d time.Duration, ok bool) {
	var e *RetryError
	if !errors.As(err, &e) || e.After <= 0 {
		return 0, false
	}
	return e.After, true
}

// NotSent makes a RetryError of a context that ended before anything was sent, nil while ctx lives. Connectors call
// it first in Submit.
func NotSent(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return &RetryError{Message: "nothing was sent to the CA", Cause: err}
	}
	return nil
}

func withCause(message string, cause error) string {
	if cause == nil {
		return message
	}
	return message + ": " + cause.Error()
}
