// Package site runs an installation to be measured: a Postgres of its own, and certctl as one process or as six, each the real program.
package site

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/certctl/certctl/deploy/bench/internal/gauge"
	"github.com/certctl/certctl/pkg/embeddedpg"
	"github.com/certctl/certctl/pkg/secretbox"
)

// Names of processes and services.
const (
	Postgres = "postgres"
	One      = "certctl" // the process that has everything
	Gateway  = "gateway"
)

// Services are all but the gateway.
func Services() []string {
	return []string{"audit", "inventory", "issuance", "renewalscheduler", "asyncpoller"}
}

// The bounds of starting and ending.
const (
	readyWithin = 10 * time.Minute // a start on the data of an older version migrates
	stopWithin  = 30 * time.Second
	lookEvery   = 10 * time.Millisecond
)

// Config says what to run.
type Config struct {
	// Dir is where everything lies; it survives Stop, and another Start goes on with the same data.
	Dir string
	// Binary is the program certctl.
	Binary string
	// Apart runs each service as a process of its own, as the chart does.
	Apart bool
	// Replicas of each service and of the gateway, where they run apart; 0 is one.
	Replicas int
	// Cores bounds the CPU time of each process of certctl, where they run apart; 0 does not.
	Cores float64
	// Environment are more settings, "NAME=value".
	Environment []string
	// Postgres are settings of postgresql.conf.
	Postgres map[string]string
}

// Site is an installation that runs.
type Site struct {
	// URL is the gateway's; Key an admin's API key; CA the gateway's CA, PEM; DatabaseURL that of the superuser.
	URL, Key, DatabaseURL string
	// Metrics is where one process serves its metrics, "host:port".
	Metrics string
	CA      []byte
	// Gateways are the "host:port" of all replicas of the gateway.
	Gateways []string
	// Secret is CERTCTL_INTERNAL_SECRET; Addresses are where services listen that run apart, by name.
	Secret    secretbox.Secret
	Addresses map[string]string
	// Ready is how long the last start of certctl has taken until it was ready.
	Ready time.Duration

	cfg      Config
	postgres *embeddedpg.Server
	shared   []string
	mu       sync.Mutex
	running  map[string]*process
}

// process is a program that runs.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	free func() // gives back its control group
}

// stop ends a program as an init system does.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(stopWithin):
		_ = p.cmd.Process.Kill()
		<-p.done
		return errors.New("it did not end in order")
	}
}

// postgresSettings are those of a database server of some size, and the statistics that are read.
func postgresSettings() map[string]string {
	return map[string]string{
		"max_connections": "150", "shared_buffers": "1GB", "effective_cache_size": "8GB", "max_wal_size": "4GB", "checkpoint_timeout": "15min",
		"random_page_cost": "1.1", "shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_utility": "on",
	}
}

// Open starts the Postgres of a directory; Start then starts certctl.
func Open(ctx context.Context, cfg Config) (*Site, error) {
	settings := postgresSettings()
	for name, value := range cfg.Postgres {
		settings[name] = value
	}
	server, err := embeddedpg.Start(ctx, embeddedpg.Config{DataDir: filepath.Join(cfg.Dir, "database"), Log: zap.NewNop(), Settings: settings})
	if err != nil {
		return nil, fmt.Errorf("start Postgres: %w", err)
	}
	s := &Site{cfg: cfg, postgres: server, DatabaseURL: server.URL(), Addresses: map[string]string{}, running: map[string]*process{}}
	if err := errors.Join(s.settle(ctx), s.extend(ctx)); err != nil {
		return nil, errors.Join(err, s.Stop(ctx))
	}
	return s, nil
}

// extend makes the extension that counts statements.
func (s *Site) extend(ctx context.Context) error {
	conn, err := s.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements"); err != nil {
		return fmt.Errorf("pg_stat_statements, which comes with Postgres' contrib, is needed: %w", err)
	}
	return nil
}

// Connect opens a connection of the superuser.
func (s *Site) Connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, s.DatabaseURL)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	return conn, nil
}

// settle makes the secrets of the installation, once, and finds free ports.
func (s *Site) settle(ctx context.Context) error {
	dir := filepath.Join(s.cfg.Dir, "certctl")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	secret, err := kept(filepath.Join(dir, "bench-secret"), hex.EncodeToString)
	if err != nil {
		return err
	}
	encryption, err := kept(filepath.Join(dir, "bench-encryption-key"), base64.StdEncoding.EncodeToString)
	if err != nil {
		return err
	}
	s.Secret, s.Key = secretbox.NewSecret(secret), "bench-key-"+secret[:24]
	address, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	s.URL = "https://" + address
	if s.Metrics, err = freeAddress(ctx); err != nil {
		return err
	}
	s.shared = []string{
		"HOME=" + os.Getenv("HOME"), "PATH=" + os.Getenv("PATH"), "CERTCTL_DATABASE_URL=" + s.DatabaseURL, "CERTCTL_DATABASE_ROLE_SECRET=" + secret,
		"CERTCTL_INTERNAL_SECRET=" + secret, "CERTCTL_ENCRYPTION_KEY=" + encryption, "CERTCTL_DATA_DIR=" + dir, "CERTCTL_LISTEN_ADDR=" + address,
		"CERTCTL_AUTH_SECRET=bench:admin:" + s.Key, "CERTCTL_AGENT_JOIN_TOKEN=" + JoinToken, "CERTCTL_LOCAL_AGENT=false",
		// The load comes with one key from one address.
		"CERTCTL_RATE_LIMIT_PER_CALLER=1000000", "CERTCTL_RATE_LIMIT_PER_ADDRESS=1000000",
	}
	if s.cfg.Apart {
		if err := s.separate(ctx); err != nil {
			return err
		}
	}
	s.shared = append(s.shared, s.cfg.Environment...)
	return nil
}

// separate gives each service a port, which all its replicas have, each at an address of its own.
func (s *Site) separate(ctx context.Context) (err error) {
	s.cfg.Replicas = max(s.cfg.Replicas, 1)
	for _, name := range Services() {
		if s.Addresses[name], err = freeAddress(ctx); err != nil {
			return err
		}
	}
	var names []string
	for replica := range s.cfg.Replicas {
		host, _, _ := net.SplitHostPort(at(s.Address(), replica)) // of our own making
		names = append(names, host)
	}
	s.shared = append(s.shared, "CERTCTL_TLS_NAMES="+strings.Join(names, ","))
	return nil
}

// at is where a replica listens, whose first is at address.
func at(address string, replica int) string {
	_, port, _ := net.SplitHostPort(address) // of our own making
	return net.JoinHostPort(netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + replica)}).String(), port)
}

// JoinToken is what agents may join with.
const JoinToken = "a standing token of the bench"

// kept gives 32 random bytes as text that is the same at the next start.
func kept(path string, encode func([]byte) string) (string, error) {
	text, err := os.ReadFile(path)
	if err == nil {
		return string(text), nil
	}
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	if err := os.WriteFile(path, []byte(encode(b)), 0o600); err != nil {
		return "", fmt.Errorf("keep secret: %w", err)
	}
	return encode(b), nil
}

func freeAddress(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return lis.Addr().String(), lis.Close()
}

// Start starts certctl, with more settings if there are any, and waits until it is ready.
func (s *Site) Start(ctx context.Context, environment ...string) error {
	began := time.Now()
	env := slices.Concat(s.shared, environment)
	if s.cfg.Apart {
		if err := s.migrate(ctx); err != nil {
			return err
		}
		if err := s.startApart(ctx, env); err != nil {
			return err
		}
	} else if err := s.run(ctx, One, append(env, "CERTCTL_METRICS_LISTEN_ADDR="+s.Metrics), "serve"); err != nil {
		return err
	}
	if err := s.untilReady(ctx); err != nil {
		return err
	}
	s.Ready = time.Since(began)
	return nil
}

// startApart starts all replicas. The first gateway makes the CA that the others take.
func (s *Site) startApart(ctx context.Context, env []string) error {
	for replica := range s.cfg.Replicas {
		for _, name := range Services() {
			if err := s.runReplica(ctx, name, replica, env); err != nil {
				return err
			}
		}
	}
	s.Gateways = nil
	for replica := range s.cfg.Replicas {
		if err := s.runReplica(ctx, Gateway, replica, env); err != nil {
			return err
		}
		s.Gateways = append(s.Gateways, at(s.Address(), replica))
		if err := s.untilReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// runReplica starts one process, named "inventory" or "inventory-1".
func (s *Site) runReplica(ctx context.Context, service string, replica int, env []string) error {
	name := service
	if replica > 0 {
		name = fmt.Sprintf("%s-%d", service, replica)
	}
	listen := "CERTCTL_LISTEN_ADDR=" + at(s.Address(), replica)
	if service != Gateway {
		listen = "CERTCTL_GRPC_LISTEN_ADDR=" + at(s.Addresses[service], replica)
	}
	env = append(slices.Clone(env), listen)
	for _, peer := range Services() { // there is no Service of Kubernetes to spread the calls: each replica has peers of its own number
		env = append(env, "CERTCTL_"+strings.ToUpper(peer)+"_ADDR="+at(s.Addresses[peer], replica))
	}
	return s.run(ctx, name, env, "serve", "--service", service)
}

func (s *Site) migrate(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, s.cfg.Binary, "migrate")
	cmd.Env = s.shared
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("migrate: %w\n%s", err, out)
	}
	return nil
}

// Dir is the data directory of certctl.
func (s *Site) Dir() string { return filepath.Join(s.cfg.Dir, "certctl") }

// Restart ends a process that runs apart, starts it again and waits until the installation is ready.
func (s *Site) Restart(ctx context.Context, name string) error {
	if err := s.End(name); err != nil {
		return err
	}
	if err := s.runReplica(ctx, name, 0, s.shared); err != nil {
		return err
	}
	return s.untilReady(ctx)
}

// End ends a process.
func (s *Site) End(name string) error {
	s.mu.Lock()
	p := s.running[name]
	delete(s.running, name)
	s.mu.Unlock()
	if p == nil {
		return fmt.Errorf("%s does not run", name)
	}
	if err := p.stop(); err != nil {
		return fmt.Errorf("end %s: %w", name, err)
	}
	return nil
}

// Beside starts this program once more, with other arguments: for what must not be in the way of the load. It has all cores.
func (s *Site) Beside(ctx context.Context, name string, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	return s.start(ctx, name, 0, os.Environ(), self, args...)
}

func (s *Site) run(ctx context.Context, name string, env []string, args ...string) error {
	return s.start(ctx, name, s.cfg.Cores, env, s.cfg.Binary, args...)
}

// start starts a process; cores of 0 do not bound its CPU time.
func (s *Site) start(ctx context.Context, name string, cores float64, env []string, binary string, args ...string) error {
	p := &process{cmd: exec.CommandContext(context.WithoutCancel(ctx), binary, args...), log: filepath.Join(s.cfg.Dir, name+".log"), done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = env, out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", name, err), out.Close())
	}
	if cores > 0 {
		if p.free, err = confine(name, p.cmd.Process.Pid, cores); err != nil {
			return errors.Join(err, p.cmd.Process.Kill(), out.Close())
		}
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // ProcessState tells how it ended
		_ = out.Close()
		if p.free != nil {
			p.free()
		}
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[name] = p
	return nil
}

// untilReady waits for the gateway's /ready, and takes its CA.
func (s *Site) untilReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		if s.isReady(ctx) {
			return nil
		}
		if err := s.Alive(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("certctl is not ready: %w", ctx.Err())
		case <-time.After(lookEvery):
		}
	}
}

func lastLines(text []byte) []byte {
	const most = 4 << 10
	return bytes.TrimSpace(text[max(0, len(text)-most):])
}

// Alive is an error with the last lines of a process that has ended by itself.
func (s *Site) Alive() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, p := range s.running {
		select {
		case <-p.done:
			text, _ := os.ReadFile(p.log)
			return fmt.Errorf("%s has ended: %s\n%s", name, p.cmd.ProcessState, lastLines(text))
		default:
		}
	}
	return nil
}

func (s *Site) isReady(ctx context.Context) bool {
	ca, err := os.ReadFile(filepath.Join(s.cfg.Dir, "certctl", "ca.crt"))
	if err != nil {
		return false
	}
	s.CA = ca
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: s.TLS(), DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/ready", nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

// TLS trusts the gateway.
func (s *Site) TLS() *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CA)
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
}

// Address is the gateway's "host:port".
func (s *Site) Address() string { return strings.TrimPrefix(s.URL, "https://") }

// Processes are those that run, and this one as "load".
func (s *Site) Processes() gauge.Processes {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := gauge.Processes{Postgres: {s.postgres.PID()}, "load": {os.Getpid()}}
	for name, p := range s.running {
		service, _, _ := strings.Cut(name, "-")
		all[service] = append(all[service], p.cmd.Process.Pid)
	}
	return all
}

// Signal sends a signal to a process by its name, such as "inventory" or "inventory-2".
func (s *Site) Signal(name string, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.running[name]
	if !ok {
		return fmt.Errorf("%s does not run", name)
	}
	return p.cmd.Process.Signal(sig)
}

// StopCertctl ends certctl and lets Postgres run.
func (s *Site) StopCertctl() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.running {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
	var problems []error
	for name, p := range s.running {
		if err := p.stop(); err != nil {
			problems = append(problems, fmt.Errorf("stop %s: %w", name, err))
		}
	}
	s.running = map[string]*process{}
	return errors.Join(problems...)
}

// Stop ends everything.
func (s *Site) Stop(ctx context.Context) error {
	return errors.Join(s.StopCertctl(), s.postgres.Stop(context.WithoutCancel(ctx)))
}
