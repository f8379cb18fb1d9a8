package target

import (
	"context"
	"sync"
)

// keyedLock is a mutex per key that can be given up waiting for.
type keyedLock struct {
	mu   sync.Mutex
	held map[string]*slot
}

type slot struct {
	token chan struct{}
	users int
}

func newKeyedLock() *keyedLock { return &keyedLock{held: map[string]*slot{}} }

// acquire takes the keys in the order given; callers give them sorted, so that two never wait for each other.
func (k *keyedLock) acquire(ctx context.Context, keys ...string) (func(), error) {
	var taken []string
	release := func() {
		for _, key := range taken {
			k.leave(key, true)
		}
	}
	for _, key := range keys {
		err := k.one(ctx, key)
		if err != nil {
			release()
			return nil, err
		}
		taken = append(taken, key)
	}
	return release, nil
}

func (k *keyedLock) one(ctx context.Context, key string) error {
	k.mu.Lock()
	s := k.held[key]
	if s == nil {
		s = &slot{token: make(chan struct{}, 1)}
		k.held[key] = s
	}
	s.users++
	k.mu.Unlock()
	select {
	case s.token <- struct{}{}:
		return nil
	case <-ctx.Done():
		k.leave(key, false)
		return ctx.Err()
	}
}

func (k *keyedLock) leave(key string, holding bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.held[key]
	if holding {
		<-s.token
	}
	s.users--
	if s.users == 0 {
		delete(k.held, key)
	}
}
