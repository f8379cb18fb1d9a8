// Package store holds all SQL of asyncpoller.
package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	// stuckAfter is how long after its time a row may lie before something must be wrong.
	stuckAfter = time.Hour
	// retention is how long an ended watch is still shown.
	retention  = 7 * 24 * time.Hour
	pruneChunk = 5000
)

// Schema is asyncpoller's part of the database.
func Schema() pg.Schema { return pg.Schema{Name: "asyncpoller", FS: migrations} }

// Store is the table of polls, on the pool or in a transaction.
type Store struct {
	db  lease.DB
	now func() time.Time // nil: the database's clock
}

// New makes a store on the pool. The clock is for tests; nil is the database's.
func New(db *pg.DB, now func() time.Time) *Store { return &Store{db: db.Pool, now: now} }

// In gives the store in a transaction.
func (s *Store) In(tx pgx.Tx) *Store { return &Store{db: tx, now: s.now} }

// Leases is polls as a table of due rows.
func (s *Store) Leases() (*lease.Table, error) {
	return lease.New(lease.Config{Table: "polls", ID: "order_id", State: "state", Due: []string{core.Waiting}, Leased: core.Leased, Now: s.now})
}

func (s *Store) clock() *time.Time {
	if s.now == nil {
		return nil
	}
	n := s.now()
	return &n
}

const columns = `order_id, issuer_id, state, ca_reference, due_time, deadline_time, watch_time, create_time, attempts, last_answer`

func scanPoll(row pgx.CollectableRow) (core.Poll, error) {
	var p core.Poll
	err := row.Scan(&p.OrderID, &p.IssuerID, &p.State, &p.CAReference, &p.DueTime, &p.DeadlineTime, &p.WatchTime, &p.CreateTime, &p.Attempts, &p.LastAnswer)
	return p, err
}

func (s *Store) polls(ctx context.Context, what, sql string, args ...any) ([]core.Poll, error) {
	rows, err := s.db.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	list, err := pgx.CollectRows(rows, scanPoll)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return list, nil
}

// A poll under lease stays with its worker; it learns of a new deadline when it gives the row back.
const watch = `INSERT INTO polls AS p (order_id, issuer_id, ca_reference, due_time, deadline_time, watch_time, create_time)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (order_id) DO UPDATE SET
	state = CASE WHEN p.state = 'LEASED' THEN p.state ELSE 'WAITING' END,
	due_time = CASE p.state WHEN 'LEASED' THEN p.due_time WHEN 'WAITING' THEN LEAST(p.due_time, EXCLUDED.due_time) ELSE EXCLUDED.due_time END,
	ca_reference = COALESCE(NULLIF(EXCLUDED.ca_reference, ''), p.ca_reference),
	deadline_time = EXCLUDED.deadline_time, watch_time = EXCLUDED.watch_time, end_time = NULL
WHERE p.issuer_id = EXCLUDED.issuer_id AND EXCLUDED.deadline_time > p.deadline_time`

// Watch implements core.Book.
func (s *Store) Watch(ctx context.Context, p core.Poll) (core.Poll, error) {
	_, err := s.db.Exec(ctx, watch, p.OrderID, p.IssuerID, p.CAReference, p.DueTime, p.DeadlineTime, p.WatchTime, p.CreateTime)
	if err != nil {
		return core.Poll{}, fmt.Errorf("store poll: %w", err)
	}
	list, err := s.Get(ctx, p.OrderID)
	if err == nil && len(list) == 0 {
		err = errors.New("store poll: it is gone again")
	}
	if err != nil {
		return core.Poll{}, err
	}
	return list[0], nil
}

// Get implements core.Book.
func (s *Store) Get(ctx context.Context, orderIDs ...string) ([]core.Poll, error) {
	return s.polls(ctx, "read polls", `SELECT `+columns+` FROM polls WHERE order_id = ANY($1) ORDER BY order_id`, orderIDs)
}

// Hasten implements core.Book.
func (s *Store) Hasten(ctx context.Context, orderID string) error {
	_, err := s.db.Exec(ctx, `UPDATE polls SET due_time = LEAST(due_time, COALESCE($2::timestamptz, statement_timestamp()))
WHERE order_id = $1 AND state = 'WAITING'`, orderID, s.clock())
	if err != nil {
		return fmt.Errorf("hasten poll: %w", err)
	}
	return nil
}

// Close implements core.Book.
func (s *Store) Close(ctx context.Context, orderID, state, answer string) error {
	_, err := s.db.Exec(ctx, `UPDATE polls SET state = $2, last_answer = $3, lease_id = NULL, lease_until = NULL,
	end_time = COALESCE($4::timestamptz, statement_timestamp())
WHERE order_id = $1 AND state IN ('WAITING', 'LEASED')`, orderID, state, answer, s.clock())
	if err != nil {
		return fmt.Errorf("close poll: %w", err)
	}
	return nil
}

// claim walks from issuer to issuer along the index, so that its cost grows with the number of issuers and not with that
// of rows, and takes of each no more than it may have under way.
const claim = `WITH RECURSIVE issuers (issuer_id) AS (
	SELECT min(issuer_id) FROM polls WHERE state IN ('WAITING', 'LEASED')
	UNION ALL
	SELECT (SELECT min(p.issuer_id) FROM polls p WHERE p.state IN ('WAITING', 'LEASED') AND p.issuer_id > i.issuer_id)
	FROM issuers i WHERE i.issuer_id IS NOT NULL
), due AS MATERIALIZED (
	SELECT d.order_id
	FROM issuers i
	LEFT JOIN unnest($4::text[], $5::integer[]) AS busy (issuer_id, polls) ON busy.issuer_id = i.issuer_id
	CROSS JOIN LATERAL (
		SELECT p.order_id, p.due_time FROM polls p
		WHERE p.issuer_id = i.issuer_id AND p.state IN ('WAITING', 'LEASED')
			AND p.due_time <= COALESCE($6::timestamptz, statement_timestamp())
			AND (p.lease_until IS NULL OR p.lease_until <= COALESCE($6::timestamptz, statement_timestamp()))
		ORDER BY p.due_time, p.order_id
		LIMIT GREATEST($3::integer - COALESCE(busy.polls, 0), 0)
		FOR UPDATE SKIP LOCKED) d
	ORDER BY d.due_time, d.order_id LIMIT $1
)
UPDATE polls t SET state = 'LEASED', attempts = t.attempts + 1,
	lease_id = gen_random_uuid(), lease_until = COALESCE($6::timestamptz, statement_timestamp()) + $2::interval
FROM due WHERE t.order_id = due.order_id
RETURNING t.lease_id, t.order_id, t.issuer_id, t.state, t.ca_reference, t.due_time, t.deadline_time, t.watch_time, t.create_time, t.attempts, t.last_answer`

func (s *Store) claimArgs(c core.Claim) []any {
	issuers, busy := make([]string, 0, len(c.Busy)), make([]int, 0, len(c.Busy))
	for id, n := range c.Busy {
		issuers, busy = append(issuers, id), append(busy, n)
	}
	return []any{c.Limit, c.LeaseFor, c.PerIssuer, issuers, busy, s.clock()}
}

// Claim implements core.Queue.
func (s *Store) Claim(ctx context.Context, c core.Claim) ([]core.Claimed, error) {
	rows, err := s.db.Query(ctx, claim, s.claimArgs(c)...)
	if err != nil {
		return nil, fmt.Errorf("claim polls: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (core.Claimed, error) {
		var c core.Claimed
		p := &c.Poll
		err := row.Scan(&c.Lease.LeaseID, &p.OrderID, &p.IssuerID, &p.State, &p.CAReference, &p.DueTime, &p.DeadlineTime, &p.WatchTime,
			&p.CreateTime, &p.Attempts, &p.LastAnswer)
		c.Lease.ID, c.Lease.Attempts, c.Lease.DueTime = p.OrderID, p.Attempts, p.DueTime
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("claim polls: %w", err)
	}
	return list, nil
}

// Reschedule implements core.Desk.
func (s *Store) Reschedule(ctx context.Context, l lease.Lease, n core.Note, due time.Time) error {
	return s.fenced(ctx, "reschedule poll", `UPDATE polls SET state = 'WAITING', lease_id = NULL, lease_until = NULL, last_answer = $3,
	ca_reference = COALESCE(NULLIF($4, ''), ca_reference), due_time = $5
WHERE order_id = $1 AND lease_id = $2`, l.ID, l.LeaseID, n.Answer, n.CAReference, due)
}

// End implements core.Desk.
func (s *Store) End(ctx context.Context, l lease.Lease, n core.Note, state string, deadline time.Time) error {
	const goesOn = `$5 = 'ABANDONED' AND deadline_time > $6`
	return s.fenced(ctx, "end poll", `UPDATE polls SET state = CASE WHEN `+goesOn+` THEN 'WAITING' ELSE $5 END,
	end_time = CASE WHEN `+goesOn+` THEN NULL ELSE COALESCE($7::timestamptz, statement_timestamp()) END,
	lease_id = NULL, lease_until = NULL, last_answer = $3, ca_reference = COALESCE(NULLIF($4, ''), ca_reference)
WHERE order_id = $1 AND lease_id = $2`, l.ID, l.LeaseID, n.Answer, n.CAReference, state, deadline, s.clock())
}

func (s *Store) fenced(ctx context.Context, what, sql string, args ...any) error {
	tag, err := s.db.Exec(ctx, sql, args...)
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, args[0], err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("%s %s: %w", what, args[0], lease.ErrLost)
	}
	return nil
}

// Stuck counts rows that nobody has worked on for an hour after their time. It must be 0.
func (s *Store) Stuck(ctx context.Context) (int, error) {
	var n int
	err := s.db.QueryRow(ctx, `SELECT count(*) FROM polls WHERE state IN ('WAITING', 'LEASED')
	AND due_time < COALESCE($1::timestamptz, statement_timestamp()) - $2::interval
	AND (lease_until IS NULL OR lease_until < COALESCE($1::timestamptz, statement_timestamp()) - $2::interval)`, s.clock(), stuckAfter).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count stuck polls: %w", err)
	}
	return n, nil
}

// Prune deletes watches that ended more than a week ago.
func (s *Store) Prune(ctx context.Context) (total int, err error) {
	for {
		tag, err := s.db.Exec(ctx, `DELETE FROM polls WHERE order_id IN (
	SELECT order_id FROM polls WHERE end_time < COALESCE($1::timestamptz, statement_timestamp()) - $2::interval LIMIT $3)`, s.clock(), retention, pruneChunk)
		if err != nil {
			return total, fmt.Errorf("prune polls: %w", err)
		}
		total += int(tag.RowsAffected())
		if tag.RowsAffected() < pruneChunk {
			return total, nil
		}
	}
}
