package serve

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/catalog"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/peertls"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	"github.com/certctl/certctl/pkg/version"
	"github.com/certctl/certctl/services/cmd/certctl/internal/home"
	"github.com/certctl/certctl/services/cmd/certctl/internal/settings"
)

// process is what the parts of one process share.
type process struct {
	cfg    settings.Server
	log    *zap.Logger
	dir    home.Dir
	secret secretbox.Secret
	// memory is the network of services in one process; nil: they meet over TCP.
	memory *rpc.MemoryNetwork
	// issuerTypes are the CAs that there are connectors for.
	issuerTypes issuer.Types

	databaseURL secretbox.Secret
	// sealed is what opens secrets at rest; see box.
	sealed     *secretbox.Box
	registries map[string]*metrics.Registry
	gatherers  []prometheus.Gatherer
	servicesMu sync.Mutex // /loops may be asked before all are there
	services   map[string]service
	bootstrap  []func(ctx context.Context) error
	conns      []*grpc.ClientConn
	databases  []*pg.DB
	probe      probe
}

func newProcess(cfg settings.Server, name string) (*process, error) {
	log, err := logx.New(logx.Config{Level: cfg.Process.LogLevel, Format: cfg.Process.LogFormat, Service: name, Version: jsonOnly(cfg, version.Version)},
		zapcore.Lock(os.Stderr))
	if err != nil {
		return nil, err
	}
	dir, err := home.Open(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	setDefaultMaxWait(cfg.Waits)
	return &process{cfg: cfg, log: log, dir: dir, secret: cfg.Secrets.Internal, databaseURL: cfg.Postgres.URL, issuerTypes: catalog.Types(),
		registries: make(map[string]*metrics.Registry), services: make(map[string]service),
		gatherers: []prometheus.Gatherer{metrics.NewProcess(version.Version)}}, nil
}

// jsonOnly keeps what a machine wants in every line out of lines for people.
func jsonOnly(cfg settings.Server, s string) string {
	if cfg.Process.LogFormat == logx.JSON {
		return s
	}
	return ""
}

// box opens and seals secrets at rest, with the key that is read, or made, once.
func (p *process) box() (box *secretbox.Box, err error) {
	if p.sealed == nil {
		p.sealed, err = p.dir.Box(p.cfg.Secrets.Encryption)
	}
	return p.sealed, err
}

// registry answers the metrics of a part of the process.
func (p *process) registry(name string) *metrics.Registry {
	r, ok := p.registries[name]
	if !ok {
		r = metrics.New(name)
		p.registries[name] = r
		p.gatherers = append(p.gatherers, r)
	}
	return r
}

// address of a service that runs apart.
func (p *process) address(name string) string {
	switch name {
	case nameInventory:
		return p.cfg.Peers.InventoryAddr
	case nameIssuance:
		return p.cfg.Peers.IssuanceAddr
	case nameRenewalScheduler:
		return p.cfg.Peers.RenewalSchedulerAddr
	case nameAsyncPoller:
		return p.cfg.Peers.AsyncPollerAddr
	default:
		return p.cfg.Peers.AuditAddr
	}
}

// dialAll prepares the connections of one service to its peers.
func (p *process) dialAll(self string, peers ...string) (map[string]grpc.ClientConnInterface, error) {
	conns := make(map[string]grpc.ClientConnInterface, len(peers))
	for _, peer := range peers {
		conn, err := p.dial(self, peer)
		if err != nil {
			return nil, err
		}
		conns[peer] = conn
	}
	return conns, nil
}

func (p *process) dial(self, peer string) (*grpc.ClientConn, error) {
	cfg := rpc.ClientConfig{Service: self, Target: peer, Peer: peer, InternalSecret: p.secret}
	if p.memory != nil {
		cfg.Dialer = p.memory.Dialer(peer)
	} else {
		tlsConfig, err := peertls.Client(p.secret, peer)
		if err != nil {
			return nil, err
		}
		cfg.TLS, cfg.Target = tlsConfig, "dns:///"+p.address(peer)
	}
	conn, err := rpc.Dial(cfg)
	if err != nil {
		return nil, err
	}
	p.conns = append(p.conns, conn)
	return conn, nil
}

// open connects a service to its schema, with its share of the quota.
func (p *process) open(ctx context.Context, name string) (*pg.DB, error) {
	quotas, err := p.cfg.Postgres.ServiceQuotas()
	if err != nil {
		return nil, err
	}
	size, quota := quotas[name], 0
	if !p.cfg.Postgres.URL.IsZero() || p.cfg.Postgres.Replicas > 1 {
		size, quota = 0, quotas[name] // there are others of its kind, or may be
		if p.cfg.Postgres.Quota > 0 {
			quota = p.cfg.Postgres.Quota
		}
	}
	db, err := pg.Open(ctx, pg.Config{
		BaseURL: p.databaseURL, Password: p.cfg.Postgres.Password, RoleSecret: p.cfg.Postgres.RoleSecret, SharedRoles: p.cfg.Postgres.Roles == "shared", Service: name,
		MaxConns: size, Quota: quota, Listen: listens(name), StartWait: startWait, Schema: p.awaits(name), Log: p.log.Named("postgres"),
	})
	if err != nil {
		return nil, fmt.Errorf("connect %s to Postgres: %w", name, err)
	}
	p.databases = append(p.databases, db)
	return db, nil
}

// awaits answers the schema that a service which runs apart waits for. In one process the migration is over before.
func (p *process) awaits(name string) *pg.Schema {
	if p.memory != nil {
		return nil
	}
	for _, s := range Schemas() {
		if s.Name == name {
			return &s
		}
	}
	return nil
}

func (p *process) migrate(ctx context.Context, wait time.Duration) error {
	quotas, err := p.cfg.Postgres.ServiceQuotas()
	if err != nil {
		return err
	}
	err = pg.Migrate(ctx, pg.MigrateConfig{
		BaseURL: p.databaseURL, Password: p.cfg.Postgres.Password, RoleSecret: p.cfg.Postgres.RoleSecret, SharedRoles: p.cfg.Postgres.Roles == "shared",
		Schemas: Schemas(), Quotas: quotas, StartWait: wait, Log: p.log.Named("migrate"),
	})
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// server makes the gRPC server of a service. It is not ready while its database does not answer.
func (p *process) server(name string, s service, db *pg.DB) (*rpc.Server, error) {
	cfg := rpc.ServerConfig{Service: name, InternalSecret: p.secret, DrainTimeout: drainTimeout, DrainNotice: drainNotice, MaxConnectionAge: connectionAge}
	if l, ok := s.(interface{ LongLivedStreams() []string }); ok {
		cfg.LongLivedStreams = l.LongLivedStreams()
	}
	if p.memory == nil {
		tlsConfig, err := peertls.Server(p.secret, name)
		if err != nil {
			return nil, err
		}
		cfg.TLS = tlsConfig
	}
	deps := rpc.ServerDeps{Logger: p.log.Named(name), Registry: p.registry(name), Table: s.AuthzTable(), Explain: explainer(name)}
	server, err := rpc.NewServer(cfg, deps)
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", name, err)
	}
	if err := server.Health().Add("postgres", db.Healthy); err != nil {
		return nil, fmt.Errorf("serve %s: %w", name, err)
	}
	p.probe.health.Store(server.Health())
	s.Register(server)
	return server, nil
}

// serves notes a service of this process.
func (p *process) serves(name string, s service) {
	p.servicesMu.Lock()
	defer p.servicesMu.Unlock()
	p.services[name] = s
}

// loops tells how the loops of this process are.
func (p *process) loops() map[string][]tick.State {
	p.servicesMu.Lock()
	defer p.servicesMu.Unlock()
	states := make(map[string][]tick.State, len(p.services))
	for name, s := range p.services {
		states[name] = s.Loops()
	}
	return states
}

func (p *process) close() {
	for _, c := range p.conns {
		_ = c.Close()
	}
	for _, db := range p.databases {
		db.Close()
	}
	_ = p.log.Sync()
}
