package work

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/agent/internal/control"
	"github.com/certctl/certctl/agent/internal/keystore"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

// The lease of long work is made longer after a third of it, within these bounds.
const (
	minProgress = time.Second
	maxProgress = 15 * time.Second
)

// task is an assignment in hand.
type task struct {
	*agentv1.Assignment
	// offered is kicked when the server offers the assignment again.
	offered *tick.Kicker

	// lease is the newest one, and when it ends; the worker's mu guards them.
	lease    string
	leaseEnd time.Time
}

func newTask(a *agentv1.Assignment) *task {
	return &task{Assignment: a, offered: tick.NewKicker(), lease: a.GetLeaseId(), leaseEnd: a.GetLeaseEndTime().AsTime()}
}

func (w *Worker) leaseOf(t *task) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return t.lease
}

// progressEvery is how often to make the lease longer. It is held against the agent's clock, which may be wrong: hence bounds.
func (w *Worker) progressEvery(t *task) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return min(max(time.Until(t.leaseEnd)/3, minProgress), maxProgress)
}

// do works on an assignment and reports.
func (w *Worker) do(ctx context.Context, t *task) error {
	report, err := w.result(ctx, t)
	if err != nil {
		return err
	}
	return w.report(ctx, t, report)
}

// result is what became of the work: remembered, or done now, with the lease kept alive meanwhile.
func (w *Worker) result(ctx context.Context, t *task) (*agentv1.ReportAssignmentRequest, error) {
	report, err := w.remembered(t.Assignment)
	if err != nil || report != nil {
		return report, err
	}
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	var keeper errgroup.Group
	keeper.Go(func() error { return w.keepLease(within, t) })
	report = w.perform(ctx, t.Assignment)
	cancel()
	err = keeper.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err() // ended in the middle: no result, the work is taken up at the next start
	}
	if err == nil && report.GetCsr() != nil {
		err = w.Journal.Put(report)
	}
	return report, err
}

// remembered answers the stored result of a CSR that was made already, if its key is still there. A deployment is done again:
// the engine sees what is in place, changes nothing that is right, and looks again at what is served.
func (w *Worker) remembered(a *agentv1.Assignment) (*agentv1.ReportAssignmentRequest, error) {
	if a.GetCreateCsr() == nil {
		return nil, nil
	}
	r, err := w.Journal.Get(a.GetId())
	if err != nil || r.GetCsr() == nil {
		return nil, err
	}
	_, err = w.Keys.Find(a.GetCreateCsr().GetCertificateId(), r.GetCsr().GetPublicKeySha256())
	if errors.Is(err, keystore.ErrNotFound) || errors.Is(err, keystore.ErrRefused) {
		return nil, nil
	}
	return r, err
}

// perform waits for its turn and does the work.
func (w *Worker) perform(ctx context.Context, a *agentv1.Assignment) *agentv1.ReportAssignmentRequest {
	log := w.Log.With(zap.String("assignment_id", a.GetId()), zap.Int32("attempt", a.GetAttempt()))
	report := &agentv1.ReportAssignmentRequest{AssignmentId: a.GetId()}
	slots := w.targets
	if a.GetCreateCsr() != nil {
		slots = w.keys
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return report
	}
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

// keepLease makes the lease longer until ctx ends, also while the work waits for its turn.
func (w *Worker) keepLease(ctx context.Context, t *task) error {
	beat, err := tick.New(w.progressEvery(t), tick.DefaultJitter)
	if err != nil {
		return err
	}
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
			w.progress(ctx, t)
		}
	}
}

// progress makes the lease longer. Under a lease that has run out that is not possible: then work is asked for, which brings
// the newest one. What runs goes on: half a deployment is worth less than one that nobody waits for.
func (w *Worker) progress(ctx context.Context, t *task) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := w.Client.ReportAssignment(ctx, &agentv1.ReportAssignmentRequest{AssignmentId: t.GetId(), LeaseId: w.leaseOf(t),
		Report: &agentv1.ReportAssignmentRequest_Progress{Progress: &agentv1.Progress{Step: "working"}}})
	switch {
	case err == nil && answer.GetStale():
		w.Kick()
	case err != nil && ctx.Err() == nil:
		w.Log.Warn("lease not extended", zap.String("assignment_id", t.GetId()), zap.Error(err))
	}
}

// report sends the result, under the newest lease, until the server has it, refuses it, or ctx ends.
func (w *Worker) report(ctx context.Context, t *task, r *agentv1.ReportAssignmentRequest) error {
	var pause control.Backoff
	for {
		r.LeaseId = w.leaseOf(t)
		stale, err := w.reportOnce(ctx, r)
		switch {
		case err == nil && !stale:
			w.finish(t)
			return nil
		case err == nil && w.leave(t, r.GetLeaseId()):
			w.Log.Info("report came too late, the server has moved on", zap.String("assignment_id", t.GetId()))
			return nil
		case err == nil:
			continue // offered again meanwhile, under another lease
		case control.Retired(err) || !worthAnotherTry(err):
			w.finish(t)
			return err
		}
		timer := time.NewTimer(pause.Next())
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), err)
		case <-t.offered.C(): // the server is there again
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (w *Worker) reportOnce(ctx context.Context, r *agentv1.ReportAssignmentRequest) (stale bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := w.Client.ReportAssignment(ctx, r)
	if err != nil {
		return false, fmt.Errorf("report: %w", err)
	}
	return answer.GetStale(), nil
}

// finish takes a task out of hand whose report the server has, or will never take.
func (w *Worker) finish(t *task) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done[t.GetId()] = true
	delete(w.tasks, t.GetId())
}

// leave takes a task out of hand whose lease was stale, unless a newer one has come. The next offer starts it anew.
func (w *Worker) leave(t *task, lease string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.lease != lease {
		return false
	}
	delete(w.tasks, t.GetId())
	return true
}
