package errs_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/errs"
)

// overWire does to an error what a server and a client do: to bytes and back.
func overWire(t *testing.T, e *errs.Error) error {
	t.Helper()
	b, err := proto.Marshal(e.GRPCStatus().Proto())
	require.NoError(t, err)
	st := status.New(codes.OK, "").Proto()
	require.NoError(t, proto.Unmarshal(b, st))
	return status.FromProto(st).Err()
}

func TestKindsKeepTheirCodesOnBothWires(t *testing.T) {
	t.Parallel()
	table := map[errs.Kind]struct {
		code codes.Code
		http int
	}{
		errs.Invalid:            {codes.InvalidArgument, 400},
		errs.Unauthenticated:    {codes.Unauthenticated, 401},
		errs.PermissionDenied:   {codes.PermissionDenied, 403},
		errs.NotFound:           {codes.NotFound, 404},
		errs.AlreadyExists:      {codes.AlreadyExists, 409},
		errs.Conflict:           {codes.Aborted, 409},
		errs.PreconditionFailed: {codes.FailedPrecondition, 412},
		errs.ResourceExhausted:  {codes.ResourceExhausted, 429},
		errs.Canceled:           {codes.Canceled, 499},
		errs.Internal:           {codes.Internal, 500},
		errs.Unimplemented:      {codes.Unimplemented, 501},
		errs.Unavailable:        {codes.Unavailable, 503},
		errs.DeadlineExceeded:   {codes.DeadlineExceeded, 504},
	}
	for kind, want := range table {
		require.Equal(t, want.code, kind.Code(), kind.String())
		require.Equal(t, want.http, kind.HTTPStatus(), kind.String())
		require.Equal(t, kind, errs.KindOfCode(want.code), kind.String())
	}
	require.Equal(t, errs.None, errs.KindOfCode(codes.OK))
	require.Equal(t, errs.Internal, errs.KindOfCode(codes.Unknown))
	require.Equal(t, errs.Internal, errs.KindOfCode(codes.DataLoss))
	require.Equal(t, errs.Internal, errs.KindOfCode(codes.Code(77)))
}

func TestAnErrorSurvivesTheWireWithAllItsDetails(t *testing.T) {
	t.Parallel()
	sent := errs.New(errs.NotFound, "CERTIFICATE_NOT_FOUND", "certificate %s not found", "cert-1").
		With("certificate_id", "cert-1").
		RetryAfter(3 * time.Second).
		Wrap(errors.New("sql: no rows"))

	got := errs.From(fmt.Errorf("get certificate: %w", overWire(t, sent)))

	require.Equal(t, errs.NotFound, got.Kind())
	require.Equal(t, "CERTIFICATE_NOT_FOUND", got.Reason())
	require.Equal(t, "certificate cert-1 not found", got.Message())
	require.Equal(t, map[string]string{"certificate_id": "cert-1"}, got.Meta())
	d, ok := got.RetryDelay()
	require.True(t, ok)
	require.Equal(t, 3*time.Second, d)
	require.ErrorIs(t, got, sent)
}

func TestViolationsSurviveTheWire(t *testing.T) {
	t.Parallel()
	var v errs.Violations
	require.NoError(t, v.Err())
	v.Add("certificate.dns_names[2]", "%q is not a DNS name", "a b")
	v.Add("page_size", "must not be negative.")

	got := errs.From(overWire(t, errs.From(v.Err())))

	require.Equal(t, errs.Invalid, got.Kind())
	require.Equal(t, "INVALID_ARGUMENT", got.Reason())
	require.Equal(t, `certificate.dns_names[2]: "a b" is not a DNS name (and 1 more)`, got.Message())
	require.Equal(t, []errs.Violation{
		{Field: "certificate.dns_names[2]", Description: `"a b" is not a DNS name`},
		{Field: "page_size", Description: "must not be negative."},
	}, got.Violations())
}

func TestViolationsBeyondTheBoundAreCounted(t *testing.T) {
	t.Parallel()
	var v errs.Violations
	for i := range errs.MaxViolations + 5 {
		v.Add("names["+strconv.Itoa(i)+"]", "empty")
	}
	e := errs.From(v.Err())
	require.Len(t, e.Violations(), errs.MaxViolations)
	require.Equal(t, strconv.Itoa(errs.MaxViolations+5), e.Meta()["violation_count"])
}

func TestACauseIsLoggedAndNeverShown(t *testing.T) {
	t.Parallel()
	cause := errors.New("password=hunter2")
	for _, e := range []*errs.Error{
		errs.From(fmt.Errorf("store order: %w", cause)),
		errs.New(errs.Unavailable, "CA_AWAY", "the CA does not answer").Wrap(cause),
		errs.From(fmt.Errorf("call: %w", errs.New(errs.Conflict, "WRONG_STATE", "is revoked").Wrap(cause))),
	} {
		require.ErrorContains(t, e, "hunter2")
		require.ErrorIs(t, e, cause)
		require.NotContains(t, e.GRPCStatus().Proto().String(), "hunter2")
	}
	require.Equal(t, "internal error", errs.From(cause).GRPCStatus().Message())
}

func TestAForeignStatusKeepsWhatIsAboutTheRequestAndHidesTheRest(t *testing.T) {
	t.Parallel()
	dial := errs.From(status.Error(codes.Unavailable, "dial tcp 10.1.2.3:9443: connect: connection refused"))
	require.Equal(t, errs.Unavailable, dial.Kind())
	require.Equal(t, "service unavailable", dial.Message())
	require.ErrorContains(t, dial, "10.1.2.3")

	unknown := errs.From(status.Error(codes.Unimplemented, "unknown method Foo"))
	require.Equal(t, errs.Unimplemented, unknown.Kind())
	require.Equal(t, "unknown method Foo", unknown.Message())

	st, err := status.New(codes.Internal, "stack trace").WithDetails(&errdetails.ErrorInfo{Reason: "X", Domain: "elsewhere"})
	require.NoError(t, err)
	require.Equal(t, "INTERNAL", errs.ReasonOf(st.Err()))
	require.Equal(t, "internal error", errs.From(st.Err()).Message())
}

func TestContextErrorsHaveTheirKinds(t *testing.T) {
	t.Parallel()
	require.Equal(t, errs.Canceled, errs.KindOf(fmt.Errorf("query: %w", context.Canceled)))
	require.Equal(t, errs.DeadlineExceeded, errs.KindOf(fmt.Errorf("query: %w", context.DeadlineExceeded)))
}

func TestChangingAnErrorLeavesTheOriginalAsItWas(t *testing.T) {
	t.Parallel()
	base := errs.New(errs.NotFound, "AGENT_NOT_FOUND", "agent not found").With("a", "1")
	changed := base.With("b", "2").Wrap(errors.New("x")).RetryAfter(time.Second)

	require.Equal(t, map[string]string{"a": "1"}, base.Meta())
	require.NoError(t, base.Unwrap())
	require.Equal(t, map[string]string{"a": "1", "b": "2"}, changed.Meta())
	require.ErrorIs(t, changed, base)
	require.NotErrorIs(t, changed, errs.New(errs.Invalid, "AGENT_NOT_FOUND", ""))
}

func TestTextThatIsNotUTF8KeepsTheDetails(t *testing.T) {
	t.Parallel()
	e := errs.New(errs.Invalid, "BAD", "name %s", "\xff\xfe").With("name", "\xff")
	got := errs.From(overWire(t, e))
	require.Equal(t, "BAD", got.Reason())
	require.Equal(t, "\uFFFD", got.Meta()["name"])

	got = errs.From(overWire(t, errs.Field("name\xff", "100%% of \xff")))
	require.Equal(t, "name\uFFFD", got.Violations()[0].Field)
}

func TestNilIsNoError(t *testing.T) {
	t.Parallel()
	require.Nil(t, errs.From(nil))
	require.Equal(t, errs.None, errs.KindOf(nil))
	require.Empty(t, errs.ReasonOf(nil))
	require.Nil(t, errs.MetaOf(nil))
	require.False(t, errs.IsKind(nil, errs.None))
	require.True(t, errs.IsKind(errs.Field("a", "b"), errs.NotFound, errs.Invalid))
}
