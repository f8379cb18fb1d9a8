package health_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/health"
)

func TestReadyOnlyWhenEveryCheckPasses(t *testing.T) {
	t.Parallel()
	h := health.New(health.Config{})
	boom := errors.New("password=hunter2")
	require.NoError(t, h.Add("database", func(context.Context) error { return nil }))
	require.NoError(t, h.Add("ca", func(context.Context) error { return boom }))
	require.NoError(t, h.Add("agents", func(context.Context) error {
		return errs.New(errs.Unavailable, "INVENTORY_UNAVAILABLE", "inventory is away")
	}))

	r := h.Ready(t.Context())

	require.False(t, r.Ready)
	require.Equal(t, []string{"agents", "ca", "database"}, []string{r.Checks[0].Name, r.Checks[1].Name, r.Checks[2].Name})
	require.Equal(t, "inventory is away", r.Checks[0].Error)
	require.Equal(t, "internal error", r.Checks[1].Error, "a probe sees no causes")
	require.True(t, r.Checks[2].OK)
	require.ErrorIs(t, r.Err(), boom)
}

func TestACheckCannotBeAddedTwice(t *testing.T) {
	t.Parallel()
	h := health.New(health.Config{})
	ok := func(context.Context) error { return nil }
	require.NoError(t, h.Add("database", ok))
	require.ErrorContains(t, h.Add("database", ok), `"database"`)
}

func TestResultsAreCachedForTheirTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		h := health.New(health.Config{CacheFor: 10 * time.Second})
		require.NoError(t, h.Add("database", func(context.Context) error {
			runs.Add(1)
			return nil
		}))
		for range 5 {
			require.True(t, h.Ready(t.Context()).Ready)
		}
		require.EqualValues(t, 1, runs.Load())
		<-time.After(11 * time.Second) // the clock of the bubble
		require.True(t, h.Ready(t.Context()).Ready)
		require.EqualValues(t, 2, runs.Load())
	})
}

func TestACheckThatHangsTimesOutAndRunsOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		release := make(chan struct{})
		h := health.New(health.Config{Timeout: time.Second})
		require.NoError(t, h.Add("stuck", func(context.Context) error {
			runs.Add(1)
			<-release
			return nil
		}))
		for range 3 {
			r := h.Ready(t.Context())
			require.False(t, r.Ready)
			require.Equal(t, "check timed out", r.Checks[0].Error)
		}
		require.EqualValues(t, 1, runs.Load())
		close(release)
		synctest.Wait()
		require.True(t, h.Ready(t.Context()).Ready, "the late result is taken")
	})
}

func TestACheckThatPanicsIsNotReady(t *testing.T) {
	t.Parallel()
	h := health.New(health.Config{})
	require.NoError(t, h.Add("broken", func(context.Context) error { panic("oh no") }))
	r := h.Ready(t.Context())
	require.False(t, r.Ready)
	require.ErrorContains(t, r.Err(), "oh no")
}

func TestShutdownEndsReadinessAndServing(t *testing.T) {
	t.Parallel()
	h := health.New(health.Config{})
	status := func() grpc_health_v1.HealthCheckResponse_ServingStatus {
		resp, err := h.GRPC().Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		require.NoError(t, err)
		return resp.GetStatus()
	}
	require.Equal(t, grpc_health_v1.HealthCheckResponse_NOT_SERVING, status())
	h.Serving("")
	require.Equal(t, grpc_health_v1.HealthCheckResponse_SERVING, status())
	require.True(t, h.Ready(t.Context()).Ready)

	h.Shutdown()
	h.Serving("")

	require.Equal(t, grpc_health_v1.HealthCheckResponse_NOT_SERVING, status())
	require.False(t, h.Ready(t.Context()).Ready)
	require.ErrorIs(t, h.Ready(t.Context()).Err(), health.ErrStopping)
}

func TestTheHandlersSpeakHTTP(t *testing.T) {
	t.Parallel()
	h := health.New(health.Config{})
	ask := func(handler http.Handler) (int, map[string]any) {
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
		require.Equal(t, "application/json", rec.Header().Get("Content-Type"))
		var body map[string]any
		require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &body))
		return rec.Code, body
	}
	code, body := ask(h.ReadyHandler())
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, true, body["ready"])
	require.Equal(t, []any{}, body["checks"])

	h.Shutdown()
	code, body = ask(h.ReadyHandler())
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Equal(t, true, body["stopping"])
	code, _ = ask(h.LiveHandler())
	require.Equal(t, http.StatusOK, code)
}

func TestOverGRPCTheServerAsAWholeIsNotServingWhileACheckFails(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	h := health.New(health.Config{CacheFor: time.Nanosecond})
	require.NoError(t, h.Add("postgres", func(context.Context) error {
		if away.Load() {
			return errors.New("connection refused")
		}
		return nil
	}))
	h.Serving("", "some.Service")
	for _, c := range []struct {
		service string
		away    bool
		want    grpc_health_v1.HealthCheckResponse_ServingStatus
	}{
		{"", false, grpc_health_v1.HealthCheckResponse_SERVING},
		{"", true, grpc_health_v1.HealthCheckResponse_NOT_SERVING},
		{"some.Service", true, grpc_health_v1.HealthCheckResponse_SERVING},
		{"", false, grpc_health_v1.HealthCheckResponse_SERVING},
	} {
		away.Store(c.away)
		answer, err := h.GRPC().Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: c.service})
		require.NoError(t, err)
		require.Equal(t, c.want, answer.GetStatus(), "%+v", c)
	}
}
