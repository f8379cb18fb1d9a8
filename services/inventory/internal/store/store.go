// Package store has all SQL of inventory. A Tx is one transaction of it: what a change says to others (events, notices
// to agents' streams, revisions of collections) is gathered in the Tx and written at its end.
package store

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/batch"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/pkg/search"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
)

// Migrations holds the files of goose.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Schema is the part of the database that inventory owns.
func Schema() pg.Schema { return pg.Schema{Name: "inventory", FS: Migrations} }

// Collections whose changes are counted.
const (
	Certificates = "certificates"
	Agents       = "agents"
	Targets      = "targets"
	Deployments  = "deployments"
	Discovered   = "discovered-certificates"
)

// ErrNotFound is what a read of one row answers when there is none.
var ErrNotFound = errors.New("no such row")

// NoticeChannel is the NOTIFY channel on which replicas tell each other about agents' streams.
const NoticeChannel = "inventory_agents"

// NoticeKind says what a notice is about.
type NoticeKind string

// The kinds of notices.
const (
	// NoticeWork: the mailbox has work with at least this number.
	NoticeWork NoticeKind = "work"
	// NoticeStream: the agent opened a stream with this epoch; older ones end.
	NoticeStream NoticeKind = "stream"
	// NoticeRetired: the agent is retired.
	NoticeRetired NoticeKind = "retired"
	// NoticeCredential: credentials of the agent have changed; check them again.
	NoticeCredential NoticeKind = "credential"
)

// Notice is for the replica that holds an agent's stream.
type Notice struct {
	Kind    NoticeKind
	AgentID string
	Number  int64
}

// String is the payload of NOTIFY.
func (n Notice) String() string {
	return string(n.Kind) + " " + n.AgentID + " " + strconv.FormatInt(n.Number, 10)
}

// ParseNotice reads a payload of NOTIFY.
func ParseNotice(payload string) (Notice, bool) {
	parts := strings.Split(payload, " ")
	if len(parts) != 3 {
		return Notice{}, false
	}
	n, err := strconv.ParseInt(parts[2], 10, 64)
	return Notice{Kind: NoticeKind(parts[0]), AgentID: parts[1], Number: n}, err == nil
}

// querier runs statements: the pool or a transaction.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Config sets up a Store.
type Config struct {
	// OnNotice is called after the commit of a transaction for each of its notices; it does not block.
	OnNotice func(Notice)
	// OnEvents is called after the commit of a transaction that has written events.
	OnEvents func()
}

// Store reads outside of transactions and starts them. Reads has the queries that both it and Tx offer.
type Store struct {
	Reads
	db           *pg.DB
	cfg          Config
	sorts        sortings
	certificates *batch.Reads[string, Certificate]
}

// New makes a store on the database.
func New(cfg Config, db *pg.DB) (*Store, error) {
	s, err := newSortings()
	if err != nil {
		return nil, err
	}
	reads := Reads{q: db.Pool}
	return &Store{Reads: reads, db: db, cfg: cfg, sorts: s, certificates: batch.NewReads(batch.ReadsConfig{}, reads.certificatesByID)}, nil
}

// Reads are queries that work in and out of a transaction.
type Reads struct{ q querier }

// Tx is one transaction.
type Tx struct {
	Reads
	tx          pgx.Tx
	requestID   string
	events      []outbox.Event
	notices     map[Notice]struct{}
	work        map[string]int64 // the highest number for each agent
	collections map[string]struct{}
}

func newTx(tx pgx.Tx) *Tx {
	return &Tx{Reads: Reads{q: tx}, tx: tx, notices: map[Notice]struct{}{}, work: map[string]int64{}, collections: map[string]struct{}{}}
}

// Emit writes events with the transaction.
func (t *Tx) Emit(events ...outbox.Event) {
	for i := range events {
		events[i].RequestID = cmp.Or(events[i].RequestID, t.requestID)
	}
	t.events = append(t.events, events...)
}

// CausedBy names the request that what is emitted from now on comes from, in a transaction with the changes of several.
func (t *Tx) CausedBy(requestID string) { t.requestID = requestID }

// Changed counts the collections as changed.
func (t *Tx) Changed(collections ...string) {
	for _, c := range collections {
		t.collections[c] = struct{}{}
	}
}

// Notify tells the replica that holds the agent's stream, after the commit.
func (t *Tx) Notify(n Notice) {
	if n.Kind == NoticeWork { // the highest number says it all
		delete(t.notices, Notice{Kind: NoticeWork, AgentID: n.AgentID, Number: t.work[n.AgentID]})
		n.Number = max(n.Number, t.work[n.AgentID])
		t.work[n.AgentID] = n.Number
	}
	t.notices[n] = struct{}{}
}

// finish writes what was gathered. Revisions come last: their rows are shared by all writers.
func (t *Tx) finish(ctx context.Context) error {
	if len(t.events) > 0 {
		if err := outbox.Add(ctx, t.tx, t.events...); err != nil {
			return wrap("write events", err)
		}
	}
	if len(t.notices) > 0 {
		payloads := make([]string, 0, len(t.notices))
		for n := range t.notices {
			payloads = append(payloads, n.String())
		}
		if _, err := t.tx.Exec(ctx, `SELECT pg_notify($1, p) FROM unnest($2::text[]) AS p`, NoticeChannel, payloads); err != nil {
			return wrap("notify replicas", err)
		}
	}
	if len(t.collections) > 0 {
		return revision.Bump(ctx, t.tx, slices.Collect(maps.Keys(t.collections))...)
	}
	return nil
}

// published tells others in this process about a committed transaction.
func (s *Store) published(t *Tx) {
	if t == nil {
		return
	}
	if s.cfg.OnNotice != nil {
		for n := range t.notices {
			s.cfg.OnNotice(n)
		}
	}
	if len(t.events) > 0 && s.cfg.OnEvents != nil {
		s.cfg.OnEvents()
	}
}

// Tx runs fn in a transaction; fn runs again when Postgres asks for it.
func (s *Store) Tx(ctx context.Context, fn func(ctx context.Context, t *Tx) error) error {
	var last *Tx
	err := s.db.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		last = newTx(tx)
		if err := fn(ctx, last); err != nil {
			return err
		}
		return last.finish(ctx)
	})
	if err != nil {
		return err
	}
	s.published(last)
	return nil
}

// Mutation is one change that a caller asked for.
type Mutation[T proto.Message] struct {
	Request proto.Message
	// Prepare asks others before the transaction.
	Prepare func(ctx context.Context) error
	Apply   func(ctx context.Context, t *Tx) (T, error)
	// Empty makes a message for the stored answer of a repeat.
	Empty func() T
}

// Mutate makes the change once per idempotency key.
func Mutate[T proto.Message](ctx context.Context, s *Store, m Mutation[T]) (T, error) {
	var last *Tx
	answer, err := mutation.Do(ctx, s.db, mutation.Change[T]{
		Request: m.Request,
		Prepare: m.Prepare,
		Empty:   m.Empty,
		Apply: func(ctx context.Context, tx pgx.Tx) (T, error) {
			last = newTx(tx)
			answer, err := m.Apply(ctx, last)
			if err != nil {
				return answer, err
			}
			return answer, last.finish(ctx)
		},
	})
	if err == nil {
		s.published(last)
	}
	return answer, err
}

// Sink makes the receiver of events. Each event is applied once, in a transaction; what apply gathers in its Tx is
// written with it. The events of a delivery share one, and each has its own when that fails. Notices reach this replica
// through the database like all others.
func (s *Store) Sink(apply func(ctx context.Context, t *Tx, events []*eventv1.Event) error, log *zap.Logger) (*outbox.Sink, error) {
	together := func(ctx context.Context, tx pgx.Tx, events []*eventv1.Event) error {
		t := newTx(tx)
		if err := apply(ctx, t, events); err != nil {
			return err
		}
		return t.finish(ctx)
	}
	return outbox.NewSink(outbox.SinkDeps{
		DB:         s.db,
		Logger:     log,
		After:      s.cfg.OnEvents,
		ApplyBatch: together,
		Apply: func(ctx context.Context, tx pgx.Tx, e *eventv1.Event) error {
			return together(ctx, tx, []*eventv1.Event{e})
		},
	})
}

// Slice is one page of a list.
type Slice struct {
	Order page.Order
	After page.Cursor
	// Limit is the number of rows to read: one more than the page has.
	Limit int
}

// where gathers conditions and their arguments.
type where struct{ search.Filter }

// contains adds a search for a substring, written in any case.
func (w *where) contains(expression, value string) {
	condition, pattern := expression+" LIKE ?", "%"+escapeLike(strings.ToLower(value))+"%"
	switch {
	case value == "":
	case hasTrigram(value):
		w.Add(condition, pattern)
	default:
		w.Unindexed(condition, pattern)
	}
}

// hasTrigram tells whether the indexes of pg_trgm can find a text: they have what is three letters or digits in a row.
func hasTrigram(text string) bool {
	run := 0
	for _, r := range text {
		if run++; !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			run = 0
		}
		if run == 3 {
			return true
		}
	}
	return false
}

// labels adds that all pairs are there.
func (w *where) labels(column string, pairs map[string]string) {
	if len(pairs) > 0 {
		w.Add(column+" @> ?", pairs)
	}
}

// search asks for a page of a table.
func (w *where) search(table search.Table, s Slice) search.Search {
	return search.Search{Table: table, Filter: w.Filter, Order: s.Order, After: s.After, Limit: s.Limit}
}

// find reads one page of a table.
func find[T any](ctx context.Context, q querier, what string, s search.Search) ([]T, error) {
	return findBy(ctx, q, what, s, pgx.RowToStructByName[T])
}

// findBy is find with a way to read rows.
func findBy[T any](ctx context.Context, q querier, what string, s search.Search, scan pgx.RowToFunc[T]) ([]T, error) {
	v, err := search.Find(ctx, q, s, scan)
	if err != nil {
		return nil, wrap(what, err)
	}
	return v, nil
}

func escapeLike(s string) string {
	return strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(s)
}

// list makes nil a list without elements: NULL is no list.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// pairs makes nil an object without members.
func pairs(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// one reads exactly one row.
func one[T any](ctx context.Context, q querier, what, sql string, args ...any) (T, error) {
	var none T
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return none, wrap(what, err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[T])
	if errors.Is(err, pgx.ErrNoRows) {
		return none, ErrNotFound
	}
	if err != nil {
		return none, wrap(what, err)
	}
	return v, nil
}

// all reads rows.
func all[T any](ctx context.Context, q querier, what, sql string, args ...any) ([]T, error) {
	return allBy(ctx, q, what, pgx.RowToStructByName[T], sql, args...)
}

// allBy is all with a way to read rows.
func allBy[T any](ctx context.Context, q querier, what string, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, wrap(what, err)
	}
	v, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, wrap(what, err)
	}
	return v, nil
}

// column reads the one column of rows.
func column[T any](ctx context.Context, q querier, what, sql string, args ...any) ([]T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, wrap(what, err)
	}
	v, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		return nil, wrap(what, err)
	}
	return v, nil
}

// value reads one value; ErrNotFound when there is no row.
func value[T any](ctx context.Context, q querier, what, sql string, args ...any) (T, error) {
	var v T
	err := q.QueryRow(ctx, sql, args...).Scan(&v)
	if errors.Is(err, pgx.ErrNoRows) {
		return v, ErrNotFound
	}
	if err != nil {
		return v, wrap(what, err)
	}
	return v, nil
}

// changed runs a statement and tells whether it changed a row.
func changed(ctx context.Context, q querier, what, sql string, args ...any) (bool, error) {
	n, err := count(ctx, q, what, sql, args...)
	return n > 0, err
}

// count runs a statement and tells how many rows it changed.
func count(ctx context.Context, q querier, what, sql string, args ...any) (int, error) {
	tag, err := q.Exec(ctx, sql, args...)
	if err != nil {
		return 0, wrap(what, err)
	}
	return int(tag.RowsAffected()), nil
}

// IsUnique tells whether err is the violation of the named unique constraint or index.
func IsUnique(err error, constraint string) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Code == codeUniqueViolation && e.ConstraintName == constraint
}

// States that Postgres gives for text that it cannot store (PostgreSQL manual, appendix A).
const (
	codeNotInRepertoire  = "22021"
	codeUntranslatable   = "22P05"
	codeUniqueViolation  = "23505"
	codeInvalidTextValue = "22P02"
)

// wrap says what was being done. Text with a NUL character, which Postgres cannot store or compare, is the caller's mistake.
func wrap(what string, err error) error {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch e.Code {
		case codeNotInRepertoire, codeUntranslatable, codeInvalidTextValue:
			return errs.New(errs.Invalid, "INVALID_ARGUMENT", "the request holds text that cannot be stored").Wrap(fmt.Errorf("%s: %w", what, err))
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}
