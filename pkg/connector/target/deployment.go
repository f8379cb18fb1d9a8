package target

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/certctl/certctl/pkg/connector/target/plan"
	"github.com/certctl/certctl/pkg/errs"
)

// rollbackGrace is added to the time that a rollback has for its reload and its verification.
const rollbackGrace = 30 * time.Second

// maxPatience bounds how long a connector waits for a server to show that it reloads.
const maxPatience = 10 * time.Second

// deployment is one run of the engine on one target.
type deployment struct {
	engine    *Engine
	connector plan.Connector
	plan      plan.Plan
	runner    *runner
	shelf     shelf
	intent    *intent
	notAfter  time.Time
	force     bool
	secrets   [][]byte
	unlock    []func()
	result    Result
}

func (d *deployment) lock(ctx context.Context, keys ...string) error {
	unlock, err := d.engine.locks.acquire(ctx, keys...)
	if err == nil {
		d.unlock = append(d.unlock, unlock)
	}
	return err
}

// release closes what is open, clears the keys and lets others go on.
func (d *deployment) release() {
	if d.intent != nil {
		for _, f := range d.intent.Files {
			f.close()
		}
	}
	for _, s := range d.secrets {
		clear(s)
	}
	for _, u := range d.unlock {
		u()
	}
}

// step runs one step and then the hook of its label.
func (d *deployment) step(s Step, do func() error) error {
	d.result.Step = s
	err := do()
	if err != nil {
		return err
	}
	return d.hook(string(s))
}

func (d *deployment) hook(label string) error {
	if d.engine.config.Hook == nil {
		return nil
	}
	return d.engine.config.Hook(label)
}

// withHost gives a connector an empty directory of its own.
func (d *deployment) withHost(do func(plan.Host) error) error {
	dir, err := d.shelf.temp()
	if err != nil {
		return fmt.Errorf("make a directory for the check: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // swept at the next deployment if it cannot be
	return do(plan.Host{Runner: d.runner, TempDir: dir, Patience: min(maxPatience, d.engine.config.Timeouts.Verify)})
}

// unchanged tells whether every file is already as it must be.
func (d *deployment) unchanged() bool {
	for _, f := range d.intent.Files {
		if !f.unchanged() {
			return false
		}
	}
	return true
}

// confirm ends a deployment that has nothing to write. The server is told to reload only when it is not known to have read
// these files, or serves something else.
func (d *deployment) confirm(ctx context.Context) (Result, error) {
	now := d.newState()
	known := d.shelf.state()
	if !d.force && known.Digest == now.Digest && known.Reloaded && d.servedNow(ctx) {
		d.result.Outcome = OutcomeUnchanged
		return d.end(d.shelf.remember(now))
	}
	pending := now
	pending.Reloaded = false
	err := d.shelf.remember(pending)
	if err == nil {
		err = d.step(StepReload, func() error { return d.reload(ctx) })
	}
	if err == nil {
		err = d.step(StepVerify, func() error { return d.verify(ctx) })
	}
	if err == nil {
		err = d.step(StepCommit, func() error { return d.shelf.remember(now) })
	}
	if err == nil {
		d.result.Outcome = OutcomeUnchanged
	} else if errors.Is(err, plan.ErrNotRunning) {
		d.result.Outcome = OutcomeKept
	}
	return d.end(err)
}

func (d *deployment) servedNow(ctx context.Context) bool {
	if d.intent.Endpoint.Address == "" {
		return d.verify(ctx) == nil
	}
	got, err := d.probe(ctx)
	d.result.Served = got
	return err == nil && got.same(d.intent.Want)
}

// prepare does all that leaves the old files alone. The journal knows the names before the first file is made, so that a crash
// leaves no key lying about.
func (d *deployment) prepare(ctx context.Context) error {
	err := d.step(StepStage, d.stage)
	if err != nil {
		return err
	}
	err = d.step(StepValidate, func() error { return d.check(ctx) })
	if err != nil {
		return err
	}
	return d.step(StepJournal, d.journal)
}

func (d *deployment) stage() error {
	err := d.shelf.record(d.intent)
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	for _, f := range d.intent.Files {
		err = f.stage()
		if err != nil {
			return fmt.Errorf("write the new %s beside %s: %w", f.Kind, f.place(), err)
		}
	}
	return nil
}

func (d *deployment) check(ctx context.Context) error {
	c, ok := d.connector.(plan.Checker)
	if !ok {
		return nil
	}
	staged := make(map[string]string, len(d.intent.Files))
	for _, f := range d.intent.Files {
		staged[f.Path] = f.Dir + "/" + f.Staged
	}
	err := d.withHost(func(h plan.Host) error { return c.Check(ctx, h, d.intent.Config, staged) })
	var e *errs.Error
	if errors.As(err, &e) && e.Reason() == "COMMAND_FAILED" {
		return errs.New(errs.Conflict, "CHECK_FAILED", "the server's checker refuses the new files: %s", e.Message())
	}
	return err
}

// journal backs up the old files and writes down that the swap begins.
func (d *deployment) journal() error {
	for _, f := range d.intent.Files {
		err := f.keep()
		if err != nil {
			return fmt.Errorf("back up %s: %w", f.place(), err)
		}
	}
	err := d.syncFiles()
	if err != nil {
		return err
	}
	d.intent.Phase = phaseSwap
	return d.shelf.record(d.intent)
}

// finish goes from a complete journal to the end, and back when something fails. Recover enters here, too.
func (d *deployment) finish(ctx context.Context) (Result, error) {
	err := d.step(StepSwap, d.swap)
	if err == nil {
		err = d.step(StepFsync, d.syncFiles)
	}
	if err == nil {
		err = d.step(StepReload, func() error { return d.reload(ctx) })
	}
	if err == nil {
		err = d.step(StepVerify, func() error { return d.verify(ctx) })
	}
	if err == nil {
		err = d.step(StepCommit, func() error { return d.shelf.remember(d.newState()) })
	}
	switch {
	case err == nil:
		d.result.Outcome = OutcomeServed
		d.tidy()
		return d.end(nil)
	case errors.Is(err, plan.ErrNotRunning):
		return d.keepNew(err)
	default:
		return d.rollBack(ctx, err)
	}
}

func (d *deployment) swap() error {
	for i, f := range d.intent.Files {
		err := f.swap()
		if err != nil {
			return fmt.Errorf("swap %s: %w", f.place(), err)
		}
		err = d.hook(fmt.Sprintf("swap-%d", i+1))
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *deployment) syncFiles() error {
	for _, f := range d.intent.Files {
		err := f.sync()
		if err != nil {
			return fmt.Errorf("sync directory %s: %w", f.Dir, err)
		}
	}
	return nil
}

func (d *deployment) reload(ctx context.Context) error {
	r, ok := d.connector.(plan.Reloader)
	if !ok {
		return nil
	}
	err := d.withHost(func(h plan.Host) error { return r.Reload(ctx, h, d.intent.Config) })
	d.result.Reloaded = d.result.Reloaded || err == nil
	return err
}

// tidy removes what is no longer needed. What cannot be removed now stays in the journal, and Recover removes it.
func (d *deployment) tidy() {
	var err error
	for _, f := range d.intent.Files {
		err = errors.Join(err, f.clean())
	}
	err = errors.Join(err, d.syncFiles())
	if err == nil {
		err = d.shelf.forget()
	}
	if err != nil {
		d.result.Warnings = append(d.result.Warnings, "some temporary files could not be removed yet: "+err.Error())
	}
}

// abandon ends a deployment that failed before the swap.
func (d *deployment) abandon(cause error) (Result, error) {
	d.tidy()
	return d.end(cause)
}

// keepNew ends a deployment to a server that is not running; see OutcomeKept.
func (d *deployment) keepNew(cause error) (Result, error) {
	d.result.Outcome = OutcomeKept
	s := d.newState()
	s.Reloaded = false
	err := d.shelf.remember(s)
	if err != nil {
		return d.end(errors.Join(cause, err))
	}
	d.tidy()
	return d.end(cause)
}

// rollBack puts the old files back and has the server read them, also when the caller has stopped waiting.
func (d *deployment) rollBack(ctx context.Context, cause error) (Result, error) {
	t := d.engine.config.Timeouts
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.Command+t.Verify+rollbackGrace)
	defer cancel()
	err := d.restore()
	if err != nil {
		d.result.Outcome = OutcomeBroken
		return d.end(errs.New(errs.Internal, "ROLLBACK_FAILED", "%s; and the old files could not be put back: %s", coded(cause, d.result.Step).Message(), err))
	}
	d.result.Outcome, d.result.RolledBack = OutcomeRolledBack, true
	again := d.reload(ctx)
	if len(d.intent.Before) > 0 {
		var unseen error
		d.result.Served, unseen = d.waitServed(ctx, d.intent.Before)
		d.result.RollbackVerified = unseen == nil
		again = errors.Join(again, unseen)
	}
	err = d.shelf.remember(state{Paths: d.shelf.state().Paths, Digest: d.oldDigest(), Reloaded: again == nil})
	if err == nil {
		d.tidy()
	}
	return d.end(d.rolledBack(cause, again))
}

func (d *deployment) restore() error {
	d.intent.Phase = phaseRollback
	noted := d.shelf.record(d.intent) // on a full disk the rename is still possible, and better than giving up
	var err error
	for i := len(d.intent.Files) - 1; i >= 0; i-- {
		err = errors.Join(err, d.intent.Files[i].restore())
	}
	err = errors.Join(err, d.syncFiles())
	if noted != nil {
		d.result.Warnings = append(d.result.Warnings, "the journal could not be written during the rollback: "+noted.Error())
	}
	return err
}

// rolledBack says what failed and what is there now.
func (d *deployment) rolledBack(cause, again error) error {
	e := coded(cause, d.result.Step)
	note := "the old files are back"
	if d.result.RollbackVerified {
		note += " and what was served before is served"
	}
	if again != nil {
		note += ", but the server did not take them: " + coded(again, StepReload).Message()
	}
	return errs.New(e.Kind(), e.Reason(), "%s; %s", e.Message(), note).Wrap(e.Unwrap())
}

// end fills in the rest of the result.
func (d *deployment) end(err error) (Result, error) {
	if d.runner != nil {
		d.result.Output = d.runner.printed.String()
	}
	if err == nil {
		d.result.Step = ""
		return d.result, nil
	}
	e := coded(err, d.result.Step).With("step", string(d.result.Step)).With("outcome", string(d.result.Outcome))
	return d.result, e
}

func (d *deployment) newState() state {
	s := state{Version: d.intent.Version, Reloaded: true, Digest: d.digest(func(f *swapFile) *image { return &f.New })}
	for _, f := range d.intent.Files {
		s.Paths = append(s.Paths, f.place())
	}
	return s
}

func (d *deployment) oldDigest() string {
	return d.digest(func(f *swapFile) *image { return f.Old })
}

// digest is over the paths and bytes of all files.
func (d *deployment) digest(of func(*swapFile) *image) string {
	h := sha256.New()
	for _, f := range d.intent.Files {
		sum := "none"
		if i := of(f); i != nil {
			sum = i.SHA256
		}
		_, _ = io.WriteString(h, f.Path+"\x00"+sum+"\x00")
	}
	return hex.EncodeToString(h.Sum(nil))
}
