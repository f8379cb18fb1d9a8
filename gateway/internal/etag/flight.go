package etag

import "sync"

// flights are lists that are being read, so that all who want the same have it read once: after a change all clients that poll a
// list miss it at the same moment.
type flights struct {
	mu     sync.Mutex
	flying map[flight]chan struct{}
}

// flight is a list as of a revision: who has seen another revision must not be given what was read before.
type flight struct {
	key      key
	revision int64
}

func newFlights() *flights { return &flights{flying: make(map[flight]chan struct{})} }

// join tells who is the first, and shall read and land; done is closed when that is over.
func (f *flights) join(k key, revision int64) (done <-chan struct{}, first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := flight{k, revision}
	if c, ok := f.flying[at]; ok {
		return c, false
	}
	c := make(chan struct{})
	f.flying[at] = c
	return c, true
}

func (f *flights) land(k key, revision int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := flight{k, revision}
	close(f.flying[at])
	delete(f.flying, at)
}
