package core

import (
	"context"
	"sync"
	"time"

	"github.com/certctl/certctl/pkg/tick"
)

// soonest keeps accounts with a high rate from having the queue looked at for each single call.
const soonest = 100 * time.Millisecond

// alarm calls once after a time that may be changed until then.
type alarm struct {
	ring    func()
	changed *tick.Kicker

	mu sync.Mutex
	at time.Time // zero: not set
}

func newAlarm(ring func()) *alarm { return &alarm{ring: ring, changed: tick.NewKicker()} }

// set has the alarm ring after d, in place of what was set before; zero is never.
func (a *alarm) set(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d <= 0 {
		a.at = time.Time{}
		return // it rings once for nothing, at most
	}
	a.at = time.Now().Add(max(d, soonest))
	a.changed.Kick()
}

func (a *alarm) left() (d time.Duration, set bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return max(time.Until(a.at), 0), !a.at.IsZero()
}

// take tells whether it is time, and then unsets the alarm.
func (a *alarm) take() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at.IsZero() || time.Until(a.at) > 0 {
		return false
	}
	a.at = time.Time{}
	return true
}

func (a *alarm) run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.changed.C():
		case <-timer.C:
			if a.take() {
				a.ring()
			}
		}
		if left, set := a.left(); set {
			timer.Reset(left)
		}
	}
}
