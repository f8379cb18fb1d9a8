package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

// noted ends a fenced statement that has changed a row as "moved": it keeps the answer in its slot of the ring and tells how
// many rows there were. $1 to $12 are those of Store.fenced.
const noted = `, answered AS (
	INSERT INTO poll_answers AS a (order_id, slot, attempt, poll_time, duration_ms, result, reason, message, next_time)
	SELECT order_id, $5::integer % 20, $5, $6, $7, $8, $9, $10, $11 FROM moved WHERE $6::timestamptz IS NOT NULL
	ON CONFLICT (order_id, slot) DO UPDATE SET attempt = EXCLUDED.attempt, poll_time = EXCLUDED.poll_time, duration_ms = EXCLUDED.duration_ms,
		result = EXCLUDED.result, reason = EXCLUDED.reason, message = EXCLUDED.message, next_time = EXCLUDED.next_time
) SELECT count(*) FROM moved`

const reschedule = `WITH moved AS (
	UPDATE polls SET state = 'WAITING', lease_id = NULL, lease_until = NULL, hastened = false, last_answer = $3,
		ca_reference = COALESCE(NULLIF($4, ''), ca_reference), due_time = $12,
		refused_time = $13
	WHERE order_id = $1 AND lease_id = $2 RETURNING order_id
)` + noted

// Reschedule implements core.Desk.
func (s *Store) Reschedule(ctx context.Context, l lease.Lease, n core.Note, due time.Time) error {
	return s.fenced(ctx, "reschedule poll", reschedule, l, n, due, orNull(n.RefusedTime))
}

// goesOn is a watch that was prolonged while it was about to end without an end of the order.
const goesOn = `$12 = 'ABANDONED' AND deadline_time > $13`

const end = `WITH moved AS (
	UPDATE polls SET state = CASE WHEN ` + goesOn + ` THEN 'WAITING' ELSE $12 END,
		end_time = CASE WHEN ` + goesOn + ` THEN NULL ELSE COALESCE($14::timestamptz, statement_timestamp()) END,
		lease_id = NULL, lease_until = NULL, hastened = false, last_answer = $3, ca_reference = COALESCE(NULLIF($4, ''), ca_reference)
	WHERE order_id = $1 AND lease_id = $2 RETURNING order_id
)` + noted

// End implements core.Desk.
func (s *Store) End(ctx context.Context, l lease.Lease, n core.Note, state string, deadline time.Time) error {
	return s.fenced(ctx, "end poll", end, l, n, state, deadline, s.clock())
}

// Defer implements core.Desk.
func (s *Store) Defer(ctx context.Context, l lease.Lease, due time.Time, hastened bool) error {
	tag, err := s.db.Exec(ctx, `UPDATE polls SET state = 'WAITING', lease_id = NULL, lease_until = NULL, attempts = GREATEST(attempts - 1, 0),
	due_time = CASE WHEN hastened AND NOT $4 THEN due_time ELSE $3 END
WHERE order_id = $1 AND lease_id = $2`, l.ID, l.LeaseID, due, hastened)
	return held(l, "defer poll", tag.RowsAffected(), err)
}

// fenced runs a statement that writes a leased row and its answer. Its parameters are lease, note, and what follows.
func (s *Store) fenced(ctx context.Context, what, sql string, l lease.Lease, n core.Note, more ...any) error {
	e := n.Entry
	args := []any{
		l.ID, l.LeaseID, n.Answer, n.CAReference,
		e.Attempt, orNull(e.Time), e.Duration.Milliseconds(), e.Result, e.Reason, e.Message, orNull(e.NextTime),
	}
	var rows int64
	err := s.db.QueryRow(ctx, sql, append(args, more...)...).Scan(&rows)
	return held(l, what, rows, err)
}

// held tells whether the lease was still held.
func held(l lease.Lease, what string, rows int64, err error) error {
	if err == nil && rows == 0 {
		err = lease.ErrLost
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, l.ID, err)
	}
	return nil
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

const histories = `SELECT order_id, attempt, poll_time, duration_ms, result, reason, message, next_time FROM poll_answers
WHERE order_id = ANY($1) ORDER BY order_id, attempt DESC, poll_time DESC`

// Histories implements core.Book.
func (s *Store) Histories(ctx context.Context, orderIDs ...string) (map[string][]core.Entry, error) {
	rows, err := s.db.Query(ctx, histories, orderIDs)
	if err != nil {
		return nil, fmt.Errorf("read histories of polls: %w", err)
	}
	out := map[string][]core.Entry{}
	var id string
	var e core.Entry
	var ms int64
	var next *time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &e.Attempt, &e.Time, &ms, &e.Result, &e.Reason, &e.Message, &next}, func() error {
		e.Duration, e.NextTime = time.Duration(ms)*time.Millisecond, time.Time{}
		if next != nil {
			e.NextTime = *next
		}
		out[id] = append(out[id], e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read histories of polls: %w", err)
	}
	return out, nil
}
