package pg_test

import (
	"errors"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/pg"
)

const (
	createItem = "-- +goose Up\nCREATE TABLE item (id bigint PRIMARY KEY, body text NOT NULL DEFAULT '');\n-- +goose Down\nDROP TABLE item;\n"
	createMore = "-- +goose Up\nCREATE TABLE more (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY);\n-- +goose Down\nDROP TABLE more;\n"
	createLog  = `-- +goose Up
CREATE TABLE event (id bigint NOT NULL, body text NOT NULL DEFAULT '') PARTITION BY RANGE (id);
CREATE TABLE event_first PARTITION OF event FOR VALUES FROM (0) TO (1000);
CREATE TABLE cursor (id bigint PRIMARY KEY, seen bigint NOT NULL);
-- +goose Down
DROP TABLE event;
`
)

// files makes a file system with migrations, numbered from 1.
func files(migrations ...string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for i, content := range migrations {
		fsys["migrations/0000"+string(rune('1'+i))+"_step.sql"] = &fstest.MapFile{Data: []byte(content)}
	}
	return fsys
}

func inventory() pg.Schema { return pg.Schema{Name: "inventory", FS: files(createItem)} }
func issuance() pg.Schema  { return pg.Schema{Name: "issuance", FS: files(createItem)} }
func audit() pg.Schema {
	return pg.Schema{Name: "audit", FS: files(createLog), AppendOnly: []string{"event"}}
}

// requireState asserts that err carries a SQLSTATE.
func requireState(t *testing.T, err error, code string) {
	t.Helper()
	require.Error(t, err)
	e, ok := errors.AsType[*pgconn.PgError](err)
	require.True(t, ok, "%v has no SQLSTATE", err)
	require.Equal(t, code, e.Code, "%v", err)
}

// requireAdvice asserts that err was explained, and how.
func requireAdvice(t *testing.T, err error, parts ...string) {
	t.Helper()
	p, ok := errors.AsType[*pg.Problem](err)
	require.True(t, ok, "%v is not explained", err)
	for _, part := range parts {
		require.Contains(t, p.Advice, part)
	}
	require.Error(t, p.Cause)
}
