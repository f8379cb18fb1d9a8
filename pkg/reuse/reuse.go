// Package reuse answers with a value that was found a while ago, when finding it out is costly: how old an answer may be follows
// from what it costs. What is found out at once is never reused, so that a small installation sees all as it is. Where a loop renews the
// value (Loop), nobody who asks waits for a costly one.
package reuse

import (
	"context"
	"sync"
	"time"

	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/tick"
)

// The defaults of Config.
const (
	DefaultFree    = 10 * time.Millisecond
	DefaultShare   = 20
	DefaultFresh   = 30 * time.Second
	DefaultStale   = 5 * time.Minute
	DefaultTimeout = 30 * time.Second
)

// Config bounds the age of answers; 0 means the default.
type Config struct {
	// Free is what finding a value may take for it to be found anew for each question.
	Free time.Duration
	// Share says how long a costly value is fresh: so many times as long as finding it has taken, so that finding it keeps nothing
	// busy for more than one part in Share, however many ask.
	Share int
	// Fresh is the longest that it is.
	Fresh time.Duration
	// Stale is the age, counted from when a find began, up to which a value that is not fresh is still the answer, while one find is
	// under way. Those who ask later wait for that find.
	Stale time.Duration
	// Timeout bounds a find: it goes on when those who asked have gone.
	Timeout time.Duration
}

func (c *Config) setDefaults() {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{{&c.Free, DefaultFree}, {&c.Fresh, DefaultFresh}, {&c.Stale, DefaultStale}, {&c.Timeout, DefaultTimeout}} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	if c.Share <= 0 {
		c.Share = DefaultShare
	}
}

// Find finds the value out.
type Find[T any] func(ctx context.Context) (T, error)

// Value is a value that changes without telling. It is safe for concurrent use; those who get it share it, and do not change it.
type Value[T any] struct {
	cfg  Config
	find Find[T]

	mu    sync.Mutex
	kept  *kept[T]   // nil until it was found once
	under *flight[T] // the find that is under way and shared; nil when there is none
}

// kept is what was found last.
type kept[T any] struct {
	value T
	began time.Time
	// cost is how long it takes to find. It rises to the double at most each time: one slow answer does not make it costly.
	cost time.Duration
}

// flight is a find that many may wait for.
type flight[T any] struct {
	done chan struct{}
	kept *kept[T]
	err  error
}

// New makes a value that find finds out.
func New[T any](cfg Config, find Find[T]) *Value[T] {
	cfg.setDefaults()
	return &Value[T]{cfg: cfg, find: find}
}

// Get answers the value, and the time at which finding it began. Errors are those of the find, or of ctx; they are not remembered.
func (v *Value[T]) Get(ctx context.Context) (value T, at time.Time, err error) {
	v.mu.Lock()
	k := v.kept
	switch age := v.age(); {
	case k != nil && k.cost <= v.cfg.Free:
		v.mu.Unlock()
		k, err = v.look(ctx)
	case k != nil && age < v.fresh(k.cost):
		v.mu.Unlock()
	default:
		f, first := v.share(ctx)
		v.mu.Unlock()
		if k == nil || age >= v.cfg.Stale {
			k, err = f.wait(ctx)
		}
		if err == nil && !first && k.cost <= v.cfg.Free { // it may have begun before the question
			k, err = v.look(ctx)
		}
	}
	if err != nil {
		return value, at, err
	}
	return k.value, k.began, nil
}

// Loop keeps the value known: it finds it when it starts, and then so often that what is kept is never too old to be the answer, even
// if nobody asks. With the defaults that is every 3 minutes; what takes a second keeps nothing busy for more than 0.6 %. Who asks before
// it was found once waits for the find that the loop has begun.
func (v *Value[T]) Loop(name, description string) tick.Loop {
	atOnce := tick.NewKicker()
	atOnce.Kick()
	finds := firstFinds
	return tick.Loop{Name: name, Description: description, Interval: v.cfg.Stale * 3 / 5, Kick: atOnce.C(), Run: func(ctx context.Context) (tick.Result, error) {
		for costly := true; costly && finds > 0; finds-- {
			v.mu.Lock()
			f, _ := v.share(ctx)
			v.mu.Unlock()
			k, err := f.wait(ctx)
			if err != nil {
				return tick.Result{}, err
			}
			costly = k.cost > v.cfg.Free
		}
		finds = 1
		return tick.Result{}, nil
	}}
}

// firstFinds is how often a loop finds what seems costly when it starts: caches are cold then, and what a find takes says little.
const firstFinds = 3

// age is that of what is kept; v.mu is held.
func (v *Value[T]) age() time.Duration {
	if v.kept == nil {
		return 0
	}
	return time.Since(v.kept.began)
}

// fresh is how long a value is that costs so much.
func (v *Value[T]) fresh(cost time.Duration) time.Duration {
	return min(cost*time.Duration(v.cfg.Share), v.cfg.Fresh)
}

// share gives the find that is under way, or begins it; v.mu is held.
func (v *Value[T]) share(ctx context.Context) (f *flight[T], first bool) {
	if v.under != nil {
		return v.under, false
	}
	f = &flight[T]{done: make(chan struct{})}
	v.under = f
	ctx = context.WithoutCancel(ctx)
	_ = run.Go(func() error {
		f.err = run.Safely(func() (err error) {
			ctx, cancel := context.WithTimeout(ctx, v.cfg.Timeout)
			defer cancel()
			f.kept, err = v.look(ctx)
			return err
		})
		v.mu.Lock()
		v.under = nil
		v.mu.Unlock()
		close(f.done)
		return nil
	})
	return f, true
}

// wait gives what a find has found.
func (f *flight[T]) wait(ctx context.Context) (*kept[T], error) {
	select {
	case <-f.done:
		return f.kept, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// look finds the value out, and keeps it unless what is kept was begun later.
func (v *Value[T]) look(ctx context.Context) (*kept[T], error) {
	began := time.Now()
	value, err := v.find(ctx)
	if err != nil {
		return nil, err
	}
	cost := time.Since(began)
	v.mu.Lock()
	defer v.mu.Unlock()
	if old := v.kept; old != nil {
		cost = min(cost, 2*max(old.cost, v.cfg.Free/leastShare))
	}
	k := &kept[T]{value: value, began: began, cost: cost}
	if v.kept == nil || !v.kept.began.After(began) {
		v.kept = k
	}
	return k, nil
}

// leastShare of what is free is the least that a cost counts as, so that it can grow from there.
const leastShare = 8
