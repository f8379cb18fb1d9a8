package testpg

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

// Admin is a pool or connection of the superuser.
type Admin interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Vacuum vacuums and analyses tables until all their pages count as visible, without which nothing is read from an index
// only. A connection that another test opens at the same moment can hold a VACUUM back.
func Vacuum(t testing.TB, admin Admin, tables ...string) {
	t.Helper()
	for _, table := range tables {
		require.Eventually(t, func() bool {
			_, err := admin.Exec(t.Context(), "VACUUM ANALYZE "+table)
			require.NoError(t, err)
			var visible bool
			err = admin.QueryRow(t.Context(), `SELECT relallvisible >= relpages FROM pg_class WHERE oid = $1::regclass`, table).Scan(&visible)
			require.NoError(t, err)
			return visible
		}, 30*time.Second, 50*time.Millisecond, "pages of %s stay invisible", table)
	}
}
