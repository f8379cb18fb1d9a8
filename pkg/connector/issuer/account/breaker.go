package account

import (
	"errors"
	"time"

	"github.com/sony/gobreaker/v2"
)

// errFailed is what the breaker is told of a call that failed.
var errFailed = errors.New("the CA did not answer")

// breaker is a circuit breaker that also knows until when it is open. It is used under the lock of its guard.
type breaker struct {
	*gobreaker.TwoStepCircuitBreaker[struct{}]

	openFor   time.Duration
	openUntil time.Time
}

func newBreaker(openFor time.Duration) *breaker {
	b := &breaker{openFor: openFor}
	b.TwoStepCircuitBreaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests: 1, Timeout: openFor,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= tripAfter },
		OnStateChange: func(_ string, _, to gobreaker.State) {
			if to == gobreaker.StateOpen {
				b.openUntil = time.Now().Add(openFor)
			}
		},
	})
	return b
}

// enter asks to make a call. The breaker that is open, or half-open with its probe under way, says no.
func (b *breaker) enter() (done func(failed bool), ok bool) {
	tell, err := b.Allow()
	if err != nil {
		return nil, false
	}
	return func(failed bool) {
		if failed {
			tell(errFailed)
			return
		}
		tell(nil)
	}, true
}

func (b *breaker) state() State {
	switch b.State() {
	case gobreaker.StateOpen:
		return Open
	case gobreaker.StateHalfOpen:
		return HalfOpen
	default:
		return Closed
	}
}

// probing tells whether the probe of a half-open breaker is under way.
func (b *breaker) probing() bool { return b.state() == HalfOpen && b.Counts().Requests > 0 }

// left is how long a breaker stays open; one that waits for its probe is worth a look after a moment.
func (b *breaker) left() time.Duration {
	if b.state() == Open {
		return max(time.Until(b.openUntil), time.Millisecond)
	}
	return min(patience, b.openFor)
}
