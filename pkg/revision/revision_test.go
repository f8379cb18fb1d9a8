package revision_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/pkg/testpg"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
)

const service = "revised"

func database(t *testing.T) *testpg.Database {
	t.Helper()
	return testpg.NewDatabase(t, pg.Schema{Name: service, FS: fstest.MapFS{
		"migrations/00001_init.sql": {Data: []byte("-- +goose Up\n" + revision.Schema)},
	}})
}

func get(t *testing.T, db revision.Querier, collection string) int64 {
	t.Helper()
	n, err := revision.Get(t.Context(), db, collection)
	require.NoError(t, err)
	return n
}

func TestAChangeShowsWhenItIsCommittedAndNotBefore(t *testing.T) {
	t.Parallel()
	db := database(t).Open(t, service)
	require.Zero(t, get(t, db.Pool, "jobs"), "what never changed has revision 0")
	require.NoError(t, db.Tx(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		if err := revision.Bump(ctx, tx, "jobs", "agents", "jobs"); err != nil {
			return err
		}
		require.EqualValues(t, 1, get(t, tx, "jobs"), "a collection that is named twice is raised once")
		require.Zero(t, get(t, db.Pool, "jobs"))
		return nil
	}))
	require.EqualValues(t, 1, get(t, db.Pool, "jobs"))
	require.EqualValues(t, 1, get(t, db.Pool, "agents"))
	require.Zero(t, get(t, db.Pool, "certificates"))

	undone := errors.New("undone")
	require.ErrorIs(t, db.Tx(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(revision.Bump(ctx, tx, "jobs"), undone)
	}), undone)
	require.EqualValues(t, 1, get(t, db.Pool, "jobs"), "a change that did not happen raises nothing")
}

func TestNothingIsRaisedForNoCollection(t *testing.T) {
	t.Parallel()
	db := database(t).Open(t, service)
	require.NoError(t, revision.Bump(t.Context(), db.Pool))
	require.Zero(t, get(t, db.Pool, "jobs"))
}

// shardOf is the row that a connection raises.
func shardOf(t *testing.T, c *pgxpool.Conn) int {
	t.Helper()
	var shard int
	require.NoError(t, c.QueryRow(t.Context(), `SELECT pg_backend_pid() % 64`).Scan(&shard))
	return shard
}

// connections takes n connections that raise different rows.
func connections(t *testing.T, db *pg.DB, n int) []*pgxpool.Conn {
	t.Helper()
	taken := map[int]*pgxpool.Conn{}
	for range 9 { // the size of the pool
		c, err := db.Pool.Acquire(t.Context())
		require.NoError(t, err)
		t.Cleanup(c.Release)
		taken[shardOf(t, c)] = c
		if len(taken) == n {
			break
		}
	}
	list := make([]*pgxpool.Conn, 0, n)
	for _, c := range taken {
		list = append(list, c)
	}
	require.Len(t, list, n)
	return list
}

func TestOpenTransactionsOnOtherConnectionsDoNotBlock(t *testing.T) {
	t.Parallel()
	d := database(t)
	db := d.Open(t, service)
	watch := d.Admin(t)
	var open []pgx.Tx
	for _, c := range connections(t, db, 3) {
		_, err := c.Exec(t.Context(), `SET lock_timeout = '2s'`)
		require.NoError(t, err)
		tx, err := c.Begin(t.Context())
		require.NoError(t, err)
		require.NoError(t, revision.Bump(t.Context(), tx, "jobs", "certificates"), "a writer waits for another one's row")
		open = append(open, tx)
	}
	read := func() (n int64) {
		err := watch.QueryRow(t.Context(), `SELECT coalesce(sum(revision), 0) FROM revised.collection_revisions WHERE collection = 'jobs'`).Scan(&n)
		require.NoError(t, err)
		return n
	}
	require.Zero(t, read())
	for i, tx := range open {
		require.NoError(t, tx.Commit(t.Context()))
		require.EqualValues(t, i+1, read(), "each commit shows as a new revision")
	}
}

func TestNoRaiseIsLostAndNoneDeadlocks(t *testing.T) {
	t.Parallel()
	db := database(t).Open(t, service)
	const writers, rounds = 6, 25
	var g errgroup.Group
	for w := range writers {
		names := []string{"jobs", "certificates", "agents"}
		if w%2 == 1 {
			names = []string{"agents", "certificates", "jobs"}
		}
		g.Go(func() error {
			for range rounds {
				// Its own connection for each round: rows are shared between writers too.
				err := db.Tx(t.Context(), func(ctx context.Context, tx pgx.Tx) error { return revision.Bump(ctx, tx, names...) })
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	for _, name := range []string{"jobs", "certificates", "agents"} {
		require.EqualValues(t, writers*rounds, get(t, db.Pool, name))
	}
}

func TestARevisionIsOneReadOfAnIndex(t *testing.T) {
	t.Parallel()
	d := database(t)
	_, err := d.Admin(t).Exec(t.Context(), `INSERT INTO revised.collection_revisions (collection, shard, revision)
SELECT 'collection-' || n, s, 1 FROM generate_series(1, 500) AS n, generate_series(0, 63) AS s`)
	require.NoError(t, err)
	_, err = d.Admin(t).Exec(t.Context(), `ANALYZE revised.collection_revisions`)
	require.NoError(t, err)
	db := d.Open(t, service)
	explained := &explainer{db: db.Pool}
	_, err = revision.Get(t.Context(), explained, "collection-7")
	require.NoError(t, err)
	require.Equal(t, 1, explained.queries)
	require.Contains(t, explained.plan, "Index Cond")
	require.NotContains(t, explained.plan, "Seq Scan")
	require.EqualValues(t, 64, get(t, db.Pool, "collection-7"))
}

// explainer notes the plan of each query on its way.
type explainer struct {
	db      *pg.Pool
	queries int
	plan    string
}

func (e *explainer) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	e.queries++
	if rows, err := e.db.Query(ctx, `EXPLAIN `+sql, args...); err == nil {
		lines, _ := pgx.CollectRows(rows, pgx.RowTo[string]) // an empty plan fails the test
		e.plan = strings.Join(lines, "\n")
	}
	return e.db.QueryRow(ctx, sql, args...)
}

func TestOnlyTheCollectionsOfTheServiceAreAnswered(t *testing.T) {
	t.Parallel()
	db := database(t).Open(t, service)
	s := revision.NewServer(db.Pool, "jobs", "policies")
	require.NoError(t, revision.Bump(t.Context(), db.Pool, "jobs"))
	for collection, want := range map[string]int64{"jobs": 1, "policies": 0} {
		r, err := s.GetRevision(t.Context(), &eventv1.GetRevisionRequest{Collection: collection})
		require.NoError(t, err)
		require.Equal(t, want, r.GetRevision())
	}
	_, err := s.GetRevision(t.Context(), &eventv1.GetRevisionRequest{Collection: "certificates"})
	require.Equal(t, errs.Invalid, errs.KindOf(err))
	require.Equal(t, "collection", errs.From(err).Violations()[0].Field)
}

func TestAReadThatFailsSaysSo(t *testing.T) {
	t.Parallel()
	db := database(t).Open(t, service)
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	_, err := revision.Get(ctx, db.Pool, "jobs")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, revision.Bump(ctx, db.Pool, "jobs"), context.DeadlineExceeded)
}
