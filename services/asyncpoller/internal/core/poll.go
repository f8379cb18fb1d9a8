// Package core decides when the CA is asked about a pending order, by whom, and what its answer means. It knows no SQL and
// no gRPC.
package core

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
)

// The states of a poll.
const (
	Waiting   = "WAITING"   // asked again at its due time
	Leased    = "LEASED"    // being asked
	Done      = "DONE"      // the order has ended
	Abandoned = "ABANDONED" // the watch has ended; the order may not have
)

// States gives all states.
func States() []string { return []string{Waiting, Leased, Done, Abandoned} }

// next is the whole table of transitions. A watch that has ended begins again when issuance, which owns the order, asks for
// a later deadline.
func next(from string) []string {
	switch from {
	case Waiting:
		return []string{Leased, Done, Abandoned}
	case Leased:
		return []string{Waiting, Done, Abandoned}
	case Done, Abandoned:
		return []string{Waiting}
	default:
		return nil
	}
}

// CanMove tells whether a poll may go from one state to the other.
func CanMove(from, to string) bool { return slices.Contains(next(from), to) }

// Poll is the watch of one pending order.
type Poll struct {
	OrderID      string
	IssuerID     string
	State        string
	CAReference  string // JSON, or empty
	DueTime      time.Time
	DeadlineTime time.Time
	WatchTime    time.Time // the wait budget counts from here
	CreateTime   time.Time
	Attempts     int
	LastAnswer   string
	RefusedTime  time.Time // since when the CA has refused to answer for it; zero: it has not
	Hastened     bool      // somebody asked for a poll at once, which has not been answered yet
	History      []Entry   // the newest first; empty unless it was asked for
}

// Book is where polls are kept, as far as requests go.
type Book interface {
	// Watch adds a poll. One that is there is left alone, unless the new deadline is later, or the same and the watch was
	// abandoned: then the watch begins anew with it. It answers with the poll as it is now.
	Watch(ctx context.Context, p Poll) (Poll, error)
	// Get reads those that there are.
	Get(ctx context.Context, orderIDs ...string) ([]Poll, error)
	// Histories reads the last answers of each order, the newest first.
	Histories(ctx context.Context, orderIDs ...string) (map[string][]Entry, error)
	// Hasten makes a poll due now, whatever is known of its CA, and gives it; false: there is none that has not ended.
	Hasten(ctx context.Context, orderID string) (Poll, bool, error)
	// Close ends a poll in a state that is final, whoever has it leased. One that has ended stays as it is.
	Close(ctx context.Context, orderID, state, answer string) error
}

const (
	maxID        = 63
	maxReference = 64 << 10
	maxAnswer    = 1000
)

// Watch is the wish to have an order watched.
type Watch struct {
	OrderID      string
	IssuerID     string
	CAReference  string
	DueTime      time.Time // zero: now
	DeadlineTime time.Time
}

func (w Watch) check() error {
	var v errs.Violations
	for _, id := range []struct{ field, value string }{{"order_id", w.OrderID}, {"issuer_id", w.IssuerID}} {
		if id.value == "" || len(id.value) > maxID {
			v.Add(id.field, "has to have 1 to %d characters", maxID)
		}
	}
	if len(w.CAReference) > maxReference {
		v.Add("ca_reference", "has %d bytes: the most is %d", len(w.CAReference), maxReference)
	} else if _, err := decodeReference(w.CAReference); err != nil {
		v.Add("ca_reference", "is not a JSON object of strings")
	}
	if w.DeadlineTime.IsZero() {
		v.Add("deadline_time", "is needed")
	}
	return v.Err()
}

// Begin watches an order. It may be repeated.
func Begin(ctx context.Context, b Book, w Watch, now time.Time) (Poll, error) {
	if err := w.check(); err != nil {
		return Poll{}, err
	}
	if w.DueTime.IsZero() {
		w.DueTime = now
	}
	if w.DueTime.After(w.DeadlineTime) {
		w.DueTime = w.DeadlineTime
	}
	p, err := b.Watch(ctx, Poll{
		OrderID: w.OrderID, IssuerID: w.IssuerID, State: Waiting, CAReference: w.CAReference,
		DueTime: w.DueTime, DeadlineTime: w.DeadlineTime, WatchTime: now, CreateTime: now,
	})
	if err == nil && p.IssuerID != w.IssuerID {
		return Poll{}, errs.New(errs.Conflict, "POLL_ISSUER", "order %s is watched at issuer %s", w.OrderID, p.IssuerID)
	}
	return p, err
}

// Read gives those polls that there are, with their histories if that is wanted.
func Read(ctx context.Context, b Book, withHistory bool, orderIDs ...string) ([]Poll, error) {
	list, err := b.Get(ctx, orderIDs...)
	if err != nil || !withHistory {
		return list, err
	}
	histories, err := b.Histories(ctx, orderIDs...)
	for i := range list {
		list[i].History = histories[list[i].OrderID]
	}
	return list, err
}

// Hasten asks the CA about an order now. The answer to a question that is under way will do. A watch that has ended is a conflict.
func Hasten(ctx context.Context, b Book, orderID string) (Poll, error) {
	if p, ok, err := b.Hasten(ctx, orderID); err != nil || ok {
		return p, err
	}
	found, err := b.Get(ctx, orderID)
	if err != nil {
		return Poll{}, err
	}
	if len(found) == 0 {
		return Poll{}, errs.New(errs.NotFound, "POLL_NOT_FOUND", "order %s is not watched", orderID).With("order_id", orderID)
	}
	state := found[0].State
	return Poll{}, errs.New(errs.Conflict, "POLL_STATE", "the watch of order %s is %s: it cannot be hastened", orderID, state).
		With("state", state).With("order_id", orderID)
}

// Cancel ends the watch of an order that was given up. An order that is not watched is fine.
func Cancel(ctx context.Context, b Book, orderID string) error {
	return b.Close(ctx, orderID, Abandoned, "the order was cancelled")
}

// decodeReference reads a CA reference as it travels: JSON, or nothing.
func decodeReference(text string) (issuer.Ref, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // no reference is not an error
	}
	ref := issuer.Ref{}
	if err := json.Unmarshal([]byte(text), &ref); err != nil {
		return nil, err
	}
	return ref, nil
}

func encodeReference(ref issuer.Ref) string {
	if len(ref) == 0 {
		return ""
	}
	b, err := json.Marshal(ref)
	if err != nil {
		return "" // a map of strings always encodes
	}
	return string(b)
}

// clip bounds what a foreign text may take up and makes it fit for a column.
func clip(s string, most int) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most]) + "…"
}
