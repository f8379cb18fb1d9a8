package pg_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
)

func migrate(t *testing.T, url string, schemas ...pg.Schema) {
	t.Helper()
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: secretbox.NewSecret(url), Schemas: schemas}))
}

// versions lists what goose has recorded for the schema.
func versions(t *testing.T, url, schema string) []int64 {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	rows, err := conn.Query(t.Context(), "SELECT version_id FROM "+pgx.Identifier{schema, "goose_db_version"}.Sanitize()+" ORDER BY id")
	require.NoError(t, err)
	found, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	require.NoError(t, err)
	return found
}

func TestMigratingTwiceChangesNothing(t *testing.T) {
	t.Parallel()
	url := testpg.URL(t)
	migrate(t, url, inventory(), audit())
	migrate(t, url, inventory(), audit())
	require.Equal(t, []int64{0, 1}, versions(t, url, "inventory"))
	require.Equal(t, []int64{0, 1}, versions(t, url, "audit"))
}

// TestTheLogTellsThatAMigrationBegins has no one take a long migration for a start that hangs.
func TestTheLogTellsThatAMigrationBegins(t *testing.T) {
	t.Parallel()
	url := testpg.URL(t)
	migrate(t, url, inventory())
	for _, want := range [][]string{{"migrating; with many rows this takes minutes, let it end", "migration applied"}, nil} {
		core, logs := observer.New(zap.InfoLevel)
		schema := pg.Schema{Name: "inventory", FS: files(createItem, createMore)}
		require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: secretbox.NewSecret(url), Schemas: []pg.Schema{schema}, Log: zap.New(core)}))
		var said []string
		for _, l := range logs.All() {
			said = append(said, l.Message)
		}
		require.Equal(t, want, said)
	}
}

func TestMigratorsAtOnceAreSerialized(t *testing.T) {
	t.Parallel()
	url := testpg.URL(t)
	// Without a lock the second would fail on the table that the first has made.
	slow := pg.Schema{Name: "inventory", FS: files("-- +goose Up\nSELECT pg_sleep(0.3);\nCREATE TABLE item (id int);\n-- +goose Down\nDROP TABLE item;\n", createMore)}
	var group errgroup.Group
	for range 4 {
		group.Go(func() error {
			return pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: secretbox.NewSecret(url), Schemas: []pg.Schema{slow, audit()}})
		})
	}
	require.NoError(t, group.Wait())
	require.Equal(t, []int64{0, 1, 2}, versions(t, url, "inventory"))
}

func TestMigratorsOfDifferentDatabasesShareTheRoles(t *testing.T) {
	t.Parallel()
	server := testpg.NewServer(t, testpg.ServerConfig{}) // where no role has been made yet
	conn, err := pgx.Connect(t.Context(), server.URL())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	var group errgroup.Group
	for _, name := range []string{"one", "two", "three", "four"} {
		_, err := conn.Exec(t.Context(), "CREATE DATABASE "+name)
		require.NoError(t, err)
		url := server.DatabaseURL(name)
		group.Go(func() error {
			return pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: secretbox.NewSecret(url), Schemas: []pg.Schema{inventory(), issuance()}})
		})
	}
	require.NoError(t, group.Wait())
}

func TestOlderCodeLeavesANewerSchemaAlone(t *testing.T) {
	t.Parallel()
	url := testpg.URL(t)
	migrate(t, url, pg.Schema{Name: "inventory", FS: files(createItem, createMore)})
	migrate(t, url, inventory())
	require.Equal(t, []int64{0, 1, 2}, versions(t, url, "inventory"))
}

func TestABrokenMigrationNamesItsSchemaAndLeavesNothingHalfDone(t *testing.T) {
	t.Parallel()
	url := testpg.URL(t)
	broken := pg.Schema{Name: "inventory", FS: files(createItem, "-- +goose Up\nCREATE TABLE half (id int);\nSELECT no_such_function();\n")}
	err := pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: secretbox.NewSecret(url), Schemas: []pg.Schema{broken}})
	requireState(t, err, "42883")
	require.ErrorContains(t, err, "migrate schema inventory")
	require.Equal(t, []int64{0, 1}, versions(t, url, "inventory"))
	migrate(t, url, pg.Schema{Name: "inventory", FS: files(createItem, createMore)})
}

func TestARoleHasRightsInItsOwnSchemaOnly(t *testing.T) {
	t.Parallel()
	database := testpg.NewDatabase(t, inventory(), issuance())
	_, err := database.Admin(t).Exec(t.Context(), "CREATE TABLE public.shared (id int); GRANT SELECT ON public.shared TO PUBLIC")
	require.NoError(t, err)
	db := database.Open(t, "inventory")
	_, err = db.Pool.Exec(t.Context(), "INSERT INTO item (id) VALUES (1)")
	require.NoError(t, err, "names without a schema mean its own")
	for _, statement := range []string{
		"SELECT id FROM issuance.item",
		"INSERT INTO issuance.item (id) VALUES (1)",
		"SELECT version_id FROM issuance.goose_db_version",
		"SELECT id FROM public.shared",
		"CREATE TABLE public.mine (id int)",
		"CREATE TABLE mine (id int)",
		"TRUNCATE item",
		"DROP TABLE item",
		"DELETE FROM goose_db_version",
		"CREATE SCHEMA mine",
		"SELECT rolpassword FROM pg_authid",
	} {
		_, err := db.Pool.Exec(t.Context(), statement)
		requireState(t, err, "42501")
	}
}

func TestATableOfALaterMigrationIsOpenToTheRole(t *testing.T) {
	t.Parallel()
	database := testpg.NewDatabase(t, inventory())
	migrate(t, database.URL(), pg.Schema{Name: "inventory", FS: files(createItem, createMore)})
	_, err := database.Open(t, "inventory").Pool.Exec(t.Context(), "INSERT INTO more DEFAULT VALUES")
	require.NoError(t, err)
}

func TestAppendOnlyTablesTakeNoChange(t *testing.T) {
	t.Parallel()
	db := testpg.New(t, audit())
	_, err := db.Pool.Exec(t.Context(), "INSERT INTO event (id) VALUES (1)")
	require.NoError(t, err)
	for _, statement := range []string{
		"UPDATE event SET body = 'x'", "DELETE FROM event", "TRUNCATE event",
		"UPDATE event_first SET body = 'x'", "DELETE FROM event_first", "TRUNCATE event_first",
		"SELECT id FROM event FOR UPDATE",
		"CREATE RULE r AS ON INSERT TO event DO INSTEAD NOTHING",
	} {
		_, err := db.Pool.Exec(t.Context(), statement)
		requireState(t, err, "42501")
	}
	_, err = db.Pool.Exec(t.Context(), "INSERT INTO cursor (id, seen) VALUES (1, 1)")
	require.NoError(t, err)
	_, err = db.Pool.Exec(t.Context(), "UPDATE cursor SET seen = 2")
	require.NoError(t, err, "other tables of the schema are as usual")
}

func TestAnAppendOnlyTableThatDoesNotExistIsAnError(t *testing.T) {
	t.Parallel()
	wrong := pg.Schema{Name: "audit", FS: files(createLog), AppendOnly: []string{"events"}}
	err := pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: secretbox.NewSecret(testpg.URL(t)), Schemas: []pg.Schema{wrong}})
	require.ErrorContains(t, err, "audit.events does not exist")
}

func TestASchemaNameThatIsNoNameIsRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "Inventory", `in"ventory`, "1st", "a.b"} {
		err := pg.Migrate(t.Context(), pg.MigrateConfig{
			BaseURL: secretbox.NewSecret(testpg.URL(t)), Schemas: []pg.Schema{{Name: name, FS: files(createItem)}},
		})
		require.ErrorContains(t, err, "is no name for a schema")
	}
}

func TestAnOrdinaryOwnerWithCreateRoleIsEnough(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	server.exec(t, "CREATE ROLE owner LOGIN CREATEROLE PASSWORD 'own'", "CREATE DATABASE owned OWNER owner")
	url := server.as("owner", "own", "owned")
	quotas := map[string]int{"inventory": 3, "audit": 2}
	for range 2 {
		require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{
			BaseURL: secretbox.NewSecret(url), Schemas: []pg.Schema{inventory(), audit()}, Quotas: quotas,
		}))
	}
	db, err := pg.Open(t.Context(), pg.Config{BaseURL: secretbox.NewSecret(url), Service: "inventory", MaxConns: 3})
	require.NoError(t, err)
	defer db.Close()
	_, err = db.Pool.Exec(t.Context(), "CREATE TABLE public.mine (id int)")
	requireState(t, err, "42501")
}

func TestAnOwnerWithoutCreateRoleIsToldAboutSharedRoles(t *testing.T) {
	t.Parallel()
	server := newTCPServer(t, "")
	server.exec(t, "CREATE ROLE owner LOGIN PASSWORD 'own'", "CREATE DATABASE owned OWNER owner")
	cfg := pg.MigrateConfig{BaseURL: secretbox.NewSecret(server.as("owner", "own", "owned")), Schemas: []pg.Schema{inventory()}}
	err := pg.Migrate(t.Context(), cfg)
	requireState(t, err, "42501")
	requireAdvice(t, err, "CREATEROLE", "CERTCTL_DATABASE_ROLES=shared")

	cfg.SharedRoles = true
	require.NoError(t, pg.Migrate(t.Context(), cfg))
	db, err := pg.Open(t.Context(), pg.Config{BaseURL: cfg.BaseURL, SharedRoles: true, Service: "inventory", MaxConns: 2})
	require.NoError(t, err)
	defer db.Close()
	var user, timeout string
	require.NoError(t, db.Pool.QueryRow(t.Context(), "SELECT current_user, current_setting('statement_timeout')").Scan(&user, &timeout))
	require.Equal(t, "owner", user)
	require.Equal(t, "30s", timeout)
	_, err = db.Pool.Exec(t.Context(), "INSERT INTO item (id) VALUES (1)")
	require.NoError(t, err)
}
