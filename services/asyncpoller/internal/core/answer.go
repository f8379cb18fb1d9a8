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

// String is for logs.
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
	ReasonGivenUp      = "ORDER_GIVEN_UP" // the CA took the order, and then refused to answer for it for a day
)

// unheardGrace is how long after its deadline an order is still asked about when the CA could not be.
const unheardGrace = 24 * time.Hour

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
	refused     bool // the CA does not answer for the order
}

// unheard tells whether nothing was heard from the CA about the order.
func (a answer) unheard() bool { return a.outcome == StillPending && a.reason != "" }

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
	a.outcome, a.refused = Failed, true
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
	label    string    // of the history and of metrics
	due      time.Time // when the order is pending
	answered string    // kept in the poll
	deadline time.Time // that this was decided by
	refused  time.Time // since when the CA has not answered for the order
}

// refusalPatience is for how long a CA has to refuse to answer for an order before that is believed. Settings that name another
// account, a gateway in between, or a CA that restores a backup make that the answer for every order; to give them all up
// would buy them all again.
const refusalPatience = 24 * time.Hour

// doubt makes a refusal to answer for an order, which the CA has taken after all, one that was not heard, unless the CA has
// refused for long enough.
func doubt(p Poll, a answer, now time.Time) (answer, time.Time) {
	if !a.refused {
		return a, time.Time{}
	}
	since := p.RefusedTime
	if since.IsZero() {
		since = now
	}
	switch {
	case now.Sub(since) < refusalPatience:
		a.outcome = StillPending
		a.message = withDetail("the CA does not answer for this order; it is asked for a day before that is believed", a.message)
	case a.reason != issuer.ReasonOrderNotFound:
		a.reason, a.message = ReasonGivenUp, a.reason+": "+a.message
	}
	return a, since
}

// lastAsk is when an order that is pending has failed: at its deadline. One of which nothing could be heard then may be
// issued, and paid for: it is asked about for some time more.
func lastAsk(p Poll, a answer) time.Time {
	if a.unheard() {
		return p.DeadlineTime.Add(unheardGrace)
	}
	return p.DeadlineTime
}

// decide draws the conclusion.
func decide(p Poll, a answer, m Moment, s Schedule) step {
	a, refused := doubt(p, a, m.Now)
	out := step{refused: refused, label: labelOf(a), answered: clip(a.message, maxAnswer), deadline: p.DeadlineTime, result: Result{
		OrderID: p.OrderID, Outcome: a.outcome, CertificatePEM: a.certificate, Reason: a.reason, Message: clip(a.message, maxAnswer), Attempts: m.Attempts,
	}}
	if ref := encodeReference(a.reference); ref != p.CAReference {
		out.result.CAReference = ref
	}
	if a.outcome != StillPending {
		return out
	}
	m.Deadline = lastAsk(p, a)
	if !m.Now.Before(m.Deadline) {
		out.result.Outcome, out.label, out.result.Reason = Failed, ResultFailed, ReasonDeadline
		out.result.Message = clip(withDetail("still pending at the CA at the deadline", a.message), maxAnswer)
		return out
	}
	out.due = s.Next(m)
	out.result.NextPollTime = out.due
	if a.reason == "" && !m.Now.Before(p.WatchTime.Add(m.Budget)) {
		out.result.Reason = ReasonStillPending
		out.result.Message = clip(withDetail("still pending at the CA", a.message), maxAnswer)
	}
	return out
}

func labelOf(a answer) string {
	switch a.outcome {
	case Issued:
		return ResultIssued
	case Rejected:
		return ResultRejected
	case Failed:
		return ResultFailed
	default:
		if a.unheard() {
			return ResultError
		}
		return ResultPending
	}
}

func withDetail(s, detail string) string {
	if detail == "" {
		return s
	}
	return s + ": " + detail
}
