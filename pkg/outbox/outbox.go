// Package outbox carries facts from one service to another: an event is a row written in the transaction that made the
// fact true (Add), delivered at least once by the owner's Relay, and applied once by the receiver's Sink, which
// remembers the ids of events in the transaction that applies them.
//
// Order: events of one resource arrive in the order in which they were added, as long as their transactions lock the
// resource before they call Add. Events of different resources may pass each other. An event that has to be sent again
// holds back the later events of its resource; one that is rejected for good does not: it stays in the table as dead,
// raises a metric, and the later ones go on.
//
// Each service that sends or receives has the tables of Schema in its own schema.
package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"

	"github.com/certctl/certctl/pkg/rpcctx"
)

// Schema is what a service's migration makes. Ids are taken before their transactions commit, so they are no cursor: the
// relay always looks at what is there.
const Schema = `CREATE TABLE outbox (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id      uuid        NOT NULL,
    destination   text        NOT NULL,
    type          text        NOT NULL,
    resource_type text        NOT NULL,
    resource_id   text        NOT NULL,
    payload       bytea       NOT NULL,
    request_id    text        NOT NULL DEFAULT '',
    create_time   timestamptz NOT NULL DEFAULT now(),
    attempts      integer     NOT NULL DEFAULT 0,
    due_time      timestamptz NOT NULL DEFAULT now(),
    dead          boolean     NOT NULL DEFAULT false,
    last_error    text        NOT NULL DEFAULT ''
);
CREATE INDEX outbox_undelivered ON outbox (destination, id) WHERE NOT dead;
CREATE INDEX outbox_waiting ON outbox (destination, resource_type, resource_id, id) WHERE attempts > 0 AND NOT dead;
CREATE INDEX outbox_dead ON outbox (destination) WHERE dead;

CREATE TABLE outbox_leases (
    destination text        PRIMARY KEY,
    lease_id    uuid        NOT NULL,
    lease_until timestamptz NOT NULL
);

CREATE TABLE inbox (
    event_id    uuid        PRIMARY KEY,
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX inbox_create_time ON inbox (create_time);`

// Channel is the NOTIFY channel that Add wakes the relays of a schema with; whoever listens calls Relay.KickFor with the payload.
func Channel(schema string) string { return "certctl_outbox_" + schema }

// Event is a fact to be told.
type Event struct {
	// ID is a UUID; empty means a new UUIDv7.
	ID string
	// Type is the kind of fact, such as "certificate.created".
	Type string
	// ResourceType and ResourceID name what the fact is about; they set the order of delivery.
	ResourceType string
	ResourceID   string
	// Destination is the service that is told.
	Destination string
	// Payload is the fact itself; nil is none.
	Payload proto.Message
	// Time is when it happened; zero means now.
	Time time.Time
	// RequestID is that of the request which caused it; empty means that of the context that Add has. A transaction that
	// carries the changes of several requests sets it.
	RequestID string
}

// insert also wakes the relays to those destinations: Postgres sends a notification when the transaction commits, and equal ones once. Commits
// that notify wait for each other's turn, which is well above what certctl's changes need (one disk flush each).
const insert = `WITH added AS (
	INSERT INTO outbox (event_id, destination, type, resource_type, resource_id, payload, request_id)
	SELECT e.event_id, e.destination, e.type, e.resource_type, e.resource_id, e.payload, e.request_id
	  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::text[])
	       WITH ORDINALITY AS e (event_id, destination, type, resource_type, resource_id, payload, request_id, place)
	 ORDER BY e.place
)
SELECT pg_notify('certctl_outbox_' || current_schema(), d) FROM unnest($8::text[]) AS d`

// Add writes events in the caller's transaction, with one statement.
func Add(ctx context.Context, tx pgx.Tx, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	var c columns
	requestID := rpcctx.RequestID(ctx)
	for _, e := range events {
		e.RequestID = cmp.Or(e.RequestID, requestID)
		if err := c.add(e); err != nil {
			return fmt.Errorf("add %s event to the outbox: %w", e.Type, err)
		}
	}
	if _, err := tx.Exec(ctx, insert, c.ids, c.destinations, c.types, c.resourceTypes, c.resourceIDs, c.payloads, c.requestIDs,
		slices.Compact(slices.Sorted(slices.Values(c.destinations)))); err != nil {
		return fmt.Errorf("add events to the outbox: %w", err)
	}
	return nil
}

// columns are the arrays of the insert.
type columns struct {
	ids                                                         []uuid.UUID
	destinations, types, resourceTypes, resourceIDs, requestIDs []string
	payloads                                                    [][]byte
}

func (c *columns) add(e Event) error {
	if e.Type == "" || e.Destination == "" || e.ResourceType == "" || e.ResourceID == "" {
		return errors.New("type, destination and resource are needed")
	}
	id, err := e.id()
	if err != nil {
		return err
	}
	payload, err := e.marshal(id)
	if err != nil {
		return err
	}
	c.ids = append(c.ids, id)
	c.destinations = append(c.destinations, e.Destination)
	c.types = append(c.types, e.Type)
	c.resourceTypes = append(c.resourceTypes, e.ResourceType)
	c.resourceIDs = append(c.resourceIDs, e.ResourceID)
	c.requestIDs = append(c.requestIDs, e.RequestID)
	c.payloads = append(c.payloads, payload)
	return nil
}

func (e Event) id() (uuid.UUID, error) {
	if e.ID != "" {
		return uuid.Parse(e.ID)
	}
	return uuid.NewV7()
}

func (e Event) marshal(id uuid.UUID) ([]byte, error) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	event := &eventv1.Event{
		Id: id.String(), Type: e.Type, ResourceType: e.ResourceType, ResourceId: e.ResourceID,
		Time: timestamppb.New(e.Time), RequestId: e.RequestID,
	}
	if e.Payload != nil {
		var err error
		if event.Payload, err = anypb.New(e.Payload); err != nil {
			return nil, err
		}
	}
	return proto.Marshal(event)
}
