// Package kept holds what a CA said and what stays true for a while (a token, a policy, a chain), so that it is asked for
// once by all who need it, and is still there for a time when the CA does not answer.
package kept

import (
	"context"
	"sync"
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer"
)

// retryStale is how soon a value that is out of date is asked for again after it could not be had.
const retryStale = time.Minute

// Config of a value.
type Config[T any] struct {
	Now   func() time.Time
	Fresh time.Duration // for so long it is used without asking
	Stale time.Duration // and for so long after that, when the CA does not answer (issuer.OutcomeRetry)
	Fetch func(ctx context.Context) (T, error)
}

// Value is fetched when it is needed, once for all who need it at the same time. It is safe for concurrent use.
type Value[T any] struct {
	cfg  Config[T]
	turn chan struct{} // held by the one who fetches

	mu    sync.Mutex
	value T
	since time.Time // when it was fetched; zero: there is none
	again time.Time // it is not asked for before
}

// New makes a value that is not fetched yet.
func New[T any](cfg Config[T]) *Value[T] { return &Value[T]{cfg: cfg, turn: make(chan struct{}, 1)} }

// Get gives the value. The error is that of the fetch.
func (k *Value[T]) Get(ctx context.Context) (T, error) {
	if v, ok := k.Current(); ok {
		return v, nil
	}
	var none T
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return none, issuer.NotSent(ctx)
	}
	if v, ok := k.Current(); ok { // somebody else has fetched it meanwhile
		return v, nil
	}
	v, err := k.cfg.Fetch(ctx)
	if err != nil {
		return k.fallback(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.value, k.since, k.again = v, k.cfg.Now(), time.Time{}
	return v, nil
}

// Current gives the value if it need not be asked for.
func (k *Value[T]) Current() (v T, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.cfg.Now()
	if k.since.IsZero() || now.Before(k.since) || !now.Before(k.since.Add(k.cfg.Fresh)) && !now.Before(k.again) {
		return v, false
	}
	return k.value, true
}

// fallback gives the value from before when the CA is only away.
func (k *Value[T]) fallback(err error) (v T, _ error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.cfg.Now()
	if issuer.OutcomeOf(err) != issuer.OutcomeRetry || k.since.IsZero() || !now.Before(k.since.Add(k.cfg.Fresh+k.cfg.Stale)) {
		return v, err
	}
	k.again = now.Add(retryStale)
	return k.value, nil
}

// Drop forgets the value.
func (k *Value[T]) Drop() { k.DropIf(func(T) bool { return true }) }

// DropIf forgets the value if it is the one that is meant, and not one that was fetched meanwhile.
func (k *Value[T]) DropIf(is func(T) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if is(k.value) {
		k.since, k.again = time.Time{}, time.Time{}
	}
}
