package pg_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
)

// basePassword has everything that must be escaped somewhere.
const basePassword = `p/a@s'w#o?r%d,$1`

// tcpServer is a server that asks for passwords.
type tcpServer struct{ *testpg.Server }

func newTCPServer(t *testing.T, maxConnections string) tcpServer {
	t.Helper()
	settings := map[string]string{}
	if maxConnections != "" {
		settings["max_connections"] = maxConnections
	}
	return tcpServer{testpg.NewServer(t, testpg.ServerConfig{Password: basePassword, Settings: settings})}
}

func (s tcpServer) exec(t *testing.T, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	for _, statement := range statements {
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
}

func (s tcpServer) base(database string) secretbox.Secret {
	return secretbox.NewSecret(s.TCPURL(database, basePassword))
}

// as is the address for another user than the superuser.
func (s tcpServer) as(user, password, database string) string {
	u, err := url.Parse(s.TCPURL(database, basePassword))
	if err != nil {
		panic(err)
	}
	u.User = url.UserPassword(user, password)
	return u.String()
}

// fill takes every connection that the pool may have, until the test ends.
func fill(t *testing.T, pool *pg.Pool) {
	t.Helper()
	for range pool.Config().MaxConns {
		conn, err := pool.Acquire(t.Context())
		require.NoError(t, err)
		t.Cleanup(conn.Release)
	}
}

func TestTheConnectionBeyondTheQuotaIsRefusedAndExplained(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "60")
	quotas, err := pg.ParseQuotas(pg.DefaultQuotas, pg.DefaultMaxConns)
	require.NoError(t, err)
	var schemas []pg.Schema
	for service := range quotas {
		schemas = append(schemas, pg.Schema{Name: service, FS: files(createItem)})
	}
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: server.base("postgres"), Schemas: schemas, Quotas: quotas}))
	for service, quota := range quotas {
		db, err := pg.Open(t.Context(), pg.Config{BaseURL: server.base("postgres"), Service: service, MaxConns: quota})
		require.NoError(t, err)
		t.Cleanup(db.Close)
		fill(t, db.Pool)
	}
	for service := range quotas {
		_, err := pg.Open(t.Context(), pg.Config{BaseURL: server.base("postgres"), Service: service, MaxConns: 1})
		requireState(t, err, "53300")
		requireAdvice(t, err, "53300", "certctl_"+service, "CERTCTL_DATABASE_POOL_QUOTAS", "certctl migrate")
		require.True(t, pg.Transient(err))
	}
}

func TestTheListenerCountsInsideTheShare(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{
		BaseURL: server.base("postgres"), Schemas: []pg.Schema{inventory()}, Quotas: map[string]int{"inventory": 3},
	}))
	db, err := pg.Open(t.Context(), pg.Config{BaseURL: server.base("postgres"), Service: "inventory", MaxConns: 3, Listen: true})
	require.NoError(t, err)
	t.Cleanup(db.Close) // after the connections are given back
	require.EqualValues(t, 2, db.Pool.Config().MaxConns)
	fill(t, db.Pool)
	events := listen(t, db, "hint")
	require.True(t, (<-events).Resync, "the third connection is the listener's")
}

func TestAWrongPasswordNamesBothWaysOut(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: server.base("postgres"), Schemas: []pg.Schema{inventory()}}))
	wrong := secretbox.NewSecret(server.TCPURL("postgres", "another-password"))

	_, err := pg.Open(t.Context(), pg.Config{BaseURL: wrong, Service: "inventory", MaxConns: 2, StartWait: time.Minute})
	requireState(t, err, "28P01")
	requireAdvice(t, err, "28P01", "certctl_inventory", "ALTER ROLE", "put the old password back", "certctl migrate")
	require.NotContains(t, err.Error(), "another-password")

	err = pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: wrong, Schemas: []pg.Schema{inventory()}, StartWait: time.Minute})
	requireState(t, err, "28P01")
	requireAdvice(t, err, "ALTER ROLE", "put the old password back")
}

func TestAChangedBasePasswordReachesTheRolesByMigrating(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	migrateWith := func(base secretbox.Secret) {
		require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: base, Schemas: []pg.Schema{inventory()}}))
	}
	migrateWith(server.base("postgres"))
	server.exec(t, "ALTER ROLE certctl PASSWORD 'changed'")
	changed := secretbox.NewSecret(server.TCPURL("postgres", "changed"))
	cfg := pg.Config{BaseURL: changed, Service: "inventory", MaxConns: 2}
	_, err := pg.Open(t.Context(), cfg)
	requireState(t, err, "28P01")
	migrateWith(changed)
	db, err := pg.Open(t.Context(), cfg)
	require.NoError(t, err)
	db.Close()
}

func TestAMissingDatabaseIsExplained(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	err := pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: server.base("nowhere"), Schemas: []pg.Schema{inventory()}})
	requireState(t, err, "3D000")
	requireAdvice(t, err, `CREATE DATABASE "nowhere"`)
}

func TestAMissingRoleIsExplained(t *testing.T) {
	t.Parallel()
	server := testpg.NewServer(t, testpg.ServerConfig{})
	_, err := pg.Open(t.Context(), pg.Config{BaseURL: secretbox.NewSecret(server.URL()), Service: "inventory", MaxConns: 2})
	requireState(t, err, "28000")
	requireAdvice(t, err, "certctl_inventory", "certctl migrate")
}

func TestAServerThatIsDownIsExplained(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	server.Stop(t)
	_, err := pg.Open(t.Context(), pg.Config{BaseURL: server.base("postgres"), Service: "inventory", MaxConns: 2})
	requireAdvice(t, err, "nothing listens on 127.0.0.1:", "CERTCTL_DATABASE_URL")
	_, err = pg.Open(t.Context(), pg.Config{BaseURL: secretbox.NewSecret(server.URL()), Service: "inventory", MaxConns: 2})
	requireAdvice(t, err, "is not there", "unix_socket_directories")
	nameless := secretbox.NewSecret("postgres://u:p@no-such-host.invalid/db")
	_, err = pg.Open(t.Context(), pg.Config{BaseURL: nameless, Service: "inventory", MaxConns: 2})
	requireAdvice(t, err, `"no-such-host.invalid" of CERTCTL_DATABASE_URL cannot be resolved`)
}

func TestOpenWaitsForAServerThatComesUp(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: server.base("postgres"), Schemas: []pg.Schema{inventory()}}))
	server.Stop(t)
	opened := make(chan error, 1)
	go func() {
		db, err := pg.Open(t.Context(), pg.Config{BaseURL: server.base("postgres"), Service: "inventory", MaxConns: 2, StartWait: time.Minute})
		if err == nil {
			db.Close()
		}
		opened <- err
	}()
	server.Start(t)
	require.NoError(t, <-opened)
}

func TestOpenGivesUpWhenTheWaitIsOver(t *testing.T) {
	t.Parallel()
	base := secretbox.NewSecret("postgres://certctl@/db?host=" + url.QueryEscape(filepath.Join(t.TempDir(), "none")))
	_, err := pg.Open(t.Context(), pg.Config{BaseURL: base, Service: "inventory", MaxConns: 2, StartWait: 300 * time.Millisecond})
	requireAdvice(t, err, "is not there")
}

func TestAURLThatDoesNotParseKeepsItsPassword(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "localhost/certctl", "postgres://u:sec/ret@h:99999999/db", "postgres://u:secret@h:port/db",
		"postgres://u:secret@h/db?sslmode=maybe", "postgres://u:sec%ret@h/db?connect_timeout=x",
	} {
		_, err := pg.Open(t.Context(), pg.Config{BaseURL: secretbox.NewSecret(text), Service: "inventory", MaxConns: 2})
		require.ErrorContains(t, err, "CERTCTL_DATABASE_URL is not a Postgres URL")
		require.NotContains(t, err.Error(), "sec")
	}
}

func TestWithoutAPasswordOverTCPARoleSecretIsAskedFor(t *testing.T) {
	t.Setenv("PGPASSFILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("PGPASSWORD", "")
	cfg := pg.Config{BaseURL: secretbox.NewSecret("postgres://certctl@127.0.0.1:1/db"), Service: "inventory", MaxConns: 2}
	_, err := pg.Open(t.Context(), cfg)
	require.ErrorIs(t, err, pg.ErrNoRoleSecret)
	require.ErrorContains(t, err, "CERTCTL_DATABASE_ROLE_SECRET")
	cfg.RoleSecret = secretbox.NewSecret("long and random")
	_, err = pg.Open(t.Context(), cfg)
	requireAdvice(t, err, "nothing listens")
}

func TestTheRoleSecretGoesBeforeThePassword(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	secret := secretbox.NewSecret("long and random")
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: server.base("postgres"), RoleSecret: secret, Schemas: []pg.Schema{inventory()}}))
	password := pg.RolePassword(secret, "certctl_inventory")
	conn, err := pgx.Connect(t.Context(), server.as("certctl_inventory", password.Reveal(), "postgres"))
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
}

func TestRolePasswordsAreHexHMACOverTheRole(t *testing.T) {
	t.Parallel()
	// From: printf certctl_audit | openssl dgst -sha256 -hmac base
	require.Equal(t, "d0d7ac4e38e834eeb8d803b244c7f9171978e86d7fd9b6cf16c8fcf78208f2a2", pg.RolePassword(secretbox.NewSecret("base"), "certctl_audit").Reveal())
}

func TestSessionsOfARoleHaveTimeoutsAndAName(t *testing.T) {
	t.Parallel()
	db := testpg.New(t, inventory())
	var statement, lock, idle, name, path, page, jit string
	require.NoError(t, db.Pool.QueryRow(t.Context(), `SELECT current_setting('statement_timeout'), current_setting('lock_timeout'),
		current_setting('idle_in_transaction_session_timeout'), current_setting('application_name'), current_setting('search_path'),
		current_setting('random_page_cost'), current_setting('jit')`).
		Scan(&statement, &lock, &idle, &name, &path, &page, &jit))
	require.Equal(t, []string{"30s", "5s", "1min", "certctl/inventory", "inventory", "1.1", "off"}, []string{statement, lock, idle, name, path, page, jit})
}

func TestAConfigThatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	base := secretbox.NewSecret(testpg.URL(t))
	for _, cfg := range []pg.Config{
		{BaseURL: base, MaxConns: 2},
		{BaseURL: base, Service: "inventory"},
		{BaseURL: base, Service: "inventory", MaxConns: 1, Listen: true},
	} {
		_, err := pg.Open(t.Context(), cfg)
		require.Error(t, err)
	}
}

// TestARestartUnderLoadLosesNothing has writers that try again on what Transient names, and checks that
// every acknowledged row is there.
func TestARestartUnderLoadLosesNothing(t *testing.T) {
	t.Parallel()
	// Acknowledged means on disk: the settings of test servers do not promise that.
	server := testpg.NewServer(t, testpg.ServerConfig{Settings: map[string]string{"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}})
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: secretbox.NewSecret(server.URL()), Schemas: []pg.Schema{inventory()}}))
	db, err := pg.Open(t.Context(), pg.Config{BaseURL: secretbox.NewSecret(server.URL()), Service: "inventory", MaxConns: 8})
	require.NoError(t, err)
	defer db.Close()

	var acknowledged, retried atomic.Int64
	var stopping atomic.Bool
	group, ctx := errgroup.WithContext(t.Context())
	for writer := range 6 {
		group.Go(func() error {
			for n := 0; !stopping.Load(); n++ {
				if err := writeUntilDone(ctx, db, int64(writer*1_000_000+n), &retried); err != nil {
					return err
				}
				acknowledged.Add(1)
			}
			return nil
		})
	}
	progress := func() {
		from := acknowledged.Load()
		require.Eventually(t, func() bool { return acknowledged.Load() > from+200 || ctx.Err() != nil }, 30*time.Second, time.Millisecond)
	}
	progress()
	server.Restart(t)
	progress()
	server.Kill(t)
	server.Start(t)
	progress()
	stopping.Store(true)
	require.NoError(t, group.Wait())
	require.Positive(t, retried.Load(), "the restarts were felt")
	var rows int64
	require.NoError(t, db.Pool.QueryRow(t.Context(), "SELECT count(*) FROM item").Scan(&rows))
	require.Equal(t, acknowledged.Load(), rows)
}

// writeUntilDone repeats a statement that may be repeated, as every writer of ours is made.
func writeUntilDone(ctx context.Context, db *pg.DB, id int64, retried *atomic.Int64) error {
	for {
		err := db.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO item (id) VALUES ($1) ON CONFLICT DO NOTHING", id)
			return err
		})
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || !pg.Transient(err) {
			return fmt.Errorf("write %d: %w", id, err)
		}
		retried.Add(1)
		pause := time.NewTimer(5 * time.Millisecond)
		<-pause.C
	}
}

func TestTxCommitsAndRollsBack(t *testing.T) {
	t.Parallel()
	db := testpg.New(t, inventory())
	insert := func(id int, end func() error) error {
		return db.Tx(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO item (id) VALUES ($1)", id)
			return errors.Join(err, end())
		})
	}
	sentinel := errors.New("no")
	require.NoError(t, insert(1, func() error { return nil }))
	require.ErrorIs(t, insert(2, func() error { return sentinel }), sentinel)
	require.Panics(t, func() { _ = insert(3, func() error { panic("oh") }) })
	var ids []int64
	rows, err := db.Pool.Query(t.Context(), "SELECT id FROM item")
	require.NoError(t, err)
	ids, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	require.NoError(t, err)
	require.Equal(t, []int64{1}, ids)
	require.Zero(t, db.Pool.Stat().AcquiredConns(), "every connection was given back")
}

func TestTxRunsAgainWhenPostgresGaveItUp(t *testing.T) {
	t.Parallel()
	db := testpg.New(t, inventory())
	_, err := db.Pool.Exec(t.Context(), "INSERT INTO item (id, body) VALUES (1, '')")
	require.NoError(t, err)
	var runs atomic.Int64
	var group errgroup.Group
	both := make(chan struct{})
	var inside atomic.Int64
	for range 2 {
		group.Go(func() error {
			return db.TxOptions(t.Context(), pgx.TxOptions{IsoLevel: pgx.Serializable}, func(ctx context.Context, tx pgx.Tx) error {
				runs.Add(1)
				var body string
				if err := tx.QueryRow(ctx, "SELECT body FROM item WHERE id = 1").Scan(&body); err != nil {
					return err
				}
				if inside.Add(1) == 2 {
					close(both)
				}
				<-both // both have read before either writes
				_, err := tx.Exec(ctx, "UPDATE item SET body = $1 WHERE id = 1", body+"x")
				return err
			})
		})
	}
	require.NoError(t, group.Wait())
	require.GreaterOrEqual(t, runs.Load(), int64(3))
	var body string
	require.NoError(t, db.Pool.QueryRow(t.Context(), "SELECT body FROM item").Scan(&body))
	require.Equal(t, "xx", body)
}

func TestTxGivesUpAfterAFewConflicts(t *testing.T) {
	t.Parallel()
	db := testpg.New(t, inventory())
	runs := 0
	err := db.Tx(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		runs++
		_, err := tx.Exec(ctx, "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$")
		return err
	})
	requireState(t, err, "40001")
	require.Equal(t, 5, runs)
}

// listen collects what the listener is told until the test ends.
func listen(t *testing.T, db *pg.DB, channels ...string) <-chan pg.Notification {
	t.Helper()
	events := make(chan pg.Notification, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- db.Listen(ctx, channels, func(n pg.Notification) { events <- n }) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return events
}

func TestListenHearsAndComesBackWithAResync(t *testing.T) {
	t.Parallel()
	database := testpg.NewDatabase(t, inventory())
	db := database.Open(t, "inventory")
	admin := database.Admin(t)
	events := listen(t, db, "work", "agent hints")
	require.Equal(t, pg.Notification{Resync: true}, <-events)
	say := func(channel, payload string) {
		_, err := db.Pool.Exec(t.Context(), "SELECT pg_notify($1, $2)", channel, payload)
		require.NoError(t, err)
		require.Equal(t, pg.Notification{Channel: channel, Payload: payload}, <-events)
	}
	say("work", "1")
	say("agent hints", "2")

	tag, err := admin.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'")
	require.NoError(t, err)
	require.EqualValues(t, 1, tag.RowsAffected())
	require.Equal(t, pg.Notification{Resync: true}, <-events)
	say("work", "3")
}

func TestListenIsRefusedTwiceAndWithoutAConnectionForIt(t *testing.T) {
	t.Parallel()
	database := testpg.NewDatabase(t, inventory())
	db := database.Open(t, "inventory")
	events := listen(t, db, "work")
	<-events
	require.ErrorContains(t, db.Listen(t.Context(), []string{"other"}, nil), "already listening")

	cfg := database.Config("inventory")
	cfg.Listen = false
	deaf, err := pg.Open(t.Context(), cfg)
	require.NoError(t, err)
	defer deaf.Close()
	require.ErrorContains(t, deaf.Listen(t.Context(), []string{"work"}, nil), "without Config.Listen")
}

// answerTLS is a server that answers one byte to the request for TLS, and then what serve does.
func answerTLS(t *testing.T, answer byte, serve func(net.Conn)) secretbox.Secret {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, listener.Close()) })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, 8))
			_, _ = conn.Write([]byte{answer})
			serve(conn)
			_ = conn.Close()
		}
	}()
	return secretbox.NewSecret("postgres://certctl:pw@" + listener.Addr().String() + "/db?sslmode=verify-full")
}

func TestTLSFailuresAreExplained(t *testing.T) {
	t.Parallel()
	open := func(base secretbox.Secret) error {
		_, err := pg.Open(t.Context(), pg.Config{BaseURL: base, Service: "inventory", MaxConns: 2, StartWait: time.Minute})
		return err
	}
	err := open(answerTLS(t, 'S', func(conn net.Conn) {
		_ = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}, MinVersion: tls.VersionTLS13}).Handshake()
	}))
	requireAdvice(t, err, "sslrootcert=")
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	require.True(t, ok)

	err = open(answerTLS(t, 'N', func(net.Conn) {}))
	requireAdvice(t, err, "ssl = on", "sslmode=disable")
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"elsewhere"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestADiskThatIsFullMayHaveRoomLater(t *testing.T) {
	t.Parallel()
	err := &pgconn.PgError{Severity: "ERROR", Code: "53100", Message: "could not extend file: No space left on device"}
	require.True(t, pg.Transient(err))
	requireAdvice(t, pg.Diagnose(err), "53100", "make room")
}

func TestDiagnoseLeavesOtherErrorsAlone(t *testing.T) {
	t.Parallel()
	require.NoError(t, pg.Diagnose(nil))
	other := errors.New("password authentication failed")
	require.Equal(t, other, pg.Diagnose(other), "a text decides nothing")
	once := pg.Diagnose(&pg.Problem{Advice: "do", Cause: other})
	require.Equal(t, "do [password authentication failed]", once.Error())
	require.Equal(t, once, pg.Diagnose(once))
	require.NotContains(t, pg.Diagnose(io.EOF).Error(), "Postgres")
}
