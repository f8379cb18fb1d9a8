package core

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/tick"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// caStillPending is the reason of a job whose order takes long: it goes on waiting for the same order.
const caStillPending = "CA_STILL_PENDING"

// reapBatch is how many overdue jobs are read at a time.
const reapBatch = 100

// ReapJobs ends jobs whose deadline has passed: an approval or a CSR that did not come expires them, a pending order is
// only reported. It stops when ctx ends; the rest is overdue in the next run too.
func (c *Core) ReapJobs(ctx context.Context) (tick.Result, error) {
	var r tick.Result
	for ctx.Err() == nil {
		jobs, err := c.store.Overdue(ctx, c.now(), reapBatch)
		if err != nil || len(jobs) == 0 {
			return r, err
		}
		reaped := 0
		for _, j := range jobs {
			if ctx.Err() != nil {
				break // the rest is overdue in the next run too
			}
			if err := c.reap(ctx, j); err != nil {
				c.log.Warn("a job could not be reaped", logx.ID(logx.KeyJob, j.ID), logx.Error(err))
				continue
			}
			reaped++
		}
		r.Rows += reaped
		if reaped > 0 {
			c.Kick()
		}
		if reaped == 0 || len(jobs) < reapBatch {
			return r, nil
		}
	}
	return r, nil
}

func (c *Core) reap(ctx context.Context, seen *store.Job) error {
	err := c.store.Tx(ctx, func(ctx context.Context, tx *store.Tx) error {
		j, err := c.lockJob(ctx, tx, seen.ID, seen.CertificateID)
		if err != nil {
			return err
		}
		if j.State.Final() || j.DeadlineTime.After(c.now()) {
			return nil
		}
		if err := c.overdue(ctx, tx, j); err != nil {
			return err
		}
		tx.Changed(store.Jobs)
		return nil
	})
	if errors.Is(err, store.ErrChanged) {
		return nil
	}
	return err
}

// overdue does to a locked job what its state asks for at the deadline.
func (c *Core) overdue(ctx context.Context, tx *store.Tx, j *store.Job) error {
	switch j.State {
	case store.AwaitingApproval:
		return c.end(ctx, tx, j, ending{transition: c.expire(), action: "job.expired",
			problem: store.Problem{Reason: "APPROVAL_TIMEOUT", Message: "nobody approved it in time"}})
	case store.AwaitingCSR:
		p, err := c.missingCSRs(ctx, tx, j)
		if err != nil {
			return err
		}
		return c.end(ctx, tx, j, ending{transition: c.expire(), action: "job.expired", problem: p})
	case store.AwaitingCA:
		j.Error = store.Problem{Reason: caStillPending, Message: "the CA has not decided yet; the same order is looked at again"}
		j.DeadlineTime, j.DueTime = c.now().Add(c.cfg.CATimeout), c.now()
		return tx.SaveJob(ctx, j)
	case store.Running:
		p := j.Error
		if p.Reason == "" {
			p = store.Problem{Reason: "DEPLOYMENT_TIMEOUT", Message: "the deployment was not seen to be served in time"}
		}
		return c.end(ctx, tx, j, ending{transition: c.fail(), action: "job.failed", problem: p})
	default:
		p := j.Error
		if p.Reason == "" {
			p = store.Problem{Reason: "START_TIMEOUT", Message: "the job could not be started in time"}
		}
		return c.end(ctx, tx, j, ending{transition: c.fail(), action: "job.failed", problem: p})
	}
}

// missingCSRs names those whose CSR did not come.
func (c *Core) missingCSRs(ctx context.Context, tx *store.Tx, j *store.Job) (store.Problem, error) {
	keys, err := tx.Keys(ctx, j.ID)
	if err != nil {
		return store.Problem{}, err
	}
	var who []string
	for _, k := range keys {
		switch {
		case k.State != store.KeyAwaitingCSR || k.CsrPEM != "":
		case k.AgentID == "":
			who = append(who, "the caller")
		default:
			who = append(who, "agent "+k.AgentID)
		}
	}
	return store.Problem{Reason: "CSR_TIMEOUT", Message: fmt.Sprintf("no CSR came in time from %s", strings.Join(who, ", "))}, nil
}
