package lease

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// How the work on a row ended.
const (
	resultOK      = "ok"
	resultFailed  = "failed"
	resultPanic   = "panic"
	resultDead    = "dead"
	resultLost    = "lost"
	resultStopped = "stopped"
)

type metrics struct {
	due      prometheus.Gauge
	oldest   prometheus.Gauge
	rows     *prometheus.CounterVec
	duration prometheus.Histogram
}

func newMetrics(queue string, reg prometheus.Registerer) (*metrics, error) {
	labels := prometheus.Labels{"queue": queue}
	m := &metrics{
		due: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "certctl_lease_due_rows", Help: "Rows that are due and that nobody works on, counted up to 10000.", ConstLabels: labels,
		}),
		oldest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "certctl_lease_oldest_due_seconds", Help: "How long the oldest of them has been due.", ConstLabels: labels,
		}),
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "certctl_lease_rows_total", Help: "Rows worked on, by how the work ended.", ConstLabels: labels,
		}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "certctl_lease_row_duration_seconds", Help: "How long the work on a row took.", ConstLabels: labels,
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}),
	}
	for _, result := range []string{resultOK, resultFailed, resultPanic, resultDead, resultLost, resultStopped} {
		m.rows.WithLabelValues(result)
	}
	if reg == nil {
		return m, nil
	}
	var err error
	for _, c := range []prometheus.Collector{m.due, m.oldest, m.rows, m.duration} {
		err = errors.Join(err, reg.Register(c))
	}
	if err != nil {
		return nil, fmt.Errorf("register metrics of %s: %w", queue, err)
	}
	return m, nil
}

func (m *metrics) observe(result string, took time.Duration) {
	m.rows.WithLabelValues(result).Inc()
	m.duration.Observe(took.Seconds())
}
