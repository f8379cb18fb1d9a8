package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"

	"github.com/certctl/certctl/pkg/pg"
)

type metrics struct {
	backlog *prometheus.GaugeVec
	oldest  *prometheus.GaugeVec
	dead    *prometheus.GaugeVec
	events  *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	to := []string{"destination"}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, to)
	}
	m := &metrics{
		backlog: gauge("certctl_outbox_backlog_events", "Events that are not delivered yet, counted up to 10000."),
		oldest:  gauge("certctl_outbox_oldest_seconds", "Age of the oldest event that is not delivered yet."),
		dead:    gauge("certctl_outbox_dead_events", "Events that their receiver rejected for good; somebody has to look at them."),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "certctl_outbox_events_total", Help: "Answers of receivers for single events.",
		}, []string{"destination", "outcome"}),
	}
	if reg == nil {
		return m, nil
	}
	var err error
	for _, c := range []prometheus.Collector{m.backlog, m.oldest, m.dead, m.events} {
		err = errors.Join(err, reg.Register(c))
	}
	if err != nil {
		return nil, fmt.Errorf("register outbox metrics: %w", err)
	}
	return m, nil
}

func (m *metrics) announce(destination string) {
	for _, outcome := range []eventv1.EventResult_Outcome{eventv1.EventResult_APPLIED, eventv1.EventResult_RETRY, eventv1.EventResult_REJECTED} {
		m.events.WithLabelValues(destination, label(outcome))
	}
}

func label(o eventv1.EventResult_Outcome) string { return strings.ToLower(o.String()) }

func (m *metrics) outcome(destination string, o eventv1.EventResult_Outcome) {
	m.events.WithLabelValues(destination, label(o)).Inc()
}

const countEvents = `SELECT
	(SELECT count(*) FROM (SELECT 1 FROM outbox WHERE destination = $1 AND NOT dead LIMIT 10000) b),
	(SELECT create_time FROM outbox WHERE destination = $1 AND NOT dead ORDER BY id LIMIT 1),
	(SELECT count(*) FROM outbox WHERE destination = $1 AND dead)`

// count measures the events to a destination and answers how many are to be delivered, up to 10,000.
func (m *metrics) count(ctx context.Context, db *pg.DB, destination string) (backlog int, err error) {
	var dead int
	var oldest *time.Time
	if err := db.Pool.QueryRow(ctx, countEvents, planned, destination).Scan(&backlog, &oldest, &dead); err != nil {
		return 0, fmt.Errorf("count events: %w", err)
	}
	age := 0.0
	if oldest != nil {
		age = max(0, time.Since(*oldest).Seconds())
	}
	m.backlog.WithLabelValues(destination).Set(float64(backlog))
	m.oldest.WithLabelValues(destination).Set(age)
	m.dead.WithLabelValues(destination).Set(float64(dead))
	return backlog, nil
}
