package account

import "time"

// State is that of the breaker.
type State string

// The states of the breaker.
const (
	Closed   State = "CLOSED"    // calls are made
	Open     State = "OPEN"      // none are
	HalfOpen State = "HALF_OPEN" // one is, to see whether the CA is back
)

// State gives the breaker's.
func (g *Guard) State() State {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.breaker.state()
}

// Allowance tells how many calls could begin right now, for those who plan more than one. When it is 0, again is when to
// ask next.
func (g *Guard) Allowance() (calls int, again time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if left := time.Until(g.blockedUntil); left > 0 {
		return 0, left
	}
	free := g.limits.Concurrency - g.active - g.waiting
	state := g.breaker.state()
	switch {
	case state == Open || g.breaker.probing():
		return 0, g.breaker.left()
	case free <= 0:
		return 0, patience
	case state == HalfOpen:
		free = 1
	}
	tokens := g.limiter.Tokens()
	if tokens < 1 {
		return 0, g.untilToken(tokens)
	}
	return min(free, int(tokens)), 0
}

// untilToken is how long it takes until there is a token.
func (g *Guard) untilToken(tokens float64) time.Duration {
	missing := (1 - tokens) / max(float64(g.limiter.Limit()), 0.001)
	return max(time.Duration(missing*float64(time.Second)), 10*time.Millisecond)
}

// Rate is how many calls per second this process may make in the long run.
func (g *Guard) Rate() float64 { return float64(g.limiter.Limit()) }
