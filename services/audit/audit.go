// Package audit is the append-only, hash-chained record of what happened in certctl.
package audit

import (
	"context"
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
	// InternalSecret keys the anchors' MACs and the page tokens.
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
	pages, err := page.NewCodec([]byte(cfg.InternalSecret.Reveal()))
	if err != nil {
		return nil, err
	}
	st := store.New(deps.DB, core.NewSealer([]byte("certctl audit anchor:"+cfg.InternalSecret.Reveal())))
	events, err := api.NewEvents(st, pages)
	if err != nil {
		return nil, err
	}
	loops, err := newLoops(cfg, deps, st)
	if err != nil {
		return nil, err
	}
	return &Service{events: events, sink: api.NewSink(st), revisions: revision.NewServer(deps.DB.Pool, store.Collection), loops: loops}, nil
}

func newLoops(cfg Config, deps Deps, st *store.Store) (*tick.Group, error) {
	broken := prometheus.NewGauge(prometheus.GaugeOpts{Name: "certctl_audit_chain_broken",
		Help: "1 when the last verification found the chain of audit events broken."})
	if deps.Metrics != nil {
		if err := deps.Metrics.Register(broken); err != nil {
			return nil, fmt.Errorf("register metric: %w", err)
		}
	}
	group, err := tick.NewGroup(tick.Config{}, tick.Deps{Logger: deps.Log, Registry: deps.Metrics})
	if err != nil {
		return nil, err
	}
	return group, group.Register(tick.Loop{
		Name:        "chain verification",
		Description: "verifies what came since the last checkpoint and anchors it",
		Interval:    cfg.ChainVerifyInterval,
		Run: func(ctx context.Context) (tick.Result, error) {
			return verifyNew(ctx, st, broken, deps.Log)
		},
	})
}

func verifyNew(ctx context.Context, st *store.Store, broken prometheus.Gauge, log *zap.Logger) (tick.Result, error) {
	r, err := st.VerifyNew(ctx)
	if err != nil {
		return tick.Result{}, err
	}
	if r.Fault != nil {
		broken.Set(1)
		log.Error("audit chain is broken", zap.Int64("sequence", r.Fault.Sequence), zap.String("reason", r.Fault.Reason), zap.String("detail", r.Fault.Message))
		return tick.Result{Rows: int(r.Checked), Note: "broken at event " + fmt.Sprint(r.Fault.Sequence)}, nil
	}
	broken.Set(0)
	if r.Checked == 0 {
		return tick.Result{Note: "nothing new"}, nil
	}
	// In the log too, so that the anchor is also outside of the database.
	log.Info("audit chain verified", zap.Int64("sequence", r.Last.Sequence), zap.String("hash", core.Hex(r.Last.Hash)))
	return tick.Result{Rows: int(r.Checked)}, st.AddCheckpoint(ctx, r.Last)
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
