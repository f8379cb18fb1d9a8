package errs

import (
	"net/http"

	"google.golang.org/grpc/codes"
)

// Kind says what an error means to the caller. It decides the gRPC code and the HTTP status; see the table in
// the package comment.
type Kind uint8

// The kinds. None is what KindOf answers for nil; an error made with it counts as Internal.
const (
	None Kind = iota
	Internal
	Invalid
	NotFound
	AlreadyExists
	// Conflict is a resource in the wrong state for the call; repeating the call unchanged does not help.
	Conflict
	// PreconditionFailed is an If-Match, or a revision in the message, that is no longer current.
	PreconditionFailed
	PermissionDenied
	Unauthenticated
	ResourceExhausted
	Unavailable
	DeadlineExceeded
	Canceled
	Unimplemented
)

// mapping is one row of the table: what a kind becomes on each wire, and the reason and the sentence that stand
// in when the error brings none that may be shown.
type mapping struct {
	name    string
	code    codes.Code
	http    int
	reason  string
	message string
}

// statusClientClosed is what servers log when the client left before the answer; net/http has no name for it.
const statusClientClosed = 499

func (k Kind) mapping() mapping {
	switch k {
	case Invalid:
		return mapping{"invalid", codes.InvalidArgument, http.StatusBadRequest, "INVALID_ARGUMENT", "invalid argument"}
	case NotFound:
		return mapping{"not_found", codes.NotFound, http.StatusNotFound, "NOT_FOUND", "not found"}
	case AlreadyExists:
		return mapping{"already_exists", codes.AlreadyExists, http.StatusConflict, "ALREADY_EXISTS", "already exists"}
	case Conflict:
		return mapping{"conflict", codes.Aborted, http.StatusConflict, "CONFLICT", "conflict with the current state"}
	case PreconditionFailed:
		return mapping{"precondition_failed", codes.FailedPrecondition, http.StatusPreconditionFailed, "PRECONDITION_FAILED", "precondition failed"}
	case PermissionDenied:
		return mapping{"permission_denied", codes.PermissionDenied, http.StatusForbidden, "PERMISSION_DENIED", "permission denied"}
	case Unauthenticated:
		return mapping{"unauthenticated", codes.Unauthenticated, http.StatusUnauthorized, "UNAUTHENTICATED", "not authenticated"}
	case ResourceExhausted:
		return mapping{"resource_exhausted", codes.ResourceExhausted, http.StatusTooManyRequests, "RESOURCE_EXHAUSTED", "too many requests"}
	case Unavailable:
		return mapping{"unavailable", codes.Unavailable, http.StatusServiceUnavailable, "UNAVAILABLE", "service unavailable"}
	case DeadlineExceeded:
		return mapping{"deadline_exceeded", codes.DeadlineExceeded, http.StatusGatewayTimeout, "DEADLINE_EXCEEDED", "deadline exceeded"}
	case Canceled:
		return mapping{"canceled", codes.Canceled, statusClientClosed, "CANCELED", "canceled by the caller"}
	case Unimplemented:
		return mapping{"unimplemented", codes.Unimplemented, http.StatusNotImplemented, "UNIMPLEMENTED", "not implemented"}
	case None, Internal:
		return internalMapping
	default:
		return internalMapping
	}
}

var internalMapping = mapping{"internal", codes.Internal, http.StatusInternalServerError, "INTERNAL", "internal error"}

// String gives the kind in lower snake case, for logs and metric labels.
func (k Kind) String() string {
	if k == None {
		return "none"
	}
	return k.mapping().name
}

// Code gives the gRPC code of the kind; None gives codes.OK.
func (k Kind) Code() codes.Code {
	if k == None {
		return codes.OK
	}
	return k.mapping().code
}

// HTTPStatus gives the HTTP status of the kind; None gives 200.
func (k Kind) HTTPStatus() int {
	if k == None {
		return http.StatusOK
	}
	return k.mapping().http
}

// KindOfCode gives the kind that stands for a gRPC code; codes without a kind of their own (UNKNOWN, DATA_LOSS
// and those not known) are Internal.
func KindOfCode(c codes.Code) Kind {
	if c == codes.OK {
		return None
	}
	if c == codes.OutOfRange {
		return Invalid
	}
	for k := Invalid; k <= Unimplemented; k++ {
		if k.mapping().code == c {
			return k
		}
	}
	return Internal
}
