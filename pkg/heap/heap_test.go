package heap

import (
	"runtime"
	"runtime/metrics"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheRoomIsTheSameWhateverIsUsed(t *testing.T) {
	t.Parallel()
	require.Equal(t, most, percent(0))
	require.Equal(t, most, percent(1<<20), "a small heap does not grow without bound")
	require.Equal(t, 320, percent(10<<20))
	require.Equal(t, 100, percent(Room))
	require.Equal(t, least, percent(1<<30), "a large one is not collected all the time")
}

func TestWhatIsUsedIsKnownAfterACollection(t *testing.T) {
	t.Parallel()
	ballast := make([]byte, 32<<20)
	runtime.GC()
	require.GreaterOrEqual(t, used(), uint64(len(ballast)))
	runtime.KeepAlive(ballast)
}

func TestEachCollectionIsFollowed(t *testing.T) {
	t.Parallel()
	calls := make(chan struct{}, 100)
	afterEach(func() { calls <- struct{}{} })
	for range 3 {
		runtime.GC()
		select {
		case <-calls:
		case <-time.After(time.Minute):
			require.Fail(t, "no call after a collection")
		}
	}
}

func TestMemoryGoesBackWhenABusyTimeIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		given := 0
		called := whenQuiet(3, 20*time.Second, func() { given++ })
		wait := func(calls int, each time.Duration) {
			for range calls {
				called()
				time.Sleep(each) //nolint:forbidigo // the bubble's time
				synctest.Wait()
			}
		}
		wait(5, time.Hour)
		require.Zero(t, given, "not busy")
		wait(10, 19*time.Second)
		require.Zero(t, given, "not quiet")
		wait(1, time.Hour)
		require.Equal(t, 1, given)
		wait(5, time.Hour)
		require.Equal(t, 1, given, "once")
		wait(3, time.Second)
		wait(1, time.Hour)
		require.Equal(t, 2, given)
	})
}

func TestWhatIsFreeGoesBackToTheSystem(t *testing.T) {
	ballast := make([]byte, 64<<20)
	for i := range ballast {
		ballast[i] = 1
	}
	before := released()
	runtime.KeepAlive(ballast)
	giveBack()
	require.Greater(t, released(), before+48<<20)
}

func released() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64()
}
