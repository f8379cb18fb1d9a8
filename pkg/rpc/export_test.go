package rpc

import (
	"net"
	"time"
)

// ChainNames gives the names of the steps, the outermost first.
func (s *Server) ChainNames() []string {
	var names []string
	for _, step := range s.chain() {
		names = append(names, step.name)
	}
	return names
}

// LimiterForTest is a limiter with a small bound.
type LimiterForTest struct{ l *limiter }

// NewLimiterForTest makes one.
func NewLimiterForTest(perSecond float64, burst, bound int) *LimiterForTest {
	l := newLimiter(perSecond, burst)
	l.max = bound
	return &LimiterForTest{l}
}

// Allow takes a token.
func (l *LimiterForTest) Allow(key string, now time.Time) (time.Duration, bool) {
	return l.l.allow(key, now)
}

// Size counts the buckets.
func (l *LimiterForTest) Size() int { return len(l.l.young) + len(l.l.old) }

// AddressKey gives the key of an address.
func AddressKey(a net.Addr) string { return addressKey(a) }
