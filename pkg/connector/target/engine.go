package target

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/connector/target/plan"
	"github.com/certctl/certctl/pkg/errs"
)

// Timeouts bound the parts of a deployment; zero takes the default.
type Timeouts struct {
	Command time.Duration // one command; 60 s
	Probe   time.Duration // one connection to an endpoint; 5 s
	Verify  time.Duration // until the endpoint serves the new certificate; 30 s
}

// Config of an engine. JournalDir must be on a disk that survives a restart, and belongs to one engine alone. Hook is for
// tests: it is called after each step with its label (the steps, and "swap-1", "swap-2", …), and its error fails the step.
type Config struct {
	JournalDir string
	Allow      AllowList
	Timeouts   Timeouts
	Hook       func(step string) error
}

// Deps of an engine. Now is for tests; nil is the clock.
type Deps struct {
	Logger *zap.Logger
	Now    func() time.Time
}

// Engine deploys to all targets of one host. It may be used from several goroutines: deployments to one target, or to one
// file, wait for each other.
type Engine struct {
	config Config
	log    *zap.Logger
	now    func() time.Time
	locks  *keyedLock
}

// NewEngine makes an engine and its journal directory. Call Recover before the first Deploy.
func NewEngine(config Config, deps Deps) (*Engine, error) {
	if config.JournalDir == "" {
		return nil, errors.New("make deployment engine: no journal directory")
	}
	err := os.MkdirAll(config.JournalDir, 0o700)
	if err != nil {
		return nil, fmt.Errorf("make deployment journal: %w", err)
	}
	t := &config.Timeouts
	t.Command = orDefault(t.Command, 60*time.Second)
	t.Probe = orDefault(t.Probe, 5*time.Second)
	t.Verify = orDefault(t.Verify, 30*time.Second)
	e := &Engine{config: config, log: deps.Logger, now: deps.Now, locks: newKeyedLock()}
	if e.log == nil {
		e.log = zap.NewNop()
	}
	if e.now == nil {
		e.now = time.Now
	}
	return e, nil
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Deploy puts the material in place and returns when it is served, or when what was there before is back. The error is an
// *errs.Error whose metadata name the step and the outcome; the result is filled in both cases. Kinds Invalid, Conflict and
// PermissionDenied need a change by somebody; others are worth a repetition. Deploying the same again changes nothing,
// unless bytes, modes, owners or the last reload are not as they must be.
func (e *Engine) Deploy(ctx context.Context, r Request) (Result, error) {
	d := &deployment{engine: e, force: r.Force, result: Result{Outcome: OutcomeUntouched, Step: StepPreflight}}
	defer d.release()
	err := d.begin(ctx, r)
	if err != nil {
		return d.end(err)
	}
	if d.unchanged() {
		return d.confirm(ctx)
	}
	err = d.prepare(ctx)
	if err != nil {
		return d.abandon(err)
	}
	return d.finish(ctx)
}

// Verify tells what a target serves now: by connecting to its endpoint, or, without one, by reading its files.
func (e *Engine) Verify(ctx context.Context, r VerifyRequest) (Served, error) {
	if r.Endpoint.Address == "" {
		return servedByFiles(r)
	}
	err := r.Endpoint.check(true)
	if err != nil {
		return Served{}, err
	}
	got, err := probe(ctx, r.Endpoint.named(r.Names), x509.UnknownPublicKeyAlgorithm, e.config.Timeouts.Probe)
	if err != nil {
		return Served{}, coded(err, StepVerify)
	}
	return got, nil
}

// begin is the preflight: everything that can be known to fail before a byte is written. It takes the locks.
func (d *deployment) begin(ctx context.Context, r Request) error {
	err := d.describe(r)
	if err != nil {
		return err
	}
	err = d.lock(ctx, "target:"+r.TargetID)
	if err != nil {
		return err
	}
	err = d.engine.recoverShelf(ctx, d.shelf)
	if err != nil {
		return err
	}
	b, err := r.Material.prepare(r.Endpoint.ServerName, d.engine.now())
	if err != nil {
		return err
	}
	d.secrets = append(d.secrets, b.key)
	d.intent.Endpoint = r.Endpoint.named(slices.Concat(r.Material.Names, b.leaf.DNSNames))
	d.intent.Want, d.intent.KeyType = b.prints, b.leaf.PublicKeyAlgorithm
	d.notAfter = b.leaf.NotAfter
	err = d.lockFiles(ctx)
	if err != nil {
		return err
	}
	err = d.locate(b)
	if err != nil {
		return err
	}
	return d.look(ctx)
}

// describe takes from the request what needs no host.
func (d *deployment) describe(r Request) error {
	var err error
	d.connector, err = New(r.Type)
	if err != nil {
		return err
	}
	err = Validate(r.Type, r.Config, r.Endpoint)
	if err != nil {
		return err
	}
	d.plan, err = d.connector.Plan(r.Config)
	if err != nil {
		return err
	}
	d.shelf, err = d.engine.shelf(r.TargetID)
	if err != nil {
		return err
	}
	d.runner = &runner{allow: d.engine.config.Allow, timeout: d.engine.config.Timeouts.Command}
	d.intent = &intent{TargetID: r.TargetID, Type: r.Type, Config: r.Config, Version: r.Version, Phase: phaseStage}
	return nil
}

// lockFiles keeps two targets that write the same file apart.
func (d *deployment) lockFiles(ctx context.Context) error {
	var keys []string
	for _, f := range d.plan.Files {
		p, err := resolve(f.Path)
		if err != nil {
			return err
		}
		key := "file:" + p.String()
		if slices.Contains(keys, key) {
			return errs.New(errs.Conflict, "PATH_REFUSED", "two of the target's paths lead to %s", p)
		}
		keys = append(keys, key)
	}
	return d.lock(ctx, slices.Sorted(slices.Values(keys))...)
}

// locate finds the files and computes what goes into each.
func (d *deployment) locate(b *bundle) error {
	id := newID()
	known := d.shelf.state().Paths
	for i, f := range d.plan.Files {
		s, err := locate(f, id, i)
		if err != nil {
			return coded(err, StepPreflight)
		}
		d.intent.Files = append(d.intent.Files, s)
		s.data = b.content(f.Content)
		s.New.SHA256 = digest(s.data)
		if f.Content.Secret() {
			d.secrets = append(d.secrets, s.data)
			d.warnOpenKey(s)
		}
		if !slices.Contains(known, s.place()) {
			err = s.overwritable()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *deployment) warnOpenKey(s *swapFile) {
	if s.New.Look.Mode&0o007 != 0 {
		d.result.Warnings = append(d.result.Warnings, fmt.Sprintf("the private key %s has mode %04o, as it had before: other users may read it; set key_mode", s.Path, s.New.Look.Mode))
	}
}

// look asks the server's configuration and remembers what is served now.
func (d *deployment) look(ctx context.Context) error {
	p, ok := d.connector.(plan.Preflighter)
	if ok {
		err := d.withHost(func(h plan.Host) error { return p.Preflight(ctx, h, d.intent.Config) })
		if err != nil {
			return err
		}
	}
	if d.intent.Endpoint.Address == "" {
		return nil
	}
	before, err := d.probe(ctx)
	if err == nil {
		d.intent.Before = before.Chain
	}
	return ctx.Err() // nothing served before a first deployment is no error
}

// content gives the bytes of a file.
func (b *bundle) content(c plan.Content) []byte {
	full := append([]*x509.Certificate{b.leaf}, b.chain...)
	switch c {
	case plan.FullChain:
		return encode(full...)
	case plan.Certificate:
		return encode(b.leaf)
	case plan.Chain:
		return encode(b.chain...)
	case plan.Key:
		return slices.Clone(b.key)
	case plan.Combined:
		return append(encode(full...), b.key...)
	default:
		return nil
	}
}

// coded makes every error one that can cross the wire and that people can read.
func coded(err error, step Step) *errs.Error {
	var e *errs.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, plan.ErrNotRunning):
		return errs.New(errs.Unavailable, "SERVER_NOT_RUNNING", "%s", err)
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return errs.From(err)
	default:
		return errs.New(errs.Unavailable, "TARGET_"+strings.ToUpper(string(step))+"_FAILED", "%s: %s", step, err).Wrap(err)
	}
}
