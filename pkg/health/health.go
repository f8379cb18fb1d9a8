// Package health tells whether a program is alive and ready: named checks with cached results for /ready, and the
// gRPC health service (grpc.health.v1) for peers and load balancers.
package health

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/certctl/certctl/pkg/errs"
)

// The defaults of Config.
const (
	DefaultCacheFor = 2 * time.Second
	DefaultTimeout  = 3 * time.Second
)

// ErrStopping is what readiness says once Shutdown was called.
var ErrStopping = errors.New("shutting down")

// Config sets up a Health.
type Config struct {
	// CacheFor is how long a result stands, so that probes cannot load what they probe; 0 means DefaultCacheFor.
	CacheFor time.Duration
	// Timeout bounds one run of a check; 0 means DefaultTimeout.
	Timeout time.Duration
}

// Check tells what is wrong, and nil when nothing is. It should heed ctx.
type Check func(ctx context.Context) error

// Health is the health of one program.
type Health struct {
	cfg  Config
	grpc *health.Server

	mu       sync.Mutex
	checks   []*check
	stopping bool
}

// New makes a Health without checks: ready, but NOT_SERVING over gRPC until Serving is called.
func New(cfg Config) *Health {
	if cfg.CacheFor <= 0 {
		cfg.CacheFor = DefaultCacheFor
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	h := &Health{cfg: cfg, grpc: health.NewServer()}
	h.grpc.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	return h
}

// Add adds a readiness check; a name may be used once.
func (h *Health) Add(name string, f Check) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if slices.ContainsFunc(h.checks, func(c *check) bool { return c.name == name }) {
		return fmt.Errorf("readiness check %q is there already", name)
	}
	h.checks = append(h.checks, &check{name: name, f: f, cfg: h.cfg})
	return nil
}

// GRPC gives the server of grpc.health.v1.Health. Check answers NOT_SERVING for the server as a whole, "", also while a
// readiness check fails.
func (h *Health) GRPC() grpc_health_v1.HealthServer { return &grpcServer{Server: h.grpc, health: h} }

type grpcServer struct {
	*health.Server
	health *Health
}

// Check implements grpc_health_v1.HealthServer.
func (s *grpcServer) Check(ctx context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	answer, err := s.Server.Check(ctx, r)
	if err != nil || r.GetService() != "" || s.health.Ready(ctx).Ready {
		return answer, err
	}
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_NOT_SERVING}, nil
}

// Serving marks the gRPC services as SERVING; "" is the server as a whole.
func (h *Health) Serving(services ...string) {
	for _, s := range services {
		h.grpc.SetServingStatus(s, grpc_health_v1.HealthCheckResponse_SERVING)
	}
}

// Shutdown makes everything NOT_SERVING and not ready, for good.
func (h *Health) Shutdown() {
	h.mu.Lock()
	h.stopping = true
	h.mu.Unlock()
	h.grpc.Shutdown()
}

// Result is how one check went.
type Result struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Error is what may be shown of the error.
	Error string `json:"error,omitempty"`
	// Time is when the check began.
	Time time.Time `json:"time"`
	// Seconds is how long it took.
	Seconds float64 `json:"seconds"`

	err error
}

// Report is the readiness of a program.
type Report struct {
	Ready bool `json:"ready"`
	// Stopping tells that the program is not ready because it is on its way out.
	Stopping bool     `json:"stopping,omitempty"`
	Checks   []Result `json:"checks"`
}

// Err gives nil when ready, else the errors by check, with their causes, for logs.
func (r Report) Err() error {
	var all []error
	if r.Stopping {
		all = append(all, ErrStopping)
	}
	for _, c := range r.Checks {
		if !c.OK {
			all = append(all, fmt.Errorf("%s: %w", c.Name, c.err))
		}
	}
	return errors.Join(all...)
}

// Ready gives the readiness, from the cache where that is fresh. The checks run side by side.
func (h *Health) Ready(ctx context.Context) Report {
	h.mu.Lock()
	checks, stopping := slices.Clone(h.checks), h.stopping
	h.mu.Unlock()

	results := make([]Result, len(checks))
	var g errgroup.Group
	for i, c := range checks {
		g.Go(func() error {
			results[i] = c.result(ctx)
			return nil
		})
	}
	_ = g.Wait() // the functions above give no errors
	slices.SortFunc(results, func(a, b Result) int { return strings.Compare(a.Name, b.Name) })
	failed := slices.ContainsFunc(results, func(r Result) bool { return !r.OK })
	return Report{Ready: !stopping && !failed, Stopping: stopping, Checks: results}
}

// newResult tells how a check went.
func newResult(name string, start time.Time, err error) Result {
	r := Result{Name: name, OK: err == nil, Time: start.UTC(), Seconds: time.Since(start).Seconds(), err: err}
	if err != nil {
		r.Error = shown(err)
	}
	return r
}

// shown gives what a probe may see of an error. A probe has no credentials, so the causes stay in the logs.
func shown(err error) string {
	if errors.Is(err, errTimeout) {
		return errTimeout.Error()
	}
	return errs.From(err).Message()
}
