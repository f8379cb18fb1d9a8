// Package inventory is the service that knows what certificates there are, where they go and on which hosts: it keeps
// certificates with their versions, targets, agents with their task mailboxes, and deployments. It knows no CAs, policies or jobs.
package inventory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	renewalschedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/inventory/internal/api"
	"github.com/certctl/certctl/services/inventory/internal/core"
	"github.com/certctl/certctl/services/inventory/internal/hub"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

// name is that of the service, its schema and its outbox.
const name = "inventory"

const (
	// drainNotice is how long agents' streams have to say good-bye.
	drainNotice  = 2 * time.Second
	flushTimeout = 5 * time.Second
)

// checkedAtOnce is how many streams are looked at in one statement.
const checkedAtOnce = 5000

// Config says how inventory works. Durations and counts that are zero take the default in brackets.
type Config struct {
	// InternalSecret keys the page tokens; all replicas have the same.
	InternalSecret secretbox.Secret
	// AgentJoinToken is a standing join token for fleets, or a list of them with commas between, of which any is accepted;
	// empty: none. Each has at least 16 characters.
	AgentJoinToken secretbox.Secret
	// ServerVersion is told to agents.
	ServerVersion string

	AgentHealthInterval    time.Duration // loop 8 (2 min)
	ShortLivedInterval     time.Duration // loop 9 (30 s)
	NetworkScanInterval    time.Duration // loop 10 (6 h)
	EndpointHealthInterval time.Duration // loop 11 (1 min)
	CloudDiscoveryInterval time.Duration // loop 12 (6 h)
	CredentialGCInterval   time.Duration // loop 13 (1 h)
	DispatchInterval       time.Duration // leases that have run out, retries that are due (5 s)
	PresenceInterval       time.Duration // liveness of agents is written (30 s)

	VerifyInterval    time.Duration // a deployment is looked at again (6 h)
	AssignmentLease   time.Duration // an agent has work without a word (2 min)
	DeployDeadline    time.Duration // a series of tries ends (1 h)
	DeployMaxAttempts int32         // tries of a series (8)
	RetryBase         time.Duration // wait after the first failed try (5 s)
	RetryMax          time.Duration // longest wait between tries (10 min)
	FailedRetry       time.Duration // wait until the next series (1 h)

	HeartbeatInterval       time.Duration // asked of agents (1 min)
	AgentOfflineAfter       time.Duration // silence that makes an agent OFFLINE (3 min)
	StreamLifetime          time.Duration // a stream is ended by the server, ±10 % (30 min)
	CredentialCheckInterval time.Duration // credentials and mailboxes of all streams are looked at again (1 min)
	CredentialLifetime      time.Duration // an agent is asked to rotate (30 days)
}

func (c *Config) setDefaults() {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&c.AgentHealthInterval, 2 * time.Minute},
		{&c.ShortLivedInterval, 30 * time.Second},
		{&c.NetworkScanInterval, 6 * time.Hour},
		{&c.EndpointHealthInterval, time.Minute},
		{&c.CloudDiscoveryInterval, 6 * time.Hour},
		{&c.CredentialGCInterval, time.Hour},
		{&c.DispatchInterval, 5 * time.Second},
		{&c.PresenceInterval, 30 * time.Second},
		{&c.VerifyInterval, 6 * time.Hour},
		{&c.AssignmentLease, 2 * time.Minute},
		{&c.DeployDeadline, time.Hour},
		{&c.RetryBase, 5 * time.Second},
		{&c.RetryMax, 10 * time.Minute},
		{&c.FailedRetry, time.Hour},
		{&c.HeartbeatInterval, time.Minute},
		{&c.AgentOfflineAfter, 3 * time.Minute},
		{&c.StreamLifetime, 30 * time.Minute},
		{&c.CredentialCheckInterval, time.Minute},
		{&c.CredentialLifetime, 30 * 24 * time.Hour},
	} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	if c.DeployMaxAttempts <= 0 {
		c.DeployMaxAttempts = 8
	}
}

// TargetValidator checks the configuration of a target of a type without touching any host. Its errors are of kind Invalid.
type TargetValidator interface {
	Validate(typ string, config json.RawMessage) error
}

// Peers are connections to the services that inventory calls and tells.
type Peers struct {
	Issuance         grpc.ClientConnInterface
	RenewalScheduler grpc.ClientConnInterface
	Audit            grpc.ClientConnInterface
}

// Deps is what inventory works with.
type Deps struct {
	// DB is opened with Config.Listen.
	DB      *pg.DB
	Log     *zap.Logger
	Metrics prometheus.Registerer // nil: none
	Targets TargetValidator
	Peers   Peers
}

func (d *Deps) check() error {
	if d.Log == nil {
		d.Log = zap.NewNop()
	}
	switch {
	case d.DB == nil:
		return errors.New("inventory: a database is needed")
	case d.Targets == nil:
		return errors.New("inventory: a validator of targets is needed")
	case d.Peers.Issuance == nil || d.Peers.RenewalScheduler == nil || d.Peers.Audit == nil:
		return errors.New("inventory: a connection to a peer is missing")
	}
	return nil
}

// Service is inventory.
type Service struct {
	db    *pg.DB
	log   *zap.Logger
	core  *core.Core
	hub   *hub.Hub
	api   *api.API
	relay *outbox.Relay
	loops *tick.Group
}

// Schema is inventory's part of the database.
func Schema() pg.Schema { return store.Schema() }

// New makes the service and starts nothing.
func New(cfg Config, deps Deps) (*Service, error) {
	cfg.setDefaults()
	if err := deps.check(); err != nil {
		return nil, err
	}
	s := &Service{db: deps.DB, log: deps.Log, hub: hub.New()}
	var err error
	// Issuance is told of revocations alone, and has heard of most of them by then: it is called for each.
	s.relay, err = outbox.NewRelay(outbox.RelayConfig{Source: name, Patient: []string{"audit", "issuance"}}, outbox.RelayDeps{
		DB: deps.DB, Logger: deps.Log, Registry: deps.Metrics,
		Sinks: map[string]eventv1.EventSinkServiceClient{
			"issuance":         eventv1.NewEventSinkServiceClient(deps.Peers.Issuance),
			"renewalscheduler": eventv1.NewEventSinkServiceClient(deps.Peers.RenewalScheduler),
			"audit":            eventv1.NewEventSinkServiceClient(deps.Peers.Audit),
		},
	})
	if err != nil {
		return nil, err
	}
	st, err := store.New(store.Config{OnNotice: s.hub.Notice, OnEvents: s.relay.Kick}, deps.DB)
	if err != nil {
		return nil, err
	}
	if s.core, err = newCore(cfg, deps, st); err != nil {
		return nil, err
	}
	sink, err := st.Sink(s.core.Apply, deps.Log)
	if err != nil {
		return nil, err
	}
	s.api = api.New(api.Config{
		ServerVersion: cfg.ServerVersion, HeartbeatInterval: cfg.HeartbeatInterval, StreamLifetime: cfg.StreamLifetime,
	}, api.Deps{
		Core: s.core, Hub: s.hub, Log: deps.Log, Events: sink,
		Revisions: revision.NewServer(deps.DB.Pool, store.Certificates, store.Agents, store.Targets, store.Deployments, store.Discovered),
	})
	s.loops, err = newLoops(cfg, deps, s)
	return s, err
}

func newCore(cfg Config, deps Deps, st *store.Store) (*core.Core, error) {
	pages, err := page.NewCodec(cfg.InternalSecret)
	if err != nil {
		return nil, err
	}
	var standing []secretbox.Secret
	if !cfg.AgentJoinToken.IsZero() {
		if standing, err = cfg.AgentJoinToken.List(secretbox.MinSecret); err != nil {
			return nil, fmt.Errorf("standing join token: %w", err)
		}
	}
	return core.New(core.Config{
		AgentJoinTokens: standing, AssignmentLease: cfg.AssignmentLease, DeployMaxAttempts: cfg.DeployMaxAttempts,
		DeployDeadline: cfg.DeployDeadline, RetryBase: cfg.RetryBase, RetryMax: cfg.RetryMax, FailedRetry: cfg.FailedRetry,
		VerifyInterval: cfg.VerifyInterval, AgentOfflineAfter: cfg.AgentOfflineAfter, CredentialLifetime: cfg.CredentialLifetime,
	}, core.Deps{
		Store: st, Log: deps.Log, Pages: pages, Targets: deps.Targets,
		Issuance:  issuancev1.NewIssuanceInternalServiceClient(deps.Peers.Issuance),
		Scheduler: renewalschedulerv1.NewSchedulerInternalServiceClient(deps.Peers.RenewalScheduler),
	}), nil
}

// Register adds inventory's RPCs.
func (s *Service) Register(r grpc.ServiceRegistrar) { s.api.Register(r) }

// AuthzTable says who may call what.
func (s *Service) AuthzTable() rpc.AuthzTable { return api.Table() }

// LongLivedStreams names the streams that a server of inventory lets live without a deadline.
func (s *Service) LongLivedStreams() []string {
	return []string{agentv1.AgentService_Connect_FullMethodName, inventoryv1.AgentRelayService_Relay_FullMethodName}
}

// Loops tells how the loops are.
func (s *Service) Loops() []tick.State { return s.loops.States() }

// Run works until ctx ends: loops, outbox, notifications. Agents' streams are told to come back later when it ends.
func (s *Service) Run(ctx context.Context) error {
	ctx = rpcctx.WithCaller(ctx, rpcctx.ServiceCaller(name))
	g := run.NewGroup(ctx, run.Config{})
	g.Go("loops", s.loops.Run)
	g.Go("outbox", s.relay.Run)
	g.Go("listen", func(ctx context.Context) error {
		return s.db.Listen(ctx, []string{store.NoticeChannel, outbox.Channel(name)}, s.notified)
	})
	g.Go("streams", func(ctx context.Context) error {
		<-ctx.Done()
		return s.drain(ctx)
	})
	return g.Wait()
}

// notified wakes what a notification is for. After a gap, everything looks again.
func (s *Service) notified(n pg.Notification) {
	switch {
	case n.Resync:
		s.relay.Kick()
		s.hub.RecheckAll()
	case n.Channel == store.NoticeChannel:
		if notice, ok := store.ParseNotice(n.Payload); ok {
			s.hub.Notice(notice)
		}
	default:
		s.relay.KickFor(n.Payload)
	}
}

// checkStreams looks at the credentials and mailboxes of streams: of those that there was word of, else of all. What nobody fetched is
// hinted again, so that no agent needs to ask. A database that cannot be asked ends no stream.
func (s *Service) checkStreams(ctx context.Context) (tick.Result, error) {
	streams := s.hub.TakeChecks()
	for part := range slices.Chunk(streams, checkedAtOnce) {
		held := make([]core.Held, 0, len(part))
		for _, line := range part {
			held = append(held, core.Held{AgentID: line.AgentID, CredentialID: line.CredentialID})
		}
		checked, err := s.core.Check(ctx, held)
		if err != nil {
			return tick.Result{}, fmt.Errorf("check agents' streams: %w", err)
		}
		for i, line := range part {
			tell(line, checked[i])
		}
	}
	return tick.Result{Rows: len(streams)}, nil
}

func tell(line *hub.Stream, c core.Checked) {
	switch {
	case errs.ReasonOf(c.Err) == "AGENT_RETIRED":
		line.Stop(hub.Retired)
	case c.Err != nil:
		line.Stop(hub.Refused)
	default:
		line.Notice(c.Mailbox.Number)
		line.Hint(c.Mailbox.Unfetched)
		if c.Rotate {
			line.Rotate()
		}
	}
}

// drain ends the streams and writes what was last heard from them.
func (s *Service) drain(ctx context.Context) error {
	timer := time.NewTimer(drainNotice)
	defer timer.Stop()
	select {
	case <-s.hub.Drain():
	case <-timer.C:
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	if _, err := s.flush(ctx); err != nil {
		s.log.Warn("write liveness of agents at the end", zap.Error(err))
	}
	return nil
}

// flush writes the liveness that this replica has gathered, in one statement.
func (s *Service) flush(ctx context.Context) (tick.Result, error) {
	seen := s.hub.TakeSeen()
	if err := s.core.NoteSeen(ctx, seen); err != nil {
		s.hub.PutSeen(seen)
		return tick.Result{}, fmt.Errorf("write liveness of agents: %w", err)
	}
	return tick.Result{Rows: len(seen)}, nil
}
