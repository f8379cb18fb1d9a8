// Package hub knows the agents' streams of this replica: it wakes the right one when there is work, keeps one stream per
// agent (the newest), and gathers when each agent was last heard, to be written in batches.
package hub

import (
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
)

// Stream is one agent's open stream. Its channels are read by the goroutine that owns the stream.
type Stream struct {
	AgentID string
	// Epoch orders the streams of an agent over all replicas.
	Epoch int64

	work    chan struct{}
	recheck chan struct{}
	end     chan End

	mu     sync.Mutex
	number int64
	ended  bool
}

// NewStream makes a stream that nobody knows of yet.
func NewStream(agentID string, epoch int64) *Stream {
	return &Stream{AgentID: agentID, Epoch: epoch, work: make(chan struct{}, 1), recheck: make(chan struct{}, 1), end: make(chan End, 1)}
}

// Work tells that there is work; Number says up to which place of the mailbox.
func (s *Stream) Work() <-chan struct{} { return s.work }

// Recheck tells that the credential must be looked at again.
func (s *Stream) Recheck() <-chan struct{} { return s.recheck }

// Ended gives the reason, once, when the server ends the stream.
func (s *Stream) Ended() <-chan End { return s.end }

// Number is the highest place of the mailbox that was hinted.
func (s *Stream) Number() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.number
}

// hint wakes the stream, unless it has been told of this number before: a hint comes twice, from the process itself and from
// the database.
func (s *Stream) hint(number int64) {
	s.mu.Lock()
	fresh := number > s.number
	s.number = max(s.number, number)
	s.mu.Unlock()
	if fresh {
		leave(s.work)
	}
}

func (s *Stream) stop(why End) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		s.end <- why
	}
}

func leave(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Hub holds the streams of one replica.
type Hub struct {
	mu       sync.Mutex
	streams  map[string]*Stream
	seen     map[string]time.Time
	draining bool
	drained  chan struct{}
}

// New makes a hub without streams.
func New() *Hub {
	return &Hub{streams: map[string]*Stream{}, seen: map[string]time.Time{}, drained: make(chan struct{})}
}

// Attach makes the stream the agent's one; an older one ends. It ends the stream itself when a newer one is there, or
// when the hub drains.
func (h *Hub) Attach(s *Stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		s.stop(Draining)
		return
	}
	if other := h.streams[s.AgentID]; other != nil {
		if other.Epoch > s.Epoch {
			s.stop(Superseded)
			return
		}
		other.stop(Superseded)
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

// Heard notes that an agent lives.
func (h *Hub) Heard(agentID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen[agentID] = time.Now()
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
		s.hint(n.Number)
	case store.NoticeStream:
		if n.Number > s.Epoch {
			s.stop(Superseded)
		}
	case store.NoticeRetired:
		s.stop(Retired)
	case store.NoticeCredential:
		leave(s.recheck)
	}
}

// RecheckAll has every stream look at its credential and its mailbox: notices may have been missed.
func (h *Hub) RecheckAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.streams {
		leave(s.recheck)
	}
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
		s.stop(Draining)
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
