package api

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/outbox"
	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

// sink serves EventSinkService for issuance alone: a watch makes calls to CAs.
type sink struct {
	eventv1.UnimplementedEventSinkServiceServer
	*API
}

// Deliver applies events.
func (s *sink) Deliver(ctx context.Context, r *eventv1.DeliverRequest) (*eventv1.DeliverResponse, error) {
	if err := onlyPeers(ctx, issuance); err != nil {
		return nil, err
	}
	return s.deps.Sink.Deliver(ctx, r)
}

// Apply makes the function that applies one event in a transaction; book gives the polls in it.
func Apply(book func(pgx.Tx) core.Book, now func() time.Time) outbox.Apply {
	return func(ctx context.Context, tx pgx.Tx, e *eventv1.Event) error {
		switch e.GetType() {
		case "order.pending":
			return orderPending(ctx, book(tx), e, now())
		case "order.changed":
			return orderChanged(ctx, book(tx), e)
		default:
			return outbox.Reject(fmt.Errorf("asyncpoller does not know events of type %q", e.GetType()))
		}
	}
}

func orderPending(ctx context.Context, b core.Book, e *eventv1.Event, now time.Time) error {
	r := &asyncpollerv1.CreatePollRequest{}
	if err := payload(e, r); err != nil {
		return err
	}
	_, err := core.Begin(ctx, b, watchOf(r), now)
	return err
}

// orderChanged ends the watch of an order that has ended by another way than a poll.
func orderChanged(ctx context.Context, b core.Book, e *eventv1.Event) error {
	changed := &issuancev1.OrderChanged{}
	if err := payload(e, changed); err != nil {
		return err
	}
	switch o := changed.GetOrder(); o.GetStatus() {
	case issuancev1.Order_CANCELLED:
		return core.Cancel(ctx, b, o.GetId())
	case issuancev1.Order_ISSUED, issuancev1.Order_REJECTED, issuancev1.Order_FAILED:
		return b.Close(ctx, o.GetId(), core.Done, "the order has ended: "+o.GetStatus().String())
	default:
		return nil
	}
}

func payload(e *eventv1.Event, into proto.Message) error {
	if err := e.GetPayload().UnmarshalTo(into); err != nil {
		return outbox.Reject(fmt.Errorf("read payload: %w", err))
	}
	return nil
}
