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
	// retention is how long an ended watch is still shown.
	retention  = 7 * 24 * time.Hour
	pruneChunk = 5000
)

// Schema is asyncpoller's part of the database.
func Schema() pg.Schema { return pg.Schema{Name: "asyncpoller", FS: migrations} }

// Store is the table of polls, on the pool or in a transaction.
type Store struct {
	db    lease.DB
	now   func() time.Time // nil: the database's clock
	claim string           // the statement
}

// New makes a store on the pool. The clock is for tests; nil is the database's.
func New(db *pg.DB, now func() time.Time) *Store {
	return &Store{db: db.Pool, now: now, claim: claim()}
}

// In gives the store in a transaction.
func (s *Store) In(tx pgx.Tx) *Store { return &Store{db: tx, now: s.now, claim: s.claim} }

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

const columns = `order_id, issuer_id, state, ca_reference, due_time, deadline_time, watch_time, create_time, attempts, last_answer, hastened, refused_time`

func scanPoll(row pgx.CollectableRow) (core.Poll, error) {
	var p core.Poll
	var refused *time.Time
	err := row.Scan(&p.OrderID, &p.IssuerID, &p.State, &p.CAReference, &p.DueTime, &p.DeadlineTime, &p.WatchTime, &p.CreateTime, &p.Attempts,
		&p.LastAnswer, &p.Hastened, &refused)
	if refused != nil {
		p.RefusedTime = *refused
	}
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
WHERE p.issuer_id = EXCLUDED.issuer_id AND (EXCLUDED.deadline_time > p.deadline_time
	OR EXCLUDED.deadline_time = p.deadline_time AND p.state = 'ABANDONED')`

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
func (s *Store) Hasten(ctx context.Context, orderID string) (core.Poll, bool, error) {
	list, err := s.polls(ctx, "hasten poll", `UPDATE polls SET hastened = true, due_time = LEAST(due_time, COALESCE($2::timestamptz, statement_timestamp()))
WHERE order_id = $1 AND state IN ('WAITING', 'LEASED') RETURNING `+columns, orderID, s.clock())
	if err != nil || len(list) == 0 {
		return core.Poll{}, false, err
	}
	return list[0], true, nil
}

// Close implements core.Book.
func (s *Store) Close(ctx context.Context, orderID, state, answer string) error {
	_, err := s.db.Exec(ctx, `UPDATE polls SET state = $2, last_answer = $3, lease_id = NULL, lease_until = NULL, hastened = false,
	end_time = COALESCE($4::timestamptz, statement_timestamp())
WHERE order_id = $1 AND state IN ('WAITING', 'LEASED')`, orderID, state, answer, s.clock())
	if err != nil {
		return fmt.Errorf("close poll: %w", err)
	}
	return nil
}

const prune = `DELETE FROM polls WHERE order_id IN (
	SELECT order_id FROM polls WHERE end_time < COALESCE($1::timestamptz, statement_timestamp()) - $2::interval ORDER BY end_time LIMIT $3)`

// Prune deletes watches that ended more than a week ago, with their answers.
func (s *Store) Prune(ctx context.Context) (total int, err error) {
	for {
		tag, err := s.db.Exec(ctx, prune, s.clock(), retention, pruneChunk)
		if err != nil {
			return total, fmt.Errorf("prune polls: %w", err)
		}
		total += int(tag.RowsAffected())
		if tag.RowsAffected() < pruneChunk {
			return total, nil
		}
	}
}
