package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/tick"
)

// How many certificates come due at once in TestFaultsUnderLoadLoseNothing, unless STORM says otherwise, and who has them made.
const (
	chaosStormSize = 100
	chaosStormers  = 8
	chaosStormMade = 20 * time.Minute // until all are served, at the most
)

// chaosStorm is certificates that no client works on. They all come due at once, and again when all are renewed, while other things fail.
type chaosStorm struct {
	size  int
	waves int // how often they came due
}

// patience is how long work may stand behind that of the storm.
func (s *chaosStorm) patience() time.Duration {
	return chaosSettle + time.Duration(s.size)*chaosRenewal
}

// makeStorm has certificates made and served, while nothing fails yet.
func (c *chaos) makeStorm(l *chaosLoad, size int) *chaosStorm {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), chaosStormMade)
	defer cancel()
	began := time.Now()
	numbers := make(chan int, size)
	for n := range size {
		numbers <- n
	}
	close(numbers)
	var clients sync.WaitGroup
	for i := range chaosStormers {
		one := l.client("stormer", aliceKey, i)
		clients.Go(func() {
			for n := range numbers {
				if err := one.want(ctx, fmt.Sprintf("storm-%05d", n), n); err != nil {
					l.complain(err)
				}
			}
		})
	}
	clients.Wait()
	s := &chaosStorm{size: size}
	for !c.breakLoose(s) {
		require.NoError(c.t, tick.Wait(ctx, 5*interval), "some of the storm's certificates are not served")
	}
	c.t.Logf("%d certificates were made for the storm in %s", size, time.Since(began).Round(time.Millisecond))
	return s
}

// stormReady counts the certificates of the storm whose version of a number is the newest, served, and known to the scheduler, which waits for
// its end.
const stormReady = `SELECT count(*) FROM renewalscheduler.plans p JOIN renewalscheduler.plan_keys k ON k.certificate_id = p.id
 JOIN inventory.certificates c ON c.id = p.id JOIN inventory.deployments d ON d.certificate_id = p.id
 WHERE p.id LIKE 'storm-%' AND p.state = 'SCHEDULED' AND p.due_time > now() AND k.version = $1 AND c.current_version = $1
 AND d.status = 'SERVED' AND d.served_version = $1`

// breakLoose makes all certificates of the storm due at once, by moving into the past what the scheduler knows of them. It does not while some
// are still being renewed: false.
func (c *chaos) breakLoose(s *chaosStorm) bool {
	c.t.Helper()
	ctx := c.t.Context()
	conn, err := pgx.Connect(ctx, c.database)
	require.NoError(c.t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var ready int
	require.NoError(c.t, conn.QueryRow(ctx, stormReady, s.waves+1).Scan(&ready))
	if ready < s.size {
		return false
	}
	require.NoError(c.t, pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE renewalscheduler.plan_keys SET not_before = not_before - 0.9 * (not_after - not_before),
 not_after = not_after - 0.9 * (not_after - not_before) WHERE certificate_id LIKE 'storm-%'`)
		if err == nil {
			_, err = tx.Exec(ctx, "UPDATE renewalscheduler.plans SET due_time = now() WHERE id LIKE 'storm-%'")
		}
		return err
	}))
	s.waves++
	return true
}

// due gives how often a certificate came due by itself.
func (s *chaosStorm) due(e *evidence) map[string]int {
	times := map[string]int{}
	for id := range e.Certificates {
		if strings.HasPrefix(id, "storm-") {
			times[id] = s.waves
		}
	}
	return times
}
