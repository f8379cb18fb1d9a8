package metrics_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/certctl/certctl/pkg/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func counter(t *testing.T, r prometheus.Registerer) {
	t.Helper()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "certctl_test_total", Help: "A test."})
	require.NoError(t, r.Register(c))
	c.Inc()
}

// serve starts a server and gives its base URL and a function that stops it.
func serve(t *testing.T, deps metrics.Deps) (base string, stop func() error) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- metrics.NewServer(metrics.Config{}, deps).Serve(ctx, lis) }()
	return "http://" + lis.Addr().String(), func() error {
		cancel()
		return <-done
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}

func TestTheMetricsOfSeveralServicesStandTogether(t *testing.T) {
	t.Parallel()
	inv, iss := metrics.New("inventory"), metrics.New("issuance")
	counter(t, inv)
	counter(t, iss)
	base, stop := serve(t, metrics.Deps{
		Logger:    zap.NewNop(),
		Gatherers: []prometheus.Gatherer{metrics.NewProcess("1.2.3"), inv, iss},
		Routes: map[string]http.Handler{"GET /live": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNoContent)
		})},
	})

	code, body := get(t, base+"/metrics")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, body, `certctl_test_total{service="inventory"} 1`)
	require.Contains(t, body, `certctl_test_total{service="issuance"} 1`)
	require.Contains(t, body, `certctl_build_info{version="1.2.3"} 1`)
	require.Contains(t, body, "go_goroutines")
	require.Contains(t, body, "process_start_time_seconds")

	code, _ = get(t, base+"/live")
	require.Equal(t, http.StatusNoContent, code)
	code, _ = get(t, base+"/else")
	require.Equal(t, http.StatusNotFound, code)
	require.NoError(t, stop())
}

// brokenCollector gives a metric that cannot be gathered.
type brokenCollector struct{}

func (brokenCollector) Describe(chan<- *prometheus.Desc) {}

func (brokenCollector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(prometheus.NewDesc("broken", "Broken.", nil, nil), errors.New("broken"))
}

func TestABrokenRegistryIsLoggedAndCostsNoOther(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.ErrorLevel)
	inv := metrics.New("inventory")
	counter(t, inv)
	broken := metrics.New("broken")
	require.NoError(t, broken.Register(brokenCollector{}))
	base, stop := serve(t, metrics.Deps{Logger: zap.New(core), Gatherers: []prometheus.Gatherer{inv, broken}})
	code, body := get(t, base+"/metrics")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, body, "certctl_test_total")
	require.Equal(t, 1, logs.FilterMessage("gathering metrics failed").Len())
	require.NoError(t, stop())
}

func TestAnAddressInUseIsAnError(t *testing.T) {
	t.Parallel()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer lis.Close()
	s := metrics.NewServer(metrics.Config{Addr: lis.Addr().String()}, metrics.Deps{Logger: zap.NewNop()})
	require.ErrorContains(t, s.Run(t.Context()), "listen for metrics")
}
