// Package disk writes files so that a crash leaves the old content or the new, never half of it.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// staged is how the names of files begin that are not in place yet.
const staged = ".new-"

// Write replaces a file by rename, with the given mode, and waits until file and directory are on disk.
func Write(path string, data []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, staged+"*")
	if err != nil {
		return fmt.Errorf("stage %s: %w", filepath.Base(path), err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already when it was renamed
	err = errors.Join(f.Chmod(mode), writeAll(f, data), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("stage %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("replace %s: %w", filepath.Base(path), err)
	}
	return Sync(dir)
}

func writeAll(f *os.File, data []byte) error {
	_, err := f.Write(data)
	return err
}

// Sync waits until a directory's entries are on disk.
func Sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	err = errors.Join(d.Sync(), d.Close())
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

// Remove removes files; those that are not there do not matter.
func Remove(paths ...string) error {
	var all []error
	for _, p := range paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// Sweep removes what a crash in the middle of Write left in a directory. Nothing may be written to it meanwhile.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list directory: %w", err)
	}
	var left []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), staged) && e.Type().IsRegular() {
			left = append(left, filepath.Join(dir, e.Name()))
		}
	}
	if err := Remove(left...); err != nil {
		return fmt.Errorf("remove what a crash left: %w", err)
	}
	return nil
}

// HomeDir makes the directory that the others are in. The mode of one that is there already is the operator's, and stays;
// but one that everybody may write to is refused: others could put their own directories in the place of ours.
func HomeDir(path string) error {
	if err := makeDir(path); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("look at directory: %w", err)
	}
	if info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("everybody may write to %s: give the agent a directory of its own", path)
	}
	return nil
}

// PrivateDir makes a directory that only we can look into, or makes an existing one so.
func PrivateDir(path string) error {
	if err := makeDir(path); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o700); err != nil { //nolint:gosec // a directory needs its x
		return fmt.Errorf("close directory to others: %w", err)
	}
	return nil
}

// makeDir waits until a new directory is on disk: a file in it is worth nothing without.
func makeDir(path string) error {
	_, err := os.Stat(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return Sync(filepath.Dir(path))
}
