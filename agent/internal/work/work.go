// Package work does what the server assigns: it makes keys and CSRs, and has certificates deployed and verified.
package work

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/agent/internal/control"
	"github.com/certctl/certctl/agent/internal/journal"
	"github.com/certctl/certctl/agent/internal/keystore"
	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

const (
	// keySlots and targetSlots bound how many assignments are worked on at once. They are apart so that a new key, which
	// takes a moment, never waits for deployments, which may take minutes.
	keySlots    = 4
	targetSlots = 8
	// batch is how many assignments are asked for at once, and with how many in hand no more are asked for.
	batch = 64
	// sweep is how often work is asked for that nobody hinted at. It is rare: each asks the database, and the server looks every minute,
	// for all agents at once, whether work lies about, and hints again.
	sweep = 6 * time.Hour
	// pruning is how often results are dropped that nobody can ask for any more.
	pruning = 24 * time.Hour
	// callTimeout bounds one call to the server.
	callTimeout = 20 * time.Second
)

// Deps is what the worker works with.
type Deps struct {
	Client  agentv1.AgentServiceClient
	Keys    *keystore.Store
	Journal *journal.Journal
	Engine  *target.Engine
	Log     *zap.Logger
}

// Worker fetches assignments, does them and reports.
type Worker struct {
	Deps
	kick          *tick.Kicker
	keys, targets chan struct{}

	mu sync.Mutex
	// tasks are in hand, by assignment id.
	tasks map[string]*task
	// done were reported since work was last asked for: the answer to that question may still hold them.
	done map[string]bool
	// waiting says that work was left at the server because there was enough in hand.
	waiting bool
}

// New makes a worker.
func New(deps Deps) *Worker {
	return &Worker{
		Deps: deps, kick: tick.NewKicker(), keys: make(chan struct{}, keySlots), targets: make(chan struct{}, targetSlots),
		tasks: make(map[string]*task), done: make(map[string]bool),
	}
}

// Kick says that there may be work.
func (w *Worker) Kick() { w.kick.Kick() }

// Run works until ctx ends. What runs then is ended by its own context; the journals of engine and worker take it up at
// the next start.
func (w *Worker) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.prune(ctx) })
	g.Go(func() error { return w.fetchLoop(ctx, g) })
	return g.Wait()
}

func (w *Worker) prune(ctx context.Context) error {
	t, err := tick.New(pruning, tick.DefaultJitter)
	if err != nil {
		return err
	}
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if err := w.Journal.Prune(time.Now()); err != nil {
			w.Log.Warn("old results not removed", zap.Error(err))
		}
	}
}

// fetchLoop asks for work when it is hinted at, now and then without a hint, and again soon when asking failed.
func (w *Worker) fetchLoop(ctx context.Context, g *errgroup.Group) error {
	t, err := tick.New(sweep, tick.DefaultJitter)
	if err != nil {
		return err
	}
	defer t.Stop()
	var pause control.Backoff
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.kick.C():
		case <-t.C:
		case <-retry:
		}
		retry = nil
		err := w.fetch(ctx, g)
		switch {
		case err == nil:
			pause.Reset()
		case control.Retired(err):
			return control.ErrRetired
		case ctx.Err() == nil:
			wait := pause.Next()
			retry = time.After(wait)
			w.Log.Warn("asking for work failed", zap.Error(err), zap.Duration("retry_in", wait))
		}
	}
}

// fetch asks for open work and starts what is not in hand yet.
func (w *Worker) fetch(ctx context.Context, g *errgroup.Group) error {
	w.forget()
	for after := int64(0); !w.full(); {
		list, err := w.list(ctx, after)
		if err != nil {
			return err
		}
		last := after
		for _, a := range list.GetAssignments() {
			last = max(last, a.GetRevision())
			w.take(ctx, g, a)
		}
		if !list.GetMore() || last == after {
			return nil
		}
		after = last
	}
	return nil
}

// forget is called before work is asked for: the answer knows of all that was reported until now.
func (w *Worker) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.done)
}

// full tells whether there is enough in hand; then the end of some of it leads to another fetch.
func (w *Worker) full() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = len(w.tasks) >= batch
	return w.waiting
}

func (w *Worker) list(ctx context.Context, after int64) (*agentv1.ListAssignmentsResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := w.Client.ListAssignments(ctx, &agentv1.ListAssignmentsRequest{AfterRevision: after, MaxAssignments: batch})
	if err != nil {
		return nil, fmt.Errorf("list assignments: %w", err)
	}
	return list, nil
}

// take starts an assignment. One that is in hand already only gets its newest lease: it is reported under that.
func (w *Worker) take(ctx context.Context, g *errgroup.Group, a *agentv1.Assignment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t := w.tasks[a.GetId()]; t != nil {
		t.lease, t.leaseEnd = a.GetLeaseId(), a.GetLeaseEndTime().AsTime()
		t.offered.Kick()
		return
	}
	if w.done[a.GetId()] {
		return
	}
	t := newTask(a)
	w.tasks[a.GetId()] = t
	g.Go(func() error {
		defer w.drop(t)
		err := w.do(ctx, t)
		if control.Retired(err) {
			return control.ErrRetired
		}
		if err != nil && ctx.Err() == nil {
			// The lease ends and the server offers the work again.
			w.Log.Warn("assignment not reported", zap.String("assignment_id", a.GetId()), zap.Error(err))
		}
		return nil
	})
}

// drop takes a task out of hand.
func (w *Worker) drop(t *task) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tasks[t.GetId()] == t {
		delete(w.tasks, t.GetId())
	}
	if w.waiting {
		w.waiting = false
		w.kick.Kick()
	}
}
