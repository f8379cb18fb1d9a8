package digicert_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuer/digicert"
	"github.com/certctl/certctl/pkg/secretbox"
)

// The CA's limits are rolling: 1000 calls in any 3 minutes, 100 in any 5 seconds (page "Rate limits" of its documentation).
func TestNoWindowHasMoreCallsThanTheCAAllows(t *testing.T) {
	t.Parallel()
	for name, shares := range map[string][]float64{"one process": {1}, "two processes": {0.5, 0.5}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var times []time.Time
				var mu sync.Mutex
				count := func() {
					mu.Lock()
					defer mu.Unlock()
					times = append(times, time.Now())
				}
				for _, busy := range []time.Duration{400 * time.Second, 200 * time.Second} {
					ctx, cancel := context.WithTimeout(t.Context(), busy)
					var wg sync.WaitGroup
					for _, share := range shares {
						guard := guardOf(t, share)
						for range 12 {
							wg.Go(func() { hammer(ctx, guard, count) })
						}
					}
					wg.Wait()
					cancel()
					pause(t.Context(), time.Minute)
				}
				require.Greater(t, len(times), 2000, "the limits are used")
				require.LessOrEqual(t, most(times, 5*time.Second), 100)
				require.LessOrEqual(t, most(times, 3*time.Minute), 1000)
			})
		})
	}
}

// guardOf gives the guard that an issuer of a process with a share of the account has. Each call is another process.
func guardOf(t testing.TB, share float64) *account.Guard {
	t.Helper()
	i, err := digicert.New(issuer.Config{
		Settings: []byte(`{"product_name_id":"ssl_basic","organization_id":1}`),
		Secrets:  map[string]secretbox.Secret{"api_key": secretbox.NewSecret("key")},
	}, issuer.Deps{Accounts: account.New(account.Config{Share: share})})
	require.NoError(t, err)
	return i.Account()
}

// hammer makes calls as fast as the guard lets it.
func hammer(ctx context.Context, g *account.Guard, called func()) {
	for ctx.Err() == nil {
		leave, err := g.Enter(ctx)
		if err == nil {
			called()
			leave(account.Result{})
			continue
		}
		var busy *account.BusyError
		if errors.As(err, &busy) {
			pause(ctx, busy.After)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// most counts the calls of the busiest window.
func most(times []time.Time, window time.Duration) int {
	best, from := 0, 0
	for to := range times {
		for times[to].Sub(times[from]) >= window {
			from++
		}
		best = max(best, to-from+1)
	}
	return best
}
