package e2e_test

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/certctl/certctl/pkg/tick"
)

// What a slow network does. A chunk that is lost comes after the sender's timeout, and what follows it waits, as with TCP.
const (
	slowDelay       = 200 * time.Millisecond // each way
	slowLoss        = 0.01
	slowRetransmits = time.Second
)

// wire is the network before a balancer, whose weather changes. The nil wire is sound.
type wire struct {
	mu   sync.Mutex
	slow bool
	cut  chan struct{} // closed when the cut is mended; nil: there is none
}

// setSlow makes the network slow, or quick again.
func (w *wire) setSlow(slow bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slow = slow
}

// sever lets nothing through any more. Nobody is told: connections stay, and new ones are not answered.
func (w *wire) sever() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut == nil {
		w.cut = make(chan struct{})
	}
}

// mend ends a cut. What was sent meanwhile arrives.
func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut != nil {
		close(w.cut)
		w.cut = nil
	}
}

// delay is how long the next chunk takes.
func (w *wire) delay() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !w.slow:
		return 0
	case rand.Float64() < slowLoss:
		return slowDelay + slowRetransmits
	default:
		return slowDelay
	}
}

// pass waits until a cut is mended.
func (w *wire) pass(ctx context.Context) {
	w.mu.Lock()
	cut := w.cut
	w.mu.Unlock()
	if cut == nil {
		return
	}
	select {
	case <-cut:
	case <-ctx.Done():
	}
}

// setUp is what the network takes of the time in which a connection is made.
func (w *wire) setUp(ctx context.Context) {
	if w == nil {
		return
	}
	_ = tick.Wait(ctx, 2*w.delay())
	w.pass(ctx)
}

// chunk is what was sent at once.
type chunk struct {
	bytes []byte
	due   time.Time
}

// carry takes what one side sends to the other until it has sent everything, chunk by chunk and in order.
func (w *wire) carry(ctx context.Context, to, from net.Conn) {
	chunks := make(chan chunk, 256)
	go func() {
		defer close(chunks)
		for {
			b := make([]byte, 16<<10)
			n, err := from.Read(b)
			if n > 0 {
				chunks <- chunk{bytes: b[:n], due: time.Now().Add(w.delay())}
			}
			if err != nil {
				return
			}
		}
	}()
	lost := false
	for c := range chunks {
		if lost {
			continue // until the sender has seen that the connection is gone
		}
		if d := time.Until(c.due); d > 0 {
			_ = tick.Wait(ctx, d)
		}
		w.pass(ctx)
		if _, err := to.Write(c.bytes); err != nil {
			lost = true
			_ = from.Close()
		}
	}
}
