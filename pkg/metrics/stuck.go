package metrics

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// StuckRows makes the gauge that each service with states keeps: rows that are not final and that nobody works on. It
// must be 0. A nil registry registers nothing.
func StuckRows(registry prometheus.Registerer) (prometheus.Gauge, error) {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "certctl_stuck_rows", Help: "Rows that are not final and that nobody has worked on for an hour after their time.",
	})
	if registry == nil {
		return g, nil
	}
	if err := registry.Register(g); err != nil {
		return nil, fmt.Errorf("register metric: %w", err)
	}
	return g, nil
}
