package inventory

import (
	"context"
	"time"

	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/tick"
)

// leastBudget is what a run may take even if the loop comes more often: a slow database must not make the rescuer give up.
const leastBudget = 30 * time.Second

func newLoops(cfg Config, deps Deps, s *Service) (*tick.Group, error) {
	group, err := tick.NewGroup(tick.Config{}, tick.Deps{Logger: deps.Log, Registry: deps.Metrics})
	if err != nil {
		return nil, err
	}
	stuck, err := metrics.StuckRows(deps.Metrics)
	if err != nil {
		return nil, err
	}
	loops := []tick.Loop{
		{Name: "agent health", Description: "takes agents for offline that were not heard for a while", Interval: cfg.AgentHealthInterval, Run: s.core.CheckAgents},
		{Name: "short-lived expiry", Description: "ends certificates whose time is over", Interval: cfg.ShortLivedInterval, Run: s.core.ExpireCertificates},
		{Name: "network scan", Description: "looks for certificates on the network", Interval: cfg.NetworkScanInterval, Run: later("network scans are not built yet")},
		{
			Name: "endpoint health", Description: "has agents look at endpoints that were not looked at for a while", Interval: cfg.EndpointHealthInterval,
			Run: func(ctx context.Context) (tick.Result, error) {
				n, err := s.core.CountStuck(ctx)
				if err != nil {
					return tick.Result{}, err
				}
				stuck.Set(float64(n))
				return s.core.VerifyDeployments(ctx)
			},
		},
		{Name: "cloud discovery", Description: "looks for certificates at cloud providers", Interval: cfg.CloudDiscoveryInterval, Run: later("cloud discovery is not built yet")},
		{Name: "credential expiry", Description: "deletes join tokens, credentials, idempotency keys and ended work that have served their time", Interval: cfg.CredentialGCInterval, Run: s.core.Prune},
		{Name: "assignment dispatch", Description: "brings back work whose lease has run out, and sends out what is due", Interval: cfg.DispatchInterval, Run: s.core.Dispatch},
		{Name: "agent presence", Description: "writes when agents were last heard", Interval: cfg.PresenceInterval, Run: s.flush},
		{Name: "agent streams", Description: "looks at the credentials and mailboxes of agents that are connected", Interval: cfg.CredentialCheckInterval, Kick: s.hub.Checks.C(), Run: s.checkStreams},
		s.core.SummaryLoop(),
		outbox.PruneLoop(deps.DB),
	}
	for _, l := range loops {
		if l.Interval < leastBudget {
			l.Budget = leastBudget
		}
		if err := group.Register(l); err != nil {
			return nil, err
		}
	}
	return group, nil
}

// later is a loop whose work comes with a later version.
func later(note string) func(context.Context) (tick.Result, error) {
	return func(context.Context) (tick.Result, error) { return tick.Result{Note: note}, nil }
}
