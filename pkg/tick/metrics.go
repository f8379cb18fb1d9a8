package tick

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	lastRun  *prometheus.GaugeVec
	duration *prometheus.HistogramVec
	rows     *prometheus.CounterVec
	errs     *prometheus.CounterVec
	panics   *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	loop := []string{"loop"}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, loop)
	}
	m := &metrics{
		lastRun: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "certctl_loop_last_run_timestamp_seconds", Help: "When the loop's last run ended; 0 before the first.",
		}, loop),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "certctl_loop_duration_seconds", Help: "How long the loop's runs took.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}, loop),
		rows:   counter("certctl_loop_rows_total", "Rows that the loop worked on."),
		errs:   counter("certctl_loop_errors_total", "Runs of the loop that failed, panics included."),
		panics: counter("certctl_loop_panics_total", "Runs of the loop that panicked."),
	}
	if reg == nil {
		return m, nil
	}
	var err error
	for _, c := range []prometheus.Collector{m.lastRun, m.duration, m.rows, m.errs, m.panics} {
		err = errors.Join(err, reg.Register(c))
	}
	if err != nil {
		return nil, fmt.Errorf("register loop metrics: %w", err)
	}
	return m, nil
}

// announce makes the loop's series visible before its first run, so that "never ran" can be seen.
func (m *metrics) announce(loop string) {
	m.lastRun.WithLabelValues(loop)
	m.duration.WithLabelValues(loop)
	m.rows.WithLabelValues(loop)
	m.errs.WithLabelValues(loop)
	m.panics.WithLabelValues(loop)
}

func (m *metrics) observe(loop string, res Result, err error, took time.Duration) {
	m.lastRun.WithLabelValues(loop).SetToCurrentTime()
	m.duration.WithLabelValues(loop).Observe(took.Seconds())
	m.rows.WithLabelValues(loop).Add(float64(max(res.Rows, 0)))
	if err != nil {
		m.errs.WithLabelValues(loop).Inc()
	}
	if panicOf(err) != nil {
		m.panics.WithLabelValues(loop).Inc()
	}
}
