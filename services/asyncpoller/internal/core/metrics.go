package core

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certctl/certctl/pkg/connector/issuer/account"
)

// Pending is what is pending at one issuer.
type Pending struct {
	IssuerID string
	Orders   int
	Overdue  int       // of them beyond their deadline
	Oldest   time.Time // when the oldest of them began to be watched
}

// Metrics are what operators see of the polls. What is pending comes from a census that somebody takes now and then; between
// two of them it ages. All replicas tell of all rows: take the maximum, not the sum.
type Metrics struct {
	polls    *prometheus.CounterVec
	pending  *prometheus.Desc
	overdue  *prometheus.Desc
	oldest   *prometheus.Desc
	breaker  *prometheus.Desc
	now      func() time.Time
	breakers func() map[string]account.State

	mu      sync.Mutex
	seen    map[string]bool // issuers that have their counters
	counted []Pending
}

func newMetrics() *Metrics {
	byIssuer := []string{"issuer"}
	return &Metrics{
		polls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "certctl_polls_total", Help: "Questions to CAs about pending orders, by issuer and by what was answered.",
		}, []string{"issuer", "result"}),
		pending: prometheus.NewDesc("certctl_polls_pending", "Orders that are pending at an issuer, counted once a minute.", byIssuer, nil),
		overdue: prometheus.NewDesc("certctl_polls_overdue", "Of those, orders beyond their own deadline.", byIssuer, nil),
		oldest:  prometheus.NewDesc("certctl_polls_oldest_pending_seconds", "For how long the oldest of them has been watched.", byIssuer, nil),
		breaker: prometheus.NewDesc("certctl_issuer_breaker_state", "1 for the state that the circuit breaker of an issuer's CA account is in.",
			[]string{"issuer", "state"}, nil),
		now: time.Now, breakers: func() map[string]account.State { return nil }, seen: map[string]bool{},
	}
}

// NewMetrics makes the metrics and registers them; a nil registry takes none.
func NewMetrics(registry prometheus.Registerer, now func() time.Time) (*Metrics, error) {
	m := newMetrics()
	m.now = now
	if registry == nil {
		return m, nil
	}
	if err := registry.Register(m); err != nil {
		return nil, fmt.Errorf("register metrics of polls: %w", err)
	}
	return m, nil
}

// Watch sets who knows the breakers. It is set before anything is collected.
func (m *Metrics) Watch(breakers func() map[string]account.State) { m.breakers = breakers }

// Count takes a census.
func (m *Metrics) Count(pending []Pending) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counted = pending
	for _, p := range pending {
		m.announce(p.IssuerID)
	}
}

func (m *Metrics) census() []Pending {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counted
}

func (m *Metrics) polled(issuerID, result string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.announce(issuerID)
	m.polls.WithLabelValues(issuerID, strings.ToLower(result)).Inc()
}

// announce makes an issuer's counters visible before there is something to count, so that a first error is an increase.
func (m *Metrics) announce(issuerID string) {
	if m.seen[issuerID] {
		return
	}
	m.seen[issuerID] = true
	for _, result := range Results() {
		m.polls.WithLabelValues(issuerID, strings.ToLower(result))
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	m.polls.Describe(out)
	for _, d := range []*prometheus.Desc{m.pending, m.overdue, m.oldest, m.breaker} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	m.polls.Collect(out)
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for _, p := range m.census() {
		gauge(m.pending, float64(p.Orders), p.IssuerID)
		gauge(m.overdue, float64(p.Overdue), p.IssuerID)
		gauge(m.oldest, max(m.now().Sub(p.Oldest).Seconds(), 0), p.IssuerID)
	}
	for id, is := range m.breakers() {
		for _, state := range []account.State{account.Closed, account.Open, account.HalfOpen} {
			value := 0.0
			if state == is {
				value = 1
			}
			gauge(m.breaker, value, id, string(state))
		}
	}
}
