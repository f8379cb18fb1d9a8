package etag

import (
	"container/list"
	"crypto/sha256"
	"sync"
	"time"
)

type key = [sha256.Size]byte

// answer is a list as it was sent.
type answer struct {
	tag         string
	contentType string
	body        []byte
}

// memory has the newest answer of each key, and forgets those that were not used for longest.
type memory struct {
	max, maxBytes int

	mu      sync.Mutex
	bytes   int
	entries map[key]*list.Element
	order   *list.List // of *entry, the last used first
}

type entry struct {
	key      key
	revision int64
	answer   answer
	time     time.Time
}

func newMemory(maxKeys, maxBytes int) *memory {
	return &memory{max: maxKeys, maxBytes: maxBytes, entries: make(map[key]*list.Element), order: list.New()}
}

// get gives the answer that belongs to a revision.
func (m *memory) get(k key, revision int64, now time.Time) (answer, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[k]
	if !ok {
		return answer{}, false
	}
	found, _ := e.Value.(*entry)
	if found.revision != revision || now.Sub(found.time) > maxAge {
		return answer{}, false
	}
	m.order.MoveToFront(e)
	return found.answer, true
}

func (m *memory) put(k key, revision int64, a answer, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.entries[k]; ok {
		if old, _ := e.Value.(*entry); old.revision > revision { // a slow answer must not undo a newer one
			return
		}
		m.forget(e)
	}
	m.entries[k] = m.order.PushFront(&entry{key: k, revision: revision, answer: a, time: now})
	m.bytes += len(a.body)
	for m.order.Len() > m.max || m.bytes > m.maxBytes {
		m.forget(m.order.Back())
	}
}

func (m *memory) forget(e *list.Element) {
	m.order.Remove(e)
	if old, ok := e.Value.(*entry); ok {
		m.bytes -= len(old.answer.body)
		delete(m.entries, old.key)
	}
}
