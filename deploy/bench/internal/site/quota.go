package site

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// ErrNoQuota says that this system does not let CPU time be bounded: there are no control groups that may be written.
var ErrNoQuota = errors.New("control groups cannot be written here (root and a writable /sys/fs/cgroup are needed)")

// period is that of CPU quotas, in microseconds.
const period = 10_000

// controllers are where the CPU controller of version 1 or 2 is, and the file that tells: anywhere else these settings would be mere files.
func controllers(quota int) []controller {
	return []controller{
		{"/sys/fs/cgroup/cpu", "cgroup.procs", map[string]string{"cpu.cfs_period_us": strconv.Itoa(period), "cpu.cfs_quota_us": strconv.Itoa(quota)}},
		{"/sys/fs/cgroup", "cgroup.controllers", map[string]string{"cpu.max": fmt.Sprintf("%d %d", quota, period)}},
	}
}

type controller struct {
	root, mark string
	settings   map[string]string
}

// confine lets a process have a part of one core, by a control group that remove takes away.
func confine(name string, pid int, cores float64) (remove func(), err error) {
	for _, c := range controllers(int(cores * period)) {
		if _, missing := os.Stat(filepath.Join(c.root, c.mark)); missing != nil {
			continue
		}
		dir := filepath.Join(c.root, fmt.Sprintf("certctl-bench-%s-%d", name, pid))
		if err = os.Mkdir(dir, 0o750); err != nil {
			continue
		}
		remove := func() { _ = os.Remove(dir) }
		if err = apply(dir, c.settings, pid); err == nil {
			return remove, nil
		}
		remove()
	}
	return nil, errors.Join(ErrNoQuota, err)
}

func apply(dir string, settings map[string]string, pid int) error {
	for file, value := range settings {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0o600); err != nil {
			return fmt.Errorf("bound CPU time: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600); err != nil {
		return fmt.Errorf("bound CPU time: %w", err)
	}
	return nil
}
