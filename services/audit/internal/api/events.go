// Package api is audit's gRPC: it translates, bounds and calls the store.
package api

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/page"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/audit/internal/core"
	"github.com/certctl/certctl/services/audit/internal/store"
)

// Events serves certctl.audit.v1.AuditService.
type Events struct {
	store   *store.Store
	pages   *page.Codec
	sorting *page.Sorting
}

// NewEvents makes the service.
func NewEvents(s *store.Store, pages *page.Codec) (*Events, error) {
	sorting, err := page.NewSorting(page.Column{Field: "sequence", SQL: "sequence", Kind: page.Int}, "sequence desc",
		page.Column{Field: "time", SQL: "time", Kind: page.Time})
	if err != nil {
		return nil, err
	}
	return &Events{store: s, pages: pages, sorting: sorting}, nil
}

// ListEvents implements auditv1.AuditServiceServer.
func (e *Events) ListEvents(ctx context.Context, r *auditv1.ListEventsRequest) (*auditv1.ListEventsResponse, error) {
	size, err := page.Size(r.GetPageSize())
	if err != nil {
		return nil, err
	}
	order, err := e.sorting.Parse(r.GetOrderBy())
	if err != nil {
		return nil, err
	}
	scope := page.Scope{Collection: store.Collection, Filters: page.FiltersOf(r), Order: order.String()}
	cursor, err := e.pages.Decode(r.GetPageToken(), scope)
	if err != nil {
		return nil, err
	}
	filter := filterOf(r)
	filter.Order, filter.Cursor, filter.Limit = order, cursor, size+1
	events, err := e.store.List(ctx, filter)
	if err != nil {
		return nil, err
	}
	events, more := page.Cut(events, size)
	resp := &auditv1.ListEventsResponse{Events: make([]*auditv1.Event, 0, len(events))}
	for _, ev := range events {
		resp.Events = append(resp.Events, toProto(ev))
	}
	if more {
		last := events[len(events)-1]
		resp.NextPageToken = e.pages.Encode(scope, order.Cursor(page.TimeValue(last.Time), page.IntValue(last.Sequence)))
	}
	if r.GetIncludeTotal() {
		n, err := e.store.Count(ctx, filter)
		if err != nil {
			return nil, err
		}
		resp.TotalSize = &n
	}
	return resp, nil
}

func filterOf(r *auditv1.ListEventsRequest) store.Filter {
	f := store.Filter{ActorID: r.GetActorId(), Action: r.GetAction(), ResourceType: r.GetResourceType(), ResourceID: r.GetResourceId(), RequestID: r.GetRequestId()}
	if r.GetActorType() != 0 {
		f.ActorType = r.GetActorType().String()
	}
	if r.GetOutcome() != 0 {
		f.Outcome = r.GetOutcome().String()
	}
	if r.GetAfter() != nil {
		f.After = r.GetAfter().AsTime()
	}
	if r.GetBefore() != nil {
		f.Before = r.GetBefore().AsTime()
	}
	return f
}

// GetEvent implements auditv1.AuditServiceServer.
func (e *Events) GetEvent(ctx context.Context, r *auditv1.GetEventRequest) (*auditv1.GetEventResponse, error) {
	ev, ok, err := e.store.Get(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errs.New(errs.NotFound, "EVENT_NOT_FOUND", "event %s not found", r.GetId())
	}
	return &auditv1.GetEventResponse{Event: toProto(ev)}, nil
}

// GetCheckpoint implements auditv1.AuditServiceServer.
func (e *Events) GetCheckpoint(ctx context.Context, _ *auditv1.GetCheckpointRequest) (*auditv1.GetCheckpointResponse, error) {
	a, ok, err := e.store.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errs.New(errs.NotFound, "CHECKPOINT_NOT_FOUND", "there is no checkpoint yet; the first one is made when the chain has been verified")
	}
	return &auditv1.GetCheckpointResponse{Checkpoint: anchorProto(a)}, nil
}

// VerifyEvents implements auditv1.AuditServiceServer.
func (e *Events) VerifyEvents(ctx context.Context, r *auditv1.VerifyEventsRequest) (*auditv1.VerifyEventsResponse, error) {
	if r.GetLastSequence() != 0 && r.GetLastSequence() < r.GetFirstSequence() {
		return nil, errs.Field("last_sequence", "must not be below first_sequence")
	}
	report, err := e.store.Verify(ctx, r.GetFirstSequence(), r.GetLastSequence())
	if err != nil {
		return nil, err
	}
	resp := &auditv1.VerifyEventsResponse{Valid: report.Fault == nil, EventsChecked: uint32(report.Checked), Head: anchorProto(report.Last)}
	if f := report.Fault; f != nil {
		resp.FirstInvalidEvent = &auditv1.InvalidEvent{Sequence: f.Sequence, Id: f.ID, Reason: f.Reason, Message: f.Message}
	}
	return resp, nil
}

func anchorProto(a core.Anchor) *auditv1.Checkpoint {
	c := &auditv1.Checkpoint{Sequence: a.Sequence, Hash: core.Hex(a.Hash)}
	if !a.Time.IsZero() {
		c.Time = timestamppb.New(a.Time)
	}
	return c
}

func toProto(e *core.Event) *auditv1.Event {
	return &auditv1.Event{
		Id: e.ID, Sequence: e.Sequence, Time: timestamppb.New(e.Time), RecordTime: timestamppb.New(e.RecordTime),
		Actor:  &typev1.Actor{Type: typev1.Actor_Type(typev1.Actor_Type_value[e.ActorType]), Id: e.ActorID},
		Action: e.Action, Resource: &auditv1.Resource{Type: e.ResourceType, Id: e.ResourceID},
		Outcome: auditv1.Event_Outcome(auditv1.Event_Outcome_value[e.Outcome]), RequestId: e.RequestID, Data: dataOf(e.Data),
		Hash: core.Hex(e.Hash), PreviousHash: core.Hex(e.PreviousHash),
	}
}

// fromRecord makes an event of a delivered record. The id is the outbox event's, so that a repeat is seen.
func fromRecord(d *eventv1.Event, r *auditv1.Record) (*core.Event, error) {
	if err := checkRecord(d, r); err != nil {
		return nil, err
	}
	data, err := json.Marshal(r.GetData().AsMap())
	if err != nil {
		return nil, fmt.Errorf("encode data: %w", err)
	}
	outcome := r.GetOutcome()
	if outcome == auditv1.Event_OUTCOME_UNSPECIFIED {
		outcome = auditv1.Event_SUCCESS
	}
	return &core.Event{
		ID: "evt-" + d.GetId(), Time: d.GetTime().AsTime().Truncate(time.Microsecond), ActorType: r.GetActor().GetType().String(), ActorID: r.GetActor().GetId(),
		Action: r.GetAction(), ResourceType: r.GetResource().GetType(), ResourceID: r.GetResource().GetId(),
		Outcome: outcome.String(), RequestID: d.GetRequestId(), Data: data,
	}, nil
}

// checkRecord finds what the table would refuse: one event that cannot be stored must not hold up all that come after it.
func checkRecord(d *eventv1.Event, r *auditv1.Record) error {
	var v errs.Violations
	if r.GetAction() == "" {
		v.Add("action", "is missing")
	}
	if r.GetAction() == core.ActionHeadMismatch {
		v.Add("action", "%s is recorded by audit alone", core.ActionHeadMismatch)
	}
	if _, known := auditv1.Event_Outcome_name[int32(r.GetOutcome())]; !known {
		v.Add("outcome", "%d is unknown", r.GetOutcome())
	}
	if err := d.GetTime().CheckValid(); err != nil {
		v.Add("time", "is missing or out of range")
	}
	for field, text := range map[string]string{
		"actor.id": r.GetActor().GetId(), "action": r.GetAction(), "resource.type": r.GetResource().GetType(),
		"resource.id": r.GetResource().GetId(), "request_id": d.GetRequestId(),
	} {
		if strings.ContainsRune(text, 0) {
			v.Add(field, "has a NUL byte")
		}
	}
	return v.Err()
}
