package store_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

func TestStatisticsFromBeforeAStormMakeNoAgentReadAllOpenWork(t *testing.T) {
	t.Parallel()
	d := testpg.NewDatabase(t, store.Schema())
	admin, err := d.Admin(t).Acquire(t.Context())
	require.NoError(t, err)
	defer admin.Release()
	// One transaction, so that nothing gathers statistics after the storm has begun.
	tx, err := admin.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	const work = `INSERT INTO assignments (id, agent_id, kind, status, mailbox, certificate_id, deployment_id, due_time, deadline_time, end_time)
 SELECT gen_random_uuid(), 'agent-' || 1 + g % 200, 'DEPLOY', $1, g, 'cert-' || g, 'dep-' || g, now(), now(), CASE WHEN $1 = 'DONE' THEN now() END FROM generate_series(1, 20000) g`
	for _, sql := range []string{
		`SET LOCAL search_path = inventory`, `SET LOCAL plan_cache_mode = force_generic_plan`,
		`INSERT INTO agents (id, name, instance_id, status) SELECT 'agent-' || g, 'agent-' || g, 'i', 'ONLINE' FROM generate_series(1, 200) g`,
		strings.ReplaceAll(work, "$1", "'DONE'"), `ANALYZE assignments`, strings.ReplaceAll(work, "$1", "'OPEN'"),
	} {
		_, err := tx.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	for sql, index := range map[string]string{
		`SELECT w.id FROM unnest($1::text[]) AS q (agent_id) CROSS JOIN LATERAL (SELECT c.id FROM assignments c
 WHERE c.agent_id = q.agent_id AND c.mailbox > 0 AND c.status IN ('OPEN', 'LEASED') ORDER BY c.mailbox LIMIT 64) w`: "assignments_mailbox",
		`SELECT max(mailbox) FROM assignments WHERE agent_id = ANY($1) AND status IN ('OPEN', 'LEASED') GROUP BY agent_id`: "assignments_mailbox",
		`SELECT id FROM assignments WHERE deployment_id = ANY($1) AND status IN ('OPEN', 'LEASED')`:                        "assignments_one_per_deployment",
	} {
		rows, err := tx.Query(t.Context(), "EXPLAIN "+sql, []string{"agent-1", "agent-2"})
		require.NoError(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		plan := strings.Join(lines, "\n")
		require.Contains(t, plan, index, plan)
		require.NotContains(t, plan, "assignments_certificate", plan)
		require.NotContains(t, plan, "assignments_deadline", plan)
	}
}
