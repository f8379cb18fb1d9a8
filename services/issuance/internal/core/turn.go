package core

import "sync"

// turns bounds how many calls to one CA a process has under way for those who wait for the answer. Who gets no turn leaves
// the order to the reconciler, so that a CA that hangs keeps a few callers waiting and not all of them.
type turns struct {
	most int

	mu   sync.Mutex
	busy map[string]int
}

func newTurns(most int) *turns { return &turns{most: most, busy: map[string]int{}} }

// take gets a turn at an issuer; false when all are taken.
func (t *turns) take(issuerID string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy[issuerID] >= t.most {
		return false
	}
	t.busy[issuerID]++
	return true
}

func (t *turns) giveBack(issuerID string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy[issuerID]--; t.busy[issuerID] <= 0 {
		delete(t.busy, issuerID)
	}
}
