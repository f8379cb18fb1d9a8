// Package issuance is the service that talks to CAs: it keeps the issuers with their secrets, the profiles that bound what
// may be issued, the journal of orders, revocations and CRLs. It knows no agents, targets or schedules.
package issuance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
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
	"github.com/certctl/certctl/services/issuance/internal/api"
	"github.com/certctl/certctl/services/issuance/internal/core"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// name is that of the service, its schema and its outbox.
const name = "issuance"

// Config says how issuance works. Durations that are zero take the default in brackets.
type Config struct {
	// InternalSecret keys the page tokens.
	InternalSecret secretbox.Secret
	// BootstrapLocalIssuer makes iss-local on the first start.
	BootstrapLocalIssuer bool

	CRLGenerationInterval time.Duration // loop 14 (1 h)
	EnrolmentGCInterval   time.Duration // loop 15 (1 min)
	ReconcileInterval     time.Duration // orders that are due (10 s)
	RevocationInterval    time.Duration // revocations that a CA does not know yet (30 s)

	CallTimeout    time.Duration // one call to a CA (30 s)
	OrderDeadline  time.Duration // how long a CA that is away is tried for an order (24 h)
	ReconcileDelay time.Duration // rest after a lost reply before the CA is asked (1 min)
	CRLValidity    time.Duration // from a CRL's this update to its next (24 h)
	OrphanInterval time.Duration // comparison of CAs' lists of orders with the journal (1 h)
	// AccountShare is the part of the rate of each CA account that this process may use (1).
	AccountShare float64
	// BreakerPause is how long a CA that does not answer is left alone before a probe (15 s).
	BreakerPause time.Duration
}

func (c *Config) setDefaults() {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&c.CRLGenerationInterval, time.Hour},
		{&c.EnrolmentGCInterval, time.Minute},
		{&c.ReconcileInterval, 10 * time.Second},
		{&c.RevocationInterval, 30 * time.Second},
		{&c.OrphanInterval, time.Hour},
	} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
}

// Peers are connections to the services that issuance calls and tells.
type Peers struct {
	Inventory        grpc.ClientConnInterface
	RenewalScheduler grpc.ClientConnInterface
	AsyncPoller      grpc.ClientConnInterface
	Audit            grpc.ClientConnInterface
}

// Deps is what issuance works with.
type Deps struct {
	DB      *pg.DB
	Log     *zap.Logger
	Metrics prometheus.Registerer // nil: none
	// Box seals issuers' secrets.
	Box *secretbox.Box
	// IssuerTypes is the list of connectors that there are.
	IssuerTypes issuer.Types
	Peers       Peers
	Now         func() time.Time // nil: time.Now
	// Checkpoint is called at the labelled points of an order's way (Checkpoints). When it fails, that work is dropped where it
	// is, as if the process had died there; nil: never. It is for tests that kill the service at each point.
	Checkpoint func(point, orderID string) error
}

// Checkpoints are the labelled points, in the order of an order's way.
func Checkpoints() []string { return core.Checkpoints() }

// Service is issuance.
type Service struct {
	core  *core.Core
	api   *api.API
	db    *pg.DB
	log   *zap.Logger
	relay *outbox.Relay
	loops *tick.Group
}

// Schema is issuance's part of the database.
func Schema() pg.Schema { return store.Schema() }

// New makes the service and starts nothing.
func New(cfg Config, deps Deps) (*Service, error) {
	cfg.setDefaults()
	if deps.Log == nil {
		deps.Log = zap.NewNop()
	}
	if p := deps.Peers; p.Inventory == nil || p.RenewalScheduler == nil || p.AsyncPoller == nil || p.Audit == nil {
		return nil, errors.New("issuance: a connection to a peer is missing")
	}
	c, err := newCore(cfg, deps)
	if err != nil {
		return nil, err
	}
	s := &Service{core: c, db: deps.DB, log: deps.Log}
	loops, err := newLoops(cfg, deps, c)
	if err != nil {
		return nil, err
	}
	s.loops = loops.group
	if s.api, err = newAPI(cfg, deps, c); err != nil {
		return nil, err
	}
	s.relay, err = newRelay(deps)
	return s, err
}

func newCore(cfg Config, deps Deps) (*core.Core, error) {
	return core.New(core.Config{
		CallTimeout: cfg.CallTimeout, OrderDeadline: cfg.OrderDeadline, ReconcileDelay: cfg.ReconcileDelay, CRLValidity: cfg.CRLValidity,
		BootstrapLocalIssuer: cfg.BootstrapLocalIssuer,
	}, core.Deps{
		Checkpoint: deps.Checkpoint,
		Accounts:   account.New(account.Config{Share: cfg.AccountShare, OpenFor: cfg.BreakerPause}),
		DB:         deps.DB, Log: deps.Log, Box: deps.Box, Types: deps.IssuerTypes, Now: deps.Now,
		References: newReferences(deps.Peers.Inventory), Poller: newPoller(deps.Peers.AsyncPoller),
	})
}

func newAPI(cfg Config, deps Deps, c *core.Core) (*api.API, error) {
	pages, err := page.NewCodec(cfg.InternalSecret)
	if err != nil {
		return nil, fmt.Errorf("issuance: %w", err)
	}
	sink, err := api.NewSink(c, deps.Log)
	if err != nil {
		return nil, err
	}
	return api.New(api.Deps{Core: c, Pages: pages, Sink: sink, Revisions: revision.NewServer(deps.DB.Pool, core.Collections()...)})
}

func newRelay(deps Deps) (*outbox.Relay, error) {
	sinks := map[string]eventv1.EventSinkServiceClient{}
	for destination, conn := range map[string]grpc.ClientConnInterface{
		"inventory": deps.Peers.Inventory, "renewalscheduler": deps.Peers.RenewalScheduler,
		"asyncpoller": deps.Peers.AsyncPoller, "audit": deps.Peers.Audit,
	} {
		sinks[destination] = eventv1.NewEventSinkServiceClient(conn)
	}
	return outbox.NewRelay(outbox.RelayConfig{Source: name, Patient: []string{"audit"}}, outbox.RelayDeps{DB: deps.DB, Sinks: sinks, Logger: deps.Log, Registry: deps.Metrics})
}

// Register adds issuance's RPCs to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { s.api.Register(r) }

// AuthzTable says who may call what.
func (s *Service) AuthzTable() rpc.AuthzTable { return api.AuthzTable() }

// Loops tells how the loops are.
func (s *Service) Loops() []tick.State { return s.loops.States() }

// Bootstrap makes what a first start has: prof-default and, if it is configured, iss-local. It may be run at each start,
// by several replicas at once: what was deleted is not made again.
func (s *Service) Bootstrap(ctx context.Context) error { return s.core.Bootstrap(asService(ctx)) }

// asService makes the service itself the actor of what loops do.
func asService(ctx context.Context) context.Context {
	return rpcctx.WithCaller(ctx, rpcctx.ServiceCaller(name))
}

// Run works the loops and tells the other services until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	g := run.NewGroup(asService(ctx), run.Config{})
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
