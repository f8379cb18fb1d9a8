// Package audit is the append-only, hash-chained record of what happened in certctl.
package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	"github.com/certctl/certctl/services/audit/internal/api"
	"github.com/certctl/certctl/services/audit/internal/core"
	"github.com/certctl/certctl/services/audit/internal/store"
)

// Config says how audit works.
type Config struct {
	// InternalSecret keys the anchors' MACs and the page tokens. It may be a list (secretbox.Secret.List).
	InternalSecret secretbox.Secret
	// ChainVerifyInterval is how often what is new is verified and anchored.
	ChainVerifyInterval time.Duration
}

// Deps is what audit works with.
type Deps struct {
	DB      *pg.DB
	Log     *zap.Logger
	Metrics prometheus.Registerer
}

// Service is audit.
type Service struct {
	events    *api.Events
	sink      *api.Sink
	revisions *revision.Server
	loops     *tick.Group
}

// Schema is audit's part of the database.
func Schema() pg.Schema { return store.Schema() }

// New makes the service and starts nothing.
func New(cfg Config, deps Deps) (*Service, error) {
	pages, err := page.NewCodec(cfg.InternalSecret)
	if err != nil {
		return nil, err
	}
	sealer, err := newSealer(cfg.InternalSecret)
	if err != nil {
		return nil, err
	}
	st := store.New(deps.DB, sealer, deps.Log)
	events, err := api.NewEvents(st, pages)
	if err != nil {
		return nil, err
	}
	loops, err := newLoops(cfg, deps, st, sealer.Keys())
	if err != nil {
		return nil, err
	}
	return &Service{events: events, sink: api.NewSink(st), revisions: revision.NewServer(deps.DB.Pool, store.Collection), loops: loops}, nil
}

func newSealer(internal secretbox.Secret) (core.Sealer, error) {
	secrets, err := internal.InternalList()
	if err != nil {
		return core.Sealer{}, err
	}
	keys := make([][]byte, 0, len(secrets))
	for _, s := range secrets {
		keys = append(keys, []byte("certctl audit anchor:"+s.Reveal()))
	}
	return core.NewSealer(keys...), nil
}

func newLoops(cfg Config, deps Deps, st *store.Store, secrets int) (*tick.Group, error) {
	broken := prometheus.NewGauge(prometheus.GaugeOpts{Name: "certctl_audit_chain_broken",
		Help: "1 when the last verification found the chain of audit events broken or not verifiable."})
	if deps.Metrics != nil {
		if err := deps.Metrics.Register(broken); err != nil {
			return nil, fmt.Errorf("register metric: %w", err)
		}
	}
	group, err := tick.NewGroup(tick.Config{}, tick.Deps{Logger: deps.Log, Registry: deps.Metrics})
	if err != nil {
		return nil, err
	}
	v := &verification{store: st, broken: broken, log: deps.Log, secrets: secrets}
	return group, group.Register(tick.Loop{
		Name:        "chain verification",
		Description: "verifies what came since the last checkpoint and anchors it, and a part of what is older",
		Interval:    cfg.ChainVerifyInterval,
		Budget:      verifyBudget,
		Run:         v.run,
	})
}

const (
	// oldPart is how many events before the last checkpoint are verified in a run, in turn; a few seconds of work.
	oldPart = 250_000
	// verifyBudget bounds a run, which on the first start has the whole chain to walk.
	verifyBudget = 10 * time.Minute
)

// verification is the loop that looks whether the chain is whole. It does not run twice at a time.
type verification struct {
	store  *store.Store
	broken prometheus.Gauge
	log    *zap.Logger
	// secrets are how many internal secrets there are; said is set when operators were told that one is enough.
	secrets int
	said    bool
	// old is where the next part of what is older begins. A new round begins at 1.
	old int64
}

// run verifies also when it could not seal, which is another matter.
func (v *verification) run(ctx context.Context) (tick.Result, error) {
	sealed, sealErr := v.store.SealAnew(ctx, v.old <= 1)
	if sealed.Done > 0 {
		v.log.Info("anchors of the audit chain were sealed with another internal secret too", zap.Int("rows", sealed.Done))
	}
	report, err := v.verify(ctx)
	if err := errors.Join(sealErr, err); err != nil {
		return tick.Result{}, err
	}
	if report.Fault != nil {
		return tick.Result{Rows: int(report.Checked), Note: "broken at event " + fmt.Sprint(report.Fault.Sequence)}, nil
	}
	if sealed.Left == 0 && v.secrets > 1 && !v.said {
		v.said = true
		v.log.Info("every anchor of the audit chain is sealed with each secret of CERTCTL_INTERNAL_SECRET; any of them is enough for audit when all its replicas say so")
	}
	if report.Checked == 0 {
		return tick.Result{Note: "nothing new"}, nil
	}
	return tick.Result{Rows: int(report.Checked)}, nil
}

// verify walks what is new and anchors it, and a part of what is older.
func (v *verification) verify(ctx context.Context) (store.Report, error) {
	r, err := v.store.VerifyNew(ctx)
	if err != nil || r.Fault != nil {
		return v.tell(r, err)
	}
	if r.Checked > 0 {
		// In the log too, so that the anchor is also outside of the database.
		v.log.Info("audit chain verified", zap.Int64("sequence", r.Last.Sequence), zap.String("hash", core.Hex(r.Last.Hash)))
		if err := v.store.AddCheckpoint(ctx, r.Last); err != nil {
			return r, err
		}
	}
	old, next, err := v.store.VerifyOld(ctx, v.old, r.First, oldPart)
	if err == nil && old.Fault == nil {
		v.old = next // what is broken is looked at again
	}
	old.Checked += r.Checked
	return v.tell(old, err)
}

func (v *verification) tell(r store.Report, err error) (store.Report, error) {
	switch {
	case err != nil:
		return r, err
	case r.Fault == nil:
		v.broken.Set(0)
		return r, nil
	}
	v.broken.Set(1)
	what := "audit chain is broken"
	if r.Fault.Reason == core.ReasonSecret {
		what = "audit chain cannot be verified"
	}
	v.log.Error(what, zap.Int64("sequence", r.Fault.Sequence), zap.String("reason", r.Fault.Reason), zap.String("detail", r.Fault.Message))
	return r, nil
}

// Register adds audit's RPCs.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	auditv1.RegisterAuditServiceServer(r, s.events)
	eventv1.RegisterEventSinkServiceServer(r, s.sink)
	eventv1.RegisterRevisionServiceServer(r, s.revisions)
}

// AuthzTable says who may call what.
func (s *Service) AuthzTable() rpc.AuthzTable { return api.AuthzTable() }

// Run works the loops until ctx ends.
func (s *Service) Run(ctx context.Context) error { return s.loops.Run(ctx) }

// Loops tells how the loops are.
func (s *Service) Loops() []tick.State { return s.loops.States() }
