package core

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/certctl/certctl/pkg/lease"
)

// hastenedSlots is how many polls of one issuer may be under way beyond its share when somebody asked for them: so a CA that
// hangs and has used up its share is asked all the same.
const hastenedSlots = 2

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
	Hastened  int            // so many more of it, if somebody asked for them
	Busy      map[string]int // what is under way, by issuer; it counts towards PerIssuer
	// Quotas bound what issuers' accounts allow, by issuer; what somebody asked for does not count towards them.
	Quotas map[string]Quota
}

// Queue gives out polls that are due, those of all issuers alike.
type Queue interface {
	Claim(ctx context.Context, c Claim) ([]Claimed, error)
}

// DispatcherConfig sets up a dispatcher.
type DispatcherConfig struct {
	PerIssuer int // how many polls of one issuer are under way at most
}

// DispatcherDeps are what a dispatcher works with.
type DispatcherDeps struct {
	Queue  Queue
	Quotas func() map[string]Quota // of the issuers' accounts; nil: none
	Work   func(ctx context.Context, l lease.Lease, p Poll) error
	// Room is told when there may be something to claim that there was no room for before.
	Room func()
}

// Dispatcher shares the slots of this process among the issuers, so that a CA that hangs keeps only its own share, and takes
// of each no more than its account allows.
type Dispatcher struct {
	cfg    DispatcherConfig
	deps   DispatcherDeps
	polled atomic.Int64
	alarm  *alarm

	mu    sync.Mutex
	busy  map[string]int
	taken map[uuid.UUID]Poll
	short map[string]bool // issuers of which the last claim took all that it might: there may be more
	held  map[string]bool // those of them whose account was the reason
}

// NewDispatcher makes a dispatcher.
func NewDispatcher(cfg DispatcherConfig, deps DispatcherDeps) *Dispatcher {
	if deps.Quotas == nil {
		deps.Quotas = func() map[string]Quota { return nil }
	}
	return &Dispatcher{
		cfg: cfg, deps: deps, alarm: newAlarm(deps.Room),
		busy: map[string]int{}, taken: map[uuid.UUID]Poll{}, short: map[string]bool{}, held: map[string]bool{},
	}
}

// Run tells when an account allows something again by time alone, until ctx ends.
func (d *Dispatcher) Run(ctx context.Context) error { return d.alarm.run(ctx) }

// Polled gives the number of polls worked on so far.
func (d *Dispatcher) Polled() int64 { return d.polled.Load() }

// Held gives the issuers whose orders wait because their account allows no more at the moment.
func (d *Dispatcher) Held() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.held))
}

// Claim takes polls that are due; it is for one caller at a time. Each lease has to be given to Handle.
func (d *Dispatcher) Claim(ctx context.Context, limit int, leaseFor time.Duration) ([]lease.Lease, error) {
	d.mu.Lock()
	busy := maps.Clone(d.busy)
	d.mu.Unlock()
	c := Claim{Limit: limit, LeaseFor: leaseFor, PerIssuer: d.cfg.PerIssuer, Hastened: hastenedSlots, Busy: busy, Quotas: d.deps.Quotas()}
	claimed, err := d.deps.Queue.Claim(ctx, c)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	leases := make([]lease.Lease, 0, len(claimed))
	for _, taken := range claimed {
		d.busy[taken.Poll.IssuerID]++
		busy[taken.Poll.IssuerID]++
		d.taken[taken.Lease.LeaseID] = taken.Poll
		leases = append(leases, taken.Lease)
	}
	d.remember(c, claimed)
	return leases, nil
}

// remember notes who may have more to do than was claimed, and when to look again. What was busy counts as it was when the
// claim was made: a slot that has become free since then was not in it.
func (d *Dispatcher) remember(c Claim, claimed []Claimed) {
	clear(d.short)
	clear(d.held)
	for issuerID, n := range c.Busy {
		d.short[issuerID] = n >= c.PerIssuer
	}
	used := map[string]int{}
	for _, taken := range claimed {
		if q, ok := c.Quotas[taken.Poll.IssuerID]; ok && !taken.Poll.Hastened {
			used[q.Account]++
		}
	}
	var next time.Duration
	for issuerID, q := range c.Quotas {
		if used[q.Account] < q.Calls {
			continue
		}
		d.short[issuerID], d.held[issuerID] = true, true
		wait := max(q.Again, q.PerCall)
		if next == 0 || wait < next {
			next = wait
		}
	}
	d.alarm.set(next)
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
	return d.deps.Work(ctx, l, p)
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
		d.deps.Room()
	}
}
