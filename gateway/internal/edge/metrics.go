package edge

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zapcore"
)

// Metrics counts HTTP requests. Their labels have patterns and not paths: a client must not be able to fill the registry.
type Metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// NewMetrics makes and registers them.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "certctl_gateway_requests_total", Help: "HTTP requests by verb, route and status.",
		}, []string{"method", "route", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "certctl_gateway_request_duration_seconds", Help: "How long HTTP requests took.",
			Buckets: []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"method", "route"}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.duration} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register request metrics: %w", err)
		}
	}
	return m, nil
}

func (m *Metrics) observe(rec *recorder, r *http.Request, took time.Duration) {
	verb := verbLabel(r.Method)
	m.requests.WithLabelValues(verb, rec.route, strconv.Itoa(rec.status)).Inc()
	m.duration.WithLabelValues(verb, rec.route).Observe(took.Seconds())
}

func verbLabel(verb string) string {
	switch verb {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete, http.MethodOptions:
		return verb
	default:
		return "other"
	}
}

// level tells how much an operator wants to know of a request: probes and pages are only for debugging.
func level(rec *recorder) zapcore.Level {
	switch {
	case rec.status == http.StatusInternalServerError:
		return zapcore.ErrorLevel
	case rec.quiet:
		return zapcore.DebugLevel
	case rec.status > http.StatusInternalServerError:
		return zapcore.WarnLevel
	default:
		return zapcore.InfoLevel
	}
}
