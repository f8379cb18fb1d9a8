package core

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

func newTestCore(t *testing.T) *Core {
	t.Helper()
	return testCoreOn(t, testpg.New(t, store.Schema()))
}

func testCoreOn(t *testing.T, db *pg.DB) *Core {
	t.Helper()
	st, err := store.New(db, time.Now)
	require.NoError(t, err)
	c, err := New(Config{Concurrency: 1, StartTimeout: time.Hour, CSRTimeout: time.Hour, CATimeout: time.Hour, DeployTimeout: time.Hour},
		Deps{Store: st, Log: zap.NewNop(), Now: time.Now})
	require.NoError(t, err)
	return c
}

// allowed is the whole table of a job's life: what is not in it is refused.
func allowed() map[string][]store.JobState {
	const p, ap, csr, ca, run = store.Pending, store.AwaitingApproval, store.AwaitingCSR, store.AwaitingCA, store.Running
	return map[string][]store.JobState{
		"require approval": {p, csr},
		"approve":          {ap},
		"await CSR":        {p, csr, ca},
		"await CA":         {p, csr, ca},
		"run":              {p},
		"try again":        {csr, ca, run},
		"complete":         {p, csr, ca, run},
		"fail":             {p, csr, ca, run},
		"reject":           {ap},
		"cancel":           {p, ap, csr, ca, run},
		"expire":           {ap, csr},
	}
}

// jobIn makes a job in a state, past all transitions.
func jobIn(ctx context.Context, t *testing.T, tx *store.Tx, state store.JobState, n int) *store.Job {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Microsecond)
	j := &store.Job{
		ID: fmt.Sprintf("job-%d", n), Type: store.Issue, State: store.Pending, CertificateID: fmt.Sprintf("cert-%d", n), MaxAttempts: 5,
		RequestedBy: "anna", Askers: []string{"anna"}, CreateTime: now, DueTime: now, DeadlineTime: now.Add(time.Hour), Revision: 1,
	}
	require.NoError(t, tx.InsertJob(ctx, j))
	if j.State = state; state.Final() {
		j.EndTime, j.DueTime = now, time.Time{}
	}
	require.NoError(t, tx.MoveJob(ctx, store.Move{From: []store.JobState{store.Pending}, Job: j}))
	return j
}

func TestATransitionMovesAJobFromItsStatesAndFromNoOther(t *testing.T) {
	t.Parallel()
	c := newTestCore(t)
	table := allowed()
	require.Len(t, c.transitions(), len(table))
	n := 0
	for _, tr := range c.transitions() {
		for _, from := range store.JobStates() {
			n++
			err := c.store.Tx(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				j := jobIn(ctx, t, tx, from, n)
				if j.State = from; tr.to.Final() {
					j.EndTime, j.DueTime = j.CreateTime, time.Time{}
				} else if from.Final() {
					j.EndTime, j.DueTime = time.Time{}, j.CreateTime
				}
				return tr.apply(ctx, tx, j)
			})
			if slices.Contains(table[tr.name], from) {
				require.NoError(t, err, "%s from %s", tr.name, from)
				j, err := c.store.Job(t.Context(), fmt.Sprintf("job-%d", n))
				require.NoError(t, err)
				require.Equal(t, tr.to, j.State)
				continue
			}
			require.ErrorIs(t, err, store.ErrChanged, "%s from %s", tr.name, from)
		}
	}
}

func TestATransitionOfAnOldRevisionIsRefused(t *testing.T) {
	t.Parallel()
	c := newTestCore(t)
	err := c.store.Tx(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		j := jobIn(ctx, t, tx, store.Pending, 1)
		j.Revision--
		return c.awaitCSR().apply(ctx, tx, j)
	})
	require.ErrorIs(t, err, store.ErrChanged)
}

func TestTheDatabaseRefusesWhatMustNotBe(t *testing.T) {
	t.Parallel()
	db := testpg.New(t, store.Schema())
	insert := `INSERT INTO jobs (id, type, state, certificate_id, target_id, max_attempts, requested_by, askers, create_time, deadline_time, due_time, end_time, approved_by)
 VALUES ($1, $2, $3, 'cert-1', $4, 5, 'anna', '{anna}', now(), now(), $5, $6, $7)`
	now := time.Now()
	_, err := db.Pool.Exec(t.Context(), insert, "job-1", "ISSUE", "PENDING", "", now, nil, "")
	require.NoError(t, err)
	for name, args := range map[string][]any{
		"a second open job of a certificate":   {"job-2", "RENEW", "PENDING", "", now, nil, ""},
		"a state that there is not":            {"job-3", "ISSUE", "RENEWING", "", now, nil, ""},
		"an open job that is never due":        {"job-4", "DEPLOY", "RUNNING", "target-1", nil, nil, ""},
		"an open job with an end":              {"job-5", "DEPLOY", "RUNNING", "target-1", nil, now, ""},
		"a final job without an end":           {"job-6", "ISSUE", "FAILED", "", now, nil, ""},
		"a deployment without a target":        {"job-7", "DEPLOY", "PENDING", "", now, nil, ""},
		"an approval by who asked for the job": {"job-8", "DEPLOY", "PENDING", "target-1", now, nil, "anna"},
	} {
		_, err := db.Pool.Exec(t.Context(), insert, args...)
		require.Error(t, err, name)
	}
	_, err = db.Pool.Exec(t.Context(), insert, "job-9", "RENEW", "FAILED", "", nil, now, "")
	require.NoError(t, err, "final jobs do not count")
	_, err = db.Pool.Exec(t.Context(), insert, "job-10", "DEPLOY", "PENDING", "target-1", now, nil, "bob")
	require.NoError(t, err)
}

func TestPlansOfAChangedPolicyAreComputedInBatches(t *testing.T) {
	t.Parallel()
	c := newTestCore(t)
	start := time.Now().UTC().Truncate(time.Second)
	const plans = 2*staleBatch + 50
	require.NoError(t, c.store.Tx(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		var ids []string
		for i := range plans {
			ids = append(ids, fmt.Sprintf("cert-%04d", i))
			_, err := tx.EnsurePlan(ctx, &store.Plan{CertificateID: ids[i], PolicyID: "pol-default", CertificateStatus: "ACTIVE", RequestedBy: "anna", CreateTime: start})
			require.NoError(t, err)
		}
		require.NoError(t, tx.Hold(ctx, ids...))
		for _, id := range ids {
			p, err := tx.LockPlan(ctx, id)
			require.NoError(t, err)
			tx.SavePlanKeys(store.PlanKey{CertificateID: id, AgentID: "agent-1", Version: 1, NotBefore: start, NotAfter: start.Add(90 * 24 * time.Hour)})
			require.NoError(t, c.refreshPlan(ctx, tx, p))
		}
		return nil
	}))
	n, err := c.RefreshStalePlans(t.Context())
	require.NoError(t, err)
	require.Zero(t, n)
	before, err := c.store.Plan(t.Context(), "cert-0000")
	require.NoError(t, err)
	require.NoError(t, c.store.Tx(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := c.UpdatePolicy(ctx, tx, "pol-default", 0, func(p *store.Policy) ([]string, error) {
			p.RenewAtFraction = 0.5
			return []string{"renew_at_fraction"}, nil
		})
		return err
	}))
	n, err = c.RefreshStalePlans(t.Context())
	require.NoError(t, err)
	require.Equal(t, plans, n)
	after, err := c.store.Plan(t.Context(), "cert-0000")
	require.NoError(t, err)
	require.True(t, after.RenewAt.Before(before.RenewAt))
	require.Equal(t, after.RenewAt, after.DueTime)
}
