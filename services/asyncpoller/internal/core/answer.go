package core

import (
	"errors"
	"fmt"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/run"
)

// Outcome is what became of an order.
type Outcome uint8

// The outcomes that issuance is told.
const (
	StillPending Outcome = iota + 1
	Issued
	Rejected
	Failed // given up at the deadline, or by a permanent error
)

// String is the label of metrics.
func (o Outcome) String() string {
	switch o {
	case StillPending:
		return "pending"
	case Issued:
		return "issued"
	case Rejected:
		return "rejected"
	case Failed:
		return "failed"
	default:
		return "unknown"
	}
}

// Reasons of problems. Those of connectors come beside them.
const (
	ReasonStillPending = "CA_STILL_PENDING" // the wait budget is over, the order is not
	ReasonDeadline     = "ORDER_DEADLINE"
	ReasonUnavailable  = "CA_UNAVAILABLE"
	ReasonNotUsable    = "ISSUER_NOT_USABLE"
	ReasonRejected     = "CA_REJECTED"
	ReasonAnswer       = "CA_ANSWER_UNKNOWN"
	ReasonTooLarge     = "CERTIFICATE_TOO_LARGE"
)

// maxCertificate is the most that issuance takes of leaf and chain.
const maxCertificate = 1 << 20

// answer is what was heard from the CA about an order.
type answer struct {
	outcome     Outcome
	certificate string // leaf and chain
	reference   issuer.Ref
	reason      string // of a problem; empty: none
	message     string
	retryAfter  time.Duration
	broken      bool // the issuer's settings do not work
}

// result is the label for metrics.
func (a answer) result() string {
	if a.outcome == StillPending && a.reason != "" {
		return "error"
	}
	return a.outcome.String()
}

// judge reads an answer of a connector. Asking changes nothing at the CA, so a lost reply is as good as none. An issuer
// whose settings do not work leaves the order pending: it was placed, and its end is not known.
func judge(s issuer.Submission, err error) answer {
	if err != nil {
		return judgeError(err)
	}
	a := answer{reference: s.Ref, retryAfter: s.RetryAfter, message: s.Detail}
	switch s.State {
	case issuer.Pending:
		a.outcome = StillPending
	case issuer.Issued:
		return withCertificate(a, s)
	case issuer.Rejected:
		a.outcome, a.reason = Rejected, ReasonRejected
	default:
		a.outcome, a.reason, a.message = StillPending, ReasonAnswer, "the connector answered with a state that is not known"
	}
	return a
}

func withCertificate(a answer, s issuer.Submission) answer {
	if n := len(s.CertificatePEM) + 1 + len(s.ChainPEM); n > maxCertificate {
		a.outcome, a.reason, a.message = Failed, ReasonTooLarge, fmt.Sprintf("the CA sent %d bytes of certificates: the most is %d", n, maxCertificate)
		return a
	}
	a.outcome, a.certificate = Issued, string(s.CertificatePEM)+"\n"+string(s.ChainPEM)
	return a
}

func judgeError(err error) answer {
	a := answer{outcome: StillPending, reason: ReasonUnavailable, message: "the CA could not be asked"}
	if _, ok := errors.AsType[*run.PanicError](err); ok {
		a.message = "the connector failed"
		return a
	}
	if d, ok := issuer.RetryDelay(err); ok {
		a.retryAfter = d
	}
	p, ok := issuer.AsPermanent(err)
	if !ok || issuer.OutcomeOf(err) != issuer.OutcomePermanent {
		return a
	}
	a.reason, a.message = p.Reason, p.Message
	if p.Fault == issuer.FaultConfiguration {
		a.broken = true
		return a
	}
	a.outcome = Failed
	return a
}

// Result is what issuance is told.
type Result struct {
	OrderID        string
	Outcome        Outcome
	CertificatePEM string
	CAReference    string
	Reason         string
	Message        string
	Attempts       int
	NextPollTime   time.Time // zero: none
}

// step is what follows from an answer.
type step struct {
	result   Result
	due      time.Time // when the order is pending
	end      bool      // the watch ends although the order is pending
	answered string    // kept in the poll
	deadline time.Time // that this was decided by
}

// decide draws the conclusion. At the deadline the CA is asked for the last time; an order that is pending even then has
// FAILED, unless nobody gave it a deadline of its own: a watch that is about as long as the wait budget ends with the order
// still pending, and issuance takes the same order up again.
func decide(p Poll, a answer, m Moment, s Schedule) step {
	out := step{answered: clip(a.message), deadline: p.DeadlineTime, result: Result{
		OrderID: p.OrderID, Outcome: a.outcome, CertificatePEM: a.certificate, Reason: a.reason, Message: clip(a.message), Attempts: m.Attempts,
	}}
	if ref := encodeReference(a.reference); ref != p.CAReference {
		out.result.CAReference = ref
	}
	if a.outcome != StillPending {
		return out
	}
	budgetOver := !m.Now.Before(p.WatchTime.Add(m.Budget))
	switch {
	case m.Now.Before(p.DeadlineTime):
		out.due = s.Next(m)
		out.result.NextPollTime = out.due
	case p.DeadlineTime.After(p.WatchTime.Add(2 * m.Budget)): // clocks differ: twice is not about as long
		out.result.Outcome, out.result.Reason = Failed, ReasonDeadline
		out.result.Message = clip(withDetail("still pending at the CA at the deadline", a.message))
		return out
	default:
		budgetOver, out.end = true, true
	}
	if budgetOver && a.reason == "" {
		out.result.Reason = ReasonStillPending
		out.result.Message = clip(withDetail("still pending at the CA", a.message))
	}
	return out
}

func withDetail(s, detail string) string {
	if detail == "" {
		return s
	}
	return s + ": " + detail
}
