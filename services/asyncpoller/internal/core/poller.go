package core

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/asyncpoll"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/run"
)

// settleTime bounds the last statement of a poll.
const settleTime = 5 * time.Second

// Journal is issuance, which owns the orders.
type Journal interface {
	Source
	// Record hands over what the CA answered. It may be repeated. It tells whether the order has ended; an order that is
	// not there is an errs.NotFound.
	Record(ctx context.Context, r Result) (ended bool, err error)
}

// Desk is where a leased poll is written. Its methods fail with lease.ErrLost.
type Desk interface {
	// Defer gives the poll back unasked, due at the time: it counts as no attempt and leaves no trace. One that has been hastened since it was
	// claimed (hastened says whether it was before) stays due.
	Defer(ctx context.Context, l lease.Lease, due time.Time, hastened bool) error
	// Reschedule gives the poll back, due at the time.
	Reschedule(ctx context.Context, l lease.Lease, n Note, due time.Time) error
	// End ends the poll. Without an end of the order (ABANDONED) it ends only when the deadline is still the one that was
	// seen; a watch that was prolonged meanwhile goes on.
	End(ctx context.Context, l lease.Lease, n Note, state string, deadline time.Time) error
}

// Note is what a poll keeps of an answer. An empty reference leaves the old one. An entry without a time is not kept.
type Note struct {
	Answer      string
	CAReference string
	RefusedTime time.Time // as in Poll
	Entry       Entry
}

// Config says how CAs are asked. All of it is needed.
type Config struct {
	CallTimeout time.Duration // one call to a CA, building its connector included
	// MaxWaits are the wait budgets: how long somebody waits for an order.
	MaxWaits asyncpoll.Budgets
	// Replicas of this service share the rate of each account; zero means 1.
	Replicas int
}

// Deps is what a poller works with.
type Deps struct {
	Desk     Desk
	Journal  Journal
	Types    issuer.Types
	Accounts *account.Accounts // the guards of the CA accounts
	Metrics  *Metrics          // nil: none
	Log      *zap.Logger
	Now      func() time.Time
	Schedule Schedule
	// Checkpoint is called at the labelled points of a poll; a test that returns an error there has killed the process:
	// nothing more is done. nil: never.
	Checkpoint func(point, orderID string) error
}

// The labelled points of a poll at which a test may kill the process.
const (
	pointClaimed = "poll claimed"     // the CA has not been asked
	pointAsked   = "CA asked"         // its answer is in memory only
	pointHanded  = "poll handed over" // issuance knows, the poll is not written
	pointWritten = "poll written"
)

// Checkpoints gives all of them.
func Checkpoints() []string { return []string{pointClaimed, pointAsked, pointHanded, pointWritten} }

// Poller asks CAs about orders, one call at a time per order.
type Poller struct {
	cfg        Config
	deps       Deps
	connectors *connectors
}

// NewPoller makes a poller.
func NewPoller(cfg Config, deps Deps) *Poller {
	if deps.Metrics == nil {
		deps.Metrics = newMetrics()
	}
	if deps.Checkpoint == nil {
		deps.Checkpoint = func(string, string) error { return nil }
	}
	in := issuer.Deps{Now: deps.Now, Accounts: deps.Accounts}
	return &Poller{cfg: cfg, deps: deps, connectors: newConnectors(deps.Journal, deps.Types, in)}
}

// question is one that was put to a CA, and the answer.
type question struct {
	answer answer
	time   time.Time
	took   time.Duration
	budget time.Duration // the wait budget of the issuer
	busy   *account.BusyError
}

// Work asks the CA about one order, tells issuance, and only then writes the poll. A process that dies in between has the
// next one do the same again, which issuance knows to take once.
func (p *Poller) Work(ctx context.Context, l lease.Lease, poll Poll) error {
	if err := p.deps.Checkpoint(pointClaimed, poll.OrderID); err != nil {
		return err
	}
	if err := p.work(ctx, l, poll); err != nil {
		return err
	}
	return p.deps.Checkpoint(pointWritten, poll.OrderID)
}

func (p *Poller) work(ctx context.Context, l lease.Lease, poll Poll) error {
	q, err := p.ask(ctx, poll)
	switch {
	case err != nil:
		return err
	case q.busy != nil:
		// Nobody was asked. The row waits as those do that were not claimed.
		return p.deps.Desk.Defer(ctx, l, p.deps.Now().Add(max(q.busy.After, leastWait)), poll.Hastened)
	}
	if err := p.deps.Checkpoint(pointAsked, poll.OrderID); err != nil {
		return err
	}
	s := decide(poll, q.answer, Moment{
		Now: p.deps.Now(), Attempts: l.Attempts, WatchTime: poll.WatchTime, Budget: q.budget, Deadline: poll.DeadlineTime,
		RetryAfter: q.answer.retryAfter, Pace: p.pace(poll.IssuerID),
	}, p.deps.Schedule)
	p.deps.Metrics.polled(poll.IssuerID, s.label)
	ended, err := p.deps.Journal.Record(ctx, s.result)
	if err := p.deps.Checkpoint(pointHanded, poll.OrderID); err != nil {
		return err
	}
	// What issuance has taken is written even when this process is about to end.
	settle, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	note := Note{Answer: s.answered, CAReference: s.result.CAReference, RefusedTime: s.refused, Entry: s.entry(q)}
	switch {
	case errs.IsKind(err, errs.NotFound):
		p.deps.Log.Warn("issuance does not know an order that is watched", fields(poll, err)...)
		note.Answer = "issuance does not know the order"
		return p.deps.Desk.End(settle, l, note, Abandoned, s.deadline)
	case err != nil:
		return fmt.Errorf("hand over the answer for order %s: %w", poll.OrderID, err)
	case ended:
		return p.deps.Desk.End(settle, l, note, Done, s.deadline)
	case s.result.Outcome != StillPending:
		return fmt.Errorf("hand over the answer for order %s: issuance did not end the order that was %s", poll.OrderID, s.result.Outcome)
	default:
		return p.deps.Desk.Reschedule(settle, l, note, s.due)
	}
}

// ask makes the one cheap call. Its error is not about the CA: issuance is away, or the process is about to end.
func (p *Poller) ask(ctx context.Context, poll Poll) (q question, err error) {
	callCtx, cancel := context.WithTimeout(ctx, p.cfg.CallTimeout)
	defer cancel()
	if poll.Hastened {
		callCtx = account.Urgent(callCtx)
	}
	q.time = p.deps.Now()
	in, s, err := p.call(callCtx, poll)
	if ctx.Err() != nil {
		return question{}, context.Cause(ctx)
	}
	q.took, q.budget = max(p.deps.Now().Sub(q.time), 0), p.budget(in)
	if busy, ok := errors.AsType[*account.BusyError](err); ok {
		q.busy = busy
		return q, nil
	}
	if in == nil {
		a, ok := notUsable(err)
		if !ok {
			return question{}, err
		}
		p.deps.Log.Warn("an issuer whose orders are watched does not work", fields(poll, err)...)
		q.answer = a
		return q, nil
	}
	q.answer = judge(s, err)
	if err != nil {
		p.logFailure(poll, err)
	}
	if q.answer.broken {
		p.connectors.doubt(poll.IssuerID)
	}
	return q, nil
}

// call asks the connector; without one the issuer could not be built.
func (p *Poller) call(ctx context.Context, poll Poll) (in *connector, s issuer.Submission, err error) {
	if in, err = p.connector(ctx, poll.IssuerID); err != nil {
		return nil, s, err
	}
	ref, err := decodeReference(poll.CAReference)
	if err != nil {
		return in, s, issuer.Permanent("CA_REFERENCE_INVALID", "the stored reference of the CA cannot be read")
	}
	err = run.Safely(func() (err error) {
		s, err = in.Poll(ctx, ref)
		return err
	})
	return in, s, err
}

// connector makes or finds the connector of an issuer.
func (p *Poller) connector(ctx context.Context, issuerID string) (in *connector, err error) {
	err = run.Safely(func() (err error) {
		in, err = p.connectors.get(ctx, issuerID)
		return err
	})
	return in, err
}

func (p *Poller) logFailure(poll Poll, err error) {
	if broken, ok := errors.AsType[*run.PanicError](err); ok {
		p.deps.Log.Error("a connector panicked", append(fields(poll, err), logx.Stack(broken.Stack))...)
		return
	}
	p.deps.Log.Info("a CA could not be asked about an order", fields(poll, err)...)
}

// budget gives the wait budget of an issuer. Of one that could not be built the type is not known: then it is the longest,
// as with too short a budget an order would be shown as late.
func (p *Poller) budget(in *connector) time.Duration {
	if in == nil {
		return p.cfg.MaxWaits.Longest()
	}
	return p.cfg.MaxWaits.Of(in.typ)
}

// notUsable makes an answer of an issuer that cannot be asked for a reason of its own. ok is false when it is not known
// whether that is so.
func notUsable(err error) (a answer, ok bool) {
	a = answer{outcome: StillPending, reason: ReasonNotUsable, message: "the issuer does not work at the moment", broken: true}
	if d, hasDelay := issuer.RetryDelay(err); hasDelay {
		a.retryAfter = d
	}
	if permanent, isPermanent := issuer.AsPermanent(err); isPermanent {
		a.reason, a.message = permanent.Reason, permanent.Message
		return a, true
	}
	if _, isBuild := errors.AsType[*buildError](err); isBuild {
		return a, true
	}
	if _, isPanic := errors.AsType[*run.PanicError](err); isPanic {
		return a, true
	}
	if errs.IsKind(err, errs.NotFound, errs.PermissionDenied) {
		a.message = errs.From(err).Message()
		return a, true
	}
	return answer{}, false
}

func fields(p Poll, err error) []zap.Field {
	return []zap.Field{logx.ID(logx.KeyOrder, p.OrderID), logx.ID(logx.KeyIssuer, p.IssuerID), logx.Error(err)}
}
