package tick

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/run"
)

type loop struct {
	Loop
	log     *zap.Logger
	metrics *metrics

	mu    sync.Mutex
	state State
}

func (l *loop) snapshot() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.state
	s.Name, s.Description, s.Interval = l.Name, l.Description, l.Interval
	return s
}

// serve runs the loop until ctx ends.
func (l *loop) serve(ctx context.Context, spread time.Duration) error {
	if !l.wait(ctx, nil, initialDelay(l.Interval, spread)) {
		return nil
	}
	ticker, err := New(l.Interval, DefaultJitter)
	if err != nil {
		return fmt.Errorf("loop %s: %w", l.Name, err)
	}
	defer ticker.Stop()
	for {
		started := time.Now()
		kicked := l.runWatched(ctx)
		dropTick(ticker)
		if !kicked && !l.wait(ctx, ticker.C, 0) {
			return nil
		}
		if ctx.Err() != nil || !l.keepFloor(ctx, started) {
			return nil
		}
	}
}

// dropTick throws away a tick that came during the run: it is skipped, not made up for.
func dropTick(t *Ticker) {
	select {
	case <-t.C:
	default:
	}
}

// wait blocks until a tick, a kick, or the delay when there are no ticks. It is false when ctx has ended.
func (l *loop) wait(ctx context.Context, ticks <-chan time.Time, delay time.Duration) bool {
	if ticks == nil {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		ticks = timer.C
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-ticks:
			return ctx.Err() == nil
		case _, open := <-l.Kick:
			if open {
				return ctx.Err() == nil
			}
			l.Kick = nil
		}
	}
}

// keepFloor waits until the floor has passed since the start of the last run.
func (l *loop) keepFloor(ctx context.Context, started time.Time) bool {
	left := l.Floor - time.Since(started)
	if left <= 0 {
		return true
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// runWatched runs once and tells whether the loop was kicked meanwhile.
func (l *loop) runWatched(ctx context.Context) (kicked bool) {
	done := run.Go(func() error {
		l.runOnce(ctx)
		return nil
	})
	for {
		select {
		case err := <-done:
			if err != nil { // a panic outside of Loop.Run, which protect watches
				l.log.Error("keeping the state of the loop failed", zap.Error(err))
			}
			return kicked
		case _, open := <-l.Kick:
			if !open {
				l.Kick = nil
				continue
			}
			kicked = true
		}
	}
}

func (l *loop) runOnce(parent context.Context) {
	ctx, cancel := context.WithTimeout(parent, l.Budget)
	defer cancel()
	l.setRunning()
	started := time.Now()
	res, err := l.protect(ctx)
	if err != nil && parent.Err() != nil && panicOf(err) == nil {
		err = nil // the end of the process is no failure of the loop
	}
	l.record(res, err, time.Since(started))
}

// protect turns a panic into an error, so that one bad row does not take the process down.
func (l *loop) protect(ctx context.Context) (res Result, err error) {
	err = run.Safely(func() (err error) {
		res, err = l.Run(ctx)
		return err
	})
	return res, err
}

// panicOf returns the panic that ended a run, or nil.
func panicOf(err error) *run.PanicError {
	p, _ := errors.AsType[*run.PanicError](err)
	return p
}

func (l *loop) setRunning() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Running = true
}

func (l *loop) record(res Result, err error, took time.Duration) {
	p := panicOf(err)
	switch {
	case p != nil:
		l.log.Error("loop panicked", zap.Error(p), zap.ByteString("stack", p.Stack))
	case err != nil:
		l.log.Warn("loop run failed", zap.Error(err), zap.Duration("duration", took))
	}
	l.metrics.observe(l.Name, res, err, took)
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.state
	s.Running, s.LastRun, s.LastDuration, s.LastRows, s.Note = false, time.Now(), took, res.Rows, res.Note
	s.Runs++
	s.LastError = ""
	if err != nil {
		s.LastError = err.Error()
		s.Errors++
	}
	if p != nil {
		s.Panics++
	}
}
