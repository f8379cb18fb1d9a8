// Package load sends requests at a constant rate, whatever the answers take, and measures each from the moment at which it was meant
// to start: a server that stalls is charged for all that would have come in the meantime.
package load

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Plan is what to send.
type Plan struct {
	// Rate is the number of arrivals in a second; 0 is a closed loop, in which each worker sends the next request when it has the
	// answer, which finds the most that there is to have.
	Rate float64
	// Duration is how long requests arrive. Those that are under way at its end are waited for.
	Duration time.Duration
	// Workers are the most that are under way at once, such as the connections of the clients. Who arrives while all are busy
	// waits, and the wait counts.
	Workers int
}

// Result is what became of a plan.
type Result struct {
	// Planned are the arrivals, Failed those of them that ended in an error.
	Planned int
	Failed  int
	// Elapsed is from the first arrival to the last answer.
	Elapsed time.Duration
	// Latency is that of the requests that worked, from the moment at which each was meant to start.
	Latency Latency
	// Err is one of the errors, nil without.
	Err error
}

// Throughput is the number of requests in a second that worked.
func (r Result) Throughput() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Planned-r.Failed) / r.Elapsed.Seconds()
}

// Latency is a distribution.
type Latency struct{ Mean, P50, P95, P99, P999, Max time.Duration }

// MarshalJSON writes milliseconds.
func (l Latency) MarshalJSON() ([]byte, error) {
	ms := func(d time.Duration) float64 { return math.Round(float64(d)/float64(time.Microsecond)) / 1000 }
	b, err := json.Marshal(map[string]float64{"mean": ms(l.Mean), "p50": ms(l.P50), "p95": ms(l.P95), "p99": ms(l.P99), "p99.9": ms(l.P999), "max": ms(l.Max)})
	if err != nil {
		return nil, fmt.Errorf("write latency: %w", err)
	}
	return b, nil
}

// UnmarshalJSON reads what MarshalJSON writes.
func (l *Latency) UnmarshalJSON(b []byte) error {
	var ms map[string]float64
	if err := json.Unmarshal(b, &ms); err != nil {
		return fmt.Errorf("read latency: %w", err)
	}
	of := func(name string) time.Duration { return time.Duration(math.Round(ms[name]*1000)) * time.Microsecond }
	*l = Latency{Mean: of("mean"), P50: of("p50"), P95: of("p95"), P99: of("p99"), P999: of("p99.9"), Max: of("max")}
	return nil
}

// The range and the digits of a histogram.
const (
	longest = 10 * time.Minute
	digits  = 3
)

// Histogram gathers durations. It is safe for concurrent use.
type Histogram struct {
	mu sync.Mutex
	h  *hdrhistogram.Histogram
}

// NewHistogram makes an empty one.
func NewHistogram() *Histogram {
	return &Histogram{h: hdrhistogram.New(1, longest.Microseconds(), digits)}
}

// Add takes one duration; what is longer than ten minutes counts as ten minutes.
func (h *Histogram) Add(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = h.h.RecordValue(min(max(d.Microseconds(), 1), longest.Microseconds())) // within the range that it was made for
}

// Latency gives what was gathered.
func (h *Histogram) Latency() Latency {
	h.mu.Lock()
	defer h.mu.Unlock()
	return latencyOf(h.h)
}

func latencyOf(h *hdrhistogram.Histogram) Latency {
	at := func(q float64) time.Duration { return time.Duration(h.ValueAtQuantile(q)) * time.Microsecond }
	return Latency{
		Mean: time.Duration(h.Mean() * float64(time.Microsecond)),
		P50:  at(50), P95: at(95), P99: at(99), P999: at(99.9), Max: time.Duration(h.Max()) * time.Microsecond,
	}
}

// Run carries out a plan. It calls do with the number of the worker, from 0, and that of the request, from 0; calls of one worker
// come one after the other. It ends early with ctx.
func Run(ctx context.Context, p Plan, do func(ctx context.Context, worker, n int) error) Result {
	r := runner{plan: p, do: do, begin: time.Now()}
	var workers sync.WaitGroup
	histograms := make([]*hdrhistogram.Histogram, p.Workers)
	for w := range p.Workers {
		histograms[w] = hdrhistogram.New(1, longest.Microseconds(), digits)
		workers.Go(func() { r.work(ctx, w, histograms[w]) })
	}
	workers.Wait()
	all := hdrhistogram.New(1, longest.Microseconds(), digits)
	for _, h := range histograms {
		all.Merge(h)
	}
	out := Result{Planned: int(r.sent.Load()), Failed: int(r.failed.Load()), Elapsed: time.Since(r.begin), Latency: latencyOf(all)}
	if err := r.err.Load(); err != nil {
		out.Err = *err
	}
	return out
}

// runner is a plan that is being carried out.
type runner struct {
	plan  Plan
	do    func(ctx context.Context, worker, n int) error
	begin time.Time

	next, sent, failed atomic.Int64
	err                atomic.Pointer[error]
}

func (r *runner) work(ctx context.Context, worker int, h *hdrhistogram.Histogram) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		n := int(r.next.Add(1) - 1)
		at, ok := r.arrival(n)
		if !ok || !until(ctx, timer, at) {
			return
		}
		r.sent.Add(1)
		if err := r.do(ctx, worker, n); err != nil {
			r.failed.Add(1)
			r.err.CompareAndSwap(nil, &err)
			continue
		}
		_ = h.RecordValue(min(max(time.Since(at).Microseconds(), 1), longest.Microseconds())) // within its range
	}
}

// arrival tells when request n is meant to start; not ok: after the end.
func (r *runner) arrival(n int) (at time.Time, ok bool) {
	at = time.Now()
	if r.plan.Rate > 0 {
		at = r.begin.Add(time.Duration(float64(n) / r.plan.Rate * float64(time.Second)))
	}
	return at, at.Sub(r.begin) < r.plan.Duration
}

// until waits for a moment; false: ctx has ended.
func until(ctx context.Context, timer *time.Timer, at time.Time) bool {
	wait := time.Until(at)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer.Reset(wait)
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
