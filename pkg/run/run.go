// Package run is the only place where goroutines start. A Group runs the named parts of a program until one fails or
// the context ends, turns panics into errors, and bounds how long stopping may take.
package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// DefaultShutdownTimeout bounds stopping when the Config does not.
const DefaultShutdownTimeout = 30 * time.Second

// ErrStuck is in the error of Wait when parts still ran at the end of the shutdown time.
var ErrStuck = errors.New("still running after the shutdown time")

// errDone is the cause of the group's context once every part has ended.
var errDone = errors.New("group done")

// Config sets up a Group.
type Config struct {
	// ShutdownTimeout bounds the time from the end of the context to the return of Wait; 0 means
	// DefaultShutdownTimeout.
	ShutdownTimeout time.Duration
}

// Group is a set of named functions that live and end together.
type Group struct {
	ctx     context.Context //nolint:containedctx // a group is the owner of the life of its parts
	cancel  context.CancelCauseFunc
	timeout time.Duration
	wg      sync.WaitGroup

	mu      sync.Mutex
	running map[string]int
	errs    []error
}

// NewGroup makes a group whose context ends with ctx, or when the first part fails; context.Cause then tells which
// and why.
func NewGroup(ctx context.Context, cfg Config) *Group {
	if cfg.ShutdownTimeout <= 0 {
		cfg.ShutdownTimeout = DefaultShutdownTimeout
	}
	ctx, cancel := context.WithCancelCause(ctx)
	return &Group{ctx: ctx, cancel: cancel, timeout: cfg.ShutdownTimeout, running: make(map[string]int)}
}

// Context gives the context that the parts get.
func (g *Group) Context() context.Context { return g.ctx }

// Go starts a part. A part that returns nil has done its work; one that returns an error or panics ends the group.
// Once the context has ended, a context error is the normal way to return.
func (g *Group) Go(name string, f func(ctx context.Context) error) {
	g.wg.Add(1)
	g.note(name, 1)
	go func() {
		defer g.wg.Done()
		defer g.note(name, -1)
		g.finish(name, Safely(func() error { return f(g.ctx) }))
	}()
}

// Stop ends the group's context from inside; cause may be nil.
func (g *Group) Stop(cause error) {
	if cause == nil {
		cause = context.Canceled
	}
	g.cancel(cause)
}

// Wait returns when every part has ended, or the shutdown time is over; then the error is ErrStuck with the names of
// those that still run. It joins the errors of the parts, the one that ended the group first.
func (g *Group) Wait() error {
	ended := make(chan struct{})
	go func() {
		g.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-g.ctx.Done():
		g.waitBounded(ended)
	}
	g.cancel(errDone)
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.errs...)
}

func (g *Group) waitBounded(ended <-chan struct{}) {
	timer := time.NewTimer(g.timeout)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
		g.mu.Lock()
		defer g.mu.Unlock()
		g.errs = append(g.errs, fmt.Errorf("%w of %v: %s", ErrStuck, g.timeout, strings.Join(g.names(), ", ")))
	}
}

// finish notes how a part ended. The cancellation that every part sees at the end is no error of theirs.
func (g *Group) finish(name string, err error) {
	if err == nil || g.ctx.Err() != nil && g.isCancellation(err) {
		return
	}
	err = fmt.Errorf("%s: %w", name, err)
	g.mu.Lock()
	g.errs = append(g.errs, err)
	g.mu.Unlock()
	g.cancel(err)
}

func (g *Group) isCancellation(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, g.ctx.Err()) || errors.Is(err, context.Cause(g.ctx))
}

func (g *Group) note(name string, delta int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running[name] += delta
	if g.running[name] == 0 {
		delete(g.running, name)
	}
}

// names lists the parts that run; g.mu is held.
func (g *Group) names() []string {
	names := make([]string, 0, len(g.running))
	for name := range g.running {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Go runs f beside the caller, who must receive its result: the channel gives exactly one value, and a panic comes
// as a *PanicError. It is for the few places that wait for one call under a bound of their own.
func Go(f func() error) <-chan error {
	result := make(chan error, 1)
	go func() { result <- Safely(f) }()
	return result
}
