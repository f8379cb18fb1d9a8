package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/tick"
)

const (
	// InboxRetention is how long a receiver remembers an event. A relay that could not delete a delivered event for
	// longer than this would have it applied twice.
	InboxRetention = 7 * 24 * time.Hour

	pruneChunk = 5000
)

// ErrRejected marks an error of an event that can never be applied; see Reject.
var ErrRejected = errors.New("event rejected")

// Reject makes err permanent: the event goes to the sender's dead letters instead of being sent again.
func Reject(err error) error { return fmt.Errorf("%w: %w", ErrRejected, err) }

// permanent tells whether sending the event again is of no use. What is not found yet may be there later.
func permanent(err error) bool {
	return errors.Is(err, ErrRejected) || errs.IsKind(err, errs.Invalid)
}

// Once remembers the event in the transaction that applies it. It is false when the event was applied before.
func Once(ctx context.Context, tx pgx.Tx, eventID string) (first bool, err error) {
	tag, err := tx.Exec(ctx, `INSERT INTO inbox (event_id) VALUES ($1) ON CONFLICT DO NOTHING`, eventID)
	if err != nil {
		return false, fmt.Errorf("remember event %s: %w", eventID, err)
	}
	return tag.RowsAffected() == 1, nil
}

// Apply applies one event in tx. It runs again when the transaction is retried, so it has no effects elsewhere. An error
// means that the event is sent again later, unless it is of kind Invalid or made by Reject. The context has the
// event's request id.
type Apply func(ctx context.Context, tx pgx.Tx, e *eventv1.Event) error

// SinkDeps are what a sink works with.
type SinkDeps struct {
	DB    *pg.DB
	Apply Apply
	// ApplyBatch, when set, applies the new events of a delivery together; when it fails, each is applied by Apply.
	ApplyBatch func(ctx context.Context, tx pgx.Tx, events []*eventv1.Event) error
	// After, when set, is called after events were committed, for instance to kick a loop.
	After  func()
	Logger *zap.Logger
}

// Sink is the EventSinkService of a receiver. A delivery is applied in one transaction; when that fails, event by
// event, so that one bad event costs no other.
type Sink struct {
	eventv1.UnimplementedEventSinkServiceServer
	deps SinkDeps
	log  *zap.Logger
}

// NewSink returns a sink.
func NewSink(deps SinkDeps) (*Sink, error) {
	if deps.DB == nil || deps.Apply == nil {
		return nil, errors.New("event sink: a database and a function that applies are needed")
	}
	if deps.Logger == nil {
		deps.Logger = zap.NewNop()
	}
	return &Sink{deps: deps, log: deps.Logger}, nil
}

// Deliver applies the events that were not applied before, oldest first, and answers for each.
func (s *Sink) Deliver(ctx context.Context, req *eventv1.DeliverRequest) (*eventv1.DeliverResponse, error) {
	events := req.GetEvents()
	if len(events) == 0 {
		return &eventv1.DeliverResponse{}, nil
	}
	err := s.together(ctx, events)
	if err == nil {
		s.after()
		return answer(events, applied), nil
	}
	// Without its database the sink can say nothing about single events. The error alone does not tell: it may be one of Apply's own.
	if s.deps.DB.Pool.Ping(ctx) != nil {
		return nil, errs.New(errs.Unavailable, "EVENTS_NOT_APPLIED", "the events could not be applied now").Wrap(err)
	}
	res := s.oneByOne(ctx, events)
	s.after()
	return res, nil
}

func (s *Sink) after() {
	if s.deps.After != nil {
		s.deps.After()
	}
}

func applied() *eventv1.EventResult {
	return &eventv1.EventResult{Outcome: eventv1.EventResult_APPLIED}
}

func answer(events []*eventv1.Event, result func() *eventv1.EventResult) *eventv1.DeliverResponse {
	res := &eventv1.DeliverResponse{Results: make([]*eventv1.EventResult, 0, len(events))}
	for range events {
		res.Results = append(res.Results, result())
	}
	return res
}

// together applies all events in one transaction.
func (s *Sink) together(ctx context.Context, events []*eventv1.Event) error {
	return run.Safely(func() error {
		return s.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
			fresh, err := remember(ctx, tx, events)
			if err != nil || len(fresh) == 0 {
				return err
			}
			if s.deps.ApplyBatch != nil {
				return s.deps.ApplyBatch(ctx, tx, fresh)
			}
			for _, e := range fresh {
				if err := s.deps.Apply(rpcctx.WithRequestID(ctx, e.GetRequestId()), tx, e); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// remember is Once for many events; it returns those that are new, in order.
func remember(ctx context.Context, tx pgx.Tx, events []*eventv1.Event) ([]*eventv1.Event, error) {
	ids := make([]uuid.UUID, 0, len(events))
	for _, e := range events {
		id, err := uuid.Parse(e.GetId())
		if err != nil {
			return nil, Reject(fmt.Errorf("event id: %w", err))
		}
		ids = append(ids, id)
	}
	rows, err := tx.Query(ctx, `INSERT INTO inbox (event_id) SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING RETURNING event_id`, ids)
	if err != nil {
		return nil, fmt.Errorf("remember events: %w", err)
	}
	inserted, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("remember events: %w", err)
	}
	isNew := make(map[uuid.UUID]bool, len(inserted))
	for _, id := range inserted {
		isNew[id] = true
	}
	fresh := make([]*eventv1.Event, 0, len(inserted))
	for i, e := range events {
		if isNew[ids[i]] {
			fresh = append(fresh, e)
			delete(isNew, ids[i]) // an event that is in the request twice is applied once
		}
	}
	return fresh, nil
}

// oneByOne applies each event in a transaction of its own. An event that has to come again holds back the later ones of
// its resource.
func (s *Sink) oneByOne(ctx context.Context, events []*eventv1.Event) *eventv1.DeliverResponse {
	res := &eventv1.DeliverResponse{Results: make([]*eventv1.EventResult, 0, len(events))}
	waiting := make(map[resource]bool)
	for _, e := range events {
		result := &eventv1.EventResult{Outcome: eventv1.EventResult_RETRY, Message: "waits for an earlier event of its resource"}
		if !waiting[resourceOf(e)] {
			result = s.one(ctx, e)
		}
		if result.GetOutcome() == eventv1.EventResult_RETRY {
			waiting[resourceOf(e)] = true
		}
		res.Results = append(res.Results, result)
	}
	return res
}

func (s *Sink) one(ctx context.Context, e *eventv1.Event) *eventv1.EventResult {
	if _, err := uuid.Parse(e.GetId()); err != nil {
		return &eventv1.EventResult{Outcome: eventv1.EventResult_REJECTED, Message: "the id is no UUID"}
	}
	err := run.Safely(func() error {
		return s.deps.DB.Tx(rpcctx.WithRequestID(ctx, e.GetRequestId()), func(ctx context.Context, tx pgx.Tx) error {
			first, err := Once(ctx, tx, e.GetId())
			if err != nil || !first {
				return err
			}
			return s.deps.Apply(ctx, tx, e)
		})
	})
	if err == nil {
		return applied()
	}
	fields := []zap.Field{zap.String("event_id", e.GetId()), zap.String("type", e.GetType()), zap.String("resource_id", e.GetResourceId()), zap.Error(err)}
	if p, ok := errors.AsType[*run.PanicError](err); ok {
		fields = append(fields, zap.ByteString("stack", p.Stack))
	}
	s.log.Warn("an event could not be applied", fields...)
	outcome := eventv1.EventResult_RETRY
	if permanent(err) {
		outcome = eventv1.EventResult_REJECTED
	}
	return &eventv1.EventResult{Outcome: outcome, Message: clean(err.Error())}
}

// clean makes a text fit for a proto string and a text column, and bounds it.
func clean(s string) string {
	s = strings.ReplaceAll(s, "\x00", "")
	if len(s) > maxError {
		s = s[:maxError]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// PruneLoop is the loop of a receiver that forgets events older than InboxRetention.
func PruneLoop(db *pg.DB) tick.Loop {
	return tick.Loop{
		Name:        "inbox prune",
		Description: "forgets the ids of events that were applied more than 7 days ago",
		Interval:    time.Hour,
		Run: func(ctx context.Context) (tick.Result, error) {
			n, err := prune(ctx, db)
			return tick.Result{Rows: n}, err
		},
	}
}

const pruneInbox = `DELETE FROM inbox WHERE event_id IN (
	SELECT event_id FROM inbox WHERE create_time < now() - $1::interval LIMIT $2)`

func prune(ctx context.Context, db *pg.DB) (total int, err error) {
	for {
		tag, err := db.Pool.Exec(ctx, pruneInbox, InboxRetention, pruneChunk)
		if err != nil {
			return total, fmt.Errorf("prune the inbox: %w", err)
		}
		total += int(tag.RowsAffected())
		if tag.RowsAffected() < pruneChunk {
			return total, nil
		}
	}
}
