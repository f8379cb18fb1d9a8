// Package agent is certctl on the hosts that serve certificates: it makes private keys, has them certified, puts
// certificates in place and proves that they are served. It dials out to the control plane and listens on nothing, unless it is
// told to answer probes.
package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/agent/internal/control"
	"github.com/certctl/certctl/agent/internal/identity"
	"github.com/certctl/certctl/agent/internal/journal"
	"github.com/certctl/certctl/agent/internal/keystore"
	"github.com/certctl/certctl/agent/internal/work"
	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/disk"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	"github.com/certctl/certctl/pkg/version"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

// DefaultRotation is how often an agent takes a new credential.
const DefaultRotation = 30 * 24 * time.Hour

// callTimeout bounds one call to the server.
const callTimeout = 20 * time.Second

// ErrRetired says that the server has retired this agent: it is to end and not to come back.
var ErrRetired = control.ErrRetired

// Config says where the agent belongs and what it may do.
type Config struct {
	// Server is the gateway's URL, https://HOST:PORT.
	Server string
	// ServerCA is a file with the roots that the server's certificate must chain to, or a directory whose *.crt and *.pem
	// files have them; it is read again for each connection. Empty: the system's.
	ServerCA string
	// DataDir keeps identity, keys and journals. It belongs to one agent alone.
	DataDir string
	// Name must be unique among the agents; empty: the host name.
	Name string
	// JoinToken is needed for the first start only.
	JoinToken secretbox.Secret
	// JoinTokenFile has the join token in the place of JoinToken; it is read for each enrolment.
	JoinTokenFile string
	// WaitToEnrol has an agent that is refused wait for the cure, which is on the server's side, instead of ending.
	WaitToEnrol bool
	// HealthListen is an address for plain HTTP, where probes are answered; empty: none.
	HealthListen string
	Labels       map[string]string
	// AllowCommands are the programs that targets may have run, by absolute path.
	AllowCommands []string
	// Rotation is how often to take a new credential; 0: DefaultRotation.
	Rotation time.Duration
}

// Deps is what the agent works with.
type Deps struct {
	Log *zap.Logger
}

type agent struct {
	cfg    Config
	log    *zap.Logger
	id     *identity.Store
	client agentv1.AgentServiceClient
	host   *agentv1.HostInfo
	rotate *tick.Kicker
	// condition is what probes are told.
	condition condition
}

// Run is the agent until ctx ends (nil) or the server retires it (ErrRetired). A data directory that another agent has
// open, a refused join token (without WaitToEnrol) and unusable settings are errors at once; a server that is away is waited
// for.
func Run(ctx context.Context, cfg Config, deps Deps) error {
	cfg, err := cfg.complete()
	if err != nil {
		return err
	}
	if err := disk.HomeDir(cfg.DataDir); err != nil {
		return fmt.Errorf("open data directory: %w", err)
	}
	unlock, err := disk.Lock(filepath.Join(cfg.DataDir, "lock"))
	if other, ok := errors.AsType[*disk.InUseError](err); ok {
		return fmt.Errorf("another agent works in this directory (pid %d); give each its own data directory", other.PID)
	}
	if err != nil {
		return err
	}
	defer unlock()
	id, err := identity.Open(identityDir(cfg.DataDir))
	if err != nil {
		return err
	}
	if id.Retired() {
		return fmt.Errorf("%w; to enrol this host anew, remove %s", ErrRetired, identityDir(cfg.DataDir))
	}
	log := deps.Log
	if log == nil {
		log = zap.NewNop()
	}
	conn, err := control.Dial(cfg.Server, cfg.ServerCA, id, log)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	a := &agent{cfg: cfg, log: log, id: id, client: agentv1.NewAgentServiceClient(conn), host: hostInfo(), rotate: tick.NewKicker()}
	stop, err := a.serveHealth(ctx)
	if err != nil {
		return err
	}
	defer stop()
	return a.run(ctx)
}

// Enrolled tells whether the agent of a data directory has an identity with a credential, so that it needs no join token. It
// changes nothing there and may be asked while the agent runs. A retired agent has none, and Run refuses it.
func Enrolled(dataDir string) (bool, error) { return identity.Exists(identityDir(dataDir)) }

func identityDir(dataDir string) string { return filepath.Join(dataDir, "identity") }

func (c Config) complete() (Config, error) {
	if c.DataDir == "" {
		return c, errors.New("the agent needs a data directory")
	}
	if c.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return c, fmt.Errorf("find the host name; set the agent's name: %w", err)
		}
		c.Name = name
	}
	if c.Rotation <= 0 {
		c.Rotation = DefaultRotation
	}
	for _, p := range c.AllowCommands {
		if !filepath.IsAbs(p) {
			return c, fmt.Errorf("allowed command %q must be an absolute path", p)
		}
	}
	return c, nil
}

func hostInfo() *agentv1.HostInfo {
	name, err := os.Hostname()
	if err != nil {
		name = "" // shown only
	}
	return &agentv1.HostInfo{Hostname: name, Os: runtime.GOOS, Architecture: runtime.GOARCH, Version: version.Version, Capabilities: target.Types()}
}

func (a *agent) run(ctx context.Context) error {
	if !a.id.Enrolled() {
		if err := a.enrol(ctx); err != nil || ctx.Err() != nil {
			return err
		}
	}
	a.condition.set(true, false, nil)
	engine, err := target.NewEngine(target.Config{JournalDir: filepath.Join(a.cfg.DataDir, "deployments"), Allow: a.cfg.AllowCommands},
		target.Deps{Logger: a.log})
	if err != nil {
		return err
	}
	worker, err := a.worker(engine)
	if err != nil {
		return err
	}
	stream := &control.Stream{Client: a.client, Host: a.host, Log: a.log, Credential: a.id.Credential,
		Work: worker.Kick, Rotate: a.rotate.Kick, Refused: a.refused,
		State: func(cause error) { a.condition.set(true, cause == nil, cause) }}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return stream.Run(gctx) })
	g.Go(func() error { return a.rotateLoop(gctx) })
	g.Go(func() error {
		a.recover(gctx, engine)
		return worker.Run(gctx)
	})
	err = g.Wait()
	if errors.Is(err, ErrRetired) {
		a.log.Info("the server has retired this agent; it ends")
		return errors.Join(err, a.id.Retire())
	}
	if ctx.Err() == nil {
		return err
	}
	return nil // told to end, which it did
}

// recover mends what a crash left half done before anything new begins. That can take a while, in which the agent is seen to
// be there.
func (a *agent) recover(ctx context.Context, engine *target.Engine) {
	if err := engine.Recover(ctx); err != nil && ctx.Err() == nil {
		a.log.Error("an interrupted deployment could not be mended; it is tried again with the next deployment of its target", zap.Error(err))
	}
}

func (a *agent) worker(engine *target.Engine) (*work.Worker, error) {
	keys, err := keystore.Open(filepath.Join(a.cfg.DataDir, "keys"))
	if err != nil {
		return nil, err
	}
	results, err := journal.Open(filepath.Join(a.cfg.DataDir, "journal"))
	if err != nil {
		return nil, err
	}
	return work.New(work.Deps{Client: a.client, Keys: keys, Journal: results, Engine: engine, Log: a.log}), nil
}
