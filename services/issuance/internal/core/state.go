package core

import (
	"slices"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// The states of an order.
const (
	Created    = "CREATED"    // stored, nothing is at the CA
	Submitting = "SUBMITTING" // the CA is being called, under a lease
	Pending    = "PENDING"    // the CA answers later
	Issued     = "ISSUED"
	Rejected   = "REJECTED" // the CA said no
	Failed     = "FAILED"
	Cancelled  = "CANCELLED"
	Unknown    = "UNKNOWN" // the reply was lost
)

// States gives all states of an order.
func States() []string {
	return []string{Created, Submitting, Pending, Issued, Rejected, Failed, Cancelled, Unknown}
}

// next is the whole table of transitions. An order begins in Submitting: its intent is stored together with the lease of
// whoever is about to call the CA. It goes back to Created when the CA certainly did nothing, and stays in Submitting when
// whoever was about to call has died and the next one is.
func next(from string) []string {
	switch from {
	case Created:
		return []string{Submitting, Failed, Cancelled}
	case Submitting:
		return []string{Created, Submitting, Pending, Issued, Rejected, Failed, Unknown}
	case Pending:
		return []string{Pending, Issued, Rejected, Failed, Cancelled}
	case Unknown:
		return []string{Unknown, Submitting, Pending, Issued, Rejected, Failed, Cancelled}
	default:
		return nil
	}
}

// CanMove tells whether an order may go from one state to the other.
func CanMove(from, to string) bool { return slices.Contains(next(from), to) }

// final tells whether nothing follows.
func final(status string) bool { return len(next(status)) == 0 }

// sources gives the states that may lead to one.
func sources(to string) []string {
	var out []string
	for _, s := range States() {
		if CanMove(s, to) {
			out = append(out, s)
		}
	}
	return out
}

func wrongState(o store.Order, what string) error {
	return errs.New(errs.Conflict, "ORDER_STATE", "order %s is %s: it cannot be %s", o.ID, o.Status, what).
		With("status", o.Status).With("order_id", o.ID)
}
