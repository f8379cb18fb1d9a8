package page_test

import (
	"context"
	"fmt"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/testpg"
)

const rowsTable = `-- +goose Up
CREATE TABLE c (id text PRIMARY KEY, create_time timestamptz NOT NULL, not_after timestamptz, seen timestamptz);
CREATE INDEX c_not_after ON c ((COALESCE(not_after, 'infinity'::timestamptz)), id);
INSERT INTO c SELECT 'cert-' || i, '2026-01-01'::timestamptz + (i % 7) * interval '1 microsecond',
       CASE WHEN i % 3 > 0 THEN '2026-02-01'::timestamptz + (i % 5) * interval '1 day' END,
       CASE WHEN i % 4 > 0 THEN '2026-03-01'::timestamptz + (i % 2) * interval '1 day' END
  FROM generate_series(1, 100) i;`

type listed struct {
	id   string
	keys map[string]page.Value
}

func nullable(t *time.Time) page.Value {
	if t == nil {
		return page.Value{}
	}
	return page.TimeValue(*t)
}

func list(t *testing.T, db *pg.DB, o page.Order, after page.Cursor, limit int) []listed {
	t.Helper()
	where, args, err := o.After(after, 1)
	require.NoError(t, err)
	rows, err := db.Pool.Query(t.Context(), fmt.Sprintf(`SELECT c.id, c.create_time, c.not_after, c.seen FROM c WHERE %s ORDER BY %s LIMIT %d`, where, o.SQL(), limit), args...)
	require.NoError(t, err)
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (listed, error) {
		var l listed
		var created time.Time
		var notAfter, seen *time.Time
		err := r.Scan(&l.id, &created, &notAfter, &seen)
		l.keys = map[string]page.Value{"created_at": page.TimeValue(created), "expires_at": nullable(notAfter), "seen_at": nullable(seen)}
		return l, err
	})
	require.NoError(t, err)
	return out
}

func TestPagesThroughPostgresGiveEveryRowOnceInOrder(t *testing.T) {
	t.Parallel()
	db := testpg.New(t, pg.Schema{Name: "inventory", FS: fstest.MapFS{"migrations/00001_c.sql": {Data: []byte(rowsTable)}}})
	c := codec(t)
	for _, orderBy := range []string{"created_at", "created_at desc", "expires_at", "expires_at desc", "seen_at", "seen_at desc"} {
		o, err := sorting(t).Parse(orderBy)
		require.NoError(t, err)
		scope := page.Scope{Collection: "c", Order: o.String()}
		whole := list(t, db, o, nil, 1000)
		require.Len(t, whole, 100)
		for _, size := range []int{1, 7, 99, 100} {
			var got []listed
			for token, more := "", true; more; {
				after, err := c.Decode(token, scope)
				require.NoError(t, err)
				var rows []listed
				rows, more = page.Cut(list(t, db, o, after, size+1), size)
				got = append(got, rows...)
				last := got[len(got)-1]
				token = c.Encode(scope, o.Cursor(last.keys[o.Field()], page.TextValue(last.id)))
			}
			require.Equal(t, whole, got, "%s in pages of %d", orderBy, size)
		}
	}
}

func TestAnOrderWithNullsFindsItsPlaceByTheIndex(t *testing.T) {
	t.Parallel()
	db := testpg.New(t, pg.Schema{Name: "inventory", FS: fstest.MapFS{"migrations/00001_c.sql": {Data: []byte(rowsTable)}}})
	o, err := sorting(t).Parse("expires_at desc")
	require.NoError(t, err)
	where, args, err := o.After(o.Cursor(page.TimeValue(time.Now()), page.TextValue("x")), 1)
	require.NoError(t, err)
	var plan []string
	require.NoError(t, db.Tx(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL enable_seqscan = off`); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `EXPLAIN SELECT c.id FROM c WHERE `+where+` ORDER BY `+o.SQL()+` LIMIT 10`, args...)
		if err != nil {
			return err
		}
		plan, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	}))
	require.Contains(t, fmt.Sprint(plan), "Backward using c_not_after")
	require.Contains(t, fmt.Sprint(plan), "Index Cond")
}
