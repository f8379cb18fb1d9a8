package core

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/certctl/certctl/pkg/lease"
)

// Claimed is a poll that was claimed under a lease.
type Claimed struct {
	Lease lease.Lease
	Poll  Poll
}

// Claim says which polls to claim.
type Claim struct {
	Limit     int
	LeaseFor  time.Duration
	PerIssuer int            // the most of one issuer
	Busy      map[string]int // what is under way, by issuer; it counts towards PerIssuer
}

// Queue gives out polls that are due, those of all issuers alike.
type Queue interface {
	Claim(ctx context.Context, c Claim) ([]Claimed, error)
}

// Dispatcher shares the slots of this process among the issuers, so that a CA that hangs keeps only its own share.
type Dispatcher struct {
	queue     Queue
	perIssuer int
	work      func(ctx context.Context, l lease.Lease, p Poll) error
	polled    atomic.Int64

	mu    sync.Mutex
	busy  map[string]int
	taken map[uuid.UUID]Poll
	short map[string]bool // issuers of which the last claim took all that it might: there may be more
	room  func()          // is told when such an issuer has a slot again
}

// NewDispatcher makes a dispatcher. An issuer has at most perIssuer polls under way.
func NewDispatcher(queue Queue, perIssuer int, work func(context.Context, lease.Lease, Poll) error) *Dispatcher {
	return &Dispatcher{
		queue: queue, perIssuer: perIssuer, work: work, room: func() {},
		busy: map[string]int{}, taken: map[uuid.UUID]Poll{}, short: map[string]bool{},
	}
}

// OnRoom sets what is told when an issuer has a free slot again. It is set before anything is claimed.
func (d *Dispatcher) OnRoom(f func()) { d.room = f }

// Polled gives the number of polls worked on so far.
func (d *Dispatcher) Polled() int64 { return d.polled.Load() }

// Claim takes polls that are due; it is for one caller at a time. Each lease has to be given to Handle.
func (d *Dispatcher) Claim(ctx context.Context, limit int, leaseFor time.Duration) ([]lease.Lease, error) {
	d.mu.Lock()
	busy := maps.Clone(d.busy)
	d.mu.Unlock()
	claimed, err := d.queue.Claim(ctx, Claim{Limit: limit, LeaseFor: leaseFor, PerIssuer: d.perIssuer, Busy: busy})
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	leases := make([]lease.Lease, 0, len(claimed))
	for _, c := range claimed {
		d.busy[c.Poll.IssuerID]++
		busy[c.Poll.IssuerID]++
		d.taken[c.Lease.LeaseID] = c.Poll
		leases = append(leases, c.Lease)
	}
	clear(d.short)
	for issuerID, n := range busy {
		d.short[issuerID] = n >= d.perIssuer
	}
	return leases, nil
}

// Handle works on a claimed poll.
func (d *Dispatcher) Handle(ctx context.Context, l lease.Lease) error {
	d.mu.Lock()
	p, ok := d.taken[l.LeaseID]
	delete(d.taken, l.LeaseID)
	d.mu.Unlock()
	if !ok {
		return fmt.Errorf("poll order %s: its lease was not claimed here", l.ID)
	}
	defer d.release(p.IssuerID)
	d.polled.Add(1)
	return d.work(ctx, l, p)
}

func (d *Dispatcher) release(issuerID string) {
	d.mu.Lock()
	short := d.short[issuerID]
	d.busy[issuerID]--
	if d.busy[issuerID] == 0 {
		delete(d.busy, issuerID)
	}
	d.mu.Unlock()
	if short {
		d.room()
	}
}
