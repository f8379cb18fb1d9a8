package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

// stuckAfter is how long after its time a row may lie before something must be wrong.
const stuckAfter = time.Hour

// stuck counts up to 10,000. In the order of their times and with a bound, so that the planner goes along the index.
const stuck = `SELECT count(*) FROM (
	SELECT FROM polls WHERE state IN ('WAITING', 'LEASED')
		AND due_time < COALESCE($1::timestamptz, statement_timestamp()) - $2::interval
		AND (lease_until IS NULL OR lease_until < COALESCE($1::timestamptz, statement_timestamp()) - $2::interval)
		AND issuer_id <> ALL($3::text[])
	ORDER BY due_time LIMIT 10000) s`

// Stuck counts rows that nobody has worked on for an hour after their time. It must be 0. Those of the issuers named wait for
// their accounts, which is told in another way.
func (s *Store) Stuck(ctx context.Context, held ...string) (int, error) {
	var n int
	if held == nil {
		held = []string{}
	}
	if err := s.db.QueryRow(ctx, stuck, s.clock(), stuckAfter, held).Scan(&n); err != nil {
		return 0, fmt.Errorf("count stuck polls: %w", err)
	}
	return n, nil
}

// census reads the index of what is pending from end to end. It is for once a minute.
const census = `SELECT issuer_id, count(*), count(*) FILTER (WHERE deadline_time < COALESCE($1::timestamptz, statement_timestamp())), min(create_time)
FROM polls WHERE state IN ('WAITING', 'LEASED') GROUP BY issuer_id ORDER BY issuer_id`

// Census counts what is pending by issuer.
func (s *Store) Census(ctx context.Context) ([]core.Pending, error) {
	rows, err := s.db.Query(ctx, census, s.clock())
	if err != nil {
		return nil, fmt.Errorf("count pending orders: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[core.Pending])
	if err != nil {
		return nil, fmt.Errorf("count pending orders: %w", err)
	}
	return list, nil
}
