package core

import (
	"context"
	"fmt"
	"time"

	"github.com/certctl/certctl/pkg/auditlog"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// transition is one way from states to a state. Nothing else moves a job.
type transition struct {
	name string
	from []store.JobState
	to   store.JobState
}

func (c *Core) requireApproval() transition {
	return transition{"require approval", []store.JobState{store.Pending, store.AwaitingCSR}, store.AwaitingApproval}
}

func (c *Core) approve() transition {
	return transition{"approve", []store.JobState{store.AwaitingApproval}, store.Pending}
}

func (c *Core) awaitCSR() transition {
	return transition{"await CSR", []store.JobState{store.Pending, store.AwaitingCSR, store.AwaitingCA}, store.AwaitingCSR}
}

func (c *Core) awaitCA() transition {
	return transition{"await CA", []store.JobState{store.Pending, store.AwaitingCSR, store.AwaitingCA}, store.AwaitingCA}
}

func (c *Core) run() transition {
	return transition{"run", []store.JobState{store.Pending}, store.Running}
}

func (c *Core) tryAgain() transition {
	return transition{"try again", []store.JobState{store.AwaitingCSR, store.AwaitingCA, store.Running}, store.Pending}
}

func (c *Core) complete() transition {
	return transition{"complete", []store.JobState{store.Pending, store.AwaitingCSR, store.AwaitingCA, store.Running}, store.Completed}
}

func (c *Core) fail() transition {
	return transition{"fail", []store.JobState{store.Pending, store.AwaitingCSR, store.AwaitingCA, store.Running}, store.Failed}
}

func (c *Core) reject() transition {
	return transition{"reject", []store.JobState{store.AwaitingApproval}, store.Cancelled}
}

func (c *Core) cancel() transition {
	return transition{"cancel", []store.JobState{store.Pending, store.AwaitingApproval, store.AwaitingCSR, store.AwaitingCA, store.Running}, store.Cancelled}
}

func (c *Core) expire() transition {
	return transition{"expire", []store.JobState{store.AwaitingApproval, store.AwaitingCSR}, store.Expired}
}

// transitions gives all of them.
func (c *Core) transitions() []transition {
	return []transition{
		c.requireApproval(), c.approve(), c.awaitCSR(), c.awaitCA(), c.run(), c.tryAgain(), c.complete(), c.fail(), c.reject(), c.cancel(), c.expire(),
	}
}

// apply moves a locked job; its other fields are stored with the state.
func (t transition) apply(ctx context.Context, tx *store.Tx, j *store.Job) error {
	was := j.State
	j.State = t.to
	if err := tx.MoveJob(ctx, store.Move{From: t.from, Job: j}); err != nil {
		j.State = was
		return fmt.Errorf("%s job %s in state %s: %w", t.name, j.ID, was, err)
	}
	return nil
}

// ending is how a job ends.
type ending struct {
	transition transition
	// action is the audit action, such as "job.failed".
	action  string
	problem store.Problem
	comment string
	// byPerson tells that somebody wanted it so.
	byPerson bool
}

// end moves a locked job (see lockJob) to a final state: open tasks are taken back, the plan learns of it, audit too.
func (c *Core) end(ctx context.Context, tx *store.Tx, j *store.Job, e ending) error {
	now := c.now()
	was := j.State
	j.EndTime, j.DueTime, j.Error = now, time.Time{}, e.problem
	if err := e.transition.apply(ctx, tx, j); err != nil {
		return err
	}
	keys, err := tx.Keys(ctx, j.ID)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.State == store.KeyAwaitingCSR && k.TaskID != "" && k.CsrPEM == "" {
			if err := tx.AddCancellation(ctx, k.TaskID, j.ID, now); err != nil {
				return err
			}
		}
	}
	c.auditJob(ctx, tx, j, e.action, note{comment: e.comment})
	if !j.MakesKeys() {
		return nil
	}
	return c.planAfter(ctx, tx, j, was, e)
}

// note is what an audit event says beside the job: what a person wrote, and why a job was opened.
type note struct{ comment, cause string }

// auditJob writes an audit event about a job. The actor is who does it; who asked for the job is in the data.
func (c *Core) auditJob(ctx context.Context, tx *store.Tx, j *store.Job, action string, n note) {
	outcome := auditv1.Event_SUCCESS
	if j.State == store.Failed || j.State == store.Expired {
		outcome = auditv1.Event_FAILURE
	}
	data := map[string]any{
		"type": string(j.Type), "certificate_id": j.CertificateID, "state": string(j.State), "requested_by": j.RequestedBy, "attempt": j.Attempt,
	}
	for name, value := range map[string]string{
		"target_id": j.TargetID, "approved_by": j.ApprovedBy, "reason": j.Error.Reason, "message": j.Error.Message, "retry_of": j.RetryOf, "comment": n.comment,
		"cause": n.cause,
	} {
		if value != "" {
			data[name] = value
		}
	}
	tx.Emit(ctx, auditlog.Event(ctx, auditlog.Entry{Action: action, ResourceType: "job", ResourceID: j.ID, Outcome: outcome, Data: data}))
}
