package rpc

import (
	"context"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc/test/bufconn"
)

// memoryNetwork is the network name of in-memory addresses.
const memoryNetwork = "memory"

// memoryBuffer is the size of each direction of an in-memory connection, in bytes. It is there from the start of a
// connection, and tests have ten thousand of them.
const memoryBuffer = 8 << 10

// MemoryNetwork connects the services of one process by name, without ports. Connections behave like TCP: buffered,
// many at a time, refused when the listener is closed.
type MemoryNetwork struct {
	mu    sync.Mutex
	hosts map[string]*memoryHost
}

// memoryHost is a name on the network.
type memoryHost struct {
	known chan struct{} // closed when the name was listened on for the first time
	lis   *memoryListener
}

// NewMemoryNetwork makes a network on which nobody listens.
func NewMemoryNetwork() *MemoryNetwork { return &MemoryNetwork{hosts: make(map[string]*memoryHost)} }

// host gives the entry of a name; n.mu is held.
func (n *MemoryNetwork) host(name string) *memoryHost {
	h, ok := n.hosts[name]
	if !ok {
		h = &memoryHost{known: make(chan struct{})}
		n.hosts[name] = h
	}
	return h
}

// Listen takes a name. It may be taken again once the listener is closed.
func (n *MemoryNetwork) Listen(name string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.host(name)
	if h.lis != nil {
		return nil, fmt.Errorf("listen on %s: name in use", name)
	}
	select {
	case <-h.known:
	default:
		close(h.known)
	}
	h.lis = &memoryListener{Listener: bufconn.Listen(memoryBuffer), network: n, name: name}
	return h.lis, nil
}

// Dialer gives a function that connects to a name, for ClientConfig. It waits for a name that was never listened on,
// so that the services of a process can start in any order; a closed listener refuses at once.
func (n *MemoryNetwork) Dialer(name string) func(ctx context.Context, addr string) (net.Conn, error) {
	return func(ctx context.Context, _ string) (net.Conn, error) {
		n.mu.Lock()
		known := n.host(name).known
		n.mu.Unlock()
		select {
		case <-known:
		case <-ctx.Done():
			return nil, fmt.Errorf("dial %s: %w", name, context.Cause(ctx))
		}
		return n.dial(ctx, name)
	}
}

func (n *MemoryNetwork) dial(ctx context.Context, name string) (net.Conn, error) {
	n.mu.Lock()
	lis := n.host(name).lis
	n.mu.Unlock()
	if lis == nil {
		return nil, fmt.Errorf("dial %s: connection refused", name)
	}
	conn, err := lis.DialContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", name, err)
	}
	return conn, nil
}

// memoryListener is a listener with a name on the network.
type memoryListener struct {
	*bufconn.Listener
	network *MemoryNetwork
	name    string
}

// Close frees the name.
func (l *memoryListener) Close() error {
	l.network.mu.Lock()
	defer l.network.mu.Unlock()
	if h := l.network.host(l.name); h.lis == l {
		h.lis = nil
	}
	return l.Listener.Close()
}

// Addr gives the name.
func (l *memoryListener) Addr() net.Addr { return memoryAddr(l.name) }

type memoryAddr string

// Network implements net.Addr.
func (memoryAddr) Network() string { return memoryNetwork }

// String implements net.Addr.
func (a memoryAddr) String() string { return string(a) }
