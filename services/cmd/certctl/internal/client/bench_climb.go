package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certctl/certctl/pkg/load"
)

const (
	lowestRate = 5 // requests a second
	// A step lasts as long as the duration allows, within these.
	shortestStep = time.Second
	longestStep  = 10 * time.Second

	// floorRate is how often GET /health is asked beside the requests of a step: what it takes is network and gateway alone.
	floorRate = 5
	// settle is how long a step goes on after the first refusal, to see at which rate requests are let in.
	settle = 2 * time.Second
	// tolerated is how many requests of a step may fail, and how many may be late by hopeless times the bound. After that the step
	// is given up, and what waits is not sent.
	tolerated = 2
	hopeless  = 8

	leastAtOnce = 8
	mostAtOnce  = 256
)

// benchRates are the rates of the steps: each twice the one before, and the most at the end.
func benchRates(most float64) []float64 {
	var rates []float64
	for r := float64(lowestRate); r < most; r *= 2 {
		rates = append(rates, r)
	}
	return append(rates, most)
}

// step is how long each rate is kept.
func (o benchOptions) step() time.Duration {
	return min(o.duration/time.Duration(len(benchRates(o.maxRate))), longestStep).Round(time.Millisecond)
}

// atOnce is how many requests may be under way. By Little's law so many are at a mean latency of the bound: who has to wait for
// one of them to end would have been too late in any case.
func (o benchOptions) atOnce(rate float64) int {
	return min(max(int(rate*o.p95.Seconds()), leastAtOnce, o.connections), mostAtOnce)
}

// benchRead is one kind of request.
type benchRead struct {
	name string
	// paths are asked in turn.
	paths []string
	// conditional asks with the entity tag of the answer before.
	conditional bool
}

// climb raises the rate until one is too much.
func (b *bench) climb(ctx context.Context) {
	rates := benchRates(b.options.maxRate)
	for i, rate := range rates {
		s := b.newStep(rate)
		step := s.run(ctx)
		b.report.Steps = append(b.report.Steps, step)
		b.note("%d of %d: %g/s: %s", i+1, len(rates), rate, step.line())
		if step.Verdict != verdictKept {
			return
		}
	}
}

// newStep makes a step.
func (b *bench) newStep(rate float64) *stepRun {
	s := &stepRun{bench: b, rate: rate, tags: make([]atomic.Pointer[string], len(b.reads))}
	for range b.reads {
		s.kinds = append(s.kinds, &kindRun{latency: load.NewHistogram()})
	}
	return s
}

// stepRun is a rate that is being tried.
type stepRun struct {
	*bench
	rate  float64
	begin time.Time
	kinds []*kindRun
	tags  []atomic.Pointer[string]
	end   context.CancelCauseFunc

	mu      sync.Mutex
	done    int
	late    int
	failed  int
	err     error
	refused int
	ours    bool
	// refusal is when the first was refused, and let how many that started later were let in.
	refusal time.Time
	let     int
	// floorRefused tells that even GET /health was refused, which is of no key.
	floorRefused bool
}

// kindRun is one kind of request within a step.
type kindRun struct {
	latency       *load.Histogram
	done, matched atomic.Int64
}

// The reasons for which a step ends before its time.
var (
	errRefusals = errors.New("requests are refused")
	errFailures = errors.New("requests fail")
	errHopeless = errors.New("requests are much too late")
)

// run keeps the rate for the time of a step, with GET /health beside it.
func (s *stepRun) run(ctx context.Context) benchStep {
	length := s.options.step()
	during, end := context.WithCancelCause(ctx)
	defer end(nil)
	s.end, s.begin = end, time.Now()
	var floor load.Result
	var beside sync.WaitGroup
	beside.Go(func() { floor = load.Run(during, load.Plan{Rate: floorRate, Duration: length, Workers: 2}, s.floor) })
	result := load.Run(during, load.Plan{Rate: s.rate, Duration: length, Workers: s.options.atOnce(s.rate)}, s.one)
	beside.Wait()
	return s.result(ctx, context.Cause(during), result, floor)
}

func (s *stepRun) floor(ctx context.Context, worker, _ int) error {
	answer, err := s.conns[worker%len(s.conns)].get(ctx, healthPath, "", "")
	if err == nil && answer.status == http.StatusTooManyRequests {
		s.mu.Lock()
		s.floorRefused = true
		s.mu.Unlock()
		return errRefusals
	}
	return err
}

// one sends request n, and takes its answer.
func (s *stepRun) one(ctx context.Context, worker, n int) error {
	intended := s.begin.Add(time.Duration(float64(n) / s.rate * float64(time.Second)))
	kind := n % len(s.reads)
	read := s.reads[kind]
	header, tag := "", ""
	if p := s.tags[kind].Load(); p != nil && read.conditional {
		header, tag = "If-None-Match", *p
	}
	started := time.Now()
	answer, err := s.conns[worker%len(s.conns)].get(ctx, read.paths[n/len(s.reads)%len(read.paths)], header, tag)
	late := time.Since(intended)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil && answer.status == http.StatusTooManyRequests:
		return s.refuse(answer)
	case err == nil && answer.status != http.StatusOK && answer.status != http.StatusNotModified:
		err = s.bench.refused(read.name, answer)
	}
	if err != nil {
		return s.fail(err)
	}
	s.take(kind, answer, started, late)
	return nil
}

func (s *stepRun) take(kind int, answer answered, started time.Time, late time.Duration) {
	k := s.kinds[kind]
	k.latency.Add(late)
	k.done.Add(1)
	if answer.status == http.StatusNotModified {
		k.matched.Add(1)
	} else if tag := answer.header.Get("ETag"); tag != "" {
		s.tags[kind].Store(&tag)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done++
	if late > hopeless*s.options.p95 {
		s.late++
	}
	if s.late > tolerated {
		s.end(errHopeless)
	}
	if !s.refusal.IsZero() && started.After(s.refusal) {
		s.let++
	}
}

func (s *stepRun) refuse(answer answered) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused++
	if s.refusal.IsZero() {
		s.refusal, s.ours = time.Now(), problemOf(answer).ours()
	}
	if time.Since(s.refusal) > settle {
		s.end(errRefusals)
	}
	return errRefusals
}

func (s *stepRun) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed++
	s.err = err
	if s.failed > tolerated {
		s.end(errFailures)
	}
	return err
}

// result says what became of the step. Those that were under way when it was given up are in no count.
func (s *stepRun) result(ctx context.Context, cause error, r, floor load.Result) benchStep {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := benchStep{
		Rate: s.rate, Seconds: r.Elapsed.Seconds(), AtOnce: s.options.atOnce(s.rate), Sent: r.Planned, Done: s.done, Refused: s.refused, Failed: s.failed,
		Throughput: float64(s.done) / r.Elapsed.Seconds(), Latency: r.Latency, Health: floor.Latency,
	}
	for i, k := range s.kinds {
		out.Reads = append(out.Reads, benchKind{Name: s.reads[i].name, Done: int(k.done.Load()), NotModified: int(k.matched.Load()), Latency: k.latency.Latency()})
	}
	if s.err != nil {
		out.Error = s.unreached(s.err).Error()
	}
	switch {
	case ctx.Err() != nil:
		out.Verdict = verdictInterrupted
	case s.refused > 0:
		out.Verdict, out.Limit = verdictLimited, s.limit()
	case errors.Is(cause, errFailures):
		out.Verdict = verdictFailing
	case errors.Is(cause, errHopeless) || r.Latency.P95 > s.options.p95:
		out.Verdict = verdictSlow
	default:
		out.Verdict = verdictKept
	}
	return out
}

// limit is what refused, and the rate at which it let requests in; 0: the step ended too early to tell.
func (s *stepRun) limit() *benchLimit {
	l := &benchLimit{Of: limitKey}
	switch {
	case !s.ours:
		l.Of = limitFront
	case s.floorRefused:
		l.Of = limitAddress
	}
	if seen := time.Since(s.refusal); seen >= settle {
		l.PerSecond = float64(s.let) / seen.Seconds()
	}
	return l
}

// line is a step as progress.
func (s benchStep) line() string {
	text := fmt.Sprintf("%s; %d answers, p50 %s, p95 %s, max %s", s.Verdict, s.Done, milliseconds(s.Latency.P50), milliseconds(s.Latency.P95), milliseconds(s.Latency.Max))
	if s.Refused > 0 {
		text += fmt.Sprintf("; %d refused", s.Refused)
	}
	if s.Failed > 0 {
		text += fmt.Sprintf("; %d failed: %s", s.Failed, s.Error)
	}
	return text
}

// milliseconds writes a latency.
func milliseconds(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}
