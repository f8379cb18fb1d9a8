package kept_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/kept"
)

// source counts what is fetched of it.
type source struct {
	fetched atomic.Int64
	err     error
	takes   time.Duration
}

func (s *source) fetch(ctx context.Context) (int64, error) {
	select {
	case <-time.After(s.takes):
	case <-ctx.Done():
		return 0, issuer.NotSent(ctx)
	}
	if s.err != nil {
		return 0, s.err
	}
	return s.fetched.Add(1), nil
}

func (s *source) value() *kept.Value[int64] {
	return kept.New(kept.Config[int64]{Now: time.Now, Fresh: time.Hour, Stale: time.Hour, Fetch: s.fetch})
}

func TestAValueIsFetchedOnceForAllWhoNeedIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &source{takes: time.Second}
		v := s.value()
		g, ctx := errgroup.WithContext(t.Context())
		for range 20 {
			g.Go(func() error {
				got, err := v.Get(ctx)
				if err == nil && got != 1 {
					err = errors.New("fetched more than once")
				}
				return err
			})
		}
		require.NoError(t, g.Wait())
	})
}

func TestAValueIsFetchedAgainWhenItIsOld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &source{}
		v := s.value()
		for want := range int64(3) {
			got, err := v.Get(t.Context())
			require.NoError(t, err)
			require.Equal(t, want+1, got)
			pass(time.Hour)
		}
	})
}

func TestAnOldValueIsBetterThanNoneForAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &source{}
		v := s.value()
		_, err := v.Get(t.Context())
		require.NoError(t, err)
		s.err = issuer.RetryAfter(0, errors.New("away"))
		pass(time.Hour)
		got, err := v.Get(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 1, got)
		s.err = nil
		got, err = v.Get(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 1, got, "not asked for again at once")
		pass(time.Minute)
		got, err = v.Get(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 2, got)
		s.err = issuer.RetryAfter(0, errors.New("away"))
		pass(2 * time.Hour)
		_, err = v.Get(t.Context())
		require.ErrorContains(t, err, "away")
	})
}

func TestAPermanentErrorIsNotHiddenByAnOldValue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &source{}
		v := s.value()
		_, err := v.Get(t.Context())
		require.NoError(t, err)
		s.err = issuer.Misconfigured("CA_CREDENTIALS_REFUSED", "refused")
		pass(time.Hour)
		_, err = v.Get(t.Context())
		require.ErrorContains(t, err, "refused")
	})
}

func TestOnlyTheMeantValueIsDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := (&source{}).value()
		_, err := v.Get(t.Context())
		require.NoError(t, err)
		v.DropIf(func(n int64) bool { return n == 7 })
		_, ok := v.Current()
		require.True(t, ok)
		v.Drop()
		_, ok = v.Current()
		require.False(t, ok)
		got, err := v.Get(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 2, got)
	})
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := (&source{takes: time.Hour}).value()
		go func() { _, _ = v.Get(t.Context()) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := v.Get(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err))
	})
}

// pass moves the clock of a bubble.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // in a bubble this is the way to move the clock
}
