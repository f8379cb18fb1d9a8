package core

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/page"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
	"github.com/certctl/certctl/services/inventory/internal/view"
)

func certificateField(id string) zap.Field { return logx.ID(logx.KeyCertificate, id) }

func errorField(err error) zap.Field { return logx.Error(err) }

// ListDeployments lists deployments.
func (c *Core) ListDeployments(ctx context.Context, r *inventoryv1.ListDeploymentsRequest) (*inventoryv1.ListDeploymentsResponse, error) {
	statuses, err := enumNames(r.GetStatus(), inventoryv1.Deployment_Status_name)
	if err != nil {
		return nil, err
	}
	f := store.DeploymentFilter{CertificateID: r.GetCertificateId(), TargetID: r.GetTargetId(), AgentID: r.GetAgentId(), Statuses: statuses}
	p, err := listPage(ctx, c, r, lister[store.Deployment]{
		collection: store.Deployments,
		rows: func(ctx context.Context, s store.Slice) ([]store.Deployment, error) {
			return c.store.ListDeployments(ctx, f, s)
		},
		count: func(ctx context.Context) (int32, error) { return c.store.CountDeployments(ctx, f) },
		cursor: func(d store.Deployment, field string) (page.Value, page.Value) {
			if field == "update_time" {
				return page.TimeValue(d.UpdateTime), page.TextValue(d.ID)
			}
			return page.TimeValue(d.CreateTime), page.TextValue(d.ID)
		},
	})
	if err != nil {
		return nil, err
	}
	return &inventoryv1.ListDeploymentsResponse{Deployments: view.Each(p.rows, view.Deployment), NextPageToken: p.next, TotalSize: p.total}, nil
}

// GetDeployment answers one.
func (c *Core) GetDeployment(ctx context.Context, r *inventoryv1.GetDeploymentRequest) (*inventoryv1.GetDeploymentResponse, error) {
	d, err := c.store.GetDeployment(ctx, r.GetId())
	if d, err = found(d, err, resourceDeployment, r.GetId()); err != nil {
		return nil, err
	}
	return &inventoryv1.GetDeploymentResponse{Deployment: view.Deployment(d)}, nil
}

// desired is a version that a target shall serve.
type desired struct {
	certificateID, targetID, agentID string
	version                          int32
	force                            bool
	requestKey                       string
	// requestID, if not empty, is what the events about it come from.
	requestID string
}

// at is where it is to be served.
func (w desired) at() store.Place {
	return store.Place{CertificateID: w.certificateID, TargetID: w.targetID}
}

// desire opens deployments, or turns those that there are to the versions, and puts the work into the mailboxes at once. The caller holds
// the certificates' locks. Of several for one place the last counts. However many there are, it takes the statements of one.
func (c *Core) desire(ctx context.Context, t *store.Tx, list ...desired) error {
	last := make(map[store.Place]desired, len(list))
	var places []store.Place
	for _, w := range list {
		if _, ok := last[w.at()]; !ok {
			places = append(places, w.at())
		}
		last[w.at()] = w
	}
	if len(places) == 0 {
		return nil
	}
	known, err := t.LockDeploymentsAt(ctx, places)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(c.cfg.DeployDeadline)
	var fresh []store.Deployment
	var anew []store.Desire
	var ids []string
	for _, at := range places {
		w := last[at]
		if d, ok := known[at]; ok {
			anew, ids = append(anew, store.Desire{ID: d.ID, Version: w.version, Force: w.force, RequestKey: w.requestKey, Deadline: deadline}), append(ids, d.ID)
			continue
		}
		id, err := newID("dep")
		if err != nil {
			return err
		}
		fresh = append(fresh, store.Deployment{
			ID: id, CertificateID: w.certificateID, TargetID: w.targetID, AgentID: w.agentID, DesiredVersion: w.version, Force: w.force,
			RequestKey: w.requestKey, DeadlineTime: &deadline,
		})
	}
	opened, err := t.InsertDeployments(ctx, fresh)
	if err != nil {
		return err
	}
	turned, err := t.DesireDeployments(ctx, anew)
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		if _, err := t.CancelOpen(ctx, store.OpenSelection{DeploymentIDs: ids}); err != nil {
			return err
		}
	}
	opened = append(opened, turned...)
	if err := c.openAssignments(ctx, t, store.KindDeploy, opened, deadline); err != nil {
		return err
	}
	for _, d := range opened {
		if cause := last[store.Place{CertificateID: d.CertificateID, TargetID: d.TargetID}].requestID; cause != "" {
			t.CausedBy(cause)
		}
		tellDeployment(t, d)
	}
	return nil
}

// openDeploy puts a PENDING deployment into the agent's mailbox; the dispatcher looks at it again at its deadline.
func (c *Core) openDeploy(ctx context.Context, t *store.Tx, d store.Deployment, deadline time.Time) error {
	if err := c.openAssignments(ctx, t, store.KindDeploy, []store.Deployment{d}, deadline); err != nil {
		return err
	}
	if err := t.PostponeDeployment(ctx, d.ID, deadline); err != nil {
		return err
	}
	return c.deploymentChanged(ctx, t, d.ID)
}

// openAssignments puts work on deployments into mailboxes.
func (c *Core) openAssignments(ctx context.Context, t *store.Tx, kind string, deployments []store.Deployment, deadline time.Time) error {
	work := make([]store.Assignment, 0, len(deployments))
	for _, d := range deployments {
		id, err := newID("")
		if err != nil {
			return err
		}
		work = append(work, store.Assignment{
			ID: id, AgentID: d.AgentID, Kind: kind, CertificateID: d.CertificateID, DeploymentID: d.ID, Version: d.DesiredVersion, DeadlineTime: deadline,
		})
	}
	_, err := t.InsertAssignments(ctx, work)
	return err
}

// deploymentChanged tells the scheduler what a deployment is now.
func (c *Core) deploymentChanged(ctx context.Context, t *store.Tx, id string) error {
	d, err := t.GetDeployment(ctx, id)
	if err != nil {
		return err
	}
	tellDeployment(t, d)
	return nil
}

// tellDeployment tells it where the scheduler does something about it: a job waits for a deployment that was requested, and what has drifted
// is put right.
func tellDeployment(t *store.Tx, d store.Deployment) {
	t.Changed(store.Deployments)
	if d.RequestKey == "" && d.Status != store.DeploymentDrifted {
		return
	}
	tell(t, toScheduler, "deployment.changed", resourceDeployment, d.ID, &inventoryv1.DeploymentChanged{Deployment: view.Deployment(d), RequestKey: d.RequestKey})
}

// closeDeployments ends deployments that nobody wants any more: their rows go, the last word on them is an event.
func (c *Core) closeDeployments(ctx context.Context, t *store.Tx, s store.DeploymentSelection, why string) error {
	deployments, err := t.LockDeployments(ctx, s)
	if err != nil {
		return err
	}
	for _, d := range deployments {
		if _, err := t.CancelOpen(ctx, store.OpenSelection{DeploymentID: d.ID}); err != nil {
			return err
		}
		if err := t.DeleteDeployment(ctx, d.ID); err != nil {
			return err
		}
		c.deploymentClosed(ctx, t, d, why)
	}
	return nil
}

// deploymentClosed is the last word on a deployment whose row is gone.
func (c *Core) deploymentClosed(ctx context.Context, t *store.Tx, d store.Deployment, why string) {
	d.Status, d.ErrorReason, d.ErrorMessage = store.DeploymentFailed, "DEPLOYMENT_CLOSED", why
	d.DueTime = time.Time{} // nobody tries again
	tell(t, toScheduler, "deployment.changed", resourceDeployment, d.ID, &inventoryv1.DeploymentChanged{Deployment: view.Deployment(d), RequestKey: d.RequestKey})
	audit(ctx, t, "deployment.closed", resourceDeployment, d.ID, map[string]any{"certificate_id": d.CertificateID, "target_id": d.TargetID, "why": why})
	t.Changed(store.Deployments)
}

// redeploy has all deployments on a target made again, after its configuration changed.
func (c *Core) redeploy(ctx context.Context, t *store.Tx, targetID string) error {
	deployments, err := t.LockDeployments(ctx, store.DeploymentSelection{TargetID: targetID})
	if err != nil {
		return err
	}
	list := make([]desired, 0, len(deployments))
	for _, d := range deployments {
		list = append(list, desired{certificateID: d.CertificateID, targetID: d.TargetID, agentID: d.AgentID, version: d.DesiredVersion, force: true})
	}
	return c.desire(ctx, t, list...)
}

// RequestDeployment makes a deployment due now. A repeat with the same key answers it as it stands.
func (c *Core) RequestDeployment(ctx context.Context, r *inventoryv1.RequestDeploymentRequest) (*inventoryv1.RequestDeploymentResponse, error) {
	var out store.Deployment
	err := c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		row, err := t.LockCertificate(ctx, r.GetCertificateId())
		if row, err = found(row, err, resourceCertificate, r.GetCertificateId()); err != nil {
			return err
		}
		if row.Final() {
			return wrongState(resourceCertificate, row.ID, row.Status, "it is no longer deployed")
		}
		at := store.Place{CertificateID: row.ID, TargetID: r.GetTargetId()}
		known, err := t.LockDeploymentsAt(ctx, []store.Place{at})
		if err != nil {
			return err
		}
		if d, ok := known[at]; ok && d.RequestKey == r.GetRequestKey() {
			out = d
			return nil
		}
		if err := c.requestDeployment(ctx, t, row, r); err != nil {
			return err
		}
		known, err = t.LockDeploymentsAt(ctx, []store.Place{at})
		out = known[at]
		return err
	})
	if err != nil {
		return nil, err
	}
	return &inventoryv1.RequestDeploymentResponse{Deployment: view.Deployment(out)}, nil
}

func (c *Core) requestDeployment(ctx context.Context, t *store.Tx, row store.Certificate, r *inventoryv1.RequestDeploymentRequest) error {
	targets, err := t.GetTargetAgents(ctx, []string{r.GetTargetId()})
	if err != nil {
		return err
	}
	if len(targets) == 0 || !slices.Contains(row.TargetIDs, r.GetTargetId()) {
		return errs.New(errs.Conflict, "TARGET_NOT_BOUND", "target %s is not bound to certificate %s", r.GetTargetId(), row.ID)
	}
	if targets[0].AgentStatus == store.AgentRetired {
		return wrongState(resourceAgent, targets[0].AgentID, store.AgentRetired, "it takes no deployments")
	}
	v, err := t.VersionFor(ctx, row.ID, targets[0].AgentID)
	if errors.Is(err, store.ErrNotFound) {
		return errs.New(errs.Conflict, "NO_VERSION", "certificate %s has no version for agent %s yet", row.ID, targets[0].AgentID)
	}
	if err != nil {
		return err
	}
	return c.desire(ctx, t, desired{
		certificateID: row.ID, targetID: r.GetTargetId(), agentID: targets[0].AgentID, version: v.Version, force: true, requestKey: r.GetRequestKey(),
	})
}

// nextVerify is when a deployment that is in place is looked at again.
func (c *Core) nextVerify() time.Time { return time.Now().Add(jittered(c.cfg.VerifyInterval)) }

// served tells of a try that ended with success.
func (c *Core) served(ctx context.Context, t *store.Tx, d store.Deployment) {
	audit(ctx, t, "deployment.served", resourceDeployment, d.ID, map[string]any{
		"certificate_id": d.CertificateID, "target_id": d.TargetID, "version": d.ServedVersion, "fingerprint_sha256": d.ServedFingerprint,
		"address": d.VerifiedAddress,
	})
	tellDeployment(t, d)
}

// failed ends a try without success: another one follows, soon while there are tries left, and slowly after that.
func (c *Core) failed(ctx context.Context, t *store.Tx, d store.Deployment, s store.Setback, permanent bool) error {
	over := d.DeadlineTime != nil && !d.DeadlineTime.After(time.Now())
	if d.Status == store.DeploymentDeploying && !permanent && !over && d.Attempt < c.cfg.DeployMaxAttempts {
		s.Due = time.Now().Add(c.backoff(d.Attempt))
		moved, err := t.RetryDeployment(ctx, d.ID, s)
		if err != nil || !moved {
			return err
		}
		return c.deploymentChanged(ctx, t, d.ID)
	}
	s.Due = time.Now().Add(jittered(c.cfg.FailedRetry))
	moved, err := t.FailDeployment(ctx, d.ID, s)
	if err != nil || !moved {
		return err
	}
	audit(ctx, t, "deployment.failed", resourceDeployment, d.ID, map[string]any{
		"certificate_id": d.CertificateID, "target_id": d.TargetID, "version": d.DesiredVersion, "reason": s.Reason, "message": s.Message,
	})
	return c.deploymentChanged(ctx, t, d.ID)
}

// verified takes what a verification saw.
func (c *Core) verified(ctx context.Context, t *store.Tx, d store.Deployment, s store.Sighting) error {
	if s.Version == d.DesiredVersion {
		moved, err := t.ConfirmDeployment(ctx, d.ID, s)
		if err != nil || !moved || d.Status == store.DeploymentServed && d.ErrorReason == "" {
			t.Changed(store.Deployments)
			return err
		}
		return c.deploymentChanged(ctx, t, d.ID)
	}
	moved, err := t.DriftDeployment(ctx, d.ID, s)
	if err != nil || !moved {
		return err
	}
	if d.Status == store.DeploymentDrifted && d.ServedFingerprint == s.Fingerprint {
		t.Changed(store.Deployments)
		return nil
	}
	audit(ctx, t, "deployment.drifted", resourceDeployment, d.ID, map[string]any{
		"certificate_id": d.CertificateID, "target_id": d.TargetID, "desired_version": d.DesiredVersion, "served_version": s.Version,
		"served_fingerprint_sha256": s.Fingerprint,
	})
	return c.deploymentChanged(ctx, t, d.ID)
}
