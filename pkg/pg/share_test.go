package pg_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/pg"
)

// TestProcessesShareTheQuotaWhileTheyComeAndGo has all connections of a service busy while processes of it start and stop: none is
// refused for long, and every one finds its share.
func TestProcessesShareTheQuotaWhileTheyComeAndGo(t *testing.T) {
	t.Parallel()
	const quota = 12
	s := newTCPServer(t, "")
	schema := inventory()
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: s.base("postgres"), Schemas: []pg.Schema{schema}, Quotas: map[string]int{schema.Name: quota}}))
	ctx, stop := context.WithCancel(t.Context())
	var load errgroup.Group
	var statements atomic.Int64
	start := func() *pg.DB {
		// The setting is another: what Postgres allows the role counts.
		db, err := pg.Open(ctx, pg.Config{BaseURL: s.base("postgres"), Service: schema.Name, Quota: 3 * quota, Schema: &schema})
		require.NoError(t, err)
		for range quota { // more than there are connections
			load.Go(func() error {
				for ctx.Err() == nil {
					// What a process does when it is told to stop is not part of this.
					if _, err := db.Pool.Exec(context.WithoutCancel(ctx), "SELECT pg_sleep(0.005)"); err != nil {
						return err
					}
					statements.Add(1)
				}
				return nil
			})
		}
		return db
	}
	size := func(db *pg.DB) int { return int(db.Pool.Config().MaxConns) }
	share := func(want int, dbs ...*pg.DB) {
		t.Helper()
		require.Eventually(t, func() bool {
			for _, db := range dbs {
				if size(db) != want {
					return false
				}
			}
			return true
		}, 30*time.Second, 50*time.Millisecond, "each of %d is to have %d", len(dbs), want)
		before := statements.Load()
		require.Eventually(t, func() bool { return statements.Load() > before+50 }, 30*time.Second, 10*time.Millisecond)
	}
	one := start()
	share(6, one)
	two, three := start(), start()
	share(3, one, two, three)
	for _, db := range []*pg.DB{one, two, three} {
		limited, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		require.NoError(t, db.Healthy(limited), "it is busy, and well")
		cancel()
	}
	stop()
	require.NoError(t, load.Wait(), "a statement failed for want of a connection")
	two.Close()
	three.Close()
	require.Eventually(t, func() bool { return size(one) == 6 }, 30*time.Second, 50*time.Millisecond)
	one.Close()
}
