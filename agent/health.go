package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/run"
)

const (
	// healthTimeout bounds a request for the health, and the end of the listener.
	healthTimeout = 5 * time.Second
	maxHeader     = 8 << 10
)

// condition is what the agent says of itself. It is safe for concurrent use.
type condition struct {
	mu        sync.Mutex
	enrolled  bool
	connected bool
	// last is why it is not as it should be.
	last error
}

func (c *condition) set(enrolled, connected bool, last error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enrolled, c.connected, c.last = enrolled, connected, last
}

// problem is nil when the agent is enrolled and connected.
func (c *condition) problem() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.connected:
		return nil
	case c.enrolled && c.last == nil:
		return errors.New("not connected: the server has not answered yet")
	case c.enrolled:
		return fmt.Errorf("not connected: %w", c.last)
	case c.last == nil:
		return errors.New("not enrolled yet: the server has not answered yet")
	default:
		return fmt.Errorf("not enrolled yet: %w", c.last)
	}
}

// handler answers probes: /healthz while the process answers, since a restart helps no server that is away; /readyz when the
// agent can be given work.
func (c *condition) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "alive") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := c.problem(); err != nil {
			say(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		say(w, http.StatusOK, "enrolled and connected")
	})
	return mux
}

func say(w http.ResponseWriter, status int, sentence string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = fmt.Fprintln(w, sentence) // the prober left; nobody is there to be told
}

// serveHealth listens if the settings say so, until the answered function is called.
func (a *agent) serveHealth(ctx context.Context) (stop func(), err error) {
	if a.cfg.HealthListen == "" {
		return func() {}, nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.cfg.HealthListen)
	if err != nil {
		return nil, fmt.Errorf("--health-listen: %w", err)
	}
	server := &http.Server{Handler: a.condition.handler(), ReadTimeout: healthTimeout, WriteTimeout: healthTimeout, IdleTimeout: time.Minute,
		MaxHeaderBytes: maxHeader, ErrorLog: zap.NewStdLog(a.log)}
	served := run.Go(func() error { return server.Serve(listener) })
	a.log.Info("health is told", zap.String("address", listener.Addr().String()))
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthTimeout)
		defer cancel()
		err := server.Shutdown(ctx)
		if served := <-served; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		if err != nil {
			a.log.Warn("health was not told to the end", zap.Error(err))
		}
	}, nil
}
