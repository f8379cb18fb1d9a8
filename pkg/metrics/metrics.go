// Package metrics holds the Prometheus registries and the small HTTP server that shows them. Every service has a
// registry of its own, whose metrics carry its name; the metrics of the process are registered once beside them, so
// that all of them can be shown together when one process runs several services.
package metrics

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/logx"
)

// Namespace begins the name of every metric that certctl defines: certctl_<subsystem>_<what>_<unit>.
const Namespace = "certctl"

// labelService is on every metric of a service.
const labelService = "service"

// maxScrapes bounds the scrapes that run at once.
const maxScrapes = 4

// Registry is the registry of one service: what is registered gets the label service=<name>.
type Registry struct {
	prometheus.Registerer
	prometheus.Gatherer
}

// New makes the registry of a service.
func New(service string) *Registry {
	r := prometheus.NewRegistry()
	return &Registry{
		Registerer: prometheus.WrapRegistererWith(prometheus.Labels{labelService: service}, r),
		Gatherer:   r,
	}
}

// NewProcess makes the registry of what belongs to the process and not to a service: the Go runtime's metrics,
// those of the operating system, and certctl_build_info.
func NewProcess(version string) *Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: Namespace,
		Name:      "build_info",
		Help:      "Always 1; the label tells the version that runs.",
	}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), build)
	return &Registry{Registerer: r, Gatherer: r}
}

// Handler shows the metrics of the gatherers on one page. A gatherer that fails is logged and costs its own metrics
// only.
func Handler(log *zap.Logger, gatherers ...prometheus.Gatherer) http.Handler {
	return promhttp.HandlerFor(prometheus.Gatherers(gatherers), promhttp.HandlerOpts{
		ErrorLog:            errorLog{log},
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
	})
}

// errorLog lets promhttp log through zap.
type errorLog struct{ log *zap.Logger }

// Println implements promhttp.Logger.
func (l errorLog) Println(v ...any) {
	l.log.Error("gathering metrics failed", zap.Any(logx.KeyError, v))
}
