package lease

import (
	"math/rand/v2"
	"time"
)

// Backoff says when to try again, with full jitter: a random time up to Base×2^(attempts−1), and up to Cap.
type Backoff struct {
	Base time.Duration
	Cap  time.Duration
	// MaxAttempts is the end; zero means that there is none.
	MaxAttempts int
}

// Next returns the wait after the given number of attempts, or false when that was the last one.
func (b Backoff) Next(attempts int) (wait time.Duration, ok bool) {
	if b.MaxAttempts > 0 && attempts >= b.MaxAttempts {
		return 0, false
	}
	most := b.Most(attempts)
	if most <= 0 {
		return 0, true
	}
	return rand.N(most) + 1, true //nolint:gosec // jitter is no secret
}

// Most is the longest wait after the given number of attempts.
func (b Backoff) Most(attempts int) time.Duration {
	most := b.Base
	for i := 1; i < attempts && most < b.Cap; i++ {
		most *= 2
		if most <= 0 {
			return b.Cap
		}
	}
	return min(most, b.Cap)
}
