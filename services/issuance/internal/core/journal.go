package core

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/batch"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// journalBatch is how many orders share a transaction at most.
const journalBatch = 100

// journal writes intents and results. Those that come at the same time share a transaction: each keeps its own guard,
// compare-and-set and events, and when the transaction fails over one of them, each is written alone.
type journal struct {
	intents     *batch.Writes[intent, bool]
	results     *batch.Writes[result, bool]
	revocations *batch.Writes[RevokeRequest, []store.Revocation]
}

// intent is an order that is about to be placed, with what others are told.
type intent struct {
	store.Intent

	events []outbox.Event
}

// result is an order whose certificate is there, with what others are told.
type result struct {
	store.Issue

	events []outbox.Event
}

func newJournal(c *Core) *journal {
	return &journal{
		intents: batch.NewWrites(journalBatch, func(ctx context.Context, list []intent) []batch.Outcome[bool] { return writeIntents(ctx, c, list) }),
		results: batch.NewWrites(journalBatch, func(ctx context.Context, list []result) []batch.Outcome[bool] { return writeResults(ctx, c, list) }),
		revocations: batch.NewWrites(journalBatch, func(ctx context.Context, list []RevokeRequest) []batch.Outcome[[]store.Revocation] {
			return pg.AllOrEach(list, func(list []RevokeRequest) ([]batch.Outcome[[]store.Revocation], error) {
				return writeRevocations(ctx, c, list)
			})
		}),
	}
}

// insert stores an intent; false when its id is taken or its guard does not hold.
func (j *journal) insert(ctx context.Context, i intent) (bool, error) {
	name(ctx, i.events)
	return j.intents.Do(ctx, i)
}

// issue stores a result; false when its compare-and-set did not hold.
func (j *journal) issue(ctx context.Context, r result) (bool, error) {
	name(ctx, r.events)
	return j.results.Do(ctx, r)
}

// revoke stores what a caller wants revoked and waits for, and answers the revocations as they are stored.
func (j *journal) revoke(ctx context.Context, r RevokeRequest) ([]store.Revocation, error) {
	return j.revocations.Do(ctx, r)
}

// name notes the request that events come from: the transaction is that of several.
func name(ctx context.Context, events []outbox.Event) {
	for i := range events {
		events[i].RequestID = rpcctx.RequestID(ctx)
	}
}

func writeIntents(ctx context.Context, c *Core, list []intent) []batch.Outcome[bool] {
	return written(ctx, c, list, entry[intent]{
		id: func(i intent) string { return i.Order.ID }, insert: insertIntents, events: func(i intent) []outbox.Event { return i.events },
	})
}

func writeResults(ctx context.Context, c *Core, list []result) []batch.Outcome[bool] {
	return written(ctx, c, list, entry[result]{
		id: func(r result) string { return r.Order.ID }, insert: insertResults, events: func(r result) []outbox.Event { return r.events },
	})
}

func writeRevocations(ctx context.Context, c *Core, list []RevokeRequest) (out []batch.Outcome[[]store.Revocation], err error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	err = c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := c.StoreRevocations(ctx, tx, list...)
		out = make([]batch.Outcome[[]store.Revocation], len(list))
		for i, r := range list {
			for _, row := range rows {
				if r.CertificateID == row.CertificateID && (len(r.SerialNumbers) == 0 || slices.Contains(r.SerialNumbers, row.SerialNumber)) {
					out[i].Value = append(out[i].Value, row)
				}
			}
		}
		return err
	})
	return out, err
}

func insertIntents(ctx context.Context, q store.Querier, list []intent) ([]string, error) {
	rows := make([]store.Intent, 0, len(list))
	for _, i := range list {
		rows = append(rows, i.Intent)
	}
	return store.InsertOrders(ctx, q, rows)
}

func insertResults(ctx context.Context, q store.Querier, list []result) ([]string, error) {
	rows := make([]store.Issue, 0, len(list))
	for _, r := range list {
		rows = append(rows, r.Issue)
	}
	return store.IssueOrders(ctx, q, sources(Issued), rows)
}

// entry is how a kind of entry is written.
type entry[T any] struct {
	id func(T) string
	// insert answers the ids of those that it stored.
	insert func(ctx context.Context, q store.Querier, list []T) ([]string, error)
	events func(T) []outbox.Event
}

// written writes entries together or, when that fails over one of them, each alone. A second entry of an order waits for the
// first one.
func written[T any](ctx context.Context, c *Core, list []T, e entry[T]) []batch.Outcome[bool] {
	out := make([]batch.Outcome[bool], len(list))
	write := func(list []T) ([]batch.Outcome[bool], error) { return together(ctx, c, list, e) }
	first, again := firsts(list, e.id)
	for n, o := range pg.AllOrEach(pick(list, first), write) {
		out[first[n]] = o
	}
	for _, i := range again {
		out[i] = pg.AllOrEach(list[i:i+1], write)[0]
	}
	return out
}

// firsts gives the places of the first entry of each order, and of the others.
func firsts[T any](list []T, id func(T) string) (first, again []int) {
	seen := make(map[string]bool, len(list))
	for i, entry := range list {
		if seen[id(entry)] {
			again = append(again, i)
			continue
		}
		seen[id(entry)] = true
		first = append(first, i)
	}
	return first, again
}

func pick[T any](list []T, places []int) []T {
	if len(places) == len(list) {
		return list
	}
	out := make([]T, 0, len(places))
	for _, i := range places {
		out = append(out, list[i])
	}
	return out
}

// together writes entries in one transaction, and tells of each whether it was stored.
func together[T any](ctx context.Context, c *Core, list []T, e entry[T]) ([]batch.Outcome[bool], error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	out := make([]batch.Outcome[bool], len(list))
	err := c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		stored, err := e.insert(ctx, tx, list)
		if err != nil {
			return err
		}
		var events []outbox.Event
		for i, entry := range list {
			if out[i].Value = slices.Contains(stored, e.id(entry)); out[i].Value {
				events = append(events, e.events(entry)...)
			}
		}
		return emit(ctx, tx, events...)
	})
	if errors.Is(err, store.ErrIssuerGone) || errors.Is(err, store.ErrExists) {
		err = pg.OfItem(err)
	}
	return out, err
}
