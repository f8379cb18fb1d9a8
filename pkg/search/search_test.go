package search_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/search"
	"github.com/certctl/certctl/pkg/testpg"
)

// things have a rare state whose rows lie together at the end of the orders by time, one that is frequent and lies there too, owners
// that are spread evenly, and ends that are missing. Seven rows have the same time. Half of the ids are in spans.
const things = `-- +goose Up
CREATE TABLE things (id text PRIMARY KEY, state text NOT NULL, owner text NOT NULL, create_time timestamptz NOT NULL, name text NOT NULL, not_after timestamptz);
INSERT INTO things SELECT 'thing-' || i, CASE WHEN i > 99700 THEN 'RARE' WHEN i > 50000 THEN 'LATE' ELSE 'EARLY' END, 'owner-' || i % 700,
 '2026-01-01'::timestamptz + i / 7 * interval '1 second', 'name-' || lpad((i * 7919 % 100003)::text, 6, '0'), CASE WHEN i % 3 > 0 THEN '2026-06-01'::timestamptz + i / 7 * interval '1 minute' END
 FROM generate_series(1, 100000) i;
CREATE INDEX things_create_time ON things (create_time, id) INCLUDE (not_after);
CREATE INDEX things_name ON things (name, id);
CREATE INDEX things_not_after ON things ((COALESCE(not_after, 'infinity'::timestamptz)), id);
CREATE INDEX things_state ON things (state, create_time, id) INCLUDE (not_after);
CREATE INDEX things_owner ON things (owner, create_time, id) INCLUDE (state, not_after);
CREATE TABLE spans (first text PRIMARY KEY, last text NOT NULL, earliest timestamptz NOT NULL, latest timestamptz NOT NULL);
INSERT INTO spans SELECT min(id), max(id), min(create_time), max(create_time) FROM (SELECT *, ntile(50) OVER (ORDER BY id) FROM things WHERE id < 'thing-5') t GROUP BY ntile;`

func table() search.Table {
	return search.Table{Columns: "c.id, c.state", From: "things c", Leads: map[string][]string{"c.create_time": {"c.owner", "c.state"}},
		Covered: map[string][]string{"c.create_time": {"c.not_after"}, "c.owner": {"c.state", "c.not_after"}, "c.state": {"c.not_after"}},
		Spans:   "(SELECT first, last, earliest, latest FROM spans UNION ALL SELECT 'thing-5', 'thing-a', '-infinity', 'infinity') a"}
}

type thing struct{ ID, State string }

// counted counts statements, and keeps their plans.
type counted struct {
	*pg.Pool
	t     *testing.T
	n     int
	plans []string
}

func (c *counted) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	c.n++
	if strings.HasPrefix(sql, "EXPLAIN") { // what Postgres guesses
		return c.Pool.Query(ctx, sql, args...)
	}
	rows, err := c.Pool.Query(ctx, "EXPLAIN "+sql, args...)
	require.NoError(c.t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(c.t, err)
	c.plans = append(c.plans, strings.Join(lines, "\n"))
	return c.Pool.Query(ctx, sql, args...)
}

func open(t *testing.T) *pg.DB {
	t.Helper()
	d := testpg.NewDatabase(t, pg.Schema{Name: "inventory", FS: fstest.MapFS{"migrations/00001_c.sql": {Data: []byte(things)}}})
	_, err := d.Admin(t).Exec(t.Context(), "ANALYZE inventory.things")
	require.NoError(t, err)
	return d.Open(t, "inventory")
}

func order(t *testing.T, by string) page.Order {
	t.Helper()
	sorting, err := page.NewSorting(page.Column{Field: "id", SQL: "c.id", Kind: page.Text}, "create_time desc",
		page.Column{Field: "create_time", SQL: "c.create_time", Kind: page.Time}, page.Column{Field: "name", SQL: "c.name", Kind: page.Text},
		page.Column{Field: "not_after", SQL: "c.not_after", Kind: page.Time, NullAs: "'infinity'::timestamptz"})
	require.NoError(t, err)
	o, err := sorting.Parse(by)
	require.NoError(t, err)
	return o
}

// cases are filters, with the most statements that a page of them may take.
func cases() map[string]func(f *search.Filter) {
	return map[string]func(f *search.Filter){
		"nothing":               func(*search.Filter) {},
		"a rare state":          func(f *search.Filter) { f.Equal("c.state", "RARE") },
		"a frequent state":      func(f *search.Filter) { f.Among("c.state", []string{"EARLY"}) },
		"two states":            func(f *search.Filter) { f.Among("c.state", []string{"RARE", "LATE"}) },
		"no such state":         func(f *search.Filter) { f.Equal("c.state", "GONE") },
		"an owner":              func(f *search.Filter) { f.Equal("c.owner", "owner-7") },
		"an owner's rare state": func(f *search.Filter) { f.Equal("c.owner", "owner-7"); f.Equal("c.state", "RARE") },
		"an owner's states":     func(f *search.Filter) { f.Equal("c.owner", "owner-7"); f.Among("c.state", []string{"RARE", "LATE"}) },
		"what is in few rows":   func(f *search.Filter) { f.Few("c.id IN (SELECT o.id FROM things o WHERE o.owner = ?)", "owner-9") },
		"a part of a name":      func(f *search.Filter) { f.Add("c.name LIKE ?", "%99%") },
		"what no index finds":   func(f *search.Filter) { f.Unindexed("c.name LIKE ?", "%9%") },
		"what ends soon":        func(f *search.Filter) { f.Bound("c.not_after", "COALESCE(c.not_after, 'infinity') < ?", at(20)) },
		"an owner's state that ends late": func(f *search.Filter) {
			f.Equal("c.owner", "owner-7")
			f.Equal("c.state", "RARE")
			f.Bound("c.not_after", "COALESCE(c.not_after, 'infinity') > ?", at(9900))
		},
		"what is new":            func(f *search.Filter) { created(f, ">=", 14_000) },
		"what is old":            func(f *search.Filter) { created(f, "<", 50) },
		"what is between":        func(f *search.Filter) { created(f, ">=", 7000); created(f, "<", 7040) },
		"an owner's that is new": func(f *search.Filter) { f.Equal("c.owner", "owner-7"); created(f, ">=", 14_000) },
		"a state that is old":    func(f *search.Filter) { f.Among("c.state", []string{"RARE", "EARLY"}); created(f, "<", 50) },
		"a state that ends late": func(f *search.Filter) {
			f.Equal("c.state", "RARE")
			f.Bound("c.not_after", "COALESCE(c.not_after, 'infinity') > ?", at(9900))
		},
	}
}

// created is a bound of the time of creation, so many seconds after the first one.
func created(f *search.Filter, compare string, seconds int) {
	of := map[string]string{">=": "latest", "<": "earliest"}[compare]
	f.SpannedBound("c.create_time", "c.create_time "+compare+" ?", of+" "+compare+" ?", time.Date(2026, 1, 1, 0, 0, seconds, 0, time.UTC))
}

func at(minutes int) time.Time {
	return time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(minutes) * time.Minute)
}

func TestPagesAreThoseThatOnePlainStatementGives(t *testing.T) {
	t.Parallel()
	db := open(t)
	for _, by := range []string{"create_time", "create_time desc", "name", "name desc", "not_after", "not_after desc", "id", "id desc"} {
		o := order(t, by)
		for name, fill := range cases() {
			var f search.Filter
			fill(&f)
			rows, err := db.Pool.Query(t.Context(), fmt.Sprintf("SELECT c.id, c.create_time, c.name, c.not_after FROM things c WHERE %s ORDER BY %s", f.SQL(), o.SQL()), f.Args()...)
			require.NoError(t, err)
			type key struct {
				ID         string
				CreateTime time.Time
				Name       string
				NotAfter   *time.Time
			}
			all, err := pgx.CollectRows(rows, pgx.RowToStructByName[key])
			require.NoError(t, err)
			for _, from := range []int{0, len(all) / 2, len(all) - 30} {
				if from < 0 || from > 0 && from >= len(all) {
					continue
				}
				s := search.Search{Table: table(), Filter: f, Order: o, Limit: 51}
				if from > 0 {
					k := all[from-1]
					s.After = o.Cursor(map[string]page.Value{"create_time": page.TimeValue(k.CreateTime), "name": page.TextValue(k.Name), "not_after": nullable(k.NotAfter)}[o.Field()], page.TextValue(k.ID))
				}
				q := &counted{Pool: db.Pool, t: t}
				found, err := search.Find(t.Context(), q, s, pgx.RowToStructByName[thing])
				require.NoError(t, err)
				want := []string{}
				for _, k := range all[from:min(from+51, len(all))] {
					want = append(want, k.ID)
				}
				got := []string{}
				for _, th := range found {
					got = append(got, th.ID)
				}
				require.Equal(t, want, got, "%s by %s from %d", name, by, from)
				require.LessOrEqual(t, q.n, 4)
				require.NotContains(t, q.plans[0], "Seq Scan on things", "%s by %s", name, by)
			}
		}
	}
}

func nullable(t *time.Time) page.Value {
	if t == nil {
		return page.Value{}
	}
	return page.TimeValue(*t)
}

func TestAPageTakesAsManyStatementsAsItMust(t *testing.T) {
	t.Parallel()
	db := open(t)
	for _, c := range []struct {
		what       string
		by         string
		statements int
		fill       func(f *search.Filter)
	}{
		{"the order's own index", "name", 1, func(*search.Filter) {}},
		{"an index that has the state before the order", "create_time", 1, func(f *search.Filter) { f.Equal("c.state", "RARE") }},
		{"the same for each of several states", "create_time", 1, func(f *search.Filter) { f.Among("c.state", []string{"RARE", "GONE"}) }},
		{"a bound of the order", "not_after desc", 1, func(f *search.Filter) { f.Bound("c.not_after", "COALESCE(c.not_after, 'infinity') < ?", at(20)) }},
		{"what a stretch of the order has enough of", "name", 1, func(f *search.Filter) { f.Equal("c.state", "LATE") }},
		{"what is rare and is collected, after a guess of how much it is", "name", 3, func(f *search.Filter) { f.Equal("c.state", "RARE") }},
		{"what is known to be rare", "name", 1, func(f *search.Filter) { f.Few("c.id IN (SELECT o.id FROM things o WHERE o.owner = ?)", "owner-9") }},
		{"a bound that spans are chosen by", "id", 1, func(f *search.Filter) { created(f, ">=", 14_000) }},
		{"the same, before another condition that they have enough of", "id", 1, func(f *search.Filter) { f.Equal("c.state", "RARE"); created(f, ">=", 14_000) }},
		{"what no index finds", "name", 1, func(f *search.Filter) { f.Unindexed("c.name LIKE ?", "%9%") }},
		{"what is rare at the beginning and frequent later", "not_after", 3, func(f *search.Filter) { f.Equal("c.state", "LATE") }},
	} {
		var f search.Filter
		c.fill(&f)
		q := &counted{Pool: db.Pool, t: t}
		found, err := search.Find(t.Context(), q, search.Search{Table: table(), Filter: f, Order: order(t, c.by), Limit: 21}, pgx.RowToStructByName[thing])
		require.NoError(t, err, c.what)
		require.Len(t, found, 21, c.what)
		require.Equal(t, c.statements, q.n, "%s\n%s", c.what, strings.Join(q.plans, "\n\n"))
	}
}

func TestRowsAreNotReadWhereAnIndexTellsWhatFits(t *testing.T) {
	t.Parallel()
	d := testpg.NewDatabase(t, pg.Schema{Name: "inventory", FS: fstest.MapFS{"migrations/00001_c.sql": {Data: []byte(things)}}})
	admin, err := d.Admin(t).Acquire(t.Context())
	require.NoError(t, err)
	defer admin.Release()
	testpg.Vacuum(t, admin, "inventory.things")
	db := d.Open(t, "inventory")
	late := func(f *search.Filter) { f.Bound("c.not_after", "COALESCE(c.not_after, 'infinity') < ?", at(20)) }
	for _, c := range []struct {
		what, by, index string
		statement       int
		fill            func(f *search.Filter)
	}{
		{"an end, in an order", "create_time desc", "things_create_time", 0, late},
		{"a state and an end, in an order", "create_time desc", "things_state", 0, func(f *search.Filter) { f.Equal("c.state", "EARLY"); late(f) }},
		{"an owner's state and end, to be collected", "name", "things_owner", 1, func(f *search.Filter) { f.Equal("c.owner", "owner-7"); f.Equal("c.state", "EARLY"); late(f) }},
	} {
		var f search.Filter
		c.fill(&f)
		statements, args, err := search.Search{Table: table(), Filter: f, Order: order(t, c.by), Limit: 21}.Statements()
		require.NoError(t, err, c.what)
		rows, err := db.Pool.Query(t.Context(), "EXPLAIN "+statements[c.statement], args...)
		require.NoError(t, err, c.what)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err, c.what)
		plan := strings.Join(lines, "\n")
		require.Regexp(t, "Index Only Scan.* using "+c.index, plan, c.what)
		require.NotContains(t, plan, "Seq Scan", c.what)
	}
}

func TestAPlaceThatIsNoneOfTheOrderIsRefused(t *testing.T) {
	t.Parallel()
	_, err := search.Find(t.Context(), nil, search.Search{Table: table(), Order: order(t, "name"), After: page.Cursor{page.TextValue("x")}}, pgx.RowToStructByName[thing])
	require.ErrorContains(t, err, "page_token")
}
