package torture_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/services/asyncpoller"
	"github.com/certctl/certctl/services/issuance"
)

// The services, as the internal network names them. All others are one, which only records what it is told.
const (
	nameIssuance    = "issuance"
	nameAsyncPoller = "asyncpoller"
	nameScheduler   = "renewalscheduler"
	nameOthers      = "others"
	nameGateway     = rpc.Gateway
)

// often is how often loops look. There are no waits for time in here: what is due later is made due by the driver.
const often = 70 * time.Millisecond

// internalSecret is that of all nodes.
func internalSecret() secretbox.Secret { return secretbox.NewSecret("torture-internal-secret") }

// checkpoint is called at each labelled point; an error drops the work there.
type checkpoint func(service, point, orderID string) error

// nodeConfig describes one process's worth of services.
type nodeConfig struct {
	databaseURL string
	boxKey      secretbox.Key
	types       issuer.Types
	pollTypes   issuer.Types // of asyncpoller; nil: types
	checkpoint  checkpoint   // nil: none
	wire        grpc.UnaryClientInterceptor
	// ahead is by how much the clock of issuance is ahead, for a search for orphans that finds what is young too.
	ahead  time.Duration
	sweep  time.Duration // between two searches for orphans; 0: none
	events *pgxpool.Pool // where the others record
	log    *zap.Logger
}

// node is issuance and asyncpoller with all that they talk to, as in one process.
type node struct {
	cfg     nodeConfig
	network *rpc.MemoryNetwork
	group   *run.Group
	close   []func()
	// scheduler and gateway are connections to issuance in their names.
	scheduler *grpc.ClientConn
	gateway   *grpc.ClientConn
}

// startNode starts one. Its context ends it.
func startNode(ctx context.Context, cfg nodeConfig) (*node, error) {
	if cfg.log == nil {
		cfg.log = zap.NewNop()
	}
	n := &node{cfg: cfg, network: rpc.NewMemoryNetwork(), group: run.NewGroup(ctx, run.Config{ShutdownTimeout: 20 * time.Second})}
	if err := n.start(); err != nil {
		return nil, errors.Join(err, n.stop())
	}
	return n, nil
}

func (n *node) start() (err error) {
	if err := n.serve(nameOthers, othersTable(), func(r grpc.ServiceRegistrar) { registerOthers(r, n.cfg.events) }); err != nil {
		return err
	}
	if err := n.startIssuance(); err != nil {
		return err
	}
	if err := n.startPoller(); err != nil {
		return err
	}
	if n.scheduler, err = n.dial(nameScheduler, nameIssuance); err != nil {
		return err
	}
	n.gateway, err = n.dial(nameGateway, nameIssuance)
	return err
}

// stop ends all of it in good order.
func (n *node) stop() error {
	n.group.Stop(nil)
	err := n.group.Wait()
	for i := len(n.close) - 1; i >= 0; i-- {
		n.close[i]()
	}
	return err
}

func (n *node) open(service string) (*pg.DB, error) {
	db, err := pg.Open(n.group.Context(), pg.Config{
		BaseURL: secretbox.NewSecret(n.cfg.databaseURL), Service: service, MaxConns: 8, Listen: true, StartWait: 20 * time.Second,
	})
	if err == nil {
		n.close = append(n.close, db.Close)
	}
	return db, err
}

func (n *node) dial(self, peer string) (*grpc.ClientConn, error) {
	cfg := rpc.ClientConfig{Service: self, Target: peer, InternalSecret: internalSecret(), Dialer: n.network.Dialer(peer)}
	if n.cfg.wire != nil {
		cfg.Options = append(cfg.Options, grpc.WithChainUnaryInterceptor(n.cfg.wire))
	}
	conn, err := rpc.Dial(cfg)
	if err == nil {
		n.close = append(n.close, func() { _ = conn.Close() })
	}
	return conn, err
}

func (n *node) serve(name string, table rpc.AuthzTable, register func(grpc.ServiceRegistrar)) error {
	server, err := rpc.NewServer(rpc.ServerConfig{Service: name, InternalSecret: internalSecret(), DrainTimeout: 2 * time.Second},
		rpc.ServerDeps{Logger: n.cfg.log, Registry: prometheus.NewRegistry(), Table: table})
	if err != nil {
		return fmt.Errorf("serve %s: %w", name, err)
	}
	register(server)
	var lis net.Listener
	if lis, err = n.network.Listen(name); err != nil {
		return err
	}
	if err := server.Prepare(); err != nil {
		return err
	}
	n.group.Go("rpc "+name, func(ctx context.Context) error { return server.Serve(ctx, lis) })
	return nil
}

func (n *node) hook(service string) func(point, orderID string) error {
	if n.cfg.checkpoint == nil {
		return nil
	}
	return func(point, orderID string) error { return n.cfg.checkpoint(service, point, orderID) }
}

func (n *node) startIssuance() error {
	db, err := n.open(nameIssuance)
	if err != nil {
		return err
	}
	box, err := secretbox.NewBox(n.cfg.boxKey)
	if err != nil {
		return err
	}
	others, err := n.dial(nameIssuance, nameOthers)
	if err != nil {
		return err
	}
	poller, err := n.dial(nameIssuance, nameAsyncPoller)
	if err != nil {
		return err
	}
	sweep := n.cfg.sweep
	if sweep == 0 {
		sweep = 24 * time.Hour
	}
	s, err := issuance.New(issuance.Config{
		InternalSecret: internalSecret(), ReconcileInterval: often, ReconcileDelay: 50 * time.Millisecond, CallTimeout: callTimeout,
		RevocationInterval: time.Hour, BreakerPause: breakerPause, OrphanInterval: sweep,
	}, issuance.Deps{
		DB: db, Log: n.cfg.log, Box: box, IssuerTypes: n.cfg.types, Checkpoint: n.hook(nameIssuance),
		Now:   func() time.Time { return time.Now().Add(n.cfg.ahead) },
		Peers: issuance.Peers{Inventory: others, RenewalScheduler: others, Audit: others, AsyncPoller: poller},
	})
	if err != nil {
		return err
	}
	if err := s.Bootstrap(n.group.Context()); err != nil {
		return err
	}
	if err := n.serve(nameIssuance, s.AuthzTable(), s.Register); err != nil {
		return err
	}
	n.group.Go(nameIssuance, s.Run)
	return nil
}

const (
	callTimeout  = 10 * time.Second
	breakerPause = 100 * time.Millisecond
)

func (n *node) startPoller() error {
	db, err := n.open(nameAsyncPoller)
	if err != nil {
		return err
	}
	journal, err := n.dial(nameAsyncPoller, nameIssuance)
	if err != nil {
		return err
	}
	pollTypes := n.cfg.pollTypes
	if pollTypes == nil {
		pollTypes = n.cfg.types
	}
	s, err := asyncpoller.New(asyncpoller.Config{
		PollInterval: often, CallTimeout: callTimeout, Slots: 64, SlotsPerIssuer: 8, BreakerPause: breakerPause,
	}, asyncpoller.Deps{
		DB: db, Log: n.cfg.log, IssuerTypes: pollTypes, Peers: asyncpoller.Peers{Issuance: journal}, Checkpoint: n.hook(nameAsyncPoller),
	})
	if err != nil {
		return err
	}
	if err := n.serve(nameAsyncPoller, s.AuthzTable(), s.Register); err != nil {
		return err
	}
	n.group.Go(nameAsyncPoller, s.Run)
	return nil
}
