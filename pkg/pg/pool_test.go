package pg_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
)

const (
	oldRoleSecret = "the role secret of before"
	newRoleSecret = "the role secret of after"
)

func (s tcpServer) migrate(t *testing.T, roleSecret string) {
	t.Helper()
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{
		BaseURL: s.base("postgres"), RoleSecret: secretbox.NewSecret(roleSecret), Schemas: []pg.Schema{inventory()},
	}))
}

func (s tcpServer) open(t *testing.T, roleSecret string) *pg.DB {
	t.Helper()
	db, err := pg.Open(t.Context(), pg.Config{
		BaseURL: s.base("postgres"), RoleSecret: secretbox.NewSecret(roleSecret), Service: "inventory", MaxConns: 6, Listen: true,
	})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	return db
}

// logsIn tells whether a role secret is the one in force.
func (s tcpServer) logsIn(t *testing.T, roleSecret string) bool {
	t.Helper()
	password := pg.RolePassword(secretbox.NewSecret(roleSecret), "certctl_inventory")
	conn, err := pgx.Connect(t.Context(), s.as("certctl_inventory", password.Reveal(), "postgres"))
	if err != nil {
		requireState(t, err, "28P01")
		return false
	}
	require.NoError(t, conn.Close(t.Context()))
	return true
}

// churn closes pooled connections, so that others are opened all the time.
func churn(ctx context.Context, db *pg.DB) error {
	conn, err := db.Pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return conn.Conn().Close(ctx)
}

// requests is one of each kind.
func requests(ctx context.Context, db *pg.DB, id int64) error {
	if _, err := db.Pool.Exec(ctx, "INSERT INTO item (id, body) VALUES ($1, '')", id); err != nil {
		return err
	}
	var got int64
	if err := db.Pool.QueryRow(ctx, "SELECT id FROM item WHERE id = $1", id).Scan(&got); err != nil {
		return err
	}
	rows, err := db.Pool.Query(ctx, "SELECT id FROM item WHERE id = $1", id)
	if err != nil {
		return err
	}
	if _, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int64]); err != nil {
		return err
	}
	if err := db.Pool.Ping(ctx); err != nil {
		return err
	}
	return db.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "DELETE FROM item WHERE id = $1", id)
		return err
	})
}

// TestNoRequestFailsWhileTheRoleSecretIsReplaced goes through the stages of a rotation: in each, migrate runs, and then the
// replica of the stage before is replaced by one of this stage.
func TestNoRequestFailsWhileTheRoleSecretIsReplaced(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	server.migrate(t, oldRoleSecret)
	var current atomic.Pointer[pg.DB]
	current.Store(server.open(t, oldRoleSecret))

	var done atomic.Int64
	var stopping atomic.Bool
	group, ctx := errgroup.WithContext(t.Context())
	for worker := range 4 {
		group.Go(func() error {
			for n := 0; !stopping.Load(); n++ {
				if err := requests(ctx, current.Load(), int64(worker*1_000_000+n)); err != nil {
					return err
				}
				done.Add(1)
			}
			return nil
		})
	}
	group.Go(func() error {
		for !stopping.Load() {
			if err := churn(ctx, current.Load()); err != nil {
				return err
			}
		}
		return nil
	})
	progress := func() {
		from := done.Load()
		require.Eventually(t, func() bool { return done.Load() > from+100 || ctx.Err() != nil }, 30*time.Second, time.Millisecond)
	}
	progress()
	for _, list := range []string{oldRoleSecret + "," + newRoleSecret, newRoleSecret + "," + oldRoleSecret, newRoleSecret} {
		server.migrate(t, list)
		progress()
		current.Store(server.open(t, list))
		progress()
	}
	stopping.Store(true)
	require.NoError(t, group.Wait(), "a request failed")
	require.True(t, server.logsIn(t, newRoleSecret))
	require.False(t, server.logsIn(t, oldRoleSecret))
}

func TestTheListenerComesBackWithTheNewPassword(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	server.migrate(t, oldRoleSecret)
	db := server.open(t, oldRoleSecret+","+newRoleSecret)
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan pg.Notification, 16)
	ended := make(chan error, 1)
	go func() { ended <- db.Listen(ctx, []string{"news"}, func(n pg.Notification) { heard <- n }) }()
	next := func() (n pg.Notification) {
		select {
		case n = <-heard:
		case <-time.After(30 * time.Second):
			require.Fail(t, "nothing is heard")
		}
		return n
	}
	require.True(t, next().Resync)

	server.migrate(t, newRoleSecret)
	server.exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'certctl_inventory'")
	require.True(t, next().Resync, "it listens again")
	server.exec(t, "NOTIFY news, 'good'")
	require.Equal(t, "good", next().Payload)
	cancel()
	require.NoError(t, <-ended)
}

// TestARoleSecretIsIntroducedWithoutAStop is the way for those who had only the base password until now.
func TestARoleSecretIsIntroducedWithoutAStop(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	server.migrate(t, "")
	db := server.open(t, newRoleSecret)
	require.NoError(t, db.Pool.Ping(t.Context()), "the roles still have the passwords that derive from the base password")
	server.migrate(t, newRoleSecret)
	require.NoError(t, churn(t.Context(), db))
	require.NoError(t, db.Pool.Ping(t.Context()))
	require.True(t, server.logsIn(t, newRoleSecret))
}

func TestWhenNoPasswordIsRightTheRefusalIsExplained(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	server.migrate(t, "a secret that nobody else knows")
	_, err := pg.Open(t.Context(), pg.Config{
		BaseURL: server.base("postgres"), RoleSecret: secretbox.NewSecret(oldRoleSecret + "," + newRoleSecret), Service: "inventory", MaxConns: 2,
	})
	requireState(t, err, "28P01")
	requireAdvice(t, err, "certctl_inventory", "CERTCTL_DATABASE_ROLE_SECRET", "certctl migrate")
}

// TestTheLogTellsWhichPasswordIsTaken has all be refused for a while, then the second of two be the right one.
func TestTheLogTellsWhichPasswordIsTaken(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	server.migrate(t, "a secret that nobody else knows")
	core, logs := observer.New(zap.InfoLevel)
	schema := inventory()
	ended := run.Go(func() error {
		db, err := pg.Open(t.Context(), pg.Config{
			BaseURL: server.base("postgres"), RoleSecret: secretbox.NewSecret(oldRoleSecret + "," + newRoleSecret), Service: "inventory", MaxConns: 2,
			Schema: &schema, Log: zap.New(core),
		})
		if err == nil {
			db.Close()
		}
		return err
	})
	require.Eventually(t, func() bool { return logs.Len() > 0 }, 30*time.Second, time.Millisecond)
	server.migrate(t, newRoleSecret)
	require.NoError(t, <-ended)
	var said []string
	for _, e := range logs.All() {
		said = append(said, e.Message)
	}
	require.Equal(t, []string{
		"waiting for the database",
		"Postgres takes another password of the role than before, of CERTCTL_DATABASE_ROLE_SECRET or the base URL's",
	}, said)
	require.EqualValues(t, 2, logs.All()[1].ContextMap()["item"])
}

func TestARoleSecretWithAnItemTwiceIsReadOn(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	server.migrate(t, newRoleSecret)
	db := server.open(t, oldRoleSecret+","+oldRoleSecret+","+newRoleSecret)
	require.NoError(t, db.Pool.Ping(t.Context()))
}

func TestARoleSecretWithAnEmptyItemIsRefused(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	bad := secretbox.NewSecret("hunter2,,hunter3")
	_, err := pg.Open(t.Context(), pg.Config{BaseURL: server.base("postgres"), RoleSecret: bad, Service: "inventory", MaxConns: 2})
	require.ErrorContains(t, err, "CERTCTL_DATABASE_ROLE_SECRET: item 2 of 3 is empty")
	require.NotContains(t, err.Error(), "hunter")
	err = pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: server.base("postgres"), RoleSecret: bad, Schemas: []pg.Schema{inventory()}})
	require.ErrorContains(t, err, "item 2 of 3 is empty")
}
