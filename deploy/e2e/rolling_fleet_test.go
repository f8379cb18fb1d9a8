package e2e_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/certctl/certctl/agent"
	"github.com/certctl/certctl/pkg/connector/targettest"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/pkg/tick"
)

// fleetToken is what the agents of a fleet join with.
const fleetToken = "a standing token for the fleet"

// fleetQuotas are the chart's connections of each service.
var fleetQuotas = map[string]int{"inventory": 14, "issuance": 12, "renewalscheduler": 8, "asyncpoller": 8, "audit": 8}

// fleetPods are the processes of a service while one is being replaced: two, and the one that comes. Each has its part of the quota.
const fleetPods = 3

// balancer passes connections to the processes of a service in turn and leaves out who takes none, as a Service of Kubernetes does.
type balancer struct {
	backends []string
	wire     *wire
	next     atomic.Uint32
	passing  sync.WaitGroup
}

// balance gives the address of a balancer that lives as long as the test. The wire is the network before it; nil: a sound one.
func balance(t *testing.T, backends []string, w *wire) (address string) {
	t.Helper()
	var lc net.ListenConfig
	lis, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	b := &balancer{backends: backends, wire: w}
	b.passing.Go(func() { b.accept(ctx, lis) })
	t.Cleanup(func() {
		cancel()
		_ = lis.Close()
		b.passing.Wait()
	})
	return lis.Addr().String()
}

func (b *balancer) accept(ctx context.Context, lis net.Listener) {
	for {
		client, err := lis.Accept()
		if err != nil {
			return // the test ends
		}
		b.passing.Go(func() { b.pass(ctx, client) })
	}
}

func (b *balancer) pass(ctx context.Context, client net.Conn) {
	defer func() { _ = client.Close() }()
	b.wire.setUp(ctx)
	server := b.dial(ctx)
	if server == nil {
		return
	}
	defer func() { _ = server.Close() }()
	defer context.AfterFunc(ctx, func() { _, _ = client.Close(), server.Close() })()
	var copying sync.WaitGroup
	copying.Go(func() { b.copyHalf(ctx, server, client) })
	copying.Go(func() { b.copyHalf(ctx, client, server) })
	copying.Wait()
}

// copyHalf copies one direction to its end; what goes the other way may go on.
func (b *balancer) copyHalf(ctx context.Context, to, from net.Conn) {
	if b.wire == nil {
		_, _ = io.Copy(to, from)
	} else {
		b.wire.carry(ctx, to, from)
	}
	if c, ok := to.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
}

// dial gives nil when no process takes connections.
func (b *balancer) dial(ctx context.Context) net.Conn {
	d := net.Dialer{Timeout: time.Second}
	for range b.backends {
		address := b.backends[int(b.next.Add(1))%len(b.backends)]
		if c, err := d.DialContext(ctx, "tcp", address); err == nil {
			return c
		}
	}
	return nil
}

// replica is one of the processes of a service.
type replica struct {
	*process

	service string
	probe   string // where a service answers probes, and a gateway its clients
}

// fleet is an installation with two replicas of everything, and many agents.
type fleet struct {
	*installation

	t        *testing.T
	database string
	places   map[string][]string // where the processes of each service listen
	wires    map[string]*wire    // the network before each service; nil: sound
	edge     []string            // settings of gateways alone
	replicas []*replica
	agents   []string               // ids
	errors   *observer.ObservedLogs // what agents say that should not be
}

// startFleet starts two replicas of all services and of the gateway, each a process, on one Postgres, and agents in this process.
//
// Services find all replicas of a peer behind a balancer. If ROLLING_NAME is a name that this machine resolves to 127.0.0.2,
// 127.0.0.3 and 127.0.0.4, they find them by that name instead, as by the headless Services of the chart.
func startFleet(t *testing.T, agents int) *fleet {
	t.Helper()
	f := newFleet(t, testpg.NewServer(t, testpg.ServerConfig{}).URL())
	f.settle()
	f.boot()
	f.enrol(agents)
	return f
}

// newFleet makes a fleet on a Postgres of its own; nothing runs yet.
func newFleet(t *testing.T, database string) *fleet {
	t.Helper()
	dir := filepath.Join(testpg.Dir(t), "data")
	return &fleet{t: t, database: database, places: map[string][]string{},
		installation: &installation{dir: dir, processes: map[string]*process{}, caFile: filepath.Join(dir, "ca.crt"), key: rootKey}}
}

// boot migrates, and starts two replicas of everything.
func (f *fleet) boot() {
	f.t.Helper()
	migrate := exec.CommandContext(f.t.Context(), binaries.certctl, "migrate")
	migrate.Env = f.shared
	out, err := migrate.CombinedOutput()
	require.NoError(f.t, err, "%s", out)
	for n := range 2 {
		for _, s := range servicesOf() {
			f.run(s, n)
		}
	}
	for n := range 2 {
		f.run("gateway", n)
		f.ready(f.t) // the first makes the CA of both
	}
	for _, r := range f.replicas {
		f.wait(f.t, r.name+" to be ready", func() bool { return f.serves(r) })
	}
	f.t.Cleanup(func() { // all at once, before each is waited for
		for _, r := range f.replicas {
			_ = r.cmd.Process.Signal(syscall.SIGTERM)
		}
	})
}

// servicesOf an installation, without the gateway.
func servicesOf() []string {
	return []string{"audit", "inventory", "issuance", "renewalscheduler", "asyncpoller"}
}

// settle decides where everybody is, and makes the settings that all share.
func (f *fleet) settle() {
	f.t.Helper()
	key, secret := make([]byte, 32), make([]byte, 32)
	_, _ = rand.Read(key)
	_, _ = rand.Read(secret)
	f.shared = environment(people, "CERTCTL_DATABASE_URL="+f.database, "CERTCTL_INTERNAL_SECRET="+hex.EncodeToString(secret),
		"CERTCTL_ENCRYPTION_KEY="+base64.StdEncoding.EncodeToString(key), "CERTCTL_DATA_DIR="+f.dir, "CERTCTL_AGENT_JOIN_TOKEN="+fleetToken,
		"CERTCTL_SERVICE_REPLICAS=2")
	var shares []string
	for _, s := range servicesOf() {
		var at string
		at, f.places[s] = f.meet(os.Getenv("ROLLING_NAME"), f.wires[s])
		f.shared = append(f.shared, "CERTCTL_"+strings.ToUpper(s)+"_ADDR="+at)
		shares = append(shares, fmt.Sprintf("%s=%d", s, fleetQuotas[s]))
	}
	f.shared = append(f.shared, "CERTCTL_DATABASE_POOL_QUOTAS="+strings.Join(shares, ","))
	var at string
	at, f.places["gateway"] = f.meet("", f.wires["gateway"])
	f.url = "https://" + at
}

// meet gives the address of a service, and where its processes listen.
func (f *fleet) meet(name string, w *wire) (at string, places []string) {
	f.t.Helper()
	if name == "" {
		for range fleetPods {
			places = append(places, targettest.FreeAddress(f.t))
		}
		return balance(f.t, places, w), places
	}
	var resolver net.Resolver
	addresses, err := resolver.LookupHost(f.t.Context(), name)
	require.NoError(f.t, err, "ROLLING_NAME")
	_, port, err := net.SplitHostPort(targettest.FreeAddress(f.t))
	require.NoError(f.t, err)
	for n := range fleetPods {
		address := fmt.Sprintf("127.0.0.%d", n+2)
		require.Contains(f.t, addresses, address, "ROLLING_NAME must resolve to it")
		places = append(places, net.JoinHostPort(address, port))
	}
	return net.JoinHostPort(name, port), places
}

// run starts a process of a service at its n-th place.
func (f *fleet) run(service string, n int) *replica {
	f.t.Helper()
	r := &replica{service: service, probe: f.places[service][n]}
	settings := append([]string{"CERTCTL_LISTEN_ADDR=" + r.probe}, f.edge...)
	if service != "gateway" {
		r.probe = targettest.FreeAddress(f.t)
		settings = []string{"CERTCTL_GRPC_LISTEN_ADDR=" + f.places[service][n], "CERTCTL_HEALTH_LISTEN_ADDR=" + r.probe}
	}
	r.process = &process{name: fmt.Sprintf("%s %d", service, n+1), path: binaries.certctl, args: []string{"serve", "--service", service},
		env: append(slices.Clone(f.shared), settings...)}
	f.server = append(f.server, r.name)
	f.replicas = append(f.replicas, r)
	f.add(f.t, r.process)
	return r
}

// of gives the processes of a service.
func (f *fleet) of(service string) (all []*replica) {
	for _, r := range f.replicas {
		if r.service == service {
			all = append(all, r)
		}
	}
	return all
}

// serves tells whether a replica is ready, from itself and not through a balancer.
func (f *fleet) serves(r *replica) bool {
	f.t.Helper()
	if r.service == "gateway" {
		one := f.as(f.key)
		one.url = "https://" + r.probe
		status, _, err := one.try(f.t.Context(), http.MethodGet, "/ready", nil)
		return err == nil && status == http.StatusOK
	}
	conn, err := grpc.NewClient("passthrough:///"+r.probe, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(f.t, err)
	defer func() { _ = conn.Close() }()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(f.t.Context(), &grpc_health_v1.HealthCheckRequest{})
	return err == nil && answer.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING
}

// enrol starts agents and waits until all are online. They are real ones, in this process because as many processes would need some
// gigabytes.
func (f *fleet) enrol(n int) {
	f.t.Helper()
	core, logs := observer.New(zap.ErrorLevel)
	f.errors = logs
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.t.Context()))
	var g errgroup.Group
	for i := range n {
		name := fmt.Sprintf("node-%03d", i)
		g.Go(func() error {
			return agent.Run(ctx, agent.Config{Server: f.url, ServerCA: f.caFile, Name: name, DataDir: filepath.Join(f.dir, "agents", name),
				JoinToken: secretbox.NewSecret(fleetToken)}, agent.Deps{Log: zap.New(core).Named(name)})
		})
	}
	f.t.Cleanup(func() {
		cancel()
		require.NoError(f.t, g.Wait())
	})
	began := time.Now()
	f.allOnline(n)
	f.t.Logf("%d agents enrolled in %s", n, time.Since(began).Round(100*time.Millisecond))
}

// allOnline waits for all agents. There are no more than those: nobody has enrolled twice.
func (f *fleet) allOnline(n int) {
	f.t.Helper()
	f.wait(f.t, "all agents to be online", func() bool {
		f.agents = rows(f.t, f.database, "SELECT id FROM inventory.agents WHERE status = 'ONLINE' ORDER BY name")
		return len(f.agents) == n
	})
	require.Len(f.t, rows(f.t, f.database, "SELECT id FROM inventory.agents"), n)
}

// restart ends a process and starts it again in its place, as on hosts of their own.
func (f *fleet) restart(r *replica) {
	f.t.Helper()
	stopped := f.end(r)
	began := time.Now()
	r.start(f.t)
	f.wait(f.t, r.name+" to be ready again", func() bool { return f.serves(r) })
	f.t.Logf("%s: ended in %s, ready again in %s", r.name, stopped.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
}

// replace starts another process and ends the old one when that is ready, as a Deployment of the chart does.
func (f *fleet) replace(r *replica) {
	f.t.Helper()
	began := time.Now()
	other := f.run(r.service, fleetPods-1)
	f.wait(f.t, other.name+" to be ready", func() bool { return f.serves(other) })
	started := time.Since(began)
	f.server = slices.DeleteFunc(f.server, func(name string) bool { return name == r.name })
	f.t.Logf("%s: %s ready in %s, ended in %s", r.name, other.name, started.Round(time.Millisecond), f.end(r).Round(time.Millisecond))
}

// end ends a process as Kubernetes does.
func (f *fleet) end(r *replica) time.Duration {
	f.t.Helper()
	took, err := r.stop(f.t)
	require.NoError(f.t, err, "%s did not end in order", r.name)
	require.Less(f.t, took, mostStopping, r.name)
	return took
}

// newClient gives a client with connections of its own.
func (f *fleet) newClient(http2 bool) *http.Client {
	f.t.Helper()
	ca, err := os.ReadFile(f.caFile)
	require.NoError(f.t, err)
	roots := x509.NewCertPool()
	require.True(f.t, roots.AppendCertsFromPEM(ca))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: http2}
	f.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Timeout: mostRepeating, Transport: transport}
}

// watchConnections looks at how many connections each role has until stop, which gives the most that were seen. It goes on when the
// database is away for a while.
func (f *fleet) watchConnections(ctx context.Context) (stop func() map[string]int) {
	f.t.Helper()
	config, err := pgxpool.ParseConfig(f.database)
	require.NoError(f.t, err)
	config.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(ctx, config)
	require.NoError(f.t, err)
	most := map[string]int{}
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		for ; ctx.Err() == nil; _ = tick.Wait(ctx, 5*interval) {
			answer, err := pool.Query(ctx, `SELECT substr(usename, length('certctl_') + 1), count(*)::int FROM pg_stat_activity WHERE usename LIKE 'certctl\_%' GROUP BY 1`)
			if err != nil {
				continue
			}
			var role string
			var n int
			_, _ = pgx.ForEachRow(answer, []any{&role, &n}, func() error {
				most[role] = max(most[role], n)
				return nil
			})
		}
	})
	return func() map[string]int {
		cancel()
		watching.Wait()
		pool.Close()
		require.Len(f.t, most, len(servicesOf()), "nobody was seen")
		return most
	}
}
