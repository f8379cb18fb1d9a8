package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

func TestStatisticsFromBeforeAStormMakeNobodyReadAllOpenJobs(t *testing.T) {
	t.Parallel()
	database := testpg.NewDatabase(t, store.Schema())
	db := database.Open(t, "renewalscheduler")
	_, err := db.Pool.Exec(t.Context(), strings.Split(fill, "INSERT INTO jobs (id, type, state, certificate_id, max_attempts")[0])
	require.NoError(t, err)
	testpg.Vacuum(t, database.Admin(t), "renewalscheduler.plans", "renewalscheduler.jobs", "renewalscheduler.plan_keys")
	// One transaction, so that nothing gathers statistics meanwhile.
	tx, err := db.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	for _, sql := range []string{
		`INSERT INTO jobs (id, type, state, certificate_id, max_attempts, requested_by, askers, create_time, deadline_time, due_time)
 SELECT 'job-open-' || n, 'RENEW', 'AWAITING_CSR', 'cert-' || n, 5, 'anna', '{anna}', now(), now() + interval '1 day', now() FROM generate_series(1, 3000) n`,
		`UPDATE plans SET state = 'WORKING', due_time = NULL WHERE id IN (SELECT certificate_id FROM jobs WHERE end_time IS NULL)`,
		`SET LOCAL plan_cache_mode = force_generic_plan`,
	} {
		_, err := tx.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	e := &explained{DB: tx, t: t}
	q := store.OverDB(e)

	require.NoError(t, (&store.Tx{Queries: q}).Hold(t.Context(), "cert-7", "cert-8"))
	_, err = q.OpenJob(t.Context(), "cert-7")
	require.NoError(t, err)
	for _, plan := range e.plans {
		require.NotContains(t, plan, "jobs_deadline", "it has all open jobs")
		require.NotContains(t, plan, "Seq Scan on jobs")
	}
	st, err := store.New(db, nil)
	require.NoError(t, err)
	e.plans = nil
	leases, err := st.JobQueue().ClaimShared(t.Context(), e, lease.Shared{Limit: 25, LeaseFor: time.Minute, PerGroup: 200})
	require.NoError(t, err)
	require.Len(t, leases, 25)
	require.Contains(t, e.plans[0], "Index Scan using jobs_requester_due on jobs d", "the jobs of each requester")
	require.NotContains(t, e.plans[0], "jobs_all_due", "it has everybody's")
	require.Contains(t, e.plans[0], "Tid Scan on jobs", "each row is locked where it was found")
	e.plans = nil
	n, err := q.Stuck(t.Context(), time.Now().Add(-time.Hour))
	require.NoError(t, err)
	require.Zero(t, n)
	require.NotContains(t, e.plans[0], "Nested Loop", "all open jobs for each plan")
}
