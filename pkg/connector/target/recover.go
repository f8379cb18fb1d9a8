package target

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/errs"
)

// Recover ends what a crash interrupted, for all targets: a deployment that had not begun to swap is undone, one that had is
// completed, reloaded and verified, and rolled back if that fails. It returns an error only for targets whose files are
// still not consistent; those are tried again at their next Deploy.
func (e *Engine) Recover(ctx context.Context) error {
	list, err := os.ReadDir(e.config.JournalDir)
	if err != nil {
		return fmt.Errorf("read the deployment journal: %w", err)
	}
	var failed error
	for _, entry := range list {
		if !entry.IsDir() || !targetID.MatchString(entry.Name()) {
			continue
		}
		err = e.recoverTarget(ctx, entry.Name())
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("recover target %s: %w", entry.Name(), err))
		}
	}
	return failed
}

func (e *Engine) recoverTarget(ctx context.Context, id string) error {
	unlock, err := e.locks.acquire(ctx, "target:"+id)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := e.shelf(id)
	if err != nil {
		return err
	}
	return e.recoverShelf(ctx, s)
}

// recoverShelf needs the target's lock.
func (e *Engine) recoverShelf(ctx context.Context, s shelf) error {
	err := s.sweep()
	if err != nil {
		return fmt.Errorf("remove what a check left: %w", err)
	}
	i, err := s.intent()
	if err != nil {
		return errs.New(errs.Internal, "JOURNAL_UNREADABLE", "the deployment journal %s cannot be read: %s", s.intentPath(), err)
	}
	if i == nil {
		return nil
	}
	d := &deployment{engine: e, shelf: s, intent: i, runner: &runner{allow: e.config.Allow, timeout: e.config.Timeouts.Command}}
	defer d.release()
	err = d.reopen(ctx)
	if err != nil {
		return err
	}
	return d.resume(ctx)
}

// reopen makes a deployment of its journal again.
func (d *deployment) reopen(ctx context.Context) error {
	var err error
	d.connector, err = New(d.intent.Type)
	if err != nil {
		return err
	}
	keys := make([]string, len(d.intent.Files))
	for i, f := range d.intent.Files {
		err = f.open()
		if err != nil {
			return err
		}
		keys[i] = "file:" + f.place()
	}
	return d.lock(ctx, slices.Sorted(slices.Values(keys))...)
}

func (d *deployment) resume(ctx context.Context) error {
	if d.intent.Phase == phaseStage {
		d.tidy()
		d.report("interrupted deployment undone", nil)
		return nil
	}
	f, err := d.fate()
	if err != nil {
		return err
	}
	var result error
	switch {
	case f == foreign && d.intent.Phase == phaseSwap:
		return d.letBe()
	case f == forward && d.intent.Phase == phaseSwap:
		_, result = d.finish(ctx)
	default:
		_, result = d.rollBack(ctx, errs.New(errs.Unavailable, "DEPLOYMENT_INTERRUPTED", "the deployment was interrupted"))
	}
	if d.result.Outcome == OutcomeBroken {
		return result
	}
	d.report("interrupted deployment ended", result)
	return nil
}

// fate is what can become of an interrupted swap.
type fate int

const (
	forward fate = iota // all new files are there, in place or staged
	back                // some are not
	foreign             // somebody else changed a file since
)

func (d *deployment) fate() (fate, error) {
	result := forward
	for _, f := range d.intent.Files {
		one, err := f.fate()
		if err != nil {
			return back, err
		}
		result = max(result, one)
	}
	return result, nil
}

func (s *swapFile) fate() (fate, error) {
	now, err := s.read(s.Name)
	if err != nil {
		return back, err
	}
	staged, err := s.read(s.Staged)
	if err != nil {
		return back, err
	}
	isNew := now != nil && now.SHA256 == s.New.SHA256
	isOld := now == nil && s.Old == nil || now != nil && s.Old != nil && now.SHA256 == s.Old.SHA256
	switch {
	case isNew, isOld && staged != nil && *staged == s.New:
		return forward, nil
	case isOld:
		return back, nil
	default:
		return foreign, nil
	}
}

// letBe ends a swap whose files somebody has changed since: what they put there is not ours to replace. The next Deploy
// does everything anew.
func (d *deployment) letBe() error {
	err := d.shelf.remember(state{})
	if err != nil {
		return err
	}
	d.tidy()
	d.report("interrupted deployment dropped because its files were changed meanwhile", nil)
	return nil
}

func (d *deployment) report(message string, err error) {
	d.engine.log.Info(message, zap.String("target_id", d.intent.TargetID), zap.String("outcome", string(d.result.Outcome)),
		zap.Strings("warnings", d.result.Warnings), zap.Error(err))
}

// swap puts the staged file in place; after a crash it may be there already.
func (s *swapFile) swap() error {
	err := s.root.Rename(s.Staged, s.Name)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	now, readErr := s.read(s.Name)
	if readErr == nil && now != nil && now.SHA256 == s.New.SHA256 {
		return nil
	}
	return err
}
