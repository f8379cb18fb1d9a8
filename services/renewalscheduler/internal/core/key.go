package core

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/certctl/certctl/pkg/tick"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// failure is why a key did not come to a certificate.
type failure struct {
	problem   store.Problem
	permanent bool
	keepCSR   bool
}

func (w *work) keyFailed(ctx context.Context, k *store.Key, f failure) error {
	return w.changeKey(ctx, k, func(ctx context.Context, tx *store.Tx, j *store.Job, k *store.Key) error {
		return w.failKey(ctx, tx, j, k, f)
	})
}

// changeKey is change with one of the keys, as it is stored.
func (w *work) changeKey(ctx context.Context, of *store.Key, fn func(ctx context.Context, tx *store.Tx, j *store.Job, k *store.Key) error) error {
	return w.change(ctx, func(ctx context.Context, tx *store.Tx, j *store.Job) error {
		keys, err := tx.Keys(ctx, j.ID)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(keys, func(k *store.Key) bool { return k.AgentID == of.AgentID })
		if i < 0 {
			return errGone
		}
		return fn(ctx, tx, j, keys[i])
	})
}

// applyOrder stores how an order stands on the key of a locked job, and what follows for the job.
func (c *Core) applyOrder(ctx context.Context, tx *store.Tx, j *store.Job, k *store.Key, o *issuancev1.Order) error {
	if k.State != store.KeyAwaitingCA {
		return nil
	}
	p := store.Problem{Reason: o.GetLastError().GetReason(), Message: o.GetLastError().GetMessage()}
	switch o.GetStatus() {
	case issuancev1.Order_ISSUED:
		k.State = store.KeyIssued
		if err := tx.SaveKey(ctx, k); err != nil {
			return err
		}
		return c.settle(ctx, tx, j)
	case issuancev1.Order_REJECTED:
		p.Reason = cmp.Or(p.Reason, "ORDER_REJECTED")
		return c.failKey(ctx, tx, j, k, failure{problem: p, permanent: true, keepCSR: true})
	case issuancev1.Order_FAILED:
		p.Reason = cmp.Or(p.Reason, "ORDER_FAILED")
		return c.failKey(ctx, tx, j, k, failure{problem: p, permanent: boughtInVain(p.Reason), keepCSR: true})
	case issuancev1.Order_CANCELLED:
		return c.failKey(ctx, tx, j, k, failure{problem: store.Problem{Reason: "ORDER_CANCELLED", Message: "order " + o.GetId() + " was cancelled"}, permanent: true})
	default:
		// CREATED, SUBMITTING, PENDING, UNKNOWN: issuance goes on with it, and the job shows what it waits for.
		if p.Reason == "" || j.Error == p || j.State != store.AwaitingCA {
			return nil
		}
		j.Error = p
		return tx.SaveJob(ctx, j)
	}
}

// boughtInVain tells whether an order failed although the CA took it: another try would buy another certificate of the same
// kind, so the job ends, and planAfter makes the next one wait.
func boughtInVain(reason string) bool {
	switch reason {
	case "CERTIFICATE_MISMATCH", "CERTIFICATE_DUPLICATE", "CERTIFICATE_TOO_LARGE", "ORDER_DEADLINE", "ORDER_NOT_FOUND", "ORDER_GIVEN_UP":
		return true
	default:
		return false
	}
}

// failKey stores why a key of a locked job failed, and what follows for the job.
func (c *Core) failKey(ctx context.Context, tx *store.Tx, j *store.Job, k *store.Key, f failure) error {
	k.State, k.Error, k.Permanent, k.KeepCSR = store.KeyFailed, f.problem, f.permanent, f.keepCSR
	k.Error.Reason = cmp.Or(k.Error.Reason, "FAILED")
	if err := tx.SaveKey(ctx, k); err != nil {
		return err
	}
	return c.settle(ctx, tx, j)
}

// settle brings a locked job to what its keys are: done, failed, tried again, or on its way.
func (c *Core) settle(ctx context.Context, tx *store.Tx, j *store.Job) error {
	keys, err := tx.Keys(ctx, j.ID)
	if err != nil || len(keys) == 0 {
		return err
	}
	var failed *store.Key
	done := 0
	for _, k := range keys {
		switch k.State {
		case store.KeyDone:
			done++
		case store.KeyFailed:
			if failed == nil || k.Permanent {
				failed = k
			}
		case store.KeyAwaitingCSR, store.KeyAwaitingCA, store.KeyIssued:
		}
	}
	switch {
	case j.State == store.AwaitingApproval:
		return c.touch(ctx, tx, j)
	case done == len(keys):
		return c.end(ctx, tx, j, ending{transition: c.complete(), action: "job.completed"})
	case failed != nil && j.State != store.Pending:
		return c.afterFailure(ctx, tx, j, failed)
	default:
		return c.touch(ctx, tx, j)
	}
}

// touch makes a locked job due: something about it is new.
func (c *Core) touch(ctx context.Context, tx *store.Tx, j *store.Job) error {
	if j.State != store.AwaitingApproval && j.State != store.Pending {
		j.DueTime = c.now()
	}
	return tx.SaveJob(ctx, j)
}

// afterFailure ends the job, or has it tried again after a pause.
func (c *Core) afterFailure(ctx context.Context, tx *store.Tx, j *store.Job, k *store.Key) error {
	p := k.Error
	if k.AgentID != "" {
		p.Message = "agent " + k.AgentID + ": " + cmp.Or(p.Message, p.Reason)
	}
	if k.Permanent || j.Attempt >= j.MaxAttempts {
		return c.end(ctx, tx, j, ending{transition: c.fail(), action: "job.failed", problem: p})
	}
	left := time.Duration(0)
	plan, err := tx.LockPlan(ctx, j.CertificateID)
	if err == nil && !plan.NotAfter.IsZero() {
		left = plan.NotAfter.Sub(c.now())
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	most := backoffAfter(j.Attempt, left)
	j.Error = p
	j.DueTime = c.now().Add(most/2 + tick.Jittered(most/4, 1))
	j.DeadlineTime = j.DueTime.Add(c.cfg.StartTimeout)
	if err := c.tryAgain().apply(ctx, tx, j); err != nil {
		return err
	}
	c.auditJob(ctx, tx, j, "job.retried", note{})
	return nil
}
