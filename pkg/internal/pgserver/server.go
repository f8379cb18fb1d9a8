package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// DefaultPort names the socket file; no TCP port is opened for it.
	DefaultPort = 5432

	// MaxSocketDir is the longest directory for the socket: sun_path has 104 bytes on macOS and BSD, 108 on Linux.
	MaxSocketDir = 103 - len("/.s.PGSQL.5432")

	tailBytes    = 4096
	quitWithin   = time.Second
	connectEvery = 20 * time.Millisecond
)

// InitConfig describes a new data directory.
type InitConfig struct {
	Binaries  Binaries
	Account   Account
	Dir       string // does not exist; its parent belongs to the account
	Superuser string
	Args      []string // further arguments of initdb
}

// InitDB makes a data directory that trusts its Unix socket and refuses TCP.
func InitDB(ctx context.Context, cfg InitConfig) error {
	args := append([]string{
		"--pgdata=" + cfg.Dir, "--username=" + cfg.Superuser, "--auth-local=trust", "--auth-host=reject",
		"--encoding=UTF8", "--locale=C", "--no-instructions",
	}, cfg.Args...)
	cmd := exec.CommandContext(ctx, cfg.Binaries.Program("initdb"), args...)
	cmd.Env, cmd.Dir, cmd.SysProcAttr = environ(), filepath.Dir(cfg.Dir), cfg.Account.Attributes()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, lastBytes(out))
	}
	return nil
}

// Config describes a server to start.
type Config struct {
	Binaries  Binaries
	Account   Account
	DataDir   string
	SocketDir string
	Port      int // 0 is DefaultPort; names the socket, too
	LogFile   string
	Superuser string
	Settings  map[string]string // of postgresql.conf; they win over those made here

	// DieWithParent sends Postgres a fast shutdown when the thread that started it ends. Only Linux can, and the caller
	// must stay on a locked thread as long as the server lives.
	DieWithParent bool
}

// Server is a running postmaster.
type Server struct {
	cfg Config
	cmd *exec.Cmd
}

// Start starts the process; it does not wait until the server answers (Ready does). The caller calls Wait.
func Start(cfg Config) (*Server, error) {
	log, err := os.OpenFile(cfg.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of Postgres: %w", err)
	}
	defer func() { _ = log.Close() }()                                   // the child has its own
	cmd := exec.Command(cfg.Binaries.Program("postgres"), cfg.args()...) //nolint:noctx // it is ended by Stop, in order
	cmd.Env, cmd.Dir = environ(), cfg.DataDir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = cfg.Account.Attributes()
	if cfg.DieWithParent {
		dieWithParent(cmd.SysProcAttr)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start postgres: %w", err)
	}
	return &Server{cfg: cfg, cmd: cmd}, nil
}

func (c Config) args() []string {
	settings := map[string]string{ //nolint:gosec // password_encryption names an algorithm
		"listen_addresses":        "",
		"port":                    strconv.Itoa(c.port()),
		"unix_socket_directories": c.SocketDir,
		"unix_socket_permissions": "0700",
		"logging_collector":       "off",
		"log_destination":         "stderr",
		"timezone":                "UTC",
		"log_timezone":            "UTC",
		"password_encryption":     "scram-sha-256",
	}
	maps.Copy(settings, c.Settings)
	args := []string{"-D", c.DataDir}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

func (c Config) port() int {
	if c.Port == 0 {
		return DefaultPort
	}
	return c.Port
}

// URL is how the superuser connects to a database of the server over its socket.
func (c Config) URL(database string) string {
	query := url.Values{"host": {c.SocketDir}, "port": {strconv.Itoa(c.port())}, "sslmode": {"disable"}}
	u := url.URL{Scheme: "postgres", User: url.User(c.Superuser), Path: "/" + database, RawQuery: query.Encode()}
	return u.String()
}

// PID gives the postmaster's process id.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Wait waits for the end of the process. It is called once.
func (s *Server) Wait() error { return s.cmd.Wait() }

// Exited tells whether the process has ended, for a caller that has no goroutine in Wait. After true, Wait is not called.
func (s *Server) Exited() bool {
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(s.PID(), &status, syscall.WNOHANG, nil)
	return err != nil || pid == s.PID()
}

// Signal sends a signal: SIGINT is a fast shutdown, SIGQUIT an immediate one.
func (s *Server) Signal(sig syscall.Signal) error { return s.cmd.Process.Signal(sig) }

// Ready waits until the server answers on its socket, and says what its log ends with if it does not. ended tells whether
// the process has ended.
func (s *Server) Ready(ctx context.Context, ended func() bool) error {
	cc, err := pgx.ParseConfig(s.cfg.URL("postgres"))
	if err != nil {
		return fmt.Errorf("make address of Postgres: %w", err)
	}
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		if ended() {
			return s.explain(errors.New("it ended"))
		}
		select {
		case <-ctx.Done():
			return s.explain(ctx.Err())
		case <-retry.C:
		}
		conn, err := pgx.ConnectConfig(ctx, cc)
		if err == nil {
			return conn.Close(ctx)
		}
		retry.Reset(connectEvery)
	}
}

func (s *Server) explain(err error) error {
	return fmt.Errorf("postgres did not start: %w; its log %s ends with:\n%s", err, s.cfg.LogFile, Tail(s.cfg.LogFile))
}

// Stop shuts down fast (clients are disconnected, everything is written); when ctx ends first, at once. ended is closed
// when the process has ended, by whoever called Wait.
func (s *Server) Stop(ctx context.Context, ended <-chan struct{}) error {
	if s.end(ctx, syscall.SIGINT, ended) {
		return nil
	}
	for _, signal := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGKILL} {
		quitCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quitWithin)
		gone := s.end(quitCtx, signal, ended)
		cancel()
		if gone {
			return nil
		}
	}
	return errors.New("postgres does not end, not even killed")
}

// end signals the process and tells whether it ended before ctx did.
func (s *Server) end(ctx context.Context, signal syscall.Signal, ended <-chan struct{}) bool {
	_ = s.Signal(signal) // the only failure is that the process has ended, which the channel tells
	select {
	case <-ended:
		return true
	case <-ctx.Done():
		return false
	}
}

// Tail gives the last lines of a file.
func Tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > tailBytes {
		_, _ = f.Seek(-tailBytes, io.SeekEnd)
	}
	b, err := io.ReadAll(io.LimitReader(f, tailBytes))
	if err != nil {
		return err.Error()
	}
	return lastBytes(b)
}

func lastBytes(b []byte) string {
	if len(b) > tailBytes {
		b = b[len(b)-tailBytes:]
	}
	return string(bytes.TrimSpace(b))
}
