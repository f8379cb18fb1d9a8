// Package disk keeps a program's own files: written so that a crash leaves the old content or the new, never half of it, in
// directories that one process at a time has.
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
	return place(path, data, mode, os.Rename)
}

// Create is Write for a file that must not be there yet: of several that create it at once one does, and the others get
// fs.ErrExist. Nobody ever sees half of it.
func Create(path string, data []byte, mode fs.FileMode) error {
	return place(path, data, mode, os.Link) // unlike rename, link replaces nothing
}

func place(path string, data []byte, mode fs.FileMode, put func(from, to string) error) error {
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
	if err := put(f.Name(), path); err != nil {
		return fmt.Errorf("put %s in place: %w", filepath.Base(path), err)
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

// HomeDir makes a directory for a program's own files, for us alone. The mode of one that is there already is the
// operator's, and stays; but see RefuseShared.
func HomeDir(path string) error {
	if err := makeDir(path); err != nil {
		return err
	}
	return RefuseShared(path)
}

// RefuseShared fails for a directory that everybody may write to: others could put their own files in the place of ours.
func RefuseShared(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("look at directory: %w", err)
	}
	if info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("everybody may write to %s: choose a directory of its own, or chmod o-w %s", path, path)
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
