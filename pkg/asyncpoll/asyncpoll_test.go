package asyncpoll_test

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/asyncpoll"
)

// The tests of this package change a value of the process, so they do not run in parallel with each other.

func TestTheNearestWordCounts(t *testing.T) {
	t.Cleanup(func() { asyncpoll.SetDefaultMaxWait(0) })
	b := asyncpoll.Budgets{"digicert": time.Hour, "sectigo": 0}
	require.Equal(t, time.Hour, b.Of("digicert"))
	require.Equal(t, 10*time.Minute, b.Of("sectigo"))
	require.Equal(t, 10*time.Minute, b.Of("local"))
	require.Equal(t, time.Hour, b.Longest())

	asyncpoll.SetDefaultMaxWait(2 * time.Hour)
	require.Equal(t, time.Hour, b.Of("digicert"))
	require.Equal(t, 2*time.Hour, b.Of("sectigo"))
	require.Equal(t, 2*time.Hour, b.Longest())
	require.Equal(t, 2*time.Hour, asyncpoll.Budgets(nil).Of("local"))

	asyncpoll.SetDefaultMaxWait(-1)
	require.Equal(t, 10*time.Minute, asyncpoll.DefaultMaxWait(), "what is no duration clears")
}

func TestTheDefaultMayBeSetWhileItIsRead(t *testing.T) {
	t.Cleanup(func() { asyncpoll.SetDefaultMaxWait(0) })
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() { asyncpoll.SetDefaultMaxWait(time.Duration(n+1) * time.Minute) })
		wg.Go(func() { require.Positive(t, asyncpoll.DefaultMaxWait()) })
	}
	wg.Wait()
}
