package testpg

import (
	"context"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/internal/pgserver"
)

const (
	launchAttempts   = 20
	launchAgainAfter = 250 * time.Millisecond
)

// ServerConfig describes a private server.
type ServerConfig struct {
	// Password makes the server listen on 127.0.0.1 too, where it asks for passwords (SCRAM); it is the superuser's.
	Password string

	// Settings of postgresql.conf, over those that make test servers quick.
	Settings map[string]string
}

// Server is a private server that a test may stop, restart and kill. It is not safe for use by several goroutines at once.
type Server struct {
	cfg     ServerConfig
	site    *site
	port    int
	process *pgserver.Server // nil when it is not running
}

// NewServer makes and starts a server. It ends with the test.
func NewServer(t testing.TB, cfg ServerConfig) *Server {
	t.Helper()
	place, err := newSite(t.Context())
	require.NoError(t, err, "the test needs a real Postgres")
	s := &Server{cfg: cfg, site: place}
	t.Cleanup(func() {
		if s.process != nil {
			s.end(t, syscall.SIGQUIT)
		}
		place.release()
	})
	if cfg.Password != "" {
		s.port = freePort(t)
		s.askForPasswords(t)
	}
	s.Start(t)
	if cfg.Password != "" {
		s.setPassword(t)
	}
	return s
}

// URL gives the superuser's address of the database "postgres" over the private Unix socket, where no password is asked for.
func (s *Server) URL() string { return s.DatabaseURL("postgres") }

// DatabaseURL is URL for another database.
func (s *Server) DatabaseURL(database string) string { return s.site.url(s.port, database) }

// TCPURL gives the superuser's address of a database over 127.0.0.1, with a password: the right one or another.
func (s *Server) TCPURL(database, password string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(superuser, password), Path: "/" + database,
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)), RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Start starts the server and waits until it answers.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	require.Nil(t, s.process, "the server is running")
	ctx, cancel := context.WithTimeout(t.Context(), startWithin)
	defer cancel()
	process, err := s.launch(ctx)
	require.NoError(t, err)
	s.process = process
}

// launch starts again while the leftovers of a killed server are in the way: they end by themselves.
func (s *Server) launch(ctx context.Context) (*pgserver.Server, error) {
	extra := maps.Clone(s.cfg.Settings)
	if s.port != 0 {
		if extra == nil {
			extra = map[string]string{}
		}
		extra["listen_addresses"] = "127.0.0.1"
	}
	for attempt := 1; ; attempt++ {
		process, err := pgserver.Start(s.site.config(s.port, extra))
		if err != nil {
			return nil, err
		}
		err = process.Ready(ctx, process.Exited)
		if err == nil {
			return process, nil
		}
		if attempt == launchAttempts || ctx.Err() != nil {
			return nil, err
		}
		retry := time.NewTimer(launchAgainAfter)
		<-retry.C
	}
}

// Stop shuts the server down fast: clients are disconnected, their transactions rolled back.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	s.end(t, syscall.SIGINT)
}

// Kill ends the server with kill -9, as a crash of the machine would.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	s.end(t, syscall.SIGKILL)
}

// Restart stops the server fast and starts it again.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Stop(t)
	s.Start(t)
}

func (s *Server) end(t testing.TB, signal syscall.Signal) {
	t.Helper()
	require.NotNil(t, s.process, "the server is not running")
	require.NoError(t, s.process.Signal(signal))
	_ = s.process.Wait() // a status other than 0 is what a signal leads to
	s.process = nil
}

// askForPasswords replaces the file that initdb made, which refuses all TCP.
func (s *Server) askForPasswords(t testing.TB) {
	t.Helper()
	const rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
	require.NoError(t, os.WriteFile(filepath.Join(s.site.data(), "pg_hba.conf"), []byte(rules), 0o600))
}

func (s *Server) setPassword(t testing.TB) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL())
	require.NoError(t, err)
	quoted := strings.ReplaceAll(s.cfg.Password, "'", "''")
	_, err = conn.Exec(t.Context(), "ALTER ROLE "+superuser+" PASSWORD '"+quoted+"'")
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
}

// freePort finds a port that is free now.
func freePort(t testing.TB) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's own loopback
	require.NoError(t, err)
	defer func() { require.NoError(t, listener.Close()) }()
	address, ok := listener.Addr().(*net.TCPAddr)
	require.True(t, ok)
	return address.Port
}
