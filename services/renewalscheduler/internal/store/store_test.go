package store_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// fill makes 100,000 finished jobs of 20,000 certificates with their plans, and some that are open.
const fill = `
INSERT INTO plans (id, state, policy_id, policy_revision, certificate_status, requested_by, renew_at, create_time, update_time, due_time)
SELECT 'cert-' || n, 'SCHEDULED', 'pol-default', 1, 'ACTIVE', 'anna', now() + n * interval '1 minute', now(), now(), now() + n * interval '1 minute'
  FROM generate_series(1, 20000) n;
INSERT INTO plan_keys (certificate_id, agent_id, version, not_before, not_after) SELECT 'cert-' || n, 'agent-' || n % 1000, 1, now(), now() FROM generate_series(1, 20000) n;
INSERT INTO jobs (id, type, state, certificate_id, target_id, max_attempts, requested_by, askers, create_time, deadline_time, due_time, end_time)
SELECT 'job-' || n, CASE WHEN n % 10 = 0 THEN 'DEPLOY' ELSE 'RENEW' END, CASE WHEN n % 500 = 0 THEN 'FAILED' ELSE 'COMPLETED' END, 'cert-' || n % 20000,
  CASE WHEN n % 10 = 0 THEN 'target-' || n % 5000 ELSE '' END, 5, 'anna', '{anna}', now() - n * interval '1 minute', now(), NULL, now()
  FROM generate_series(1, 100000) n;
INSERT INTO jobs (id, type, state, certificate_id, max_attempts, requested_by, askers, create_time, deadline_time, due_time)
SELECT 'job-open-' || n, 'RENEW', 'AWAITING_CSR', 'cert-open-' || n, 5, 'anna', '{anna}', now(), now() + n * interval '1 minute', now() + n * interval '1 minute'
  FROM generate_series(1, 200) n;
INSERT INTO job_keys (job_id, agent_id, state, order_id)
SELECT 'job-' || n, 'agent-' || n % 1000, 'DONE', 'ord-' || n FROM generate_series(1, 100000) n WHERE n % 10 <> 0;`

// explained runs every query a second time under EXPLAIN and keeps the plans.
type explained struct {
	lease.DB
	t     *testing.T
	plans []string
}

func (e *explained) look(ctx context.Context, sql string, args []any) {
	rows, err := e.DB.Query(ctx, "EXPLAIN "+sql, args...)
	require.NoError(e.t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(e.t, err)
	e.plans = append(e.plans, sql+"\n"+strings.Join(lines, "\n"))
}

func (e *explained) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	e.look(ctx, sql, args)
	return e.DB.Query(ctx, sql, args...)
}

func (e *explained) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	e.look(ctx, sql, args)
	return e.DB.QueryRow(ctx, sql, args...)
}

func (e *explained) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	e.look(ctx, sql, args)
	return e.DB.Exec(ctx, sql, args...)
}

func TestListsAndClaimsOfManyRowsUseIndexes(t *testing.T) {
	t.Parallel()
	database := testpg.NewDatabase(t, store.Schema())
	db := database.Open(t, "renewalscheduler")
	_, err := db.Pool.Exec(t.Context(), fill)
	require.NoError(t, err)
	_, err = database.Admin(t).Exec(t.Context(), "ANALYZE")
	require.NoError(t, err)
	st, err := store.New(db, time.Now)
	require.NoError(t, err)
	e := &explained{DB: db.Pool, t: t}
	q := store.OverDB(e)

	sorting, err := page.NewSorting(page.Column{SQL: "id", Kind: page.Text}, "create_time desc",
		page.Column{Field: "create_time", SQL: "create_time", Kind: page.Time},
		page.Column{Field: "deadline_time", SQL: "deadline_time", Kind: page.Time, NullAs: "'infinity'::timestamptz"})
	require.NoError(t, err)
	for _, orderBy := range []string{"create_time desc", "create_time", "deadline_time"} {
		order, err := sorting.Parse(orderBy)
		require.NoError(t, err)
		_, _, err = q.ListJobs(t.Context(), store.JobFilter{}, store.List{Order: order, Size: 50,
			After: order.Cursor(page.TimeValue(time.Now().Add(-time.Hour)), page.TextValue("job-60"))})
		require.NoError(t, err)
	}
	normal, err := sorting.Parse("")
	require.NoError(t, err)
	for _, f := range []store.JobFilter{
		{CertificateID: "cert-7"}, {TargetID: "target-10"}, {AgentID: "agent-7"}, {States: []string{"FAILED"}}, {States: []string{"AWAITING_CSR", "PENDING"}},
		{Types: []string{"DEPLOY"}},
	} {
		_, _, err = q.ListJobs(t.Context(), f, store.List{Order: normal, Size: 50})
		require.NoError(t, err)
	}
	now := time.Now()
	_, err = q.Overdue(t.Context(), now, 100)
	require.NoError(t, err)
	_, err = q.LookAhead(t.Context(), now)
	require.NoError(t, err)
	_, err = q.OpenJob(t.Context(), "cert-open-7")
	require.NoError(t, err)
	_, err = q.LastJob(t.Context(), "cert-7")
	require.NoError(t, err)
	_, err = q.OrdersWithKey(t.Context(), []string{"ord-7"})
	require.NoError(t, err)
	require.NoError(t, (&store.Tx{Queries: q}).Hold(t.Context(), "cert-7", "cert-open-7", "cert-8"))
	for _, table := range []*lease.Table{st.ScheduledPlans(), st.RetryingPlans()} {
		_, err = table.Claim(t.Context(), e, 25, time.Minute)
		require.NoError(t, err)
	}
	_, err = st.JobQueue().ClaimShared(t.Context(), e, lease.Shared{Limit: 25, LeaseFor: time.Minute, PerGroup: 200, Room: map[string]int{"anna": 190}})
	require.NoError(t, err)
	require.Contains(t, e.plans[len(e.plans)-1], "jobs_requester_due")
	_, err = st.JobQueue().Stats(t.Context(), e)
	require.NoError(t, err)
	require.Contains(t, e.plans[len(e.plans)-1], "jobs_all_due")
	for _, plan := range e.plans {
		require.NotContains(t, plan, "Seq Scan", "100,000 rows are too many for this")
	}
}

func TestCountsAndChangedPoliciesReadNoWholeTable(t *testing.T) {
	t.Parallel()
	database := testpg.NewDatabase(t, store.Schema())
	db := database.Open(t, "renewalscheduler")
	_, err := db.Pool.Exec(t.Context(), fill+`
UPDATE policies SET revision = 2; UPDATE plans SET policy_revision = 2 WHERE id > 'cert-100';
INSERT INTO plans (id, state, policy_id, policy_revision, certificate_status, requested_by, create_time, update_time)
SELECT 'cert-over-' || n, 'ENDED', 'pol-default', 1, 'ARCHIVED', 'anna', now(), now() FROM generate_series(1, 20000) n;`)
	require.NoError(t, err)
	testpg.Vacuum(t, database.Admin(t), "renewalscheduler.plans", "renewalscheduler.jobs", "renewalscheduler.job_keys")
	e := &explained{DB: db.Pool, t: t}
	q := store.OverDB(e)

	plans, err := (&store.Tx{Queries: q}).StalePlans(t.Context(), "pol-default", 200)
	require.NoError(t, err)
	require.Len(t, plans, 3)
	stale, err := q.StalePolicies(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"pol-default"}, stale)
	_, err = q.Stuck(t.Context(), time.Now().Add(-time.Hour))
	require.NoError(t, err)
	counts, err := q.CountJobs(t.Context(), time.Now().Add(-time.Hour))
	require.NoError(t, err)
	require.Equal(t, 200, counts.ByState["AWAITING_CSR"])

	for _, plan := range e.plans {
		require.NotContains(t, plan, "Seq Scan on plans", "a certificate each is too many for this")
		require.NotContains(t, plan, "Seq Scan on jobs")
		if strings.Contains(plan, "GROUP BY state") {
			require.Contains(t, plan, "Index Only Scan")
		}
		if strings.Contains(plan, "SKIP LOCKED") {
			require.NotContains(t, plan, "Sort", "each batch reads what is stale, and not all plans of the policy")
		}
	}
}
