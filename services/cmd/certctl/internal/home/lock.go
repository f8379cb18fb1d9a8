package home

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// lockFile says who serves from the directory.
const lockFile = "serve.lock"

// Lock keeps the directory for one `certctl serve` at a time; the error names the process that has it. The lock ends with
// the process, however it ends.
func (d Dir) Lock() (unlock func(), err error) {
	f, err := os.OpenFile(d.Path(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err == nil {
		return func() { _ = f.Close() }, nil
	}
	defer func() { _ = f.Close() }()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		holder, err := os.ReadFile(d.Path(lockFile))
		if err != nil {
			return nil, fmt.Errorf("read lock of data directory: %w", err)
		}
		return nil, fmt.Errorf("data directory %s is in use by process %s: stop that one first, or set CERTCTL_DATA_DIR to another directory",
			d, strings.TrimSpace(string(holder)))
	}
	return nil, fmt.Errorf("lock data directory: %w", err)
}
