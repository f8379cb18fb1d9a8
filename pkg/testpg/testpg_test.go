package testpg_test

import (
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/testpg"
)

func notes() pg.Schema {
	return pg.Schema{Name: "notes", FS: fstest.MapFS{"migrations/00001_init.sql": {Data: []byte(
		"-- +goose Up\nCREATE TABLE note (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text NOT NULL);\n-- +goose Down\nDROP TABLE note;\n")}}}
}

func TestEachTestHasADatabaseOfItsOwnInTheRoleOfProduction(t *testing.T) {
	t.Parallel()
	for range 5 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			db := testpg.New(t, notes())
			_, err := db.Pool.Exec(t.Context(), "INSERT INTO note (body) VALUES ('one')")
			require.NoError(t, err)
			var rows int
			var role string
			require.NoError(t, db.Pool.QueryRow(t.Context(), "SELECT count(*), current_user FROM note").Scan(&rows, &role))
			require.Equal(t, 1, rows)
			require.Equal(t, "certctl_notes", role)
		})
	}
}

func TestURLGivesAnEmptyDatabaseAsSuperuser(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), testpg.URL(t))
	require.NoError(t, err)
	var super bool
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT rolsuper FROM pg_roles WHERE rolname = current_user").Scan(&super))
	require.True(t, super)
	require.NoError(t, conn.Close(t.Context()))
}

func TestAPrivateServerComesBackWithItsDataAfterStopAndKill(t *testing.T) {
	t.Parallel()
	server := testpg.NewServer(t, testpg.ServerConfig{})
	count := func() int {
		conn, err := pgx.Connect(t.Context(), server.URL())
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), "CREATE TABLE IF NOT EXISTS seen (id int); INSERT INTO seen VALUES (1)")
		require.NoError(t, err)
		var n int
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM seen").Scan(&n))
		require.NoError(t, conn.Close(t.Context()))
		return n
	}
	require.Equal(t, 1, count())
	server.Restart(t)
	require.Equal(t, 2, count())
	server.Stop(t)
	_, err := pgx.Connect(t.Context(), server.URL())
	require.Error(t, err)
	server.Start(t)
	require.Equal(t, 3, count())
	server.Kill(t)
	server.Start(t)
	require.GreaterOrEqual(t, count(), 1)
}

func TestAPrivateServerAsksForPasswordsOverTCP(t *testing.T) {
	t.Parallel()
	server := testpg.NewServer(t, testpg.ServerConfig{Password: "it's/se@cret"})
	conn, err := pgx.Connect(t.Context(), server.TCPURL("postgres", "it's/se@cret"))
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
	_, err = pgx.Connect(t.Context(), server.TCPURL("postgres", "wrong"))
	require.Error(t, err)
}
