package trial

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/deploy/bench/internal/report"
	"github.com/certctl/certctl/pkg/load"
	"github.com/certctl/certctl/pkg/tick"
)

// askedGoal is how long somebody may wait for what they asked for in a storm.
const askedGoal = 10 * time.Second

// asked renews one certificate on request, again and again, while something else goes on.
type asked struct {
	bench *bench
	host  *stormFleet // one agent, in a process of its own as on a host of its own
	id    string      // of the certificate
	took  *load.Histogram
	times int

	stop  context.CancelFunc
	group errgroup.Group
}

// newAsked has a certificate issued and served.
func (b *bench) newAsked(ctx context.Context) (*asked, error) {
	prefix := fmt.Sprintf("asked-%d", time.Now().Unix())
	host, err := b.enrol(ctx, "asked", prefix, 1, []string{b.site.Address()})
	if err != nil {
		return nil, err
	}
	a := &asked{bench: b, host: host, id: prefix + "-0", took: load.NewHistogram(), stop: func() {}}
	err = b.wantOne(ctx, a.id, host.dir, host.ids[0])
	if err == nil {
		err = b.served(ctx, prefix, 1, 1)
	}
	if err != nil {
		host.stop()
		return nil, err
	}
	return a, nil
}

func (a *asked) start(ctx context.Context) {
	over, stop := context.WithCancel(ctx)
	a.stop = stop
	a.group.Go(func() error {
		for over.Err() == nil {
			if err := a.renew(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// enough waits for the renewal that was asked for last.
func (a *asked) enough() error {
	a.stop()
	return a.group.Wait()
}

// renew asks for a renewal and waits until the new version is served.
func (a *asked) renew(ctx context.Context) error {
	began := time.Now()
	answer, err := a.bench.post(ctx, certificates+"/"+a.id+"/renew", map[string]any{"force": true}, nil)
	if err != nil {
		return err
	}
	var job struct{ ID string }
	if err := json.Unmarshal(answer, &job); err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	conn, err := a.bench.site.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = a.bench.until(ctx, "job "+job.ID+" to be done and its version to be served", func() (done bool, err error) {
		var state string
		err = conn.QueryRow(ctx, `SELECT j.state, j.state = 'COMPLETED' AND d.status = 'SERVED' AND d.served_version = c.current_version
 FROM renewalscheduler.jobs j JOIN inventory.certificates c ON c.id = j.certificate_id JOIN inventory.deployments d ON d.certificate_id = c.id
 WHERE j.id = $1`, job.ID).Scan(&state, &done)
		if state == "FAILED" || state == "EXPIRED" || state == "CANCELLED" {
			return false, fmt.Errorf("job %s of %s is %s", job.ID, a.id, state)
		}
		return done, err
	})
	if err != nil {
		return err
	}
	a.times++
	a.took.Add(time.Since(began))
	return tick.Wait(ctx, time.Second)
}

func (a *asked) figure() report.Figure {
	l := a.took.Latency()
	return report.Figure{
		Name: "storm/asked", What: "meanwhile one certificate, of another agent, renewed on request again and again: from the request until its new version is served",
		Goal: fmt.Sprintf("95th percentile ≤ %s", askedGoal), Met: a.times > 0 && l.P95 <= askedGoal,
		Value: fmt.Sprintf("%d times: p50 %s, p95 %s, longest %s", a.times, l.P50.Round(time.Millisecond), l.P95.Round(time.Millisecond), l.Max.Round(time.Millisecond)),
	}
}
