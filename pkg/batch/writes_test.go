package batch_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/batch"
)

var errOdd = errors.New("odd")

// writer is a slow place to write to, that notes what it got.
type writer struct {
	mu      sync.Mutex
	batches [][]int
}

func (w *writer) write(_ context.Context, items []int) []batch.Outcome[int] {
	w.mu.Lock()
	w.batches = append(w.batches, items)
	w.mu.Unlock()
	pass(time.Second)
	out := make([]batch.Outcome[int], 0, len(items))
	for _, i := range items {
		o := batch.Outcome[int]{Value: 10 * i}
		if i%2 == 1 {
			o = batch.Outcome[int]{Err: errOdd}
		}
		out = append(out, o)
	}
	return out
}

// pass lets time go by in a bubble.
func pass(d time.Duration) { <-time.After(d) }

func TestALoneItemWaitsForNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &writer{}
		g := batch.NewWrites(10, w.write)
		begin := time.Now()
		v, err := g.Do(t.Context(), 4)
		require.NoError(t, err)
		require.Equal(t, 40, v)
		require.Equal(t, time.Second, time.Since(begin))
	})
}

func TestWhatComesDuringAWriteGoesTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &writer{}
		g := batch.NewWrites(3, w.write)
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				v, err := g.Do(t.Context(), i)
				if i%2 == 1 {
					require.ErrorIs(t, err, errOdd, "each has an outcome of its own")
					return
				}
				require.NoError(t, err)
				require.Equal(t, 10*i, v)
			})
			synctest.Wait()
		}
		all.Wait()
		require.Equal(t, [][]int{{0}, {1, 2, 3}, {4, 5, 6}, {7}}, w.batches)
		require.Len(t, w.batches, 4)
		_, err := g.Do(t.Context(), 2)
		require.NoError(t, err, "a group that has rested works again")
	})
}

func TestWhoLeavesBeforeItsTurnIsNotWritten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &writer{}
		g := batch.NewWrites(10, w.write)
		var all sync.WaitGroup
		all.Go(func() { _, _ = g.Do(t.Context(), 0) })
		synctest.Wait()
		ctx, leave := context.WithCancel(t.Context())
		all.Go(func() {
			_, err := g.Do(ctx, 2)
			require.ErrorIs(t, err, context.Canceled)
		})
		all.Go(func() { _, _ = g.Do(t.Context(), 4) })
		synctest.Wait()
		leave()
		all.Wait()
		require.Equal(t, [][]int{{0}, {4}}, w.batches)
	})
}

func TestWhoLeavesDuringItsWriteHearsOfIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &writer{}
		g := batch.NewWrites(10, w.write)
		var all sync.WaitGroup
		all.Go(func() { _, _ = g.Do(t.Context(), 0) })
		synctest.Wait()
		ctx, leave := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer leave()
		for _, i := range []int{2, 4} { // the first of them writes for both
			all.Go(func() {
				v, err := g.Do(ctx, i)
				require.NoError(t, err)
				require.Equal(t, 10*i, v)
			})
			synctest.Wait()
		}
		all.Wait()
	})
}

func TestAPanicHurtsNobodyForEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := batch.NewWrites(10, func(_ context.Context, items []int) []batch.Outcome[int] {
			pass(time.Second)
			if len(items) > 1 {
				panic("at the disco")
			}
			return []batch.Outcome[int]{{Value: items[0]}}
		})
		var all sync.WaitGroup
		all.Go(func() { _, _ = g.Do(t.Context(), 0) })
		synctest.Wait()
		all.Go(func() { require.Panics(t, func() { _, _ = g.Do(t.Context(), 1) }) })
		synctest.Wait()
		all.Go(func() {
			_, err := g.Do(t.Context(), 2)
			require.ErrorContains(t, err, "panicked")
		})
		all.Wait()
		v, err := g.Do(t.Context(), 7)
		require.NoError(t, err)
		require.Equal(t, 7, v)
	})
}
