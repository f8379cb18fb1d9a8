package reuse_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/reuse"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/tick"
)

// source gives 1, 2, 3 and so on, and takes its time for each.
type source struct {
	takes atomic.Int64
	finds atomic.Int64
	err   atomic.Pointer[error]
}

func (s *source) value(takes time.Duration) *reuse.Value[int64] {
	s.takes.Store(int64(takes))
	return reuse.New(reuse.Config{}, s.find)
}

func (s *source) find(ctx context.Context) (int64, error) {
	n := s.finds.Add(1)
	select {
	case <-time.After(time.Duration(s.takes.Load())):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err := s.err.Load(); err != nil {
		return 0, *err
	}
	return n, nil
}

func get(t *testing.T, v *reuse.Value[int64]) int64 {
	t.Helper()
	n, at, err := v.Get(t.Context())
	require.NoError(t, err)
	require.False(t, at.IsZero())
	return n
}

func TestWhatCostsLittleIsFoundAnewForEachQuestion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s source
		v := s.value(10 * time.Millisecond)
		for want := range int64(5) {
			began := time.Now()
			n, at, err := v.Get(t.Context())
			require.NoError(t, err)
			require.Equal(t, want+1, n)
			require.Equal(t, began, at)
		}
	})
}

func TestOneSlowAnswerDoesNotMakeItCostly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s source
		v := s.value(2 * time.Millisecond)
		get(t, v)
		s.takes.Store(int64(time.Second))
		get(t, v)
		s.takes.Store(int64(2 * time.Millisecond))
		require.Equal(t, int64(3), get(t, v))
		require.Equal(t, int64(4), get(t, v))

		s.takes.Store(int64(time.Second)) // and when it stays slow, it is costly soon
		for range 10 {
			get(t, v)
		}
		require.Less(t, s.finds.Load(), int64(4+10))
		<-time.After(time.Second)
	})
}

func TestACostlyValueIsReusedForTwentyTimesWhatItTookAndThenWhileItIsFoundAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s source
		v := s.value(time.Second)
		require.Equal(t, int64(1), get(t, v))
		<-time.After(19*time.Second - time.Nanosecond) // it is as old as its find's beginning
		require.Equal(t, int64(1), get(t, v))
		require.Equal(t, int64(1), s.finds.Load())

		<-time.After(time.Second)
		began := time.Now()
		require.Equal(t, int64(1), get(t, v), "answered at once, and found anew beside it")
		require.Equal(t, int64(1), get(t, v))
		require.Equal(t, began, time.Now())
		<-time.After(time.Second)
		synctest.Wait()
		require.Equal(t, int64(2), get(t, v))
		require.Equal(t, int64(2), s.finds.Load(), "one find for all who asked")
	})
}

func TestNothingIsFreshForMoreThanHalfAMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s source
		v := s.value(10 * time.Second)
		get(t, v)
		<-time.After(21 * time.Second)
		get(t, v)
		synctest.Wait()
		require.Equal(t, int64(2), s.finds.Load())
		<-time.After(10 * time.Second)
		synctest.Wait()
	})
}

func TestWhoAsksAfterFiveMinutesWaitsForWhatIsTrueNow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s source
		v := s.value(time.Second)
		get(t, v)
		<-time.After(reuse.DefaultStale)
		var asking sync.WaitGroup
		for range 10 {
			asking.Go(func() { require.Equal(t, int64(2), get(t, v)) })
		}
		asking.Wait()
		require.Equal(t, int64(2), s.finds.Load())
	})
}

func TestThoseWhoAskFirstShareOneFindUnlessItCostsLittle(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		takes time.Duration
		finds int64
	}{{time.Second, 1}, {time.Millisecond, 10}} {
		synctest.Test(t, func(t *testing.T) {
			var s source
			v := s.value(c.takes)
			var asking sync.WaitGroup
			for range 10 {
				asking.Go(func() { get(t, v) })
			}
			asking.Wait()
			require.Equal(t, c.finds, s.finds.Load(), "what takes %s", c.takes)
		})
	}
}

func TestNobodyWaitsForAValueThatALoopRenews(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s source
		v := s.value(time.Second)
		group, err := tick.NewGroup(tick.Config{}, tick.Deps{})
		require.NoError(t, err)
		require.NoError(t, group.Register(v.Loop("count", "counts")))
		ctx, cancel := context.WithCancel(t.Context())
		ended := run.Go(func() error { return group.Run(ctx) })

		synctest.Wait()
		require.Equal(t, int64(1), s.finds.Load(), "found at the start")
		require.Equal(t, int64(1), get(t, v), "and who asks then waits for that find")

		<-time.After(time.Hour)
		require.InDelta(t, 3+20, s.finds.Load(), 3, "nobody asks: found anew every 3 minutes")
		for range 600 { // now and then
			<-time.After(rand.N(10 * time.Minute))
			asked := time.Now()
			_, at, err := v.Get(t.Context())
			require.NoError(t, err)
			require.Equal(t, asked, time.Now(), "no question waits")
			require.Less(t, asked.Sub(at), reuse.DefaultStale)
		}

		away := errors.New("away")
		s.err.Store(&away)
		<-time.After(2 * reuse.DefaultStale)
		_, _, err = v.Get(t.Context())
		require.ErrorIs(t, err, away, "what is too old is no answer, as ever")
		s.err.Store(nil)
		<-time.After(reuse.DefaultStale)
		asked := time.Now()
		get(t, v)
		require.Equal(t, asked, time.Now(), "and the loop goes on after errors")
		<-time.After(2 * time.Second)
		cancel()
		require.NoError(t, <-ended)
	})
}

func TestAFirstFindWithColdCachesDoesNotMakeItCostly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s source
		v := s.value(100 * time.Millisecond)
		loop := v.Loop("count", "counts")
		run.Go(func() error {
			<-time.After(50 * time.Millisecond)
			s.takes.Store(int64(time.Millisecond))
			return nil
		})
		_, err := loop.Run(t.Context())
		require.NoError(t, err)
		require.Equal(t, int64(2), s.finds.Load())
		require.Equal(t, int64(3), get(t, v), "found anew for each question")
		require.Equal(t, int64(4), get(t, v))
		_, err = loop.Run(t.Context())
		require.NoError(t, err)
		require.Equal(t, int64(5), s.finds.Load())
	})
}

func TestAnErrorIsToldAndNotRemembered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s source
		v := s.value(time.Second)
		away := errors.New("away")
		s.err.Store(&away)
		_, _, err := v.Get(t.Context())
		require.ErrorIs(t, err, away)
		s.err.Store(nil)
		require.Equal(t, int64(2), get(t, v))

		s.err.Store(&away)
		<-time.After(time.Minute)
		require.Equal(t, int64(2), get(t, v), "what is known is the answer while it cannot be found anew")
		<-time.After(time.Second)
		<-time.After(reuse.DefaultStale)
		_, _, err = v.Get(t.Context())
		require.ErrorIs(t, err, away, "until it is too old")
	})
}

func TestAFindGoesOnWithoutWhoAskedAndEndsInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s source
		v := s.value(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, _, err := v.Get(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		<-time.After(time.Second)
		synctest.Wait()
		require.Equal(t, int64(1), get(t, v))

		s.takes.Store(int64(time.Hour))
		<-time.After(reuse.DefaultStale)
		_, _, err = v.Get(t.Context())
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestAPanicIsAnErrorOfThoseWhoWait(t *testing.T) {
	t.Parallel()
	v := reuse.New(reuse.Config{}, func(context.Context) (int, error) { panic("boom") })
	_, _, err := v.Get(t.Context())
	require.ErrorContains(t, err, "boom")
}
