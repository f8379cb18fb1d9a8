package run_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/run"
)

func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestTheFirstFailureEndsTheGroupAndIsTheCause(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	g := run.NewGroup(t.Context(), run.Config{})
	var cause error
	g.Go("waits", func(ctx context.Context) error {
		<-ctx.Done()
		cause = context.Cause(ctx)
		return ctx.Err()
	})
	g.Go("fails", func(context.Context) error { return boom })

	err := g.Wait()

	require.ErrorIs(t, err, boom)
	require.EqualError(t, err, "fails: boom")
	require.ErrorIs(t, cause, boom)
}

func TestTheEndOfTheParentIsNoError(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	g := run.NewGroup(ctx, run.Config{})
	g.Go("plain", untilDone)
	g.Go("wrapped", func(ctx context.Context) error { return fmt.Errorf("query: %w", untilDone(ctx)) })
	cancel()
	require.NoError(t, g.Wait())
}

func TestAnErrorWhileStoppingIsReported(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	flush := errors.New("flush")
	g := run.NewGroup(ctx, run.Config{})
	g.Go("flusher", func(ctx context.Context) error {
		<-ctx.Done()
		return flush
	})
	cancel()
	require.ErrorIs(t, g.Wait(), flush)
}

func TestAPanicBecomesAnErrorWithItsStack(t *testing.T) {
	t.Parallel()
	g := run.NewGroup(t.Context(), run.Config{})
	g.Go("panics", func(context.Context) error { panic("oh no") })

	err := g.Wait()

	var p *run.PanicError
	require.ErrorAs(t, err, &p)
	require.EqualError(t, err, "panics: panic: oh no")
	require.Contains(t, string(p.Stack), "TestAPanicBecomesAnErrorWithItsStack")
}

func TestAPanicWithAnErrorCanBeUnwrapped(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	require.ErrorIs(t, run.Safely(func() error { panic(boom) }), boom)
	require.ErrorIs(t, <-run.Go(func() error { panic(boom) }), boom)
}

func TestPartsThatFinishDoNotEndTheOthers(t *testing.T) {
	t.Parallel()
	g := run.NewGroup(t.Context(), run.Config{})
	short := make(chan struct{})
	g.Go("short", func(context.Context) error {
		close(short)
		return nil
	})
	g.Go("long", func(ctx context.Context) error {
		<-short
		return ctx.Err()
	})
	require.NoError(t, g.Wait())
}

func TestAPartThatDoesNotStopIsNamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		g := run.NewGroup(t.Context(), run.Config{ShutdownTimeout: 5 * time.Second})
		g.Go("stubborn", func(context.Context) error {
			<-release
			return nil
		})
		g.Go("good", untilDone)
		g.Stop(nil)
		start := time.Now()

		err := g.Wait()

		require.ErrorIs(t, err, run.ErrStuck)
		require.ErrorContains(t, err, "stubborn")
		require.NotContains(t, err.Error(), "good")
		require.Equal(t, 5*time.Second, time.Since(start))
		close(release)
		synctest.Wait()
	})
}
