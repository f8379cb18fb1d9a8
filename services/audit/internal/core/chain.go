// Package core is the hash chain: what is hashed, how a place is anchored, and what makes a chain valid.
package core

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"time"
)

// Event is one entry of the record. Times are UTC and have a precision of a microsecond, as in Postgres.
type Event struct {
	Sequence     int64
	ID           string
	Time         time.Time
	RecordTime   time.Time
	ActorType    string
	ActorID      string
	Action       string
	ResourceType string
	ResourceID   string
	Outcome      string
	RequestID    string
	// Data is a JSON object.
	Data         []byte
	Hash         []byte
	PreviousHash []byte
}

// Anchor is a place of the chain, with MACs over it.
type Anchor struct {
	Sequence int64
	Hash     []byte
	Time     time.Time
	// MAC was made with the first key of who sealed it. It is all that the version before knows.
	MAC []byte
	// Seals are one per key of who sealed it.
	Seals []Seal
}

// Genesis is the previous hash of the first event.
func Genesis() []byte { return make([]byte, sha256.Size) }

// Chain gives the events their place after the head: sequence, previous hash, record time and hash.
func Chain(events []*Event, head Anchor, now time.Time) Anchor {
	now = now.UTC().Truncate(time.Microsecond)
	for _, e := range events {
		e.Sequence, e.PreviousHash, e.RecordTime = head.Sequence+1, head.Hash, now
		e.Hash = e.Sum()
		head = Anchor{Sequence: e.Sequence, Hash: e.Hash, Time: now}
	}
	return head
}

// Reasons why a chain is invalid.
const (
	ReasonHash     = "HASH_MISMATCH"
	ReasonPrevious = "PREVIOUS_HASH_MISMATCH"
	ReasonGap      = "SEQUENCE_GAP"
	ReasonHead     = "HEAD_MISMATCH"
	ReasonAnchor   = "CHECKPOINT_MISMATCH"
	// ReasonSecret is not tampering that was seen: it could not be told.
	ReasonSecret = "SECRET_UNKNOWN"
)

// Fault is the first broken place of a chain.
type Fault struct {
	Sequence int64
	ID       string
	Reason   string
	Message  string
}

// Verifier walks a chain, event by event.
type Verifier struct {
	sealer  Sealer
	last    Anchor
	checked int64
	doubt   *Fault
	mark    *Fault
	// ours is set when a checkpoint was passed that one of our keys has sealed.
	ours bool
	// hash is that of last, and buffer what it was computed of: both are used again for each event.
	hash   [sha256.Size]byte
	buffer []byte
}

// NewVerifier starts after a place that is known to be right; the zero Anchor with Genesis is the start.
func NewVerifier(s Sealer, after Anchor) *Verifier { return &Verifier{sealer: s, last: after} }

// Next checks the next event; nil means that it fits. It keeps nothing of the row.
func (v *Verifier) Next(r *Row) *Fault {
	var sum [sha256.Size]byte
	switch {
	case r.Sequence != v.last.Sequence+1:
		return &Fault{Sequence: v.last.Sequence + 1, Reason: ReasonGap,
			Message: fmt.Sprintf("event %d is missing; the next one there is %d", v.last.Sequence+1, r.Sequence)}
	case !same(r.PreviousHash, v.last.Hash):
		return &Fault{Sequence: r.Sequence, ID: string(r.ID), Reason: ReasonPrevious,
			Message: "the event's previous hash is not the hash of the event before it"}
	}
	if sum, v.buffer = r.sum(v.buffer); !same(r.Hash, sum[:]) {
		return &Fault{Sequence: r.Sequence, ID: string(r.ID), Reason: ReasonHash,
			Message: "the event's fields do not give its hash: it was changed after it was recorded"}
	}
	if string(r.Action) == ActionHeadMismatch {
		v.marked(r.Event())
	}
	v.hash = sum
	v.last = Anchor{Sequence: r.Sequence, Hash: v.hash[:], Time: time.UnixMicro(r.RecordTime).UTC()}
	v.checked++
	return nil
}

// marked notes the first mark whose seals still fit none of our keys.
func (v *Verifier) marked(e *Event) {
	verdict, why := v.judgeHead(marked(e))
	if verdict == sealFits || v.mark != nil {
		return
	}
	v.mark = &Fault{Sequence: e.Sequence, ID: e.ID, Reason: ReasonHead, Message: fmt.Sprintf("event %d was the end of the chain, and its anchor did not fit, "+
		"when this was recorded: events at the end, or the anchor, had been changed past certctl%s", e.Sequence-1, why)}
	if verdict == sealForeign {
		v.mark.Reason = ReasonSecret
		v.mark.Message = fmt.Sprintf("event %d was the end of the chain when this was recorded, and %s", e.Sequence-1, foreignSeal)
	}
}

// judgeHead is harder on a foreign seal when a checkpoint before it is sealed with a key of ours: in a rotation all who work
// side by side have a key in common. It says why, for the end of a sentence.
func (v *Verifier) judgeHead(head Anchor) (verdict, string) {
	verdict := v.sealer.judge(KindHead, head)
	if verdict == sealForeign && v.ours {
		return sealBroken, "; a checkpoint before it is sealed with a secret of CERTCTL_INTERNAL_SECRET, and the anchor with one that is not in it: " +
			"this replica lacks the newest secret, or somebody else has made the anchor"
	}
	return verdict, ""
}

// Mark is the first mark of an end that did not fit; nil when there is none. A checkpoint of ours behind it settles it: it is
// made only of a chain in which all fitted, by somebody who had the key.
func (v *Verifier) Mark(newest Anchor) *Fault {
	if v.mark == nil || newest.Sequence >= v.mark.Sequence && v.sealer.Fits(KindCheckpoint, newest) {
		return nil
	}
	return v.mark
}

// Anchored checks an anchor of the place just passed. One that fits but for its seal, which none of our keys has made, leaves a
// doubt.
func (v *Verifier) Anchored(a Anchor) *Fault {
	if a.Sequence == v.last.Sequence && same(a.Hash, v.last.Hash) {
		switch v.sealer.judge(KindCheckpoint, a) {
		case sealFits:
			v.ours = true
			return nil
		case sealForeign:
			v.doubted(a, "the checkpoint at this event")
			return nil
		case sealBroken:
		}
	}
	return &Fault{Sequence: a.Sequence, Reason: ReasonAnchor,
		Message: "the checkpoint at this event does not fit: the chain up to here, or the checkpoint, was made anew"}
}

const foreignSeal = "it is sealed with an internal secret that is not in CERTCTL_INTERNAL_SECRET: add the one from before at the end of the " +
	"list, and leave it there until the log says that it is no longer needed; if it never was yours, somebody wrote the chain up to here anew"

// doubted notes the first anchor whose seal says nothing.
func (v *Verifier) doubted(a Anchor, what string) {
	if v.doubt != nil {
		return
	}
	v.doubt = &Fault{Sequence: a.Sequence, Reason: ReasonSecret, Message: what + " fits the chain, but " + foreignSeal}
}

// Doubt is the first anchor of which nothing can be said for lack of its secret; nil when there is none. Faults weigh more.
func (v *Verifier) Doubt() *Fault { return v.doubt }

// End checks the anchored head against the last event. One that fits but for its seal leaves a doubt, as in Anchored.
func (v *Verifier) End(head Anchor) *Fault {
	var why string
	if head.Sequence == v.last.Sequence && same(head.Hash, v.last.Hash) {
		if head.Sequence == 0 {
			return nil
		}
		var verdict verdict
		switch verdict, why = v.judgeHead(head); verdict {
		case sealFits:
			return nil
		case sealForeign:
			v.doubted(head, "the anchor of the end")
			return nil
		case sealBroken:
		}
	}
	at := min(head.Sequence, v.last.Sequence) + 1
	if head.Sequence == v.last.Sequence {
		at = head.Sequence
	}
	return &Fault{Sequence: at, Reason: ReasonHead,
		Message: fmt.Sprintf("the chain ends at event %d, its anchor says %d: events at the end, or the anchor, were changed%s", v.last.Sequence, head.Sequence, why)}
}

// NotBefore checks that the chain does not end before its newest checkpoint: an old end that was put back has a MAC that
// fits, but not all the events that were verified once.
func (v *Verifier) NotBefore(newest Anchor) *Fault {
	if newest.Sequence <= v.last.Sequence {
		return nil
	}
	return &Fault{Sequence: v.last.Sequence + 1, Reason: ReasonHead,
		Message: fmt.Sprintf("the chain ends at event %d, but was verified up to %d: events at the end were removed", v.last.Sequence, newest.Sequence)}
}

// Last is the last place that fitted.
func (v *Verifier) Last() Anchor {
	last := v.last
	last.Hash = bytes.Clone(last.Hash)
	return last
}

// Checked is how many events fitted.
func (v *Verifier) Checked() int64 { return v.checked }

func same(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

// Hex writes a hash as the API shows it.
func Hex(b []byte) string { return hex.EncodeToString(b) }
