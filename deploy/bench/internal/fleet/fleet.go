// Package fleet is many agents in one process. Each has a TLS connection, a credential and a stream of its own, says what the real
// agent says, and comes back as that does; what it has not is a host: no data directory, no keys that are kept, no servers that serve.
package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/credentials"

	"github.com/certctl/certctl/pkg/load"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
)

// Config says where the agents belong.
type Config struct {
	// URL is the gateway's, https://HOST:PORT.
	URL string
	// CAFile has the roots that the gateway's certificate must chain to, PEM.
	CAFile string
	// Credentials are those of the agents; there are as many agents. Enroll and Seed give some.
	Credentials []Credential
	// Rate is how many agents start in a second; 0: all at once.
	Rate float64
	// Log is told what goes wrong; nil: nobody.
	Log *zap.Logger
}

// Credential is what an agent shows who it is with.
type Credential struct {
	AgentID string
	Secret  secretbox.Secret
}

// Fleet is agents that run. Its methods are safe for concurrent use.
type Fleet struct {
	cfg  Config
	host string // the address with the port
	tls  credentials.TransportCredentials
	log  *zap.Logger

	cancel context.CancelFunc
	agents sync.WaitGroup

	connected, welcomes, losses, reported, failed atomic.Int64

	mu      sync.Mutex
	changed chan struct{} // closed and made anew when connected grows
	created map[string]time.Time
	started map[string]time.Time
	delays  *load.Histogram
}

// Start starts the agents and does not wait for them. Close ends them, and so does the end of ctx.
func Start(ctx context.Context, cfg Config) (*Fleet, error) {
	f, err := newFleet(cfg)
	if err != nil {
		return nil, err
	}
	if err := enoughFiles(len(cfg.Credentials)); err != nil {
		return nil, err
	}
	ctx, f.cancel = context.WithCancel(ctx)
	for i, c := range cfg.Credentials {
		var after time.Duration
		if cfg.Rate > 0 {
			after = time.Duration(float64(i) / cfg.Rate * float64(time.Second))
		}
		f.agents.Go(func() {
			if tick.Wait(ctx, after) == nil {
				f.run(ctx, c)
			}
		})
	}
	return f, nil
}

func newFleet(cfg Config) (*Fleet, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme != "https" || u.Port() == "" {
		return nil, fmt.Errorf("fleet: %q must be a URL such as https://127.0.0.1:8443", cfg.URL)
	}
	pem, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("fleet: read the gateway's CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("fleet: there is no certificate in %s", cfg.CAFile)
	}
	f := &Fleet{
		cfg: cfg, host: u.Host, log: cfg.Log, changed: make(chan struct{}),
		// No cache of sessions: each connection is a whole handshake, as it is for the real agent.
		tls: handshakes{
			credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, ServerName: u.Hostname(), RootCAs: roots}), make(chan struct{}, handshakesAtOnce),
		},
		created: map[string]time.Time{}, started: map[string]time.Time{}, delays: load.NewHistogram(),
	}
	if f.log == nil {
		f.log = zap.NewNop()
	}
	return f, nil
}

// Close ends all agents and waits for them.
func (f *Fleet) Close() {
	f.cancel()
	f.agents.Wait()
}

// Connected counts the agents whose stream the server has welcomed and that have it still.
func (f *Fleet) Connected() int { return int(f.connected.Load()) }

// Counts are what has happened in a fleet.
type Counts struct {
	// Welcomes are the streams that the server has welcomed, Losses those that ended without the server asking for it.
	Welcomes, Losses int
	// Reported is the work whose result the server has taken, Failed what could not be done or reported.
	Reported, Failed int
}

// Counts gives what has happened so far.
func (f *Fleet) Counts() Counts {
	return Counts{Welcomes: int(f.welcomes.Load()), Losses: int(f.losses.Load()), Reported: int(f.reported.Load()), Failed: int(f.failed.Load())}
}

// WaitConnected waits until n agents are connected at once.
func (f *Fleet) WaitConnected(ctx context.Context, n int) error {
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		if f.Connected() >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("fleet: %d of %d agents connected: %w", f.Connected(), n, context.Cause(ctx))
		}
	}
}

// welcome counts an agent as connected until the function it gives is called.
func (f *Fleet) welcome() (gone func()) {
	f.welcomes.Add(1)
	f.connected.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.changed)
	f.changed = make(chan struct{})
	return func() { f.connected.Add(-1) }
}

// Created says that a job of a certificate was created at that time. When an agent starts on the certificate, before or after, the time
// from there to here goes into Delays, once.
func (f *Fleet) Created(certificateID string, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if start, ok := f.started[certificateID]; ok && !start.Before(at) {
		f.delays.Add(start.Sub(at))
		delete(f.started, certificateID)
		return
	}
	f.created[certificateID] = at
}

// begun says that an agent has been given work on a certificate.
func (f *Fleet) begun(certificateID string, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if created, ok := f.created[certificateID]; ok {
		f.delays.Add(at.Sub(created))
		delete(f.created, certificateID)
		return
	}
	f.started[certificateID] = at
}

// Delays are the times from a job's creation to an agent's start on it.
func (f *Fleet) Delays() *load.Histogram { return f.delays }

// Waiting counts the jobs of Created that no agent has started on.
func (f *Fleet) Waiting() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.created)
}

// handshakesAtOnce is how many agents are in their handshake at once. Real ones have a host each; here they share a few cores, and if all
// began at once, each would be so slow that the gateway, which waits 2 s for the first frame after a handshake, would close its connection.
const handshakesAtOnce = 64

// handshakes are transport credentials that take turns.
type handshakes struct {
	credentials.TransportCredentials
	turns chan struct{}
}

// ClientHandshake implements credentials.TransportCredentials.
func (h handshakes) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	select {
	case h.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	defer func() { <-h.turns }()
	return h.TransportCredentials.ClientHandshake(ctx, authority, raw)
}

// Clone implements credentials.TransportCredentials.
func (h handshakes) Clone() credentials.TransportCredentials {
	return handshakes{h.TransportCredentials.Clone(), h.turns}
}

// explain says what a connection that cannot be made may need.
func explain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("%w (connections to one address need a port each; see net.ipv4.ip_local_port_range)", err)
	}
	return err
}
