package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/certctl/certctl/pkg/errs"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// DefaultMaxAttempts is how often a job tries when its policy does not say.
const DefaultMaxAttempts = 5

// opening is a job that is to be opened.
type opening struct {
	kind          store.JobType
	certificateID string
	targetID      string
	requestedBy   string
	// askers are those who asked for the same work before.
	askers  []string
	retryOf string
	policy  *store.Policy
	// agents are the key holders; none: those that the certificate has when the job starts.
	agents []string
	// callerCSR is a CSR for a key that the caller keeps.
	callerCSR string
	action    string
	// cause is why there is a job although nobody asked for one; it is in the record.
	cause string
}

// openJob stores a PENDING job. The plan of the certificate is locked by the caller; store.ErrOpen when an open job is
// in the way.
func (c *Core) openJob(ctx context.Context, tx *store.Tx, o opening) (*store.Job, error) {
	id, err := newID("job")
	if err != nil {
		return nil, err
	}
	p, err := tx.LockPlan(ctx, o.certificateID)
	if err != nil {
		return nil, fmt.Errorf("lock plan: %w", err)
	}
	askers := withAsker(o.askers, o.requestedBy)
	if p.SubjectBy != "" {
		// Who wished what is issued now has asked for it, whoever opens the job.
		askers = withAsker(askers, p.SubjectBy)
	}
	now := c.now()
	j := &store.Job{
		ID: id, Type: o.kind, State: store.Pending, CertificateID: o.certificateID, TargetID: o.targetID, RetryOf: o.retryOf,
		MaxAttempts: DefaultMaxAttempts, RequestedBy: o.requestedBy, Askers: askers,
		CreateTime: now, DueTime: now, DeadlineTime: now.Add(c.cfg.StartTimeout), Revision: 1,
	}
	if o.policy != nil {
		j.MaxAttempts = o.policy.MaxAttempts
	}
	if err := tx.InsertJob(ctx, j); err != nil {
		return nil, err
	}
	for _, agent := range o.agents {
		if err := tx.AddKeys(ctx, &store.Key{JobID: id, AgentID: agent, State: store.KeyAwaitingCSR}); err != nil {
			return nil, err
		}
	}
	if o.callerCSR != "" {
		if err := tx.AddKeys(ctx, &store.Key{JobID: id, State: store.KeyAwaitingCSR, CsrPEM: o.callerCSR}); err != nil {
			return nil, err
		}
	}
	action := o.action
	if action == "" {
		action = "job.created"
	}
	c.auditJob(ctx, tx, j, action, note{cause: o.cause})
	if j.MakesKeys() {
		if err := c.refreshPlan(ctx, tx, p); err != nil {
			return nil, err
		}
	}
	tx.Changed(store.Jobs)
	return j, nil
}

func withAsker(askers []string, who string) []string {
	if slices.Contains(askers, who) {
		return slices.Clone(askers)
	}
	return append(slices.Clone(askers), who)
}

// lockJob locks the plan of a job's certificate and then the job: everything about one certificate happens one after the
// other.
func (c *Core) lockJob(ctx context.Context, tx *store.Tx, jobID, certificateID string) (*store.Job, error) {
	if _, err := tx.LockPlan(ctx, certificateID); err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	return tx.LockJob(ctx, jobID)
}

// ensurePlan makes or finds the plan of a certificate, and locks it.
func (c *Core) ensurePlan(ctx context.Context, tx *store.Tx, cert *inventoryv1.Certificate, createdBy string) (*store.Plan, error) {
	return tx.EnsurePlan(ctx, c.newPlan(cert, createdBy))
}

func (c *Core) newPlan(cert *inventoryv1.Certificate, createdBy string) *store.Plan {
	return &store.Plan{
		CertificateID: cert.GetId(), PolicyID: cert.GetPolicyId(), CertificateStatus: cert.GetStatus().String(), RequestedBy: createdBy, CreateTime: c.now(),
	}
}

// jobOpen is 409 with the job in the way.
func (c *Core) jobOpen(ctx context.Context, q interface {
	OpenJob(ctx context.Context, certificateID string) (*store.Job, error)
}, certificateID string,
) error {
	e := errs.New(errs.Conflict, "JOB_OPEN", "a job of certificate %s is open already", certificateID).With("certificate_id", certificateID)
	j, err := q.OpenJob(ctx, certificateID)
	if errors.Is(err, store.ErrNotFound) {
		return e
	}
	if err != nil {
		return err
	}
	return errs.New(errs.Conflict, "JOB_OPEN", "job %s of certificate %s is open (%s)", j.ID, certificateID, j.State).
		With("job_id", j.ID).With("state", string(j.State)).With("certificate_id", certificateID)
}

func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339) }
