package rpc

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/grpc/metadata"

	"github.com/certctl/certctl/pkg/rpcctx"
)

// maxCallerSize bounds an encoded caller: an id is at most a name or an agent id.
const maxCallerSize = 1024

// errManyValues refuses metadata that must be there once: which of several counts must not be a matter of luck.
var errManyValues = errors.New("more than one value")

// encodeCaller writes a caller for metadata.
func encodeCaller(c rpcctx.Caller) (string, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode caller: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

// callerFromMetadata reads a caller; ok is false when the key is not there.
func callerFromMetadata(md metadata.MD, key string) (c rpcctx.Caller, ok bool, err error) {
	value, ok, err := single(md, key)
	if err != nil || !ok {
		return rpcctx.Caller{}, false, err
	}
	c, err = decodeCaller(value)
	if err != nil {
		return rpcctx.Caller{}, false, fmt.Errorf("%s: %w", key, err)
	}
	return c, true, nil
}

// decodeCaller reads what encodeCaller wrote.
func decodeCaller(value string) (c rpcctx.Caller, err error) {
	if len(value) > maxCallerSize {
		return rpcctx.Caller{}, fmt.Errorf("%d bytes are too many", len(value))
	}
	b, err := base64.RawURLEncoding.DecodeString(value)
	if err != nil {
		return rpcctx.Caller{}, fmt.Errorf("decode caller: %w", err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return rpcctx.Caller{}, fmt.Errorf("decode caller: %w", err)
	}
	return c, nil
}

// maxRemembered bounds a memo.
const maxRemembered = 4096

// memo remembers what strings mean. When it is full it begins anew. It is safe for concurrent use; the zero memo is empty.
type memo[T any] struct {
	mu    sync.RWMutex
	means map[string]T
}

func (m *memo[T]) get(s string) (T, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	v, ok := m.means[s]
	return v, ok
}

func (m *memo[T]) put(s string, v T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.means == nil || len(m.means) >= maxRemembered {
		m.means = make(map[string]T)
	}
	m.means[s] = v
}

// single gives the value of a key that may be there at most once.
func single(md metadata.MD, key string) (value string, ok bool, err error) {
	switch values := md.Get(key); len(values) {
	case 0:
		return "", false, nil
	case 1:
		return values[0], true, nil
	default:
		return "", false, fmt.Errorf("%s: %w", key, errManyValues)
	}
}
