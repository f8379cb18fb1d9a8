package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/run"
)

// The bounds of the HTTP server. Its clients are scrapers and probes in the same network, with small requests.
const (
	scrapeTimeout     = 10 * time.Second
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	writeTimeout      = 15 * time.Second
	idleTimeout       = 90 * time.Second
	shutdownTimeout   = 3 * time.Second
	maxHeaderBytes    = 16 << 10
)

// Config sets up a Server.
type Config struct {
	// Addr is what Run listens on, such as "127.0.0.1:9090".
	Addr string
}

// Deps is what a Server works with.
type Deps struct {
	Logger *zap.Logger
	// Gatherers are the registries shown at /metrics.
	Gatherers []prometheus.Gatherer
	// Routes are further handlers by pattern, such as "GET /ready".
	Routes map[string]http.Handler
}

// Server is the HTTP server for operators: /metrics, and the probes in Routes. It has no authentication and belongs
// on an address that only the scraper reaches.
type Server struct {
	addr string
	http *http.Server
}

// NewServer makes a server.
func NewServer(cfg Config, deps Deps) *Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", Handler(deps.Logger, deps.Gatherers...))
	for pattern, h := range deps.Routes {
		mux.Handle(pattern, h)
	}
	return &Server{addr: cfg.Addr, http: &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          zap.NewStdLog(deps.Logger.WithOptions(zap.Fields(zap.String(logx.KeyLogger, "metrics")))),
	}}
}

// Run listens on the configured address and serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", s.addr)
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	return s.Serve(ctx, lis)
}

// Serve serves on lis until ctx ends; then it lets requests end for a few seconds.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	served := run.Go(func() error { return s.http.Serve(lis) })
	select {
	case err := <-served:
		return fmt.Errorf("serve metrics: %w", err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := s.http.Shutdown(end); err != nil {
		return fmt.Errorf("stop serving metrics: %w", errors.Join(err, s.http.Close(), unlessClosed(<-served)))
	}
	return unlessClosed(<-served)
}

// unlessClosed drops what Serve returns after a normal stop.
func unlessClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
