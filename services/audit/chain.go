package audit

import (
	"time"

	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/services/audit/internal/core"
	"github.com/certctl/certctl/services/audit/internal/store"
)

// Event is one entry of the record.
type Event = core.Event

// Anchor is a sealed place of the chain.
type Anchor = core.Anchor

// SpanSize is how many events a row of the table of spans is about.
const SpanSize = store.SpanSize

// Chain makes a chain from its first event on, without a database: for a program that writes a whole record at once. What it makes is
// verified like the record of a running service.
type Chain struct {
	sealer core.Sealer
	head   Anchor
}

// NewChain begins a chain whose anchors are sealed with the internal secret, which may be a list.
func NewChain(internal secretbox.Secret) (*Chain, error) {
	sealer, err := newSealer(internal)
	if err != nil {
		return nil, err
	}
	return &Chain{sealer: sealer, head: Anchor{Hash: core.Genesis()}}, nil
}

// Add gives the event the next place: sequence, record time, previous hash and hash.
func (c *Chain) Add(e *Event, recorded time.Time) { c.head = core.Chain([]*Event{e}, c.head, recorded) }

// Head is the end of the chain, sealed as such.
func (c *Chain) Head() Anchor { return c.sealer.Seal(core.KindHead, c.head) }

// Checkpoint is the end of the chain, sealed as a place that was verified.
func (c *Chain) Checkpoint() Anchor { return c.sealer.Seal(core.KindCheckpoint, c.head) }
