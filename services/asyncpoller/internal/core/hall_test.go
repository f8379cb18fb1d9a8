package core_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

// hall is a poller with its dispatcher and runner on a clock that is turned. Rows are in memory; CAs are functions.
type hall struct {
	t          *testing.T
	metrics    *core.Metrics
	dispatcher *core.Dispatcher
	runner     *lease.Runner

	mu    sync.Mutex
	cas   map[string]*clerk
	rows  map[string]*core.Poll
	lease map[string]uuid.UUID
	told  []core.Result            // what issuance was told
	lag   map[string]time.Duration // by issuer: the longest that an order waited after its time
}

// clerk is what answers for a CA.
type clerk struct {
	account string // empty: it shows none
	limits  account.Limits
	answer  func(ctx context.Context) (issuer.Submission, error)
	calls   []time.Time
	most    int // under way at a time
	active  int
}

func pending(context.Context) (issuer.Submission, error) {
	return issuer.Submission{State: issuer.Pending, RetryAfter: 100 * time.Hour}, nil
}

func down(context.Context) (issuer.Submission, error) {
	return issuer.Submission{}, issuer.RetryAfter(0, errors.New("connection refused"))
}

func hangs(ctx context.Context) (issuer.Submission, error) {
	<-ctx.Done()
	return issuer.Submission{}, issuer.RetryAfter(0, ctx.Err())
}

// takes answers after a time.
func takes(d time.Duration, then func(context.Context) (issuer.Submission, error)) func(context.Context) (issuer.Submission, error) {
	return func(ctx context.Context) (issuer.Submission, error) {
		select {
		case <-time.After(d):
			return then(ctx)
		case <-ctx.Done():
			return hangs(ctx)
		}
	}
}

// connector is what is built of a clerk.
type connector struct {
	h     *hall
	clerk *clerk
	guard *account.Guard
}

func (c *connector) Submit(context.Context, issuer.SubmitRequest) (issuer.Submission, error) {
	return issuer.Submission{}, errors.New("nobody submits here")
}

// Poll calls the CA as connectors do, through the guard of the account.
func (c *connector) Poll(ctx context.Context, _ issuer.Ref) (issuer.Submission, error) {
	leave := func(account.Result) {}
	if c.guard != nil {
		var err error
		if leave, err = c.guard.Enter(ctx); err != nil {
			return issuer.Submission{}, issuer.RetryAfter(0, err)
		}
	}
	c.h.do(func() {
		c.clerk.calls = append(c.clerk.calls, time.Now())
		c.clerk.active++
		c.clerk.most = max(c.clerk.most, c.clerk.active)
	})
	s, err := c.clerk.answerNow(c.h)(ctx)
	c.h.do(func() { c.clerk.active-- })
	leave(account.Result{Failed: err != nil})
	return s, err
}

func (c *clerk) answerNow(h *hall) func(context.Context) (issuer.Submission, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return c.answer
}

type metered struct{ *connector }

func (m metered) Account() *account.Guard { return m.guard }

func (h *hall) do(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *hall) types() issuer.Types {
	var out issuer.Types
	for id, c := range h.cas {
		out = append(out, issuer.Type{Name: id, New: func(_ context.Context, _ issuer.Config, d issuer.Deps) (issuer.Issuer, error) {
			in := &connector{h: h, clerk: c}
			if c.account == "" {
				return in, nil
			}
			in.guard = d.Accounts.Guard(c.account, c.limits)
			return metered{in}, nil
		}})
	}
	return out
}

// Credentials implements core.Journal: an issuer's id is its type.
func (h *hall) Credentials(_ context.Context, issuerID, _ string) (core.Credentials, error) {
	return core.Credentials{Type: issuerID, ConfigHash: "1", Config: []byte("{}")}, nil
}

// Record implements core.Journal.
func (h *hall) Record(_ context.Context, r core.Result) (bool, error) {
	h.do(func() { h.told = append(h.told, r) })
	return r.Outcome != core.StillPending, nil
}

// Claim implements core.Queue as the store does.
func (h *hall) Claim(_ context.Context, c core.Claim) ([]core.Claimed, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var due []*core.Poll
	for _, p := range h.rows {
		if p.State == core.Waiting && !p.DueTime.After(time.Now()) {
			due = append(due, p)
		}
	}
	slices.SortFunc(due, func(a, b *core.Poll) int {
		if a.Hastened != b.Hastened {
			if a.Hastened {
				return -1
			}
			return 1
		}
		return cmp.Or(a.DueTime.Compare(b.DueTime), cmp.Compare(a.OrderID, b.OrderID))
	})
	busy, used := map[string]int{}, map[string]int{}
	var out []core.Claimed
	for _, p := range due {
		q, bounded := c.Quotas[p.IssuerID]
		room := c.PerIssuer - c.Busy[p.IssuerID] - busy[p.IssuerID]
		switch {
		case len(out) == c.Limit:
			return out, nil
		case p.Hastened && room+c.Hastened <= 0, !p.Hastened && (room <= 0 || bounded && used[q.Account] >= q.Calls):
			continue
		}
		busy[p.IssuerID]++
		if !p.Hastened {
			used[q.Account]++
		}
		p.State = core.Leased
		p.Attempts++
		h.lease[p.OrderID] = uuid.New()
		h.lag[p.IssuerID] = max(h.lag[p.IssuerID], time.Since(p.DueTime))
		out = append(out, core.Claimed{Poll: *p, Lease: lease.Lease{ID: p.OrderID, LeaseID: h.lease[p.OrderID], Attempts: p.Attempts, DueTime: p.DueTime}})
	}
	return out, nil
}

// write is what all deeds of a Desk do.
func (h *hall) write(l lease.Lease, f func(p *core.Poll)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lease[l.ID] != l.LeaseID {
		return lease.ErrLost
	}
	delete(h.lease, l.ID)
	f(h.rows[l.ID])
	return nil
}

func (h *hall) Defer(_ context.Context, l lease.Lease, due time.Time, hastened bool) error {
	return h.write(l, func(p *core.Poll) {
		p.State, p.Attempts = core.Waiting, p.Attempts-1
		if hastened || !p.Hastened {
			p.DueTime = due
		}
	})
}

func (h *hall) Reschedule(_ context.Context, l lease.Lease, n core.Note, due time.Time) error {
	return h.write(l, func(p *core.Poll) {
		p.State, p.DueTime, p.Hastened, p.LastAnswer, p.RefusedTime = core.Waiting, due, false, n.Answer, n.RefusedTime
		p.History = append(p.History, n.Entry)
	})
}

func (h *hall) End(_ context.Context, l lease.Lease, n core.Note, state string, _ time.Time) error {
	return h.write(l, func(p *core.Poll) { p.State, p.History = state, append(p.History, n.Entry) })
}

// noDatabase stands in for the leases of the runner: they never run out here.
type noDatabase struct{}

func (noDatabase) Exec(context.Context, string, ...any) (pgconn.CommandTag, error) {
	return pgconn.NewCommandTag("UPDATE 1"), nil
}
func (noDatabase) Query(context.Context, string, ...any) (pgx.Rows, error) {
	return nil, errors.New("no database")
}
func (noDatabase) QueryRow(context.Context, string, ...any) pgx.Row { return noRow{} }

type noRow struct{}

func (noRow) Scan(...any) error { return errors.New("no database") }

const (
	slots     = 32
	perIssuer = 8
)

// inHall runs a test on a clock that is turned.
func inHall(t *testing.T, cas map[string]*clerk, test func(h *hall)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := &hall{t: t, cas: cas, rows: map[string]*core.Poll{}, lease: map[string]uuid.UUID{}, lag: map[string]time.Duration{}}
		var err error
		h.metrics, err = core.NewMetrics(nil, time.Now)
		require.NoError(t, err)
		accounts := account.New(account.Config{Share: 0.6, OnAvailable: func(string) { h.runner.Kick() }})
		poller := core.NewPoller(core.Config{CallTimeout: 20 * time.Second}, core.Deps{
			Desk: h, Journal: h, Types: h.types(), Accounts: accounts, Metrics: h.metrics, Log: zap.NewNop(), Now: time.Now,
		})
		h.dispatcher = core.NewDispatcher(core.DispatcherConfig{PerIssuer: perIssuer},
			core.DispatcherDeps{Queue: h, Quotas: poller.Quotas, Work: poller.Work, Room: func() { h.runner.Kick() }})
		table, err := lease.New(lease.Config{Table: "polls", State: "state", Due: []string{core.Waiting}, Leased: core.Leased})
		require.NoError(t, err)
		h.runner, err = lease.NewRunner(lease.RunnerConfig{Slots: slots, Timeout: 35 * time.Second, LeaseFor: time.Minute},
			lease.RunnerDeps{Table: table, DB: noDatabase{}, Handle: h.dispatcher.Handle, Claim: h.dispatcher.Claim})
		require.NoError(t, err)
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { require.NoError(t, h.runner.Run(ctx)) })
		wg.Go(func() { require.NoError(t, h.dispatcher.Run(ctx)) })
		defer wg.Wait()
		defer stop()
		test(h)
	})
}

// add watches n orders of an issuer; the nth is due after n times every.
func (h *hall) add(issuerID string, n int, every time.Duration) {
	h.do(func() {
		for i := range n {
			id := fmt.Sprintf("%s-%06d", issuerID, i)
			h.rows[id] = &core.Poll{
				OrderID: id, IssuerID: issuerID, State: core.Waiting, DueTime: time.Now().Add(time.Duration(i) * every),
				WatchTime: time.Now(), CreateTime: time.Now(), DeadlineTime: time.Now().Add(ownDeadline),
			}
		}
	})
	h.runner.Kick()
}

func (h *hall) row(id string) core.Poll {
	h.mu.Lock()
	defer h.mu.Unlock()
	return *h.rows[id]
}

// hasten makes an order due as PollNow does.
func (h *hall) hasten(id string) {
	h.do(func() { h.rows[id].Hastened, h.rows[id].DueTime = true, time.Now() })
	h.runner.Kick()
	synctest.Wait()
}

// calls gives the times of the calls to a CA since a time.
func (h *hall) calls(issuerID string, since time.Time) []time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []time.Time
	for _, at := range h.cas[issuerID].calls {
		if !at.Before(since) {
			out = append(out, at)
		}
	}
	return out
}

// due gives the orders of an issuer that wait and are due.
func (h *hall) due(issuerID string) (ids []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, p := range h.rows {
		if p.IssuerID == issuerID && p.State == core.Waiting && !p.DueTime.After(time.Now()) {
			ids = append(ids, id)
		}
	}
	return ids
}

// answered counts the orders of an issuer that were answered.
func (h *hall) answered(issuerID string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.rows {
		if p.IssuerID == issuerID && len(p.History) > 0 && p.History[len(p.History)-1].Result == core.ResultPending {
			n++
		}
	}
	return n
}

// pass lets time go by on the clock of the bubble: nothing really waits.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // in a bubble this is the way to move the clock
	synctest.Wait()
}

func issued(context.Context) (issuer.Submission, error) {
	return issuer.Submission{State: issuer.Issued, CertificatePEM: []byte("a certificate")}, nil
}

func pendingWithoutAWish(context.Context) (issuer.Submission, error) {
	return issuer.Submission{State: issuer.Pending}, nil
}
