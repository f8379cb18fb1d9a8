// Package limit bounds how often an address or a caller may do something.
package limit

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/certctl/certctl/pkg/errs"
)

// maxBuckets bounds each of the two generations of a limiter.
const maxBuckets = 16384

// Rate is a token bucket: events per second, and how many may come at once. A PerSecond of 0 or less is no limit.
type Rate struct {
	PerSecond float64
	Burst     int
}

// Limiter has a token bucket per key, for at most 2×maxBuckets keys. Keys in use move to the young generation; when that
// is full the old one is dropped, with all that was not used since. A nil *Limiter allows everything.
type Limiter struct {
	rate  Rate
	mu    sync.Mutex
	young map[string]*rate.Limiter
	old   map[string]*rate.Limiter
}

// New makes a limiter; nil when the rate is no limit.
func New(r Rate) *Limiter {
	if r.PerSecond <= 0 {
		return nil
	}
	r.Burst = max(r.Burst, 1)
	return &Limiter{rate: r, young: make(map[string]*rate.Limiter)}
}

// Take takes a token, or fails with errs.ResourceExhausted that tells when there will be one.
func (l *Limiter) Take(key string) error {
	if l == nil {
		return nil
	}
	now := time.Now()
	r := l.bucket(key).ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait == 0 {
		return nil
	}
	r.CancelAt(now)
	return errs.New(errs.ResourceExhausted, "RATE_LIMITED", "too many requests; try again later").RetryAfter(wait)
}

func (l *Limiter) bucket(key string) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b, ok := l.young[key]; ok {
		return b
	}
	b, ok := l.old[key]
	if !ok {
		b = rate.NewLimiter(rate.Limit(l.rate.PerSecond), l.rate.Burst)
	}
	if len(l.young) >= maxBuckets {
		l.old, l.young = l.young, make(map[string]*rate.Limiter)
	}
	l.young[key] = b
	return b
}

// v6Prefix is what one customer of a network has at the least (RFC 6177): counting single addresses would let it have
// 2^64 buckets.
const v6Prefix = 64

// AddressKey gives what a client cannot change at will of its "host:port": the address, for IPv6 its /64.
func AddressKey(hostport string) string {
	ip, err := netip.ParseAddr(Host(hostport))
	if err != nil {
		return hostport
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	return netip.PrefixFrom(ip, v6Prefix).Masked().String()
}

// Host gives the address without the port.
func Host(hostport string) string {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return hostport
	}
	return host
}
