// Package account guards the accounts that certctl has with CAs: it keeps the CA's rate limit, bounds how many calls are
// under way, and stops calling a CA that does not answer until a single probe tells that it is back. A guard belongs to an
// account and not to an issuer, as two issuers with one API key share its limit.
//
// Guards are in memory, one set per process. The processes that call the same account (issuance and asyncpoller, and their
// replicas) divide its rate beforehand, by Config.Share, so that they need not talk and together keep the limit.
package account

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	defaultPerSecond   = 10
	defaultBurst       = 20
	defaultConcurrency = 8

	// tripAfter failures in a row open the breaker; it lets a probe through after defaultOpenFor.
	tripAfter      = 5
	defaultOpenFor = 15 * time.Second
	// patience is how long a call waits for its turn before it is refused.
	patience = 2 * time.Second
	// A CA that says "too many" without saying how long gets a rest that doubles from restBase to restCap. One that says how
	// long is believed up to restMost: a mistaken header must not put an account to sleep for ever.
	restBase = 5 * time.Second
	restCap  = 5 * time.Minute
	restMost = time.Hour
)

// Limits are those of an account. Zero fields take the default in brackets.
type Limits struct {
	PerSecond   float64 // calls in the long run (10)
	Burst       int     // calls at once after a pause (20)
	Concurrency int     // calls under way at a time (8)
}

func (l *Limits) setDefaults() {
	if l.PerSecond <= 0 {
		l.PerSecond = defaultPerSecond
	}
	if l.Burst <= 0 {
		l.Burst = defaultBurst
	}
	if l.Concurrency <= 0 {
		l.Concurrency = defaultConcurrency
	}
}

// Config of the guards of a process.
type Config struct {
	// Share is the part of each account's rate that this process may use, above 0 and up to 1; zero means 1.
	Share float64
	// OpenFor is how long a CA that does not answer is left alone before a probe; zero means 15 s.
	OpenFor time.Duration
	// OnAvailable is told when an account that was not available may be called again because of how a call went; nil: nobody
	// is told. What becomes available by time alone is for Guard.Allowance to say.
	OnAvailable func(key string)
}

func (c *Config) setDefaults() {
	if c.Share <= 0 || c.Share > 1 {
		c.Share = 1
	}
	if c.OpenFor <= 0 {
		c.OpenFor = defaultOpenFor
	}
	if c.OnAvailable == nil {
		c.OnAvailable = func(string) {}
	}
}

// rate is this process's part of the limits.
func (c *Config) rate(l Limits) (perSecond rate.Limit, burst int) {
	return rate.Limit(l.PerSecond * c.Share), max(int(float64(l.Burst)*c.Share), 1)
}

// Accounts are the guards of a process. It is safe for concurrent use.
type Accounts struct {
	cfg Config

	mu     sync.Mutex
	guards map[string]*Guard
}

// New makes an empty set of guards.
func New(cfg Config) *Accounts {
	cfg.setDefaults()
	return &Accounts{cfg: cfg, guards: map[string]*Guard{}}
}

// Guard gives the guard of an account, and makes it if there is none. The key holds no secret: a hash of the endpoint and of
// what the account is known by. Of two issuers that give one account different limits, the last one's hold.
func (a *Accounts) Guard(key string, l Limits) *Guard {
	l.setDefaults()
	a.mu.Lock()
	defer a.mu.Unlock()
	g, ok := a.guards[key]
	if !ok {
		// A limiter starts with its burst, so it is made with it and not changed into it.
		g = &Guard{key: key, cfg: a.cfg, limits: l, limiter: rate.NewLimiter(a.cfg.rate(l)), breaker: newBreaker(a.cfg.OpenFor)}
		a.guards[key] = g
	}
	g.limit(l)
	return g
}
