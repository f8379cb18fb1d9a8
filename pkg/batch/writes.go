package batch

import (
	"context"
	"errors"
	"sync"
)

// errPanic is the outcome of items that were lost in a panic of another caller.
var errPanic = errors.New("the write of this and other items has panicked")

// Outcome is what became of one item.
type Outcome[R any] struct {
	Value R
	Err   error
}

// Writes gathers items of one kind that share a write: a transaction costs about the same for one row as for fifty. At any
// time one of its callers writes, for itself and for those who wait.
type Writes[T, R any] struct {
	most  int
	write func(ctx context.Context, items []T) []Outcome[R]

	mu      sync.Mutex
	writing bool
	queue   []*call[T, R]
}

// call is an item on its way.
type call[T, R any] struct {
	item    T
	outcome Outcome[R]
	lead    chan struct{} // closed when the caller is to write
	done    chan struct{} // closed when the outcome is there
}

// NewWrites makes one that writes with write, which gets at most that many items, in the order in which they came, and answers each.
// The context that it has is that of one of the callers, without its end: one who leaves takes the others' items along with nobody.
func NewWrites[T, R any](most int, write func(ctx context.Context, items []T) []Outcome[R]) *Writes[T, R] {
	return &Writes[T, R]{most: most, write: write}
}

// Do has an item written. An item whose caller leaves before it is its turn is not written; afterwards its outcome is waited for.
func (g *Writes[T, R]) Do(ctx context.Context, item T) (R, error) {
	c := &call[T, R]{item: item, lead: make(chan struct{}), done: make(chan struct{})}
	g.enter(c)
	select {
	case <-c.done:
	case <-c.lead:
		g.work(ctx)
	case <-ctx.Done():
		if g.leave(c) {
			var none R
			return none, ctx.Err()
		}
		select {
		case <-c.done:
		case <-c.lead:
			g.work(ctx)
		}
	}
	return c.outcome.Value, c.outcome.Err
}

func (g *Writes[T, R]) enter(c *call[T, R]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue = append(g.queue, c)
	if !g.writing {
		g.writing = true
		close(c.lead)
	}
}

// leave takes a call out of the queue; false when it has been taken, or is to write.
func (g *Writes[T, R]) leave(c *call[T, R]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-c.lead:
		return false
	default:
	}
	for i, other := range g.queue {
		if other == c {
			g.queue = append(g.queue[:i:i], g.queue[i+1:]...)
			return true
		}
	}
	return false
}

// work writes the items that wait, of which the caller's is the first, and hands on to the next caller.
func (g *Writes[T, R]) work(ctx context.Context) {
	calls := g.take()
	defer g.handOn(calls) // also when write panics: the others get an outcome that says so
	items := make([]T, 0, len(calls))
	for _, c := range calls {
		items = append(items, c.item)
		c.outcome.Err = errPanic
	}
	for i, o := range g.write(context.WithoutCancel(ctx), items) {
		calls[i].outcome = o
	}
}

func (g *Writes[T, R]) take() []*call[T, R] {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := min(g.most, len(g.queue))
	calls := g.queue[:n:n]
	g.queue = g.queue[n:]
	return calls
}

func (g *Writes[T, R]) handOn(calls []*call[T, R]) {
	for _, c := range calls {
		close(c.done)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.queue) == 0 {
		g.writing, g.queue = false, nil
		return
	}
	close(g.queue[0].lead)
}
