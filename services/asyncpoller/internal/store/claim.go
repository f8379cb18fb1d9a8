package store

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

// dueNow is what may be claimed, of polls p. That a poll has not ended is said as the indexes of the claim say it.
const dueNow = `p.end_time IS NULL AND p.due_time <= COALESCE($9::timestamptz, statement_timestamp())
				AND (p.lease_until IS NULL OR p.lease_until <= COALESCE($9::timestamptz, statement_timestamp()))`

// MostPerIssuer is the most that is claimed of one issuer at a time.
const MostPerIssuer = 256

// oldest reads the due rows of an issuer of room r one by one, in the order of their times, and locks each, until there are
// enough. The number in the inner query never ends it: it tells the planner that few rows are wanted. Of a limit that is an
// expression it believes a tenth of all, and then reads and sorts every row that is due.
func oldest(condition, limit string) string {
	return `(
		SELECT k.order_id, k.due_time, k.hastened FROM (
			SELECT p.order_id, p.due_time, p.hastened FROM polls p WHERE p.issuer_id = r.issuer_id AND ` + condition + ` AND ` + dueNow + `
			ORDER BY p.due_time, p.order_id LIMIT ` + strconv.Itoa(MostPerIssuer) + `) k
		CROSS JOIN LATERAL (SELECT FROM polls p WHERE p.order_id = k.order_id AND ` + dueNow + ` FOR UPDATE SKIP LOCKED) l
		LIMIT ` + limit + `) c`
}

// claim walks from issuer to issuer along the index, so that its cost grows with the number of issuers and not with that
// of rows, and takes of each no more than it may have under way and its account allows. What somebody asked for comes first
// and needs no allowance. Rows that are locked here and not taken, as other issuers use up their account, are free again with
// the end of the statement.
func claim() string {
	return `WITH RECURSIVE issuers (issuer_id) AS (
	SELECT min(issuer_id) FROM polls WHERE end_time IS NULL
	UNION ALL
	SELECT (SELECT min(p.issuer_id) FROM polls p WHERE p.end_time IS NULL AND p.issuer_id > i.issuer_id)
	FROM issuers i WHERE i.issuer_id IS NOT NULL
), room AS (
	SELECT i.issuer_id, GREATEST($3::integer - COALESCE(t.busy, 0), 0) AS slots, GREATEST($3::integer + $4::integer - COALESCE(t.busy, 0), 0) AS hastened_slots,
		COALESCE(t.account, 'issuer ' || i.issuer_id) AS account, COALESCE(t.calls, $3::integer) AS calls
	FROM issuers i LEFT JOIN unnest($5::text[], $6::integer[], $7::text[], $8::integer[]) AS t (issuer_id, busy, account, calls) USING (issuer_id)
	WHERE i.issuer_id IS NOT NULL
), hastened AS MATERIALIZED (
	SELECT c.*, r.* FROM room r CROSS JOIN LATERAL ` + oldest("p.hastened", "r.hastened_slots") + `
), due AS MATERIALIZED (
	SELECT c.*, r.* FROM room r CROSS JOIN LATERAL ` + oldest("NOT p.hastened", "LEAST(r.slots, r.calls)") + `
), ranked AS (
	SELECT order_id, hastened, due_time, slots, hastened_slots, calls,
		row_number() OVER (PARTITION BY issuer_id ORDER BY hastened DESC, due_time, order_id) AS slot,
		row_number() OVER (PARTITION BY account, hastened ORDER BY due_time, order_id) AS call
	FROM (SELECT * FROM hastened UNION ALL SELECT * FROM due) candidates
), taken AS (
	SELECT order_id FROM ranked
	WHERE hastened AND slot <= hastened_slots OR NOT hastened AND slot <= slots AND call <= calls
	ORDER BY hastened DESC, due_time, order_id LIMIT $1
)
UPDATE polls t SET state = 'LEASED', attempts = t.attempts + 1,
	lease_id = gen_random_uuid(), lease_until = COALESCE($9::timestamptz, statement_timestamp()) + $2::interval
FROM taken WHERE t.order_id = taken.order_id
RETURNING t.lease_id, t.order_id, t.issuer_id, t.state, t.ca_reference, t.due_time, t.deadline_time, t.watch_time, t.create_time, t.attempts,
	t.last_answer, t.hastened, t.refused_time`
}

func (s *Store) claimArgs(c core.Claim) []any {
	var issuers []string
	var busy, calls []int
	var accounts []*string
	add := func(id string, n int, account *string, most int) {
		issuers, busy, accounts, calls = append(issuers, id), append(busy, n), append(accounts, account), append(calls, most)
	}
	for id, n := range c.Busy {
		if _, ok := c.Quotas[id]; !ok {
			add(id, n, nil, math.MaxInt32)
		}
	}
	for id, q := range c.Quotas {
		account := "account " + q.Account
		add(id, c.Busy[id], &account, q.Calls)
	}
	return []any{c.Limit, c.LeaseFor, c.PerIssuer, c.Hastened, issuers, busy, accounts, calls, s.clock()}
}

// Claim implements core.Queue.
func (s *Store) Claim(ctx context.Context, c core.Claim) ([]core.Claimed, error) {
	rows, err := s.db.Query(ctx, s.claim, s.claimArgs(c)...)
	if err != nil {
		return nil, fmt.Errorf("claim polls: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (core.Claimed, error) {
		var c core.Claimed
		var refused *time.Time
		p := &c.Poll
		err := row.Scan(&c.Lease.LeaseID, &p.OrderID, &p.IssuerID, &p.State, &p.CAReference, &p.DueTime, &p.DeadlineTime, &p.WatchTime,
			&p.CreateTime, &p.Attempts, &p.LastAnswer, &p.Hastened, &refused)
		if refused != nil {
			p.RefusedTime = *refused
		}
		c.Lease.ID, c.Lease.Attempts, c.Lease.DueTime = p.OrderID, p.Attempts, p.DueTime
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("claim polls: %w", err)
	}
	return list, nil
}
