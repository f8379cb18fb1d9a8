package renewalscheduler

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/tick"
	"github.com/certctl/certctl/services/renewalscheduler/internal/api"
	"github.com/certctl/certctl/services/renewalscheduler/internal/core"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// sweepBudget bounds one run of a loop that calls peers: when it is spent no new work starts, and what is left is due in
// the next run.
const sweepBudget = 5 * time.Minute

// dueWatchInterval is how late work may begin that only the clock announces. A look costs four index entries.
const dueWatchInterval = 5 * time.Second

func newLoops(cfg Config, deps Deps, c *core.Core, st *store.Store, a *api.Server) (*tick.Group, error) {
	group, err := tick.NewGroup(tick.Config{}, tick.Deps{Logger: deps.Log, Registry: deps.Metrics})
	if err != nil {
		return nil, err
	}
	stuck, err := metrics.StuckRows(deps.Metrics)
	if err != nil {
		return nil, err
	}
	kicks := c.Kicks()
	all := []tick.Loop{
		{
			Name: "renewal check", Description: "opens jobs for certificates that are due, and follows changed policies", Interval: cfg.RenewalCheckInterval,
			Budget: sweepBudget, Run: c.CheckRenewals, Kick: kicks.Renewals.C(),
		},
		{
			Name: "job processor", Description: "takes jobs to their next step", Interval: cfg.JobProcessorInterval,
			Budget: sweepBudget, Run: c.WorkJobs, Kick: kicks.Jobs.C(),
		},
		{
			Name: "job retry", Description: "opens fresh jobs for certificates whose last job failed", Interval: cfg.JobRetryInterval,
			Budget: sweepBudget, Run: c.RetryJobs, Kick: kicks.Retries.C(),
		},
		{
			Name: "job timeout reaper", Description: "ends jobs whose approval or CSR did not come in time", Interval: cfg.JobTimeoutInterval,
			Budget: sweepBudget, Run: c.ReapJobs, Kick: kicks.Deadlines.C(),
		},
		idle("notification process", "sends notifications", cfg.NotificationProcessInterval),
		idle("notification retry", "sends failed notifications again", cfg.NotificationRetryInterval),
		idle("digest", "sends the daily digest", cfg.DigestInterval),
		{
			Name: "due watch", Description: "wakes the slower loops at the time of their work, and counts stuck rows", Interval: dueWatchInterval,
			Run: watched(c, st, deps.Now, stuck),
		},
		{
			Name: "task cancellation", Description: "takes back tasks of jobs that have ended", Interval: cfg.JobProcessorInterval,
			Budget: sweepBudget, Run: c.CancelTasks, Kick: kicks.Cancellations.C(),
		},
		{
			Name: "idempotency key prune", Description: "forgets idempotency keys older than a day", Interval: time.Hour,
			Run: func(ctx context.Context) (tick.Result, error) {
				n, err := st.PruneIdempotencyKeys(ctx)
				return tick.Result{Rows: n}, err
			},
		},
		a.CountLoop(),
		outbox.PruneLoop(deps.DB),
	}
	for _, l := range all {
		if err := group.Register(l); err != nil {
			return nil, err
		}
	}
	return group, nil
}

// idle is a loop whose work comes with the notifiers.
func idle(loop, description string, interval time.Duration) tick.Loop {
	return tick.Loop{
		Name: loop, Description: description, Interval: interval,
		Run: func(context.Context) (tick.Result, error) {
			return tick.Result{Note: "nothing to do: there are no notifiers yet"}, nil
		},
	}
}

// stuckInterval is how often stuck rows are counted: it reads all that is open, and what is stuck is so for an hour.
const stuckInterval = time.Minute

// watched is the due watch with the count of stuck rows.
func watched(c *core.Core, st *store.Store, now func() time.Time, stuck prometheus.Gauge) func(context.Context) (tick.Result, error) {
	var counted time.Time
	return func(ctx context.Context) (tick.Result, error) {
		r, err := c.Watch(ctx)
		if err != nil || ctx.Err() != nil || time.Since(counted) < stuckInterval {
			return r, err
		}
		counted = time.Now()
		n, err := st.Stuck(ctx, now().Add(-api.StuckAfter))
		if err == nil {
			stuck.Set(float64(n))
		}
		return r, err
	}
}
