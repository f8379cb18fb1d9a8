package core

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/connector/issuer"
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
	// Reschedule gives the poll back, due at the time.
	Reschedule(ctx context.Context, l lease.Lease, n Note, due time.Time) error
	// End ends the poll. Without an end of the order (ABANDONED) it ends only when the deadline is still the one that was
	// seen; a watch that was prolonged meanwhile goes on.
	End(ctx context.Context, l lease.Lease, n Note, state string, deadline time.Time) error
}

// Note is what a poll keeps of an answer. An empty reference leaves the old one.
type Note struct {
	Answer      string
	CAReference string
}

// Config says how CAs are asked. All of it is needed.
type Config struct {
	CallTimeout time.Duration // one call to a CA, building its connector included
	// MaxWait is the wait budget: how long somebody waits for an order. MaxWaits is the same by issuer type.
	MaxWait  time.Duration
	MaxWaits map[string]time.Duration
}

// Deps is what a poller works with.
type Deps struct {
	Desk     Desk
	Journal  Journal
	Types    issuer.Types
	Log      *zap.Logger
	Registry prometheus.Registerer // nil: none
	Now      func() time.Time
	Schedule Schedule
}

// Poller asks CAs about orders, one call at a time per order.
type Poller struct {
	cfg        Config
	deps       Deps
	connectors *connectors
	polls      *prometheus.CounterVec
}

// NewPoller makes a poller.
func NewPoller(cfg Config, deps Deps) (*Poller, error) {
	p := &Poller{cfg: cfg, deps: deps, connectors: newConnectors(deps.Journal, deps.Types, deps.Now)}
	p.polls = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "certctl_polls_total", Help: "Questions to CAs about pending orders, by what was answered.",
	}, []string{"result"})
	for _, result := range []string{"pending", "issued", "rejected", "failed", "error"} {
		p.polls.WithLabelValues(result)
	}
	if deps.Registry != nil {
		if err := deps.Registry.Register(p.polls); err != nil {
			return nil, fmt.Errorf("register metric: %w", err)
		}
	}
	return p, nil
}

// Work asks the CA about one order, tells issuance, and only then writes the poll. A process that dies in between has the
// next one do the same again, which issuance knows to take once.
func (p *Poller) Work(ctx context.Context, l lease.Lease, poll Poll) error {
	a, budget, err := p.ask(ctx, poll)
	if err != nil {
		return err
	}
	p.polls.WithLabelValues(a.result()).Inc()
	s := decide(poll, a, Moment{
		Now: p.deps.Now(), Attempts: l.Attempts, WatchTime: poll.WatchTime, Budget: budget, Deadline: poll.DeadlineTime, RetryAfter: a.retryAfter,
	}, p.deps.Schedule)
	ended, err := p.deps.Journal.Record(ctx, s.result)
	// What issuance has taken is written even when this process is about to end.
	settle, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	note := Note{Answer: s.answered, CAReference: s.result.CAReference}
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
	case s.end:
		return p.deps.Desk.End(settle, l, note, Abandoned, s.deadline)
	default:
		return p.deps.Desk.Reschedule(settle, l, note, s.due)
	}
}

// ask makes the one cheap call. Its error is not about the CA: issuance is away, or the process is about to end.
func (p *Poller) ask(ctx context.Context, poll Poll) (a answer, budget time.Duration, err error) {
	callCtx, cancel := context.WithTimeout(ctx, p.cfg.CallTimeout)
	defer cancel()
	in, err := p.connector(callCtx, poll.IssuerID)
	if ctx.Err() != nil {
		return answer{}, 0, context.Cause(ctx)
	}
	if err != nil {
		a, ok := notUsable(err)
		if !ok {
			return answer{}, 0, err
		}
		p.deps.Log.Warn("an issuer whose orders are watched does not work", fields(poll, err)...)
		return a, p.budget(in), nil
	}
	s, err := p.call(callCtx, in, poll)
	if ctx.Err() != nil {
		return answer{}, 0, context.Cause(ctx)
	}
	a = judge(s, err)
	if err != nil {
		p.logFailure(poll, err)
	}
	if a.broken {
		p.connectors.doubt(poll.IssuerID)
	}
	return a, p.budget(in), nil
}

// connector makes or finds the connector of an issuer.
func (p *Poller) connector(ctx context.Context, issuerID string) (in *connector, err error) {
	err = run.Safely(func() (err error) {
		in, err = p.connectors.get(ctx, issuerID)
		return err
	})
	return in, err
}

func (p *Poller) call(ctx context.Context, in *connector, poll Poll) (s issuer.Submission, err error) {
	ref, err := decodeReference(poll.CAReference)
	if err != nil {
		return s, issuer.Permanent("CA_REFERENCE_INVALID", "the stored reference of the CA cannot be read")
	}
	err = run.Safely(func() (err error) {
		s, err = in.Poll(ctx, ref)
		return err
	})
	return s, err
}

func (p *Poller) logFailure(poll Poll, err error) {
	if broken, ok := errors.AsType[*run.PanicError](err); ok {
		p.deps.Log.Error("a connector panicked", append(fields(poll, err), logx.Stack(broken.Stack))...)
		return
	}
	p.deps.Log.Info("a CA could not be asked about an order", fields(poll, err)...)
}

// budget gives the wait budget of an issuer. Of one that could not be built the type is not known: then it is the longest,
// as too short a budget could end an order.
func (p *Poller) budget(in *connector) time.Duration {
	longest := p.cfg.MaxWait
	for typ, d := range p.cfg.MaxWaits {
		if in != nil && typ == in.typ && d > 0 {
			return d
		}
		longest = max(longest, d)
	}
	if in == nil {
		return longest
	}
	return p.cfg.MaxWait
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
