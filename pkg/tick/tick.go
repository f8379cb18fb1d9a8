// Package tick is the one place where time makes something happen again and again: a ticker with jitter, so that
// replicas and loops started together drift apart, and a group that runs named loops with a budget, metrics and
// recovery from panics.
package tick

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

// DefaultJitter is the share of the interval by which a tick may come early or late.
const DefaultJitter = 0.10

// maxJitter keeps the early edge of the envelope above zero: a wait of nothing would be a busy loop.
const maxJitter = 0.999

// Ticker sends the time on C after each interval, every time lengthened or shortened by up to jitter×interval. The mean
// of the intervals is the interval asked for. The first tick comes after one such interval.
//
// Ticks are dropped, not queued: while the reader is away at most one tick waits for it.
type Ticker struct {
	// C delivers the ticks. Stop closes it.
	C <-chan time.Time

	c        chan time.Time
	interval time.Duration
	jitter   float64
	stop     chan struct{}
	stopOnce sync.Once
	done     chan struct{}
}

// New starts a ticker. The jitter is a share of the interval: 0.1 is ±10 %. A negative jitter (or NaN) counts as 0, and
// one of 1 or more as a little less than 1. An interval that is not positive is an error. The caller must call Stop.
func New(interval time.Duration, jitter float64) (*Ticker, error) {
	if interval <= 0 {
		return nil, fmt.Errorf("start ticker: interval must be positive, got %s", interval)
	}
	c := make(chan time.Time, 1)
	t := &Ticker{
		C:        c,
		c:        c,
		interval: interval,
		jitter:   clampJitter(jitter),
		stop:     make(chan struct{}),
		done:     make(chan struct{}),
	}
	go t.loop()
	return t, nil
}

// Stop ends the ticker, waits for its goroutine and closes C; a tick that nobody took is thrown away. It may be called
// more than once, and by several goroutines.
func (t *Ticker) Stop() {
	t.stopOnce.Do(func() { close(t.stop) })
	<-t.done
}

func (t *Ticker) loop() {
	defer close(t.done)
	defer t.closeEmpty()
	timer := time.NewTimer(Jittered(t.interval, t.jitter))
	defer timer.Stop()
	for {
		select {
		case <-t.stop:
			return
		case now := <-timer.C:
			select {
			case t.c <- now:
			default:
			}
			timer.Reset(Jittered(t.interval, t.jitter))
		}
	}
}

func (t *Ticker) closeEmpty() {
	select {
	case <-t.c:
	default:
	}
	close(t.c)
}

// Wait waits for d, or until ctx ends, whose cause it then returns.
func Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// Jittered returns a duration drawn evenly from d×(1−jitter) to d×(1+jitter), at least one nanosecond. The jitter is
// clamped as in New.
func Jittered(d time.Duration, jitter float64) time.Duration {
	jitter = clampJitter(jitter)
	if jitter == 0 {
		return max(d, 1)
	}
	f := float64(d) * (1 + jitter*(2*rand.Float64()-1)) //nolint:gosec // jitter is no secret
	if f >= math.MaxInt64 {
		return math.MaxInt64
	}
	return max(time.Duration(f), 1)
}

func clampJitter(j float64) float64 {
	switch {
	case math.IsNaN(j) || j < 0:
		return 0
	case j > maxJitter:
		return maxJitter
	default:
		return j
	}
}
