// Package testrpc serves gRPC services in memory for tests, with the whole chain of package rpc, and connects to them
// as a caller of any role or as a peer.
package testrpc

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
)

// secret is the internal secret of every test server.
const secret = "testrpc-internal-secret"

// stopTimeout bounds how long the end of a test waits for a server.
const stopTimeout = 15 * time.Second

// Secret gives the internal secret of the servers, for tests that dial themselves.
func Secret() secretbox.Secret { return secretbox.NewSecret(secret) }

// Config says what is served.
type Config struct {
	// Table is the authorisation table of what Register registers.
	Table rpc.AuthzTable
	// Register registers the services.
	Register func(grpc.ServiceRegistrar)
	// Change changes the server's settings and dependencies before it is made; it may be nil.
	Change func(*rpc.ServerConfig, *rpc.ServerDeps)
}

// Server is a server in memory that lives as long as its test.
type Server struct {
	// RPC is the server itself.
	RPC *rpc.Server
	// Logs has all log lines.
	Logs *observer.ObservedLogs
	// Metrics is the registry.
	Metrics *metrics.Registry
	// Network is where the server listens, under the name Service.
	Network *rpc.MemoryNetwork

	stop func() error
}

// Service is the name of the server under test.
const Service = "tested"

// Serve starts a server and stops it at the end of the test, which fails when either does.
func Serve(t testing.TB, cfg Config) *Server {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	s := &Server{Logs: logs, Metrics: metrics.New(Service), Network: rpc.NewMemoryNetwork()}
	sc := rpc.ServerConfig{Service: Service, InternalSecret: Secret()}
	sd := rpc.ServerDeps{Logger: zap.New(core), Registry: s.Metrics, Table: cfg.Table}
	if cfg.Change != nil {
		cfg.Change(&sc, &sd)
	}
	var err error
	s.RPC, err = rpc.NewServer(sc, sd)
	require.NoError(t, err)
	if cfg.Register != nil {
		cfg.Register(s.RPC)
	}
	s.start(t)
	return s
}

func (s *Server) start(t testing.TB) {
	t.Helper()
	lis, err := s.Network.Listen(Service)
	require.NoError(t, err)
	require.NoError(t, s.RPC.Prepare())
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	g := run.NewGroup(ctx, run.Config{ShutdownTimeout: stopTimeout})
	g.Go(Service, func(ctx context.Context) error { return s.RPC.Serve(ctx, lis) })
	s.stop = func() error {
		cancel()
		return g.Wait()
	}
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
}

// Stop stops the server and waits for it; it may be called again.
func (s *Server) Stop() error { return s.stop() }

// As connects as the gateway does for a caller: each call carries it, unless its context has another.
func (s *Server) As(t testing.TB, c rpcctx.Caller) *grpc.ClientConn {
	t.Helper()
	return s.dial(t, rpc.ClientConfig{Service: rpc.Gateway, Options: carry(c)})
}

// AsRole connects as a user, or an agent or a peer, of a role; the user's id is the role's name.
func (s *Server) AsRole(t testing.TB, r rpcctx.Role) *grpc.ClientConn {
	t.Helper()
	switch r {
	case rpcctx.RolePeer:
		return s.AsPeer(t, "peer")
	case rpcctx.RoleAgent:
		return s.As(t, rpcctx.Caller{Type: rpcctx.Agent, ID: "agent", Role: r})
	case rpcctx.RoleNone:
		return s.As(t, rpcctx.AnonymousCaller())
	case rpcctx.RoleAdmin, rpcctx.RoleOperator, rpcctx.RoleViewer, rpcctx.RoleAuditor:
		return s.As(t, rpcctx.Caller{Type: rpcctx.User, ID: string(r), Role: r})
	default:
		t.Fatalf("unknown role %q", r)
		return nil
	}
}

// AsPeer connects as another service.
func (s *Server) AsPeer(t testing.TB, service string) *grpc.ClientConn {
	t.Helper()
	return s.dial(t, rpc.ClientConfig{Service: service})
}

// AsStranger connects without any credential.
func (s *Server) AsStranger(t testing.TB) *grpc.ClientConn {
	t.Helper()
	return s.dial(t, rpc.ClientConfig{})
}

func (s *Server) dial(t testing.TB, cfg rpc.ClientConfig) *grpc.ClientConn {
	t.Helper()
	cfg.Target, cfg.InternalSecret, cfg.Dialer = Service, Secret(), s.Network.Dialer(Service)
	conn, err := rpc.Dial(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() }) // a test may have closed it
	return conn
}

// carry puts a caller into the context of each call, as the authentication of the gateway does.
func carry(c rpcctx.Caller) []grpc.DialOption {
	with := func(ctx context.Context) context.Context {
		if rpcctx.CallerFrom(ctx).IsAnonymous() {
			return rpcctx.WithCaller(ctx, c)
		}
		return ctx
	}
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoker(with(ctx), method, req, reply, cc, opts...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return streamer(with(ctx), desc, cc, method, opts...)
		}),
	}
}
