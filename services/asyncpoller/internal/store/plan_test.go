package store_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
	"github.com/certctl/certctl/services/asyncpoller/internal/store"
)

// crowd is 100,000 orders that are pending at 4 CAs, a tenth of them due, and as many whose watch has ended in the week
// that they are kept, a few of them too long ago.
func crowd(t *testing.T) bundle {
	t.Helper()
	b := setup(t)
	for _, sql := range []string{
		// 3500 s between the first that is due and the last; 350 s of them are over.
		`INSERT INTO polls (order_id, issuer_id, due_time, deadline_time, watch_time, create_time, hastened)
			SELECT 'ord-' || n, 'iss-' || n % 4, now() + CASE WHEN n > 8 THEN n * 7919 % 35000 - 3500 ELSE 0 END * interval '0.1 s', now() + interval '1 day', now(), now(), n <= 8
			FROM generate_series(1, 100000) n`,
		`INSERT INTO polls (order_id, issuer_id, due_time, deadline_time, watch_time, create_time, state, end_time)
			SELECT 'old-' || n, 'iss-' || n % 4, now(), now(), now(), now(), 'DONE', now() - n * interval '6.072 s'
			FROM generate_series(1, 100000) n`,
		`INSERT INTO poll_answers (order_id, slot, attempt, poll_time, duration_ms, result, reason, message)
			SELECT 'ord-' || n % 10000 + 1, n / 10000, n / 10000, now(), 100, 'PENDING', '', '' FROM generate_series(0, 49999) n`,
	} {
		_, err := b.db.Pool.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	testpg.Vacuum(t, b.admin, "asyncpoller.polls", "asyncpoller.poll_answers")
	return b
}

func TestWithAHundredThousandPendingOrdersEveryStatementUsesAnIndex(t *testing.T) {
	t.Parallel()
	b := crowd(t)
	claim, claimArgs := b.ClaimSQL(core.Claim{Limit: 32, PerIssuer: 8, Hastened: 2, LeaseFor: time.Minute, Busy: map[string]int{"iss-3": 8},
		Quotas: map[string]core.Quota{"iss-0": quota("one", 5), "iss-1": quota("two", 0), "iss-2": quota("three", 20)}})
	for name, c := range map[string]struct {
		sql     string
		args    []any
		indexes []string
		most    time.Duration // generous: the machine has other things to do
	}{
		"claim":     {claim, claimArgs, []string{"polls_issuer_due", "polls_hastened"}, time.Second},
		"stuck":     {store.StuckSQL, b.StuckArgs("iss-3"), []string{"polls_due"}, time.Second},
		"census":    {store.CensusSQL, []any{nil}, []string{"Index Only Scan using polls_pending"}, 5 * time.Second},
		"prune":     {store.PruneSQL, b.PruneArgs(), []string{"polls_end_time"}, 5 * time.Second},
		"histories": {store.HistoriesSQL, []any{[]string{"ord-1", "ord-2"}}, []string{"poll_answers_pkey"}, time.Second},
	} {
		began := time.Now()
		plan := explain(t, b.db, c.sql, c.args)
		took := time.Since(began)
		t.Logf("%s took %s", name, took.Round(100*time.Microsecond))
		for _, index := range c.indexes {
			require.Contains(t, plan, index, "%s:\n%s", name, plan)
		}
		require.NotContains(t, plan, "Seq Scan on poll", "%s:\n%s", name, plan)
		require.Less(t, took, c.most, "%s:\n%s", name, plan)
	}
	claimed := b.claim(t, core.Claim{Limit: 32, PerIssuer: 8, Hastened: 2})
	require.Equal(t, 8, hastened(claimed), "two of each issuer")
}

// TestAPreparedClaimGoesAlongTheIndexToo looks at the plan that Postgres keeps for all parameters, after it has seen a few.
func TestAPreparedClaimGoesAlongTheIndexToo(t *testing.T) {
	t.Parallel()
	b := crowd(t)
	_, err := b.db.Pool.Exec(t.Context(), `UPDATE polls SET due_time = now() - interval '1 h' WHERE issuer_id = 'iss-2' AND state = 'WAITING'`)
	require.NoError(t, err)
	testpg.Vacuum(t, b.admin, "asyncpoller.polls")
	sql, _ := b.ClaimSQL(core.Claim{})
	tx, err := b.db.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback(context.WithoutCancel(t.Context()))) }()
	_, err = tx.Exec(t.Context(), `SET LOCAL plan_cache_mode = force_generic_plan`)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `PREPARE claim (integer, interval, integer, integer, text[], integer[], text[], integer[], timestamptz) AS `+sql)
	require.NoError(t, err)
	rows, err := tx.Query(t.Context(), `EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) EXECUTE claim (32, '1 min', 8, 2, '{iss-3}', '{8}', '{NULL}', '{8}', NULL)`)
	require.NoError(t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	plan := strings.Join(lines, "\n")
	require.Contains(t, plan, "Index Scan using polls_issuer_due", plan)
	require.NotContains(t, plan, "Seq Scan on polls", plan)
	require.NotContains(t, plan, "Bitmap", "rows that are due and not claimed are not read:\n%s", plan)
	_, err = tx.Exec(t.Context(), `DEALLOCATE claim`)
	require.NoError(t, err)
}
