// Package auditlog makes the audit event of a change, to be written to the outbox in the transaction of the change.
package auditlog

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/rpcctx"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

// EventType is the type of audit's events in the outbox, Destination the service that they go to.
const (
	EventType   = "audit.record"
	Destination = "audit"
)

// The outcomes.
const (
	Success = auditv1.Event_SUCCESS
	Failure = auditv1.Event_FAILURE
	Denied  = auditv1.Event_DENIED
)

// Entry is what happened.
type Entry struct {
	// Action is for example "certificate.created".
	Action       string
	ResourceType string
	ResourceID   string
	// Outcome is SUCCESS when unset.
	Outcome auditv1.Event_Outcome
	// Actor is who did it; nil takes the caller in ctx, on whose behalf a service may act.
	Actor *typev1.Actor
	// Data holds more, of the types that JSON has ([]any, not []string). Never a secret or a key.
	Data map[string]any
}

// Event makes the outbox event. It panics on Data of a type that JSON does not have, a mistake in the program.
func Event(ctx context.Context, e Entry) outbox.Event {
	data, err := structpb.NewStruct(e.Data)
	if err != nil {
		panic(fmt.Sprintf("audit data of %s: %v", e.Action, err))
	}
	if e.Outcome == auditv1.Event_OUTCOME_UNSPECIFIED {
		e.Outcome = auditv1.Event_SUCCESS
	}
	if e.Actor == nil {
		e.Actor = Actor(rpcctx.Actor(ctx))
	}
	return outbox.Event{
		Type: EventType, Destination: Destination, ResourceType: e.ResourceType, ResourceID: e.ResourceID,
		Payload: &auditv1.Record{Actor: e.Actor, Action: e.Action, Resource: &auditv1.Resource{Type: e.ResourceType, Id: e.ResourceID},
			Outcome: e.Outcome, Data: data},
	}
}

// Actor writes a caller as the API shows it.
func Actor(c rpcctx.Caller) *typev1.Actor {
	a := &typev1.Actor{Id: c.ID}
	switch c.Type {
	case rpcctx.User:
		a.Type = typev1.Actor_USER
	case rpcctx.Agent:
		a.Type = typev1.Actor_AGENT
	case rpcctx.Service:
		a.Type = typev1.Actor_SERVICE
	default:
		a.Type = typev1.Actor_ANONYMOUS
	}
	return a
}
