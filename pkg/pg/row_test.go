package pg_test

import (
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/testpg"
)

// read is a row of all types that Columns has a way of its own for.
type read struct {
	Text   string
	Texts  []string
	Int32  int32
	Int64  int64
	Time   time.Time
	Moment *time.Time
	Bytes  []byte
	Labels map[string]string
}

func readColumns(c *pg.Columns) read {
	r := read{Text: c.Text(), Texts: c.Texts(), Int32: c.Int32(), Int64: c.Int64(), Time: c.Time(), Moment: c.Moment(), Bytes: c.Bytes()}
	c.Into(&r.Labels)
	return r
}

const rowsOfAllTypes = `SELECT v.* FROM (VALUES
 ('', '{}'::text[], 0, 0::bigint, '2000-01-01 00:00:00+00'::timestamptz, NULL::timestamptz, NULL::bytea, '{}'::jsonb),
 ('käse', '{a,"",ö b}', -1, -9223372036854775808, '1969-12-31 23:59:59.999999+00', '9999-12-31 00:00:00+00', '\x00ff', '{"a": "\u00e4"}'),
 ('x', '{{a,b},{c,d}}'::text[], 2147483647, 9223372036854775807, '0001-01-01 00:00:00+00', '2026-11-30 12:00:00.000001+02', '', '{"b": ""}'))
 AS v (text, texts, int32, int64, time, moment, bytes, labels) WHERE v.text <> $1 ORDER BY v.text`

func TestRowsAreReadAsPgxReadsThem(t *testing.T) {
	t.Parallel()
	db := testpg.New(t, pg.Schema{Name: "inventory", FS: fstest.MapFS{"migrations/00001_none.sql": {Data: []byte("-- +goose Up\nSELECT 1;")}}})
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeSimpleProtocol} {
		for _, without := range []string{"x", "none"} {
			rows, err := db.Pool.Query(t.Context(), rowsOfAllTypes, mode, without)
			require.NoError(t, err)
			want, wantErr := pgx.CollectRows(rows, pgx.RowToStructByName[read])
			rows, err = db.Pool.Query(t.Context(), rowsOfAllTypes, mode, without)
			require.NoError(t, err)
			got, err := pgx.CollectRows(rows, pg.RowTo(readColumns))
			require.Equal(t, wantErr == nil, err == nil, "%s: pgx: %v; here: %v", mode, wantErr, err)
			require.Equal(t, want, got, mode)
		}
	}
}

func TestColumnsThatDoNotFitAreErrors(t *testing.T) {
	t.Parallel()
	db := testpg.New(t, pg.Schema{Name: "inventory", FS: fstest.MapFS{"migrations/00001_none.sql": {Data: []byte("-- +goose Up\nSELECT 1;")}}})
	for statement, c := range map[string]struct {
		read func(*pg.Columns) string
		want string
	}{
		"SELECT NULL::text":               {(*pg.Columns).Text, "cannot scan NULL"},
		"SELECT 'a'::text, 'b'::text":     {(*pg.Columns).Text, "1 columns of 2 were read"},
		"SELECT 'a'::text":                {func(c *pg.Columns) string { return c.Text() + c.Text() }, "no further column"},
		"SELECT NULL::timestamptz":        {func(c *pg.Columns) string { return c.Time().String() }, "NULL"},
		"SELECT 'infinity'::timestamptz":  {func(c *pg.Columns) string { return c.Time().String() }, "read column timestamptz"},
		"SELECT '-infinity'::timestamptz": {func(c *pg.Columns) string { return c.Time().String() }, "read column timestamptz"},
		"SELECT 'a'::text AS name":        {func(c *pg.Columns) string { return strings.Repeat("x", int(c.Int32())) }, "read column name"},
		"SELECT ARRAY['a', NULL] AS list": {func(c *pg.Columns) string { return strings.Join(c.Texts(), "") }, "read column list"},
	} {
		rows, err := db.Pool.Query(t.Context(), statement)
		require.NoError(t, err)
		_, err = pgx.CollectRows(rows, pg.RowTo(c.read))
		require.ErrorContains(t, err, c.want, statement)
	}
}

func TestOtherTypesAreReadAsPgxReadsThem(t *testing.T) {
	t.Parallel()
	db := testpg.New(t, pg.Schema{Name: "inventory", FS: fstest.MapFS{"migrations/00001_none.sql": {Data: []byte("-- +goose Up\nSELECT 1;")}}})
	rows, err := db.Pool.Query(t.Context(), "SELECT 'a'::varchar, 7::smallint, 8::integer, ARRAY['b']::varchar[]")
	require.NoError(t, err)
	type other struct {
		text    string
		n32     int32
		n64     int64
		strings []string
	}
	got, err := pgx.CollectRows(rows, pg.RowTo(func(c *pg.Columns) other {
		return other{text: c.Text(), n32: c.Int32(), n64: c.Int64(), strings: c.Texts()}
	}))
	require.NoError(t, err)
	require.Equal(t, []other{{"a", 7, 8, []string{"b"}}}, got)
}

// sent is a row as it came.
type sent struct {
	pgx.CollectableRow
	fields []pgconn.FieldDescription
	values [][]byte
}

func (s sent) FieldDescriptions() []pgconn.FieldDescription { return s.fields }
func (s sent) RawValues() [][]byte                          { return s.values }

func TestARowOfTextsIsOneAllocation(t *testing.T) { //nolint:paralleltest // it counts allocations
	s := &sent{}
	for range 20 {
		s.fields = append(s.fields, pgconn.FieldDescription{DataTypeOID: pgtype.TextOID, Format: pgtype.TextFormatCode})
		s.values = append(s.values, []byte("some text that is longer than a word"))
	}
	read := pg.RowTo(func(c *pg.Columns) (total int) {
		for range 20 {
			total += len(c.Text())
		}
		return total
	})
	n, err := read(s)
	require.NoError(t, err)
	require.Equal(t, 20*36, n)
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() { _, _ = read(s) }), 2.0, "the texts, and what reads them")
}
