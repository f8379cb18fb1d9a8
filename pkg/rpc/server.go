package rpc

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"buf.build/go/protovalidate"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/certctl/certctl/pkg/health"
	"github.com/certctl/certctl/pkg/secretbox"
)

// The defaults of ServerConfig.
const (
	DefaultUnaryTimeout  = time.Minute
	DefaultStreamTimeout = 10 * time.Minute
	DefaultDrainTimeout  = 10 * time.Second
	DefaultDrainNotice   = 2 * time.Second
)

// Fixed bounds of a server's connections.
const (
	maxHeaderListSize = 64 << 10
	keepaliveTime     = 30 * time.Second
	keepaliveTimeout  = 10 * time.Second
	keepaliveMinTime  = 10 * time.Second
	handshakeTimeout  = 10 * time.Second
	// streamWorkers take the calls one after the other, with stacks that have grown already: a new goroutine's would grow several
	// times on its way through the chain. When all are busy a call gets a goroutine of its own.
	streamWorkers = 16
)

// ServerConfig sets up a server. Durations of 0 mean the defaults.
type ServerConfig struct {
	// Service is the name of the service, such as "inventory".
	Service string
	// InternalSecret is what peer tokens derive from. It is needed unless Deps bring an Authenticator.
	InternalSecret secretbox.Secret
	// TLS is the server's TLS; TLS 1.3 is the least. Without it the server serves in-memory listeners only.
	TLS *tls.Config
	// TLSByListener says that the listeners, or the HTTP server in front of ServeHTTP, already speak TLS.
	TLSByListener bool
	// UnaryTimeout and StreamTimeout bound a call, whatever deadline the client has set.
	UnaryTimeout, StreamTimeout time.Duration
	// LongLivedStreams are full names of streams without a deadline. They must watch Draining, and the stop of the
	// server does not wait for them longer than DrainNotice.
	LongLivedStreams []string
	// DrainTimeout bounds the stop; DrainNotice is how long long-lived streams have to say good-bye.
	DrainTimeout, DrainNotice time.Duration
	// Limits bounds the rate of calls; the zero value does not.
	Limits Limits
	// MaxConnectionAge makes clients connect anew, and so find new replicas; 0 is never. Calls under way go on.
	MaxConnectionAge time.Duration
	// MaxConcurrentStreams bounds the calls of one connection; 0 is without bound.
	MaxConcurrentStreams uint32
	// Tracing switches OpenTelemetry on, with the providers of the process.
	Tracing bool
}

// ServerDeps is what a server works with.
type ServerDeps struct {
	Logger   *zap.Logger
	Registry prometheus.Registerer
	Table    AuthzTable
	// Authenticator is nil for a service behind the gateway, which knows its peers by the internal secret.
	Authenticator Authenticator
	// Health is the health of the program; nil makes one for this server alone.
	Health *health.Health
	// Validator is nil for the global validator of protovalidate.
	Validator protovalidate.Validator
	// Explain gives a code to an error of what the service stands on, such as its database, and leaves others as they
	// are. It may be nil.
	Explain func(error) error
	// Unknown handles methods that are in the table and not registered here: a proxy has it. It may be nil.
	Unknown grpc.StreamHandler
}

// Server is a gRPC server with the chain of this package. Register services on it, then call Serve.
type Server struct {
	*grpc.Server

	cfg         ServerConfig
	deps        ServerDeps
	table       AuthzTable
	longLived   map[string]bool
	metrics     *serverMetrics
	peerLimit   *limiter
	callerLimit *limiter
	inFlight    *inFlight
	draining    chan struct{}
	drainOnce   sync.Once
}

// NewServer makes a server. That the table is complete is checked by Prepare, when all services are registered.
func NewServer(cfg ServerConfig, deps ServerDeps) (*Server, error) {
	cfg.setDefaults()
	if err := deps.complete(cfg); err != nil {
		return nil, err
	}
	table := deps.Table.withHealth()
	metrics, err := newServerMetrics(deps.Registry, table)
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, deps: deps, table: table, metrics: metrics,
		longLived:   make(map[string]bool, len(cfg.LongLivedStreams)),
		peerLimit:   newLimiter(cfg.Limits.PeerRate, cfg.Limits.PeerBurst),
		callerLimit: newLimiter(cfg.Limits.CallerRate, cfg.Limits.CallerBurst),
		inFlight:    newInFlight(),
		draining:    make(chan struct{}),
	}
	for _, m := range cfg.LongLivedStreams {
		s.longLived[m] = true
	}
	s.Server = grpc.NewServer(s.options()...)
	grpc_health_v1.RegisterHealthServer(s.Server, deps.Health.GRPC())
	return s, nil
}

func (c *ServerConfig) setDefaults() {
	c.UnaryTimeout = cmp.Or(c.UnaryTimeout, DefaultUnaryTimeout)
	c.StreamTimeout = cmp.Or(c.StreamTimeout, DefaultStreamTimeout)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, DefaultDrainTimeout)
	c.DrainNotice = min(cmp.Or(c.DrainNotice, DefaultDrainNotice), c.DrainTimeout)
}

// complete checks what must be there and fills in what need not be.
func (d *ServerDeps) complete(cfg ServerConfig) error {
	if cfg.Service == "" || d.Logger == nil || d.Registry == nil {
		return errors.New("rpc server: service name, logger and registry are needed")
	}
	if d.Authenticator == nil {
		peers, err := NewPeerAuthenticator(cfg.InternalSecret)
		if err != nil {
			return fmt.Errorf("rpc server: %w", err)
		}
		d.Authenticator = peers
	}
	if d.Health == nil {
		d.Health = health.New(health.Config{})
	}
	if d.Validator == nil {
		d.Validator = protovalidate.GlobalValidator
	}
	return nil
}

func (s *Server) options() []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessageSize),
		grpc.MaxSendMsgSize(MaxAnswerSize),
		grpc.MaxHeaderListSize(maxHeaderListSize),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout, MaxConnectionAge: s.cfg.MaxConnectionAge,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMinTime, PermitWithoutStream: true}),
	}
	if s.cfg.MaxConcurrentStreams > 0 {
		opts = append(opts, grpc.MaxConcurrentStreams(s.cfg.MaxConcurrentStreams))
	}
	if !s.cfg.TLSByListener { // else an HTTP server has goroutines for the calls
		opts = append(opts, grpc.NumStreamWorkers(streamWorkers))
	}
	if s.cfg.TLS != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(atLeastTLS13(s.cfg.TLS))))
	}
	if s.cfg.Tracing {
		opts = append(opts, grpc.StatsHandler(otelgrpc.NewServerHandler()))
	}
	if s.deps.Unknown != nil {
		opts = append(opts, grpc.UnknownServiceHandler(s.deps.Unknown))
	}
	return append(opts, chainOptions(s.chain())...)
}

// atLeastTLS13 gives a copy that speaks nothing older than TLS 1.3 (RFC 8446).
func atLeastTLS13(cfg *tls.Config) *tls.Config {
	c := cfg.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS13)
	return c
}

// Prepare checks the server when all services are registered, and marks it as serving. Serve calls it; a server
// behind ServeHTTP calls it itself.
func (s *Server) Prepare() error {
	if err := s.deps.Table.CheckComplete(s.Server); err != nil {
		return fmt.Errorf("rpc server %s: %w", s.cfg.Service, err)
	}
	if err := s.checkLongLived(); err != nil {
		return fmt.Errorf("rpc server %s: %w", s.cfg.Service, err)
	}
	s.metrics.server.InitializeMetrics(s.Server)
	s.deps.Health.Serving("")
	for service := range s.GetServiceInfo() {
		s.deps.Health.Serving(service)
	}
	return nil
}

// checkLongLived refuses a name that is no method: a slip of the pen would put a deadline on the real one.
func (s *Server) checkLongLived() error {
	for _, m := range s.cfg.LongLivedStreams {
		if _, ok := s.table[m]; !ok {
			return fmt.Errorf("long-lived stream %s is not in the authorisation table", m)
		}
	}
	return nil
}

// checkListener refuses to serve in the clear outside of the process.
func (s *Server) checkListener(lis net.Listener) error {
	if s.cfg.TLS != nil || s.cfg.TLSByListener || lis.Addr().Network() == memoryNetwork {
		return nil
	}
	return fmt.Errorf("rpc server %s: listener %s needs TLS", s.cfg.Service, lis.Addr())
}

// Health gives the health of the server, to which readiness checks can be added.
func (s *Server) Health() *health.Health { return s.deps.Health }

// Draining is closed when the server begins to stop. Long-lived streams then tell their clients to come back later,
// and return.
func (s *Server) Draining() <-chan struct{} { return s.draining }
