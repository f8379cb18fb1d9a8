package batch_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/batch"
)

// store answers each key with the time of the read, and takes a second for it.
type store struct {
	mu    sync.Mutex
	reads [][]int
	err   error
}

func (s *store) fetch(ctx context.Context, keys []int) (map[int]time.Time, error) {
	s.mu.Lock()
	slices.Sort(keys)
	s.reads = append(s.reads, keys)
	err := s.err
	s.mu.Unlock()
	found := map[int]time.Time{}
	for _, k := range keys {
		if k >= 0 {
			found[k] = time.Now()
		}
	}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return found, err
}

func TestThoseWhoAskDuringAReadAreAnsweredTogetherByTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s store
		g := batch.NewReads(batch.ReadsConfig{AtOnce: 1}, s.fetch)
		var asking sync.WaitGroup
		ask := func(key int) {
			asking.Go(func() {
				asked := time.Now()
				at, ok, err := g.Get(t.Context(), key)
				require.NoError(t, err)
				require.True(t, ok)
				require.False(t, at.Before(asked), "the read began after the question")
			})
		}
		ask(0)
		synctest.Wait()
		<-time.After(time.Millisecond)
		for _, key := range []int{1, 2, 2, 0} {
			ask(key)
		}
		asking.Wait()
		require.Equal(t, [][]int{{0}, {0, 1, 2}}, s.reads)
		ask(7)
		asking.Wait()
		require.Len(t, s.reads, 3, "a group that was idle reads again at once")
	})
}

func TestAFullRoundGoesAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s store
		g := batch.NewReads(batch.ReadsConfig{AtOnce: 1, Keys: 2}, s.fetch)
		began := time.Now()
		var asking sync.WaitGroup
		for key := range 7 {
			asking.Go(func() {
				_, ok, err := g.Get(t.Context(), key)
				require.NoError(t, err)
				require.True(t, ok)
			})
			synctest.Wait()
		}
		asking.Wait()
		require.Len(t, s.reads, 4)
		for _, keys := range s.reads {
			require.LessOrEqual(t, len(keys), 2)
		}
		require.LessOrEqual(t, time.Since(began), 2*time.Second)
	})
}

func TestWhatIsNotThereIsNotFound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s store
		g := batch.NewReads(batch.ReadsConfig{}, s.fetch)
		_, ok, err := g.Get(t.Context(), -1)
		require.NoError(t, err)
		require.False(t, ok)
	})
}

func TestAnErrorIsThatOfAllAndOfNobodyAfter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := store{err: errors.New("away")}
		g := batch.NewReads(batch.ReadsConfig{}, s.fetch)
		_, _, err := g.Get(t.Context(), 1)
		require.ErrorContains(t, err, "away")
		s.err = nil
		_, ok, err := g.Get(t.Context(), 1)
		require.NoError(t, err)
		require.True(t, ok)
	})
}

func TestWhoGoesLeavesTheOthersTheirRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s store
		g := batch.NewReads(batch.ReadsConfig{AtOnce: 1}, s.fetch)
		ctx, cancel := context.WithCancel(t.Context())
		var asking sync.WaitGroup
		asking.Go(func() {
			_, _, err := g.Get(ctx, 1)
			require.ErrorIs(t, err, context.Canceled)
		})
		synctest.Wait()
		asking.Go(func() {
			_, ok, err := g.Get(t.Context(), 2)
			require.NoError(t, err)
			require.True(t, ok)
		})
		synctest.Wait()
		cancel()
		asking.Wait()
		require.Equal(t, [][]int{{1}, {2}}, s.reads)
	})
}

func TestAReadThatHangsEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := batch.NewReads(batch.ReadsConfig{Timeout: time.Minute}, func(ctx context.Context, _ []int) (map[int]int, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		_, _, err := g.Get(t.Context(), 1)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestAReadThatHangsHoldsUpNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := batch.NewReads(batch.ReadsConfig{AtOnce: 1, Timeout: time.Hour}, func(ctx context.Context, keys []int) (map[int]int, error) {
			if slices.Contains(keys, 1) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return map[int]int{2: 2, 3: 3}, nil
		})
		var hanging sync.WaitGroup
		hanging.Go(func() {
			_, _, err := g.Get(t.Context(), 1)
			require.ErrorIs(t, err, context.DeadlineExceeded)
		})
		synctest.Wait()
		for _, key := range []int{2, 3} { // the second begins beside the first, which has given its place up
			began := time.Now()
			_, ok, err := g.Get(t.Context(), key)
			require.NoError(t, err)
			require.True(t, ok)
			require.Less(t, time.Since(began), time.Second)
		}
		hanging.Wait()
		_, ok, err := g.Get(t.Context(), 2)
		require.NoError(t, err)
		require.True(t, ok)
	})
}
