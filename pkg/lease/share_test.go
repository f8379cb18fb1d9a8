package lease_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/pg"
)

func sharedTable(t *testing.T) *lease.Table {
	t.Helper()
	tab, err := lease.New(lease.Config{Table: "jobs", State: "state", Group: "owner", Due: []string{"WAITING"}, Leased: "LEASED"})
	require.NoError(t, err)
	return tab
}

func addOwned(t *testing.T, db *pg.DB, owner string, n int, due time.Time) {
	t.Helper()
	_, err := db.Pool.Exec(t.Context(), `INSERT INTO jobs (id, owner, due_time) SELECT $1 || '-' || i, $1, $3 FROM generate_series(1, $2) i`, owner, n, due)
	require.NoError(t, err)
}

func byOwner(leases []lease.GroupLease) map[string]int {
	out := map[string]int{}
	for _, l := range leases {
		out[l.Group]++
	}
	return out
}

func TestTheManyDueRowsOfOneGroupAreNotInFrontOfAnothers(t *testing.T) {
	t.Parallel()
	db, tab := database(t), sharedTable(t)
	addOwned(t, db, "a", 1000, time.Now().Add(-time.Hour)) // long due
	addOwned(t, db, "b", 3, time.Now().Add(-time.Second))
	addOwned(t, db, "c", 10, time.Now().Add(-time.Second))
	addOwned(t, db, "d", 10, time.Now().Add(time.Hour)) // not due
	take := func(s lease.Shared) map[string]int {
		s.LeaseFor = time.Minute
		leases, err := tab.ClaimShared(t.Context(), db.Pool, s)
		require.NoError(t, err)
		return byOwner(leases)
	}
	require.Equal(t, map[string]int{"a": 4, "b": 3, "c": 1}, take(lease.Shared{Limit: 100, PerGroup: 4, Room: map[string]int{"c": 1}}))
	require.Equal(t, map[string]int{"c": 4}, take(lease.Shared{Limit: 100, PerGroup: 4, Room: map[string]int{"a": 0}}))
	require.Equal(t, map[string]int{"a": 1, "c": 1}, take(lease.Shared{Limit: 2, PerGroup: 4}), "in turn when there is less room than work")
	require.Equal(t, map[string]int{"c": 2}, take(lease.Shared{Limit: 2, PerGroup: 4, Room: map[string]int{"a": 1}}), "who has the fewest under way is next")
	require.Empty(t, take(lease.Shared{Limit: 0, PerGroup: 4}))

	_, err := table(t, nil).ClaimShared(t.Context(), db.Pool, lease.Shared{Limit: 1, PerGroup: 1, LeaseFor: time.Minute})
	require.ErrorContains(t, err, "has no groups")
}

func TestAGroupWhoseWorkHangsKeepsOnlyItsShare(t *testing.T) {
	t.Parallel()
	db, tab := database(t), sharedTable(t)
	addOwned(t, db, "hangs", 100, time.Now().Add(-time.Hour))
	for n := range 5 {
		addOwned(t, db, fmt.Sprintf("works-%d", n), 20, time.Now().Add(-time.Second))
	}
	done, release := finish(t, db), make(chan struct{})
	sharer, err := lease.NewSharer(lease.SharerDeps{Table: tab, DB: db.Pool, PerGroup: 3, Handle: func(ctx context.Context, l lease.Lease) error {
		if l.ID[:5] == "hangs" {
			select {
			case <-release:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return done(ctx, l)
	}})
	require.NoError(t, err)
	// The runner looks by itself but once an hour: what is not claimed at once is claimed because there is room again.
	r, err := lease.NewRunner(lease.RunnerConfig{Name: "shared", Slots: 8, Interval: time.Hour},
		lease.RunnerDeps{Table: tab, DB: db.Pool, Handle: sharer.Handle, Claim: sharer.Claim, Logger: zap.NewNop()})
	require.NoError(t, err)
	sharer.OnRoom(r.Kick)
	harness{Runner: r}.start(t)
	require.Eventually(t, func() bool { return count(t, db, "state = 'DONE'") == 100 }, eventually, often)
	require.Equal(t, 3, count(t, db, "owner = 'hangs' AND state = 'LEASED'"))
	close(release)
	require.Eventually(t, func() bool { return count(t, db, "state = 'DONE'") == 200 }, eventually, often)
	require.Zero(t, count(t, db, "attempts <> 1"))
}

func TestAGroupGetsAllSlotsThoughAClaimTakesFewer(t *testing.T) {
	t.Parallel()
	db, tab := database(t), sharedTable(t)
	const slots = lease.MostPerGroup + 10
	addOwned(t, db, "a", 2*slots, time.Now().Add(-time.Hour))
	sharer, err := lease.NewSharer(lease.SharerDeps{Table: tab, DB: db.Pool, PerGroup: slots, Handle: finish(t, db)})
	require.NoError(t, err)
	r, err := lease.NewRunner(lease.RunnerConfig{Name: "shared", Slots: slots, Interval: time.Hour},
		lease.RunnerDeps{Table: tab, DB: db.Pool, Handle: sharer.Handle, Claim: sharer.Claim, Logger: zap.NewNop()})
	require.NoError(t, err)
	sharer.OnRoom(r.Kick)
	harness{Runner: r}.start(t)
	require.Eventually(t, func() bool { return count(t, db, "state = 'DONE'") == 2*slots }, eventually, often)
}

func TestASharerNeedsATableWithGroups(t *testing.T) {
	t.Parallel()
	db := database(t)
	_, err := lease.NewSharer(lease.SharerDeps{Table: table(t, nil), DB: db.Pool, PerGroup: 1, Handle: finish(t, db)})
	require.Error(t, err)
}
