package store_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
	"github.com/certctl/certctl/services/asyncpoller/internal/store"
)

type bundle struct {
	*store.Store
	db    *pg.DB
	admin *pgxpool.Pool
}

func setup(t *testing.T) bundle {
	t.Helper()
	database := testpg.NewDatabase(t, store.Schema())
	db := database.Open(t, store.Schema().Name)
	return bundle{Store: store.New(db, nil), db: db, admin: database.Admin(t)}
}

// add watches orders of an issuer that are due in the order of their numbers.
func (b bundle) add(t *testing.T, issuerID string, n int) {
	t.Helper()
	_, err := b.db.Pool.Exec(t.Context(), `INSERT INTO polls (order_id, issuer_id, due_time, deadline_time, watch_time, create_time)
SELECT $1 || '-' || lpad(n::text, 6, '0'), $1, now() - interval '1 day' + n * interval '1 ms', now() + interval '1 day', now(), now()
FROM generate_series(1, $2::integer) n`, issuerID, n)
	require.NoError(t, err)
}

func (b bundle) claim(t *testing.T, c core.Claim) []core.Claimed {
	t.Helper()
	if c.LeaseFor == 0 {
		c.LeaseFor = time.Minute
	}
	got, err := b.Claim(t.Context(), c)
	require.NoError(t, err)
	return got
}

func count(claimed []core.Claimed) map[string]int {
	out := map[string]int{}
	for _, c := range claimed {
		out[c.Poll.IssuerID]++
	}
	return out
}

func TestAClaimIsSharedOutAmongTheIssuers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 50)
	b.add(t, "b", 3)
	b.add(t, "c", 50)

	first := b.claim(t, core.Claim{Limit: 32, PerIssuer: 8})
	require.Equal(t, map[string]int{"a": 8, "b": 3, "c": 8}, count(first))
	var oldest []string
	for _, c := range first {
		if c.Poll.IssuerID == "a" {
			oldest = append(oldest, c.Lease.ID)
			require.Equal(t, 1, c.Lease.Attempts)
			require.Equal(t, core.Leased, c.Poll.State)
		}
	}
	slices.Sort(oldest)
	require.Equal(t, "a-000001", oldest[0])
	require.Equal(t, "a-000008", oldest[7], "the oldest due come first")

	require.Equal(t, map[string]int{"c": 3}, count(b.claim(t, core.Claim{Limit: 32, PerIssuer: 8, Busy: map[string]int{"a": 8, "c": 5}})))
	require.Len(t, b.claim(t, core.Claim{Limit: 5, PerIssuer: 8}), 5)
}

func TestTwoClaimersNeverTakeOneRow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 200)
	taken := make([][]core.Claimed, 2)
	var g errgroup.Group
	for i := range taken {
		g.Go(func() error {
			for range 30 {
				got, err := b.Claim(t.Context(), core.Claim{Limit: 5, PerIssuer: 5, LeaseFor: time.Minute})
				if err != nil {
					return err
				}
				taken[i] = append(taken[i], got...)
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	ids := map[string]bool{}
	for _, c := range slices.Concat(taken...) {
		require.False(t, ids[c.Lease.ID], "row %s was claimed twice", c.Lease.ID)
		ids[c.Lease.ID] = true
	}
	require.Len(t, ids, 200)
}

func TestAnExpiredLeaseIsClaimedAgainAndTheOldWorkerIsFencedOff(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 1)
	old := b.claim(t, core.Claim{Limit: 1, PerIssuer: 1})[0]
	require.Empty(t, b.claim(t, core.Claim{Limit: 1, PerIssuer: 1}))
	_, err := b.db.Pool.Exec(t.Context(), `UPDATE polls SET lease_until = now() - interval '1 s'`)
	require.NoError(t, err)
	rescued := b.claim(t, core.Claim{Limit: 1, PerIssuer: 1})
	require.Len(t, rescued, 1)
	require.Equal(t, 2, rescued[0].Lease.Attempts)

	ctx := t.Context()
	require.ErrorIs(t, b.End(ctx, old.Lease, core.Note{}, core.Done, old.Poll.DeadlineTime), lease.ErrLost)
	require.ErrorIs(t, b.Reschedule(ctx, old.Lease, core.Note{}, time.Now()), lease.ErrLost)
	require.NoError(t, b.End(ctx, rescued[0].Lease, core.Note{Answer: "issued"}, core.Done, old.Poll.DeadlineTime))
	require.ErrorIs(t, b.End(ctx, rescued[0].Lease, core.Note{}, core.Done, old.Poll.DeadlineTime), lease.ErrLost)
}

// deed is a way in which a row's state may change.
type deed func(ctx context.Context, b bundle, l lease.Lease) error

func deeds() map[string]deed {
	later := time.Now().Add(48 * time.Hour)
	return map[string]deed{
		"claim": func(ctx context.Context, b bundle, _ lease.Lease) error {
			_, err := b.Claim(ctx, core.Claim{Limit: 1, PerIssuer: 1, LeaseFor: time.Minute})
			return err
		},
		"reschedule": func(ctx context.Context, b bundle, l lease.Lease) error {
			return b.Reschedule(ctx, l, core.Note{}, time.Now())
		},
		"end": func(ctx context.Context, b bundle, l lease.Lease) error {
			return b.End(ctx, l, core.Note{}, core.Done, later)
		},
		"abandon": func(ctx context.Context, b bundle, l lease.Lease) error {
			return b.End(ctx, l, core.Note{}, core.Abandoned, later)
		},
		"close": func(ctx context.Context, b bundle, l lease.Lease) error {
			return b.Close(ctx, l.ID, core.Abandoned, "")
		},
		"hasten": func(ctx context.Context, b bundle, l lease.Lease) error {
			_, _, err := b.Hasten(ctx, l.ID)
			return err
		},
		"watch again": func(ctx context.Context, b bundle, l lease.Lease) error {
			_, err := b.Watch(ctx, core.Poll{OrderID: l.ID, IssuerID: "a", DueTime: time.Now(), DeadlineTime: later, WatchTime: time.Now(), CreateTime: time.Now()})
			return err
		},
		"watch the same": func(ctx context.Context, b bundle, l lease.Lease) error {
			_, err := b.Watch(ctx, core.Poll{OrderID: l.ID, IssuerID: "a", DueTime: time.Now(), DeadlineTime: time.Now(), WatchTime: time.Now(), CreateTime: time.Now()})
			return err
		},
	}
}

func TestEachDeedMovesAPollAsTheTableAllows(t *testing.T) {
	t.Parallel()
	// By deed and state before: the state after. What is not named stays.
	want := map[string]map[string]string{
		"claim":       {core.Waiting: core.Leased},
		"reschedule":  {core.Leased: core.Waiting},
		"end":         {core.Leased: core.Done},
		"abandon":     {core.Leased: core.Abandoned},
		"close":       {core.Waiting: core.Abandoned, core.Leased: core.Abandoned},
		"watch again": {core.Done: core.Waiting, core.Abandoned: core.Waiting},
	}
	b := setup(t)
	for name, do := range deeds() {
		for _, before := range core.States() {
			_, err := b.db.Pool.Exec(t.Context(), `DELETE FROM polls`)
			require.NoError(t, err)
			b.add(t, "a", 1)
			l := bring(t, b, before)
			err = do(t.Context(), b, l)
			after := want[name][before]
			if after == "" {
				after = before
			} else {
				require.NoError(t, err, "%s of %s", name, before)
				require.True(t, core.CanMove(before, after), "%s to %s", before, after)
			}
			got, err := b.Get(t.Context(), "a-000001")
			require.NoError(t, err)
			require.Equal(t, after, got[0].State, "%s of %s", name, before)
		}
	}
}

// bring gives the one row a state.
func bring(t *testing.T, b bundle, state string) lease.Lease {
	t.Helper()
	if state == core.Waiting {
		return lease.Lease{ID: "a-000001"}
	}
	c := b.claim(t, core.Claim{Limit: 1, PerIssuer: 1})[0]
	if state != core.Leased {
		require.NoError(t, b.End(t.Context(), c.Lease, core.Note{}, state, c.Poll.DeadlineTime))
	}
	return c.Lease
}

func TestAWatchThatIsProlongedWhileItIsAbandonedGoesOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 1)
	c := b.claim(t, core.Claim{Limit: 1, PerIssuer: 1})[0]
	require.NoError(t, deeds()["watch again"](t.Context(), b, c.Lease))
	require.NoError(t, b.End(t.Context(), c.Lease, core.Note{Answer: "still pending"}, core.Abandoned, c.Poll.DeadlineTime))
	got, err := b.Get(t.Context(), c.Lease.ID)
	require.NoError(t, err)
	require.Equal(t, core.Waiting, got[0].State)
	require.Equal(t, "still pending", got[0].LastAnswer)
}

func TestAnEndedWatchIsForgottenAfterAWeek(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 3)
	for _, c := range b.claim(t, core.Claim{Limit: 2, PerIssuer: 2}) {
		require.NoError(t, b.End(t.Context(), c.Lease, core.Note{}, core.Done, c.Poll.DeadlineTime))
	}
	_, err := b.db.Pool.Exec(t.Context(), `UPDATE polls SET end_time = now() - interval '8 days' WHERE order_id = 'a-000001'`)
	require.NoError(t, err)
	n, err := b.Prune(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	left, err := b.Get(t.Context(), "a-000001", "a-000002", "a-000003")
	require.NoError(t, err)
	require.Len(t, left, 2)
}

func TestARowThatNobodyTouchesCountsAsStuck(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.add(t, "a", 2) // due since a day
	n, err := b.Stuck(t.Context())
	require.NoError(t, err)
	require.Equal(t, 2, n)
	b.claim(t, core.Claim{Limit: 1, PerIssuer: 1})
	n, err = b.Stuck(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n, "one is being worked on")
}

func TestAClaimOfAHundredThousandRowsUsesTheIndex(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 4 {
		b.add(t, fmt.Sprintf("iss-%d", i), 25_000) // all of them are due, the worst case
	}
	_, err := b.db.Pool.Exec(t.Context(), `ANALYZE polls`)
	require.NoError(t, err)
	sql, args := b.ClaimSQL(core.Claim{Limit: 32, PerIssuer: 8, LeaseFor: time.Minute, Busy: map[string]int{"iss-1": 8}})
	plan := explain(t, b.db, sql, args)
	require.Contains(t, plan, "polls_issuer_due", plan)
	require.NotContains(t, plan, "Seq Scan on polls", plan)
	require.NotContains(t, plan, "rows=25000", "rows that are not claimed are not read:\n"+plan)
	require.Len(t, b.claim(t, core.Claim{Limit: 32, PerIssuer: 8}), 32)

	table, err := b.Leases()
	require.NoError(t, err)
	stats, err := table.Stats(t.Context(), b.db.Pool)
	require.NoError(t, err)
	require.Equal(t, 10_000, stats.Due)
}

// explain runs a statement and rolls it back.
func explain(t *testing.T, db *pg.DB, sql string, args []any) string {
	t.Helper()
	tx, err := db.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback(context.WithoutCancel(t.Context()))) }()
	rows, err := tx.Query(t.Context(), `EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) `+sql, args...)
	require.NoError(t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return strings.Join(lines, "\n")
}
