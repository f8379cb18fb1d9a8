// Package work does what the server assigns: it makes keys and CSRs, and has certificates deployed and verified.
package work

import (
	"context"
	"errors"
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
	// concurrency bounds how many assignments are worked on at once.
	concurrency = 8
	// batch is how many assignments are asked for at once.
	batch = 64
	// sweep is how often work is asked for that nobody hinted at.
	sweep = time.Minute
	// callTimeout bounds one call to the server.
	callTimeout = 20 * time.Second
	// progressEvery is how often the lease of long work is extended.
	progressEvery = 15 * time.Second
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
	kick *tick.Kicker

	mu      sync.Mutex
	running map[string]bool // by assignment id
}

// New makes a worker.
func New(deps Deps) *Worker {
	return &Worker{Deps: deps, kick: tick.NewKicker(), running: make(map[string]bool)}
}

// Kick says that there may be work.
func (w *Worker) Kick() { w.kick.Kick() }

// Run works until ctx ends. What runs then is ended by its own context; the journals of engine and worker take it up at
// the next start.
func (w *Worker) Run(ctx context.Context) error {
	t, err := tick.New(sweep, tick.DefaultJitter)
	if err != nil {
		return err
	}
	defer t.Stop()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(concurrency + 1)
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-w.kick.C():
			case <-t.C:
			}
			if err := w.fetch(ctx, g); err != nil {
				if control.Retired(err) {
					return control.ErrRetired
				}
				w.Log.Warn("asking for work failed; it is asked for again", zap.Error(err))
			}
		}
	})
	return g.Wait()
}

// fetch asks for all open work and starts what is not running yet.
func (w *Worker) fetch(ctx context.Context, g *errgroup.Group) error {
	after := int64(0)
	for {
		list, err := w.list(ctx, after)
		if err != nil {
			return err
		}
		for _, a := range list.GetAssignments() {
			after = max(after, a.GetRevision())
			w.start(ctx, g, a)
		}
		if !list.GetMore() || len(list.GetAssignments()) == 0 {
			return nil
		}
	}
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

func (w *Worker) start(ctx context.Context, g *errgroup.Group, a *agentv1.Assignment) {
	w.mu.Lock()
	busy := w.running[a.GetId()]
	w.running[a.GetId()] = true
	w.mu.Unlock()
	if busy {
		return
	}
	g.Go(func() error {
		defer func() {
			w.mu.Lock()
			delete(w.running, a.GetId())
			w.mu.Unlock()
		}()
		err := w.do(ctx, a)
		if control.Retired(err) {
			return control.ErrRetired
		}
		if err != nil && ctx.Err() == nil {
			// The lease ends and the server offers the work again.
			w.Log.Warn("assignment not reported; the server will offer it again", zap.String("assignment_id", a.GetId()), zap.Error(err))
		}
		return nil
	})
}

// do works on one assignment and reports, with its lease kept alive meanwhile.
func (w *Worker) do(ctx context.Context, a *agentv1.Assignment) error {
	log := w.Log.With(zap.String("assignment_id", a.GetId()), zap.Int32("attempt", a.GetAttempt()))
	report, err := w.remembered(a)
	if err != nil {
		return err
	}
	if report == nil {
		workCtx, cancel := context.WithCancel(ctx)
		kept := make(chan struct{})
		go func() {
			defer close(kept)
			w.keepLease(workCtx, a)
		}()
		report = w.perform(workCtx, a, log)
		cancel()
		<-kept
		if ctx.Err() != nil {
			return ctx.Err() // ended in the middle: no result, the work is taken up at the next start
		}
		if err := w.Journal.Put(report); err != nil {
			return err
		}
	}
	return w.report(ctx, report)
}

// remembered answers the stored result of a CSR that was made already. A deployment is done again: the engine sees what is
// in place, changes nothing that is right, and looks again at what is served.
func (w *Worker) remembered(a *agentv1.Assignment) (*agentv1.ReportAssignmentRequest, error) {
	if a.GetCreateCsr() == nil {
		return nil, nil
	}
	r, err := w.Journal.Get(a.GetId())
	if err != nil || r.GetCsr() == nil {
		return nil, err
	}
	r.LeaseId = a.GetLeaseId()
	return r, nil
}

func (w *Worker) perform(ctx context.Context, a *agentv1.Assignment, log *zap.Logger) *agentv1.ReportAssignmentRequest {
	report := &agentv1.ReportAssignmentRequest{AssignmentId: a.GetId(), LeaseId: a.GetLeaseId()}
	switch work := a.GetWork().(type) {
	case *agentv1.Assignment_CreateCsr:
		w.createCSR(a.GetId(), work.CreateCsr, report, log)
	case *agentv1.Assignment_Deploy:
		w.deploy(ctx, work.Deploy, report, log)
	case *agentv1.Assignment_Verify:
		w.verify(ctx, work.Verify, report, log)
	default:
		fail(report, failure{reason: "UNKNOWN_WORK", message: "this agent is too old for this kind of work; update it", permanent: true})
	}
	return report
}

// keepLease extends the lease until ctx ends.
func (w *Worker) keepLease(ctx context.Context, a *agentv1.Assignment) {
	t, err := tick.New(progressEvery, tick.DefaultJitter)
	if err != nil {
		return // the interval is a constant above zero
	}
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			w.progress(ctx, a)
		}
	}
}

func (w *Worker) progress(ctx context.Context, a *agentv1.Assignment) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := w.Client.ReportAssignment(ctx, &agentv1.ReportAssignmentRequest{AssignmentId: a.GetId(), LeaseId: a.GetLeaseId(),
		Report: &agentv1.ReportAssignmentRequest_Progress{Progress: &agentv1.Progress{Step: "working"}}})
	if err != nil && ctx.Err() == nil {
		w.Log.Warn("lease not extended", zap.String("assignment_id", a.GetId()), zap.Error(err))
	}
}

// report sends the result until the server has it, refuses it, or ctx ends.
func (w *Worker) report(ctx context.Context, r *agentv1.ReportAssignmentRequest) error {
	var pause control.Backoff
	for {
		err := w.reportOnce(ctx, r)
		if err == nil || control.Retired(err) || !worthAnotherTry(err) {
			return err
		}
		if !control.Wait(ctx, pause.Next()) {
			return errors.Join(ctx.Err(), err)
		}
	}
}

func (w *Worker) reportOnce(ctx context.Context, r *agentv1.ReportAssignmentRequest) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := w.Client.ReportAssignment(ctx, r)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if answer.GetStale() {
		w.Log.Info("report came too late, the server has moved on", zap.String("assignment_id", r.GetAssignmentId()))
	}
	return nil
}
