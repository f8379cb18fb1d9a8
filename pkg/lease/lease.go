// Package lease lets several replicas share work that is rows in a table, without a leader. A row that is due is claimed
// under a lease by one statement (FOR UPDATE SKIP LOCKED); what the worker then writes is fenced by the lease's id, so
// that a worker who was too slow cannot overwrite the next one's result. A lease that runs out is the rescuer of
// work whose process died.
//
// The table has the columns
//
//	due_time timestamptz, attempts integer NOT NULL DEFAULT 0, lease_id uuid, lease_until timestamptz
//
// beside its id and, mostly, its state; an index on (due_time, id), best partial on the states that can be due, serves
// the claim. Where claims are shared out by a group, that index has the condition due_time > '-infinity', too, which only claims and counts
// over all groups make: so the planner cannot take it for those of one group, whose rows it would search for among all.
package lease

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrLost tells that the lease ran out and another worker has taken the row: the result must be dropped.
var ErrLost = errors.New("the lease was lost")

// DB is a pool or a transaction.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Config describes a table.
type Config struct {
	// Table is its name; search_path finds the schema, or it is written "schema.table".
	Table string
	// ID is the primary key's column; empty means "id". Its values are read and given as text.
	ID string
	// State is the column of the state; empty when the table has none.
	State string
	// Due are the states in which a row may be claimed. The first is what a rescheduled row returns to when Leased is set.
	Due []string
	// Group is the column by which ClaimShared shares out its claims, such as the issuer; empty when nobody does. An index on
	// (group, due_time, id), partial on due_time IS NOT NULL and best on the states that can be due, serves that claim.
	Group string
	// Leased is the state of a claimed row; empty leaves the state alone while the lease is held.
	Leased string
	// Now is the clock of tests; nil means the database's.
	Now func() time.Time
}

// Table is a table with leases.
type Table struct {
	cfg        Config
	claim      string
	shared     string
	fence      string
	reschedule string
	extend     string
	stats      string
}

// Lease is the right to work on one row.
type Lease struct {
	ID      string // of the row
	LeaseID uuid.UUID
	// Attempts counts the claims of the row, this one included.
	Attempts int
	// DueTime is when the work should have begun.
	DueTime time.Time
}

// identifier and stateName are what may stand in SQL here: names come from the program, and this keeps it so.
var (
	identifier = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)
	stateName  = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)
)

// New checks the description and returns the table.
func New(cfg Config) (*Table, error) {
	if cfg.ID == "" {
		cfg.ID = "id"
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("lease table %q: %w", cfg.Table, err)
	}
	t := &Table{cfg: cfg}
	t.prepare()
	return t, nil
}

func (c Config) validate() error {
	names := append(strings.SplitN(c.Table, ".", 2), c.ID)
	for _, column := range []string{c.State, c.Group} {
		if column != "" {
			names = append(names, column)
		}
	}
	for _, name := range names {
		if !identifier.MatchString(name) {
			return fmt.Errorf("%q is no identifier", name)
		}
	}
	switch {
	case c.State == "" && (len(c.Due) > 0 || c.Leased != ""):
		return errors.New("there are states and no column for them")
	case c.State != "" && len(c.Due) == 0:
		return errors.New("no state is due")
	}
	for _, s := range append(slices.Clone(c.Due), c.Leased) {
		if s != "" && !stateName.MatchString(s) {
			return fmt.Errorf("%q is no state", s)
		}
	}
	return nil
}

// overAll always holds; see the package's comment.
const overAll = "due_time > '-infinity'"

// now is the SQL of the time: the parameter, for tests, or the database's clock.
func now(param int) string {
	return fmt.Sprintf("COALESCE($%d::timestamptz, statement_timestamp())", param)
}

func (t *Table) prepare() {
	due := overAll + " AND due_time <= " + now(1) + " AND (lease_until IS NULL OR lease_until <= " + now(1) + ")" + t.inDueState()
	set := "lease_id = gen_random_uuid(), lease_until = " + now(1) + " + $3::interval, attempts = t.attempts + 1"
	back := ""
	if t.cfg.Leased != "" {
		set += ", " + t.cfg.State + " = '" + t.cfg.Leased + "'"
		back = ", " + t.cfg.State + " = '" + t.cfg.Due[0] + "'"
	}
	id, table := t.cfg.ID, t.cfg.Table
	// MATERIALIZED: as a plain subquery the planner may run it more than once, and then LIMIT does not hold.
	t.claim = `WITH due AS MATERIALIZED (
	SELECT ` + id + ` FROM ` + table + ` WHERE ` + due + `
	ORDER BY due_time, ` + id + ` LIMIT $2 FOR UPDATE SKIP LOCKED)
UPDATE ` + table + ` t SET ` + set + ` FROM due WHERE t.` + id + ` = due.` + id + `
RETURNING t.` + id + `::text, t.lease_id, t.attempts, t.due_time`
	t.shared = t.sharedClaim(set)
	t.fence = ` WHERE ` + id + ` = $1 AND lease_id = $2`
	t.reschedule = `UPDATE ` + table + ` SET lease_id = NULL, lease_until = NULL, attempts = GREATEST(attempts - $4, 0),
	due_time = ` + now(3) + back + t.fence
	t.extend = `UPDATE ` + table + ` SET lease_until = ` + now(3) + ` + $4::interval` + t.fence
	t.stats = `SELECT count(*), min(due_time) FROM (SELECT due_time FROM ` + table + ` WHERE ` + due + ` ORDER BY due_time LIMIT $2) d`
}

// inDueState is written with literals, not parameters: so a partial index on these states is used by every plan.
func (t *Table) inDueState() string {
	if t.cfg.State == "" {
		return ""
	}
	states := t.cfg.Due
	if t.cfg.Leased != "" {
		states = append(slices.Clone(states), t.cfg.Leased) // of a lease that ran out
	}
	return " AND " + t.cfg.State + " IN ('" + strings.Join(states, "', '") + "')"
}

// clock returns the time for the SQL: nil is the database's own.
func (t *Table) clock() *time.Time {
	if t.cfg.Now == nil {
		return nil
	}
	n := t.cfg.Now()
	return &n
}

// Claim takes at most limit rows that are due, for leaseFor, oldest due first.
func (t *Table) Claim(ctx context.Context, db DB, limit int, leaseFor time.Duration) ([]Lease, error) {
	if limit <= 0 {
		return nil, nil
	}
	rows, err := db.Query(ctx, t.claim, t.clock(), limit, leaseFor)
	if err != nil {
		return nil, fmt.Errorf("claim from %s: %w", t.cfg.Table, err)
	}
	leases, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Lease])
	if err != nil {
		return nil, fmt.Errorf("claim from %s: %w", t.cfg.Table, err)
	}
	slices.SortFunc(leases, func(a, b Lease) int {
		if c := a.DueTime.Compare(b.DueTime); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return leases, nil
}

// Finish ends the work: the row goes to the state and is not due any more. Without a state column the state is empty, and
// the caller changes or deletes the row in the same transaction. It fails with ErrLost.
func (t *Table) Finish(ctx context.Context, db DB, l Lease, state string) error {
	if (state == "") != (t.cfg.State == "") {
		return fmt.Errorf("finish %s %s: state %q does not fit the table", t.cfg.Table, l.ID, state)
	}
	if state == "" {
		return t.exec(ctx, db, "finish", `UPDATE `+t.cfg.Table+` SET lease_id = NULL, lease_until = NULL, due_time = 'infinity'`+t.fence, l.ID, l.LeaseID)
	}
	return t.exec(ctx, db, "finish", `UPDATE `+t.cfg.Table+` SET lease_id = NULL, lease_until = NULL, `+t.cfg.State+` = $3`+t.fence, l.ID, l.LeaseID, state)
}

// Delete ends the work and the row. It fails with ErrLost.
func (t *Table) Delete(ctx context.Context, db DB, l Lease) error {
	return t.exec(ctx, db, "delete", `DELETE FROM `+t.cfg.Table+t.fence, l.ID, l.LeaseID)
}

// Hold locks the row until the end of the transaction, for a caller who then writes it with a statement of its own. It
// fails with ErrLost.
func (t *Table) Hold(ctx context.Context, tx pgx.Tx, l Lease) error {
	return t.exec(ctx, tx, "hold", `SELECT 1 FROM `+t.cfg.Table+t.fence+` FOR UPDATE`, l.ID, l.LeaseID)
}

// Reschedule gives the row back, due at the time; the zero time is now. It fails with ErrLost.
func (t *Table) Reschedule(ctx context.Context, db DB, l Lease, at time.Time) error {
	return t.giveBack(ctx, db, l, at, 0)
}

// Snooze is Reschedule for a claim that does not count as an attempt.
func (t *Table) Snooze(ctx context.Context, db DB, l Lease, at time.Time) error {
	return t.giveBack(ctx, db, l, at, 1)
}

func (t *Table) giveBack(ctx context.Context, db DB, l Lease, at time.Time, refund int) error {
	due := &at
	if at.IsZero() {
		due = t.clock()
	}
	return t.exec(ctx, db, "reschedule", t.reschedule, l.ID, l.LeaseID, due, refund)
}

// Extend makes the lease last leaseFor from now. It fails with ErrLost.
func (t *Table) Extend(ctx context.Context, db DB, l Lease, leaseFor time.Duration) error {
	return t.exec(ctx, db, "extend", t.extend, l.ID, l.LeaseID, t.clock(), leaseFor)
}

// exec runs a fenced statement.
func (t *Table) exec(ctx context.Context, db DB, what, sql string, args ...any) error {
	tag, err := db.Exec(ctx, sql, args...)
	if err != nil {
		return fmt.Errorf("%s %s %s: %w", what, t.cfg.Table, args[0], err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("%s %s %s: %w", what, t.cfg.Table, args[0], ErrLost)
	}
	return nil
}

// Stats is how much work waits.
type Stats struct {
	Due    int           // rows that are due and not leased, counted up to 10,000
	Oldest time.Duration // how long the oldest of them has been due
}

// maxCounted bounds the count of due rows: behind it the exact number does not matter.
const maxCounted = 10_000

// Stats counts the rows that wait.
func (t *Table) Stats(ctx context.Context, db DB) (Stats, error) {
	var s Stats
	var oldest *time.Time
	if err := db.QueryRow(ctx, t.stats, t.clock(), maxCounted).Scan(&s.Due, &oldest); err != nil {
		return Stats{}, fmt.Errorf("count due rows of %s: %w", t.cfg.Table, err)
	}
	if oldest == nil {
		return s, nil
	}
	at := time.Now()
	if t.cfg.Now != nil {
		at = t.cfg.Now()
	}
	s.Oldest = max(0, at.Sub(*oldest))
	return s, nil
}
