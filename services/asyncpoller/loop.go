package asyncpoller

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certctl/certctl/pkg/connector/issuer/account"
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

// dispatch is what asks the CAs: the runner claims through the dispatcher and works all the time; the loop tells how it does.
type dispatch struct {
	cfg        Config
	store      *store.Store
	poller     *core.Poller
	dispatcher *core.Dispatcher
	runner     *lease.Runner
	kicker     *tick.Kicker // of the loop
	metrics    *core.Metrics
	stuck      prometheus.Gauge
	counted    time.Time // when pending and stuck polls were last counted
	polled     int64     // up to the last look
}

func newDispatch(cfg Config, deps Deps, st *store.Store) (*dispatch, error) {
	d := &dispatch{cfg: cfg, store: st, kicker: tick.NewKicker()}
	var err error
	if d.metrics, err = core.NewMetrics(deps.Metrics, deps.Now); err != nil {
		return nil, err
	}
	if d.stuck, err = metrics.StuckRows(deps.Metrics); err != nil {
		return nil, err
	}
	accounts := account.New(account.Config{
		Share: cfg.AccountShare, OpenFor: cfg.BreakerPause, OnAvailable: func(string) { d.runner.Kick() },
	})
	d.poller = core.NewPoller(core.Config{CallTimeout: cfg.CallTimeout, MaxWaits: cfg.MaxWaits, Replicas: cfg.Replicas}, core.Deps{
		Desk: st, Journal: newJournal(deps.Peers.Issuance), Types: deps.IssuerTypes, Accounts: accounts, Metrics: d.metrics, Log: deps.Log, Now: deps.Now,
		Checkpoint: deps.Checkpoint,
	})
	d.metrics.Watch(d.poller.Breakers)
	d.dispatcher = core.NewDispatcher(core.DispatcherConfig{PerIssuer: cfg.SlotsPerIssuer}, core.DispatcherDeps{
		Queue: st, Quotas: d.poller.Quotas, Work: d.poller.Work, Room: func() { d.runner.Kick() },
	})
	d.runner, err = d.newRunner(deps)
	return d, err
}

func (d *dispatch) newRunner(deps Deps) (*lease.Runner, error) {
	table, err := d.store.Leases()
	if err != nil {
		return nil, err
	}
	timeout := d.cfg.CallTimeout + rowSlack
	return lease.NewRunner(
		lease.RunnerConfig{
			Name: "polls", Slots: d.cfg.Slots, LeaseFor: timeout * 3 / 2, Timeout: timeout, Interval: d.cfg.PollInterval,
			Backoff: lease.Backoff{Base: time.Second, Cap: time.Minute}, // issuance is away
		},
		lease.RunnerDeps{
			Table: table, DB: deps.DB.Pool, Handle: d.dispatcher.Handle, Claim: d.dispatcher.Claim, Logger: deps.Log, Registry: deps.Metrics,
		},
	)
}

func (d *dispatch) loops(deps Deps) (*tick.Group, error) {
	group, err := tick.NewGroup(tick.Config{}, tick.Deps{Logger: deps.Log, Registry: deps.Metrics})
	if err != nil {
		return nil, err
	}
	return group, errors.Join(
		group.Register(tick.Loop{
			Name: "poll dispatch", Description: "asks CAs about pending orders that are due", Interval: d.cfg.PollInterval,
			Budget: lookBudget, Run: d.look, Kick: d.kicker.C(),
		}),
		group.Register(tick.Loop{
			Name: "poll prune", Description: "forgets watches that ended more than 7 days ago", Interval: time.Hour,
			Run: func(ctx context.Context) (tick.Result, error) {
				n, err := d.store.Prune(ctx)
				return tick.Result{Rows: n}, err
			},
		}),
		group.Register(outbox.PruneLoop(deps.DB)),
	)
}

// kick says that there is a new poll, or one that is due sooner.
func (d *dispatch) kick() {
	d.runner.Kick()
	d.kicker.Kick()
}

// look tells how many polls there were since the last look, and brings the metrics up to date.
func (d *dispatch) look(ctx context.Context) (tick.Result, error) {
	polled := d.dispatcher.Polled()
	result := tick.Result{Rows: int(polled - d.polled)}
	d.polled = polled
	return result, d.census(ctx)
}

// census counts what is pending, and what is stuck. It reads all of it, so it is not done with every look.
func (d *dispatch) census(ctx context.Context) error {
	if time.Since(d.counted) < d.cfg.CensusInterval {
		return nil
	}
	n, stuckErr := d.store.Stuck(ctx, d.dispatcher.Held()...)
	if stuckErr == nil {
		d.stuck.Set(float64(n))
	}
	pending, err := d.store.Census(ctx)
	if err == nil {
		d.metrics.Count(pending)
		d.counted = time.Now()
	}
	return errors.Join(stuckErr, err)
}
