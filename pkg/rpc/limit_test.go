package rpc_test

import (
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
)

func TestABucketEmptiesAndFillsAgain(t *testing.T) {
	t.Parallel()
	l := rpc.NewLimiterForTest(2, 3, 10)
	now := time.Unix(1_000_000, 0)
	for range 3 {
		_, ok := l.Allow("a", now)
		require.True(t, ok)
	}
	wait, ok := l.Allow("a", now)
	require.False(t, ok)
	require.Equal(t, 500*time.Millisecond, wait)
	_, ok = l.Allow("b", now)
	require.True(t, ok, "each key has its own bucket")
	_, ok = l.Allow("a", now.Add(wait))
	require.True(t, ok, "a refused call costs nothing")
}

func TestALimiterDoesNotGrowWithoutBound(t *testing.T) {
	t.Parallel()
	l := rpc.NewLimiterForTest(0.001, 1, 10)
	now := time.Unix(1_000_000, 0)
	_, ok := l.Allow("busy", now)
	require.True(t, ok)
	for i := range 1000 {
		l.Allow(strconv.Itoa(i), now)
		_, ok = l.Allow("busy", now)
		require.False(t, ok, "a key in use keeps its bucket")
		require.LessOrEqual(t, l.Size(), 20)
	}
}

func TestIPv6AddressesCountByTheirNetwork(t *testing.T) {
	t.Parallel()
	key := func(s string) string {
		a, err := net.ResolveTCPAddr("tcp", s)
		require.NoError(t, err)
		return rpc.AddressKey(a)
	}
	require.Equal(t, key("192.0.2.1:1"), key("192.0.2.1:2"))
	require.NotEqual(t, key("192.0.2.1:1"), key("192.0.2.2:1"))
	require.Equal(t, key("192.0.2.1:1"), key("[::ffff:192.0.2.1]:1"))
	require.Equal(t, key("[2001:db8::1]:1"), key("[2001:db8::ffff:2]:2"))
	require.NotEqual(t, key("[2001:db8::1]:1"), key("[2001:db8:0:1::1]:1"))
	require.Equal(t, "inventory", rpc.AddressKey(&net.UnixAddr{Name: "inventory"}))
}

func TestACallerIsLimitedAndTheOthersAreNot(t *testing.T) {
	t.Parallel()
	s := serve(t, pings(nil), func(c *rpc.ServerConfig, _ *rpc.ServerDeps) {
		c.Limits = rpc.Limits{CallerRate: 0.01, CallerBurst: 1}
	})
	alice := s.As(t, rpcctx.Caller{Type: rpcctx.User, ID: "alice", Role: rpcctx.RoleViewer})
	bob := s.As(t, rpcctx.Caller{Type: rpcctx.User, ID: "bob", Role: rpcctx.RoleViewer})
	require.NoError(t, doPing(t.Context(), alice))
	err := doPing(t.Context(), alice)
	require.Equal(t, errs.ResourceExhausted, errs.KindOf(err))
	wait, ok := errs.From(err).RetryDelay()
	require.True(t, ok)
	require.InDelta(t, 100*time.Second, wait, float64(10*time.Second))
	require.NoError(t, doPing(t.Context(), bob))
	for range 3 {
		require.NoError(t, doPing(t.Context(), s.AsPeer(t, "audit")), "peers have no limit")
	}
}

func TestAnAddressIsLimitedBeforeItsCredentialsAreLookedAt(t *testing.T) {
	t.Parallel()
	s := serve(t, pings(nil), func(c *rpc.ServerConfig, _ *rpc.ServerDeps) {
		c.Limits = rpc.Limits{PeerRate: 0.01, PeerBurst: 1}
	})
	stranger := s.AsStranger(t)
	require.Equal(t, errs.Unauthenticated, errs.KindOf(doPing(t.Context(), stranger)))
	require.Equal(t, "RATE_LIMITED", errs.ReasonOf(doPing(t.Context(), stranger)))
}
