package embeddedpg

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/internal/pgserver"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
)

// helperDir names the variable that turns this test binary into a process that starts a server and waits to be killed.
const helperDir = "EMBEDDEDPG_TEST_HELPER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperDir); dir != "" {
		server, err := Start(context.Background(), Config{DataDir: dir})
		if err != nil {
			_, _ = fmt.Fprintln(os.Stdout, "error:", err)
			os.Exit(1)
		}
		_, _ = fmt.Fprintln(os.Stdout, "pid:", server.process.PID())
		<-server.Done()
		return
	}
	os.Exit(m.Run())
}

func start(t *testing.T, dir string) *Server {
	t.Helper()
	server, err := Start(t.Context(), Config{DataDir: dir})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop(context.WithoutCancel(t.Context()))) })
	return server
}

func stop(t *testing.T, server *Server) {
	t.Helper()
	require.NoError(t, server.Stop(t.Context()))
	<-server.Done()
}

// query runs statements and gives the one text that the last of them returns.
func query(t *testing.T, server *Server, statements ...string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), server.URL())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	last := len(statements) - 1
	for _, statement := range statements[:last] {
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	var text string
	require.NoError(t, conn.QueryRow(t.Context(), statements[last]).Scan(&text))
	return text
}

func TestTheSecondStartFindsEverythingAsItWas(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(testpg.Dir(t), "fresh")
	first := start(t, dir)
	require.Empty(t, query(t, first, "CREATE TABLE kept (body text)", "INSERT INTO kept VALUES ('here')", "SHOW listen_addresses"))
	stop(t, first)
	require.NoError(t, first.Stop(t.Context()), "stopping again does nothing")

	began := time.Now()
	second := start(t, dir)
	t.Log("second start took", time.Since(began))
	require.Equal(t, "here", query(t, second, "SELECT body FROM kept"))
	require.Equal(t, "on", query(t, second, "SHOW data_checksums"))
	require.Equal(t, "on", query(t, second, "SHOW fsync"))
}

func TestTheServicesMigrateAndOpenWithoutAnySecret(t *testing.T) {
	t.Parallel()
	base := secretbox.NewSecret(start(t, testpg.Dir(t)).URL())
	quotas, err := pg.ParseQuotas(pg.DefaultQuotas, pg.DefaultMaxConns)
	require.NoError(t, err)
	schema := pg.Schema{Name: "inventory", FS: fstest.MapFS{"migrations/00001_init.sql": {Data: []byte("-- +goose Up\nCREATE TABLE item (id int);\n")}}}
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: base, Schemas: []pg.Schema{schema}, Quotas: quotas}))
	db, err := pg.Open(t.Context(), pg.Config{BaseURL: base, Service: "inventory", MaxConns: quotas["inventory"], Listen: true})
	require.NoError(t, err)
	defer db.Close()
	_, err = db.Pool.Exec(t.Context(), "INSERT INTO item (id) VALUES (1)")
	require.NoError(t, err)
}

func TestTwoAtATimeAreRefusedWithThePIDOfTheOther(t *testing.T) {
	t.Parallel()
	dir := testpg.Dir(t)
	first := start(t, dir)
	_, err := Start(t.Context(), Config{DataDir: dir})
	inUse, ok := errors.AsType[*InUseError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, os.Getpid(), inUse.PID)
	require.ErrorContains(t, err, strconv.Itoa(os.Getpid()))
	require.Equal(t, "1", query(t, first, "SELECT '1'"), "the first is not disturbed")
	stop(t, first)
	start(t, dir)
}

func TestPostgresRunsUnprivileged(t *testing.T) {
	t.Parallel()
	server := start(t, testpg.Dir(t))
	account, err := pgserver.Unprivileged()
	require.NoError(t, err)
	info, err := os.Stat(filepath.Join("/proc", strconv.Itoa(server.process.PID())))
	require.NoError(t, err)
	st, ok := info.Sys().(*syscall.Stat_t)
	require.True(t, ok)
	require.NotZero(t, st.Uid)
	require.EqualValues(t, account.UID(), st.Uid)
	private, err := os.Stat(server.site.home())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), private.Mode().Perm())
}

func TestADirectoryThatPostgresCannotGetToIsNamed(t *testing.T) {
	t.Parallel()
	shut := filepath.Join(testpg.Dir(t), "shut")
	require.NoError(t, os.Mkdir(shut, 0o700))
	server, err := Start(t.Context(), Config{DataDir: filepath.Join(shut, "data")})
	if os.Geteuid() != 0 {
		require.NoError(t, err, "without root Postgres runs as this user, who may pass")
		stop(t, server)
		return
	}
	require.ErrorContains(t, err, "may not pass through "+shut+":")
	require.ErrorContains(t, err, "CERTCTL_DATA_DIR")
	require.ErrorContains(t, err, "chmod o+x "+shut)
}

func TestADataDirectoryMadePrivateBeforeIsOpenedToPostgresOnly(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(testpg.Dir(t), "data")
	require.NoError(t, os.Mkdir(dir, 0o700))
	start(t, dir)
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Zero(t, info.Mode().Perm()&0o066, "nobody else may list it or write to it")
}

func TestAfterKillNinePostgresEndsAndTheNextStartWorks(t *testing.T) {
	t.Parallel()
	dir := testpg.Dir(t)
	helper := exec.CommandContext(t.Context(), os.Args[0])
	helper.Env = append(os.Environ(), helperDir+"="+dir)
	out, err := helper.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, helper.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	text, ok := strings.CutPrefix(strings.TrimSpace(line), "pid: ")
	require.True(t, ok, line)
	pid, err := strconv.Atoi(text)
	require.NoError(t, err)

	_, err = Start(t.Context(), Config{DataDir: dir})
	inUse, ok := errors.AsType[*InUseError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, helper.Process.Pid, inUse.PID)

	place, err := newSite(dir)
	require.NoError(t, err)
	conn, err := pgx.Connect(t.Context(), pgserver.Config{SocketDir: filepath.Join(place.home(), "run"), Superuser: superuser}.URL(database))
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "CREATE TABLE kept AS SELECT 'here' AS body")
	require.NoError(t, err)

	require.NoError(t, helper.Process.Kill())
	require.Error(t, helper.Wait())
	_ = conn.Close(t.Context())
	server := start(t, dir) // at once, while the other may still be ending
	require.Equal(t, "here", query(t, server, "SELECT body FROM kept"))
	require.NotEqual(t, pid, server.process.PID())
	require.False(t, postgresRuns(pid, place), "the first Postgres is gone")
}

func postgresRuns(pid int, place site) bool {
	cwd, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "cwd"))
	return err == nil && cwd == place.data()
}

func TestPostgresDoesNotOutliveAKilledParent(t *testing.T) {
	t.Parallel()
	dir := testpg.Dir(t)
	helper := exec.CommandContext(t.Context(), os.Args[0])
	helper.Env = append(os.Environ(), helperDir+"="+dir)
	out, err := helper.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, helper.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(line), "pid: "))
	require.NoError(t, err)
	place, err := newSite(dir)
	require.NoError(t, err)
	require.True(t, postgresRuns(pid, place))
	require.NoError(t, helper.Process.Kill())
	require.Error(t, helper.Wait())
	require.Eventually(t, func() bool { return !postgresRuns(pid, place) }, 20*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(place.data(), "postmaster.pid"))
		return os.IsNotExist(err)
	}, 20*time.Second, 10*time.Millisecond, "it was shut down in order")
}

func TestAServerLeftRunningIsEndedInOrder(t *testing.T) {
	t.Parallel()
	dir := testpg.Dir(t)
	first := start(t, dir)
	query(t, first, "CREATE TABLE kept AS SELECT 'here' AS body", "SELECT 'made'")
	config := first.config
	stop(t, first)
	config.DieWithParent = false // as where the kernel cannot
	left, err := pgserver.Start(config)
	require.NoError(t, err)
	waited := make(chan error, 1)
	go func() { waited <- left.Wait() }()
	require.NoError(t, left.Ready(t.Context(), func() bool { return false }))

	second := start(t, dir)
	require.NoError(t, <-waited, "fast shutdown ends with status 0")
	require.Equal(t, "here", query(t, second, "SELECT body FROM kept"))
}

func TestAStalePIDFileOfAnotherProcessIsNoHindrance(t *testing.T) {
	t.Parallel()
	dir := testpg.Dir(t)
	first := start(t, dir)
	stop(t, first)
	// A process that lives and is not Postgres, as after a restart of the machine.
	other := exec.CommandContext(t.Context(), "sleep", "60")
	require.NoError(t, other.Start())
	defer func() { _ = other.Wait() }()
	defer func() { require.NoError(t, other.Process.Kill()) }()
	text := fmt.Sprintf("%d\n%s\n0\n5432\n\n\n", other.Process.Pid, first.site.data())
	require.NoError(t, os.WriteFile(filepath.Join(first.site.data(), "postmaster.pid"), []byte(text), 0o600))
	start(t, dir)
	require.NoError(t, other.Process.Signal(syscall.Signal(0)), "the other process was left alone")
}

func TestATooLongPathPutsTheSocketElsewhere(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(testpg.Dir(t), strings.Repeat("long", 30))
	first := start(t, dir)
	require.Equal(t, "1", query(t, first, "SELECT '1'"))
	u, err := url.Parse(first.URL())
	require.NoError(t, err)
	socketDir := u.Query().Get("host")
	require.NotContains(t, socketDir, "long")
	info, err := os.Stat(socketDir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	stop(t, first)
	require.NoDirExists(t, socketDir)
	require.Equal(t, "1", query(t, start(t, dir), "SELECT '1'"))
}

func TestADirectoryOfAnotherVersionIsRefusedWithTheWaysOut(t *testing.T) {
	t.Parallel()
	dir := testpg.Dir(t)
	data := filepath.Join(dir, "postgres", "data")
	require.NoError(t, os.MkdirAll(data, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("12\n"), 0o600))
	_, err := Start(t.Context(), Config{DataDir: dir})
	version, ok := errors.AsType[*VersionError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, 12, version.Major)
	require.ErrorContains(t, err, "made by Postgres 12")
	require.ErrorContains(t, err, "CERTCTL_POSTGRES_BIN")
}

func TestTheBinariesOfTheDirectorysVersionAreChosen(t *testing.T) {
	t.Parallel()
	dir := testpg.Dir(t)
	place := site{dir: dir}
	require.NoError(t, os.MkdirAll(place.data(), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(place.data(), "PG_VERSION"), []byte("15\n"), 0o600))
	find := func(context.Context, string) ([]pgserver.Binaries, error) {
		return []pgserver.Binaries{{Dir: "/new", Major: 18}, {Dir: "/old", Major: 15}}, nil
	}
	chosen, err := choose(t.Context(), Config{find: find}, place)
	require.NoError(t, err)
	require.Equal(t, "/old", chosen.Dir)
	chosen, err = choose(t.Context(), Config{find: find}, site{dir: filepath.Join(dir, "empty")})
	require.NoError(t, err)
	require.Equal(t, "/new", chosen.Dir)
}

func TestAnInterruptedFirstStartIsBegunAnew(t *testing.T) {
	t.Parallel()
	dir := testpg.Dir(t)
	half := filepath.Join(dir, "postgres", "data.new")
	require.NoError(t, os.MkdirAll(half, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(half, "PG_VERSION"), []byte("15\n"), 0o600))
	require.Equal(t, "1", query(t, start(t, dir), "SELECT '1'"))
}

func TestAStartThatFailsShowsTheEndOfTheLog(t *testing.T) {
	t.Parallel()
	dir := testpg.Dir(t)
	first := start(t, dir)
	stop(t, first)
	conf := filepath.Join(first.site.data(), "postgresql.conf")
	require.NoError(t, os.WriteFile(conf, []byte("no_such_setting = 1\n"), 0o600))
	_, err := Start(t.Context(), Config{DataDir: dir})
	require.ErrorContains(t, err, "no_such_setting")
	require.ErrorContains(t, err, "postgres.log")
	require.NoError(t, os.WriteFile(conf, nil, 0o600))
	start(t, dir) // the lock was given back
}

func TestBinariesThatWereNamedButAreNotThereAreAnError(t *testing.T) {
	t.Parallel()
	dir := testpg.Dir(t)
	_, err := Start(t.Context(), Config{DataDir: dir, BinDir: filepath.Join(dir, "nothing")})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, filepath.Join(dir, "nothing"))
}

func TestALargeLogIsRotated(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	require.NoError(t, rotate(path))
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, rotate(path))
	require.FileExists(t, path)
	require.NoError(t, os.Truncate(path, maxLog))
	require.NoError(t, rotate(path))
	require.NoFileExists(t, path)
	require.FileExists(t, path+".1")
}

func TestAFirstStartIsNotDisturbedByAnInterruptedOneThatStillWrites(t *testing.T) {
	t.Parallel()
	dir := testpg.Dir(t)
	half := filepath.Join(dir, "postgres", "data.new")
	writing := func(ctx context.Context) error {
		for n := 0; ctx.Err() == nil; n++ {
			_ = os.MkdirAll(half, 0o700) // it is removed again and again
			_ = os.WriteFile(filepath.Join(half, strconv.Itoa(n%1000)), nil, 0o600)
		}
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	require.NoError(t, os.MkdirAll(half, 0o700))
	orphan := run.Go(func() error { return writing(ctx) })
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-orphan)
	})
	require.Equal(t, "here", query(t, start(t, dir), "SELECT 'here'"))
}
