package rpc_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	testvalidatev1 "github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testvalidate/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/testrpc"
)

func newServer(t *testing.T, cfg rpc.ServerConfig, deps rpc.ServerDeps) *rpc.Server {
	t.Helper()
	cfg.Service, cfg.InternalSecret = "inventory", testrpc.Secret()
	deps.Logger, deps.Registry = zap.NewNop(), metrics.New("inventory")
	s, err := rpc.NewServer(cfg, deps)
	require.NoError(t, err)
	t.Cleanup(s.Stop)
	return s
}

func TestTheOrderOfTheChainIsTheDesigned(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{
		"otel", "request id", "logger", "metrics", "error mask", "call log", "recovery", "deadline", "per-peer limit",
		"authn", "authz", "per-caller limit", "protovalidate",
	}, newServer(t, rpc.ServerConfig{}, rpc.ServerDeps{Table: table()}).ChainNames())
}

func TestACauseIsLoggedOnceWithTheRequestIDAndNotShown(t *testing.T) {
	t.Parallel()
	s := serve(t, pings(errors.New("password=hunter2")), nil)
	err := doPing(rpcctx.WithRequestID(t.Context(), "req-1"), s.AsRole(t, rpcctx.RoleAdmin))

	require.Equal(t, errs.Internal, errs.KindOf(err))
	require.Equal(t, "internal error", errs.From(err).Message())
	require.NotContains(t, err.Error(), "hunter2")

	require.Equal(t, 1, s.Logs.Len())
	line := s.Logs.All()[0]
	require.Equal(t, zap.ErrorLevel, line.Level)
	fields := line.ContextMap()
	require.Equal(t, "password=hunter2", fields["error"])
	require.Equal(t, "req-1", fields["request_id"])
	require.Equal(t, ping, fields["method"])
	require.Equal(t, "user:admin", fields["caller"])
	require.Equal(t, "admin", fields["caller_role"])
	require.Equal(t, "Internal", fields["code"])
}

func TestAnErrorOfWhatTheServiceStandsOnGetsItsCode(t *testing.T) {
	t.Parallel()
	away := errors.New("connection reset")
	s := serve(t, pings(away), func(_ *rpc.ServerConfig, d *rpc.ServerDeps) {
		d.Explain = func(err error) error {
			require.ErrorIs(t, err, away)
			return errs.New(errs.Unavailable, "DATABASE_UNAVAILABLE", "the database is away").Wrap(err)
		}
	})
	err := doPing(t.Context(), s.AsRole(t, rpcctx.RoleAdmin))
	require.Equal(t, errs.Unavailable, errs.KindOf(err))
	require.Equal(t, "DATABASE_UNAVAILABLE", errs.ReasonOf(err))
	require.NotContains(t, err.Error(), "reset")
	fields := s.Logs.All()[0].ContextMap()
	require.Equal(t, "Unavailable", fields["code"])
	require.Contains(t, fields["error"], "connection reset")
}

func TestAPanicIsAnInternalErrorWithItsStackInTheLog(t *testing.T) {
	t.Parallel()
	s := serve(t, &fake{
		ping:   func(context.Context, *testpb.PingRequest) (*testpb.PingResponse, error) { panic("oh no") },
		stream: func(testpb.TestService_PingStreamServer) error { panic("oh no") },
	}, nil)
	conn := s.AsRole(t, rpcctx.RoleAdmin)

	err := doPing(t.Context(), conn)
	require.Equal(t, "internal error", errs.From(err).Message())
	stream, err := testpb.NewTestServiceClient(conn).PingStream(t.Context())
	require.NoError(t, err)
	_, err = stream.Recv()
	require.Equal(t, "internal error", errs.From(err).Message())

	require.Eventually(t, func() bool { return s.Logs.Len() == 2 }, 5*time.Second, time.Millisecond)
	for _, line := range s.Logs.All() {
		require.Equal(t, "panic: oh no", line.ContextMap()["error"])
		require.Contains(t, line.ContextMap()["stack"], "fixture_test.go")
	}
}

func TestACodedErrorArrivesWhole(t *testing.T) {
	t.Parallel()
	sent := errs.New(errs.Conflict, "WRONG_STATE", "certificate is revoked").With("state", "REVOKED")
	s := serve(t, pings(sent), nil)
	err := doPing(t.Context(), s.AsRole(t, rpcctx.RoleAdmin))
	require.Equal(t, errs.Conflict, errs.KindOf(err))
	require.Equal(t, "WRONG_STATE", errs.ReasonOf(err))
	require.Equal(t, "REVOKED", errs.MetaOf(err)["state"])
}

func TestARuleOfTheProtoBecomesAViolation(t *testing.T) {
	t.Parallel()
	s := serve(t, pings(nil), nil)
	c := testvalidatev1.NewTestValidateServiceClient(s.AsRole(t, rpcctx.RoleAdmin))

	_, err := c.Send(t.Context(), &testvalidatev1.SendRequest{Message: "no address"})
	requireViolation(t, err)
	stream, err := c.SendStream(t.Context(), &testvalidatev1.SendStreamRequest{Message: "no address"})
	require.NoError(t, err)
	_, err = stream.Recv()
	requireViolation(t, err)

	_, err = c.Send(t.Context(), &testvalidatev1.SendRequest{Message: "a@example.com"})
	require.NoError(t, err)
}

func requireViolation(t *testing.T, err error) {
	t.Helper()
	require.Equal(t, errs.Invalid, errs.KindOf(err))
	require.Equal(t, "INVALID_ARGUMENT", errs.ReasonOf(err))
	v := errs.From(err).Violations()
	require.Len(t, v, 1)
	require.Equal(t, "message", v[0].Field)
	require.Contains(t, v[0].Description, "email")
}

func TestAMessageIsNotLookedAtBeforeTheCallerMaySendIt(t *testing.T) {
	t.Parallel()
	s := serve(t, pings(nil), nil)
	c := testvalidatev1.NewTestValidateServiceClient(s.AsRole(t, rpcctx.RoleViewer))
	_, err := c.Send(t.Context(), &testvalidatev1.SendRequest{Message: "no address"})
	require.Equal(t, errs.PermissionDenied, errs.KindOf(err))
}

func TestASaneRequestIDIsKeptAndAnyOtherReplaced(t *testing.T) {
	t.Parallel()
	var seen context.Context
	s := serve(t, callerSeen(&seen), func(_ *rpc.ServerConfig, d *rpc.ServerDeps) {
		d.Table[ping] = rpc.Rule{Public: true}
	})
	conn := memoryConn(t, s, rpc.ClientConfig{})
	var header metadata.MD

	require.NoError(t, doPing(rpcctx.WithRequestID(t.Context(), "req-1"), conn, grpc.Header(&header)))
	require.Equal(t, "req-1", rpcctx.RequestID(seen))
	require.Equal(t, []string{"req-1"}, header.Get("x-request-id"))

	require.NoError(t, doPing(rpcctx.WithRequestID(t.Context(), "a b"), conn, grpc.Header(&header)))
	require.NotEqual(t, "a b", rpcctx.RequestID(seen))
	require.True(t, rpcctx.ValidRequestID(rpcctx.RequestID(seen)))
	require.Equal(t, []string{rpcctx.RequestID(seen)}, header.Get("x-request-id"))

	require.NoError(t, doPing(t.Context(), conn))
	require.NotEmpty(t, rpcctx.RequestID(seen))
}

func TestEveryCallHasADeadlineExceptLongLivedStreams(t *testing.T) {
	t.Parallel()
	type seen struct {
		left time.Duration
		ok   bool
	}
	measure := func(ctx context.Context) seen {
		at, ok := ctx.Deadline()
		return seen{time.Until(at), ok}
	}
	calls := make(chan seen, 1)
	f := &fake{
		ping: func(ctx context.Context, _ *testpb.PingRequest) (*testpb.PingResponse, error) {
			calls <- measure(ctx)
			return &testpb.PingResponse{}, nil
		},
		stream: func(s testpb.TestService_PingStreamServer) error {
			calls <- measure(s.Context())
			return nil
		},
	}
	streamOn := func(s *testrpc.Server) {
		stream, err := testpb.NewTestServiceClient(s.AsRole(t, rpcctx.RoleAdmin)).PingStream(t.Context())
		require.NoError(t, err)
		_, err = stream.Recv()
		require.ErrorContains(t, err, "EOF")
	}

	plain := serve(t, f, func(c *rpc.ServerConfig, _ *rpc.ServerDeps) {
		c.UnaryTimeout, c.StreamTimeout = 5*time.Second, 7*time.Minute
	})
	require.NoError(t, doPing(t.Context(), plain.AsRole(t, rpcctx.RoleAdmin)))
	got := <-calls
	require.True(t, got.ok)
	require.LessOrEqual(t, got.left, 5*time.Second, "the server's bound is below the client's ten seconds")
	streamOn(plain)
	got = <-calls
	require.True(t, got.ok)
	require.InDelta(t, 7*time.Minute, got.left, float64(time.Minute))

	longLived := serve(t, f, func(c *rpc.ServerConfig, _ *rpc.ServerDeps) { c.LongLivedStreams = []string{pingStream} })
	streamOn(longLived)
	require.False(t, (<-calls).ok)
}

func TestTheClientSetsADeadline(t *testing.T) {
	t.Parallel()
	f := &fake{ping: func(ctx context.Context, _ *testpb.PingRequest) (*testpb.PingResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	s := serve(t, f, nil)
	conn := memoryConn(t, s, rpc.ClientConfig{
		Service: "audit", InternalSecret: testrpc.Secret(), DefaultTimeout: 50 * time.Millisecond,
	})
	require.Equal(t, errs.DeadlineExceeded, errs.KindOf(doPing(t.Context(), conn)))
}

func TestMetricsCountTheCodeThatTheCallerSees(t *testing.T) {
	t.Parallel()
	s := serve(t, pings(errors.New("boom")), nil)
	_ = doPing(t.Context(), s.AsRole(t, rpcctx.RoleAdmin))
	families, err := s.Metrics.Gather()
	require.NoError(t, err)
	var internal, other float64
	for _, f := range families {
		if f.GetName() != "grpc_server_handled_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if text := m.String(); strings.Contains(text, `"Ping"`) && strings.Contains(text, `"Internal"`) {
				internal += m.GetCounter().GetValue()
			} else {
				other += m.GetCounter().GetValue()
			}
		}
	}
	require.InDelta(t, 1, internal, 0)
	require.InDelta(t, 0, other, 0)
}

func TestTwoServersCannotShareARegistry(t *testing.T) {
	t.Parallel()
	deps := rpc.ServerDeps{Logger: zap.NewNop(), Registry: metrics.New("inventory"), Table: table()}
	cfg := rpc.ServerConfig{Service: "inventory", InternalSecret: testrpc.Secret()}
	s, err := rpc.NewServer(cfg, deps)
	require.NoError(t, err)
	t.Cleanup(s.Stop)
	_, err = rpc.NewServer(cfg, deps)
	require.ErrorContains(t, err, "register server metrics")
}
