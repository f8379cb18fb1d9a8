package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/certctl/certctl/pkg/errs"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// stepDeploy asks inventory for the deployment, or how it stands: the job's id is the key of the request, so that asking
// again starts nothing.
func (w *work) stepDeploy(ctx context.Context) (next time.Time, err error) {
	if w.job.State == store.Pending {
		err := w.change(ctx, func(ctx context.Context, tx *store.Tx, j *store.Job) error {
			now := w.now()
			j.Attempt++
			j.StartTime, j.DeadlineTime, j.DueTime = now, now.Add(w.cfg.DeployTimeout), now
			return w.run().apply(ctx, tx, j)
		})
		if err != nil {
			return next, err
		}
	}
	r, err := w.inventory.RequestDeployment(ctx, &inventoryv1.RequestDeploymentRequest{
		CertificateId: w.job.CertificateID, TargetId: w.job.TargetID, RequestKey: w.job.ID,
	})
	switch {
	case err == nil:
	case undecided(err):
		return next, &postponed{fmt.Errorf("request deployment: %w", err)}
	default:
		return next, w.finish(ctx, ending{transition: w.fail(), action: "job.failed", problem: problem(err)})
	}
	return w.now().Add(lookAgainDeploy), w.change(ctx, func(ctx context.Context, tx *store.Tx, j *store.Job) error {
		return w.applyDeployment(ctx, tx, j, r.GetDeployment())
	})
}

// applyDeployment stores how the deployment of a locked job stands.
func (c *Core) applyDeployment(ctx context.Context, tx *store.Tx, j *store.Job, d *inventoryv1.Deployment) error {
	p := store.Problem{Reason: d.GetError().GetReason(), Message: d.GetError().GetMessage()}
	switch {
	case d.GetStatus() == inventoryv1.Deployment_SERVED:
		return c.end(ctx, tx, j, ending{transition: c.complete(), action: "job.completed"})
	case d.GetStatus() == inventoryv1.Deployment_FAILED:
		// Its tries are used up. That inventory comes back to it much later is not for a job to wait for.
		p.Reason = cmp.Or(p.Reason, "DEPLOYMENT_FAILED")
		return c.end(ctx, tx, j, ending{transition: c.fail(), action: "job.failed", problem: p})
	case p != j.Error:
		// It is tried again by inventory; the job shows why it takes so long.
		j.Error = p
		return tx.SaveJob(ctx, j)
	default:
		return nil
	}
}

// openDeployJob opens a DEPLOY job, or finds the one that is open. The plan of the certificate is locked by the caller.
func (c *Core) openDeployJob(ctx context.Context, tx *store.Tx, o opening) (*store.Job, error) {
	j, err := c.openJob(ctx, tx, o)
	if errors.Is(err, store.ErrOpen) {
		return tx.OpenDeployJob(ctx, o.certificateID, o.targetID)
	}
	return j, err
}

// noVersion is 409 for a certificate that has nothing to deploy.
func noVersion(cert *inventoryv1.Certificate) error {
	if cert.GetCurrentVersion() > 0 {
		return nil
	}
	return errs.New(errs.Conflict, "CERTIFICATE_NOT_ISSUED", "certificate %s is %s: nothing was issued that could be deployed", cert.GetId(), cert.GetStatus()).
		With("state", cert.GetStatus().String())
}
