// Package hub knows the agents' streams of this replica: it wakes the right one when there is work, keeps one stream per
// agent (the newest), and gathers when each agent was last heard, to be written in batches.
// What holds for many streams is asked for all of them at once.
package hub

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/certctl/certctl/pkg/tick"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

// An agent whose stream ends comes back after 0.6 to 5.4 seconds.
const (
	reconnectAfter  = 3 * time.Second
	reconnectJitter = 0.8
)

// End says why the server ends a stream.
type End uint8

// The reasons.
const (
	// Superseded: the agent has a newer stream.
	Superseded End = iota + 1
	// Draining: the server stops, or the stream has lived long enough.
	Draining
	// Retired: the agent is retired.
	Retired
	// Refused: the credential no longer holds.
	Refused
)

// StreamConfig is what a stream is made of.
type StreamConfig struct {
	AgentID, CredentialID string
	// Epoch orders the streams of an agent over all replicas.
	Epoch int64
	// Wake is called when there is something to take. It does not block, and locks nothing that is locked when the hub is called.
	Wake func()
}

// Stream is one agent's open stream. What the agent is to be told is gathered in it until whoever carries the stream takes it, so that
// a stream on which nothing happens needs no goroutine here.
type Stream struct {
	StreamConfig

	mu      sync.Mutex
	number  int64
	pending Pending
	rotated bool
	ended   bool
}

// Pending is what an agent is to be told.
type Pending struct {
	// Work is the highest place of the mailbox that has work; 0: no news.
	Work   int64
	Rotate bool
	// End, if not 0, is the last that the agent is told.
	End End
}

// NewStream makes a stream that nobody knows of yet.
func NewStream(cfg StreamConfig) *Stream { return &Stream{StreamConfig: cfg} }

// Take gives what has come together since the last time.
func (s *Stream) Take() Pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pending
	s.pending = Pending{}
	return p
}

// Hint says that there is work up to that place of the mailbox, also if that was said before; 0 says nothing.
func (s *Stream) Hint(number int64) {
	s.tell(func() bool {
		s.number, s.pending.Work = max(s.number, number), max(s.pending.Work, number)
		return number > 0
	})
}

// Notice is Hint unless the stream has been told of this number before: a notice comes twice, from the process itself and from the
// database.
func (s *Stream) Notice(number int64) {
	s.tell(func() bool {
		if number <= s.number {
			return false
		}
		s.number, s.pending.Work = number, number
		return true
	})
}

// Rotate asks the agent, once in the life of a stream, for a new credential.
func (s *Stream) Rotate() {
	s.tell(func() bool {
		fresh := !s.rotated
		s.rotated, s.pending.Rotate = true, s.pending.Rotate || fresh
		return fresh
	})
}

// Stop ends the stream. The first reason counts.
func (s *Stream) Stop(why End) {
	s.tell(func() bool {
		fresh := !s.ended
		if fresh {
			s.ended, s.pending.End = true, why
		}
		return fresh
	})
}

// tell changes what is pending and wakes the carrier if that is news.
func (s *Stream) tell(change func() (news bool)) {
	s.mu.Lock()
	news := change()
	s.mu.Unlock()
	if news {
		s.Wake()
	}
}

// Hub holds the streams of one replica.
type Hub struct {
	// Checks is kicked when there are streams whose credentials are to be looked at soon.
	Checks *tick.Kicker

	mu       sync.Mutex
	streams  map[string]*Stream
	seen     map[string]time.Time
	checks   map[string]struct{} // agents whose credentials have changed
	draining bool
	drained  chan struct{}
}

// New makes a hub without streams.
func New() *Hub {
	return &Hub{
		Checks: tick.NewKicker(), streams: map[string]*Stream{}, seen: map[string]time.Time{}, checks: map[string]struct{}{},
		drained: make(chan struct{}),
	}
}

// Attach makes the stream the agent's one; an older one ends. It ends the stream itself when a newer one is there, or
// when the hub drains.
func (h *Hub) Attach(s *Stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		s.Stop(Draining)
		return
	}
	if other := h.streams[s.AgentID]; other != nil {
		if other.Epoch > s.Epoch {
			s.Stop(Superseded)
			return
		}
		other.Stop(Superseded)
	}
	h.streams[s.AgentID] = s
	h.seen[s.AgentID] = time.Now()
}

// Detach forgets the stream.
func (h *Hub) Detach(s *Stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams[s.AgentID] == s {
		delete(h.streams, s.AgentID)
	}
	h.signalDrained()
}

// Heard notes that agents live.
func (h *Hub) Heard(agentIDs ...string) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range agentIDs {
		h.seen[id] = now
	}
}

// TakeSeen gives what was heard since the last time and forgets it.
func (h *Hub) TakeSeen() []store.Seen {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]store.Seen, 0, len(h.seen))
	for id, at := range h.seen {
		out = append(out, store.Seen{AgentID: id, Time: at})
	}
	clear(h.seen)
	slices.SortFunc(out, func(a, b store.Seen) int { return strings.Compare(a.AgentID, b.AgentID) })
	return out
}

// PutSeen takes back what could not be written.
func (h *Hub) PutSeen(seen []store.Seen) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range seen {
		if s.Time.After(h.seen[s.AgentID]) {
			h.seen[s.AgentID] = s.Time
		}
	}
}

// Notice handles what a replica, perhaps this one, says about an agent. It never blocks.
func (h *Hub) Notice(n store.Notice) {
	h.mu.Lock()
	s := h.streams[n.AgentID]
	h.mu.Unlock()
	if s == nil {
		return
	}
	switch n.Kind {
	case store.NoticeWork:
		s.Notice(n.Number)
	case store.NoticeStream:
		if n.Number > s.Epoch {
			s.Stop(Superseded)
		}
	case store.NoticeRetired:
		s.Stop(Retired)
	case store.NoticeCredential:
		h.mu.Lock()
		h.checks[n.AgentID] = struct{}{}
		h.mu.Unlock()
		h.Checks.Kick()
	}
}

// RecheckAll has every stream looked at soon: notices may have been missed.
func (h *Hub) RecheckAll() {
	h.mu.Lock()
	for id := range h.streams {
		h.checks[id] = struct{}{}
	}
	h.mu.Unlock()
	h.Checks.Kick()
}

// TakeChecks gives the streams that are to be looked at: those of Notice and RecheckAll since the last time, or all when there were none.
func (h *Hub) TakeChecks() []*Stream {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*Stream
	for id, s := range h.streams {
		if _, asked := h.checks[id]; asked || len(h.checks) == 0 {
			out = append(out, s)
		}
	}
	clear(h.checks)
	return out
}

// Len counts the streams.
func (h *Hub) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.streams)
}

// Drain ends all streams, and those that come later, and gives a channel that is closed when all are gone.
func (h *Hub) Drain() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
	for _, s := range h.streams {
		s.Stop(Draining)
	}
	h.signalDrained()
	return h.drained
}

// signalDrained is called with mu held.
func (h *Hub) signalDrained() {
	if !h.draining || len(h.streams) > 0 {
		return
	}
	select {
	case <-h.drained:
	default:
		close(h.drained)
	}
}

// ReconnectAfter is a random wait for an agent whose stream the server ends, so that a fleet does not come back at once.
func ReconnectAfter() time.Duration { return tick.Jittered(reconnectAfter, reconnectJitter) }
