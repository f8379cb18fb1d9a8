// Package renewalscheduler is the service that decides when certificates are issued, renewed and deployed, and carries the
// jobs that do it from one peer to the next. It knows policies, plans, jobs and approvals; it knows nothing of CA
// protocols.
package renewalscheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/api"
	"github.com/certctl/certctl/services/renewalscheduler/internal/core"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// name is that of the service, its schema and its outbox.
const name = "renewalscheduler"

// Config says how the scheduler works. Values that are zero take the default in brackets.
type Config struct {
	// InternalSecret keys the page tokens.
	InternalSecret secretbox.Secret

	RenewalCheckInterval        time.Duration // loop 1 (1 h)
	JobProcessorInterval        time.Duration // loop 2 (30 s)
	JobRetryInterval            time.Duration // loop 3 (5 min)
	JobTimeoutInterval          time.Duration // loop 4 (10 min)
	NotificationProcessInterval time.Duration // loop 5 (1 min)
	NotificationRetryInterval   time.Duration // loop 6 (2 min)
	DigestInterval              time.Duration // loop 7 (24 h)

	// RenewalConcurrency bounds how many jobs, and how many due certificates, are worked on at a time (200).
	RenewalConcurrency int

	StartTimeout     time.Duration // until a job makes its first call (24 h)
	CSRTimeout       time.Duration // until an agent's CSR has come (24 h)
	CallerCSRTimeout time.Duration // until a caller who keeps the key has posted a CSR (7 days)
	CATimeout        time.Duration // after which a pending order is reported; it stays pending (24 h)
	DeployTimeout    time.Duration // until a DEPLOY job was seen to be served (1 h)
}

func (c *Config) setDefaults() {
	const day = 24 * time.Hour
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&c.RenewalCheckInterval, time.Hour},
		{&c.JobProcessorInterval, 30 * time.Second},
		{&c.JobRetryInterval, 5 * time.Minute},
		{&c.JobTimeoutInterval, 10 * time.Minute},
		{&c.NotificationProcessInterval, time.Minute},
		{&c.NotificationRetryInterval, 2 * time.Minute},
		{&c.DigestInterval, day},
		{&c.StartTimeout, day},
		{&c.CSRTimeout, day},
		{&c.CallerCSRTimeout, 7 * day},
		{&c.CATimeout, day},
		{&c.DeployTimeout, time.Hour},
	} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	if c.RenewalConcurrency <= 0 {
		c.RenewalConcurrency = 200
	}
}

// Peers are connections to the services that the scheduler calls and tells.
type Peers struct {
	Inventory grpc.ClientConnInterface
	Issuance  grpc.ClientConnInterface
	Audit     grpc.ClientConnInterface
}

// Deps is what the scheduler works with.
type Deps struct {
	DB      *pg.DB
	Log     *zap.Logger
	Metrics prometheus.Registerer // nil: none
	Peers   Peers
	Now     func() time.Time // nil: that of the DB
}

// Service is the renewal scheduler.
type Service struct {
	api   *api.Server
	db    *pg.DB
	log   *zap.Logger
	relay *outbox.Relay
	loops *tick.Group
}

// Schema is the scheduler's part of the database.
func Schema() pg.Schema { return store.Schema() }

// New makes the service and starts nothing.
func New(cfg Config, deps Deps) (*Service, error) {
	cfg.setDefaults()
	if deps.Log == nil {
		deps.Log = zap.NewNop()
	}
	if p := deps.Peers; p.Inventory == nil || p.Issuance == nil || p.Audit == nil {
		return nil, errors.New("renewalscheduler: a connection to a peer is missing")
	}
	// Without a clock of a test leases go by the database's, which all replicas share.
	st, err := store.New(deps.DB, deps.Now)
	if err != nil {
		return nil, fmt.Errorf("renewalscheduler: %w", err)
	}
	if deps.Now == nil {
		deps.Now = deps.DB.Now
	}
	c, err := newCore(cfg, deps, st)
	if err != nil {
		return nil, err
	}
	s := &Service{db: deps.DB, log: deps.Log}
	if s.api, err = newAPI(cfg, deps, c, st); err != nil {
		return nil, err
	}
	if s.loops, err = newLoops(cfg, deps, c, st, s.api); err != nil {
		return nil, err
	}
	s.relay, err = outbox.NewRelay(outbox.RelayConfig{Source: name, Patient: []string{"audit"}}, outbox.RelayDeps{
		DB: deps.DB, Logger: deps.Log, Registry: deps.Metrics,
		Sinks: map[string]eventv1.EventSinkServiceClient{"audit": eventv1.NewEventSinkServiceClient(deps.Peers.Audit)},
	})
	return s, err
}

func newCore(cfg Config, deps Deps, st *store.Store) (*core.Core, error) {
	return core.New(core.Config{
		Concurrency: cfg.RenewalConcurrency, StartTimeout: cfg.StartTimeout, CSRTimeout: cfg.CSRTimeout,
		CallerCSRTimeout: cfg.CallerCSRTimeout, CATimeout: cfg.CATimeout, DeployTimeout: cfg.DeployTimeout,
	}, core.Deps{
		Store: st, Log: deps.Log, Registry: deps.Metrics, Now: deps.Now,
		Inventory: inventoryv1.NewInventoryInternalServiceClient(deps.Peers.Inventory),
		Issuance:  issuancev1.NewIssuanceInternalServiceClient(deps.Peers.Issuance),
	})
}

func newAPI(cfg Config, deps Deps, c *core.Core, st *store.Store) (*api.Server, error) {
	codec, err := page.NewCodec(cfg.InternalSecret)
	if err != nil {
		return nil, fmt.Errorf("renewalscheduler: %w", err)
	}
	together := func(ctx context.Context, tx pgx.Tx, events []*eventv1.Event) error {
		return store.In(ctx, tx, func(ctx context.Context, tx *store.Tx) error { return c.Apply(ctx, tx, events) })
	}
	sink, err := outbox.NewSink(outbox.SinkDeps{
		DB: deps.DB, Logger: deps.Log, After: c.Kick,
		Apply: func(ctx context.Context, tx pgx.Tx, e *eventv1.Event) error {
			return together(ctx, tx, []*eventv1.Event{e})
		}, ApplyBatch: together,
	})
	if err != nil {
		return nil, err
	}
	return api.New(api.Deps{
		Core: c, Store: st, Codec: codec, Sink: sink, Revisions: revision.NewServer(deps.DB.Pool, store.Jobs, store.Policies), Now: deps.Now,
	})
}

// Register adds the scheduler's RPCs to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { s.api.Register(r) }

// AuthzTable says who may call what.
func (s *Service) AuthzTable() rpc.AuthzTable { return api.AuthzTable() }

// Loops tells how the loops are.
func (s *Service) Loops() []tick.State { return s.loops.States() }

// Run works the loops and tells audit until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	// What loops do, the service itself does.
	g := run.NewGroup(rpcctx.WithCaller(ctx, rpcctx.ServiceCaller(name)), run.Config{})
	g.Go("loops", s.loops.Run)
	g.Go("outbox relay", s.relay.Run)
	g.Go("listener", s.listen)
	return g.Wait()
}

// listen wakes the relay. Without it the relay looks once a second.
func (s *Service) listen(ctx context.Context) error {
	err := s.db.Listen(ctx, []string{outbox.Channel(name)}, func(n pg.Notification) { s.relay.KickFor(n.Payload) })
	if err != nil && ctx.Err() == nil {
		s.log.Warn("the outbox is not listened on; events wait for the relay's next look", zap.Error(err))
	}
	return nil
}
