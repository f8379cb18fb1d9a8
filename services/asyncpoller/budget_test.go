package asyncpoller_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/asyncpoll"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	"github.com/certctl/certctl/services/asyncpoller"
)

// waited has an order polled until the CA is left in peace for longer than is done while somebody waits, and gives for how
// long somebody did: what the CA itself saw.
func (s *site) waited(id, issuerID string) time.Duration {
	s.t.Helper()
	s.watch(id, issuerID, issuertest.Plan{})
	for n := int32(1); ; n++ {
		require.Less(s.t, n, int32(200))
		due := s.waiting(id, n).GetDueTime().AsTime()
		asked := s.cas[issuerID].times()
		if due.Sub(s.clock()) > 14*time.Minute {
			require.LessOrEqual(s.t, due.Sub(s.clock()), time.Hour)
			return asked[len(asked)-1].Sub(asked[0])
		}
		require.LessOrEqual(s.t, due.Sub(s.clock()), 5*time.Minute)
		s.turn(max(due.Sub(s.clock()), 0))
	}
}

// The tests below see at the connector for how long somebody waits, one for each step of the chain. The default is a value of
// the process: they run before those that are parallel.

func TestWithoutAWordSomebodyWaitsForTenMinutes(t *testing.T) {
	require.InDelta(t, 10*time.Minute, newSite(t).waited("ord-1", "iss-a"), float64(10*time.Second))
}

func TestTheDefaultOfTheProcessCountsOverThatOfThePackage(t *testing.T) {
	t.Cleanup(func() { asyncpoll.SetDefaultMaxWait(0) })
	s := newSite(t)
	asyncpoll.SetDefaultMaxWait(3 * time.Minute)
	require.InDelta(t, 3*time.Minute, s.waited("ord-1", "iss-a"), float64(10*time.Second))
	asyncpoll.SetDefaultMaxWait(25 * time.Minute)
	require.InDelta(t, 25*time.Minute, s.waited("ord-2", "iss-b"), float64(10*time.Second))
}

func TestTheBudgetOfATypeCountsOverTheDefaultOfTheProcess(t *testing.T) {
	t.Cleanup(func() { asyncpoll.SetDefaultMaxWait(0) })
	asyncpoll.SetDefaultMaxWait(3 * time.Minute)
	s := newSite(t, func(c *asyncpoller.Config) { c.MaxWaits = map[string]time.Duration{"type-of-iss-a": 7 * time.Minute} })
	require.InDelta(t, 7*time.Minute, s.waited("ord-1", "iss-a"), float64(10*time.Second))
	require.InDelta(t, 3*time.Minute, s.waited("ord-2", "iss-b"), float64(10*time.Second), "the others keep it")
	require.Equal(t, asyncpollerv1.Poll_WAITING, s.poll("ord-1").GetState(), "nobody gave the order up")
}
