package trial

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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

// The renewals that replicas share: few, as each process has little.
const (
	scaleAgents       = 21
	scaleCertificates = 210
)

// replicas is the installation with so many of each process.
type replicas struct {
	*bench
	n       int
	clients []*web.Client // of the gateways
	places  *pages
}

// scale measures the same with one, two and three replicas of everything, and has one of three stopped for a minute.
func (b *bench) scale(ctx context.Context) error {
	var first had
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

// had is what one replica has reached.
type had struct{ pages, certificates float64 }

func (b *bench) replicas(ctx context.Context, n int, first *had) (err error) {
	r := &replicas{bench: b, n: n, clients: make([]*web.Client, n)}
	for i, address := range b.site.Gateways {
		r.clients[i] = web.New(address, b.site.Key, b.site.TLS(), b.Workers)
		defer r.clients[i].Close()
	}
	if r.places, err = b.pages(r.clients[0], certificates, 200); err != nil {
		return err
	}
	if err := r.lists(ctx, first); err != nil {
		return err
	}
	fleet, err := b.enrol(ctx, agentsName, fmt.Sprintf("scale-%d-%d", n, time.Now().Unix()), scaleAgents, b.site.Gateways)
	if err != nil {
		return err
	}
	defer fleet.stop()
	b.writer.gateways = b.site.Gateways
	defer func() { b.writer.gateways = nil }()
	if err := r.chain(ctx, fleet, first); err != nil || n < scaleReplicas {
		return err
	}
	return r.stopped(ctx, fleet)
}

// lists asks all gateways for pages.
func (r *replicas) lists(ctx context.Context, first *had) error {
	peak := watchPeak(ctx, r.bench)
	most, open, err := r.offer(ctx, 0, func(_ context.Context, w, k int) error {
		_, err := r.clients[k%r.n].Want(w, r.places.random(), "", http.StatusOK)
		return err
	})
	peak.enough()
	if err != nil {
		return err
	}
	if r.n == 1 {
		first.pages = most.Throughput
	}
	r.add(report.Figure{
		Name: fmt.Sprintf("%s/%d/lists", scaleName, r.n), What: fmt.Sprintf("list of about 50, another page each time, %d replicas of everything, each with %.2f of a core", r.n, scaleCores),
		Goal: "grows with the replicas; no quota exceeded", Met: most.Throughput > 0.7*float64(r.n)*first.pages && peak.over == 0 && clean(most, open), Reading: &most,
		Value: fmt.Sprintf("%.2f times one replica; at a constant rate p95 %s; most connections %v", most.Throughput/first.pages, open.Latency.P95, peak.most),
	})
	return nil
}

// chain has certificates issued, deployed and verified by agents that are connected to all gateways.
func (r *replicas) chain(ctx context.Context, fleet *stormFleet, first *had) error {
	peak := watchPeak(ctx, r.bench)
	began := time.Now()
	reading, err := r.meter().Around(ctx, func() load.Result {
		err := r.wanted(ctx, fleet, fleet.prefix)
		return load.Result{Planned: scaleCertificates, Elapsed: time.Since(began), Err: err}
	}, load.Plan{})
	peak.enough()
	if err != nil {
		return err
	}
	if reading.Error != "" {
		return errors.New(reading.Error)
	}
	rate := scaleCertificates / reading.Seconds
	if r.n == 1 {
		first.certificates = rate
	}
	twice, err := r.twice(ctx, fleet.prefix)
	if err != nil {
		return err
	}
	r.add(report.Figure{
		Name: fmt.Sprintf("%s/%d/certificates", scaleName, r.n), What: fmt.Sprintf("%d certificates wanted at once, keys made by %d agents, issued, deployed to files and verified, %d replicas of everything, each with %.2f of a core",
			scaleCertificates, scaleAgents, r.n, scaleCores),
		Goal: "grows with the replicas; nothing done twice; no quota exceeded", Met: rate > 0.6*float64(r.n)*first.certificates && len(twice) == 0 && peak.over == 0, Notes: twice, Reading: &reading,
		Value: fmt.Sprintf("%.1f/s, %.2f times one replica; most connections %v", rate, rate/first.certificates, peak.most),
	})
	return nil
}

// wanted has the certificates of a prefix wanted, and waits until all are served.
func (r *replicas) wanted(ctx context.Context, fleet *stormFleet, prefix string) error {
	if err := r.want(ctx, prefix, fleet, scaleCertificates); err != nil {
		return err
	}
	return r.served(ctx, prefix, scaleCertificates, 1)
}

// twice names what was done more than once for the certificates of a prefix, by anybody.
func (r *replicas) twice(ctx context.Context, prefix string) ([]string, error) {
	const counted = ` FROM %s WHERE certificate_id >= '%s-' AND certificate_id < '%[2]s.'%s GROUP BY certificate_id HAVING count(*) <> 1) AS more`
	var all []string
	for what, from := range map[string][2]string{
		"orders": {"issuance.orders", ""}, "issued certificates": {"issuance.issued_certificates", ""}, "jobs that issue": {"renewalscheduler.jobs", " AND type = 'ISSUE'"},
		"versions": {"inventory.certificate_versions", ""}, "deployments": {"inventory.deployments", ""},
	} {
		more, err := r.ids(ctx, fmt.Sprintf("SELECT '"+what+" of ' || certificate_id || ': ' || n FROM (SELECT certificate_id, count(*) AS n"+counted+" LIMIT 10", from[0], prefix, from[1]))
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	return all, nil
}

// stopped has one replica of each service stand still for a minute, while certificates are wanted: the gateway of its number has no other
// here, so that its calls fail. The others must go on, and all must be done afterwards.
func (r *replicas) stopped(ctx context.Context, fleet *stormFleet) error {
	const victim = 1
	signal := func(sig syscall.Signal) error {
		var problems []error
		for _, service := range site.Services() {
			problems = append(problems, r.site.Signal(fmt.Sprintf("%s-%d", service, victim), sig))
		}
		return errors.Join(problems...)
	}
	r.writer.gateways = []string{r.site.Gateways[0], r.site.Gateways[2]}
	prefix := fleet.prefix + "-stopped"
	wanted := make(chan error, 1)
	if err := signal(syscall.SIGSTOP); err != nil {
		return err
	}
	go func() { wanted <- r.wanted(ctx, fleet, prefix) }()
	during := load.Run(ctx, load.Plan{Rate: 20, Duration: scalePause, Workers: r.Workers}, func(_ context.Context, w, k int) error {
		_, err := r.clients[2*(k%2)].Want(w, r.places.random(), "", http.StatusOK)
		return err
	})
	served, err := r.countServed(ctx, prefix, 1)
	if err := errors.Join(err, signal(syscall.SIGCONT)); err != nil {
		return err
	}
	back := time.Now()
	if err := <-wanted; err != nil {
		return err
	}
	took := time.Since(back)
	twice, err := r.twice(ctx, prefix)
	if err != nil {
		return err
	}
	after, err := r.meter().Run(ctx, load.Plan{Rate: 20, Duration: r.For, Workers: r.Workers}, func(_ context.Context, w, k int) error {
		_, err := r.clients[k%r.n].Want(w, r.places.random(), "", http.StatusOK)
		return err
	})
	if err != nil {
		return err
	}
	r.add(report.Figure{
		Name: scaleName + "/stopped", What: fmt.Sprintf("one of %d replicas of each service stopped (SIGSTOP) for %s, as %d certificates are wanted; a third of the agents are connected to it", r.n, scalePause, scaleCertificates),
		Goal: "the others fail nothing; afterwards all is done, nothing twice, and all answer", Met: during.Failed == 0 && len(twice) == 0 && clean(after), Reading: &after, Notes: twice,
		Value: fmt.Sprintf("meanwhile %d requests to the others, %d failed, p95 %s, and %d certificates served; all %d of them %s after it goes on",
			during.Planned, during.Failed, during.Latency.P95, served, scaleCertificates, took.Round(100*time.Millisecond)),
	})
	return nil
}
