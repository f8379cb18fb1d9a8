package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
)

// maxError bounds what is kept of an error's text.
const maxError = 1000

// row is an event that was not delivered yet.
type row struct {
	id       int64
	attempts int
	event    *eventv1.Event
	broken   error // the row cannot be read as an event
}

// planned has a statement planned each time. The outbox is empty one moment and full the next, so that a plan that was kept
// from one of them, such as to read the whole table, is a bad one for the other.
const planned = pgx.QueryExecModeCacheDescribe

// selectBatch leaves out the later events of a resource whose earlier one waits for its next attempt. Those that wait are
// few or none; they are read once and not for each event.
const selectBatch = `WITH waiting AS MATERIALIZED (
    SELECT resource_type, resource_id, id FROM outbox
     WHERE destination = $1 AND attempts > 0 AND NOT dead AND due_time > statement_timestamp())
SELECT id, attempts, payload FROM outbox o
 WHERE destination = $1 AND NOT dead AND due_time <= statement_timestamp()
   AND NOT EXISTS (
       SELECT 1 FROM waiting w WHERE w.resource_type = o.resource_type AND w.resource_id = o.resource_id AND w.id < o.id)
 ORDER BY id LIMIT $2`

// read returns the oldest events that are due.
func (r *route) read(ctx context.Context) (batch []row, more bool, err error) {
	rows, err := r.db.Pool.Query(ctx, selectBatch, planned, r.destination, r.batch)
	if err != nil {
		return nil, false, fmt.Errorf("read the outbox: %w", err)
	}
	size := 0
	batch, err = pgx.CollectRows(rows, func(cr pgx.CollectableRow) (row, error) {
		var payload []byte
		w := row{event: new(eventv1.Event)}
		if err := cr.Scan(&w.id, &w.attempts, &payload); err != nil {
			return row{}, err
		}
		w.broken = proto.Unmarshal(payload, w.event)
		w.event.Source = r.cfg.Source
		return w, nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("read the outbox: %w", err)
	}
	for i, w := range batch {
		if size += proto.Size(w.event); size > maxBatchBytes && i > 0 {
			return batch[:i], true, nil
		}
	}
	return batch, len(batch) == r.batch, nil
}

// verdict is what becomes of a row.
type verdict struct {
	row
	outcome eventv1.EventResult_Outcome
	message string
}

// deliver sends a batch and settles each of its rows. The error is about the receiver or the database as a whole.
func (r *route) deliver(ctx context.Context, batch []row) error {
	verdicts, good := r.sortOut(batch)
	sent, err := r.send(ctx, good)
	if err := r.settle(ctx, append(verdicts, sent...)); err != nil {
		return err
	}
	return err
}

// sortOut takes out the rows that cannot be sent at all.
func (r *route) sortOut(batch []row) (verdicts []verdict, good []row) {
	for _, w := range batch {
		if w.broken == nil {
			good = append(good, w)
			continue
		}
		verdicts = append(verdicts, verdict{row: w, outcome: eventv1.EventResult_REJECTED, message: w.broken.Error()})
	}
	return verdicts, good
}

// send calls the receiver. When the receiver refuses the request as such, halves of it are sent, in order, until the one
// event that it refuses is found.
func (r *route) send(ctx context.Context, rows []row) ([]verdict, error) {
	if len(rows) == 0 {
		return nil, nil
	}
	res, err := r.call(ctx, rows)
	switch {
	case err == nil:
		return verdictsOf(rows, res), nil
	case !refused(err):
		return nil, err
	case len(rows) == 1:
		return []verdict{{row: rows[0], outcome: eventv1.EventResult_REJECTED, message: err.Error()}}, nil
	}
	half := len(rows) / 2
	first, err := r.send(ctx, rows[:half])
	if err != nil {
		return first, err
	}
	second, err := r.send(ctx, withoutRetried(first, rows[half:]))
	return append(first, second...), err
}

// withoutRetried leaves out the later events of resources whose earlier ones have to wait.
func withoutRetried(first []verdict, rows []row) []row {
	waiting := make(map[resource]bool)
	for _, v := range first {
		if v.outcome == eventv1.EventResult_RETRY {
			waiting[resourceOf(v.event)] = true
		}
	}
	kept := make([]row, 0, len(rows))
	for _, w := range rows {
		if !waiting[resourceOf(w.event)] {
			kept = append(kept, w)
		}
	}
	return kept
}

func (r *route) call(ctx context.Context, rows []row) (*eventv1.DeliverResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	req := &eventv1.DeliverRequest{Events: make([]*eventv1.Event, 0, len(rows))}
	for _, w := range rows {
		req.Events = append(req.Events, w.event)
	}
	res, err := r.sink.Deliver(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("deliver %d events to %s: %w", len(rows), r.destination, err)
	}
	if len(res.GetResults()) != len(rows) {
		return nil, fmt.Errorf("deliver events to %s: %d results for %d events", r.destination, len(res.GetResults()), len(rows))
	}
	return res, nil
}

// refused tells an answer about the events from one about the receiver's condition or our rights there.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.ResourceExhausted, codes.OutOfRange:
		return true
	default:
		return false
	}
}

func verdictsOf(rows []row, res *eventv1.DeliverResponse) []verdict {
	out := make([]verdict, 0, len(rows))
	for i, w := range rows {
		result := res.GetResults()[i]
		v := verdict{row: w, outcome: result.GetOutcome(), message: result.GetMessage()}
		if v.outcome != eventv1.EventResult_APPLIED && v.outcome != eventv1.EventResult_REJECTED {
			v.outcome = eventv1.EventResult_RETRY
		}
		out = append(out, v)
	}
	return out
}

// settle deletes what was applied, in one statement, and marks the rest.
func (r *route) settle(ctx context.Context, verdicts []verdict) error {
	var applied []int64
	var s marks
	for _, v := range verdicts {
		r.metrics.outcome(r.destination, v.outcome)
		switch v.outcome {
		case eventv1.EventResult_APPLIED:
			applied = append(applied, v.id)
		case eventv1.EventResult_REJECTED:
			r.log.Error("an event was rejected for good", zap.String("event_id", v.event.GetId()), zap.String("type", v.event.GetType()),
				zap.String("resource_id", v.event.GetResourceId()), zap.String("reason", v.message))
			s.add(v, true, 0)
		default:
			wait, _ := r.cfg.Backoff.Next(v.attempts + 1)
			s.add(v, false, wait)
		}
	}
	// What the receiver has done is done: it is written down even when this process is about to end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Timeout)
	defer cancel()
	if len(applied) > 0 {
		if _, err := r.db.Pool.Exec(ctx, `DELETE FROM outbox WHERE id = ANY($1)`, planned, applied); err != nil {
			return fmt.Errorf("delete delivered events: %w", err)
		}
	}
	return s.write(ctx, r)
}

// marks are the arrays of the update of rows that stay.
type marks struct {
	ids    []int64
	dead   []bool
	waits  []time.Duration
	errors []string
}

func (s *marks) add(v verdict, dead bool, wait time.Duration) {
	s.ids = append(s.ids, v.id)
	s.dead = append(s.dead, dead)
	s.waits = append(s.waits, wait)
	s.errors = append(s.errors, clean(v.message))
}

const markRows = `UPDATE outbox o
   SET attempts = o.attempts + 1, dead = m.dead, due_time = statement_timestamp() + m.wait, last_error = m.error
  FROM unnest($1::bigint[], $2::boolean[], $3::interval[], $4::text[]) AS m (id, dead, wait, error)
 WHERE o.id = m.id AND NOT o.dead`

func (s *marks) write(ctx context.Context, r *route) error {
	if len(s.ids) == 0 {
		return nil
	}
	if _, err := r.db.Pool.Exec(ctx, markRows, planned, s.ids, s.dead, s.waits, s.errors); err != nil {
		return fmt.Errorf("mark undelivered events: %w", err)
	}
	return nil
}

// resource is what the order of events is about.
type resource struct{ typ, id string }

func resourceOf(e *eventv1.Event) resource {
	return resource{typ: e.GetResourceType(), id: e.GetResourceId()}
}
