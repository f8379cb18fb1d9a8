package issuance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/tick"
	"github.com/certctl/certctl/services/issuance/internal/core"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

const (
	// sweepBudget bounds one run of a lease loop, calls to slow CAs included.
	sweepBudget = 5 * time.Minute
	// rowTimeout bounds the work on one row beyond its calls to the CA.
	rowTimeout = 10 * time.Second
	slots      = 16
	// resealInterval bounds how long a replica that still has an older key in front hides from the count what it stored.
	resealInterval = 10 * time.Minute
)

// loops are the group and what it works with.
type loops struct {
	group   *tick.Group
	core    *core.Core
	orphans prometheus.Gauge
	oldKeys prometheus.Gauge
	// unreadable are secrets that no key opens.
	unreadable prometheus.Gauge
}

func newLoops(cfg Config, deps Deps, c *core.Core) (*loops, error) {
	group, err := tick.NewGroup(tick.Config{}, tick.Deps{Logger: deps.Log, Registry: deps.Metrics})
	if err != nil {
		return nil, err
	}
	l := &loops{group: group, core: c, orphans: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "certctl_orphan_orders", Help: "Orders at CAs that the journal does not account for and that wait for a decision.",
	}), oldKeys: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "certctl_secrets_under_old_keys", Help: "Secrets at rest that are under another encryption key than the first, counted every ten minutes.",
	}), unreadable: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "certctl_secrets_unreadable", Help: "Secrets at rest that none of the encryption keys opens, counted every ten minutes.",
	})}
	if deps.Metrics != nil {
		if err := errors.Join(deps.Metrics.Register(l.orphans), deps.Metrics.Register(l.oldKeys), deps.Metrics.Register(l.unreadable)); err != nil {
			return nil, fmt.Errorf("register metric: %w", err)
		}
	}
	orders, err := newRunner("orders", store.OrderLeases, c.Reconcile, cfg, deps)
	if err != nil {
		return nil, err
	}
	revocations, err := newRunner("revocations", store.RevocationLeases, c.RetryRevocation, cfg, deps)
	if err != nil {
		return nil, err
	}
	stuck, err := metrics.StuckRows(deps.Metrics)
	if err != nil {
		return nil, err
	}
	return l, l.register(
		tick.Loop{
			Name: "CRL generation", Description: "makes the CRLs that are due, and at once those that a revocation made stale",
			Interval: cfg.CRLGenerationInterval, Run: l.refreshCRLs, Kick: c.CRLKick(), Floor: crlFloor,
		},
		tick.Loop{
			Name: "enrolment GC", Description: "drops expired enrolment state of the ACME server", Interval: cfg.EnrolmentGCInterval,
			Run: func(context.Context) (tick.Result, error) {
				return tick.Result{Note: "nothing to do: there is no enrolment protocol yet"}, nil
			},
		},
		tick.Loop{
			Name: "order reconcile", Description: "finds orders whose reply was lost or whose CA was away", Interval: cfg.ReconcileInterval,
			Budget: sweepBudget, Run: watched(orders, c, stuck), Kick: c.OrderKick(),
		},
		tick.Loop{
			Name: "orphan search", Description: "compares the CAs' own lists of orders with the journal", Interval: cfg.OrphanInterval,
			Budget: sweepBudget, Run: l.searchOrphans,
		},
		tick.Loop{
			Name: "revocation retry", Description: "tells CAs of revocations that they do not know yet", Interval: cfg.RevocationInterval,
			Budget: sweepBudget, Run: revocations.Sweep,
		},
		tick.Loop{
			Name: "CA renewal", Description: "renews the certificates of local CAs in time", Interval: time.Hour, Run: l.renewCAs,
		},
		tick.Loop{
			Name: "secret re-encryption", Description: "brings secrets at rest under the first encryption key", Interval: resealInterval,
			Run: l.reseal,
		},
		tick.Loop{
			Name: "idempotency key prune", Description: "forgets idempotency keys older than a day", Interval: time.Hour,
			Run: func(ctx context.Context) (tick.Result, error) {
				n, err := mutation.Prune(ctx, deps.DB.Pool)
				return tick.Result{Rows: n}, err
			},
		},
		outbox.PruneLoop(deps.DB),
	)
}

func (l *loops) register(all ...tick.Loop) error {
	var failed error
	for _, loop := range all {
		failed = errors.Join(failed, l.group.Register(loop))
	}
	return failed
}

// crlFloor lets revocations that come one after the other share a CRL, which is made of all that there are. Who asks for a CRL has
// one that lists what was revoked before, whatever the loop does.
const crlFloor = 5 * time.Second

func (l *loops) refreshCRLs(ctx context.Context) (tick.Result, error) {
	n, err := l.core.RefreshCRLs(ctx)
	return tick.Result{Rows: n}, err
}

func (l *loops) searchOrphans(ctx context.Context) (tick.Result, error) {
	n, err := l.core.SweepOrphans(ctx)
	open, countErr := l.core.CountOrphans(ctx)
	if countErr == nil {
		l.orphans.Set(float64(open))
	}
	return tick.Result{Rows: n}, errors.Join(err, countErr)
}

func (l *loops) renewCAs(ctx context.Context) (tick.Result, error) {
	n, err := l.core.RenewCAs(ctx)
	return tick.Result{Rows: n}, err
}

func (l *loops) reseal(ctx context.Context) (tick.Result, error) {
	r, err := l.core.Reseal(ctx)
	if err == nil {
		l.oldKeys.Set(float64(r.Left))
		l.unreadable.Set(float64(r.Unreadable))
	}
	return tick.Result{Rows: r.Done}, err
}

func newRunner(queue string, table func() (*lease.Table, error), handle lease.Handler, cfg Config, deps Deps) (*lease.Runner, error) {
	t, err := table()
	if err != nil {
		return nil, fmt.Errorf("lease %s: %w", queue, err)
	}
	call := cfg.CallTimeout
	if call <= 0 {
		call = core.DefaultCallTimeout
	}
	sharer, err := lease.NewSharer(lease.SharerDeps{Table: t, DB: deps.DB.Pool, Handle: handle, PerGroup: core.CallsPerIssuer})
	if err != nil {
		return nil, err
	}
	runner, err := lease.NewRunner(
		// A row may take two calls: one to look for the order, one to submit it.
		lease.RunnerConfig{Name: name + "_" + queue, Slots: slots, LeaseFor: 2*call + rowTimeout, Timeout: 2*call + rowTimeout},
		lease.RunnerDeps{Table: t, DB: deps.DB.Pool, Handle: sharer.Handle, Claim: sharer.Claim, Logger: deps.Log, Registry: deps.Metrics},
	)
	if err != nil {
		return nil, err
	}
	sharer.OnRoom(runner.Kick)
	return runner, nil
}

// stuckInterval is how often stuck orders are counted: what is stuck is so for long.
const stuckInterval = time.Minute

// watched is the sweep of the journal with the measure of what it should have found long ago.
func watched(r *lease.Runner, c *core.Core, stuck prometheus.Gauge) func(context.Context) (tick.Result, error) {
	var counted time.Time
	return func(ctx context.Context) (tick.Result, error) {
		result, err := r.Sweep(ctx)
		if time.Since(counted) < stuckInterval {
			return result, err
		}
		n, countErr := c.Stuck(ctx)
		if countErr == nil {
			stuck.Set(float64(n))
			counted = time.Now()
		}
		return result, errors.Join(err, countErr)
	}
}
