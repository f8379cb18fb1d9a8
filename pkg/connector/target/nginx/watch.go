package nginx

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/errs"
)

const (
	// pause is the time between two looks at the workers.
	pause = 20 * time.Millisecond
	// maxSaid bounds what of the log goes into an error's message, in bytes.
	maxSaid = 2 << 10
)

// watcher compares a master before and after a reload.
type watcher struct {
	master  int
	workers []string
	log     string
	size    int64
}

func watch(master int, log string) watcher {
	w := watcher{master: master, workers: children(master), log: log}
	info, err := os.Stat(log)
	if err == nil {
		w.size = info.Size()
	}
	return w
}

// taken waits until the master has a worker that it did not have before. Where the system does not tell, and for an nginx
// without workers, there is nothing to compare: then the endpoint alone decides.
func (w watcher) taken(ctx context.Context, patience time.Duration) error {
	if len(w.workers) == 0 {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for !w.renewed() {
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-within.Done():
			t.Stop()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return errs.New(errs.Unavailable, "RELOAD_REFUSED", "the nginx master %d started no new workers within %s of the reload; its log says: %s", w.master, patience, w.said())
		}
	}
	return nil
}

func (w watcher) renewed() bool {
	return slices.ContainsFunc(children(w.master), func(pid string) bool { return !slices.Contains(w.workers, pid) })
}

// children gives the process ids of the children of a process that has one thread, as nginx has; none where there is no Linux.
func children(pid int) []string {
	b, err := readBounded(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid), 1<<20)
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// said gives the end of what was written to the log since.
func (w watcher) said() string {
	f, err := os.Open(w.log)
	if err != nil {
		return "(it cannot be read)"
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "(it cannot be read)"
	}
	_, err = f.Seek(max(w.size, info.Size()-maxSaid), io.SeekStart)
	if err != nil {
		return "(it cannot be read)"
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSaid))
	if err != nil || len(b) == 0 {
		return "(nothing)"
	}
	return strings.ToValidUTF8(strings.TrimSpace(string(b)), "?")
}
