package limit_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/gateway/internal/limit"
	"github.com/certctl/certctl/pkg/errs"
)

func TestABucketIsFilledAgainInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := limit.New(limit.Rate{PerSecond: 2, Burst: 3})
		for range 3 {
			require.NoError(t, l.Take("a"))
		}
		err := l.Take("a")
		require.True(t, errs.IsKind(err, errs.ResourceExhausted))
		after, ok := errs.From(err).RetryDelay()
		require.True(t, ok)
		require.Equal(t, 500*time.Millisecond, after)
		require.NoError(t, l.Take("b"), "each key has its own")
		time.Sleep(after) //nolint:forbidigo // the time of synctest
		require.NoError(t, l.Take("a"))
		require.Error(t, l.Take("a"))
	})
}

func TestNoRateIsNoLimit(t *testing.T) {
	t.Parallel()
	for _, l := range []*limit.Limiter{nil, limit.New(limit.Rate{}), limit.New(limit.Rate{PerSecond: -1})} {
		for range 1000 {
			require.NoError(t, l.Take("a"))
		}
	}
}

func TestKeysInUseOutliveManyOthers(t *testing.T) {
	t.Parallel()
	l := limit.New(limit.Rate{PerSecond: 0.001, Burst: 1})
	require.NoError(t, l.Take("used"))
	for i := range 60_000 {
		require.NoError(t, l.Take(fmt.Sprint(i)))
		if i%10_000 == 0 {
			require.Error(t, l.Take("used"))
		}
	}
	require.NoError(t, l.Take("0"), "what was not used for long is forgotten")
}

func TestAddressesCountWithoutTheirPorts(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"192.0.2.1:4711": "192.0.2.1", "[::ffff:192.0.2.1]:1": "192.0.2.1",
		"[2001:db8:1:2:3::4]:443": "2001:db8:1:2::/64", "[2001:db8:1:2:ffff::]:1": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64",
		"memory": "memory",
	} {
		require.Equal(t, want, limit.AddressKey(in), in)
	}
}
