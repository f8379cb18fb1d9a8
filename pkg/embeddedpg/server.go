package embeddedpg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/internal/pgserver"
	"github.com/certctl/certctl/pkg/run"
)

const (
	// superuser is the base user; the roles of the services are made by pg.Migrate.
	superuser = "certctl"
	database  = "certctl"

	readyWithin = time.Minute
	stopWithin  = 30 * time.Second

	// launchAttempts and launchAgainAfter bound the wait for the children of a killed postmaster, which hold its shared memory for a moment.
	launchAttempts   = 10
	launchAgainAfter = 300 * time.Millisecond

	maxLog = 16 << 20
)

// settings suit one host with one installation. 100 connections are the quotas' 50, migrations, the superuser's reserve, and room.
func settings() map[string]string {
	return map[string]string{
		"max_connections": "100",
		"shared_buffers":  "64MB",
		"max_wal_size":    "512MB",
		"cluster_name":    "certctl",
		"log_line_prefix": "%m [%p] %q%u@%d ",
	}
}

// Config says where the server lives.
type Config struct {
	DataDir string // of certctl (CERTCTL_DATA_DIR); made if it is missing
	BinDir  string // of the programs postgres and initdb (CERTCTL_POSTGRES_BIN); empty: they are looked for, then fetched
	Log     *zap.Logger
	// Settings of postgresql.conf that win over those made here.
	Settings map[string]string

	find       func(ctx context.Context, explicit string) ([]pgserver.Binaries, error) // a test's own; nil is pgserver.Find
	repository string                                                                  // a test's own; empty is Maven Central
}

// Server is a running Postgres of our own.
type Server struct {
	log     *zap.Logger
	site    site
	config  pgserver.Config
	process *pgserver.Server
	ended   chan struct{}
	unlock  func()
	stopped sync.Once
	stopErr error
}

// Start starts the server of a data directory, and makes that first if there is none. It returns when the server answers. One
// process at a time has a data directory: another gets an *InUseError. ctx bounds the start, not the life of the server.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	place, err := newSite(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	unlock, err := place.lock()
	if err != nil {
		return nil, err
	}
	s := &Server{log: cfg.Log, site: place, unlock: unlock}
	if err := s.start(ctx, cfg); err != nil {
		unlock()
		return nil, fmt.Errorf("embedded Postgres: %w", err)
	}
	return s, nil
}

func (s *Server) start(ctx context.Context, cfg Config) error {
	if err := s.site.prepare(); err != nil {
		return err
	}
	pid, err := pgserver.EndLeftover(ctx, s.site.data())
	if err != nil {
		return err
	}
	if pid != 0 {
		s.log.Warn("ended the Postgres that an earlier start had left behind", zap.Int("pid", pid))
	}
	binaries, err := choose(ctx, cfg, s.site)
	if err != nil {
		return err
	}
	if err := s.site.initialise(ctx, binaries, s.log); err != nil {
		return err
	}
	socketDir, err := s.site.socketDir()
	if err != nil {
		return err
	}
	s.config = pgserver.Config{
		Binaries: binaries, Account: s.site.account, DataDir: s.site.data(), SocketDir: socketDir, LogFile: s.site.logFile(),
		Superuser: superuser, Settings: settings(), DieWithParent: true,
	}
	maps.Copy(s.config.Settings, cfg.Settings)
	if err := s.launch(ctx); err != nil {
		return err
	}
	if err := s.makeDatabase(ctx); err != nil {
		return errors.Join(err, s.Stop(context.WithoutCancel(ctx)))
	}
	s.log.Info("embedded Postgres is up", zap.Int("version", binaries.Major), zap.String("path", s.site.data()))
	return nil
}

// DataDir is where Postgres has its data.
func (s *Server) DataDir() string { return s.config.DataDir }

// PID is the process id of the postmaster.
func (s *Server) PID() int { return s.process.PID() }

// URL is the address for CERTCTL_DATABASE_URL: superuser, Unix socket, no password.
func (s *Server) URL() string { return s.config.URL(database) }

// Done is closed when Postgres has ended, by Stop or by itself.
func (s *Server) Done() <-chan struct{} { return s.ended }

// Stop shuts Postgres down fast: everything committed is written. When ctx ends first, or after 30 s, it is ended at once, which
// loses nothing either but makes the next start slower. Further calls return the same.
func (s *Server) Stop(ctx context.Context) error {
	s.stopped.Do(func() { s.stopErr = s.stopOnce(ctx) })
	return s.stopErr
}

func (s *Server) stopOnce(ctx context.Context) error {
	defer s.unlock()
	ctx, cancel := context.WithTimeout(ctx, stopWithin)
	defer cancel()
	if err := s.process.Stop(ctx, s.ended); err != nil {
		return fmt.Errorf("stop embedded Postgres: %w", err)
	}
	s.site.removeSocketDir()
	return nil
}

// launch starts the process and waits until it answers.
func (s *Server) launch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for attempt := 1; ; attempt++ {
		if err := s.spawn(ctx); err != nil {
			return err
		}
		err := s.process.Ready(ctx, s.hasEnded)
		if err == nil {
			return nil
		}
		crashed := s.hasEnded()
		if !crashed {
			err = errors.Join(err, s.process.Stop(ctx, s.ended))
		}
		if !crashed || attempt == launchAttempts {
			return err
		}
		again := time.NewTimer(launchAgainAfter)
		select {
		case <-ctx.Done():
			return err
		case <-again.C:
		}
	}
}

// spawn starts the process from an operating system thread that lives as long as it: Linux ties the signal at the parent's
// death to the thread.
func (s *Server) spawn(ctx context.Context) error {
	started := make(chan error, 1)
	s.ended = make(chan struct{})
	run.NewGroup(context.WithoutCancel(ctx), run.Config{}).Go("embedded postgres", func(context.Context) error {
		defer close(s.ended)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		process, err := pgserver.Start(s.config)
		s.process = process
		started <- err
		if err != nil {
			return nil
		}
		_ = process.Wait() // how it ended is in its log
		return nil
	})
	return <-started
}

func (s *Server) hasEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

func (s *Server) makeDatabase(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.config.URL("postgres"))
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var there bool
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)", database).Scan(&there)
	if err != nil {
		return fmt.Errorf("look for database: %w", err)
	}
	if there {
		return nil
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+database); err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	return nil
}

// choose takes the binaries that fit the data directory: its own version if it has one, else the first that is found, else
// those that are fetched.
func choose(ctx context.Context, cfg Config, place site) (pgserver.Binaries, error) {
	find := cfg.find
	if find == nil {
		find = pgserver.Find
	}
	found, err := find(ctx, cfg.BinDir)
	if err != nil {
		return pgserver.Binaries{}, err
	}
	want, err := place.major()
	if err != nil {
		return pgserver.Binaries{}, err
	}
	for _, b := range found {
		if want == 0 || b.Major == want {
			return b, nil
		}
	}
	if cfg.BinDir == "" && (want == 0 || want == fetchedMajor) {
		return fetch(ctx, cfg, place)
	}
	return pgserver.Binaries{}, &VersionError{Dir: place.data(), Major: want, Found: found}
}

// VersionError tells that a data directory was made by another version of Postgres than those that are there.
type VersionError struct {
	Dir   string
	Major int
	Found []pgserver.Binaries
}

// Error names the version, what was found instead, and the ways out.
func (e *VersionError) Error() string {
	var found []string
	for _, b := range e.Found {
		found = append(found, fmt.Sprintf("%d in %s", b.Major, b.Dir))
	}
	if len(found) == 0 {
		found = []string{"none"}
	}
	return fmt.Sprintf("the data directory %s was made by Postgres %d; found here: %s. Install Postgres %d, or set CERTCTL_POSTGRES_BIN to its programs, or carry "+
		"the data over with pg_dump of the old version", e.Dir, e.Major, strings.Join(found, ", "), e.Major)
}

// InUseError tells that another process has the data directory.
type InUseError struct {
	Dir string
	PID int // 0 when the other has not written it yet
}

// Error names the other's process id and the ways out.
func (e *InUseError) Error() string {
	return fmt.Sprintf("the data directory %s is in use by another certctl (pid %d): stop that one, or choose another directory with CERTCTL_DATA_DIR", e.Dir, e.PID)
}

// rotate keeps one old log, so that it does not grow for ever.
func rotate(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at log of Postgres: %w", err)
	}
	if info.Size() < maxLog {
		return nil
	}
	if err := os.Rename(path, path+".1"); err != nil {
		return fmt.Errorf("rotate log of Postgres: %w", err)
	}
	return nil
}
