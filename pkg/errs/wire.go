package errs

import (
	"context"
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// GRPCStatus gives what goes over the wire: code, message, ErrorInfo, and BadRequest or RetryInfo where there is
// one. The cause is not in it.
func (e *Error) GRPCStatus() *status.Status {
	st := status.New(e.kind.Code(), e.Message())
	full, err := st.WithDetails(e.details()...)
	if err != nil {
		// The details are proto messages of valid strings; should that ever fail, code and message still go out.
		return st
	}
	return full
}

func (e *Error) details() []protoadapt.MessageV1 {
	d := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: e.Reason(), Domain: Domain, Metadata: e.meta}}
	if len(e.violations) > 0 {
		br := &errdetails.BadRequest{}
		for _, v := range e.violations {
			br.FieldViolations = append(br.FieldViolations,
				&errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Description})
		}
		d = append(d, br)
	}
	if e.retryAfter > 0 {
		d = append(d, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.retryAfter)})
	}
	return d
}

// From makes an *Error of any error. An *Error anywhere in the chain is given as it is; a gRPC status error of a
// peer is restored with its details; context errors become Canceled and DeadlineExceeded; anything else is
// Internal with the fixed message "internal error" and err as its cause. From(nil) is a nil *Error.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := asCoded(err); ok {
		return e
	}
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) && s.GRPCStatus().Code() != codes.OK {
		return fromStatus(s.GRPCStatus(), err)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{kind: DeadlineExceeded, cause: err}
	case errors.Is(err, context.Canceled):
		return &Error{kind: Canceled, cause: err}
	default:
		return &Error{kind: Internal, cause: err}
	}
}

// fromStatus restores an error that arrived as a status. Only a status with an ErrorInfo of our domain was made
// for showing; the others come from the gRPC library or a foreign server and name addresses and the like, so
// those that are not about the request get the fixed sentence of their kind.
func fromStatus(st *status.Status, err error) *Error {
	e := &Error{kind: KindOfCode(st.Code()), cause: err}
	ours := false
	for _, d := range st.Details() {
		ours = e.restore(d) || ours
	}
	if ours {
		e.message = st.Message()
		e.cause = nil
		return e
	}
	if e.kind.aboutRequest() {
		e.message = st.Message()
	}
	return e
}

// restore takes one detail over and tells whether it is our ErrorInfo.
func (e *Error) restore(detail any) bool {
	switch d := detail.(type) {
	case *errdetails.ErrorInfo:
		if d.GetDomain() != Domain {
			return false
		}
		e.reason, e.meta = d.GetReason(), d.GetMetadata()
		return true
	case *errdetails.BadRequest:
		for _, v := range d.GetFieldViolations() {
			e.violations = append(e.violations, Violation{Field: v.GetField(), Description: v.GetDescription()})
		}
	case *errdetails.RetryInfo:
		e.retryAfter = max(d.GetRetryDelay().AsDuration(), 0)
	}
	return false
}

// aboutRequest tells whether an error of the kind speaks of the request, and not of the server's insides.
func (k Kind) aboutRequest() bool {
	switch k {
	case Invalid, NotFound, AlreadyExists, Conflict, PreconditionFailed, PermissionDenied, Unauthenticated,
		ResourceExhausted, Unimplemented:
		return true
	case None, Internal, Unavailable, DeadlineExceeded, Canceled:
		return false
	default:
		return false
	}
}
