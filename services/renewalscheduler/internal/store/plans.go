package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const planColumns = `id, state, policy_id, policy_revision, certificate_status, requested_by, renew_at, not_after, rule, freeze_reason, frozen_until,
 failures, retry_time, reopen, subject, subject_by, reissue, create_time, update_time, due_time`

func scanPlan(row pgx.CollectableRow) (*Plan, error) {
	p := &Plan{}
	var renewAt, notAfter, frozen, retry, due *time.Time
	err := row.Scan(&p.CertificateID, &p.State, &p.PolicyID, &p.PolicyRevision, &p.CertificateStatus, &p.RequestedBy, &renewAt, &notAfter,
		&p.Rule, &p.FreezeReason, &frozen, &p.Failures, &retry, &p.Reopen, &p.Subject, &p.SubjectBy, &p.Reissue, &p.CreateTime, &p.UpdateTime, &due)
	p.RenewAt, p.NotAfter, p.FrozenUntil, p.RetryTime, p.DueTime = goTime(renewAt), goTime(notAfter), goTime(frozen), goTime(retry), goTime(due)
	return p, err
}

func (q Queries) plans(ctx context.Context, where string, args ...any) ([]*Plan, error) {
	rows, err := q.db.Query(ctx, `SELECT `+planColumns+` FROM plans WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read plans: %w", err)
	}
	out, err := pgx.CollectRows(rows, scanPlan)
	if err != nil {
		return nil, fmt.Errorf("read plans: %w", err)
	}
	return out, nil
}

// Plan reads the plan of a certificate; ErrNotFound.
func (q Queries) Plan(ctx context.Context, certificateID string) (*Plan, error) {
	return one(q.plans(ctx, `id = $1`, certificateID))
}

// LockPlan reads the plan of a certificate and keeps it from changing until the transaction ends; ErrNotFound. Whoever
// locks a plan and a job locks the plan first.
func (t *Tx) LockPlan(ctx context.Context, certificateID string) (*Plan, error) {
	return one(t.plans(ctx, `id = $1 FOR UPDATE`, certificateID))
}

// EnsurePlan makes the plan of a certificate if there is none, and locks it.
func (t *Tx) EnsurePlan(ctx context.Context, p *Plan) (*Plan, error) {
	_, err := t.tx.Exec(ctx, `INSERT INTO plans (id, state, policy_id, policy_revision, certificate_status, requested_by, create_time, update_time)
 VALUES ($1, 'IDLE', $2, 0, $3, $4, $5, $5) ON CONFLICT (id) DO NOTHING`, p.CertificateID, p.PolicyID, p.CertificateStatus, p.RequestedBy, p.CreateTime)
	if err != nil {
		return nil, fmt.Errorf("store plan: %w", err)
	}
	return t.LockPlan(ctx, p.CertificateID)
}

// SavePlan stores a locked plan and gives back its lease.
func (t *Tx) SavePlan(ctx context.Context, p *Plan) error {
	_, err := t.tx.Exec(ctx, `UPDATE plans SET state = $2, policy_id = $3, policy_revision = $4, certificate_status = $5, renew_at = $6, not_after = $7,
 rule = $8, freeze_reason = $9, frozen_until = $10, failures = $11, retry_time = $12, reopen = $13, update_time = $14, due_time = $15,
 subject = $16, subject_by = $17, reissue = $18,
 attempts = 0, lease_id = NULL, lease_until = NULL WHERE id = $1`,
		p.CertificateID, p.State, p.PolicyID, p.PolicyRevision, p.CertificateStatus, sqlTime(p.RenewAt), sqlTime(p.NotAfter), p.Rule, p.FreezeReason,
		sqlTime(p.FrozenUntil), p.Failures, sqlTime(p.RetryTime), p.Reopen, p.UpdateTime, sqlTime(p.DueTime), p.Subject, p.SubjectBy, p.Reissue)
	if err != nil {
		return fmt.Errorf("store plan: %w", err)
	}
	return nil
}

// StalePlans locks at most limit plans that were made with another revision of the policy. Plans that others work on are
// left out. Each half reads only stale plans from the index: "<>" would read all of the policy's for every batch.
func (t *Tx) StalePlans(ctx context.Context, policyID string, limit int) ([]*Plan, error) {
	var out []*Plan
	for _, other := range []string{"<", ">"} {
		// A policy that was deleted and made anew begins at 1 again, so that plans can be ahead of it.
		plans, err := t.plans(ctx, `policy_id = $1 AND policy_revision `+other+` (SELECT revision FROM policies WHERE id = $1) AND state <> 'ENDED'
 ORDER BY policy_revision, id LIMIT $2 FOR UPDATE SKIP LOCKED`, policyID, limit-len(out))
		if err != nil {
			return nil, err
		}
		out = append(out, plans...)
	}
	return out, nil
}

// StalePolicies reads the policies that have plans made with another revision. Lowest and highest are the two ends of an
// index, however many plans there are.
func (q Queries) StalePolicies(ctx context.Context) ([]string, error) {
	rows, err := q.db.Query(ctx, `SELECT p.id FROM policies p
 WHERE (SELECT min(policy_revision) FROM plans WHERE policy_id = p.id AND state <> 'ENDED') < p.revision
 OR (SELECT max(policy_revision) FROM plans WHERE policy_id = p.id AND state <> 'ENDED') > p.revision ORDER BY p.id`)
	if err != nil {
		return nil, fmt.Errorf("look for stale plans: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for stale plans: %w", err)
	}
	return ids, nil
}

// PlanKeys reads the versions that a plan is made from.
func (q Queries) PlanKeys(ctx context.Context, certificateID string) ([]PlanKey, error) {
	rows, err := q.db.Query(ctx, `SELECT certificate_id, agent_id, version, not_before, not_after FROM plan_keys
 WHERE certificate_id = $1 ORDER BY agent_id`, certificateID)
	if err != nil {
		return nil, fmt.Errorf("read plan keys: %w", err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByPos[PlanKey])
	if err != nil {
		return nil, fmt.Errorf("read plan keys: %w", err)
	}
	return out, nil
}

// SavePlanKey stores the newest version for a key; an older one than is known is left out.
func (t *Tx) SavePlanKey(ctx context.Context, k PlanKey) error {
	_, err := t.tx.Exec(ctx, `INSERT INTO plan_keys AS k (certificate_id, agent_id, version, not_before, not_after) VALUES ($1, $2, $3, $4, $5)
 ON CONFLICT (certificate_id, agent_id) DO UPDATE SET version = excluded.version, not_before = excluded.not_before, not_after = excluded.not_after
 WHERE k.version < excluded.version`, k.CertificateID, k.AgentID, k.Version, k.NotBefore, k.NotAfter)
	if err != nil {
		return fmt.Errorf("store plan key: %w", err)
	}
	return nil
}

// KeepPlanKeys forgets the keys of all but these holders.
func (t *Tx) KeepPlanKeys(ctx context.Context, certificateID string, holders []string) error {
	_, err := t.tx.Exec(ctx, `DELETE FROM plan_keys WHERE certificate_id = $1 AND NOT agent_id = ANY($2)`, certificateID, holders)
	if err != nil {
		return fmt.Errorf("forget plan keys: %w", err)
	}
	return nil
}

// Due tells which loops have work by the time alone.
type Due struct {
	Renewals  bool
	Retries   bool
	Deadlines bool
	// Jobs: also those whose worker died and whose lease has run out.
	Jobs bool
}

// LookAhead asks for due work of the slow loops.
func (q Queries) LookAhead(ctx context.Context, now time.Time) (Due, error) {
	var d Due
	err := q.db.QueryRow(ctx, `SELECT
 EXISTS (SELECT 1 FROM plans WHERE state = 'SCHEDULED' AND due_time <= $1),
 EXISTS (SELECT 1 FROM plans WHERE state = 'RETRYING' AND due_time <= $1),
 EXISTS (SELECT 1 FROM jobs WHERE end_time IS NULL AND deadline_time <= $1),
 EXISTS (SELECT 1 FROM jobs WHERE state IN ('PENDING', 'AWAITING_CSR', 'AWAITING_CA', 'RUNNING') AND due_time <= $1
  AND (lease_until IS NULL OR lease_until <= $1))`, now).Scan(&d.Renewals, &d.Retries, &d.Deadlines, &d.Jobs)
	if err != nil {
		return d, fmt.Errorf("look for due work: %w", err)
	}
	return d, nil
}

// AddCancellation notes that a task must be taken back.
func (t *Tx) AddCancellation(ctx context.Context, taskID, jobID string, due time.Time) error {
	id, err := uuid.Parse(taskID)
	if err != nil {
		return fmt.Errorf("parse task id: %w", err)
	}
	_, err = t.tx.Exec(ctx, `INSERT INTO task_cancellations (id, job_id, due_time) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING`, id, jobID, due)
	if err != nil {
		return fmt.Errorf("store task cancellation: %w", err)
	}
	return nil
}
