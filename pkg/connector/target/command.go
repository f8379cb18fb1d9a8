package target

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/certctl/certctl/pkg/errs"
)

const (
	// maxOutput bounds what is kept of a command's output, in bytes: the end, where errors stand.
	maxOutput = 16 << 10
	// maxQuoted bounds what of it goes into an error's message.
	maxQuoted = 2 << 10
	// pipeGrace is how long a command's output may stay open after it ended: a daemon that it started may hold it.
	pipeGrace = 2 * time.Second
)

// runner runs commands for one deployment and keeps what they print.
type runner struct {
	allow   AllowList
	timeout time.Duration
	printed tail
}

// Allows is nil when the program is in the allow-list.
func (r *runner) Allows(path string) error { return r.allowed(path, nil) }

// Run starts a program of the allow-list.
func (r *runner) Run(ctx context.Context, argv []string) (string, error) {
	return r.RunOneOf(ctx, argv, nil)
}

// RunOneOf starts a program of the allow-list or of the places.
func (r *runner) RunOneOf(ctx context.Context, argv, places []string) (string, error) {
	if len(argv) == 0 {
		return "", errs.New(errs.Internal, "COMMAND_EMPTY", "there is no command to run")
	}
	text, err := r.Ask(ctx, argv, places)
	_, _ = r.printed.Write([]byte(text))
	return text, err
}

// Ask starts a program of the allow-list or of the places and forgets what it prints.
func (r *runner) Ask(ctx context.Context, argv, places []string) (string, error) {
	err := r.allowed(argv[0], places)
	if err != nil {
		return "", err
	}
	return r.start(ctx, argv)
}

func (r *runner) allowed(path string, places []string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || !r.allow.has(path) && !slices.Contains(places, path) {
		return errs.New(errs.PermissionDenied, "COMMAND_NOT_ALLOWED", "the agent's allow-list does not have the command %q", path).With("command", path)
	}
	info, err := os.Stat(path)
	if err != nil {
		return errs.New(errs.NotFound, "COMMAND_NOT_FOUND", "there is no command %q on this host", path).Wrap(err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o002 != 0 {
		return errs.New(errs.PermissionDenied, "COMMAND_NOT_ALLOWED", "the command %q is not a file, or everybody may write to it", path)
	}
	return nil
}

// start gives the command its own process group, so that a timeout ends all that it started.
func (r *runner) start(ctx context.Context, argv []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	var out tail
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pipeGrace
	err := cmd.Run()
	text := out.String()
	return text, explain(ctx, err, argv, text)
}

// explain makes the error of a command that did not end well. One that ended well while a daemon holds its output did.
func explain(ctx context.Context, err error, argv []string, text string) error {
	name := strings.Join(argv[:min(len(argv), 3)], " ")
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return errs.New(errs.DeadlineExceeded, "COMMAND_TIMEOUT", "the command %q did not end in time and was killed: %s", name, lastPart(text))
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		return errs.New(errs.Unavailable, "COMMAND_FAILED", "the command %q failed (%s): %s", name, err, lastPart(text))
	}
}

func lastPart(text string) string {
	text = strings.TrimSpace(text)
	if text == "" {
		return "it printed nothing"
	}
	return strings.ToValidUTF8(text[max(0, len(text)-maxQuoted):], "?")
}

// tail keeps the last maxOutput bytes written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

// Write never fails: a command must not die of having said too much.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[max(0, len(p)-maxOutput):]...)
	if len(t.b) > maxOutput {
		t.b = append([]byte(nil), t.b[len(t.b)-maxOutput:]...)
	}
	return len(p), nil
}

// String gives what was kept, as valid UTF-8.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ToValidUTF8(string(t.b), "?")
}
