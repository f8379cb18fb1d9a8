package torture_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/tick"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
)

const (
	// inFlight is how many certificates are ordered at a time.
	inFlight = 400
	// submitters is how many calls of the scheduler are under way at a time.
	submitters = 96
	// hurry is every how many ticks of the driver what is due later is made due now.
	hurry = 2
	// patience is how long nothing at all may happen until the dust counts as settled.
	patience = 60 * time.Second
)

// play is scripts that are played on one world, by one or more replicas. It is the scheduler too: it submits each order with
// the same id until the order has ended.
type play struct {
	*world

	scripts []*script
	byOrder map[string]*script
	nodes   []*node
	types   issuer.Types // of the replicas
	disturb func(n int)  // is called with each tick

	mu      sync.Mutex
	asked   map[string]int             // how often the CA has answered about an order
	polling map[string]int             // polls that are under way, by reference
	twice   []string                   // references that were asked about twice at a time
	dead    map[string]map[string]bool // orders whose worker died, by service
	intents map[string]*issuancev1.SubmitOrderRequest
	busy    map[string]bool // orders that are being submitted
}

// newPlay makes the world of some seeds.
func newPlay(t testing.TB, seeds []uint64, replicas int) *play {
	t.Helper()
	var scripts []*script
	for _, seed := range seeds {
		scripts = append(scripts, newScript(seed))
	}
	p := newPlayOf(t, newWorld(t, casimulator.Scenario{}), scripts)
	p.sim.Play(p.scenario(seeds[0]))
	for range replicas {
		p.nodes = append(p.nodes, p.replica())
	}
	return p
}

func newPlayOf(t testing.TB, w *world, scripts []*script) *play {
	t.Helper()
	p := &play{
		world: w, scripts: scripts, types: types(), disturb: func(int) {}, byOrder: map[string]*script{}, polling: map[string]int{}, asked: map[string]int{},
		dead:    map[string]map[string]bool{nameIssuance: {}, nameAsyncPoller: {}},
		intents: map[string]*issuancev1.SubmitOrderRequest{}, busy: map[string]bool{},
	}
	for _, s := range scripts {
		for _, id := range s.orders {
			p.byOrder[id] = s
		}
		p.arm(s)
	}
	return p
}

// state is how an order is.
type state struct {
	status string
	poll   string // of its watch; empty: none
	error  string
}

func (s state) final() bool {
	return s.status == "ISSUED" || s.status == "REJECTED" || s.status == "FAILED" || s.status == "CANCELLED"
}

func (s state) watched() bool { return s.poll == "WAITING" || s.poll == "LEASED" }

// run plays all scripts to their ends. What has not come to an end by then is for the invariants to tell.
func (p *play) run(ctx context.Context) {
	p.t.Helper()
	ticker, err := tick.New(often, 0)
	require.NoError(p.t, err)
	defer ticker.Stop()
	var g errgroup.Group
	g.SetLimit(submitters)
	defer func() { _ = g.Wait() }()
	waiting, open := p.scripts, []*script(nil)
	last := time.Now()
	for n := 0; len(waiting)+len(open) > 0 && time.Since(last) < patience; n++ {
		<-ticker.C
		for len(open) < inFlight && len(waiting) > 0 {
			waiting[0].began = time.Now()
			open, waiting, last = append(open, waiting[0]), waiting[1:], time.Now()
		}
		states := p.states(ctx, open)
		var moved bool
		if open, moved = p.advance(ctx, &g, open, states, n); moved {
			last = time.Now()
		}
		p.disturb(n)
		if n%hurry == 0 {
			p.hurry(ctx, len(waiting)+len(open) == p.humans(open))
		}
	}
}

// humans counts the scripts that wait for a human and for nothing else.
func (p *play) humans(open []*script) (n int) {
	for _, s := range open {
		if s.human {
			n++
		}
	}
	return n
}

func (p *play) states(ctx context.Context, open []*script) map[string]state {
	var ids []string
	for _, s := range open {
		ids = append(ids, s.orders...)
	}
	out := map[string]state{}
	rows, err := p.admin.Query(ctx, `SELECT o.id, o.status, COALESCE(p.state, ''), o.error_reason FROM issuance.orders o
LEFT JOIN asyncpoller.polls p ON p.order_id = o.id WHERE o.id = ANY($1)`, ids)
	if err != nil {
		return out // Postgres is away
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var s state
		if rows.Scan(&id, &s.status, &s.poll, &s.error) == nil {
			out[id] = s
		}
	}
	return out
}

// advance submits what has not ended, and gives the scripts that are still open.
func (p *play) advance(ctx context.Context, g *errgroup.Group, open []*script, states map[string]state, n int) (left []*script, moved bool) {
	for _, s := range open {
		ended := true
		for i, id := range s.orders {
			st, known := states[id]
			if s.noteState(id, st) {
				moved = true
			}
			if known && st.final() && !st.watched() {
				continue
			}
			ended = false
			if !known || !st.final() && n%10 == int(s.seed%10) && s.counted("again "+id) < s.again {
				if known {
					s.count("again " + id)
				}
				p.submit(ctx, g, s, i)
			}
			break // the next one renews this one
		}
		if !ended {
			left = append(left, s)
		}
	}
	return left, moved
}

// noteState traces a state of an order that it was not in before.
func (s *script) noteState(id string, st state) bool {
	what := fmt.Sprintf("%s %s poll %s %s", id, st.status, st.poll, st.error)
	if s.count(what) > 1 {
		return false
	}
	s.note("%s", what)
	return true
}

// submit places an order, in the background.
func (p *play) submit(ctx context.Context, g *errgroup.Group, s *script, i int) {
	id := s.orders[i]
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[id] || len(p.nodes) == 0 {
		return
	}
	if p.intents[id] == nil {
		intent, err := newIntent(id, fmt.Sprintf("cert-%d", s.seed), s.issuer, s.commonName)
		if err != nil {
			panic(err)
		}
		p.intents[id] = intent
	}
	p.busy[id] = true
	intent, n := p.intents[id], p.nodes[int(s.seed)%len(p.nodes)]
	if !g.TryGo(func() error {
		_, err := issuancev1.NewIssuanceInternalServiceClient(n.scheduler).SubmitOrder(ctx, intent)
		if err != nil {
			s.note("submit %s: %v", id, err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.busy, id)
		return nil
	}) {
		delete(p.busy, id)
	}
}

// hurry makes time pass: leases of those who died run out, and what is due later is due now.
func (p *play) hurry(ctx context.Context, humans bool) {
	p.mu.Lock()
	dead := map[string][]string{}
	for service, orders := range p.dead {
		for id := range orders {
			dead[service] = append(dead[service], id)
		}
		clear(orders)
	}
	p.mu.Unlock()
	batch := func(sql string, args ...any) { _, _ = p.admin.Exec(ctx, sql, args...) } // Postgres may be away
	if len(dead[nameIssuance]) > 0 {
		batch(`UPDATE issuance.orders SET lease_until = now(), due_time = LEAST(due_time, now()) WHERE id = ANY($1) AND lease_id IS NOT NULL`, dead[nameIssuance])
	}
	if len(dead[nameAsyncPoller]) > 0 {
		batch(`UPDATE asyncpoller.polls SET lease_until = now() WHERE order_id = ANY($1) AND lease_id IS NOT NULL`, dead[nameAsyncPoller])
	}
	var doubted, human []string
	for _, s := range p.scripts {
		if s.human {
			human = append(human, s.orders...)
		}
		if s.doubt && !s.began.IsZero() {
			doubted = append(doubted, s.orders...)
		}
	}
	batch(`UPDATE issuance.orders SET due_time = now() WHERE due_time > now() AND lease_id IS NULL AND status IN ('CREATED', 'SUBMITTING', 'UNKNOWN')`)
	batch(`UPDATE issuance.orders SET due_time = now() WHERE id = ANY($1) AND due_time > now() AND lease_id IS NULL AND status = 'PENDING' AND attempts < 3`, doubted)
	batch(`UPDATE asyncpoller.polls SET due_time = now() WHERE state = 'WAITING' AND due_time > now() AND ($2 OR attempts < 4 OR NOT order_id = ANY($1))`, human, humans)
	batch(`UPDATE issuance.outbox SET due_time = now() WHERE due_time > now()`)
	if humans {
		p.approve()
	}
}

// approve is the human who decides about all that waits for one.
func (p *play) approve() {
	if p.sim == nil {
		return // they are another process
	}
	for _, o := range p.sim.Orders() {
		if o.State == casimulator.Waiting {
			_ = p.sim.Decide(o.CA, o.ID, "approve", "") // it may be decided by now
		}
	}
}
