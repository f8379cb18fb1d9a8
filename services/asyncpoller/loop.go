package asyncpoller

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/tick"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
	"github.com/certctl/certctl/services/asyncpoller/internal/store"
)

// lookBudget bounds one look at the table; it is not bound by how often that is done.
const lookBudget = 10 * time.Second

// rowSlack is what the work on a row may take beside the call to the CA: the result handed over and written.
const rowSlack = recordTimeout + 5*time.Second

// dispatch is what asks the CAs: the runner claims through the dispatcher and works all the time; the loop is what makes it
// look.
type dispatch struct {
	dispatcher *core.Dispatcher
	runner     *lease.Runner
	kicker     *tick.Kicker // of the loop
}

func newDispatch(cfg Config, deps Deps, st *store.Store) (*dispatch, error) {
	poller, err := core.NewPoller(core.Config{CallTimeout: cfg.CallTimeout, MaxWait: cfg.MaxWait, MaxWaits: cfg.MaxWaits}, core.Deps{
		Desk: st, Journal: newJournal(deps.Peers.Issuance), Types: deps.IssuerTypes, Log: deps.Log, Registry: deps.Metrics, Now: deps.Now,
	})
	if err != nil {
		return nil, err
	}
	table, err := st.Leases()
	if err != nil {
		return nil, err
	}
	d := &dispatch{dispatcher: core.NewDispatcher(st, cfg.SlotsPerIssuer, poller.Work), kicker: tick.NewKicker()}
	timeout := cfg.CallTimeout + rowSlack
	d.runner, err = lease.NewRunner(
		lease.RunnerConfig{
			Name: "polls", Slots: cfg.Slots, LeaseFor: timeout * 3 / 2, Timeout: timeout, Interval: cfg.PollInterval,
			Backoff: lease.Backoff{Base: time.Second, Cap: time.Minute}, // issuance is away
		},
		lease.RunnerDeps{
			Table: table, DB: deps.DB.Pool, Handle: d.dispatcher.Handle, Claim: d.dispatcher.Claim, Logger: deps.Log, Registry: deps.Metrics,
		},
	)
	if err != nil {
		return nil, err
	}
	d.dispatcher.OnRoom(d.runner.Kick)
	return d, nil
}

func (d *dispatch) loops(cfg Config, deps Deps, st *store.Store) (*tick.Group, error) {
	group, err := tick.NewGroup(tick.Config{}, tick.Deps{Logger: deps.Log, Registry: deps.Metrics})
	if err != nil {
		return nil, err
	}
	stuck, err := metrics.StuckRows(deps.Metrics)
	if err != nil {
		return nil, err
	}
	return group, errors.Join(
		group.Register(tick.Loop{
			Name: "poll dispatch", Description: "asks CAs about pending orders that are due", Interval: cfg.PollInterval,
			Budget: lookBudget, Run: d.look(st, stuck), Kick: d.kicker.C(),
		}),
		group.Register(tick.Loop{
			Name: "poll prune", Description: "forgets watches that ended more than 7 days ago", Interval: time.Hour,
			Run: func(ctx context.Context) (tick.Result, error) {
				n, err := st.Prune(ctx)
				return tick.Result{Rows: n}, err
			},
		}),
		group.Register(outbox.PruneLoop(deps.DB)),
	)
}

// look wakes the runner and tells how many polls there were since the last look.
func (d *dispatch) look(st *store.Store, stuck prometheus.Gauge) func(context.Context) (tick.Result, error) {
	var before int64
	return func(ctx context.Context) (tick.Result, error) {
		d.runner.Kick()
		polled := d.dispatcher.Polled()
		result := tick.Result{Rows: int(polled - before)}
		before = polled
		n, err := st.Stuck(ctx)
		if err == nil {
			stuck.Set(float64(n))
		}
		return result, err
	}
}
