package rpc

import (
	"context"

	middleware "github.com/grpc-ecosystem/go-grpc-middleware/v2"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/run"
)

// The steps of the chain.
const (
	stepTracing     = "otel"
	stepRequestID   = "request id"
	stepLogger      = "logger"
	stepMetrics     = "metrics"
	stepMask        = "error mask"
	stepCallLog     = "call log"
	stepRecovery    = "recovery"
	stepDeadline    = "deadline"
	stepPeerLimit   = "per-peer limit"
	stepAuthn       = "authn"
	stepAuthz       = "authz"
	stepCallerLimit = "per-caller limit"
	stepValidate    = "protovalidate"
)

// call is what a step knows of the call.
type call struct {
	method string
	stream bool
}

// around does something before and after the rest of the chain, alike for unary calls and streams.
type around func(ctx context.Context, c call, next func(context.Context) error) error

// step is one link of the chain. Its interceptors are nil when it works without any.
type step struct {
	name   string
	unary  grpc.UnaryServerInterceptor
	stream grpc.StreamServerInterceptor
}

// aroundStep makes a step of an around.
func aroundStep(name string, a around) step {
	return step{name: name, unary: a.unary, stream: a.streaming}
}

func (a around) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	var resp any
	err := a(ctx, call{method: info.FullMethod}, func(ctx context.Context) error {
		var err error
		resp, err = handler(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (a around) streaming(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return a(ss.Context(), call{method: info.FullMethod, stream: true}, func(ctx context.Context) error {
		return handler(srv, &middleware.WrappedServerStream{ServerStream: ss, WrappedContext: ctx})
	})
}

// chain gives the steps from the outermost to the innermost. The order matters: the mask hides what the log has
// seen, recovery is inside of both, a peer is limited before its credentials cost anything, and nothing of a message
// is looked at before the caller may send it.
func (s *Server) chain() []step {
	return []step{
		{name: stepTracing}, // a stats handler, which grpc calls before all interceptors
		aroundStep(stepRequestID, requestID),
		aroundStep(stepLogger, s.logger),
		s.metrics.step(),
		aroundStep(stepMask, mask),
		aroundStep(stepCallLog, s.callLog),
		recoveryStep(),
		aroundStep(stepDeadline, s.deadline),
		aroundStep(stepPeerLimit, s.peerLimit.byPeer),
		aroundStep(stepAuthn, authn{auth: s.deps.Authenticator, table: s.table}.around),
		aroundStep(stepAuthz, s.table.around),
		aroundStep(stepCallerLimit, s.callerLimit.byCaller),
		validation{s.deps.Validator}.step(),
	}
}

// chainOptions hands the steps to grpc.
func chainOptions(steps []step) []grpc.ServerOption {
	var unary []grpc.UnaryServerInterceptor
	var stream []grpc.StreamServerInterceptor
	for _, s := range steps {
		if s.unary != nil {
			unary = append(unary, s.unary)
		}
		if s.stream != nil {
			stream = append(stream, s.stream)
		}
	}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(unary...), grpc.ChainStreamInterceptor(stream...)}
}

// recoveryStep turns a panic into an error with its stack; the call log writes it and the mask hides it.
func recoveryStep() step {
	handler := recovery.WithRecoveryHandler(func(v any) error { return run.NewPanicError(v) })
	return step{
		name:   stepRecovery,
		unary:  recovery.UnaryServerInterceptor(handler),
		stream: recovery.StreamServerInterceptor(handler),
	}
}
