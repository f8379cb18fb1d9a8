package serve

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zaptest"

	"github.com/certctl/certctl/pkg/config"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/settings"
)

func TestAStopDoesNotWaitForConnectionsThatNobodyGivesBack(t *testing.T) {
	t.Parallel()
	db := testpg.NewDatabase(t, Schemas()...).Open(t, nameAudit)
	conn, err := db.Pool.Acquire(t.Context())
	require.NoError(t, err)
	t.Cleanup(conn.Release)
	p := &process{log: zaptest.NewLogger(t), databases: []*pg.DB{db}}
	began := time.Now()
	p.end()
	require.Less(t, time.Since(began), connectionsStop+time.Second)
}

func TestAStopAddsUpToFifteenSecondsAtMost(t *testing.T) {
	t.Parallel()
	const killed = 2 * time.Second // what a Postgres that does not end in order takes beyond postgresStop
	require.LessOrEqual(t, edgeShutdown+serviceShutdown+connectionsStop+postgresStop+killed, 15*time.Second)
	require.Less(t, edgeDrain, edgeShutdown)
	require.Less(t, drainTimeout, serviceShutdown)
}

func TestOnASharedDatabaseNoAgentOfThisHostTakesAnothersName(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.cfg.Postgres.URL = secretbox.NewSecret(s.db.URL())
	enrol := func(r *replica, instance string) error {
		token, err := r.p.joinToken(t.Context())
		require.NoError(t, err)
		agents := agentv1.NewAgentServiceClient(r.dial(nameGateway, nameInventory))
		_, err = agents.Enroll(rpcctx.WithCaller(t.Context(), rpcctx.AnonymousCaller()), &agentv1.EnrollRequest{
			JoinToken: token.Reveal(), Name: "this-host", InstanceId: instance, Host: &agentv1.HostInfo{Hostname: "this-host"},
		})
		return err
	}
	require.NoError(t, enrol(s.start(), "the-first-of-two"))
	require.Equal(t, "AGENT_NAME_TAKEN", errs.ReasonOf(enrol(s.start(), "the-other-of-two")))
}

func TestSecretsThatAnotherProcessWouldNotHaveAreNamed(t *testing.T) {
	t.Parallel()
	load := func(environ ...string) []string {
		var cfg settings.Server
		_, err := config.Load(&cfg, environ, config.Options{})
		require.NoError(t, err)
		return unshared(cfg)
	}
	const url = "CERTCTL_DATABASE_URL=postgres://user:password@db.example.com/certctl"
	require.Empty(t, load())
	require.Equal(t, []string{"CERTCTL_INTERNAL_SECRET", "CERTCTL_ENCRYPTION_KEY", "CERTCTL_AUTH_SECRET"}, load(url))
	require.Equal(t, []string{"CERTCTL_ENCRYPTION_KEY"},
		load(url, "CERTCTL_INTERNAL_SECRET=sixteen bytes and more", "CERTCTL_AUTH_SECRET=sixteen-bytes-and-more"))
}

// lines gives each write to a channel.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

func TestTheEndOfThePrivatePostgresIsTheEndOfTheProcess(t *testing.T) {
	t.Parallel()
	dir := testpg.Dir(t)
	var cfg settings.Server
	_, err := config.Load(&cfg, []string{"CERTCTL_DATA_DIR=" + dir, "CERTCTL_LISTEN_ADDR=127.0.0.1:0", "CERTCTL_LOG_LEVEL=error"}, config.Options{})
	require.NoError(t, err)
	out := make(lines, 1)
	ended := run.Go(func() error { return All(t.Context(), cfg, out) })
	select {
	case <-out:
	case err := <-ended:
		require.NoError(t, err)
	}
	content, err := os.ReadFile(filepath.Join(dir, "postgres", "data", "postmaster.pid"))
	require.NoError(t, err)
	line, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(line)
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	select {
	case err := <-ended:
		require.ErrorContains(t, err, "the private Postgres has ended by itself")
	case <-time.After(patience):
		require.Fail(t, "it goes on without its database")
	}
}
