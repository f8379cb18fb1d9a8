package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/search"
	"github.com/certctl/certctl/services/audit/internal/core"
	"github.com/certctl/certctl/services/audit/internal/store"
)

// begin is a second before the first event of the record of nearly.
func begin() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

func second(n int) time.Time { return begin().Add(time.Duration(n) * time.Second) }

// recorded is how many events the record of nearly has.
const recorded = 100_000

// nearly makes a record whose times grow with the numbers, nearly: one event in seven was delivered after up to a minute, event 70,000
// after most of a day, and that before event 30,000 was recorded by a machine whose clock was in the next year. An actor of the first
// half never comes again, and one of the second half did not come before.
func nearly(t *testing.T) bundle {
	t.Helper()
	b := setup(t)
	_, err := b.admin.Exec(t.Context(), `INSERT INTO audit.events
SELECT n, 'evt-' || n, $1::timestamptz + interval '1 second' * CASE WHEN n = 70000 THEN 100 WHEN n = 29999 THEN 31536000 WHEN n % 7 = 0 THEN n - n % 61 ELSE n END, now(),
       'USER', CASE WHEN n <= $2 / 2 THEN 'early' ELSE 'late' END, CASE WHEN n % 50 = 0 THEN 'certificate.renewed' ELSE 'job.created' END, 'job', 'id-' || n, 'SUCCESS', '', '{}', sha256('a'), sha256('b')
FROM generate_series(1, $2) AS n`, begin(), recorded)
	require.NoError(t, err)
	return b
}

// endSpans makes the spans up to an event, as appends do.
func (b bundle) endSpans(t *testing.T, head int64) {
	t.Helper()
	db := b.database.Open(t, "audit")
	for {
		var before, after int
		require.NoError(t, db.Tx(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
			require.NoError(t, tx.QueryRow(ctx, `SELECT count(*) FROM spans`).Scan(&before))
			require.NoError(t, store.EndSpans(ctx, tx, 0, head))
			return tx.QueryRow(ctx, `SELECT count(*) FROM spans`).Scan(&after)
		}))
		if before == after {
			break
		}
	}
	_, err := b.admin.Exec(t.Context(), `ANALYZE audit.events, audit.spans`)
	require.NoError(t, err)
}

// looked counts the events and spans that statements look at.
type looked struct {
	*pg.Pool
	t             *testing.T
	events, spans int
	plans         []string
}

// node is a part of a plan.
type node struct {
	Relation string  `json:"Relation Name"`
	Rows     float64 `json:"Actual Rows"`
	Filtered float64 `json:"Rows Removed by Filter"`
	Loops    float64 `json:"Actual Loops"`
	Plans    []node
}

func (l *looked) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if strings.HasPrefix(sql, "EXPLAIN") { // what Postgres guesses
		return l.Pool.Query(ctx, sql, args...)
	}
	rows, err := l.Pool.Query(ctx, "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, FORMAT JSON) "+sql, args...)
	require.NoError(l.t, err)
	plan, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[string])
	require.NoError(l.t, err)
	l.plans = append(l.plans, plan)
	var tops []struct{ Plan node }
	require.NoError(l.t, json.Unmarshal([]byte(plan), &tops))
	l.add(tops[0].Plan)
	return l.Pool.Query(ctx, sql, args...)
}

func (l *looked) add(n node) {
	seen := int((n.Rows + n.Filtered) * n.Loops)
	switch n.Relation {
	case "events":
		l.events += seen
	case "spans":
		l.spans += seen
	}
	for _, p := range n.Plans {
		l.add(p)
	}
}

// byTime are filters with a time; event 29,999 fits all that are open at the end, and event 70,000 those that begin with the record.
func byTime() map[string]store.Filter {
	return map[string]store.Filter{
		"after, near the beginning": {After: second(3000)}, "after, in the middle": {After: second(52_345)}, "after, near the end": {After: second(99_950)},
		"after the end": {After: second(recorded + 10)}, "before, near the beginning": {Before: second(60)}, "before, in the middle": {Before: second(52_345)},
		"before, near the end": {Before: second(99_000)}, "before the beginning": {Before: second(-1)},
		"between": {After: second(52_000), Before: second(52_030)}, "between nothing": {After: second(52_000), Before: second(52_000)},
		"an actor, after": {ActorID: "late", After: second(80_000)}, "an actor before": {ActorID: "early", Before: second(20_000)},
		"an actor that had gone": {ActorID: "early", After: second(60_000)}, "an actor that had not come": {ActorID: "late", Before: second(40_000)},
		"an action, after": {Action: "certificate.*", After: second(80_000)}, "an action, before": {Action: "certificate.*", Before: second(20_000)},
		"an outcome": {Outcome: "SUCCESS", After: second(80_000)}, "a resource": {ResourceID: "id-90000", After: second(80_000)},
	}
}

// wanted is a page that is asked for, and all that has its filter.
type wanted struct {
	name   string
	search search.Search
	all    []key
}

// key is the place of an event in any order.
type key struct {
	Sequence int64
	Time     time.Time
}

// wanted are all filters of byTime in an order.
func (b bundle) wanted(t *testing.T, db *pg.DB, by string) (list []wanted) {
	t.Helper()
	for name, f := range byTime() {
		s, err := store.ListSearch(f, by)
		require.NoError(t, err)
		rows, err := db.Pool.Query(t.Context(), fmt.Sprintf("SELECT sequence, time FROM events e WHERE %s ORDER BY %s", s.Filter.SQL(), s.Order.SQL()), s.Filter.Args()...)
		require.NoError(t, err)
		all, err := pgx.CollectRows(rows, pgx.RowToStructByName[key])
		require.NoError(t, err)
		list = append(list, wanted{name + " by " + by, s, all})
	}
	return list
}

// find looks for the page after so many events.
func (w wanted) find(t *testing.T, q search.Querier, from int) {
	t.Helper()
	s := w.search
	if from > 0 {
		s.After = s.Order.Cursor(page.TimeValue(w.all[from-1].Time), page.IntValue(w.all[from-1].Sequence))
	}
	found, err := search.Find(t.Context(), q, s, store.ScanEvent)
	require.NoError(t, err)
	want, got := []int64{}, []int64{}
	for _, k := range w.all[from:min(from+s.Limit, len(w.all))] {
		want = append(want, k.Sequence)
	}
	for _, e := range found {
		got = append(got, e.Sequence)
	}
	require.Equal(t, want, got, "%s from %d", w.name, from)
}

func TestAPageByTimeIsRightAndLooksAtLittleWhateverTheOrderOfTimes(t *testing.T) {
	t.Parallel()
	b := nearly(t)
	db := b.database.Open(t, "audit")
	var pages []wanted
	for _, by := range []string{"sequence", "sequence desc"} {
		pages = append(pages, b.wanted(t, db, by)...)
	}
	for _, spans := range []int64{0, 61_000, recorded} { // none are known, more than half of them, all
		b.endSpans(t, spans)
		for _, w := range pages {
			for _, from := range []int{0, len(w.all) / 2, len(w.all) - 30} {
				if from == 0 || from > 0 && from < len(w.all) {
					w.find(t, db.Pool, from)
				}
			}
		}
	}
	for _, w := range pages {
		if !strings.HasPrefix(w.name, "an actor that") { // what two conditions exclude is collected, as far as Postgres takes it to be rare
			lookAtLittle(t, db, w)
		}
	}
}

// lookAtLittle counts what a page looks at: a span for each event that is out of order, that in which what fits begins, and the one
// after it; a few spans more, and as much again to collect it, where there is another condition that these do not have enough of.
func lookAtLittle(t *testing.T, db *pg.DB, w wanted) {
	t.Helper()
	most := 3 * store.SpanSize
	if !strings.HasPrefix(w.name, "after") && !strings.HasPrefix(w.name, "be") {
		most = 2 * search.FewSpans * store.SpanSize
	}
	for _, from := range []int{0, len(w.all) / 2} {
		l := &looked{Pool: db.Pool, t: t}
		w.find(t, l, from)
		require.LessOrEqual(t, l.events, most, "%s from %d:\n%s", w.name, from, strings.Join(l.plans, "\n"))
		require.LessOrEqual(t, l.spans, 2*recorded/store.SpanSize)
	}
}

func TestAppendNotesTheTimesOfEachSpan(t *testing.T) {
	t.Parallel()
	b := setup(t)
	at := func(n int, of time.Time) []*core.Event {
		list := events(n)
		for _, e := range list {
			e.Time = of
		}
		return list
	}
	type span struct {
		First, Last      int64
		Earliest, Latest time.Time
	}
	spans := func() []span {
		rows, err := b.admin.Query(t.Context(), `SELECT first, last, earliest, latest FROM audit.spans ORDER BY first`)
		require.NoError(t, err)
		list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s span, err error) {
			err = row.Scan(&s.First, &s.Last, &s.Earliest, &s.Latest)
			s.Earliest, s.Latest = s.Earliest.UTC(), s.Latest.UTC()
			return s, err
		})
		require.NoError(t, err)
		return list
	}
	put := func(n int, of time.Time) {
		_, err := b.store.Append(t.Context(), at(n, of))
		require.NoError(t, err)
	}
	put(store.SpanSize-2, second(10))
	put(1, second(30))
	require.Empty(t, spans(), "the last event of the span is not there")
	put(2, second(5))
	first := span{1, store.SpanSize, second(5), second(30)}
	require.Equal(t, []span{first}, spans())
	put(2*store.SpanSize, second(40))
	require.Equal(t, []span{first, {store.SpanSize + 1, 2 * store.SpanSize, second(5), second(40)}, {2*store.SpanSize + 1, 3 * store.SpanSize, second(40), second(40)}}, spans())

	// A version that knows of no spans may have appended what is there: it is caught up with.
	b.tamper(t, `DELETE FROM audit.spans`)
	put(store.SpanSize, second(50))
	require.Len(t, spans(), 4)
	require.Equal(t, first, spans()[0])
}
