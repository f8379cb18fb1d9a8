package core

import (
	"math/rand/v2"
	"time"

	"github.com/certctl/certctl/pkg/lease"
)

const (
	firstWait  = 5 * time.Second
	firstWaits = 3 // so many waits before they grow
	growCap    = 5 * time.Minute
	slowLeast  = 15 * time.Minute
	slowMost   = time.Hour
	// stretchMost bounds the slow waits when there are too many orders for the account.
	stretchMost = 24 * time.Hour
	// leastWait keeps jitter from asking a CA twice in a moment.
	leastWait = time.Second
)

// Moment is what the next time depends on.
type Moment struct {
	Now        time.Time
	Attempts   int           // polls so far, this one included
	WatchTime  time.Time     // when the watch began
	Budget     time.Duration // how long after that somebody waits for the answer
	Deadline   time.Time
	RetryAfter time.Duration // the CA's wish; zero if it has none
	// Pace is the mean time between two polls of an order that the rate of the CA account leaves room for; zero: as short as
	// one likes.
	Pace time.Duration
}

// Schedule says when a pending order is asked about again: three times within 5 s each, with full jitter; then less and
// less often, up to 5 min; once the wait budget is over, every 15 min to 1 h, or as often as the rate of the account allows
// when more orders are pending than could be asked about in that time. What the CA asks for wins. The end of the budget and
// the deadline are never slept through, and nothing is due after the deadline.
type Schedule struct {
	// Draw gives a duration from 0 to below n; nil draws at random. For tests.
	Draw func(n time.Duration) time.Duration
}

// Next gives the time of the next poll.
func (s Schedule) Next(m Moment) time.Time {
	at := s.undisturbed(m)
	if at.After(m.Deadline) {
		return m.Deadline
	}
	return at
}

func (s Schedule) undisturbed(m Moment) time.Time {
	budgetEnd := m.WatchTime.Add(m.Budget)
	switch {
	case m.RetryAfter > 0:
		return m.Now.Add(max(m.RetryAfter, leastWait))
	case m.Now.Before(budgetEnd):
		grow := lease.Backoff{Base: firstWait, Cap: growCap}
		at := m.Now.Add(max(s.draw(grow.Most(m.Attempts-firstWaits+1))+1, leastWait))
		if at.After(budgetEnd) {
			return budgetEnd
		}
		return at
	default:
		return m.Now.Add(stretched(slowLeast+s.draw(slowMost-slowLeast), m.Pace))
	}
}

// stretched makes slow waits longer so that their mean is at least the pace.
func stretched(wait, pace time.Duration) time.Duration {
	const mean = (slowLeast + slowMost) / 2
	if pace <= mean {
		return wait
	}
	return min(time.Duration(float64(wait)*(float64(pace)/float64(mean))), stretchMost)
}

func (s Schedule) draw(n time.Duration) time.Duration {
	if s.Draw != nil {
		return s.Draw(n)
	}
	return rand.N(n) //nolint:gosec // jitter is no secret
}
