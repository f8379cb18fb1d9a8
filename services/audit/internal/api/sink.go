package api

import (
	"context"

	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	"github.com/certctl/certctl/services/audit/internal/core"
	"github.com/certctl/certctl/services/audit/internal/store"
)

// Sink serves certctl.event.v1.EventSinkService: the way into the record.
type Sink struct{ store *store.Store }

// NewSink makes the service.
func NewSink(s *store.Store) *Sink { return &Sink{store: s} }

// Deliver implements eventv1.EventSinkServiceServer. The batch goes into the chain as a whole; what is no audit record
// is rejected.
func (s *Sink) Deliver(ctx context.Context, r *eventv1.DeliverRequest) (*eventv1.DeliverResponse, error) {
	results := make([]*eventv1.EventResult, len(r.GetEvents()))
	events := make([]*core.Event, 0, len(r.GetEvents()))
	for i, e := range r.GetEvents() {
		results[i] = &eventv1.EventResult{Outcome: eventv1.EventResult_APPLIED}
		event, err := decode(e)
		if err != nil {
			results[i] = &eventv1.EventResult{Outcome: eventv1.EventResult_REJECTED, Message: err.Error()}
			continue
		}
		events = append(events, event)
	}
	if _, err := s.store.Append(ctx, events); err != nil {
		return nil, err
	}
	return &eventv1.DeliverResponse{Results: results}, nil
}

func decode(e *eventv1.Event) (*core.Event, error) {
	record := &auditv1.Record{}
	if err := e.GetPayload().UnmarshalTo(record); err != nil {
		return nil, err
	}
	return fromRecord(e, record)
}
