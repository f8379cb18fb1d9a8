package health

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/certctl/certctl/pkg/run"
)

// errTimeout is the result of a check that does not answer.
var errTimeout = errors.New("check timed out")

// check is one named check with its last result. At most one run of it is under way: a check that hangs costs one
// goroutine, however often it is asked for.
type check struct {
	name string
	f    Check
	cfg  Config

	mu      sync.Mutex
	last    Result
	expires time.Time
	running chan struct{} // closed at the end of the run under way; nil when there is none
}

// result gives the last result while it is fresh, else that of a new run.
func (c *check) result(ctx context.Context) Result {
	start := time.Now()
	c.mu.Lock()
	if c.running == nil && start.Before(c.expires) {
		defer c.mu.Unlock()
		return c.last
	}
	if c.running == nil {
		c.start(context.WithoutCancel(ctx), start)
	}
	running := c.running
	c.mu.Unlock()

	timer := time.NewTimer(c.cfg.Timeout)
	defer timer.Stop()
	select {
	case <-running:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.last
	case <-timer.C:
		return newResult(c.name, start, errTimeout)
	case <-ctx.Done():
		return newResult(c.name, start, context.Cause(ctx))
	}
}

// start begins a run; c.mu is held. The run outlives the probe that asked for it, so that the next one finds its
// result.
func (c *check) start(ctx context.Context, begin time.Time) {
	done := make(chan struct{})
	c.running = done
	run.Go(func() error {
		ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
		defer cancel()
		err := run.Safely(func() error { return c.f(ctx) })
		c.mu.Lock()
		defer c.mu.Unlock()
		c.last, c.expires, c.running = newResult(c.name, begin, err), time.Now().Add(c.cfg.CacheFor), nil
		close(done)
		return nil
	})
}
