// Package asyncpoller is the service that asks slow CAs what became of orders that are pending. It is a bulkhead: a CA that
// hangs can use up only what this service has. It knows orders and issuers, no certificates and no agents.
package asyncpoller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/asyncpoll"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/tick"
	"github.com/certctl/certctl/services/asyncpoller/internal/api"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
	"github.com/certctl/certctl/services/asyncpoller/internal/store"
)

// name is that of the service and its schema.
const name = "asyncpoller"

// Config says how asyncpoller works. Values that are zero take the default in brackets.
type Config struct {
	// PollInterval is how often polls are looked for that became due by time alone: loop 16 (5 s).
	PollInterval time.Duration
	// CallTimeout bounds one call to a CA (20 s).
	CallTimeout time.Duration
	// Slots is how many orders are asked about at a time (32), SlotsPerIssuer how many of one issuer (a quarter of Slots, at most 256).
	Slots          int
	SlotsPerIssuer int
	// MaxWaits are the wait budgets by issuer type, over that of the process (package asyncpoll): how long after the start of
	// a watch somebody waits for the certificate. After it the order is reported as still pending and polled more rarely,
	// until its own deadline.
	MaxWaits asyncpoll.Budgets
	// Replicas of asyncpoller there are (1), and AccountShare is what this one may use of the rate of each CA account (1), as
	// issuance calls the same accounts.
	Replicas     int
	AccountShare float64
	// BreakerPause is how long a CA that does not answer is left alone before a probe (15 s).
	BreakerPause time.Duration
	// CensusInterval is how often pending orders are counted (1 min).
	CensusInterval time.Duration
}

func (c *Config) setDefaults() {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&c.PollInterval, 5 * time.Second},
		{&c.CallTimeout, 20 * time.Second},
		{&c.BreakerPause, 15 * time.Second},
		{&c.CensusInterval, time.Minute},
	} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	if c.Slots <= 0 {
		c.Slots = 32
	}
	if c.SlotsPerIssuer <= 0 {
		c.SlotsPerIssuer = max(c.Slots/4, 1)
	}
	c.SlotsPerIssuer = min(c.SlotsPerIssuer, store.MostPerIssuer)
	c.Replicas = max(c.Replicas, 1)
}

// Peers are connections to the services that asyncpoller calls.
type Peers struct {
	Issuance grpc.ClientConnInterface
}

// Deps is what asyncpoller works with.
type Deps struct {
	DB      *pg.DB
	Log     *zap.Logger
	Metrics prometheus.Registerer // nil: none
	// IssuerTypes is the list of connectors that there are.
	IssuerTypes issuer.Types
	Peers       Peers
	Now         func() time.Time // nil: that of the DB
	// Checkpoint is called at the labelled points of a poll (Checkpoints). When it fails, that work is dropped where it is, as
	// if the process had died there; nil: never. It is for tests that kill the service at each point.
	Checkpoint func(point, orderID string) error
}

// Checkpoints are the labelled points, in the order of a poll's way.
func Checkpoints() []string { return core.Checkpoints() }

// Service is asyncpoller.
type Service struct {
	api      *api.API
	dispatch *dispatch
	loops    *tick.Group
}

// Schema is asyncpoller's part of the database.
func Schema() pg.Schema { return store.Schema() }

// New makes the service and starts nothing.
func New(cfg Config, deps Deps) (*Service, error) {
	cfg.setDefaults()
	if deps.Log == nil {
		deps.Log = zap.NewNop()
	}
	if deps.DB == nil || deps.Peers.Issuance == nil {
		return nil, errors.New("asyncpoller: a database and a connection to issuance are needed")
	}
	st := store.New(deps.DB, deps.Now)
	if deps.Now == nil {
		deps.Now = deps.DB.Now
	}
	d, err := newDispatch(cfg, deps, st)
	if err != nil {
		return nil, fmt.Errorf("asyncpoller: %w", err)
	}
	loops, err := d.loops(deps)
	if err != nil {
		return nil, fmt.Errorf("asyncpoller: %w", err)
	}
	sink, err := outbox.NewSink(outbox.SinkDeps{
		DB: deps.DB, Logger: deps.Log, After: d.kick,
		Apply: api.Apply(func(tx pgx.Tx) core.Book { return st.In(tx) }, deps.Now),
	})
	if err != nil {
		return nil, fmt.Errorf("asyncpoller: %w", err)
	}
	return &Service{
		api: api.New(api.Deps{Book: st, Sink: sink, Now: deps.Now, Kick: d.kick}), dispatch: d, loops: loops,
	}, nil
}

// Register adds asyncpoller's RPCs to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { s.api.Register(r) }

// AuthzTable says who may call what.
func (s *Service) AuthzTable() rpc.AuthzTable { return api.AuthzTable() }

// Loops tells how the loops are.
func (s *Service) Loops() []tick.State { return s.loops.States() }

// Run works until ctx ends; polls that are under way are given back.
func (s *Service) Run(ctx context.Context) error {
	g := run.NewGroup(rpcctx.WithCaller(ctx, rpcctx.ServiceCaller(name)), run.Config{})
	g.Go("polls", s.dispatch.runner.Run)
	g.Go("accounts", s.dispatch.dispatcher.Run)
	g.Go("loops", s.loops.Run)
	return g.Wait()
}
