package heap

import (
	"runtime"
	"testing"
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
