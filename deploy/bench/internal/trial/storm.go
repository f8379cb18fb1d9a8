package trial

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/deploy/bench/internal/report"
	"github.com/certctl/certctl/deploy/bench/internal/web"
	"github.com/certctl/certctl/pkg/load"
	"github.com/certctl/certctl/pkg/tick"
)

// The storm: so many real agents, and how long it may take.
const (
	stormAgents = 200
	stormGoal   = time.Minute
	stormLimit  = 15 * time.Minute
)

// storm has certificates issued on real agents that make the keys and deploy to files, all wanted at once, and then all of them renewed at
// once, as if they had been issued long ago.
func storm(ctx context.Context, b *bench) error {
	fleet, err := b.enrol(ctx, agentsName, fmt.Sprintf("storm-%d", time.Now().Unix()), stormAgents, []string{b.site.Address()})
	if err != nil {
		return err
	}
	defer fleet.stop()
	quiet, err := b.listing(ctx, func(ctx context.Context) error { return tick.Wait(ctx, b.For) })
	if err != nil {
		return err
	}
	err = b.ride(ctx, wave{
		name: "storm", what: "%d certificates wanted at once, %d agents: keys made by agents, issued, deployed to files, verified, and the requests that create each " +
			"certificate and its target besides; the latency is that of a list meanwhile",
		begin: func(ctx context.Context) error { return b.want(ctx, fleet.prefix, fleet, b.Renewals) }, prefix: fleet.prefix, version: 1,
	}, quiet)
	if err != nil {
		return err
	}
	asked, err := b.newAsked(ctx)
	if err != nil {
		return err
	}
	defer asked.host.stop()
	err = b.ride(ctx, wave{
		name: "storm/renewal", what: "the %d certificates of the storm due at once, %d agents: renewed with new keys made by agents, deployed to files and verified; " +
			"the latency is that of a list meanwhile",
		begin: func(ctx context.Context) error {
			asked.start(ctx)
			return b.age(ctx, fleet.prefix)
		}, prefix: fleet.prefix, version: 2,
	}, quiet)
	if err := errors.Join(err, asked.enough()); err != nil {
		return err
	}
	b.add(asked.figure())
	return nil
}

// wave is a version of all certificates that is wanted at once.
type wave struct {
	name, what string
	begin      func(ctx context.Context) error
	prefix     string
	version    int
}

// ride begins a wave and waits until each version is served.
func (b *bench) ride(ctx context.Context, w wave, quiet load.Latency) error {
	var began time.Time
	m := watchPeak(ctx, b)
	var result load.Latency
	reading, err := b.meter().Around(ctx, func() load.Result {
		began = time.Now()
		var failed error
		result, failed = b.listing(ctx, func(ctx context.Context) error {
			if err := w.begin(ctx); err != nil {
				return err
			}
			return b.served(ctx, w.prefix, b.Renewals, w.version)
		})
		return load.Result{Planned: b.Renewals, Elapsed: time.Since(began), Err: failed}
	}, load.Plan{})
	m.enough()
	if err != nil {
		return err
	}
	if reading.Error != "" {
		return errors.New(reading.Error)
	}
	took := time.Duration(reading.Seconds * float64(time.Second))
	reading.Latency = result
	b.add(report.Figure{
		Name: w.name, What: fmt.Sprintf(w.what, b.Renewals, stormAgents),
		Goal: "10,000 in ≤ 60 s; pool never over its quota; list p95 ≤ 3 × idle", Met: took <= stormGoal && b.Renewals >= 10_000 && m.over == 0 && result.P95 <= 3*quiet.P95,
		Value:   fmt.Sprintf("%s (%.0f/s); list p95 %s, idle %s; most connections %v", took.Round(100*time.Millisecond), float64(b.Renewals)/took.Seconds(), result.P95, quiet.P95, m.most),
		Reading: &reading,
	})
	memory, err := b.site.Processes().Memory()
	if err != nil {
		return err
	}
	b.memory(w.name+"/memory", memory)
	return nil
}

// age moves what the scheduler knows of the certificates into the past, so that all are due now. Nothing in the API does that: certificates
// that come due by themselves are spread over days.
func (b *bench) age(ctx context.Context, prefix string) error {
	for _, sql := range []string{
		`UPDATE renewalscheduler.plan_keys SET not_before = not_before - (not_after - not_before) * 0.9, not_after = not_after - (not_after - not_before) * 0.9
 WHERE certificate_id >= $1 || '-' AND certificate_id < $1 || '.'`,
		`UPDATE renewalscheduler.plans SET due_time = now() WHERE id >= $1 || '-' AND id < $1 || '.'`,
	} {
		if _, err := b.conn.Exec(ctx, sql, prefix); err != nil {
			return fmt.Errorf("make certificates due: %w", err)
		}
	}
	return nil
}

// askers are the clients of a list while something else is done: so many that a slow answer keeps none of the next questions waiting.
const askers = 128

// listing asks for a list while something is done.
func (b *bench) listing(ctx context.Context, work func(ctx context.Context) error) (load.Latency, error) {
	c := web.New(b.site.Address(), b.site.Key, b.site.TLS(), askers)
	defer c.Close()
	asking, enough := context.WithCancel(ctx)
	results := make(chan load.Result, 1)
	go func() {
		results <- load.Run(asking, load.Plan{Rate: 20, Workers: askers, Duration: stormLimit}, func(_ context.Context, w, _ int) error {
			_, err := c.Want(w, certificates, "", http.StatusOK)
			return err
		})
	}()
	err := work(ctx)
	enough()
	r := <-results
	return r.Latency, errors.Join(err, r.Err)
}

// want creates n targets and a certificate for each, as fast as clients can say so.
func (b *bench) want(ctx context.Context, prefix string, fleet *stormFleet, n int) error {
	var next atomic.Int64
	var g errgroup.Group
	for range 16 {
		g.Go(func() error {
			for {
				i := int(next.Add(1) - 1)
				if i >= n {
					return nil
				}
				if err := b.wantOne(ctx, fmt.Sprintf("%s-%05d", prefix, i), fleet.dir, fleet.ids[i%len(fleet.ids)]); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

func (b *bench) wantOne(ctx context.Context, id, dir, agent string) error {
	path := filepath.Join(dir, sites, id)
	_, err := b.post(ctx, "/api/v1/targets", map[string]any{"id": id, "name": id, "type": "file", "agent_id": agent,
		"config": map[string]any{"fullchain_path": path + ".pem", "key_path": path + ".key"}}, nil)
	if err != nil {
		return err
	}
	_, err = b.post(ctx, certificates, map[string]any{"id": id, "name": id, "dns_names": []string{id + ".example.com"}, "issuer_id": "iss-local", "target_ids": []string{id}}, nil)
	return err
}

// served waits until all n certificates of a prefix are served in a version.
func (b *bench) served(ctx context.Context, prefix string, n, version int) error {
	var said time.Time
	return b.until(ctx, fmt.Sprintf("version %d to be served everywhere", version), func() (bool, error) {
		served, err := b.countServed(ctx, prefix, version)
		if time.Since(said) > 5*time.Second {
			said = time.Now()
			b.Say("    version %d: %d of %d served", version, served, n)
		}
		return served == n, err
	})
}

// countServed counts the certificates of a prefix that are served in a version; one whose deployment has failed is an error.
func (b *bench) countServed(ctx context.Context, prefix string, version int) (served int, err error) {
	conn, err := b.site.Connect(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var failed int
	var why string
	err = conn.QueryRow(ctx, `SELECT count(*) FILTER (WHERE status = 'SERVED' AND served_version >= $2), count(*) FILTER (WHERE status = 'FAILED'), COALESCE(max(error_message), '')
 FROM inventory.deployments WHERE certificate_id >= $1 || '-' AND certificate_id < $1 || '.'`, prefix, version).Scan(&served, &failed, &why)
	if failed > 0 {
		return served, fmt.Errorf("%d deployments have failed: %s", failed, why)
	}
	return served, err
}

// until looks at a condition twice a second.
func (b *bench) until(ctx context.Context, what string, holds func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, stormLimit)
	defer cancel()
	for {
		ok, err := holds()
		if ok || err != nil {
			return err
		}
		if err := b.site.Alive(); err != nil {
			return err
		}
		if err := tick.Wait(ctx, 500*time.Millisecond); err != nil {
			return fmt.Errorf("waited for %s: %w", what, err)
		}
	}
}

// peak watches the connections of the roles.
type peak struct {
	bench *bench
	most  map[string]int
	over  int

	cancel  context.CancelFunc
	watcher sync.WaitGroup
}

// watchPeak looks until enough.
func watchPeak(ctx context.Context, b *bench) *peak {
	p := &peak{bench: b, most: map[string]int{}}
	ctx, p.cancel = context.WithCancel(ctx)
	p.watcher.Go(func() { p.watch(ctx) })
	return p
}

func (p *peak) enough() {
	p.cancel()
	p.watcher.Wait()
}

func (p *peak) watch(ctx context.Context) {
	conn, err := p.bench.site.Connect(ctx)
	if err != nil {
		p.over++
		return
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for tick.Wait(ctx, 200*time.Millisecond) == nil {
		rows, err := conn.Query(ctx, `SELECT r.rolname, r.rolconnlimit, count(*)::int FROM pg_stat_activity a JOIN pg_roles r ON r.rolname = a.usename
 WHERE r.rolname LIKE 'certctl\_%' GROUP BY 1, 2`)
		if err != nil {
			return
		}
		for rows.Next() {
			var role string
			var limit, n int
			if rows.Scan(&role, &limit, &n) == nil {
				p.most[role] = max(p.most[role], n)
				if limit >= 0 && n > limit {
					p.over++
				}
			}
		}
		rows.Close()
	}
}
