// Package asyncpoll says how long somebody waits for a CA that answers later: the wait budget. When it is over, the order is
// shown as still pending at the CA and is asked about more rarely; it is never given up because of it.
//
// Of three words the nearest one counts: that for the issuer's type, that for the program (SetDefaultMaxWait), and the
// package's own.
package asyncpoll

import (
	"sync/atomic"
	"time"
)

// packageMaxWait is the wait budget when nobody said anything else.
const packageMaxWait = 10 * time.Minute

// defaultMaxWait is the one value of the process, in nanoseconds; 0: nobody said anything.
//
// Global state is not allowed elsewhere. This one is a setting of the whole program, that main gives once before anything is
// started: the services in a process, whichever they are, must not have different ideas of how long somebody waits, or one
// of them shows an order as late that another one still waits for.
var defaultMaxWait atomic.Int64 //nolint:gochecknoglobals // see above

// SetDefaultMaxWait sets the wait budget of issuers whose type has none of its own, for the whole process. Zero or less goes
// back to the package's own, 10 minutes. It takes effect with the next answer of a CA.
func SetDefaultMaxWait(d time.Duration) { defaultMaxWait.Store(int64(max(d, 0))) }

// DefaultMaxWait gives it.
func DefaultMaxWait() time.Duration {
	if d := time.Duration(defaultMaxWait.Load()); d > 0 {
		return d
	}
	return packageMaxWait
}

// Budgets are the wait budgets of a program by issuer type. Types that are not in it, and zero, have DefaultMaxWait.
type Budgets map[string]time.Duration

// Of gives the wait budget of a type.
func (b Budgets) Of(typ string) time.Duration {
	if d := b[typ]; d > 0 {
		return d
	}
	return DefaultMaxWait()
}

// Longest gives the longest there is, for an issuer whose type is not known.
func (b Budgets) Longest() time.Duration {
	longest := DefaultMaxWait()
	for _, d := range b {
		longest = max(longest, d)
	}
	return longest
}
