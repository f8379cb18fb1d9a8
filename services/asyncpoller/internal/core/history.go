package core

import "time"

// HistorySize is how many answers are kept of an order.
const HistorySize = 20

const (
	maxReason = 100
	maxLine   = 200
)

// The results of a poll in its history.
const (
	ResultPending  = "PENDING"
	ResultIssued   = "ISSUED"
	ResultRejected = "REJECTED"
	ResultFailed   = "FAILED"
	ResultError    = "ERROR" // the CA could not be asked; the order is as pending as before
)

// Results gives all results.
func Results() []string {
	return []string{ResultPending, ResultIssued, ResultRejected, ResultFailed, ResultError}
}

// Entry is one answer in the history of a poll.
type Entry struct {
	Attempt  int
	Time     time.Time // when the CA was asked
	Duration time.Duration
	Result   string
	Reason   string
	Message  string
	NextTime time.Time // zero: it is not asked again
}

// entry makes the line that the history keeps of a step.
func (s step) entry(q question) Entry {
	return Entry{
		Attempt: s.result.Attempts, Time: q.time, Duration: q.took, Result: s.label, Reason: clip(s.result.Reason, maxReason),
		Message: clip(s.result.Message, maxLine), NextTime: s.due,
	}
}
