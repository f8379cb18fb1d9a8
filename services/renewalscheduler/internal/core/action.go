package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpcctx"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// What people do. Each has a part that asks peers and is called before the transaction, and one that changes.

// Open reads a certificate on which work is to begin: 404, or 409 when it is over.
func (c *Core) Open(ctx context.Context, certificateID string) (*inventoryv1.CertificateRecord, error) {
	rec, err := c.knownRecord(ctx, certificateID)
	if err != nil {
		return nil, err
	}
	return rec, refuseClosed(rec.GetCertificate())
}

// who is the caller as it stands in jobs: nobody without a name may act.
func who(ctx context.Context) (string, error) {
	caller := rpcctx.CallerFrom(ctx)
	if caller.ID == "" {
		return "", errs.New(errs.PermissionDenied, "CALLER_UNKNOWN", "a job needs to know who asks")
	}
	return caller.ID, nil
}

// begin makes the plan of a certificate and locks it, for a job that a person asks for.
func (c *Core) begin(ctx context.Context, tx *store.Tx, rec *inventoryv1.CertificateRecord) (*store.Plan, *store.Policy, string, error) {
	me, err := who(ctx)
	if err != nil {
		return nil, nil, "", err
	}
	p, err := c.ensurePlan(ctx, tx, rec.GetCertificate(), me)
	if err != nil {
		return nil, nil, "", err
	}
	if closed(p.CertificateStatus) {
		return nil, nil, "", refuseClosed(&inventoryv1.Certificate{Id: p.CertificateID,
			Status: inventoryv1.Certificate_Status(inventoryv1.Certificate_Status_value[p.CertificateStatus])})
	}
	policy, err := policyOf(ctx, tx, rec.GetCertificate().GetPolicyId())
	return p, policy, me, err
}

func kindOf(cert *inventoryv1.Certificate) store.JobType {
	if cert.GetCurrentVersion() > 0 {
		return store.Renew
	}
	return store.Issue
}

// RenewCertificate opens a job: 409 JOB_OPEN when there is one, and 409 NOT_DUE when it is too early and not forced.
func (c *Core) RenewCertificate(ctx context.Context, tx *store.Tx, rec *inventoryv1.CertificateRecord, force bool) (*store.Job, error) {
	p, policy, me, err := c.begin(ctx, tx, rec)
	if err != nil {
		return nil, err
	}
	cert := rec.GetCertificate()
	if _, err := tx.OpenJob(ctx, cert.GetId()); !errors.Is(err, store.ErrNotFound) {
		return nil, errors.Join(err, c.jobOpen(ctx, tx, cert.GetId()))
	}
	if !force {
		if err := c.refuseEarly(ctx, tx, p, policy, cert); err != nil {
			return nil, err
		}
	}
	j, err := c.openJob(ctx, tx, opening{kind: kindOf(cert), certificateID: cert.GetId(), requestedBy: me, policy: policy})
	if errors.Is(err, store.ErrOpen) {
		return nil, c.jobOpen(ctx, tx, cert.GetId())
	}
	if err != nil {
		return nil, err
	}
	tx.Emit(ctx, auditlog.Event(ctx, auditlog.Entry{
		Action: "certificate.renew.requested", ResourceType: "certificate", ResourceID: cert.GetId(),
		Data: map[string]any{"job_id": j.ID, "force": force},
	}))
	return j, nil
}

// refuseEarly is 409 when the policy's time has not come. Freeze windows and pauses after failures bind the schedule, not
// people.
func (c *Core) refuseEarly(ctx context.Context, tx *store.Tx, p *store.Plan, policy *store.Policy, cert *inventoryv1.Certificate) error {
	keys, err := tx.PlanKeys(ctx, p.CertificateID)
	if err != nil {
		return err
	}
	open := *policy
	open.FreezeWindows = nil
	r, _, ok := earliest(&open, p.CertificateID, keys, time.Time{})
	if !ok || !r.Time.After(c.now()) {
		return nil
	}
	return errs.New(errs.Conflict, "NOT_DUE", "certificate %s is %s and not due until %s (%s); set force to renew it now",
		cert.GetId(), cert.GetStatus(), timeText(r.Time), r.Rule).With("renew_time", timeText(r.Time)).With("state", cert.GetStatus().String())
}

// CheckCSR asks issuance whether the CSR fits the certificate: 400 on csr_pem with what does not.
func (c *Core) CheckCSR(ctx context.Context, rec *inventoryv1.CertificateRecord, csrPEM string) error {
	cert := rec.GetCertificate()
	r, err := c.issuance.CheckCsr(ctx, &issuancev1.CheckCsrRequest{
		IssuerId: cert.GetIssuerId(), ProfileId: cert.GetProfileId(), Names: namesOf(cert), KeyAlgorithm: cert.GetKeyAlgorithm(), CsrPem: csrPEM,
	})
	if err != nil {
		return fmt.Errorf("check CSR: %w", err)
	}
	var v errs.Violations
	for _, violation := range r.GetViolations() {
		text := violation.GetDescription()
		if f := violation.GetField(); f != "" && f != "csr_pem" {
			text = f + ": " + text
		}
		v.Add("csr_pem", "%s", text)
	}
	return v.Err()
}

// SubmitCSR gives a CSR to the open job that waits for it, or opens a job.
func (c *Core) SubmitCSR(ctx context.Context, tx *store.Tx, rec *inventoryv1.CertificateRecord, csrPEM string) (*store.Job, error) {
	_, policy, me, err := c.begin(ctx, tx, rec)
	if err != nil {
		return nil, err
	}
	cert := rec.GetCertificate()
	open, err := tx.OpenJob(ctx, cert.GetId())
	if errors.Is(err, store.ErrNotFound) {
		return c.openJob(ctx, tx, opening{kind: kindOf(cert), certificateID: cert.GetId(), requestedBy: me, policy: policy, callerCSR: csrPEM})
	}
	if err != nil {
		return nil, err
	}
	j, err := tx.LockJob(ctx, open.ID)
	if err != nil {
		return nil, err
	}
	if err := c.attachCSR(ctx, tx, j, rec, csrPEM, me); err != nil {
		return nil, err
	}
	tx.Changed(store.Jobs)
	return j, nil
}

// attachCSR gives a CSR to a locked job whose key the caller keeps.
func (c *Core) attachCSR(ctx context.Context, tx *store.Tx, j *store.Job, rec *inventoryv1.CertificateRecord, csrPEM, me string) error {
	keys, err := tx.Keys(ctx, j.ID)
	if err != nil {
		return err
	}
	if len(keys) == 0 && slices.Equal(holdersOf(rec), []string{""}) {
		keys = []*store.Key{{JobID: j.ID, State: store.KeyAwaitingCSR}}
		if err := tx.AddKeys(ctx, keys...); err != nil {
			return err
		}
	}
	i := slices.IndexFunc(keys, func(k *store.Key) bool { return k.AgentID == "" })
	if i < 0 || keys[i].CsrPEM != "" && keys[i].State != store.KeyFailed || keys[i].State == store.KeyDone {
		return c.jobOpen(ctx, tx, j.CertificateID)
	}
	if j.ApprovedBy == me {
		return errs.New(errs.PermissionDenied, "OWN_APPROVAL", "%s has approved job %s, and so cannot bring the CSR for it", me, j.ID).With("job_id", j.ID)
	}
	*keys[i] = store.Key{JobID: j.ID, State: store.KeyAwaitingCSR, CsrPEM: csrPEM}
	if err := tx.SaveKey(ctx, keys[i]); err != nil {
		return err
	}
	j.Askers = withAsker(j.Askers, me)
	c.auditJob(ctx, tx, j, "job.csr.submitted", note{})
	if j.State == store.Pending {
		j.DueTime = c.now()
	}
	return c.settle(ctx, tx, j)
}

// DeployCertificate opens a DEPLOY job for each target, or finds the open one. No targets: all of the certificate.
func (c *Core) DeployCertificate(ctx context.Context, tx *store.Tx, rec *inventoryv1.CertificateRecord, targetIDs []string) ([]*store.Job, error) {
	cert := rec.GetCertificate()
	if err := noVersion(cert); err != nil {
		return nil, err
	}
	var v errs.Violations
	for i, id := range targetIDs {
		if !slices.Contains(cert.GetTargetIds(), id) {
			v.Add(fmt.Sprintf("target_ids[%d]", i), "%q is not a target of certificate %s", id, cert.GetId())
		}
	}
	if err := v.Err(); err != nil {
		return nil, err
	}
	if len(targetIDs) == 0 {
		targetIDs = cert.GetTargetIds()
	}
	_, policy, me, err := c.begin(ctx, tx, rec)
	if err != nil {
		return nil, err
	}
	jobs := make([]*store.Job, 0, len(targetIDs))
	for _, id := range slices.Compact(slices.Sorted(slices.Values(targetIDs))) {
		j, err := c.openDeployJob(ctx, tx, opening{kind: store.Deploy, certificateID: cert.GetId(), targetID: id, requestedBy: me, policy: policy})
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, j)
	}
	return jobs, nil
}

// Job reads a job: 404.
func (c *Core) Job(ctx context.Context, id string) (*store.Job, error) {
	j, err := c.store.Job(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, errs.New(errs.NotFound, "JOB_NOT_FOUND", "job %s not found", id).With("job_id", id)
	}
	return j, err
}

// wrongState is 409 that says the state.
func wrongState(j *store.Job, wanted string) error {
	return errs.New(errs.Conflict, "JOB_WRONG_STATE", "job %s is %s; %s", j.ID, j.State, wanted).With("job_id", j.ID).With("state", string(j.State))
}

// CancelJob ends an open job. A cancelled one answers as it is.
func (c *Core) CancelJob(ctx context.Context, tx *store.Tx, seen *store.Job) (*store.Job, error) {
	me, err := who(ctx)
	if err != nil {
		return nil, err
	}
	j, err := c.lockJob(ctx, tx, seen.ID, seen.CertificateID)
	if err != nil || j.State == store.Cancelled {
		return j, err
	}
	if j.State.Final() {
		return nil, wrongState(j, "only an open job can be cancelled")
	}
	err = c.end(ctx, tx, j, ending{transition: c.cancel(), action: "job.cancelled", byPerson: true,
		problem: store.Problem{Reason: "CANCELLED", Message: "cancelled by " + me}})
	if err != nil {
		return nil, err
	}
	tx.Changed(store.Jobs)
	return j, nil
}

// askedFor tells whether the job is, in part, the caller's own wish.
func askedFor(j *store.Job, me string) bool {
	return j.RequestedBy == me || slices.Contains(j.Askers, me)
}

// ApproveJob lets a waiting job run; never by who asked for it, and never after its time.
func (c *Core) ApproveJob(ctx context.Context, tx *store.Tx, seen *store.Job, comment string) (*store.Job, error) {
	me, err := who(ctx)
	if err != nil {
		return nil, err
	}
	j, err := c.lockJob(ctx, tx, seen.ID, seen.CertificateID)
	if err != nil {
		return nil, err
	}
	if j.State != store.AwaitingApproval && j.ApprovedBy == me {
		return j, nil
	}
	if j.State != store.AwaitingApproval {
		return nil, wrongState(j, "only a job that awaits approval can be approved")
	}
	if askedFor(j, me) {
		return nil, errs.New(errs.PermissionDenied, "OWN_REQUEST", "%s has asked for job %s, and so cannot approve it", me, j.ID).With("job_id", j.ID)
	}
	now := c.now()
	if !j.DeadlineTime.After(now) {
		return nil, wrongState(j, "its time for approval ended at "+timeText(j.DeadlineTime))
	}
	j.ApprovedBy, j.ApprovalComment, j.Error = me, comment, store.Problem{}
	j.DueTime, j.DeadlineTime = now, now.Add(c.cfg.StartTimeout)
	if err := c.approve().apply(ctx, tx, j); err != nil {
		return nil, err
	}
	c.auditJob(ctx, tx, j, "job.approved", note{comment: comment})
	tx.Changed(store.Jobs)
	return j, nil
}

// rejected is the reason of a job that an approver has turned down.
const rejected = "REJECTED"

// RejectJob ends a job that waits for approval.
func (c *Core) RejectJob(ctx context.Context, tx *store.Tx, seen *store.Job, comment string) (*store.Job, error) {
	me, err := who(ctx)
	if err != nil {
		return nil, err
	}
	j, err := c.lockJob(ctx, tx, seen.ID, seen.CertificateID)
	if err != nil || j.State == store.Cancelled && j.Error.Reason == rejected {
		return j, err
	}
	if j.State != store.AwaitingApproval {
		return nil, wrongState(j, "only a job that awaits approval can be rejected")
	}
	message := "rejected by " + me
	if comment = strings.TrimSpace(comment); comment != "" {
		message += ": " + comment
	}
	err = c.end(ctx, tx, j, ending{transition: c.reject(), action: "job.rejected", comment: comment, byPerson: true,
		problem: store.Problem{Reason: rejected, Message: message}})
	if err != nil {
		return nil, err
	}
	tx.Changed(store.Jobs)
	return j, nil
}

// RetryJob opens fresh work for a job that did not succeed. Approval is asked for again, and neither who asked first nor
// who asks now may give it.
func (c *Core) RetryJob(ctx context.Context, tx *store.Tx, seen *store.Job, rec *inventoryv1.CertificateRecord) (*store.Job, error) {
	p, policy, me, err := c.begin(ctx, tx, rec)
	if err != nil {
		return nil, err
	}
	old, err := tx.LockJob(ctx, seen.ID)
	if err != nil {
		return nil, err
	}
	if old.State == store.Completed || !old.State.Final() {
		return nil, wrongState(old, "only a job that failed, expired or was cancelled can be retried")
	}
	o := opening{
		kind: old.Type, certificateID: old.CertificateID, targetID: old.TargetID, requestedBy: me, askers: old.Askers, retryOf: old.ID,
		policy: policy, action: "job.retried",
	}
	if o.agents, o.callerCSR, err = c.leftKeys(ctx, tx, leftOf{job: old, plan: p, rec: rec}); err != nil {
		return nil, err
	}
	j, err := c.openJob(ctx, tx, o)
	if errors.Is(err, store.ErrOpen) && old.Type == store.Deploy {
		open, err := tx.OpenDeployJob(ctx, old.CertificateID, old.TargetID)
		if err != nil {
			return nil, err
		}
		return nil, errs.New(errs.Conflict, "JOB_OPEN", "job %s for the same target is open (%s)", open.ID, open.State).
			With("job_id", open.ID).With("state", string(open.State))
	}
	if errors.Is(err, store.ErrOpen) {
		return nil, c.jobOpen(ctx, tx, old.CertificateID)
	}
	return j, err
}

// leftOf is an ended job with what its certificate is now.
type leftOf struct {
	job  *store.Job
	plan *store.Plan
	rec  *inventoryv1.CertificateRecord
}

// leftKeys are the keys of an ended job that have no version yet of what is wanted now. Nothing: the new job makes all that
// the certificate has.
func (c *Core) leftKeys(ctx context.Context, tx *store.Tx, left leftOf) (agents []string, callerCSR string, err error) {
	keys, err := tx.Keys(ctx, left.job.ID)
	if err != nil {
		return nil, "", err
	}
	holders := holdersOf(left.rec)
	for _, k := range keys {
		is, err := orderedSubject(k)
		if err != nil {
			return nil, "", err
		}
		current := is == "" || is == left.plan.Subject
		switch {
		case k.State == store.KeyDone && current:
		case k.AgentID == "" && k.CsrPEM != "" && (k.State != store.KeyFailed || k.KeepCSR):
			callerCSR = k.CsrPEM
		case k.AgentID == "" || slices.Contains(holders, k.AgentID):
			agents = append(agents, k.AgentID)
		}
	}
	return agents, callerCSR, nil
}
