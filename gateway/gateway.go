// Package gateway is the one port of certctl to the outside: REST and gRPC over TLS 1.3, for users with API keys, for
// agents with their credentials, and for everybody who needs a CRL. It knows who calls and passes that on; what a caller
// may do is for the services behind to say. It keeps nothing: any number of replicas can run side by side.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/certctl/certctl/gateway/internal/auth"
	"github.com/certctl/certctl/gateway/internal/edge"
	"github.com/certctl/certctl/gateway/internal/etag"
	"github.com/certctl/certctl/gateway/internal/handshake"
	"github.com/certctl/certctl/gateway/internal/keypair"
	"github.com/certctl/certctl/gateway/internal/own"
	"github.com/certctl/certctl/gateway/internal/proxy"
	"github.com/certctl/certctl/gateway/internal/relay"
	"github.com/certctl/certctl/gateway/internal/rest"
	"github.com/certctl/certctl/gateway/internal/route"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/health"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/tick"
)

// Fixed bounds of connections. There is no write or read timeout for whole connections: streams of agents are open for
// hours. HTTP requests get deadlines of their own, and silent peers are found by pings.
const (
	readHeaderTimeout = 10 * time.Second
	// handshakeTimeout is as long as agents wait: when all return at once, the last has to wait for its turn.
	handshakeTimeout = 30 * time.Second
	idleTimeout      = 2 * time.Minute
	maxHeaderBytes   = 32 << 10
	pingAfter        = 75 * time.Second // longer than agents are silent, whose heartbeats come each minute ±10 %
	pingTimeout      = 15 * time.Second
	maxStreams       = 1000
)

// Backends names the services that the gateway needs connections to.
func Backends() []string {
	return []string{route.Inventory, route.Issuance, route.RenewalScheduler, route.AsyncPoller, route.Audit}
}

// Deps is what the gateway works with.
type Deps struct {
	// Backends are connections made by rpc.Dial as the service rpc.Gateway, by the names that the function Backends gives.
	Backends map[string]grpc.ClientConnInterface
	Log      *zap.Logger
	Metrics  prometheus.Registerer
	// GetCertificate gives the server's certificate for each handshake; nil takes it from the files in Config.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Loops tells how the loops of the services are, for /ready, where they run in the same process; it may be nil.
	Loops func() map[string][]tick.State
}

// Gateway serves the outside.
type Gateway struct {
	cfg     Config
	log     *zap.Logger
	health  *health.Health
	grpc    *rpc.Server
	relay   *relay.Handler
	http    *http.Server
	streams context.Context //nolint:containedctx // ends the streams of agents when the gateway stops
	end     context.CancelFunc
}

// New makes a gateway and starts nothing.
func New(cfg Config, deps Deps) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	for _, name := range Backends() {
		if deps.Backends[name] == nil {
			return nil, fmt.Errorf("gateway: there is no connection to %s", name)
		}
	}
	g := &Gateway{cfg: cfg, log: deps.Log, health: health.New(health.Config{})}
	g.streams, g.end = context.WithCancel(context.Background()) //nolint:forbidigo // the life of the gateway begins here
	if err := g.build(deps); err != nil {
		g.end()
		return nil, fmt.Errorf("gateway: %w", err)
	}
	return g, nil
}

func (g *Gateway) build(deps Deps) error {
	gate, err := auth.NewGate(auth.Config{
		Type: g.cfg.AuthType, Secret: g.cfg.AuthSecret,
		Address: g.cfg.AddressRate.limit(), Failure: g.cfg.FailureRate.limit(), Caller: g.cfg.CallerRate.limit(),
	})
	if err != nil {
		return err
	}
	if err := g.addChecks(deps); err != nil {
		return err
	}
	methods := route.Methods()
	if err := g.buildGRPC(deps, gate, methods); err != nil {
		return err
	}
	handler, err := g.buildEdge(deps, gate, methods)
	if err != nil {
		return err
	}
	return g.buildHTTP(deps, handler)
}

// addChecks asks each service for its health when somebody asks for the gateway's readiness.
func (g *Gateway) addChecks(deps Deps) error {
	for _, name := range Backends() {
		client := grpc_health_v1.NewHealthClient(deps.Backends[name])
		err := g.health.Add(name, func(ctx context.Context) error {
			answer, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
			if err != nil {
				return fmt.Errorf("check %s: %w", name, err)
			}
			if s := answer.GetStatus(); s != grpc_health_v1.HealthCheckResponse_SERVING {
				return errs.New(errs.Unavailable, "SERVICE_UNAVAILABLE", "%s is %s", name, s)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *Gateway) buildGRPC(deps Deps, gate *auth.Gate, methods map[string]*route.RPC) error {
	passer := proxy.New(proxy.Config{MaxMessage: int(g.cfg.MaxBody)}, proxy.Deps{Methods: methods, Backends: deps.Backends, Draining: g.streams})
	server, err := rpc.NewServer(rpc.ServerConfig{
		Service: rpc.Gateway, TLSByListener: true,
		UnaryTimeout: g.cfg.RequestTimeout, StreamTimeout: g.cfg.RequestTimeout, // to grpc, all that is passed through is a stream
		LongLivedStreams: proxy.LongLived(methods),
		DrainTimeout:     time.Second, // nothing is left when it is drained; see stop
	}, rpc.ServerDeps{
		Logger: deps.Log, Registry: deps.Metrics, Health: g.health,
		Table:         proxy.Table(methods, rpc.Allow(rpcctx.RoleAdmin, rpcctx.RoleOperator, rpcctx.RoleViewer, rpcctx.RoleAuditor)),
		Authenticator: auth.GRPC{Gate: gate, Open: func(m string) bool { return methods[m] == nil || methods[m].Agent }},
		Unknown:       passer.Handle,
	})
	if err != nil {
		return err
	}
	g.grpc = server
	return nil
}

func (g *Gateway) buildEdge(deps Deps, gate *auth.Gate, methods map[string]*route.RPC) (http.Handler, error) {
	tags, err := etag.New(deps.Backends, deps.Metrics)
	if err != nil {
		return nil, err
	}
	restHandler, err := rest.New(rest.Config{MaxBody: g.cfg.MaxBody, Timeout: g.cfg.RequestTimeout}, rest.Deps{Backends: deps.Backends, Tags: tags})
	if err != nil {
		return nil, err
	}
	routes, err := own.Routes(own.Deps{
		Health: g.health, Loops: deps.Loops, Issuance: deps.Backends[route.Issuance], Timeout: g.cfg.RequestTimeout,
	})
	if err != nil {
		return nil, err
	}
	g.relay, err = relay.New(relay.Config{MaxMessage: int(g.cfg.MaxBody)}, relay.Deps{
		Inventory: deps.Backends[route.Inventory], Gate: gate, Log: deps.Log, Metrics: deps.Metrics, Next: g.grpc,
	})
	if err != nil {
		return nil, err
	}
	metrics, err := edge.NewMetrics(deps.Metrics)
	if err != nil {
		return nil, err
	}
	return edge.New(edge.Config{Timeout: g.cfg.RequestTimeout, Origins: g.cfg.CORSOrigins}, edge.Deps{
		Log: deps.Log, Metrics: metrics, Gate: gate, Routes: route.NewTable(append(routes, route.REST()...)...),
		REST: restHandler, GRPC: g.relay, Methods: methods,
	})
}

func (g *Gateway) buildHTTP(deps Deps, handler http.Handler) error {
	getCertificate := deps.GetCertificate
	if getCertificate == nil {
		files, err := keypair.Load(g.cfg.TLSCertFile, g.cfg.TLSKeyFile, deps.Log)
		if err != nil {
			return err
		}
		getCertificate = files.GetCertificate
	}
	// What net/http has to say is mostly of scanners that fail the handshake.
	errorLog, err := zap.NewStdLogAt(deps.Log.WithOptions(zap.Fields(zap.String(logx.KeyLogger, "http"))), zap.DebugLevel)
	if err != nil {
		return fmt.Errorf("log of the HTTP server: %w", err)
	}
	g.http = &http.Server{
		Handler:           handler,
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: getCertificate, NextProtos: []string{"h2", "http/1.1"}},
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams, SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		ErrorLog:          errorLog,
	}
	return nil
}

// Table gives who may call what over gRPC.
func (g *Gateway) Table() rpc.AuthzTable {
	return proxy.Table(route.Methods(), rpc.Allow(rpcctx.RoleAdmin, rpcctx.RoleOperator, rpcctx.RoleViewer, rpcctx.RoleAuditor))
}

// Run listens on the configured address and serves until ctx ends.
func (g *Gateway) Run(ctx context.Context) error {
	lc := net.ListenConfig{KeepAlive: -1} // pings find silent peers; a probe of each connection every 15 s, as is the default, adds nothing
	lis, err := lc.Listen(ctx, "tcp", g.cfg.ListenAddr)
	if err != nil {
		return fmt.Errorf("gateway: listen: %w", err)
	}
	return g.Serve(ctx, lis)
}

// Serve serves on lis, which speaks no TLS of its own, until ctx ends; then it stops within DrainTimeout: requests under way end, agents are
// asked to connect elsewhere. A gateway serves once.
func (g *Gateway) Serve(ctx context.Context, lis net.Listener) error {
	defer g.end()
	if err := g.grpc.Prepare(); err != nil {
		return errors.Join(fmt.Errorf("gateway: %w", err), lis.Close())
	}
	relayed := run.Go(func() error { return g.relay.Run(g.streams) })
	shaken := handshake.Listen(ctx, lis, handshake.Config{TLS: g.http.TLSConfig.Clone(), Timeout: handshakeTimeout, Log: g.log})
	served := run.Go(func() error { return g.http.Serve(shaken) })
	select {
	case err := <-served:
		return fmt.Errorf("gateway: serve: %w", err)
	case <-ctx.Done():
	}
	err := errors.Join(g.stop(ctx), <-relayed)
	if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("gateway: serve: %w", ended))
	}
	return err
}

// stop lets requests end before gRPC is stopped: behind an HTTP server its graceful stop cuts the calls under way.
func (g *Gateway) stop(ctx context.Context) error {
	g.health.Shutdown()
	g.end()
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.cfg.DrainTimeout)
	defer cancel()
	err := g.http.Shutdown(limit)
	if errors.Is(err, context.DeadlineExceeded) {
		g.log.Warn("requests were cut off at the end of the drain time", logx.Duration(g.cfg.DrainTimeout))
		err = g.http.Close()
	}
	g.grpc.Drain()
	if err != nil {
		return fmt.Errorf("gateway: stop: %w", err)
	}
	return nil
}
