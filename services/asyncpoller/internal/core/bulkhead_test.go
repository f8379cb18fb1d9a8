package core_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

func TestACAThatHangsOnEveryCallDelaysNoOther(t *testing.T) {
	t.Parallel()
	for name, guarded := range map[string]string{"without an account": "", "with an account": "bad"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inHall(t, map[string]*clerk{
				"bad": {account: guarded, answer: hangs}, "good": {answer: takes(50*time.Millisecond, pending)},
				"fine": {account: "fine", limits: account.Limits{PerSecond: 100, Burst: 100}, answer: takes(50*time.Millisecond, pending)},
			}, func(h *hall) {
				h.add("bad", 5000, 0)
				pass(time.Minute) // it has all that it can get
				h.add("good", 1000, 500*time.Millisecond)
				h.add("fine", 1000, 500*time.Millisecond)
				pass(510 * time.Second)
				require.Equal(t, 1000, h.answered("good"))
				require.Equal(t, 1000, h.answered("fine"))
				h.do(func() {
					require.LessOrEqual(t, h.lag["good"], 6*time.Second, "no more than until the next look")
					require.LessOrEqual(t, h.lag["fine"], 6*time.Second)
					require.LessOrEqual(t, h.cas["bad"].most, perIssuer)
				})
			})
		})
	}
}

func TestACAThatIsDownIsProbedAndItsQueueDrainsAtItsQuotaWhenItIsBack(t *testing.T) {
	t.Parallel()
	limits := account.Limits{PerSecond: 10, Burst: 20, Concurrency: 8} // 6 a second and 12 at once are ours
	inHall(t, map[string]*clerk{"ca": {account: "one", limits: limits, answer: down}}, func(h *hall) {
		h.add("ca", 600, 0)
		pass(time.Second)
		opened := time.Now()
		pass(10 * time.Minute)
		probes := h.calls("ca", opened)
		require.LessOrEqual(t, len(probes), 41, "one each 15 s")
		require.GreaterOrEqual(t, len(probes), 30)
		for i := 1; i < len(probes); i++ {
			require.GreaterOrEqual(t, probes[i].Sub(probes[i-1]), 15*time.Second)
		}
		require.Equal(t, []string{"ca"}, h.dispatcher.Held(), "that its orders wait is explained")

		back := time.Now()
		h.do(func() { h.cas["ca"].answer = takes(200*time.Millisecond, pending) })
		pass(16 * time.Second)
		begun := h.calls("ca", back)
		require.Greater(t, len(begun), 10, "the probe that succeeds starts the others at once")
		pass(2 * time.Minute)
		calls := h.calls("ca", back)
		require.Equal(t, 600, h.answered("ca"), "all are answered")
		took := calls[len(calls)-1].Sub(calls[0])
		require.LessOrEqual(t, took, 110*time.Second, "600 at 6 a second")
		for i, at := range calls {
			within := 0
			for _, other := range calls[i:] {
				if other.Sub(at) < 10*time.Second {
					within++
				}
			}
			require.LessOrEqual(t, within, 12+60+1, "the quota is kept while it drains")
		}
	})
}

func TestPollNowAsksACAThatIsLeftAloneAndItsAnswerWakesTheOthers(t *testing.T) {
	t.Parallel()
	limits := account.Limits{PerSecond: 100, Burst: 100}
	inHall(t, map[string]*clerk{"ca": {account: "one", limits: limits, answer: down}}, func(h *hall) {
		h.add("ca", 20, 0)
		pass(time.Second)
		before := len(h.calls("ca", time.Time{}))
		h.hasten("ca-000010")
		require.Len(t, h.calls("ca", time.Time{}), before+1, "it is asked although its breaker is open")
		require.False(t, h.row("ca-000010").Hastened, "and has been answered")

		h.do(func() { h.cas["ca"].answer = pending })
		pass(time.Millisecond)
		began, due := time.Now(), h.due("ca")
		require.Greater(t, len(due), 5)
		h.hasten(due[0])
		pass(time.Second)
		require.Len(t, h.calls("ca", began), len(due), "all that were due")
	})
}

func TestPollNowAsksACAThatHangsAndHasAllOfItsSlots(t *testing.T) {
	t.Parallel()
	inHall(t, map[string]*clerk{"ca": {account: "one", answer: hangs}}, func(h *hall) {
		h.add("ca", 20, 0)
		pass(time.Second)
		require.Len(t, h.calls("ca", time.Time{}), perIssuer)
		h.hasten("ca-000019")
		require.Len(t, h.calls("ca", time.Time{}), perIssuer+1)
	})
}

func TestWhatTheAccountRefusesIsNoPoll(t *testing.T) {
	t.Parallel()
	limits := account.Limits{PerSecond: 1, Burst: 1, Concurrency: 1}
	// The issuers do not know of each other when the connectors are built, so more is claimed at first than the account allows.
	inHall(t, map[string]*clerk{
		"a": {account: "one", limits: limits, answer: takes(3*time.Second, pending)}, "b": {account: "one", limits: limits, answer: takes(3*time.Second, pending)},
	}, func(h *hall) {
		h.add("a", 8, 0)
		h.add("b", 8, 0)
		pass(2 * time.Minute)
		calls := len(h.calls("a", time.Time{})) + len(h.calls("b", time.Time{}))
		require.Equal(t, 16, calls)
		h.do(func() {
			for id, p := range h.rows {
				require.Equal(t, 1, p.Attempts, id)
				require.Len(t, p.History, 1, id)
				require.Equal(t, core.ResultPending, p.History[0].Result, id)
			}
		})
		all := append(h.calls("a", time.Time{}), h.calls("b", time.Time{})...)
		slices.SortFunc(all, time.Time.Compare)
		for i := 1; i < len(all); i++ {
			require.GreaterOrEqual(t, all[i].Sub(all[i-1]), 3*time.Second, "one at a time for both issuers")
		}
	})
}

func TestSlowPollsTakeNoMoreThanHalfOfTheAccount(t *testing.T) {
	t.Parallel()
	limits := account.Limits{PerSecond: 5, Burst: 5}
	inHall(t, map[string]*clerk{"ca": {account: "one", limits: limits, answer: pendingWithoutAWish}}, func(h *hall) {
		h.add("ca", 1, 0)
		pass(20 * time.Minute) // the wait budget is over
		h.metrics.Count([]core.Pending{{IssuerID: "ca", Orders: 200}, {IssuerID: "other", Orders: 100_000}})
		h.hasten("ca-000000")
		wait := time.Until(h.row("ca-000000").DueTime)
		require.LessOrEqual(t, wait, time.Hour, "few orders are asked about as often as one likes")

		h.metrics.Count([]core.Pending{{IssuerID: "ca", Orders: 25_000}})
		var sum time.Duration
		const polls = 200
		for range polls {
			pass(10 * time.Second)
			h.hasten("ca-000000")
			sum += time.Until(h.row("ca-000000").DueTime)
		}
		// Half of 3 calls a second is 1.5: 25,000 orders take 4.6 hours.
		require.InEpsilon(t, 25_000/1.5, (sum / polls).Seconds(), 0.1)
	})
}
