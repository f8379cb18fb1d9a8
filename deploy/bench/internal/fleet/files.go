package fleet

import (
	"fmt"
	"syscall"
)

// spareFiles are what a process needs beside its connections.
const spareFiles = 256

// enoughFiles has this process open as many files as the agents need, one for each. The gateway needs as many, and takes its limit from
// who starts it.
func enoughFiles(agents int) error {
	need := uint64(agents) + spareFiles
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("fleet: read the limit of open files: %w", err)
	}
	if limit.Cur >= need {
		return nil
	}
	had := limit
	limit.Cur, limit.Max = need, max(limit.Max, need)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("fleet: %d agents need %d open files here, and as many at the gateway, but the limit is %d (at most %d): raise it with ulimit -n: %w",
			agents, need, had.Cur, had.Max, err)
	}
	return nil
}
