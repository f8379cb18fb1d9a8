package core

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// Cancel gives an order up. One that is being submitted has to be waited for; one that is cancelled stays so. A pending one
// is cancelled at the CA too, where the CA can do that. It is given up here in any case: what the CA did not hear, or did
// not accept, the order says, and should the CA issue all the same, the certificate is put on record (RecordPoll) or found as
// an orphan.
func (c *Core) Cancel(ctx context.Context, id string) (store.Order, error) {
	o, err := c.GetOrder(ctx, id)
	if err != nil || o.Status == Cancelled {
		return o, err
	}
	before := o
	if !CanMove(o.Status, Cancelled) {
		return store.Order{}, wrongState(o, "cancelled")
	}
	o, err = c.move(ctx, o, transition{to: Cancelled, events: tellScheduler, change: func(*store.Order) {}})
	if err != nil {
		return store.Order{}, err
	}
	if o.Status != Cancelled {
		return store.Order{}, wrongState(o, "cancelled")
	}
	if before.Status == Pending {
		// The poller finds out by itself with its next result: this only spares it that.
		if err := c.deps.Poller.CancelPoll(ctx, id); err != nil {
			c.log.Info("the poller could not be told of a cancelled order", orderFields(o, err)...)
		}
	}
	return c.cancelAtCA(ctx, o)
}

// Reasons that a cancelled order may carry.
const (
	reasonCancelledHereOnly = "CANCELLED_HERE_ONLY"
	reasonCancelledAtCA     = "CANCELLED_AT_CA"
)

// reasonDeadline is asyncpoller's: an order was pending until its own deadline.
const reasonDeadline = "ORDER_DEADLINE"

// cancelTimeout bounds the call: whoever waits for the answer has no need of it.
const cancelTimeout = 5 * time.Second

// cancelAtCA tells the CA, once, and notes in the order how that went. One that has failed keeps its reason.
func (c *Core) cancelAtCA(ctx context.Context, o store.Order) (store.Order, error) {
	ref, err := decodeReference(referenceText(o.CAReference))
	if err != nil || len(ref) == 0 {
		return o, err
	}
	reason, message := reasonCancelledAtCA, "the order is cancelled at the CA too"
	refused := c.callCancel(ctx, o.IssuerID, ref)
	if refused != nil {
		c.log.Warn("an order could not be cancelled at the CA", orderFields(o, refused)...)
		reason, message = reasonCancelledHereOnly, "the order is given up here, and still at the CA: "+shown(refused)
	}
	if o.Status == Failed {
		reason, message = o.ErrorReason, o.ErrorMessage+"; "+message
	}
	noted := false
	err = c.deps.DB.Tx(context.WithoutCancel(ctx), func(ctx context.Context, tx pgx.Tx) (err error) {
		if noted, err = store.NoteProblem(ctx, tx, o.ID, o.Revision, reason, clip(message)); err != nil || !noted {
			return err
		}
		if refused == nil {
			if err := settleGivenUp(ctx, tx, o); err != nil {
				return err
			}
		}
		told := o
		problem(&told, reason, message)
		action := "order.cancelled_at_ca"
		if refused != nil {
			action = "order.cancel_refused"
		}
		if err := emit(ctx, tx, auditOrder(ctx, told, action, nil)); err != nil {
			return err
		}
		return revision.Bump(ctx, tx, collectionOrders)
	})
	if err != nil || !noted {
		return o, err
	}
	problem(&o, reason, message)
	o.Revision++
	return o, nil
}

func (c *Core) callCancel(ctx context.Context, issuerID string, ref issuer.Ref) error {
	_, in, err := c.issuerOf(ctx, issuerID)
	if err != nil {
		return err
	}
	canceller, ok := in.Issuer.(issuer.Canceller)
	if !ok {
		return issuer.Permanent("CANCEL_UNSUPPORTED", "this CA takes no cancellation from certctl")
	}
	callCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	return canceller.Cancel(callCtx, ref)
}
