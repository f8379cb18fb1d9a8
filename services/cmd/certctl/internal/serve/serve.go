// Package serve runs certctl: everything in one process, or one service as its Deployment does. The wiring is the same; in
// one process the services talk through in-memory listeners with every interceptor on.
package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/resolver/dns"

	"github.com/certctl/certctl/agent"
	"github.com/certctl/certctl/gateway"
	"github.com/certctl/certctl/pkg/embeddedpg"
	"github.com/certctl/certctl/pkg/heap"
	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/home"
	"github.com/certctl/certctl/services/cmd/certctl/internal/servercert"
	"github.com/certctl/certctl/services/cmd/certctl/internal/settings"
)

// A stop takes at most 15 s: the edge drains, then the services, then the connections, then Postgres.
const (
	startWait       = time.Minute
	migrateWait     = 5 * time.Minute // beside a Postgres that is just being made
	edgeDrain       = 3 * time.Second
	edgeShutdown    = 4 * time.Second
	drainTimeout    = 3 * time.Second
	drainNotice     = time.Second
	serviceShutdown = 5 * time.Second
	connectionsStop = time.Second
	postgresStop    = 3 * time.Second
)

// Peers find new replicas of a service when they connect anew.
const (
	connectionAge   = 2 * time.Minute
	resolveInterval = time.Second
)

// Migrate makes and brings up the schemas and roles.
func Migrate(ctx context.Context, cfg settings.Server) error {
	if cfg.Postgres.URL.IsZero() {
		return errors.New("CERTCTL_DATABASE_URL is not set: 'certctl serve' migrates its private Postgres by itself")
	}
	p, err := newProcess(cfg, "migrate")
	if err != nil {
		return err
	}
	defer p.end()
	return p.migrate(ctx, migrateWait)
}

// All runs everything in this process until ctx ends. out gets the words for people.
func All(ctx context.Context, cfg settings.Server, out io.Writer) (err error) {
	started := time.Now()
	if err := Check(cfg); err != nil {
		return err // before anything is made
	}
	heap.Keep()
	p, err := newProcess(cfg, "")
	if err != nil {
		return err
	}
	p.memory = rpc.NewMemoryNetwork()
	if err := p.secrets(); err != nil {
		return err
	}
	unlock, err := p.dir.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	var postgres *embeddedpg.Server
	if p.databaseURL.IsZero() {
		if postgres, err = p.startPostgres(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stopPostgres(ctx, postgres)) }()
	}
	defer p.end()
	if err := p.migrate(ctx, startWait); err != nil {
		return err
	}
	inner := run.NewGroup(context.WithoutCancel(ctx), run.Config{ShutdownTimeout: serviceShutdown})
	if err := p.startServices(ctx, inner, Services()...); err != nil {
		inner.Stop(err)
		return errors.Join(err, inner.Wait())
	}
	outer := run.NewGroup(ctx, run.Config{ShutdownTimeout: edgeShutdown})
	if postgres != nil {
		outer.Go("postgres", func(ctx context.Context) error { return p.watch(ctx, postgres.Done()) })
	}
	err = p.startEdge(outer, func(url string) error {
		return banner(out, p, url, time.Since(started))
	})
	if err != nil {
		outer.Stop(err)
		inner.Stop(err)
		return errors.Join(err, outer.Wait(), inner.Wait())
	}
	return p.wait(outer, inner)
}

// secrets makes those that the database will stand on, before there is one: a database without them is then known to have lost
// them.
func (p *process) secrets() (err error) {
	if p.secret.IsZero() {
		if p.secret, err = p.dir.InternalSecret(); err != nil {
			return err
		}
	}
	if _, err := p.box(); err != nil {
		return err
	}
	if own := unshared(p.cfg); len(own) > 0 {
		p.log.Info("secrets come from the data directory: keep it, and before another process uses this database give both the same settings",
			zap.Strings("settings", own), zap.String("path", string(p.dir)))
	}
	return nil
}

// unshared names the secrets that processes on one database must share and that this one has in its data directory alone.
func unshared(cfg settings.Server) []string {
	if cfg.Postgres.URL.IsZero() {
		return nil // nobody else has the private Postgres
	}
	var names []string
	if cfg.Secrets.Internal.IsZero() {
		names = append(names, "CERTCTL_INTERNAL_SECRET")
	}
	if cfg.Secrets.Encryption.IsZero() {
		names = append(names, "CERTCTL_ENCRYPTION_KEY")
	}
	if cfg.Auth.Secret.IsZero() && cfg.Auth.Type == gateway.AuthAPIKey {
		names = append(names, "CERTCTL_AUTH_SECRET")
	}
	return names
}

// One runs one service, or the gateway, until ctx ends.
func One(ctx context.Context, cfg settings.Server, name string) error {
	if cfg.Secrets.Internal.IsZero() {
		return errors.New("CERTCTL_INTERNAL_SECRET is not set: services that run apart know each other by it; make one with: openssl rand -hex 32")
	}
	heap.Keep()
	p, err := newProcess(cfg, name)
	if err != nil {
		return err
	}
	defer p.end()
	// A replica that is restarted has another address; half a minute, grpc's own pace, would be an outage.
	dns.SetMinResolutionInterval(resolveInterval)
	inner := run.NewGroup(context.WithoutCancel(ctx), run.Config{ShutdownTimeout: serviceShutdown})
	outer := run.NewGroup(ctx, run.Config{ShutdownTimeout: edgeShutdown})
	err = p.startOne(ctx, inner, outer, name)
	if err != nil {
		if ctx.Err() != nil {
			err = nil // told to end while it waited for its database
		}
		outer.Stop(err)
		inner.Stop(err)
		return errors.Join(err, outer.Wait(), inner.Wait())
	}
	return p.wait(outer, inner)
}

// startOne starts what operators look at before the service, which may wait long for its database.
func (p *process) startOne(ctx context.Context, inner, outer *run.Group, name string) error {
	if name != nameGateway && p.databaseURL.IsZero() {
		return errors.New("CERTCTL_DATABASE_URL is not set: services that run apart share one Postgres")
	}
	if name == nameGateway {
		if err := p.startGateway(outer, nil); err != nil {
			return err
		}
		return p.startMetrics(outer)
	}
	if err := p.startProbe(outer); err != nil {
		return err
	}
	p.registry(name) // what is not there yet would not be shown
	if err := p.startMetrics(outer); err != nil {
		return err
	}
	return p.startServices(ctx, inner, name)
}

// wait lets the outside end first, so that what was accepted is finished by services that still work.
func (p *process) wait(outer, inner *run.Group) error {
	outer.Go("services", func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-inner.Context().Done():
			return context.Cause(inner.Context())
		}
	})
	err := outer.Wait()
	inner.Stop(nil)
	return errors.Join(err, inner.Wait())
}

// end closes what is open, and does not wait for long: a Postgres that hangs never answers the good-bye of a connection.
func (p *process) end() {
	closed := run.Go(func() error {
		p.close()
		return nil
	})
	limit := time.NewTimer(connectionsStop)
	defer limit.Stop()
	select {
	case err := <-closed:
		if err != nil {
			p.log.Error("closing connections failed", zap.Error(err))
		}
	case <-limit.C:
		p.log.Warn("Postgres does not let go of its connections; they end with this process")
	}
}

func (p *process) startPostgres(ctx context.Context) (*embeddedpg.Server, error) {
	server, err := embeddedpg.Start(ctx, embeddedpg.Config{DataDir: string(p.dir), BinDir: p.cfg.Postgres.BinDir, Log: p.log.Named("postgres")})
	if err != nil {
		return nil, err
	}
	p.databaseURL = secretbox.NewSecret(server.URL())
	return server, nil
}

func stopPostgres(ctx context.Context, server *embeddedpg.Server) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), postgresStop)
	defer cancel()
	return server.Stop(ctx)
}

// watch ends the process when its private Postgres is gone: nobody else starts it again, and the next start does.
func (p *process) watch(ctx context.Context, ended <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-ended:
		return fmt.Errorf("the private Postgres has ended by itself; %s says why; start certctl again", p.dir.Path("postgres.log"))
	}
}

// startServices builds the services and serves them.
func (p *process) startServices(ctx context.Context, g *run.Group, names ...string) error {
	for _, name := range names {
		db, err := p.open(ctx, name)
		if err != nil {
			return err
		}
		s, err := p.build(name, db)
		if err != nil {
			return err
		}
		p.serves(name, s)
		if err := p.listen(ctx, g, name, s, db); err != nil {
			return err
		}
	}
	for _, f := range p.bootstrap {
		if err := f(ctx); err != nil {
			return fmt.Errorf("prepare the first start: %w", err)
		}
	}
	for _, name := range names {
		s := p.services[name]
		g.Go(name, func(ctx context.Context) error { return s.Run(rpcctx.WithCaller(ctx, rpcctx.ServiceCaller(name))) })
	}
	return nil
}

func (p *process) listen(ctx context.Context, g *run.Group, name string, s service, db *pg.DB) error {
	server, err := p.server(name, s, db)
	if err != nil {
		return err
	}
	lis, err := p.listener(ctx, name)
	if err != nil {
		return fmt.Errorf("serve %s: %w", name, err)
	}
	g.Go(name+" server", func(ctx context.Context) error { return server.Serve(ctx, lis) })
	return nil
}

func (p *process) listener(ctx context.Context, name string) (net.Listener, error) {
	if p.memory != nil {
		return p.memory.Listen(name)
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", p.cfg.Peers.GRPCListenAddr)
}

// startEdge starts the gateway, the metrics and the agent on this host; ready is called with the gateway's URL.
func (p *process) startEdge(g *run.Group, ready func(url string) error) error {
	if err := p.startMetrics(g); err != nil {
		return err
	}
	return p.startGateway(g, func(url string) error {
		if err := p.startAgent(g, url); err != nil {
			return err
		}
		return ready(url)
	})
}

func (p *process) startGateway(g *run.Group, ready func(url string) error) error {
	backends, err := p.dialAll(nameGateway, gateway.Backends()...)
	if err != nil {
		return err
	}
	cfg := gateway.Config{
		ListenAddr: p.cfg.ListenAddr, TLSCertFile: p.cfg.TLS.CertFile, TLSKeyFile: p.cfg.TLS.KeyFile,
		AuthType: p.cfg.Auth.Type, AuthSecret: p.cfg.Auth.Secret, AuthNoneAcknowledged: p.cfg.Auth.NoneAck, CORSOrigins: p.cfg.Auth.Origins,
		DrainTimeout: edgeDrain,
		CallerRate:   rateOf(p.cfg.Auth.CallerRate, callerBurst), AddressRate: rateOf(p.cfg.Auth.AddressRate, addressBurst),
	}
	if cfg.AuthType == gateway.AuthAPIKey && cfg.AuthSecret.IsZero() {
		if cfg.AuthSecret, err = p.dir.APIKey(); err != nil {
			return err
		}
	}
	deps := gateway.Deps{Backends: backends, Log: p.log.Named(nameGateway), Metrics: p.registry(nameGateway)}
	if p.memory != nil {
		deps.Loops = p.loops
	}
	if cfg.TLSCertFile == "" {
		source, err := servercert.New(p.dir, servercert.Config{Names: p.cfg.TLS.Names, CACertFile: p.cfg.TLS.CACertFile, CAKeyFile: p.cfg.TLS.CAKeyFile},
			deps.Log, time.Now)
		if err != nil {
			return err
		}
		deps.GetCertificate = source.GetCertificate
	}
	gw, err := gateway.New(cfg, deps)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	lis, err := lc.Listen(g.Context(), "tcp", p.cfg.ListenAddr)
	if err != nil {
		return fmt.Errorf("listen for the gateway (CERTCTL_LISTEN_ADDR): %w", err)
	}
	g.Go(nameGateway, func(ctx context.Context) error { return gw.Serve(ctx, lis) })
	p.log.Info("gateway listens", zap.String("address", lis.Addr().String()))
	url := "https://" + reachable(lis.Addr().String())
	// For the client on this host.
	if err := p.dir.Write(home.URLFile, []byte(url+"\n"), 0o644); err != nil || ready == nil {
		return err
	}
	return ready(url)
}

// How many times a second's requests may come at once: a page that opens asks for many things, and agents return together.
const (
	callerBurst  = 3
	addressBurst = 4
)

// rateOf makes a bound of a setting, where 0 is none.
func rateOf(perSecond, burst int) gateway.Rate {
	if perSecond == 0 {
		return gateway.Rate{PerSecond: -1}
	}
	return gateway.Rate{PerSecond: float64(perSecond), Burst: burst * perSecond}
}

// reachable answers an address that this host can connect to.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return address
}

func (p *process) startMetrics(g *run.Group) error {
	if p.cfg.Process.MetricsAddr == "" {
		return nil
	}
	server := metrics.NewServer(metrics.Config{Addr: p.cfg.Process.MetricsAddr}, metrics.Deps{
		Logger: p.log.Named("metrics"), Gatherers: p.gatherers, Routes: map[string]http.Handler{"GET /loops": loopsHandler(p.loops)},
	})
	g.Go("metrics", server.Run)
	return nil
}

// startAgent starts the agent of this host, enrolled by a join token like any other.
func (p *process) startAgent(g *run.Group, url string) error {
	if !p.cfg.Agents.Local {
		return nil
	}
	if p.cfg.TLS.CertFile != "" {
		p.log.Warn("no agent on this host: the gateway has a certificate of its own; start certctl-agent with a name that is in it")
		return nil
	}
	cfg := agent.Config{Server: url, ServerCA: p.dir.Path(home.CAFile), DataDir: filepath.Join(string(p.dir), "agent"), AllowCommands: p.cfg.Agents.Commands}
	enrolled, err := agent.Enrolled(cfg.DataDir)
	if err != nil {
		return err
	}
	if !enrolled {
		if cfg.JoinToken, err = p.joinToken(g.Context()); err != nil {
			return fmt.Errorf("make a join token for the agent on this host: %w", err)
		}
	}
	log := p.log.Named("agent")
	g.Go("agent", func(ctx context.Context) error {
		err := agent.Run(ctx, cfg, agent.Deps{Log: log})
		if err != nil && ctx.Err() == nil {
			// The control plane goes on without the agent of this host.
			log.Error("the agent on this host has ended", zap.Error(err))
		}
		return nil
	})
	return nil
}

func (p *process) joinToken(ctx context.Context) (secretbox.Secret, error) {
	conn, err := p.dial(nameGateway, nameInventory)
	if err != nil {
		return secretbox.Secret{}, err
	}
	ctx = rpcctx.WithCaller(ctx, rpcctx.Caller{Type: rpcctx.User, ID: "certctl serve", Role: rpcctx.RoleAdmin})
	// Nobody else has the private Postgres. On a shared one, an agent of the same host name may be another process's.
	alone := p.cfg.Postgres.URL.IsZero()
	answer, err := inventoryv1.NewAgentRegistryServiceClient(conn).CreateJoinToken(ctx,
		&inventoryv1.CreateJoinTokenRequest{MaxUses: 1, AllowReenrollment: alone})
	if err != nil {
		return secretbox.Secret{}, err
	}
	return secretbox.NewSecret(answer.GetJoinToken().GetToken()), nil
}

// banner says where to go.
func banner(out io.Writer, p *process, url string, took time.Duration) error {
	dir := string(p.dir)
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, dir); err == nil && filepath.IsLocal(rel) {
			dir = rel
		}
	}
	_, err := fmt.Fprintf(out, `
certctl is ready (%.1f s).

  URL       %s  (to try the API: %s/docs)
  API key   %s
  CA        %s

Try next, in another terminal:

  bin/certctl agents list
  bin/certctl issuers list
  bin/certctl audit verify

A first certificate, from a server of yours to a served renewal, takes five minutes: see README.md.

`, took.Seconds(), url, url, filepath.Join(dir, home.APIKeyFile), filepath.Join(dir, home.CAFile))
	return err
}

// Check tells what is wrong with settings that parse: what the gateway would refuse at its start.
func Check(cfg settings.Server) error {
	check := gateway.Config{ListenAddr: cfg.ListenAddr, AuthType: cfg.Auth.Type, AuthSecret: cfg.Auth.Secret,
		AuthNoneAcknowledged: cfg.Auth.NoneAck, CORSOrigins: cfg.Auth.Origins}
	if check.AuthSecret.IsZero() {
		check.AuthSecret = secretbox.NewSecret(strings.Repeat("-", 32)) // the key that serve will make
	}
	return check.Validate()
}
