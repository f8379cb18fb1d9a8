package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/revision"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

const (
	firstPoll    = 5 * time.Second
	lookInterval = 24 * time.Hour
	// watchGrace is after the deadline of a pending order, until it is looked at again: asyncpoller goes on for a day with one
	// whose CA cannot be asked at its deadline.
	watchGrace = 25 * time.Hour
	// againDeadline is how long a watch lasts that begins again after its deadline.
	againDeadline = time.Hour
	// defaultPendingDeadline is for issuers and connectors that say nothing: humans approve.
	defaultPendingDeadline = 30 * 24 * time.Hour
)

func callBackoff() lease.Backoff { return lease.Backoff{Base: 5 * time.Second, Cap: 10 * time.Minute} }

func orderFields(o store.Order, err error) []zap.Field {
	return []zap.Field{logx.ID(logx.KeyOrder, o.ID), logx.ID(logx.KeyIssuer, o.IssuerID), logx.ID(logx.KeyCertificate, o.CertificateID), zap.Error(err)}
}

// transition is one move of an order that is not its issuing.
type transition struct {
	to     string
	fence  uuid.NullUUID
	keep   bool // the lease stays with the mover
	change func(*store.Order)
	events func(store.Order) []outbox.Event // beside the audit event
	action string                           // of the audit event; empty: by the state; "-": none, for what is no change of state
}

// noAudit marks transitions that are no change of state.
const noAudit = "-"

// move is the one function that changes the state of an order, beside issue.
func (c *Core) move(ctx context.Context, o store.Order, t transition) (store.Order, error) {
	if !CanMove(o.Status, t.to) {
		return store.Order{}, wrongState(o, t.to)
	}
	changed := o
	changed.Status = t.to
	t.change(&changed)
	if final(t.to) {
		changed.EndTime, changed.DueTime, changed.NextPollTime = c.now(), time.Time{}, time.Time{}
	}
	moved := false
	err := c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		moved, err = store.MoveOrder(ctx, tx, changed, store.Move{From: sources(t.to), Fence: t.fence, KeepLease: t.keep})
		if err != nil || !moved {
			return err
		}
		if err := c.keepGivenUp(ctx, tx, changed); err != nil {
			return err
		}
		written := changed
		written.Revision = o.Revision + 1
		if err := emit(ctx, tx, c.eventsOf(ctx, written, t)...); err != nil {
			return err
		}
		return revision.Bump(ctx, tx, collectionOrders)
	})
	if moved {
		changed.Revision = o.Revision + 1
	}
	if moved && t.keep && err == nil {
		return changed, nil // the work begins here: there is no result yet
	}
	return c.moved(ctx, changed, moved, err)
}

func (c *Core) eventsOf(ctx context.Context, o store.Order, t transition) []outbox.Event {
	var out []outbox.Event
	if t.events != nil {
		out = t.events(o)
	}
	action := t.action
	if action == "" {
		action = actionOf(t.to)
	}
	if action != noAudit {
		out = append(out, auditOrder(ctx, o, action, nil))
	}
	return out
}

func tellScheduler(o store.Order) []outbox.Event { return []outbox.Event{orderChanged(o)} }

func problem(o *store.Order, reason, message string) {
	o.ErrorReason, o.ErrorMessage = clip(reason), clip(message)
}

// pend moves an order to PENDING: the CA answers later, asyncpoller watches until the order's own deadline.
func (c *Core) pend(ctx context.Context, o store.Order, a answer) (store.Order, error) {
	patience, err := c.pendingDeadline(ctx, o.IssuerID, a.instance)
	if err != nil {
		return store.Order{}, fmt.Errorf("%w: %w", errNotStored, err)
	}
	first := c.now().Add(max(a.submission.RetryAfter, firstPoll))
	return c.move(ctx, o, transition{to: Pending, fence: a.fence,
		change: func(o *store.Order) {
			problem(o, "", "")
			o.DeadlineTime = c.now().Add(patience)
			o.NextPollTime, o.DueTime = first, c.lookAfter(o.DeadlineTime)
		},
		events: func(o store.Order) []outbox.Event { return []outbox.Event{orderPending(o, first), orderChanged(o)} },
	})
}

// pendingDeadline is how long an order of an issuer may be pending.
func (c *Core) pendingDeadline(ctx context.Context, issuerID string, in *instance) (time.Duration, error) {
	i, err := store.GetIssuer(ctx, c.deps.DB.Pool, issuerID)
	if err != nil {
		return 0, err
	}
	return cmp.Or(i.PendingDeadline, in.caps.PendingDeadline, defaultPendingDeadline), nil
}

// lookAfter is when the reconciler looks after a pending order, in case its watch was lost: each day, and some time after
// the deadline.
func (c *Core) lookAfter(deadline time.Time) time.Time {
	if tomorrow := c.now().Add(lookInterval); tomorrow.Before(deadline) {
		return tomorrow
	}
	return deadline.Add(watchGrace)
}

// watchOn makes sure that a pending order is watched: where it is, nothing changes. Past its deadline the watch begins anew.
func (c *Core) watchOn(ctx context.Context, o store.Order, fence uuid.NullUUID) (store.Order, error) {
	if !o.DeadlineTime.After(c.now()) {
		return c.watchAgain(ctx, o)
	}
	return c.move(ctx, o, transition{to: Pending, fence: fence, action: noAudit,
		change: func(o *store.Order) { o.DueTime = c.lookAfter(o.DeadlineTime) },
		events: func(o store.Order) []outbox.Event { return []outbox.Event{orderPending(o, c.now())} },
	})
}

// watchAgain gives a pending order whose watch ended without an answer another one, which begins with a question to the CA
// at once. It is still the same order. A watch begins again only with a later deadline than it had.
func (c *Core) watchAgain(ctx context.Context, o store.Order) (store.Order, error) {
	return c.move(ctx, o, transition{to: Pending, action: "order.watched",
		change: func(o *store.Order) {
			if least := c.now().Add(againDeadline); o.DeadlineTime.Before(least) {
				o.DeadlineTime = least
			} else {
				o.DeadlineTime = o.DeadlineTime.Add(time.Second)
			}
			o.NextPollTime, o.DueTime = c.now(), c.lookAfter(o.DeadlineTime)
		},
		events: func(o store.Order) []outbox.Event { return []outbox.Event{orderPending(o, c.now()), orderChanged(o)} },
	})
}

// postpone keeps an order that the CA has certainly not taken, for another try; after the deadline it fails. Postponing
// an order in UNKNOWN would forget that the CA may have it, and one in PENDING is at the CA already: those stay.
func (c *Core) postpone(ctx context.Context, o store.Order, a answer) (store.Order, error) {
	if o.Status != Submitting {
		return c.lose(ctx, o, a.fence, reasonUnavailable, shown(a.err))
	}
	c.log.Info("the CA is away; the order waits", orderFields(o, a.err)...)
	wait, _ := callBackoff().Next(int(o.Attempts))
	if d, ok := issuer.RetryDelay(a.err); ok {
		wait = max(wait, d)
	}
	due := c.now().Add(wait)
	if due.After(o.DeadlineTime) {
		return c.end(ctx, o, a.fence, Failed, reasonUnavailable, "the CA was not available until the order's deadline: "+shown(a.err))
	}
	return c.move(ctx, o, transition{to: Created, fence: a.fence, events: tellScheduler,
		change: func(o *store.Order) {
			problem(o, reasonUnavailable, shown(a.err))
			o.DueTime = due
		},
	})
}

// lose moves an order to UNKNOWN, or keeps it there for later: not before the CA wants to be asked again.
func (c *Core) lose(ctx context.Context, o store.Order, fence uuid.NullUUID, reason, message string) (store.Order, error) {
	return c.loseFor(ctx, o, fence, 0, reason, message)
}

func (c *Core) loseFor(ctx context.Context, o store.Order, fence uuid.NullUUID, least time.Duration, reason, message string) (store.Order, error) {
	if o.Status == Pending {
		return o, nil // polls of a pending order are repeated anyway
	}
	wait := c.cfg.ReconcileDelay
	if o.Status == Unknown {
		backoff, _ := lease.Backoff{Base: c.cfg.ReconcileDelay, Cap: time.Hour}.Next(int(o.Attempts))
		wait += backoff
	}
	wait = max(wait, least)
	t := transition{to: Unknown, fence: fence, events: tellScheduler, change: func(o *store.Order) {
		problem(o, reason, message)
		o.DueTime = c.now().Add(wait)
		o.NextPollTime = o.DueTime
	}}
	if o.Status == Unknown && o.ErrorReason == reason {
		t.action, t.events = noAudit, nil
	}
	return c.move(ctx, o, t)
}

// end moves an order to a final state that is not ISSUED.
func (c *Core) end(ctx context.Context, o store.Order, fence uuid.NullUUID, to, reason, message string) (store.Order, error) {
	return c.move(ctx, o, transition{to: to, fence: fence, events: tellScheduler,
		change: func(o *store.Order) { problem(o, reason, message) },
	})
}

// Poll asks the CA of an order now: what is pending, what waits for a CA that was away, and what is being looked for.
func (c *Core) Poll(ctx context.Context, id string) (store.Order, error) {
	o, err := c.GetOrder(ctx, id)
	if err != nil {
		return store.Order{}, err
	}
	switch o.Status {
	case Pending:
		return c.pollPending(ctx, o)
	case Created, Unknown:
		err = store.HastenOrder(ctx, c.deps.DB.Pool, id)
		c.orderKick.Kick()
		return o, err
	default:
		return o, nil
	}
}

func (c *Core) pollPending(ctx context.Context, o store.Order) (store.Order, error) {
	err := c.deps.Poller.PollNow(ctx, o.ID)
	if errs.IsKind(err, errs.NotFound, errs.Conflict) || err == nil && !o.DeadlineTime.After(c.now()) {
		return c.watchAgain(ctx, o)
	}
	return o, err
}

// PollResult is what asyncpoller heard from a CA.
type PollResult struct {
	OrderID        string
	Outcome        string // one of Pending, Issued, Rejected, Failed
	CertificatePEM string // leaf and chain, as the CA gave them
	CAReference    string
	Reason         string
	Message        string
	Attempts       int32
	NextPollTime   time.Time
}

// RecordPoll applies what a poll brought. An order that is final already stays as it is; a certificate that comes for one
// that was given up is put on record, so that what the CA has issued is what the journal knows, and can be revoked.
func (c *Core) RecordPoll(ctx context.Context, r PollResult) (store.Order, error) {
	ref, err := decodeReference(r.CAReference)
	if err != nil {
		return store.Order{}, err
	}
	if err := c.checkpoint(pointPolled, r.OrderID); err != nil {
		return store.Order{}, err
	}
	o, err := c.GetOrder(ctx, r.OrderID)
	if err != nil {
		return store.Order{}, err
	}
	if final(o.Status) {
		if r.Outcome == Issued && o.Status != Issued {
			return o, c.recordLate(ctx, o, r)
		}
		return o, nil
	}
	if o.Status != Pending && o.Status != Unknown {
		return store.Order{}, wrongState(o, "polled")
	}
	if r.Outcome == Pending {
		return c.stillPending(ctx, o, r, ref)
	}
	_, in, err := c.issuerOf(ctx, o.IssuerID)
	if err != nil {
		return store.Order{}, err
	}
	a := answer{instance: in, polls: r.Attempts, submission: issuer.Submission{Ref: ref, CertificatePEM: []byte(r.CertificatePEM), Detail: r.Message}}
	switch r.Outcome {
	case Issued:
		a.submission.State = issuer.Issued
	case Rejected:
		a.submission.State = issuer.Rejected
	default:
		o.PollAttempts = max(o.PollAttempts, r.Attempts)
		o, err = c.end(ctx, o, uuid.NullUUID{}, Failed, orElse(r.Reason, "POLL_FAILED"), orElse(r.Message, "the order was given up"))
		if err != nil || o.ErrorReason != reasonDeadline {
			return o, err
		}
		return c.cancelAtCA(ctx, o) // nobody waits for it any more
	}
	return c.settle(ctx, o, a)
}

// recordLate puts a certificate on record whose order had ended without it. It is no version of any certificate.
func (c *Core) recordLate(ctx context.Context, o store.Order, r PollResult) error {
	_, in, err := c.issuerOf(ctx, o.IssuerID)
	if err != nil {
		return err
	}
	chain, err := c.checkIssued(ctx, o, answer{instance: in, submission: issuer.Submission{CertificatePEM: []byte(r.CertificatePEM)}})
	if err != nil {
		c.log.Warn("a certificate that came too late is not what was asked for", orderFields(o, err)...)
		return nil
	}
	certificate := recordOf(o, chain)
	return c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		first, err := store.InsertCertificate(ctx, tx, certificate)
		if err != nil || !first {
			return err
		}
		if err := settleGivenUp(ctx, tx, o); err != nil {
			return err
		}
		return emit(ctx, tx, auditOrder(ctx, o, "order.issued_late", map[string]any{
			"serial_number": certificate.SerialNumber, "fingerprint_sha256": certificate.Fingerprint,
		}))
	})
}

func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// stillPending notes how polling goes. It is no change of state, so nobody is told, except of what the CA says anew.
func (c *Core) stillPending(ctx context.Context, o store.Order, r PollResult, ref issuer.Ref) (store.Order, error) {
	if o.Status != Pending {
		return o, nil
	}
	key := ""
	if len(ref) > 0 {
		_, in, err := c.issuerOf(ctx, o.IssuerID)
		if err != nil {
			return store.Order{}, err
		}
		key = in.orderKey(ref)
	}
	t := transition{to: Pending, action: noAudit, change: func(o *store.Order) {
		if encoded := encodeReference(ref); encoded != nil {
			o.CAReference, o.CAKey = encoded, orElse(key, o.CAKey)
		}
		o.PollAttempts, o.NextPollTime = max(o.PollAttempts, r.Attempts), r.NextPollTime
		problem(o, "", "")
		if r.Reason != "" {
			problem(o, r.Reason, r.Message)
		}
	}}
	if r.Reason != o.ErrorReason {
		t.events = tellScheduler
	}
	return c.move(ctx, o, t)
}

// GetOrder reads one.
func (c *Core) GetOrder(ctx context.Context, id string) (store.Order, error) {
	o, err := store.GetOrder(ctx, c.deps.DB.Pool, id)
	if errors.Is(err, store.ErrNotFound) {
		return store.Order{}, errs.New(errs.NotFound, "ORDER_NOT_FOUND", "order %s not found", id)
	}
	return o, err
}

// OrderPolls gives the last questions to the CA about an order. They are there to be looked at: without asyncpoller the
// order is shown without them.
func (c *Core) OrderPolls(ctx context.Context, o store.Order) []*issuancev1.OrderPoll {
	if len(o.CAReference) == 0 || string(o.CAReference) == "{}" {
		return nil
	}
	polls, err := c.deps.Poller.Polls(ctx, o.ID)
	if err != nil {
		c.log.Info("the polls of an order cannot be shown", orderFields(o, err)...)
	}
	return polls
}

// GetOrders reads those that exist.
func (c *Core) GetOrders(ctx context.Context, ids []string) ([]store.Order, error) {
	return store.GetOrders(ctx, c.deps.DB.Pool, ids)
}

// OrderSorting is what orders may be ordered by.
func (c *Core) OrderSorting() *page.Sorting { return c.orders }

// ListOrders reads one page more one row, and the number of all if asked.
func (c *Core) ListOrders(ctx context.Context, f store.OrderFilter, total bool) ([]store.Order, *int32, error) {
	rows, err := store.ListOrders(ctx, c.deps.DB.Pool, f)
	if err != nil || !total {
		return rows, nil, err
	}
	n, err := store.CountOrders(ctx, c.deps.DB.Pool, f)
	return rows, &n, err
}
