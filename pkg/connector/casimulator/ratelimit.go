package casimulator

import (
	"sync"
	"time"
)

// rollingLimit allows a number of calls within any stretch of time of a length.
type rollingLimit struct {
	number int
	within time.Duration
}

// rollingLimits holds several at once. A call that is refused does not count.
type rollingLimits struct {
	mu     sync.Mutex
	limits []rollingLimit // the longest first
	calls  []time.Time
}

// take says whether one more call is within all limits.
func (l *rollingLimits) take(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(now.Add(-l.limits[0].within))
	for _, limit := range l.limits {
		// The call that would be too many is the one that many calls ago, if it is still within the stretch.
		if at := len(l.calls) - limit.number; at >= 0 && l.calls[at].After(now.Add(-limit.within)) {
			return false
		}
	}
	l.calls = append(l.calls, now)
	return true
}

func (l *rollingLimits) forget(until time.Time) {
	n := 0
	for n < len(l.calls) && !l.calls[n].After(until) {
		n++
	}
	l.calls = append(l.calls[:0], l.calls[n:]...)
}
