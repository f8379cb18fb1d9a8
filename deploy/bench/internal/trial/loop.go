package trial

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/certctl/certctl/deploy/bench/internal/report"
)

// loopRuns is how many runs of a loop are looked at.
const loopRuns = 10

// sweep looks at the renewal check when nothing is due, which runs each second for this.
func sweep(ctx context.Context, b *bench) error {
	if err := b.site.StopCertctl(); err != nil {
		return err
	}
	if err := b.site.Start(ctx, "CERTCTL_SCHEDULER_RENEWAL_CHECK_INTERVAL=1s"); err != nil {
		return err
	}
	const loop = `loop="renewal check"`
	first, err := b.loop(ctx, loop, 1)
	if err != nil {
		return err
	}
	last, err := b.loop(ctx, loop, first.runs+loopRuns)
	if err != nil {
		return err
	}
	mean := time.Duration((last.seconds - first.seconds) / (last.runs - first.runs) * float64(time.Second))
	b.add(report.Figure{Name: "sweep", What: "renewal check that finds nothing due, mean of the loop's runs", Goal: "≤ 5 ms", Met: mean <= 5*time.Millisecond,
		Value: mean.Round(10 * time.Microsecond).String()})
	if err := b.site.StopCertctl(); err != nil {
		return err
	}
	return b.site.Start(ctx)
}

// runs are those of a loop, from the metrics.
type runs struct{ runs, seconds float64 }

// loop waits until a loop has run so many times.
func (b *bench) loop(ctx context.Context, label string, least float64) (r runs, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for r.runs < least {
		if r.runs, err = b.metric(ctx, "certctl_loop_duration_seconds_count", label); err != nil {
			return r, err
		}
		if r.seconds, err = b.metric(ctx, "certctl_loop_duration_seconds_sum", label); err != nil {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, fmt.Errorf("the loop %s did not run: %w", label, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
	return r, nil
}

// metric adds up the samples of a name that have a label; 0 without any.
func (b *bench) metric(ctx context.Context, name, label string) (sum float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.site.Metrics+"/metrics", nil)
	if err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	client := &http.Client{Timeout: 10 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(io.LimitReader(resp.Body, 64<<20))
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasPrefix(line, name+"{") || !strings.Contains(line, label) {
			continue
		}
		v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("read metric %s: %w", name, err)
		}
		sum += v
	}
	return sum, lines.Err()
}
