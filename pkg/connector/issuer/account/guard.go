package account

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Guard admits calls of one account.
type Guard struct {
	key     string
	cfg     Config
	limiter *rate.Limiter

	mu           sync.Mutex
	breaker      *breaker
	limits       Limits
	active       int
	waiting      int
	freed        chan struct{} // closed when a call ends, for those who wait; nil: nobody does
	blockedSince time.Time     // when the CA asked for rest
	blockedUntil time.Time
	throttled    int // how often in a row
}

func (g *Guard) limit(l Limits) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.limits == l {
		return
	}
	g.limits = l
	perSecond, burst := g.cfg.rate(l)
	g.limiter.SetLimit(perSecond)
	g.limiter.SetBurst(burst)
}

// Reason is why an account is not available.
type Reason string

// The reasons.
const (
	BreakerOpen Reason = "BREAKER_OPEN" // the CA did not answer lately; a probe tells when it is back
	Throttled   Reason = "THROTTLED"    // the CA has asked for a rest
	RateLimit   Reason = "RATE_LIMIT"   // our own bound, below the CA's
	Concurrency Reason = "CONCURRENCY"  // too many calls are under way
)

// BusyError says that a call was not made.
type BusyError struct {
	Reason Reason
	After  time.Duration // when it is worth trying again
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("the CA account is not called for %s: %s", e.After.Round(time.Millisecond), e.Reason)
}

// Result is how a call went, as far as the account is concerned.
type Result struct {
	// Failed: no answer, or one that says that the CA is broken (5xx). A refusal (4xx) is an answer.
	Failed bool
	// Throttled: the CA wants rest (429, or 503 with Retry-After), for RetryAfter if it said so.
	Throttled  bool
	RetryAfter time.Duration
}

type urgentKey struct{}

// Urgent marks calls that a person asked for: they are made also when the breaker is open, the CA wants rest, or more calls
// are under way than may be. They count in the rate, so that what they take is saved afterwards.
func Urgent(ctx context.Context) context.Context { return context.WithValue(ctx, urgentKey{}, true) }

func isUrgent(ctx context.Context) bool {
	urgent, _ := ctx.Value(urgentKey{}).(bool)
	return urgent
}

// Enter asks to make one call; whoever gets leave calls it once with how the call went. The error is a *BusyError, or that
// of the context.
func (g *Guard) Enter(ctx context.Context) (leave func(Result), err error) {
	urgent := isUrgent(ctx)
	if busy := g.refusal(urgent); busy != nil {
		return nil, busy
	}
	if err := g.slot(ctx, urgent); err != nil {
		return nil, err
	}
	if err := g.token(ctx, urgent); err != nil {
		g.free()
		return nil, err
	}
	leave, busy := g.admit(urgent)
	if busy != nil {
		g.free()
		return nil, busy
	}
	return leave, nil
}

// refusal tells whether the CA wants rest or does not answer.
func (g *Guard) refusal(urgent bool) *BusyError {
	g.mu.Lock()
	defer g.mu.Unlock()
	if left := time.Until(g.blockedUntil); left > 0 && !urgent {
		return &BusyError{Reason: Throttled, After: left}
	}
	if g.breaker.state() == Open && !urgent {
		return &BusyError{Reason: BreakerOpen, After: g.breaker.left()}
	}
	return nil
}

// admit is the last step of Enter, after the waits: in the meantime the CA may have asked for rest, or failed.
func (g *Guard) admit(urgent bool) (leave func(Result), busy *BusyError) {
	if busy := g.refusal(urgent); busy != nil {
		return nil, busy
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	began := time.Now()
	done, ok := g.breaker.enter()
	if !ok && !urgent {
		return nil, &BusyError{Reason: BreakerOpen, After: g.breaker.left()}
	}
	return func(r Result) { g.leave(r, began, done) }, nil
}

// slot waits for a place among the calls that are under way.
func (g *Guard) slot(ctx context.Context, urgent bool) error {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting++
	defer func() { g.waiting-- }()
	for g.active >= g.limits.Concurrency && !urgent {
		if err := g.untilFreed(ctx, limit.C); err != nil {
			return err
		}
	}
	g.active++
	return nil
}

// untilFreed lets go of the lock until a call ends.
func (g *Guard) untilFreed(ctx context.Context, limit <-chan time.Time) error {
	if g.freed == nil {
		g.freed = make(chan struct{})
	}
	freed := g.freed
	g.mu.Unlock()
	defer g.mu.Lock()
	select {
	case <-freed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-limit:
		return &BusyError{Reason: Concurrency, After: patience}
	}
}

func (g *Guard) free() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.active--
	if g.freed != nil {
		close(g.freed)
		g.freed = nil
	}
}

// token waits for the rate limit. An urgent call does not wait for longer than others would; what it is ahead of its turn,
// later calls wait for.
func (g *Guard) token(ctx context.Context, urgent bool) error {
	r := g.limiter.Reserve()
	wait := r.Delay()
	if wait > patience {
		if !urgent {
			r.Cancel()
			return &BusyError{Reason: RateLimit, After: wait}
		}
		wait = patience
	}
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		r.Cancel()
		return context.Cause(ctx)
	}
}

// leave notes how a call went. done is nil of an urgent call that went past the breaker.
func (g *Guard) leave(r Result, began time.Time, done func(failed bool)) {
	if g.settle(r, began, done) {
		defer g.cfg.OnAvailable(g.key)
	}
	g.free()
}

func (g *Guard) settle(r Result, began time.Time, done func(failed bool)) (back bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	wasAway := g.away()
	if done != nil {
		done(r.Failed)
	}
	switch {
	case r.Throttled:
		g.rest(r.RetryAfter)
	case r.Failed:
	default:
		if done == nil { // the CA is back
			g.breaker = newBreaker(g.cfg.OpenFor)
		}
		// A call from before the CA asked for rest tells nothing about it.
		if began.After(g.blockedSince) {
			g.throttled, g.blockedUntil = 0, time.Time{}
		}
	}
	return wasAway && !g.away()
}

// rest leaves the CA alone for as long as it asked for.
func (g *Guard) rest(wish time.Duration) {
	now := time.Now()
	if g.throttled == 0 || !now.Before(g.blockedUntil) { // the calls of one moment are told so together
		g.throttled++
	}
	if wish <= 0 {
		wish = min(restBase<<min(g.throttled-1, 10), restCap)
	}
	if until := now.Add(min(wish, restMost)); until.After(g.blockedUntil) {
		g.blockedSince, g.blockedUntil = now, until
	}
}

// away tells whether the CA is not called for a reason of its own.
func (g *Guard) away() bool { return g.breaker.state() != Closed || time.Until(g.blockedUntil) > 0 }

// Key gives the account's key.
func (g *Guard) Key() string { return g.key }
