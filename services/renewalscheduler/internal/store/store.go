// Package store holds all SQL of the renewal scheduler: policies, plans, jobs and their keys.
package store

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/pkg/rpcctx"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Collections whose revisions change.
const (
	Jobs     = "jobs"
	Policies = "policies"
)

// Errors that callers decide by.
var (
	// ErrNotFound tells that there is no such row.
	ErrNotFound = errors.New("not found")
	// ErrExists tells that the id is taken.
	ErrExists = errors.New("exists")
	// ErrOpen tells that an open job is in the way.
	ErrOpen = errors.New("a job is open")
	// ErrChanged tells that the row is not in the state or revision that the change starts from.
	ErrChanged = errors.New("changed meanwhile")
)

// Schema is the service's part of the database.
func Schema() pg.Schema { return pg.Schema{Name: "renewalscheduler", FS: migrations} }

// Queries are the statements that run in and outside of a transaction.
type Queries struct{ db lease.DB }

// OverDB makes the statements over a database of the caller's, for instance one that watches them.
func OverDB(db lease.DB) Queries { return Queries{db: db} }

// Store is the service's database.
type Store struct {
	Queries
	db *pg.DB
	// The queues of due rows.
	jobs, scheduled, retrying, cancellations *lease.Table
}

// Tx is a transaction. The events and the revisions of a change are gathered and written at its end.
type Tx struct {
	Queries
	tx          pgx.Tx
	events      []outbox.Event
	collections []string
	held        *held // nil: nothing was locked with Hold
}

// New makes a store; now is the clock that rows become due by, nil is the database's.
func New(db *pg.DB, now func() time.Time) (*Store, error) {
	s := &Store{Queries: Queries{db: db.Pool}, db: db}
	for _, q := range []struct {
		into *(*lease.Table)
		cfg  lease.Config
	}{
		{&s.jobs, lease.Config{Table: "jobs", State: "state", Group: "requested_by", Due: []string{string(Pending), string(AwaitingCSR), string(AwaitingCA), string(Running)}}},
		{&s.scheduled, lease.Config{Table: "plans", State: "state", Due: []string{string(PlanScheduled)}}},
		{&s.retrying, lease.Config{Table: "plans", State: "state", Due: []string{string(PlanRetrying)}}},
		{&s.cancellations, lease.Config{Table: "task_cancellations"}},
	} {
		q.cfg.Now = now
		table, err := lease.New(q.cfg)
		if err != nil {
			return nil, fmt.Errorf("make queue: %w", err)
		}
		*q.into = table
	}
	return s, nil
}

// Pool is what queues are claimed from.
func (s *Store) Pool() lease.DB { return s.db.Pool }

// JobQueue has the jobs that can go on. Who has asked for them take turns.
func (s *Store) JobQueue() *lease.Table { return s.jobs }

// ScheduledPlans has the certificates whose renewal is due.
func (s *Store) ScheduledPlans() *lease.Table { return s.scheduled }

// RetryingPlans has the certificates whose last job failed and that are due again.
func (s *Store) RetryingPlans() *lease.Table { return s.retrying }

// Cancellations has the tasks to take back.
func (s *Store) Cancellations() *lease.Table { return s.cancellations }

// Tx runs fn in a transaction; fn may run again and has no effects outside.
func (s *Store) Tx(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	return s.db.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error { return In(ctx, tx, fn) })
}

// In runs fn in a transaction that somebody else has begun.
func In(ctx context.Context, tx pgx.Tx, fn func(ctx context.Context, tx *Tx) error) error {
	t := &Tx{Queries: Queries{db: tx}, tx: tx}
	if err := fn(ctx, t); err != nil {
		return err
	}
	return t.finish(ctx)
}

// finish writes what was gathered. Revisions come last: their rows are shared by all writers.
func (t *Tx) finish(ctx context.Context) error {
	if err := t.flush(ctx); err != nil {
		return err
	}
	if len(t.events) > 0 {
		if err := outbox.Add(ctx, t.tx, t.events...); err != nil {
			return err
		}
	}
	if len(t.collections) == 0 {
		return nil
	}
	return revision.Bump(ctx, t.tx, t.collections...)
}

// Change is one mutation by a caller; see mutation.Change.
type Change[T proto.Message] struct {
	Request proto.Message
	Prepare func(ctx context.Context) error
	Apply   func(ctx context.Context, tx *Tx) (T, error)
	Empty   func() T
}

// Do makes the change once for each idempotency key.
func Do[T proto.Message](ctx context.Context, s *Store, c Change[T]) (T, error) {
	return mutation.Do(ctx, s.db, mutation.Change[T]{
		Request: c.Request, Prepare: c.Prepare, Empty: c.Empty,
		Apply: func(ctx context.Context, tx pgx.Tx) (answer T, err error) {
			err = In(ctx, tx, func(ctx context.Context, tx *Tx) error {
				answer, err = c.Apply(ctx, tx)
				return err
			})
			return answer, err
		},
	})
}

// PruneIdempotencyKeys deletes keys that are too old to matter.
func (s *Store) PruneIdempotencyKeys(ctx context.Context) (int, error) {
	return mutation.Prune(ctx, s.db.Pool)
}

// Emit writes events with the transaction. They are of the request in ctx.
func (t *Tx) Emit(ctx context.Context, events ...outbox.Event) {
	for _, e := range events {
		e.RequestID = cmp.Or(e.RequestID, rpcctx.RequestID(ctx))
		t.events = append(t.events, e)
	}
}

// Once tells whether the event is seen for the first time.
func (t *Tx) Once(ctx context.Context, eventID string) (bool, error) {
	return outbox.Once(ctx, t.tx, eventID)
}

// Changed raises the revisions of collections with the transaction.
func (t *Tx) Changed(collections ...string) { t.collections = append(t.collections, collections...) }

// DeleteLease deletes a claimed row.
func (t *Tx) DeleteLease(ctx context.Context, q *lease.Table, l lease.Lease) error {
	return q.Delete(ctx, t.tx, l)
}

// sqlTime is NULL for the zero time.
func sqlTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	u := t.UTC()
	return &u
}

func goTime(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

func sqlText(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func goText(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func sqlUUID(s string) (*uuid.UUID, error) {
	if s == "" {
		return nil, nil //nolint:nilnil // NULL
	}
	id, err := uuid.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("parse id: %w", err)
	}
	return &id, nil
}
