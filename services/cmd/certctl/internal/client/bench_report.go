package client

import (
	"fmt"
	"time"

	"github.com/certctl/certctl/pkg/load"
)

// benchReport is all that was seen. Durations are in seconds, latencies in milliseconds, rates in a second unless the name says more.
type benchReport struct {
	Command string      `json:"command"`
	URL     string      `json:"url"`
	Time    time.Time   `json:"time"`
	Seconds float64     `json:"seconds"`
	Client  benchClient `json:"client"`
	Server  program     `json:"server"`
	Caller  benchCaller `json:"caller"`
	Bounds  benchBounds `json:"bounds"`

	Inventory benchInventory `json:"inventory"`
	Policy    benchPolicy    `json:"policy"`
	// Rows are how many certificates were listed to find what to ask for, Deepest how many are before the later page; 0: there is none.
	Rows    int `json:"rows_listed"`
	Deepest int `json:"rows_before_later_page"`

	Network  benchNetwork  `json:"network"`
	Steps    []benchStep   `json:"steps"`
	History  *benchHistory `json:"renewal_history"`
	Issuance *benchIssued  `json:"issuance"`

	Headroom    []benchHeadroom `json:"headroom"`
	Bottleneck  benchBottleneck `json:"first_bottleneck"`
	Notes       []string        `json:"notes"`
	Interrupted bool            `json:"interrupted"`
}

// benchClient is where the run came from.
type benchClient struct {
	program

	Platform string `json:"platform"`
	CPUs     int    `json:"cpus"`
}

type benchCaller struct {
	Name string `json:"name"`
	Role string `json:"role"`
}

// benchBounds are what the run kept to.
type benchBounds struct {
	MaxRate      float64 `json:"max_rate"`
	P95          float64 `json:"p95_ms"`
	StepSeconds  float64 `json:"step_seconds"`
	Connections  int     `json:"connections"`
	Certificates int     `json:"certificates"`
}

func (o benchOptions) bounds() benchBounds {
	b := benchBounds{MaxRate: o.maxRate, P95: o.p95.Seconds() * 1000, StepSeconds: o.step().Seconds(), Connections: o.connections}
	if o.write {
		b.Certificates = o.certificates
	}
	return b
}

// benchInventory are counts by status.
type benchInventory struct {
	Certificates map[string]int32 `json:"certificates"`
	Agents       map[string]int32 `json:"agents"`
	Deployments  map[string]int32 `json:"deployments"`
	Jobs         map[string]int32 `json:"jobs"`
	Stuck        int32            `json:"stuck"`
}

// benchNetwork is what requests take without certctl's work.
type benchNetwork struct {
	TCP    load.Latency `json:"tcp_connect_ms"`
	TLS    load.Latency `json:"tls_handshake_ms"`
	Health load.Latency `json:"health_ms"`
	// Proxy tells that new connections are those to an HTTP proxy.
	Proxy bool `json:"through_proxy"`
}

// What became of a rate.
const (
	verdictKept        = "kept"
	verdictSlow        = "too slow"
	verdictLimited     = "refused"
	verdictFailing     = "failing"
	verdictInterrupted = "interrupted"
)

// benchStep is one rate.
type benchStep struct {
	Rate       float64      `json:"rate"`
	Seconds    float64      `json:"seconds"`
	AtOnce     int          `json:"at_once"`
	Sent       int          `json:"sent"`
	Done       int          `json:"done"`
	Refused    int          `json:"refused"`
	Failed     int          `json:"failed"`
	Throughput float64      `json:"throughput"`
	Latency    load.Latency `json:"latency_ms"`
	Health     load.Latency `json:"health_ms"`
	Reads      []benchKind  `json:"reads"`
	Verdict    string       `json:"verdict"`
	Limit      *benchLimit  `json:"limit,omitempty"`
	Error      string       `json:"error,omitempty"`
}

// benchKind is one kind of request in a step.
type benchKind struct {
	Name        string       `json:"name"`
	Done        int          `json:"done"`
	NotModified int          `json:"not_modified"`
	Latency     load.Latency `json:"latency_ms"`
}

// Whose limit a request has met.
const (
	limitKey     = "api_key"
	limitAddress = "address"
	limitFront   = "in_front_of_certctl"
)

// benchLimit is a limit of rates, and the rate at which it let requests in; 0: not seen.
type benchLimit struct {
	Of        string  `json:"of"`
	PerSecond float64 `json:"per_second"`
}

// benchHistory are the last renewals, each from its job's creation to its end.
type benchHistory struct {
	Renewals     int          `json:"renewals"`
	MostInAnHour int          `json:"most_in_an_hour"`
	Latency      load.Latency `json:"latency_ms"`
}

// benchIssued is what --write came to. Latency is from the CSR's sending to when its job was seen to be done, which is looked at every
// tenth of a second.
type benchIssued struct {
	Name    string `json:"name"`
	Issuer  string `json:"issuer"`
	Created int    `json:"created"`
	Issued  int    `json:"issued"`
	// Seconds are from the first CSR to the last stored version.
	Seconds   float64      `json:"seconds"`
	PerSecond float64      `json:"per_second"`
	Latency   load.Latency `json:"latency_ms"`
	// Refused are the calls that the key's limit refused, and that were repeated.
	Refused  int    `json:"refused"`
	Revoked  int    `json:"revoked"`
	Archived int    `json:"archived"`
	Error    string `json:"error,omitempty"`
}

// How a figure came about.
const (
	howMeasured = "measured"
	howDerived  = "derived"
	howNot      = "not measured"
)

// benchHeadroom is how much there can be of something.
type benchHeadroom struct {
	What string `json:"what"`
	// Value is 0 when it was not measured.
	Value float64 `json:"value"`
	// AtLeast tells that the end was not reached.
	AtLeast bool   `json:"at_least"`
	How     string `json:"how"`
	From    string `json:"from"`
}

// benchBottleneck is what keeps the installation from more.
type benchBottleneck struct {
	Kind   string `json:"kind"`
	Text   string `json:"text"`
	Advice string `json:"advice"`
}

func (r *benchReport) note(format string, a ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, a...))
}

// kept is the highest rate that was kept; nil: none was.
func (r *benchReport) kept() *benchStep {
	for i := len(r.Steps) - 1; i >= 0; i-- {
		if r.Steps[i].Verdict == verdictKept {
			return &r.Steps[i]
		}
	}
	return nil
}
