package asyncpoller_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/asyncpoller"
)

var generous = account.Limits{PerSecond: 1000, Burst: 1000, Concurrency: 100} //nolint:gochecknoglobals // a constant

// guarded makes a site whose issuer iss-a goes through an account.
func guarded(t *testing.T, limits account.Limits, change ...func(*asyncpoller.Config)) *site {
	t.Helper()
	s := newWorld(t)
	s.cas["iss-a"].limits = &limits
	s.replica = s.start(change...)
	return s
}

func (s *site) breaker(issuerID string) string {
	s.t.Helper()
	for _, state := range []string{"CLOSED", "OPEN", "HALF_OPEN"} {
		if s.replica.metric(s.t, "certctl_issuer_breaker_state", issuerID, state) == 1 {
			return state
		}
	}
	return ""
}

func TestTheQueueOfACAThatWasDownDrainsWhenItIsBack(t *testing.T) {
	t.Parallel()
	s := guarded(t, generous, func(c *asyncpoller.Config) { c.BreakerPause = 100 * time.Millisecond })
	const orders = 40
	id := func(n int) string { return fmt.Sprintf("ord-%02d", n) }
	var requests []*asyncpollerv1.CreatePollRequest
	for n := range orders {
		requests = append(requests, s.place(id(n), "iss-a", issuertest.Plan{RetryAfter: time.Hour}))
	}
	s.cas["iss-a"].SetDown(errors.New("connection refused"))
	for _, r := range requests {
		_, err := s.client().CreatePoll(t.Context(), r)
		require.NoError(t, err)
	}
	s.eventually("the breaker is open", func() bool { return s.breaker("iss-a") != "CLOSED" && s.breaker("iss-a") != "" })
	s.turn(time.Hour) // those that did fail are due again
	asked := func() (n int) {
		for i := range orders {
			n += s.polls(id(i))
		}
		return n
	}
	require.Less(t, asked(), orders, "most wait")
	s.cas["iss-a"].SetDown(nil)
	for n := range orders {
		s.eventually(id(n), func() bool {
			s.turnIfWaiting(id(n), time.Second) // those that failed come at their own time
			for _, c := range s.order(id(n)).calls {
				if c.GetProblem().GetReason() != "CA_UNAVAILABLE" {
					return true
				}
			}
			return false
		})
	}
	require.Equal(t, "CLOSED", s.breaker("iss-a"))
	require.Equal(t, issuancev1.RecordPollResultRequest_STILL_PENDING, s.order(id(0)).calls[0].GetOutcome())
}

func TestAConnectorGetsThePartOfTheAccountThatIsThisReplicas(t *testing.T) {
	t.Parallel()
	s := guarded(t, account.Limits{PerSecond: 20, Burst: 40}, func(c *asyncpoller.Config) { c.AccountShare = 0.3 })
	s.watch("ord-1", "iss-a", issuertest.Plan{RetryAfter: time.Hour})
	s.waiting("ord-1", 1)
	require.InDelta(t, 6, s.cas["iss-a"].guard.Rate(), 1e-9)
}

func TestPollNowIsAskedAlthoughTheBreakerIsOpen(t *testing.T) {
	t.Parallel()
	s := guarded(t, generous, func(c *asyncpoller.Config) { c.BreakerPause = time.Hour })
	var errs []error
	for range 5 {
		errs = append(errs, issuer.RetryAfter(time.Hour, errors.New("connection refused")))
	}
	s.watch("ord-1", "iss-a", issuertest.Plan{PollErrors: errs, RetryAfter: time.Hour})
	for n := int32(1); n <= 4; n++ {
		s.waiting("ord-1", n)
		s.turn(2 * time.Hour)
	}
	p := s.waiting("ord-1", 5)
	require.Equal(t, "OPEN", s.breaker("iss-a"))
	s.watch("ord-2", "iss-a", issuertest.Plan{RetryAfter: time.Hour})
	s.turn(2 * time.Hour)
	s.never("a poll while the breaker is open", func() bool { return s.polls("ord-1") > 5 || s.polls("ord-2") > 0 })
	require.Equal(t, p.GetAttempts(), s.poll("ord-1").GetAttempts(), "and what was not asked counts as no attempt")

	got, err := s.client().PollNow(t.Context(), &asyncpollerv1.PollNowRequest{OrderId: "ord-1"})
	require.NoError(t, err)
	require.True(t, got.GetPoll().GetHastened())
	p = s.waiting("ord-1", 6)
	require.False(t, p.GetHastened())
	require.Equal(t, "waiting for approval at the CA", p.GetLastAnswer())
	require.Equal(t, "CLOSED", s.breaker("iss-a"), "its answer tells that the CA is back")
	s.waiting("ord-2", 1)
}

func TestAReplicaThatDiesInTheMiddleOfAPollLeavesItToAnother(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *asyncpoller.Config) { c.CallTimeout = time.Minute })
	s.watch("ord-1", "iss-a", issuertest.Plan{HangPoll: true})
	s.state("ord-1", asyncpollerv1.Poll_LEASED, 1)
	// Without its database it can give nothing back: as if it was killed.
	s.replica.db.Close()
	s.replica.stop()
	s.cas["iss-a"].PlanOrder("ord-1", issuertest.Plan{})
	s.replica = s.start()
	p := s.poll("ord-1")
	require.Equal(t, asyncpollerv1.Poll_LEASED, p.GetState())
	s.never("a poll while the lease lasts", func() bool { return s.polls("ord-1") > 1 })
	s.turn(3 * time.Minute)
	s.waiting("ord-1", 2)
	require.Equal(t, 2, s.polls("ord-1"))
	require.Len(t, s.order("ord-1").calls, 1)
}

func TestTwoReplicasWithOneAccountNeverPollOneOrderUnderOneLeaseHoweverOftenItIsHastened(t *testing.T) {
	t.Parallel()
	s := guarded(t, generous)
	other := s.start()
	const orders = 30
	id := func(n int) string { return fmt.Sprintf("ord-%02d", n) }
	for n := range orders {
		s.watch(id(n), []string{"iss-a", "iss-b"}[n%2], issuertest.Plan{RetryAfter: time.Hour})
	}
	for round := int32(1); round <= 3; round++ {
		for n := range orders {
			s.waiting(id(n), round)
		}
		for range 2 {
			for n := range orders {
				_, err := s.client().PollNow(t.Context(), &asyncpollerv1.PollNowRequest{OrderId: id(n)})
				require.NoError(t, err)
			}
		}
	}
	for n := range orders {
		s.eventually(id(n), func() bool { p := s.poll(id(n)); return p.GetState() == asyncpollerv1.Poll_WAITING && !p.GetHastened() })
	}
	s.replica.stop()
	other.stop()
	for n := range orders {
		require.Equal(t, int(s.poll(id(n)).GetAttempts()), s.polls(id(n)), "one poll for each lease")
		require.Len(t, s.order(id(n)).calls, s.polls(id(n)))
		require.Len(t, s.history(id(n)), min(s.polls(id(n)), 20))
	}
}
