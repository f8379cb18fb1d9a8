// Package store is all SQL of audit.
package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/pkg/search"
	"github.com/certctl/certctl/services/audit/internal/core"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Collection is the name under which the list's revision is kept.
const Collection = "audit"

// chainLock serialises appends: one writer at a time has the end of the chain.
const chainLock = 0x6365727461756474

// Schema is audit's part of the database. Nobody may change or delete an event or a checkpoint.
func Schema() pg.Schema {
	return pg.Schema{Name: "audit", FS: migrations, AppendOnly: []string{"events", "checkpoints", "checkpoint_seals", "spans"}}
}

// Store reads and appends.
type Store struct {
	db     *pg.DB
	sealer core.Sealer
	log    *zap.Logger
	// sealedTo is the checkpoint up to which all have a seal of each key.
	sealedTo atomic.Int64
}

// New makes a store; the sealer anchors the head.
func New(db *pg.DB, sealer core.Sealer, log *zap.Logger) *Store {
	return &Store{db: db, sealer: sealer, log: log}
}

const columns = `sequence, id, time, record_time, actor_type, actor_id, action, resource_type, resource_id, outcome, request_id, data::text, hash, previous_hash`

// Append puts the events that are not there yet at the end of the chain, in the given order, and moves the head, all in
// one transaction. It answers how many were new. An end that none of our keys has sealed does not stop it, but is marked
// before them: the new end will have our seal, and nobody could tell any more.
func (s *Store) Append(ctx context.Context, events []*core.Event) (int, error) {
	added := 0
	err := s.db.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(chainLock)); err != nil {
			return fmt.Errorf("lock the end of the chain: %w", err)
		}
		fresh, err := unknown(ctx, tx, events)
		if err != nil || len(fresh) == 0 {
			return err
		}
		head, err := readHead(ctx, tx)
		if err != nil {
			return err
		}
		added = len(fresh)
		if fresh, err = s.mark(head, fresh); err != nil {
			return err
		}
		before := head.Sequence
		head = core.Chain(fresh, head, time.Now())
		if err := insert(ctx, tx, fresh); err != nil {
			return err
		}
		if err := endSpans(ctx, tx, before, head.Sequence); err != nil {
			return err
		}
		if err := s.moveHead(ctx, tx, head); err != nil {
			return err
		}
		return revision.Bump(ctx, tx, Collection)
	})
	if err != nil {
		return 0, err
	}
	return added, nil
}

func (s *Store) mark(head core.Anchor, fresh []*core.Event) ([]*core.Event, error) {
	if head.Sequence == 0 || s.sealer.Fits(core.KindHead, head) {
		return fresh, nil
	}
	s.log.Error("the anchor of the end of the audit chain does not fit: an event that says so is appended", zap.Int64("sequence", head.Sequence))
	m, err := core.NewMark(head, time.Now())
	if err != nil {
		return nil, err
	}
	return append([]*core.Event{m}, fresh...), nil
}

// unknown leaves out what is recorded already, and doubles within the batch.
func unknown(ctx context.Context, tx pgx.Tx, events []*core.Event) ([]*core.Event, error) {
	ids := make([]string, 0, len(events))
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	rows, err := tx.Query(ctx, `SELECT id FROM events WHERE id = ANY($1)`, ids)
	if err != nil {
		return nil, fmt.Errorf("look for known events: %w", err)
	}
	known, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for known events: %w", err)
	}
	seen := make(map[string]bool, len(known))
	for _, id := range known {
		seen[id] = true
	}
	fresh := make([]*core.Event, 0, len(events))
	for _, e := range events {
		if !seen[e.ID] {
			seen[e.ID] = true
			fresh = append(fresh, e)
		}
	}
	return fresh, nil
}

func insert(ctx context.Context, tx pgx.Tx, events []*core.Event) error {
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"events"}, []string{"sequence", "id", "time", "record_time", "actor_type", "actor_id",
		"action", "resource_type", "resource_id", "outcome", "request_id", "data", "hash", "previous_hash"},
		pgx.CopyFromSlice(len(events), func(i int) ([]any, error) {
			e := events[i]
			return []any{e.Sequence, e.ID, e.Time, e.RecordTime, e.ActorType, e.ActorID, e.Action, e.ResourceType, e.ResourceID,
				e.Outcome, e.RequestID, string(e.Data), e.Hash, e.PreviousHash}, nil
		}))
	if err != nil {
		return fmt.Errorf("append events: %w", err)
	}
	return nil
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func readHead(ctx context.Context, q querier) (core.Anchor, error) {
	a := core.Anchor{Hash: core.Genesis()}
	var ids, macs [][]byte
	err := q.QueryRow(ctx, `SELECT sequence, hash, time, mac, key_ids, macs FROM head`).Scan(&a.Sequence, &a.Hash, &a.Time, &a.MAC, &ids, &macs)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return a, fmt.Errorf("read the end of the chain: %w", err)
	}
	a.Seals = seals(ids, macs)
	return a, nil
}

func (s *Store) moveHead(ctx context.Context, tx pgx.Tx, head core.Anchor) error {
	head = s.sealer.Seal(core.KindHead, head)
	ids, macs := columnsOf(head)
	_, err := tx.Exec(ctx, `INSERT INTO head (sequence, hash, time, mac, key_ids, macs) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (singleton) DO UPDATE SET sequence = excluded.sequence, hash = excluded.hash, time = excluded.time, mac = excluded.mac,
 key_ids = excluded.key_ids, macs = excluded.macs`,
		head.Sequence, head.Hash, head.Time, head.MAC, ids, macs)
	if err != nil {
		return fmt.Errorf("move the end of the chain: %w", err)
	}
	return nil
}

// Filter says which events to list. Zero fields do not filter.
type Filter struct {
	ActorID, ActorType, Action, ResourceType, ResourceID, Outcome, RequestID string
	// After and Before bound the time that it happened: after <= time < before.
	After, Before time.Time
	Order         page.Order
	Cursor        page.Cursor
	// Limit is the number of rows to read.
	Limit int
}

func (f Filter) conditions() search.Filter {
	var w search.Filter
	for _, c := range []struct{ column, value string }{
		{"actor_id", f.ActorID}, {"actor_type", f.ActorType}, {"resource_type", f.ResourceType}, {"resource_id", f.ResourceID}, {"outcome", f.Outcome},
	} {
		w.Equal(c.column, c.value)
	}
	if f.RequestID != "" {
		w.Few("request_id = ? AND request_id <> ''", f.RequestID)
	}
	if prefix, ok := strings.CutSuffix(f.Action, ".*"); ok {
		w.Add("action LIKE ?", likeEscaper.Replace(prefix)+".%")
	} else {
		w.Equal("action", f.Action)
	}
	if !f.After.IsZero() {
		w.SpannedBound("time", "time >= ?", "latest >= ?", f.After)
	}
	if !f.Before.IsZero() {
		w.SpannedBound("time", "time < ?", "earliest < ?", f.Before)
	}
	return w
}

var likeEscaper = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// List answers events in the filter's order.
func (s *Store) List(ctx context.Context, f Filter) ([]*core.Event, error) {
	events, err := search.Find(ctx, s.db.Pool, f.search(), scanEvent)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return events, nil
}

func (f Filter) search() search.Search {
	return search.Search{
		Table: search.Table{
			Columns: columns, From: "events e", ID: "sequence", Few: []string{"resource_id"},
			Leads:   map[string][]string{"sequence": {"actor_id", "action", "outcome", "resource_type", "actor_type"}},
			Covered: map[string][]string{"time": {"sequence"}}, Spans: allSpans,
		},
		Filter: f.conditions(), Order: f.Order, After: f.Cursor, Limit: f.Limit,
	}
}

// Count answers how many events the filter has.
func (s *Store) Count(ctx context.Context, f Filter) (int32, error) {
	w := f.conditions()
	var n int32
	if err := s.db.Pool.QueryRow(ctx, `SELECT count(*)::int FROM events WHERE `+w.SQL(), w.Args()...).Scan(&n); err != nil {
		return 0, fmt.Errorf("count events: %w", err)
	}
	return n, nil
}

// Get answers one event; ok is false when there is none.
func (s *Store) Get(ctx context.Context, id string) (e *core.Event, ok bool, err error) {
	events, err := scan(ctx, s.db.Pool, `SELECT `+columns+` FROM events WHERE id = $1`, id)
	if err != nil || len(events) == 0 {
		return nil, false, err
	}
	return events[0], true, nil
}

func scan(ctx context.Context, q querier, sql string, args ...any) ([]*core.Event, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	events, err := pgx.CollectRows(rows, scanEvent)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return events, nil
}

// scanEvent reads a row of columns.
func scanEvent(row pgx.CollectableRow) (*core.Event, error) {
	return pg.RowTo(readEvent)(row)
}

func readEvent(r *pg.Columns) *core.Event {
	return &core.Event{
		Sequence: r.Int64(), ID: r.Text(), Time: r.Time(), RecordTime: r.Time(), ActorType: r.Text(), ActorID: r.Text(), Action: r.Text(),
		ResourceType: r.Text(), ResourceID: r.Text(), Outcome: r.Text(), RequestID: r.Text(), Data: []byte(r.Text()), Hash: r.Bytes(),
		PreviousHash: r.Bytes(),
	}
}

// Report is the outcome of a verification.
type Report struct {
	// First is where the walk began.
	First   int64
	Checked int64
	Fault   *core.Fault
	// Last is the last place that fitted.
	Last core.Anchor
}

// Verify walks the events from first to last (0: from the start, to the end) as they stand at one moment. A first one
// after the end of the chain is an Invalid error on first_sequence.
func (s *Store) Verify(ctx context.Context, first, last int64) (Report, error) {
	var r Report
	err := s.db.TxOptions(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(ctx context.Context, tx pgx.Tx) error {
		var err error
		r, err = s.verify(ctx, tx, first, last)
		return err
	})
	return r, err
}

// VerifyNew walks what came since the newest checkpoint that fits its MAC.
func (s *Store) VerifyNew(ctx context.Context) (Report, error) {
	a, ok, err := s.Checkpoint(ctx)
	if err != nil {
		return Report{}, err
	}
	if !ok || !s.sealer.Fits(core.KindCheckpoint, a) {
		return s.Verify(ctx, 0, 0)
	}
	return s.Verify(ctx, a.Sequence, 0)
}

// VerifyOld walks the part before a place, at most size events from first, and answers where the next such walk begins: after
// it, or at the start again.
func (s *Store) VerifyOld(ctx context.Context, first, before, size int64) (r Report, next int64, err error) {
	if first < 1 || first >= before {
		first = 1
	}
	last := min(first+size, before) - 1
	if last < first {
		return Report{}, 1, nil
	}
	r, err = s.Verify(ctx, first, last)
	if last+1 == before {
		return r, 1, err
	}
	return r, last + 1, err
}

func (s *Store) verify(ctx context.Context, tx pgx.Tx, first, last int64) (Report, error) {
	if err := checkStart(ctx, tx, first); err != nil {
		return Report{}, err
	}
	start, err := place(ctx, tx, first-1)
	if err != nil {
		return Report{}, err
	}
	v := core.NewVerifier(s.sealer, start)
	fault, err := walk(ctx, tx, v, last)
	if err != nil {
		return Report{}, err
	}
	// A walk that ends before its last event came to the end of the chain, or to where somebody cut it off.
	if fault == nil && (last == 0 || v.Last().Sequence < last) {
		if fault, err = verifyEnd(ctx, tx, v); err != nil {
			return Report{}, err
		}
	}
	if fault == nil {
		if fault, err = lesser(ctx, tx, v); err != nil {
			return Report{}, err
		}
	}
	return Report{First: max(first, 1), Checked: v.Checked(), Fault: fault, Last: v.Last()}, nil
}

// lesser is what a chain that fits may still leave: a mark, or an anchor of which nothing can be said.
func lesser(ctx context.Context, q querier, v *core.Verifier) (*core.Fault, error) {
	a, _, err := newest(ctx, q)
	if err != nil {
		return nil, err
	}
	mark, doubt := v.Mark(a), v.Doubt()
	if mark == nil || doubt != nil && mark.Reason == core.ReasonSecret {
		return doubt, nil
	}
	return mark, nil
}

// checkStart refuses to begin after everything that the chain ever had: that would find a broken end in any chain.
func checkStart(ctx context.Context, q querier, first int64) error {
	var end int64
	err := q.QueryRow(ctx, `SELECT greatest((SELECT max(sequence) FROM events), (SELECT max(sequence) FROM checkpoints), (SELECT sequence FROM head), 0)`).Scan(&end)
	if err != nil {
		return fmt.Errorf("read the length of the chain: %w", err)
	}
	if first > end+1 {
		return errs.Field("first_sequence", "must not be above %d: the chain ends at event %d", end+1, end)
	}
	return nil
}

func verifyEnd(ctx context.Context, q querier, v *core.Verifier) (*core.Fault, error) {
	head, err := readHead(ctx, q)
	if err != nil {
		return nil, err
	}
	if fault := v.End(head); fault != nil {
		return fault, nil
	}
	a, ok, err := newest(ctx, q)
	if err != nil || !ok {
		return nil, err
	}
	return v.NotBefore(a), nil
}

// place answers the anchor of an event that a partial walk starts after.
func place(ctx context.Context, q querier, sequence int64) (core.Anchor, error) {
	a := core.Anchor{Hash: core.Genesis()}
	if sequence <= 0 {
		return a, nil
	}
	a.Sequence = sequence
	err := q.QueryRow(ctx, `SELECT hash FROM events WHERE sequence = $1`, sequence).Scan(&a.Hash)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return a, fmt.Errorf("read event %d: %w", sequence, err)
	}
	return a, nil
}
