package rpc

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/peer"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpcctx"
)

// Limits bounds the rate of calls. A rate is in calls per second; 0 switches the limit off. A burst of 0 is the
// rate, at least 1.
type Limits struct {
	// PeerRate is per client address, before anything is known of the caller; IPv6 addresses count by /64.
	PeerRate  float64
	PeerBurst int
	// CallerRate is per user or agent. Peers have none: they work off what users have started.
	CallerRate  float64
	CallerBurst int
}

// maxBuckets bounds each of the two generations of a limiter.
const maxBuckets = 16384

// limiter has a token bucket per key, for at most 2×maxBuckets keys. Keys in use move to the young generation; when
// that is full the old one is dropped, with all that was not used since.
type limiter struct {
	rate  rate.Limit
	burst int
	max   int

	mu         sync.Mutex
	young, old map[string]*rate.Limiter
}

// newLimiter makes a limiter; it gives nil, which allows everything, when the rate is 0.
func newLimiter(perSecond float64, burst int) *limiter {
	if perSecond <= 0 {
		return nil
	}
	if burst <= 0 {
		burst = max(int(perSecond), 1)
	}
	return &limiter{rate: rate.Limit(perSecond), burst: burst, max: maxBuckets, young: make(map[string]*rate.Limiter)}
}

// allow takes a token; without one it tells how long until there is.
func (l *limiter) allow(key string, now time.Time) (wait time.Duration, ok bool) {
	r := l.bucket(key).ReserveN(now, 1)
	if wait = r.DelayFrom(now); wait == 0 {
		return 0, true
	}
	r.CancelAt(now)
	return wait, false
}

func (l *limiter) bucket(key string) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b, ok := l.young[key]; ok {
		return b
	}
	b, ok := l.old[key]
	if !ok {
		b = rate.NewLimiter(l.rate, l.burst)
	}
	if len(l.young) >= l.max {
		l.old, l.young = l.young, make(map[string]*rate.Limiter)
	}
	l.young[key] = b
	return b
}

// byPeer is the step that limits per address.
func (l *limiter) byPeer(ctx context.Context, _ call, next func(context.Context) error) error {
	if l == nil {
		return next(ctx)
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return next(ctx)
	}
	return l.pass(ctx, addressKey(p.Addr), next)
}

// byCaller is the step that limits per user or agent.
func (l *limiter) byCaller(ctx context.Context, _ call, next func(context.Context) error) error {
	caller := rpcctx.CallerFrom(ctx)
	if l == nil || caller.Type != rpcctx.User && caller.Type != rpcctx.Agent {
		return next(ctx)
	}
	return l.pass(ctx, caller.String(), next)
}

func (l *limiter) pass(ctx context.Context, key string, next func(context.Context) error) error {
	if wait, ok := l.allow(key, time.Now()); !ok {
		return errs.New(errs.ResourceExhausted, "RATE_LIMITED", "too many calls").RetryAfter(wait)
	}
	return next(ctx)
}

// v6Prefix is what one customer of a network has at the least (RFC 6177): counting single addresses would let it
// have 2^64 buckets.
const v6Prefix = 64

// addressKey gives what a client cannot change at will: the address without the port.
func addressKey(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	return netip.PrefixFrom(ip, v6Prefix).Masked().String()
}
