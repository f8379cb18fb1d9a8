package core

import (
	"context"
	"errors"
	"time"

	"github.com/certctl/certctl/pkg/tick"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

const (
	// chunk is how many rows one transaction of a loop works on.
	chunk = 100
	// keepAssignments is how long ended work can be looked at, and a repeated report be told from a wrong one.
	keepAssignments = 7 * 24 * time.Hour
	// stuckAfter is how late a due row may be looked at before it counts as stuck.
	stuckAfter = time.Hour
)

// inChunks calls work until it has nothing left, or the budget of the run is over: the rest is due in the next run.
func inChunks(ctx context.Context, work func(ctx context.Context) (int, error)) (int, error) {
	total := 0
	for ctx.Err() == nil {
		n, err := work(ctx)
		total += n
		if err != nil || n < chunk {
			return total, err
		}
	}
	return total, nil
}

// CheckAgents takes agents for offline that were not heard for a while.
func (c *Core) CheckAgents(ctx context.Context) (tick.Result, error) {
	since := time.Now().Add(-c.cfg.AgentOfflineAfter)
	n, err := inChunks(ctx, func(ctx context.Context) (n int, err error) {
		err = c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
			if n, err = t.OfflineAgents(ctx, since, chunk); n > 0 {
				t.Changed(store.Agents)
			}
			return err
		})
		return n, err
	})
	return tick.Result{Rows: n}, err
}

// ExpireCertificates ends certificates whose time is over.
func (c *Core) ExpireCertificates(ctx context.Context) (tick.Result, error) {
	n, err := inChunks(ctx, func(ctx context.Context) (n int, err error) {
		err = c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
			n, err = c.expireChunk(ctx, t)
			return err
		})
		return n, err
	})
	return tick.Result{Rows: n}, err
}

func (c *Core) expireChunk(ctx context.Context, t *store.Tx) (int, error) {
	ids, err := t.ClaimExpired(ctx, chunk)
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	expired, err := t.ExpireCertificates(ctx, ids)
	if err != nil {
		return 0, err
	}
	rows, err := t.GetCertificates(ctx, expired)
	if err != nil {
		return 0, err
	}
	for _, row := range rows {
		audit(ctx, t, "certificate.expired", resourceCertificate, row.ID, map[string]any{"version": row.CurrentVersion})
	}
	t.Changed(store.Certificates)
	return len(ids), c.certificatesChanged(ctx, t, "certificate.expired", rows...)
}

// VerifyDeployments asks agents to look at endpoints that were not looked at for a while.
func (c *Core) VerifyDeployments(ctx context.Context) (tick.Result, error) {
	n, err := inChunks(ctx, func(ctx context.Context) (n int, err error) {
		err = c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
			due, err := t.ClaimDue(ctx, []string{store.DeploymentServed, store.DeploymentDrifted}, chunk)
			if err != nil {
				return err
			}
			n = len(due)
			for _, d := range due {
				if err := c.verify(ctx, t, d); err != nil {
					return err
				}
			}
			return nil
		})
		return n, err
	})
	return tick.Result{Rows: n}, err
}

// verify puts a verification into the mailbox. An agent that is away finds one, not a pile of them.
func (c *Core) verify(ctx context.Context, t *store.Tx, d store.Deployment) error {
	next := c.nextVerify()
	if _, err := t.CancelOpen(ctx, store.OpenSelection{DeploymentID: d.ID}); err != nil {
		return err
	}
	if err := c.openAssignments(ctx, t, store.KindVerify, []store.Deployment{d}, next); err != nil {
		return err
	}
	return t.PostponeDeployment(ctx, d.ID, next)
}

// Dispatch is the rescuer of the mailboxes: leases that have run out come back, work past its deadline ends, and
// deployments that are due go out. When there is nothing of these, that is found out with one statement.
func (c *Core) Dispatch(ctx context.Context) (tick.Result, error) {
	late, err := c.store.Late(ctx)
	if err != nil {
		return tick.Result{}, err
	}
	total := 0
	for _, w := range []struct {
		there bool
		work  func(context.Context) (int, error)
	}{{late.Lapsed, c.reopenLapsed}, {late.Overdue, c.endOverdue}, {late.Due, c.dispatchDue}} {
		if !w.there {
			continue
		}
		n, err := inChunks(ctx, w.work)
		total += n
		if err != nil {
			return tick.Result{Rows: total}, err
		}
	}
	return tick.Result{Rows: total}, nil
}

func (c *Core) reopenLapsed(ctx context.Context) (int, error) {
	rows, err := c.store.LapsedLeases(ctx, chunk)
	if err != nil {
		return 0, err
	}
	for _, row := range rows {
		if err := c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error { return c.reopen(ctx, t, row) }); err != nil {
			return 0, err
		}
	}
	return len(rows), nil
}

// reopen puts one piece of work back, or ends it when it was taken too often.
func (c *Core) reopen(ctx context.Context, t *store.Tx, row store.Assignment) error {
	var d store.Deployment
	if row.Kind == store.KindDeploy {
		var err error
		if d, err = t.LockDeployment(ctx, row.DeploymentID); err != nil {
			return ignoreMissing(err)
		}
	}
	setback := store.Setback{Reason: "LEASE_EXPIRED", Message: "the agent took the work and was not heard of again"}
	if row.Attempts >= maxLeases {
		ended, err := t.EndAssignment(ctx, row.ID, store.AssignmentFailed)
		if err != nil || !ended {
			return err
		}
		return c.abandoned(ctx, t, row, d, setback)
	}
	back, err := t.ReopenAssignment(ctx, row)
	if err != nil || !back || row.Kind != store.KindDeploy || d.DeadlineTime == nil {
		return err
	}
	// The work stays in the mailbox; the dispatcher's concern is the deadline again.
	setback.Due = *d.DeadlineTime
	if _, err := t.RetryDeployment(ctx, d.ID, setback); err != nil {
		return err
	}
	return c.deploymentChanged(ctx, t, d.ID)
}

func ignoreMissing(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// abandoned says what follows from work that the server has ended.
func (c *Core) abandoned(ctx context.Context, t *store.Tx, row store.Assignment, d store.Deployment, s store.Setback) error {
	switch row.Kind {
	case store.KindCreateCsr:
		c.taskFinished(ctx, t, row, "", &typev1.Problem{Reason: s.Reason, Message: s.Message}, false)
		return nil
	case store.KindDeploy:
		return c.failed(ctx, t, d, s, true)
	default:
		return nil
	}
}

func (c *Core) endOverdue(ctx context.Context) (int, error) {
	rows, err := c.store.Overdue(ctx, chunk)
	if err != nil {
		return 0, err
	}
	for _, row := range rows {
		err := c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
			ended, err := t.EndAssignment(ctx, row.ID, store.AssignmentFailed)
			if err != nil || !ended {
				return err
			}
			return c.abandoned(ctx, t, row, store.Deployment{}, store.Setback{
				Reason: "DEADLINE_EXCEEDED", Message: "the agent did not do the work in time",
			})
		})
		if err != nil {
			return 0, err
		}
	}
	return len(rows), nil
}

func (c *Core) dispatchDue(ctx context.Context) (n int, err error) {
	err = c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		due, err := t.ClaimDue(ctx, []string{store.DeploymentPending, store.DeploymentDeploying, store.DeploymentFailed}, chunk)
		if err != nil {
			return err
		}
		n = len(due)
		for _, d := range due {
			if err := c.dispatch(ctx, t, d); err != nil {
				return err
			}
		}
		return nil
	})
	return n, err
}

func (c *Core) dispatch(ctx context.Context, t *store.Tx, d store.Deployment) error {
	open, err := t.OpenFor(ctx, d.ID)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	inMailbox := err == nil
	now := time.Now()
	switch {
	case d.Status == store.DeploymentFailed || !inMailbox:
		return c.again(ctx, t, d)
	case open.Status == store.AssignmentLeased && open.LeaseUntil.After(now):
		return t.PostponeDeployment(ctx, d.ID, *open.LeaseUntil)
	case d.DeadlineTime.After(now):
		return t.PostponeDeployment(ctx, d.ID, *d.DeadlineTime)
	}
	if _, err := t.CancelOpen(ctx, store.OpenSelection{DeploymentID: d.ID}); err != nil {
		return err
	}
	return c.failed(ctx, t, d, store.Setback{Reason: "DEADLINE_EXCEEDED", Message: "the agent did not take or end the work in time"}, false)
}

// again gives a deployment another try: the next of several, or after a failure the first of a new series.
func (c *Core) again(ctx context.Context, t *store.Tx, d store.Deployment) error {
	a, err := t.GetAgent(ctx, d.AgentID)
	if err != nil {
		return err
	}
	if a.Status == store.AgentRetired {
		return c.closeDeployments(ctx, t, store.DeploymentSelection{CertificateID: d.CertificateID, TargetIDs: []string{d.TargetID}}, "the agent is retired")
	}
	if d.Status == store.DeploymentPending {
		return c.openDeploy(ctx, t, d, *d.DeadlineTime)
	}
	if _, err := t.CancelOpen(ctx, store.OpenSelection{DeploymentID: d.ID}); err != nil {
		return err
	}
	deadline := time.Now().Add(c.cfg.DeployDeadline)
	_, err = t.DesireDeployments(ctx, []store.Desire{{ID: d.ID, Version: d.DesiredVersion, Force: d.Force, Deadline: deadline}})
	if err != nil {
		return err
	}
	return c.openDeploy(ctx, t, d, deadline)
}

// Prune deletes what has served its time: join tokens, credentials, idempotency keys, ended work.
func (c *Core) Prune(ctx context.Context) (tick.Result, error) {
	total, err := c.store.PruneKeys(ctx)
	if err != nil {
		return tick.Result{}, err
	}
	err = c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		credentials, err := t.PruneCredentials(ctx)
		if err != nil {
			return err
		}
		work, err := t.PruneAssignments(ctx, time.Now().Add(-keepAssignments))
		total += credentials + work
		return err
	})
	return tick.Result{Rows: total}, err
}

// NoteSeen writes the liveness of agents. It is no change that anybody asked for, so it leaves no audit event.
func (c *Core) NoteSeen(ctx context.Context, seen []store.Seen) error {
	if len(seen) == 0 {
		return nil
	}
	return c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		n, err := t.NoteSeen(ctx, seen)
		if n > 0 {
			t.Changed(store.Agents)
		}
		return err
	})
}

// CountStuck counts rows that nothing looks after.
func (c *Core) CountStuck(ctx context.Context) (int32, error) {
	return c.store.CountStuck(ctx, time.Now().Add(-stuckAfter))
}
