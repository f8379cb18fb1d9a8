package home

import (
	"errors"
	"fmt"

	"github.com/certctl/certctl/pkg/disk"
)

// lockFile says who serves from the directory.
const lockFile = "serve.lock"

// Lock keeps the directory for one `certctl serve` at a time; the error names the process that has it.
func (d Dir) Lock() (unlock func(), err error) {
	unlock, err = disk.Lock(d.Path(lockFile))
	if other, ok := errors.AsType[*disk.InUseError](err); ok {
		return nil, fmt.Errorf("data directory %s is in use by process %d: stop that one first, or set CERTCTL_DATA_DIR to another directory", d, other.PID)
	}
	return unlock, err
}
