package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/tick"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// A plan is one row per certificate. Its time is the earliest over the keys of the certificate, and a renewal makes new
// versions for all of them: so their ends stay together, and one certificate never has two jobs.

// planAfter stores what the end of a job means for the plan.
func (c *Core) planAfter(ctx context.Context, tx *store.Tx, j *store.Job, was store.JobState, e ending) error {
	p, err := tx.LockPlan(ctx, j.CertificateID)
	if err != nil {
		return fmt.Errorf("lock plan: %w", err)
	}
	if j.State == store.Completed {
		return c.planAfterSuccess(ctx, tx, p, j)
	}
	p.Failures++
	p.RetryTime = c.now().Add(delayAfter(p.Failures, p.NotAfter.Sub(c.now())))
	// A renewal is always tried again, before the certificate ends and after. A first issue and a reissue are somebody's wish:
	// they are tried again when they failed, and not when people let them go.
	p.Reopen = !e.byPerson && (j.State == store.Failed || j.State == store.Expired && was == store.AwaitingCSR)
	if boughtInVain(e.problem.Reason) {
		// Each try costs a certificate: a first one waits for a human, and a renewal, which may not wait for ever, for a day.
		p.Reopen = false
		if least := c.now().Add(vainPause); p.RetryTime.Before(least) {
			p.RetryTime = least
		}
	}
	if !p.Reopen {
		p.Reissue = ""
	}
	return c.refreshPlan(ctx, tx, p)
}

// vainPause is how long a renewal rests whose last certificate was bought in vain.
const vainPause = 24 * time.Hour

// refreshPlan computes a locked plan from its policy, versions and open job, and stores it.
func (c *Core) refreshPlan(ctx context.Context, tx *store.Tx, p *store.Plan) error {
	return c.refreshPlans(ctx, tx, []*store.Plan{p})
}

// refreshPlans is refreshPlan of many, with as many statements as for one.
func (c *Core) refreshPlans(ctx context.Context, tx *store.Tx, plans []*store.Plan) error {
	if len(plans) == 0 {
		return nil
	}
	ids, policyIDs := make([]string, 0, len(plans)), make([]string, 0, 1)
	for _, p := range plans {
		ids = append(ids, p.CertificateID)
		if !slices.Contains(policyIDs, p.PolicyID) {
			policyIDs = append(policyIDs, p.PolicyID)
		}
	}
	policies, err := policiesOf(ctx, tx, policyIDs)
	if err != nil {
		return err
	}
	keys, err := tx.PlanKeysOf(ctx, ids)
	if err != nil {
		return err
	}
	open, err := tx.WithOpenJob(ctx, ids)
	if err != nil {
		return err
	}
	now := c.now()
	for _, p := range plans {
		policy := policies[p.PolicyID]
		p.PolicyRevision, p.UpdateTime = policy.Revision, now
		schedule(p, policy, keys[p.CertificateID], slices.Contains(open, p.CertificateID))
	}
	return tx.SavePlans(ctx, plans)
}

// schedule decides a plan's times and state.
func schedule(p *store.Plan, policy *store.Policy, keys []store.PlanKey, jobOpen bool) {
	p.RenewAt, p.NotAfter, p.DueTime = time.Time{}, time.Time{}, time.Time{}
	p.Rule, p.FreezeReason, p.FrozenUntil = "", "", time.Time{}
	if first, v, ok := earliest(policy, p.CertificateID, keys, p.RetryTime); ok {
		p.RenewAt, p.NotAfter, p.Rule = first.Time, v.notAfter, first.Rule
		noteFreeze(p, first)
	} else if p.Reopen {
		p.RenewAt, p.Rule = p.RetryTime, "the first issue is tried again"
	}
	if at := later(p.RetryTime, p.UpdateTime); p.Reissue != "" && (p.RenewAt.IsZero() || at.Before(p.RenewAt)) {
		p.RenewAt, p.Rule, p.FreezeReason, p.FrozenUntil = at, p.Reissue, "", time.Time{}
	}
	switch {
	case closed(p.CertificateStatus):
		p.State, p.RenewAt = store.PlanEnded, time.Time{}
	case !policy.Automatic && len(keys) > 0 && p.Reissue == "":
		p.State, p.RenewAt, p.Rule = store.PlanIdle, time.Time{}, "policy "+policy.ID+": only by request"
	case p.RenewAt.IsZero():
		p.State = store.PlanIdle
	case p.Failures > 0:
		p.State, p.DueTime = store.PlanRetrying, p.RenewAt
	default:
		p.State, p.DueTime = store.PlanScheduled, p.RenewAt
	}
	if jobOpen && p.State != store.PlanEnded {
		p.State, p.DueTime = store.PlanWorking, time.Time{}
	}
}

func noteFreeze(p *store.Plan, r renewal) {
	if r.Frozen != nil && !r.Forced {
		p.FreezeReason, p.FrozenUntil = r.Frozen.Reason, r.Frozen.End
	}
}

// earliest is the renewal that comes first over the keys; ok is false without any.
func earliest(policy *store.Policy, certificateID string, keys []store.PlanKey, notBefore time.Time) (first renewal, of validity, ok bool) {
	for _, k := range keys {
		v := validity{k.NotBefore, k.NotAfter}
		if r := renewalOf(policy, certificateID, v, notBefore); !ok || r.Time.Before(first.Time) {
			first, of, ok = r, v, true
		}
	}
	return first, of, ok
}

// workPlan opens the job of a plan that is due.
func (c *Core) workPlan(ctx context.Context, l lease.Lease) error {
	rec, err := c.record(ctx, l.ID)
	if err != nil {
		return err
	}
	opened, err := c.together.starts.Do(ctx, start{lease: l, record: rec, free: c.free(ctx, rec)})
	if err != nil {
		return fmt.Errorf("open job for %s: %w", l.ID, err)
	}
	if opened {
		c.Kick()
	}
	return nil
}

// free tells whether a certificate's jobs need no approval. While that is not known the job finds out.
func (c *Core) free(ctx context.Context, rec *inventoryv1.CertificateRecord) bool {
	if rec == nil {
		return false
	}
	profile, err := c.profile(ctx, rec.GetCertificate().GetProfileId())
	return err == nil && !profile.GetRequiresApproval()
}

// startPlan opens the job of a due plan whose lease is held, unless the plan is of another mind when it is made anew.
func (c *Core) startPlan(ctx context.Context, tx *store.Tx, s start) (opened bool, err error) {
	certificateID, rec := s.lease.ID, s.record
	p, err := tx.LockPlan(ctx, certificateID)
	if err != nil {
		return false, err
	}
	if rec == nil {
		p.CertificateStatus = inventoryv1.Certificate_ARCHIVED.String()
		return false, c.refreshPlan(ctx, tx, p)
	}
	if err := c.takeOver(ctx, tx, p, rec); err != nil {
		return false, err
	}
	now := c.now()
	if p.DueTime.IsZero() || p.DueTime.After(now) {
		return false, nil
	}
	policy, err := policyOf(ctx, tx, p.PolicyID)
	if err != nil {
		return false, err
	}
	keys, err := tx.PlanKeys(ctx, certificateID)
	if err != nil {
		return false, err
	}
	// A start that comes late, or from before a change, may have run into a freeze window. A reissue is somebody's wish, which
	// the schedule does not bind.
	if r, _, ok := earliest(policy, certificateID, keys, now); ok && r.Time.After(now) && p.Reissue == "" {
		p.DueTime, p.RenewAt = r.Time, r.Time
		noteFreeze(p, r)
		return false, tx.SavePlan(ctx, p)
	}
	j, err := c.openJob(ctx, tx, opening{
		kind: kindFor(p), certificateID: certificateID, requestedBy: c.askerOf(p), policy: policy, cause: p.Reissue,
	})
	if errors.Is(err, store.ErrOpen) {
		return false, c.refreshPlan(ctx, tx, p)
	}
	if err != nil || !s.free {
		return err == nil, err
	}
	w := &work{Core: c, job: j, rec: rec}
	return true, w.begin(ctx, tx, j)
}

// takeOver brings a plan to what inventory says now, and computes it.
func (c *Core) takeOver(ctx context.Context, tx *store.Tx, p *store.Plan, rec *inventoryv1.CertificateRecord) error {
	cert := rec.GetCertificate()
	p.CertificateStatus, p.PolicyID = cert.GetStatus().String(), cert.GetPolicyId()
	// With nobody left who makes keys the old ones still say when the certificate must be renewed.
	if active := activeHolders(rec); len(active) > 0 {
		if err := tx.KeepPlanKeys(ctx, p.CertificateID, active); err != nil {
			return err
		}
	}
	return c.refreshPlan(ctx, tx, p)
}

// activeHolders names the key holders that are not retired.
func activeHolders(rec *inventoryv1.CertificateRecord) []string {
	var out []string
	for _, h := range rec.GetKeyHolders() {
		if h.GetAgentStatus() != inventoryv1.Agent_RETIRED.String() {
			out = append(out, h.GetAgentId())
		}
	}
	return out
}

// holdersOf names who makes keys for a certificate: its agents that are not retired, or else the caller.
func holdersOf(rec *inventoryv1.CertificateRecord) []string {
	if active := activeHolders(rec); len(active) > 0 {
		return active
	}
	return []string{""}
}

func kindFor(p *store.Plan) store.JobType {
	if p.NotAfter.IsZero() {
		return store.Issue
	}
	return store.Renew
}

// askerOf is who stands behind a job that the sweep opens. A first issue stays the wish of who created the certificate,
// who must not be able to approve it because the clock asked again.
func (c *Core) askerOf(p *store.Plan) string {
	if kindFor(p) == store.Issue {
		return p.RequestedBy
	}
	return RenewalCheck
}

// staleBatch is how many plans one transaction computes again.
const staleBatch = 200

// RefreshStalePlans computes plans whose policy has changed, a batch per transaction, until none is left or ctx ends.
func (c *Core) RefreshStalePlans(ctx context.Context) (rows int, err error) {
	policies, err := c.store.StalePolicies(ctx)
	if err != nil {
		return 0, err
	}
	for _, id := range policies {
		for ctx.Err() == nil {
			n, err := c.refreshBatch(ctx, id)
			if err != nil {
				return rows, err
			}
			rows += n
			if n < staleBatch {
				break
			}
		}
	}
	return rows, nil
}

func (c *Core) refreshBatch(ctx context.Context, policyID string) (n int, err error) {
	err = c.store.Tx(ctx, func(ctx context.Context, tx *store.Tx) error {
		plans, err := tx.StalePlans(ctx, policyID, staleBatch)
		if err != nil {
			return err
		}
		n = len(plans)
		return c.refreshPlans(ctx, tx, plans)
	})
	if err != nil {
		return 0, fmt.Errorf("compute plans of policy %s again: %w", policyID, err)
	}
	return n, nil
}

// CheckRenewals is the renewal check: plans of changed policies are computed again, and due certificates get a job.
func (c *Core) CheckRenewals(ctx context.Context) (tick.Result, error) {
	refreshed, err := c.RefreshStalePlans(ctx)
	if err != nil {
		return tick.Result{}, err
	}
	r, err := c.scheduled.Sweep(ctx)
	r.Note = fmt.Sprintf("%d plans computed again, %d certificates due", refreshed, r.Rows)
	return r, err
}

// RetryJobs is the retry loop: certificates whose last job failed get a fresh one when their time has come.
func (c *Core) RetryJobs(ctx context.Context) (tick.Result, error) { return c.retrying.Sweep(ctx) }
