// Package batch does together what many want at the same time. Reads gathers questions, Writes gathers items to be written: what
// arrives while one is under way goes with the next one, with all others who have come by then. Nobody waits for company, and the
// busier it is, the less each costs.
package batch

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/certctl/certctl/pkg/run"
)

// The defaults of ReadsConfig.
const (
	DefaultAtOnce  = 2
	DefaultKeys    = 100
	DefaultTimeout = 10 * time.Second
)

// patience is how long a read counts as under way. One that hangs, as when a replica stands still, must not hold up who comes after.
const patience = 100 * time.Millisecond

// ReadsConfig bounds Reads; 0 means the default.
type ReadsConfig struct {
	// AtOnce is how many are under way at once.
	AtOnce int
	// Keys is how many different keys one read has.
	Keys int
	// Timeout bounds a read: it goes on when those who asked have gone.
	Timeout time.Duration
}

// Fetch reads what there is of the keys, which are different. A key that the answer has not was not found.
type Fetch[K comparable, V any] func(ctx context.Context, keys []K) (map[K]V, error)

// Reads gathers questions. A read that answers a question begins after the question was asked, so an answer is never older than its
// question. It is safe for concurrent use.
type Reads[K comparable, V any] struct {
	cfg   ReadsConfig
	fetch Fetch[K, V]

	mu    sync.Mutex
	reads int
	next  *round[K, V] // gathers questions; nil when nobody waits
}

// round is one read, before and after.
type round[K comparable, V any] struct {
	ctx     context.Context //nolint:containedctx // of who asked first: its values go with the read
	keys    map[K]struct{}
	done    chan struct{}
	answers map[K]V
	err     error

	over, late bool // whether it has ended, and whether it gave its place up before
}

// NewReads makes one that asks fetch.
func NewReads[K comparable, V any](cfg ReadsConfig, fetch Fetch[K, V]) *Reads[K, V] {
	if cfg.AtOnce <= 0 {
		cfg.AtOnce = DefaultAtOnce
	}
	if cfg.Keys <= 0 {
		cfg.Keys = DefaultKeys
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	return &Reads[K, V]{cfg: cfg, fetch: fetch}
}

// Get asks for one key; ok is false when there is no such thing. An error of a read is that of all who have asked.
func (g *Reads[K, V]) Get(ctx context.Context, key K) (v V, ok bool, err error) {
	r := g.join(ctx, key)
	select {
	case <-r.done:
	case <-ctx.Done():
		return v, false, context.Cause(ctx)
	}
	if r.err != nil {
		return v, false, r.err
	}
	v, ok = r.answers[key]
	return v, ok, nil
}

// join puts a key into the next read, and begins it unless enough are under way.
func (g *Reads[K, V]) join(ctx context.Context, key K) *round[K, V] {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next == nil || len(g.next.keys) >= g.cfg.Keys {
		r := &round[K, V]{ctx: context.WithoutCancel(ctx), keys: map[K]struct{}{}, done: make(chan struct{})}
		if g.next != nil { // it is full, and goes at once: waiting for a place would let a queue grow
			g.begin()
		}
		g.next = r
	}
	r := g.next
	r.keys[key] = struct{}{}
	if g.reads < g.cfg.AtOnce {
		g.begin()
	}
	return r
}

// begin reads the gathered round; g.mu is held.
func (g *Reads[K, V]) begin() {
	r := g.next
	g.next = nil
	g.reads++
	_ = run.Go(func() error {
		g.read(r)
		return nil
	})
}

// read answers a round, and what has gathered meanwhile after it.
func (g *Reads[K, V]) read(r *round[K, V]) {
	for r != nil {
		this := r                                                   // the timer may come when the next round is under way
		late := time.AfterFunc(patience, func() { g.giveUp(this) }) //nolint:forbidigo // once for this read, and no loop
		r.err = run.Safely(func() error {
			ctx, cancel := context.WithTimeout(r.ctx, g.cfg.Timeout)
			defer cancel()
			keys := make([]K, 0, len(r.keys))
			for k := range maps.Keys(r.keys) {
				keys = append(keys, k)
			}
			var err error
			r.answers, err = g.fetch(ctx, keys)
			return err
		})
		late.Stop()
		close(r.done)
		r = g.following(r)
	}
}

// giveUp lets the next read begin beside one that lasts.
func (g *Reads[K, V]) giveUp(r *round[K, V]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.over {
		return
	}
	r.late = true
	g.reads--
	if g.next != nil && g.reads < g.cfg.AtOnce {
		g.begin()
	}
}

// following gives what has gathered, or gives the place of a read up.
func (g *Reads[K, V]) following(before *round[K, V]) *round[K, V] {
	g.mu.Lock()
	defer g.mu.Unlock()
	before.over = true
	if before.late {
		return nil
	}
	r := g.next
	if r == nil || g.reads > g.cfg.AtOnce { // a round that was full has begun beside the others
		g.reads--
		return nil
	}
	g.next = nil
	return r
}
