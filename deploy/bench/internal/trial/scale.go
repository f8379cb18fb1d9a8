package trial

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/certctl/certctl/deploy/bench/internal/report"
	"github.com/certctl/certctl/deploy/bench/internal/site"
	"github.com/certctl/certctl/deploy/bench/internal/web"
	"github.com/certctl/certctl/pkg/load"
)

// scaleName is the trial of replicas, which starts installations of its own.
const scaleName = "scale"

// What each process has in the trial of replicas, so that one machine stands for several: a part of one core. Postgres and the load have
// what is left.
const (
	scaleCores    = 0.15
	scaleReplicas = 3
	scalePause    = time.Minute
)

// scale asks for pages of the list with one, two and three replicas of everything, and has one of three stopped for a minute.
func (b *bench) scale(ctx context.Context) error {
	var first float64
	for n := 1; n <= scaleReplicas; n++ {
		b.Say("%d certificates: %s: %d replicas", b.size, scaleName, n)
		err := b.open(ctx, site.Config{Apart: true, Replicas: n, Cores: scaleCores})
		if errors.Is(err, site.ErrNoQuota) {
			b.Say("  left out: %v", err)
			return nil
		}
		if err != nil {
			return err
		}
		err = b.replicas(ctx, n, &first)
		if err := errors.Join(err, b.conn.Close(ctx), b.site.Stop(ctx)); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) replicas(ctx context.Context, n int, first *float64) error {
	clients := make([]*web.Client, n)
	for i, address := range b.site.Gateways {
		clients[i] = web.New(address, b.site.Key, b.site.TLS(), b.Workers)
		defer clients[i].Close()
	}
	places, err := b.pages(clients[0], certificates, 200)
	if err != nil {
		return err
	}
	do := func(_ context.Context, w, k int) error {
		_, err := clients[k%n].Want(w, places.random(), "", http.StatusOK)
		return err
	}
	peak := newPeak(b)
	watching, enough := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() { peak.watch(watching) })
	most, open, err := b.offer(ctx, 0, do)
	enough()
	watcher.Wait()
	if err != nil {
		return err
	}
	if n == 1 {
		*first = most.Throughput
	}
	b.add(report.Figure{
		Name: fmt.Sprintf("%s/%d", scaleName, n), What: fmt.Sprintf("list of about 50, another page each time, %d replicas of everything, each with %.2f of a core", n, scaleCores),
		Goal: "grows with the replicas; no quota exceeded", Met: most.Throughput > 0.7*float64(n)**first && peak.over == 0 && clean(most, open), Reading: &most,
		Value: fmt.Sprintf("%.2f times one replica; at a constant rate p95 %s; most connections %v", most.Throughput/(*first), open.Latency.P95, peak.most),
	})
	if n < scaleReplicas {
		return nil
	}
	return b.stopped(ctx, clients, places)
}

// stopped has one replica of inventory stand still for a minute: the gateway of its number has no other here, so that its calls fail, and
// all must go on afterwards.
func (b *bench) stopped(ctx context.Context, clients []*web.Client, places *pages) error {
	const victim = "inventory-1"
	if err := b.site.Signal(victim, syscall.SIGSTOP); err != nil {
		return err
	}
	others := func(_ context.Context, w, k int) error {
		_, err := clients[2*(k%2)].Want(w, places.random(), "", http.StatusOK)
		return err
	}
	during := load.Run(ctx, load.Plan{Rate: 20, Duration: scalePause, Workers: b.Workers}, others)
	if err := b.site.Signal(victim, syscall.SIGCONT); err != nil {
		return err
	}
	back := time.Now()
	err := b.until(ctx, "the replica that stood still", func() (bool, error) {
		_, err := clients[1].Want(0, places.at(0, 50), "", http.StatusOK)
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	took := time.Since(back)
	after, err := b.meter().Run(ctx, load.Plan{Rate: 20, Duration: b.For, Workers: b.Workers}, func(_ context.Context, w, k int) error {
		_, err := clients[k%len(clients)].Want(w, places.random(), "", http.StatusOK)
		return err
	})
	if err != nil {
		return err
	}
	b.add(report.Figure{
		Name: scaleName + "/stopped", What: fmt.Sprintf("one of %d replicas of inventory stopped (SIGSTOP) for %s: what the other replicas answer meanwhile, and all afterwards", len(clients), scalePause),
		Goal: "the others fail nothing; all answer again", Met: during.Failed == 0 && clean(after), Reading: &after,
		Value: fmt.Sprintf("%d requests to the others meanwhile, %d failed, p95 %s; the stopped one answers %s after it goes on", during.Planned, during.Failed, during.Latency.P95, took.Round(time.Millisecond)),
	})
	return nil
}
