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

// confine lets a process have a part of one core, by a control group of version 1 or 2 that remove takes away.
func confine(name string, pid int, cores float64) (remove func(), err error) {
	quota := strconv.Itoa(int(cores * period))
	for root, settings := range map[string]map[string]string{
		"/sys/fs/cgroup/cpu": {"cpu.cfs_period_us": strconv.Itoa(period), "cpu.cfs_quota_us": quota},
		"/sys/fs/cgroup":     {"cpu.max": fmt.Sprintf("%s %d", quota, period)},
	} {
		dir := filepath.Join(root, fmt.Sprintf("certctl-bench-%s-%d", name, pid))
		if os.Mkdir(dir, 0o750) != nil {
			continue
		}
		remove := func() { _ = os.Remove(dir) }
		if err = apply(dir, settings, pid); err == nil {
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
