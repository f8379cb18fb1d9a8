package core

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// ActionHeadMismatch is the action of a mark: an event of audit's own that stands where an append found an end of the chain
// that none of its keys has sealed. Nobody else may record it.
const ActionHeadMismatch = "audit.head_mismatch"

// What is kept of seals that somebody else may have written.
const (
	maxMarkedSeals = 16
	maxMarkedMAC   = 64
)

// markData are the seals that did not fit, so that whoever has their key can still tell that they were right.
type markData struct {
	MAC   []byte     `json:"mac"`
	Seals []markSeal `json:"seals"`
}

type markSeal struct {
	KeyID []byte `json:"key_id"`
	MAC   []byte `json:"mac"`
}

// NewMark makes the event that keeps an end which does not fit from being made good by the append that seals the next one.
// It cannot be removed again without breaking the chain.
func NewMark(head Anchor, now time.Time) (*Event, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make id: %w", err)
	}
	d := markData{MAC: head.MAC[:min(len(head.MAC), maxMarkedMAC)], Seals: []markSeal{}}
	for _, s := range head.Seals[:min(len(head.Seals), maxMarkedSeals)] {
		d.Seals = append(d.Seals, markSeal{KeyID: s.KeyID[:min(len(s.KeyID), maxMarkedMAC)], MAC: s.MAC[:min(len(s.MAC), maxMarkedMAC)]})
	}
	data, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode mark: %w", err)
	}
	return &Event{
		ID: "evt-" + id.String(), Time: now.UTC().Truncate(time.Microsecond), ActorType: "SERVICE", ActorID: "audit", Action: ActionHeadMismatch,
		ResourceType: "audit", ResourceID: fmt.Sprintf("event-%d", head.Sequence), Outcome: "FAILURE", Data: data,
	}, nil
}

// marked is the end that a mark tells of. Its place is that of the mark, so nobody can give it another.
func marked(e *Event) Anchor {
	a := Anchor{Sequence: e.Sequence - 1, Hash: e.PreviousHash}
	var d markData
	if json.Unmarshal(e.Data, &d) != nil {
		return a // has no seals, and so fits nothing
	}
	a.MAC = d.MAC
	for _, s := range d.Seals {
		a.Seals = append(a.Seals, Seal(s))
	}
	return a
}
