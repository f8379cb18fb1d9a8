// Package agent is certctl on the hosts that serve certificates: it makes private keys, has them certified, puts
// certificates in place and proves that they are served. It dials out to the control plane and listens on nothing.
package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/agent/internal/control"
	"github.com/certctl/certctl/agent/internal/disk"
	"github.com/certctl/certctl/agent/internal/identity"
	"github.com/certctl/certctl/agent/internal/journal"
	"github.com/certctl/certctl/agent/internal/keystore"
	"github.com/certctl/certctl/agent/internal/work"
	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/errs"
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
	// ServerCA is a file with the roots that the server's certificate must chain to; empty: the system's.
	ServerCA string
	// DataDir keeps identity, keys and journals. It belongs to one agent alone.
	DataDir string
	// Name must be unique among the agents; empty: the host name.
	Name string
	// JoinToken is needed for the first start only.
	JoinToken secretbox.Secret
	Labels    map[string]string
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
}

// Run is the agent until ctx ends (nil) or the server retires it (ErrRetired). A data directory that another agent has
// open, a refused join token and unusable settings are errors at once; a server that is away is waited for.
func Run(ctx context.Context, cfg Config, deps Deps) error {
	cfg, err := cfg.complete()
	if err != nil {
		return err
	}
	if err := disk.PrivateDir(cfg.DataDir); err != nil {
		return err
	}
	unlock, err := disk.Lock(filepath.Join(cfg.DataDir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	id, err := identity.Open(filepath.Join(cfg.DataDir, "identity"))
	if err != nil {
		return err
	}
	conn, err := control.Dial(cfg.Server, cfg.ServerCA, id)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	a := &agent{cfg: cfg, log: deps.Log, id: id, client: agentv1.NewAgentServiceClient(conn), host: hostInfo(), rotate: tick.NewKicker()}
	return a.run(ctx)
}

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
	worker, err := a.worker(ctx)
	if err != nil {
		return err
	}
	if !a.id.Enrolled() {
		if err := a.enrol(ctx); err != nil {
			return err
		}
	}
	stream := &control.Stream{Client: a.client, Host: a.host, Log: a.log, Work: worker.Kick, Rotate: a.rotate.Kick, Refused: a.refused}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return stream.Run(gctx) })
	g.Go(func() error { return worker.Run(gctx) })
	g.Go(func() error { return a.rotateLoop(gctx) })
	err = g.Wait()
	if errors.Is(err, ErrRetired) {
		a.log.Info("the server has retired this agent; it ends")
		return errors.Join(err, a.id.Forget())
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (a *agent) worker(ctx context.Context) (*work.Worker, error) {
	keys, err := keystore.Open(filepath.Join(a.cfg.DataDir, "keys"))
	if err != nil {
		return nil, err
	}
	results, err := journal.Open(filepath.Join(a.cfg.DataDir, "journal"))
	if err != nil {
		return nil, err
	}
	engine, err := target.NewEngine(target.Config{JournalDir: filepath.Join(a.cfg.DataDir, "deployments"), Allow: a.cfg.AllowCommands},
		target.Deps{Logger: a.log})
	if err != nil {
		return nil, err
	}
	// What a crash left half done is mended before anything new begins, and before the server is even asked.
	if err := engine.Recover(ctx); err != nil {
		a.log.Error("an interrupted deployment could not be mended; it is tried again with the next deployment of its target", zap.Error(err))
	}
	return work.New(work.Deps{Client: a.client, Keys: keys, Journal: results, Engine: engine, Log: a.log}), nil
}

// enrol trades the join token for a credential. It waits for a server that is away.
func (a *agent) enrol(ctx context.Context) error {
	if a.cfg.JoinToken.IsZero() {
		return errors.New("this agent is not enrolled and has no join token: make one with 'certctl agents join-token' and start it with --join-token")
	}
	var pause control.Backoff
	for {
		err := a.enrolOnce(ctx)
		if err == nil {
			return nil
		}
		if !errs.IsKind(err, errs.Unavailable, errs.DeadlineExceeded, errs.ResourceExhausted) {
			return err
		}
		wait := pause.Next()
		a.log.Warn("enrolment not possible yet", zap.Error(err), zap.Duration("retry_in", wait))
		if !control.Wait(ctx, wait) {
			return nil
		}
	}
}

func (a *agent) enrolOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := a.client.Enroll(ctx, &agentv1.EnrollRequest{
		JoinToken: a.cfg.JoinToken.Reveal(), Name: a.cfg.Name, InstanceId: a.id.InstanceID(), Host: a.host, Labels: a.cfg.Labels,
	})
	if err != nil {
		return fmt.Errorf("enrol as %q: %w", a.cfg.Name, err)
	}
	a.log.Info("enrolled", zap.String("agent_id", answer.GetAgentId()), zap.String("name", a.cfg.Name))
	return a.id.Enrol(answer.GetAgentId(), a.cfg.Name, secretbox.NewSecret(answer.GetCredential()))
}

// refused is called when the server does not take the credential.
func (a *agent) refused(ctx context.Context, cause error) error {
	back, err := a.id.Refuse()
	if err != nil || back {
		return err
	}
	if a.cfg.JoinToken.IsZero() {
		a.log.Error("the server refuses this agent's credential; enrol it again: 'certctl agents allow-reenrollment', then start it with --join-token", zap.Error(cause))
		return nil
	}
	a.log.Warn("the server refuses this agent's credential; enrolling again", zap.Error(cause))
	if err := a.enrolOnce(ctx); err != nil {
		a.log.Error("enrolling again was refused", zap.Error(err))
	}
	return nil
}

func (a *agent) rotateLoop(ctx context.Context) error {
	t, err := tick.New(a.cfg.Rotation, tick.DefaultJitter)
	if err != nil {
		return err
	}
	defer t.Stop()
	if a.id.Offered() {
		a.settle(ctx) // a crash came between the offer and the first use
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-a.rotate.C():
		}
		if err := a.rotateOnce(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("credential not rotated; the old one stays valid", zap.Error(err))
		}
	}
}

func (a *agent) rotateOnce(ctx context.Context) error {
	callCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := a.client.RotateCredential(callCtx, &agentv1.RotateCredentialRequest{})
	if err != nil {
		return fmt.Errorf("rotate credential: %w", err)
	}
	if err := a.id.Offer(secretbox.NewSecret(answer.GetCredential())); err != nil {
		return err
	}
	a.settle(ctx)
	return nil
}

// settle uses the offered credential once; the server's answer decides which one stays. While there is no answer both are
// kept, and the next rotation or start asks again.
func (a *agent) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := a.client.ListAssignments(ctx, &agentv1.ListAssignmentsRequest{AfterRevision: math.MaxInt64, MaxAssignments: 1}, grpc.WaitForReady(true))
	switch {
	case err == nil:
		err = a.id.Accept()
	case control.Unauthenticated(err):
		_, refuseErr := a.id.Refuse()
		err = errors.Join(err, refuseErr)
	}
	if err != nil {
		a.log.Warn("new credential not confirmed", zap.Error(err))
		return
	}
	a.log.Info("credential rotated")
}
