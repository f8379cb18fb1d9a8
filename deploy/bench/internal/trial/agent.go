package trial

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"github.com/certctl/certctl/deploy/bench/internal/fleet"
	"github.com/certctl/certctl/deploy/bench/internal/gauge"
	"github.com/certctl/certctl/deploy/bench/internal/report"
	"github.com/certctl/certctl/deploy/bench/internal/site"
	"github.com/certctl/certctl/deploy/bench/internal/web"
	"github.com/certctl/certctl/pkg/load"
	"github.com/certctl/certctl/pkg/tick"
)

// The goals of agents.
const (
	mostPerAgent   = 48 << 10
	mostReturning  = time.Minute
	mostPickup     = 250 * time.Millisecond
	mostIdleCore   = 0.05
	mostStatements = 3
	pickups        = 500
)

// connecting is how many agents connect in a second for the first time.
const connecting = 300

// settling is how long is waited until what connecting has caused is over: memory is given back, batches are written.
const settling = 45 * time.Second

// fleetOf starts agents and waits for all.
func (b *bench) fleetOf(ctx context.Context, n int) (*fleet.Fleet, []fleet.Credential, error) {
	credentials, err := fleet.Seed(ctx, b.site.DatabaseURL, n)
	if err != nil {
		return nil, nil, err
	}
	f, err := fleet.Start(ctx, fleet.Config{URL: b.site.URL, CAFile: filepath.Join(b.site.Dir(), "ca.crt"), Credentials: credentials, Rate: connecting})
	if err != nil {
		return nil, nil, err
	}
	limit, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := f.WaitConnected(limit, n); err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("%d of %d agents are connected: %w", f.Connected(), n, err)
	}
	return f, credentials, nil
}

// agents connects many, looks at them while they are idle, restarts the gateway, and gives some of them work.
func agents(ctx context.Context, b *bench) error {
	before, err := b.site.Processes().Memory()
	if err != nil {
		return err
	}
	f, credentials, err := b.fleetOf(ctx, b.Agents)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := tick.Wait(ctx, settling); err != nil {
		return err
	}
	if err := b.idleAgents(ctx, before); err != nil {
		return err
	}
	if err := b.returning(ctx, f); err != nil {
		return err
	}
	return b.pickup(ctx, f, credentials)
}

// rest looks at what everybody does for a while.
func (b *bench) rest(ctx context.Context, d time.Duration) (cpu gauge.CPU, db gauge.Database, err error) {
	if err := gauge.Reset(ctx, b.conn); err != nil {
		return nil, db, err
	}
	first, err := b.site.Processes().CPU()
	if err != nil {
		return nil, db, err
	}
	if err := tick.Wait(ctx, d); err != nil {
		return nil, db, err
	}
	last, err := b.site.Processes().CPU()
	if err != nil {
		return nil, db, err
	}
	db, err = gauge.ReadDatabase(ctx, b.conn)
	return last.Since(first), db, err
}

func (b *bench) idleAgents(ctx context.Context, before map[string]int64) error {
	const looking = time.Minute
	cpu, db, err := b.rest(ctx, looking)
	if err != nil {
		return err
	}
	after, err := b.site.Processes().Memory()
	if err != nil {
		return err
	}
	gateway, inventory := after[site.Gateway]-before[site.Gateway], after["inventory"]-before["inventory"]
	each := (gateway + inventory) / int64(b.Agents)
	b.add(report.Figure{Name: "agents/memory", What: fmt.Sprintf("memory for each of %d agents that are connected and idle for a minute, in gateway and inventory together", b.Agents), Goal: "≤ 48 KiB",
		Met: each <= mostPerAgent, Value: fmt.Sprintf("%.1f KiB: gateway %.1f, inventory %.1f", kib(each), kib(gateway/int64(b.Agents)), kib(inventory/int64(b.Agents)))})
	core := (cpu.Total() - cpu["load"]).Seconds() / looking.Seconds()
	statements := float64(db.Statements) / looking.Seconds()
	b.add(report.Figure{Name: "agents/idle", What: fmt.Sprintf("%d idle agents: all processes and Postgres, for a minute", b.Agents), Goal: "< 5 % of one core, ≤ 3 statements/s",
		Met: core < mostIdleCore && statements <= mostStatements, Value: fmt.Sprintf("%.1f %% of one core (%v), %.1f statements/s", core*100, cpu.Seconds(), statements)})
	return nil
}

func kib(n int64) float64 { return float64(n) / (1 << 10) }

// returning restarts the gateway and waits for all agents, while a client goes on asking.
func (b *bench) returning(ctx context.Context, f *fleet.Fleet) error {
	if err := b.site.Restart(ctx, site.Gateway); err != nil {
		return err
	}
	began := time.Now()
	all := make(chan error, 1)
	limit, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	go func() { all <- f.WaitConnected(limit, b.Agents) }()
	c := web.New(b.site.Address(), b.site.Key, b.site.TLS(), askers)
	defer c.Close()
	asking, enough := context.WithCancel(ctx)
	results := make(chan load.Result, 1)
	go func() {
		results <- load.Run(asking, load.Plan{Rate: 20, Workers: askers, Duration: 5 * time.Minute}, func(_ context.Context, w, _ int) error {
			_, err := c.Want(w, certificates+"?page_size=10", "", http.StatusOK)
			return err
		})
	}()
	err := <-all
	took := time.Since(began)
	enough()
	asked := <-results
	if err != nil {
		return fmt.Errorf("%d of %d agents are back: %w", f.Connected(), b.Agents, err)
	}
	var notes []string
	if asked.Err != nil {
		notes = append(notes, asked.Err.Error())
	}
	b.add(report.Figure{Name: "agents/return", What: fmt.Sprintf("%d agents come back after the gateway was restarted, each with a whole TLS handshake", b.Agents),
		Goal: "≤ 60 s, no API call refused meanwhile", Met: took <= mostReturning && asked.Failed == 0, Notes: notes,
		Value: fmt.Sprintf("%s; %d calls meanwhile, %d failed, p95 %s", took.Round(100*time.Millisecond), asked.Planned, asked.Failed, asked.Latency.P95)})
	return nil
}

// pickup creates certificates for some agents, and looks how soon each starts on its key.
func (b *bench) pickup(ctx context.Context, f *fleet.Fleet, credentials []fleet.Credential) error {
	step, run := max(len(credentials)/pickups, 1), strconv.FormatInt(time.Now().Unix(), 36) // an id may be taken by a run before
	r := load.Run(ctx, load.Plan{Rate: 10, Workers: 16, Duration: time.Duration(min(pickups, len(credentials))) * time.Second / 10}, func(ctx context.Context, _, n int) error {
		agent := credentials[n*step%len(credentials)].AgentID
		id := fmt.Sprintf("pickup-%s-%s-%05d", run, agent[len(agent)-6:], n)
		target, err := b.post(ctx, "/api/v1/targets", map[string]any{"id": id, "name": id, "type": "file", "agent_id": agent,
			"config": map[string]any{"fullchain_path": "/srv/" + id + "/fullchain.pem", "key_path": "/srv/" + id + "/key.pem"}}, nil)
		if err != nil {
			return err
		}
		var made struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal(target, &made); err != nil {
			return fmt.Errorf("read target: %w", err)
		}
		began := time.Now()
		_, err = b.post(ctx, certificates, map[string]any{"id": id, "name": id, "dns_names": []string{id + ".example.com"}, "issuer_id": "iss-local", "target_ids": []string{made.ID}}, nil)
		f.Created(id, began)
		return err
	})
	if r.Err != nil {
		return r.Err
	}
	for range 100 {
		if f.Waiting() == 0 {
			break
		}
		if err := tick.Wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	l := f.Delays().Latency()
	b.add(report.Figure{Name: "agents/pickup", What: fmt.Sprintf("from the request that creates a certificate until the agent starts on its key, %d agents connected, %d times", b.Agents, r.Planned),
		Goal: "p99 ≤ 250 ms", Met: l.P99 <= mostPickup && f.Waiting() == 0, Value: fmt.Sprintf("p50 %s, p95 %s, p99 %s, max %s; %d not started", l.P50, l.P95, l.P99, l.Max, f.Waiting())})
	return nil
}

// idle looks at an installation with a thousand agents in which nothing happens.
func idle(ctx context.Context, b *bench) error {
	const agents, goal = 1000, 0.03
	f, _, err := b.fleetOf(ctx, agents)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := tick.Wait(ctx, settling); err != nil {
		return err
	}
	cpu, db, err := b.rest(ctx, b.Idle)
	if err != nil {
		return err
	}
	memory, err := b.site.Processes().Memory()
	if err != nil {
		return err
	}
	core := (cpu.Total() - cpu["load"]).Seconds() / b.Idle.Seconds()
	b.add(report.Figure{Name: "idle", What: fmt.Sprintf("CPU of everything with %d agents, for %s", agents, b.Idle), Goal: "≤ 3 % of one core", Met: core <= goal,
		Value: fmt.Sprintf("%.2f %% of one core (seconds: %v), %.1f statements/s", core*100, cpu.Seconds(), float64(db.Statements)/b.Idle.Seconds())})
	b.memory("idle/memory", memory)
	return nil
}

// memory adds a figure of what each service has.
func (b *bench) memory(name string, used map[string]int64) {
	const goal = 150 << 20
	met, text := true, ""
	for _, service := range append(site.Services(), site.Gateway) {
		met = met && used[service] <= goal
		text += fmt.Sprintf("%s %d MiB, ", service, used[service]>>20)
	}
	b.add(report.Figure{Name: name, What: "memory of each service (proportional set size)", Goal: "≤ 150 MiB", Met: met, Value: text[:len(text)-2]})
}
