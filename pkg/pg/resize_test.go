package pg

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

// While Postgres is on its way back, connections take long, and each process finds itself alone and takes a larger share.
func TestAConnectionThatIsBeingMadeWhileThePoolIsResizedIsMadeAgain(t *testing.T) {
	t.Parallel()
	cfg, err := pgxpool.ParseConfig("postgres://certctl@192.0.2.1/certctl?sslmode=disable")
	require.NoError(t, err)
	first, errAgain := make(chan struct{}), errors.New("dialed again")
	var dials atomic.Int64
	cfg.ConnConfig.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		if dials.Add(1) > 1 {
			return nil, errAgain
		}
		close(first)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	p := NewPool(pool)
	t.Cleanup(p.Close)
	asked := make(chan error)
	go func() {
		_, err := p.Acquire(t.Context())
		asked <- err
	}()
	<-first
	require.NoError(t, p.resize(t.Context(), 2))
	require.ErrorIs(t, <-asked, errAgain, "the caller was told that it had given up")
}
