package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/lease"
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
	if t.holds(certificateID) {
		return one(t.held.plansOf([]string{certificateID}), nil)
	}
	return one(t.plans(ctx, `id = $1 FOR UPDATE`, certificateID))
}

// EnsurePlan makes the plan of a certificate if there is none, and locks it.
func (t *Tx) EnsurePlan(ctx context.Context, p *Plan) (*Plan, error) {
	if t.holds(p.CertificateID) && t.held.plans[p.CertificateID] != nil {
		return t.LockPlan(ctx, p.CertificateID)
	}
	if err := t.EnsurePlans(ctx, []*Plan{p}); err != nil {
		return nil, err
	}
	return t.LockPlan(ctx, p.CertificateID)
}

// EnsurePlans makes the plans that there are not, before Hold.
func (t *Tx) EnsurePlans(ctx context.Context, plans []*Plan) error {
	if len(plans) == 0 {
		return nil
	}
	var ids, policies, statuses, askers []string
	var created []time.Time
	for _, p := range plans {
		ids, policies, statuses = append(ids, p.CertificateID), append(policies, p.PolicyID), append(statuses, p.CertificateStatus)
		askers, created = append(askers, p.RequestedBy), append(created, p.CreateTime)
	}
	_, err := t.db.Exec(ctx, `INSERT INTO plans (id, state, policy_id, policy_revision, certificate_status, requested_by, create_time, update_time)
SELECT id, 'IDLE', policy_id, 0, status, requested_by, create_time, create_time
 FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[]) AS e (id, policy_id, status, requested_by, create_time)
 ORDER BY id ON CONFLICT (id) DO NOTHING`, ids, policies, statuses, askers, created)
	if err != nil {
		return fmt.Errorf("store plans: %w", err)
	}
	return nil
}

// LeasedPlans locks those of claimed plans whose leases hold, and gives the ids of their certificates.
func (t *Tx) LeasedPlans(ctx context.Context, leases []lease.Lease) ([]string, error) {
	ids, tokens := make([]string, 0, len(leases)), make([]uuid.UUID, 0, len(leases))
	for _, l := range leases {
		ids, tokens = append(ids, l.ID), append(tokens, l.LeaseID)
	}
	rows, err := t.db.Query(ctx, `SELECT p.id FROM plans p JOIN unnest($1::text[], $2::uuid[]) AS l (id, lease_id) ON p.id = l.id AND p.lease_id = l.lease_id
 ORDER BY p.id FOR UPDATE OF p`, ids, tokens)
	if err != nil {
		return nil, fmt.Errorf("lock claimed plans: %w", err)
	}
	held, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("lock claimed plans: %w", err)
	}
	return held, nil
}

// SavePlans stores locked plans and gives back their leases.
func (t *Tx) SavePlans(ctx context.Context, plans []*Plan) error {
	ids := make([]string, 0, len(plans))
	for _, p := range plans {
		ids = append(ids, p.CertificateID)
	}
	if t.holds(ids...) {
		return t.held.savePlans(plans)
	}
	return t.updatePlans(ctx, plans)
}

func (t *Tx) updatePlans(ctx context.Context, plans []*Plan) error {
	var c planColumnar
	for _, p := range plans {
		c.add(p)
	}
	_, err := t.db.Exec(ctx, `UPDATE plans p SET state = e.state, policy_id = e.policy_id, policy_revision = e.policy_revision,
 certificate_status = e.certificate_status, renew_at = e.renew_at, not_after = e.not_after, rule = e.rule, freeze_reason = e.freeze_reason,
 frozen_until = e.frozen_until, failures = e.failures, retry_time = e.retry_time, reopen = e.reopen, update_time = e.update_time,
 due_time = e.due_time, subject = e.subject, subject_by = e.subject_by, reissue = e.reissue, attempts = 0, lease_id = NULL, lease_until = NULL
 FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::timestamptz[], $7::timestamptz[], $8::text[], $9::text[],
  $10::timestamptz[], $11::integer[], $12::timestamptz[], $13::boolean[], $14::timestamptz[], $15::timestamptz[], $16::text[], $17::text[], $18::text[])
  AS e (id, state, policy_id, policy_revision, certificate_status, renew_at, not_after, rule, freeze_reason, frozen_until, failures, retry_time,
  reopen, update_time, due_time, subject, subject_by, reissue) WHERE p.id = e.id`,
		c.ids, c.states, c.policies, c.policyRevisions, c.statuses, c.renewAt, c.notAfter, c.rules, c.freezes, c.frozenUntil, c.failures, c.retries,
		c.reopen, c.updated, c.due, c.subjects, c.subjectBy, c.reissues)
	if err != nil {
		return fmt.Errorf("store plans: %w", err)
	}
	return nil
}

// SavePlan is SavePlans of one.
func (t *Tx) SavePlan(ctx context.Context, p *Plan) error { return t.SavePlans(ctx, []*Plan{p}) }

// planColumnar are the arrays of SavePlans.
type planColumnar struct {
	ids, states, policies, statuses, rules, freezes, subjects, subjectBy, reissues []string
	policyRevisions                                                                []int32
	failures                                                                       []int
	renewAt, notAfter, frozenUntil, retries, due                                   []*time.Time
	updated                                                                        []time.Time
	reopen                                                                         []bool
}

func (c *planColumnar) add(p *Plan) {
	c.ids, c.states, c.policies = append(c.ids, p.CertificateID), append(c.states, string(p.State)), append(c.policies, p.PolicyID)
	c.policyRevisions, c.statuses = append(c.policyRevisions, p.PolicyRevision), append(c.statuses, p.CertificateStatus)
	c.renewAt, c.notAfter, c.rules = append(c.renewAt, sqlTime(p.RenewAt)), append(c.notAfter, sqlTime(p.NotAfter)), append(c.rules, p.Rule)
	c.freezes, c.frozenUntil = append(c.freezes, p.FreezeReason), append(c.frozenUntil, sqlTime(p.FrozenUntil))
	c.failures, c.retries, c.reopen = append(c.failures, p.Failures), append(c.retries, sqlTime(p.RetryTime)), append(c.reopen, p.Reopen)
	c.updated, c.due = append(c.updated, p.UpdateTime), append(c.due, sqlTime(p.DueTime))
	c.subjects, c.subjectBy, c.reissues = append(c.subjects, p.Subject), append(c.subjectBy, p.SubjectBy), append(c.reissues, p.Reissue)
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
	all, err := q.PlanKeysOf(ctx, []string{certificateID})
	return all[certificateID], err
}

// PlanKeys is PlanKeys of the queries.
func (t *Tx) PlanKeys(ctx context.Context, certificateID string) ([]PlanKey, error) {
	all, err := t.PlanKeysOf(ctx, []string{certificateID})
	return all[certificateID], err
}

// PlanKeysOf is PlanKeysOf of the queries.
func (t *Tx) PlanKeysOf(ctx context.Context, certificateIDs []string) (map[string][]PlanKey, error) {
	if t.holds(certificateIDs...) {
		return t.held.planKeys, nil
	}
	return t.Queries.PlanKeysOf(ctx, certificateIDs)
}

// PlanKeysOf is PlanKeys of many, by certificate.
func (q Queries) PlanKeysOf(ctx context.Context, certificateIDs []string) (map[string][]PlanKey, error) {
	rows, err := q.db.Query(ctx, `SELECT certificate_id, agent_id, version, not_before, not_after FROM plan_keys
 WHERE certificate_id = ANY($1) ORDER BY certificate_id, agent_id`, certificateIDs)
	if err != nil {
		return nil, fmt.Errorf("read plan keys: %w", err)
	}
	keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[PlanKey])
	if err != nil {
		return nil, fmt.Errorf("read plan keys: %w", err)
	}
	out := make(map[string][]PlanKey, len(certificateIDs))
	for _, k := range keys {
		out[k.CertificateID] = append(out[k.CertificateID], k)
	}
	return out, nil
}

// SavePlanKeys stores the newest versions for keys of held certificates; an older one than is known is left out.
func (t *Tx) SavePlanKeys(keys ...PlanKey) { t.held.savePlanKeys(keys) }

func (t *Tx) upsertPlanKeys(ctx context.Context, keys []PlanKey) error {
	var certificates, agents []string
	var versions []int32
	var begins, ends []time.Time
	for _, k := range keys {
		certificates, agents, versions = append(certificates, k.CertificateID), append(agents, k.AgentID), append(versions, k.Version)
		begins, ends = append(begins, k.NotBefore), append(ends, k.NotAfter)
	}
	_, err := t.db.Exec(ctx, `INSERT INTO plan_keys AS k (certificate_id, agent_id, version, not_before, not_after)
SELECT * FROM unnest($1::text[], $2::text[], $3::integer[], $4::timestamptz[], $5::timestamptz[])
 ON CONFLICT (certificate_id, agent_id) DO UPDATE SET version = excluded.version, not_before = excluded.not_before, not_after = excluded.not_after
 WHERE k.version < excluded.version`, certificates, agents, versions, begins, ends)
	if err != nil {
		return fmt.Errorf("store plan keys: %w", err)
	}
	return nil
}

// KeepPlanKeys forgets the keys of all but these holders.
func (t *Tx) KeepPlanKeys(ctx context.Context, certificateID string, holders []string) error {
	if t.holds(certificateID) {
		all := t.held.planKeys[certificateID]
		kept := slices.DeleteFunc(slices.Clone(all), func(k PlanKey) bool { return !slices.Contains(holders, k.AgentID) })
		if len(kept) == len(all) {
			return nil
		}
		t.held.planKeys[certificateID] = kept
		maps.DeleteFunc(t.held.newest, func(of [2]string, _ PlanKey) bool { return of[0] == certificateID && !slices.Contains(holders, of[1]) })
	}
	_, err := t.db.Exec(ctx, `DELETE FROM plan_keys WHERE certificate_id = $1 AND NOT agent_id = ANY($2)`, certificateID, holders)
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
 EXISTS (SELECT 1 FROM jobs WHERE state IN ('PENDING', 'AWAITING_CSR', 'AWAITING_CA', 'RUNNING') AND due_time > '-infinity' AND due_time <= $1
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
	_, err = t.db.Exec(ctx, `INSERT INTO task_cancellations (id, job_id, due_time) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING`, id, jobID, due)
	if err != nil {
		return fmt.Errorf("store task cancellation: %w", err)
	}
	return nil
}
