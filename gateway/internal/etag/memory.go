package etag

import (
	"container/list"
	"crypto/sha256"
	"sync"
	"time"
)

type key = [sha256.Size]byte

// memory has the newest tag of each key, and forgets the keys that were not used for longest.
type memory struct {
	max int

	mu      sync.Mutex
	entries map[key]*list.Element
	order   *list.List // of *entry, the last used first
}

type entry struct {
	key      key
	revision int64
	tag      string
	time     time.Time
}

func newMemory(maxKeys int) *memory {
	return &memory{max: maxKeys, entries: make(map[key]*list.Element), order: list.New()}
}

// get gives the tag that belongs to a revision.
func (m *memory) get(k key, revision int64, now time.Time) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[k]
	if !ok {
		return "", false
	}
	found, _ := e.Value.(*entry)
	if found.revision != revision || now.Sub(found.time) > maxAge {
		return "", false
	}
	m.order.MoveToFront(e)
	return found.tag, true
}

func (m *memory) put(k key, revision int64, tag string, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := &entry{key: k, revision: revision, tag: tag, time: now}
	if e, ok := m.entries[k]; ok {
		if old, _ := e.Value.(*entry); old.revision <= revision { // a slow answer must not undo a newer one
			e.Value = n
		}
		m.order.MoveToFront(e)
		return
	}
	m.entries[k] = m.order.PushFront(n)
	if m.order.Len() > m.max {
		last := m.order.Back()
		m.order.Remove(last)
		if old, ok := last.Value.(*entry); ok {
			delete(m.entries, old.key)
		}
	}
}
