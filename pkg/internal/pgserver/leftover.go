package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

const (
	leftoverFast = 20 * time.Second
	leftoverQuit = 10 * time.Second
	leftoverPoll = 20 * time.Millisecond

	// maxPIDFile is far more than the few lines of postmaster.pid.
	maxPIDFile = 4096
)

// EndLeftover ends a server that still runs on a data directory after the process that had started it died, and tells its
// process id, or 0. The caller holds a lock that keeps others from starting one meanwhile.
func EndLeftover(ctx context.Context, dataDir string) (int, error) {
	file := filepath.Join(dataDir, "postmaster.pid")
	pid, err := readPID(file)
	if err != nil || pid == 0 {
		return 0, err
	}
	if !serves(pid, dataDir) {
		// The number may belong to another process by now, for which Postgres would refuse to start.
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("remove stale lock of Postgres: %w", err)
		}
		return 0, nil
	}
	for _, step := range []struct {
		signal syscall.Signal
		within time.Duration
	}{{syscall.SIGINT, leftoverFast}, {syscall.SIGQUIT, leftoverQuit}} {
		if err := syscall.Kill(pid, step.signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return 0, fmt.Errorf("end the Postgres that an earlier start left behind (pid %d): %w", pid, err)
		}
		if gone(ctx, pid, dataDir, step.within) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("the Postgres that an earlier start left behind does not end: end it (kill -9 %d) and start again", pid)
}

func readPID(file string) (int, error) {
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for a running Postgres: %w", err)
	}
	line, _, _ := bytes.Cut(content[:min(len(content), maxPIDFile)], []byte("\n"))
	pid, err := strconv.Atoi(string(bytes.TrimSpace(line)))
	if err != nil || pid <= 1 {
		return 0, nil //nolint:nilerr // a half-written file is no sign of a server; Postgres itself looks again
	}
	return pid, nil
}

// serves tells whether the process is a postmaster of the data directory: that is its working directory.
func serves(pid int, dataDir string) bool {
	if runtime.GOOS != "linux" {
		return syscall.Kill(pid, 0) == nil
	}
	cwd, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "cwd"))
	if err != nil {
		return false
	}
	dir, err := filepath.EvalSymlinks(dataDir)
	return err == nil && cwd == dir
}

func gone(ctx context.Context, pid int, dataDir string, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-again.C:
		}
		if !serves(pid, dataDir) {
			return true
		}
		again.Reset(leftoverPoll)
	}
}
