package lease_test

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/testpg"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

//go:embed testdata/migrations
var files embed.FS

func database(t testing.TB) *pg.DB {
	t.Helper()
	sub, err := fs.Sub(files, "testdata")
	require.NoError(t, err)
	return testpg.New(t, pg.Schema{Name: "asyncpoller", FS: sub})
}

// clock is a time that only the test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func table(t testing.TB, now func() time.Time) *lease.Table {
	t.Helper()
	tab, err := lease.New(lease.Config{Table: "jobs", State: "state", Due: []string{"WAITING"}, Leased: "LEASED", Now: now})
	require.NoError(t, err)
	return tab
}

func addJobs(t testing.TB, db *pg.DB, n int, due time.Time) {
	t.Helper()
	_, err := db.Pool.Exec(t.Context(), `INSERT INTO jobs (id, due_time) SELECT 'job-' || lpad(i::text, 6, '0'), $2 FROM generate_series(1, $1) i`, n, due)
	require.NoError(t, err)
}

type job struct {
	State    string
	Attempts int
	Due      time.Time
	Leased   bool
}

func read(t testing.TB, db *pg.DB, id string) job {
	t.Helper()
	var j job
	require.NoError(t, db.Pool.QueryRow(t.Context(), `SELECT state, attempts, due_time, lease_id IS NOT NULL FROM jobs WHERE id = $1`, id).
		Scan(&j.State, &j.Attempts, &j.Due, &j.Leased))
	j.Due = j.Due.UTC()
	return j
}

func claim(t testing.TB, tab *lease.Table, db *pg.DB, n int) []lease.Lease {
	t.Helper()
	leases, err := tab.Claim(t.Context(), db.Pool, n, time.Minute)
	require.NoError(t, err)
	return leases
}

func TestWhatIsDueIsClaimedOldestFirstAndOnlyOnce(t *testing.T) {
	t.Parallel()
	db, c := database(t), newClock()
	tab := table(t, c.Now)
	addJobs(t, db, 3, c.Now())
	_, err := db.Pool.Exec(t.Context(), `UPDATE jobs SET due_time = due_time - interval '1 hour' WHERE id = 'job-000003'`)
	require.NoError(t, err)
	_, err = db.Pool.Exec(t.Context(), `INSERT INTO jobs (id, due_time, state) VALUES ('later', $1, 'WAITING'), ('done', $2, 'DONE')`, c.Now().Add(time.Second), c.Now())
	require.NoError(t, err)

	first := claim(t, tab, db, 2)
	require.Len(t, first, 2)
	require.Equal(t, "job-000003", first[0].ID)
	require.Equal(t, "job-000001", first[1].ID)
	require.Equal(t, 1, first[0].Attempts)
	require.Equal(t, job{State: "LEASED", Attempts: 1, Due: c.Now(), Leased: true}, read(t, db, "job-000001"))
	second := claim(t, tab, db, 10)
	require.Len(t, second, 1)
	require.Equal(t, "job-000002", second[0].ID)
	require.Empty(t, claim(t, tab, db, 10))

	c.add(time.Second)
	require.Equal(t, "later", claim(t, tab, db, 10)[0].ID)
	require.Empty(t, claim(t, tab, db, 0))
}

func TestAnExpiredLeaseIsTakenOverAndTheOldHolderIsRefused(t *testing.T) {
	t.Parallel()
	db, c := database(t), newClock()
	tab := table(t, c.Now)
	addJobs(t, db, 1, c.Now())
	old := claim(t, tab, db, 1)[0]
	c.add(59 * time.Second)
	require.Empty(t, claim(t, tab, db, 1))
	c.add(time.Second)
	fresh := claim(t, tab, db, 1)[0]
	require.Equal(t, 2, fresh.Attempts)

	ctx := t.Context()
	for name, act := range map[string]func(pgx.Tx) error{
		"finish":     func(tx pgx.Tx) error { return tab.Finish(ctx, tx, old, "DONE") },
		"reschedule": func(tx pgx.Tx) error { return tab.Reschedule(ctx, tx, old, time.Time{}) },
		"snooze":     func(tx pgx.Tx) error { return tab.Snooze(ctx, tx, old, time.Time{}) },
		"extend":     func(tx pgx.Tx) error { return tab.Extend(ctx, tx, old, time.Hour) },
		"hold":       func(tx pgx.Tx) error { return tab.Hold(ctx, tx, old) },
		"delete":     func(tx pgx.Tx) error { return tab.Delete(ctx, tx, old) },
	} {
		err := db.Tx(ctx, func(_ context.Context, tx pgx.Tx) error { return act(tx) })
		require.ErrorIs(t, err, lease.ErrLost, name)
	}
	require.NoError(t, db.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := tab.Hold(ctx, tx, fresh); err != nil {
			return err
		}
		return tab.Finish(ctx, tx, fresh, "DONE")
	}))
	require.Equal(t, "DONE", read(t, db, fresh.ID).State)
	require.ErrorIs(t, tab.Finish(ctx, db.Pool, fresh, "DONE"), lease.ErrLost, "a second finish")
}

func TestExtendRescheduleSnoozeAndDelete(t *testing.T) {
	t.Parallel()
	db, c := database(t), newClock()
	tab := table(t, c.Now)
	addJobs(t, db, 1, c.Now())
	l := claim(t, tab, db, 1)[0]
	c.add(50 * time.Second)
	require.NoError(t, tab.Extend(t.Context(), db.Pool, l, time.Minute))
	c.add(50 * time.Second)
	require.Empty(t, claim(t, tab, db, 1))

	at := c.Now().Add(time.Hour)
	require.NoError(t, tab.Reschedule(t.Context(), db.Pool, l, at))
	require.Equal(t, job{State: "WAITING", Attempts: 1, Due: at}, read(t, db, l.ID))
	c.add(time.Hour)
	l = claim(t, tab, db, 1)[0]
	require.Equal(t, 2, l.Attempts)
	require.NoError(t, tab.Snooze(t.Context(), db.Pool, l, time.Time{}))
	require.Equal(t, job{State: "WAITING", Attempts: 1, Due: c.Now()}, read(t, db, l.ID))
	l = claim(t, tab, db, 1)[0]
	require.NoError(t, tab.Delete(t.Context(), db.Pool, l))
	require.Empty(t, claim(t, tab, db, 1))
}

func TestATableWithoutStatesAndWithANumberAsItsKey(t *testing.T) {
	t.Parallel()
	db := database(t)
	tab, err := lease.New(lease.Config{Table: "asyncpoller.plain"})
	require.NoError(t, err)
	_, err = db.Pool.Exec(t.Context(), `INSERT INTO plain (due_time) VALUES (now() - interval '1 minute'), (now() - interval '2 minutes')`)
	require.NoError(t, err)
	stats, err := tab.Stats(t.Context(), db.Pool)
	require.NoError(t, err)
	require.Equal(t, 2, stats.Due)
	require.InDelta(t, 120, stats.Oldest.Seconds(), 10)
	leases := claim(t, tab, db, 5)
	require.Equal(t, []string{"2", "1"}, []string{leases[0].ID, leases[1].ID})
	require.Error(t, tab.Finish(t.Context(), db.Pool, leases[0], "DONE"))
	require.NoError(t, tab.Finish(t.Context(), db.Pool, leases[0], ""))
	require.NoError(t, tab.Reschedule(t.Context(), db.Pool, leases[1], time.Time{}))
	require.Equal(t, "1", claim(t, tab, db, 5)[0].ID)
}

func TestNamesThatAreNoIdentifiersAreRefused(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]lease.Config{
		`"" is no identifier`:            {},
		`"jobs; DROP TABLE jobs"`:        {Table: "jobs; DROP TABLE jobs"},
		`"id\"" is no identifier`:        {Table: "jobs", ID: `id"`},
		`"b.c" is no identifier`:         {Table: "a.b.c"},
		`"State" is no identifier`:       {Table: "jobs", State: "State", Due: []string{"A"}},
		`"A' OR 'a'='a" is no state`:     {Table: "jobs", State: "state", Due: []string{"A' OR 'a'='a"}},
		"no state is due":                {Table: "jobs", State: "state"},
		"there are states and no column": {Table: "jobs", Due: []string{"A"}},
	} {
		_, err := lease.New(cfg)
		require.ErrorContains(t, err, want)
	}
}

func TestTheClaimUsesThePartialIndex(t *testing.T) {
	t.Parallel()
	db := database(t)
	addJobs(t, db, 100_000, time.Now().Add(-time.Hour))
	_, err := db.Pool.Exec(t.Context(), `UPDATE jobs SET state = 'DONE' WHERE id > 'job-000100'`)
	require.NoError(t, err)
	var plan strings.Builder
	tx, err := db.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	rows, err := tx.Query(t.Context(), "EXPLAIN "+lease.ClaimSQL(table(t, nil)), nil, 10, time.Minute)
	require.NoError(t, err)
	for rows.Next() {
		var line string
		require.NoError(t, rows.Scan(&line))
		plan.WriteString(line + "\n")
	}
	require.NoError(t, rows.Err())
	require.Contains(t, plan.String(), "Index Scan using jobs_due")
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	b := lease.Backoff{Base: time.Second, Cap: time.Minute, MaxAttempts: 5}
	for attempts, most := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 4: 8 * time.Second} {
		var longest time.Duration
		for range 1000 {
			wait, ok := b.Next(attempts)
			require.True(t, ok)
			require.Positive(t, wait)
			require.LessOrEqual(t, wait, most)
			longest = max(longest, wait)
		}
		require.Greater(t, longest, most/2, "attempt %d", attempts)
	}
	_, ok := b.Next(5)
	require.False(t, ok)
	endless := lease.Backoff{Base: time.Second, Cap: time.Hour}
	require.Equal(t, time.Hour, endless.Most(1<<30))
	_, ok = endless.Next(1 << 30)
	require.True(t, ok)
}

// TestModel drives a table with random actions and compares it with a model: who holds what, until when.
func TestModel(t *testing.T) {
	t.Parallel()
	db, c := database(t), newClock()
	tab := table(t, c.Now)
	ctx := t.Context()
	rapid.Check(t, func(r *rapid.T) {
		_, err := db.Pool.Exec(ctx, `DELETE FROM jobs`)
		require.NoError(r, err)
		m := &model{t: r, ctx: ctx, db: db, tab: tab, clock: c, rows: map[string]*modelRow{}}
		for i := range rapid.IntRange(1, 6).Draw(r, "rows") {
			id := fmt.Sprintf("j%d", i)
			_, err := db.Pool.Exec(ctx, `INSERT INTO jobs (id, due_time) VALUES ($1, $2)`, id, c.Now())
			require.NoError(r, err)
			m.rows[id] = &modelRow{due: c.Now()}
		}
		r.Repeat(map[string]func(*rapid.T){
			"claim":      m.claim,
			"finish":     m.act(func(l lease.Lease) error { return tab.Finish(ctx, db.Pool, l, "DONE") }, func(row *modelRow) { row.done = true }),
			"reschedule": m.act(func(l lease.Lease) error { return tab.Reschedule(ctx, db.Pool, l, c.Now().Add(time.Minute)) }, func(row *modelRow) { row.due = c.Now().Add(time.Minute) }),
			"extend":     m.act(func(l lease.Lease) error { return tab.Extend(ctx, db.Pool, l, time.Minute) }, nil),
			"wait":       func(r *rapid.T) { c.add(time.Duration(rapid.IntRange(1, 90).Draw(r, "seconds")) * time.Second) },
		})
	})
}

type modelRow struct {
	due    time.Time
	done   bool
	holder *lease.Lease
	until  time.Time
}

type model struct {
	t      *rapid.T
	ctx    context.Context //nolint:containedctx // one test's
	db     *pg.DB
	tab    *lease.Table
	clock  *clock
	rows   map[string]*modelRow
	leases []lease.Lease
}

func (m *model) claim(r *rapid.T) {
	limit := rapid.IntRange(1, 4).Draw(r, "limit")
	got, err := m.tab.Claim(m.ctx, m.db.Pool, limit, time.Minute)
	require.NoError(r, err)
	claimable := 0
	for _, row := range m.rows {
		if row.claimable(m.clock.Now()) {
			claimable++
		}
	}
	require.Len(r, got, min(limit, claimable))
	for _, l := range got {
		row := m.rows[l.ID]
		require.True(r, row.claimable(m.clock.Now()), "row %s is not free", l.ID)
		row.holder, row.until = &l, m.clock.Now().Add(time.Minute)
		m.leases = append(m.leases, l)
	}
}

func (row *modelRow) claimable(now time.Time) bool {
	return !row.done && !row.due.After(now) && (row.holder == nil || !row.until.After(now))
}

// act does something with any lease that was ever given out; only the holder may.
func (m *model) act(do func(lease.Lease) error, then func(*modelRow)) func(*rapid.T) {
	return func(r *rapid.T) {
		if len(m.leases) == 0 {
			r.Skip("no lease")
		}
		l := rapid.SampledFrom(m.leases).Draw(r, "lease")
		row := m.rows[l.ID]
		err := do(l)
		if row.holder == nil || row.holder.LeaseID != l.LeaseID {
			require.ErrorIs(r, err, lease.ErrLost)
			return
		}
		require.NoError(r, err)
		if then == nil {
			row.until = m.clock.Now().Add(time.Minute)
			return
		}
		then(row)
		row.holder = nil
	}
}

var errBroken = errors.New("broken")
