package nginx

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/certctl/certctl/pkg/connector/target/plan"
	"github.com/certctl/certctl/pkg/errs"
)

// places are where nginx is found when a configuration does not say, and what the agent runs without being told to allow it.
func places() []string {
	return []string{"/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/local/nginx/sbin/nginx", "/usr/bin/nginx", "/usr/local/bin/nginx"}
}

// server is one nginx on this host.
type server struct {
	config config
	host   plan.Host
	path   string
	build  build
}

// build is what nginx was built with, where the configuration does not say otherwise. All paths are absolute.
type build struct{ prefix, conf, pid string }

func open(ctx context.Context, h plan.Host, raw json.RawMessage) (*server, error) {
	c, err := read(raw)
	if err != nil {
		return nil, err
	}
	s := &server{config: c, host: h, path: c.NginxPath}
	if s.path == "" {
		s.path, err = find()
	}
	if err != nil {
		return nil, err
	}
	out, err := h.Runner.Ask(ctx, []string{s.path, "-V"}, places())
	if err != nil {
		return nil, err
	}
	s.build = parseBuild(out)
	s.override()
	return s, nil
}

// override puts what the target says above what nginx was built with. A new prefix moves relative defaults only, as
// nginx's own -p does, and those have been made absolute against the built one: a target with a prefix says config_path.
func (s *server) override() {
	if s.config.Prefix != "" {
		s.build.prefix = s.config.Prefix
	}
	if s.config.ConfigPath != "" {
		s.build.conf = s.config.ConfigPath
	}
}

func find() (string, error) {
	for _, p := range places() {
		_, err := os.Stat(p)
		if err == nil {
			return p, nil
		}
	}
	return "", errs.New(errs.NotFound, "NGINX_NOT_FOUND", "no nginx at %s; set nginx_path", strings.Join(places(), ", "))
}

func (s *server) run(ctx context.Context, args ...string) (string, error) {
	return s.host.Runner.RunOneOf(ctx, append([]string{s.path}, args...), places())
}

// parseBuild reads the configure arguments in the output of "nginx -V".
func parseBuild(out string) build {
	b := build{prefix: "/usr/local/nginx", conf: "conf/nginx.conf", pid: "logs/nginx.pid"}
	for arg := range strings.FieldsSeq(out) {
		name, value, _ := strings.Cut(arg, "=")
		switch name {
		case "--prefix":
			b.prefix = value
		case "--conf-path":
			b.conf = value
		case "--pid-path":
			b.pid = value
		}
	}
	b.conf, b.pid = against(b.prefix, b.conf), against(b.prefix, b.pid)
	return b
}

// against makes path absolute as nginx does.
func against(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

// running gives the master to signal, by the pid file. A stale file may name a process that is not nginx.
func (s *server) running(pidFile string) (int, error) {
	b, err := readBounded(pidFile, 64)
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("no nginx pid file at %s: %w", pidFile, plan.ErrNotRunning)
	}
	if err != nil {
		return 0, fmt.Errorf("read the nginx pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("nginx pid file %s holds no process id: %w", pidFile, plan.ErrNotRunning)
	}
	err = syscall.Kill(pid, 0)
	if errors.Is(err, syscall.ESRCH) || !s.isNginx(pid) {
		return 0, fmt.Errorf("nginx pid file %s names process %d, which is no nginx: %w", pidFile, pid, plan.ErrNotRunning)
	}
	return pid, nil
}

// isNginx compares the process's name where the system tells it.
func (s *server) isNginx(pid int) bool {
	comm, err := readBounded(fmt.Sprintf("/proc/%d/comm", pid), 64)
	if err != nil {
		return true
	}
	name := strings.TrimSpace(string(comm))
	base := filepath.Base(s.path)
	return strings.HasPrefix(name, "nginx") || name == base[:min(len(base), 15)]
}
