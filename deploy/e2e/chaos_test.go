package e2e_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/tick"
)

// What TestFaultsUnderLoadLoseNothing does in `make test`, and what SEED, MINUTES, STORM and FAULTS make of it (`make chaos`).
const (
	chaosSeed   = 20261129
	chaosLength = 90 * time.Second // of the faults; the start and the end take as long as they take
	chaosAgents = 40               // in this process
	chaosHosts  = 2                // agents that are processes, and so can be killed; they have half of the certificates
	chaosSettle = 2 * time.Minute  // until work goes on, and until everything is at rest, at the most; and for each certificate of the storm:

	chaosRenewal = 50 * time.Millisecond
)

// TestFaultsUnderLoadLoseNothing has processes, Postgres, networks and clocks fail under those who create, renew, update, revoke and read
// certificates. Then it holds what clients were told against what is there.
func TestFaultsUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	seed := setting(t, "SEED", chaosSeed, func(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) })
	length := setting(t, "MINUTES", chaosLength, func(s string) (time.Duration, error) { return time.ParseDuration(s + "m") })
	size := setting(t, "STORM", chaosStormSize, strconv.Atoi)
	t.Logf("SEED=%d MINUTES=%g STORM=%d", seed, length.Minutes(), size)
	c := startChaos(t)
	l := &chaosLoad{fleet: c.fleet, seed: seed, hosts: c.hosts(), changes: map[string]int{}, repeated: map[string]int{}}
	t.Cleanup(func() {
		if t.Failed() {
			path, err := l.record.dump(fmt.Sprintf("certctl-chaos-%d.jsonl", seed))
			t.Logf("every request and answer: %s %v", path, err)
		}
	})
	script := newScript(seed, length, c.victims())
	require.NotEmpty(t, script.kinds(), "no kind of fault matches FAULTS")
	connections := c.watchConnections(t.Context())
	storm := c.makeStorm(l, size)
	ctx, giveUp := context.WithCancel(t.Context())
	stop := l.start(ctx)
	defer func() {
		giveUp()
		stop()
	}()
	if !c.play(script, l, storm, length) {
		giveUp()
	}
	stop()
	c.rest(storm.patience())

	e := &evidence{Exchanges: l.record.all(), Agents: chaosAgents + chaosHosts, Quotas: fleetQuotas, Connections: connections()}
	c.gather(e)
	e.Due = storm.due(e)
	t.Logf("%d certificates came due %d times at once", storm.size, storm.waves)
	t.Logf("%d requests; %d certificates, %d versions, %d writes followed to their end, the slowest in %s; asked again because of %s, for %s at most; connections %v",
		len(e.Exchanges), len(e.Certificates), len(e.Versions), l.done.Load(), l.slowest.Round(time.Millisecond), strings.Join(l.reasons(), ", "), l.waited.Round(time.Millisecond), e.Connections)
	for _, err := range l.errs {
		t.Errorf("a client complains: %v", err)
	}
	for _, broken := range e.judge() {
		t.Errorf("does not hold: %s", broken)
	}
}

// startChaos starts the fleet behind networks that can fail, with agents in this process and apart.
func startChaos(t *testing.T) *chaos {
	t.Helper()
	db := startChaosDatabase(t)
	c := &chaos{fleet: newFleet(t, db.URL()), db: db, apart: map[string]*process{}}
	c.wires = map[string]*wire{"gateway": {}}
	for _, s := range servicesOf() {
		c.wires[s], c.wires["gateways to "+s] = &wire{}, &wire{}
	}
	c.settle()
	for _, s := range servicesOf() {
		c.edge = append(c.edge, "CERTCTL_"+strings.ToUpper(s)+"_ADDR="+balance(t, c.places[s], c.wires["gateways to "+s]))
	}
	c.boot()
	c.enrol(chaosAgents)
	for n := range chaosHosts {
		name := fmt.Sprintf("host-%d", n+1)
		p := &process{name: name, path: binaries.agent, args: []string{"run"}, env: []string{"HOME=" + c.dir, "CERTCTL_SERVER=" + c.url, "CERTCTL_SERVER_CA=" + c.caFile,
			"CERTCTL_NAME=" + name, "CERTCTL_DATA_DIR=" + filepath.Join(c.dir, "agents", name), "CERTCTL_JOIN_TOKEN=" + fleetToken}}
		c.apart[name] = p
		c.add(t, p)
	}
	c.allOnline(chaosAgents + chaosHosts)
	return c
}

// hosts gives the agents in the order in which they get certificates: every other one goes to an agent that can be killed.
func (c *chaos) hosts() (ids []string) {
	c.t.Helper()
	apart := rows(c.t, c.database, "SELECT id FROM inventory.agents WHERE name LIKE 'host-%' ORDER BY name")
	within := rows(c.t, c.database, "SELECT id FROM inventory.agents WHERE name LIKE 'node-%' ORDER BY name")
	for n, id := range within {
		ids = append(ids, apart[n%len(apart)], id)
	}
	return ids
}

// victims gives what can be hit here.
func (c *chaos) victims() victims {
	c.t.Helper()
	v := victims{disk: c.db.disk, clock: true, only: setting(c.t, "FAULTS", nil, regexp.Compile)}
	if err := clockTurns(c.t.Context(), clockOff); err != nil {
		c.t.Logf("SKIPPED: no fault of a wrong clock, because clocks cannot be turned here: %v", err)
		v.clock = false
	}
	for _, r := range c.replicas {
		v.replicas = append(v.replicas, r.name)
	}
	for _, s := range servicesOf() {
		v.wires = append(v.wires, "gateways to "+s)
	}
	v.wires = append(append(v.wires, servicesOf()...), "gateway")
	for n := range chaosHosts {
		v.agents = append(v.agents, fmt.Sprintf("host-%d", n+1))
	}
	return v
}

// play has the faults of a script happen for a while, under a storm. After each, work that is begun then must come to its end: false if it does
// not.
func (c *chaos) play(s *script, l *chaosLoad, storm *chaosStorm, length time.Duration) bool {
	c.t.Helper()
	goesOn := c.goesOn(l, storm, "before the first fault", time.Now())
	end := time.Now().Add(length)
	for n := 1; goesOn && time.Now().Before(end); n++ {
		faults := s.next()
		c.t.Logf("%3d. %v", n, faults)
		slices.SortFunc(faults, func(a, b fault) int { return cmp.Compare(a.hold, b.hold) })
		began, heals := time.Now(), make([]func(), len(faults))
		for i, f := range faults {
			heals[i] = c.inject(f)
		}
		for i, f := range faults {
			_ = tick.Wait(c.t.Context(), time.Until(began.Add(f.hold)))
			heals[i]()
		}
		healed := time.Now()
		goesOn = c.goesOn(l, storm, fmt.Sprintf("after %v", faults), healed)
		c.breakLoose(storm)
		c.t.Logf("     goes on after %s", time.Since(healed).Round(10*time.Millisecond))
	}
	return goesOn
}

// goesOn waits until some work that was begun after a moment has come to its end: false if it does not.
func (c *chaos) goesOn(l *chaosLoad, storm *chaosStorm, when string, since time.Time) bool {
	c.t.Helper()
	for end := time.Now().Add(storm.patience()); time.Now().Before(end); _ = tick.Wait(c.t.Context(), interval) {
		if l.finishedSince(since) >= chaosWorkers/2 {
			return true
		}
		c.db.revive(c.t)
	}
	c.t.Errorf("the load does not go on %s", when)
	return false
}

// rest waits until everything is at rest.
func (c *chaos) rest(most time.Duration) {
	c.t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(c.t.Context(), most)
	defer cancel()
	var left map[string]int
	err := errors.New("not looked at")
	for ctx.Err() == nil && (err != nil || len(left) > 0) {
		left, err = c.unrest(ctx)
		_ = tick.Wait(ctx, 5*interval)
	}
	c.t.Logf("at rest after %s; what is not: %v", time.Since(began).Round(10*time.Millisecond), left)
}
