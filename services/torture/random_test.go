package torture_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
)

const (
	// defaultSeeds is how many random scripts `make test` plays.
	defaultSeeds = 2000
	// perWorld is how many of them share a database and its CAs.
	perWorld = 400
)

// number reads a number from the environment.
func number(t testing.TB, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 63)
	require.NoError(t, err, "%s=%s", name, text)
	return n
}

// TestRandomSchedules plays scripts of which each follows from its seed. A seed that fails is printed with what happened to
// it, and can be played alone: SEED=4711 SEEDS=1 go test -run TestRandomSchedules ./services/torture
func TestRandomSchedules(t *testing.T) {
	t.Parallel()
	first, count := number(t, "SEED", 1), number(t, "SEEDS", defaultSeeds)
	for from := first; from < first+count; from += perWorld {
		var seeds []uint64
		for seed := from; seed < min(from+perWorld, first+count); seed++ {
			seeds = append(seeds, seed)
		}
		replicas := 1 + int(from/perWorld)%2
		t.Run(fmt.Sprintf("seeds %d to %d on %d replicas", seeds[0], seeds[len(seeds)-1], replicas), func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			p := newPlay(t, seeds, replicas)
			p.run(t.Context())
			played := time.Since(began)
			p.settle()
			p.require(p.expectations())
			t.Logf("%d certificates, %d requests to CAs, played in %s, judged after %s", len(seeds), len(p.sim.Requests()), played, time.Since(began))
		})
	}
}

// expectations are what the scripts say.
func (p *play) expectations() map[string]expectation {
	out := map[string]expectation{}
	for _, s := range p.scripts {
		out[s.commonName] = expectation{orders: s.orders, ends: s.ends, doubled: s.doubled}
	}
	return out
}

// settle waits until the outbox is empty, ends the replicas, and has the CAs' lists compared with the journal.
func (p *play) settle() {
	p.t.Helper()
	p.until("the outbox to be empty", func() bool {
		p.hurry(p.t.Context(), true)
		return p.one(`SELECT count(*) FROM issuance.outbox`) == 0
	})
	for _, n := range p.nodes {
		require.NoError(p.t, n.stop())
	}
	p.nodes = nil
	p.sweep()
}

// until waits for a condition; a test that goes on without it fails by its invariants.
func (w *world) until(what string, is func() bool) {
	w.t.Helper()
	if !eventually(w.t.Context(), patience, is) {
		w.t.Logf("waited in vain for %s", what)
	}
}

func eventually(ctx context.Context, within time.Duration, is func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for !is() {
		pause := time.NewTimer(often)
		select {
		case <-ctx.Done():
			pause.Stop()
			return false
		case <-pause.C:
		}
	}
	return true
}

func (w *world) one(sql string, args ...any) (n int) {
	w.t.Helper()
	require.NoError(w.t, w.admin.QueryRow(w.t.Context(), sql, args...).Scan(&n), sql)
	return n
}

// sweep compares the CAs' lists with the journal, as a process does days later.
func (w *world) sweep() {
	w.t.Helper()
	w.sim.Play(casimulator.Scenario{Unlimited: true})
	w.exec(`UPDATE issuance.issuers SET sweep_time = NULL, sweep_until = NULL`)
	n := w.node(func(c *nodeConfig) { c.ahead, c.sweep = 10*24*time.Hour, often })
	w.until("the search for orphans", func() bool {
		return w.one(`SELECT count(DISTINCT type) FROM issuance.issuers WHERE sweep_time IS NOT NULL`) == len(connectors()) &&
			w.one(`SELECT count(*) FROM issuance.outbox`) == 0
	})
	require.NoError(w.t, n.stop())
}

// require fails with all that is wrong, and with the stories of the first seeds that it is wrong with.
func (p *play) require(want map[string]expectation) {
	p.t.Helper()
	f, err := collect(p.t.Context(), p.admin, p.sim)
	require.NoError(p.t, err)
	wrong := judge(f, want)
	for _, ref := range p.twice {
		wrong[""] = append(wrong[""], "one poll per lease: the CA was asked twice at a time about "+ref)
	}
	for _, w := range f.watches {
		if n := p.asked[w.Order]; n > w.Attempts {
			wrong[p.byOrder[w.Order].commonName] = append(wrong[p.byOrder[w.Order].commonName],
				fmt.Sprintf("one poll per lease: order %s was asked about %d times under %d leases", w.Order, n, w.Attempts))
		}
	}
	if len(wrong) == 0 {
		return
	}
	p.t.Log(p.report(wrong))
	p.t.Errorf("%d of %d certificates broke an invariant", len(wrong), len(want))
}

// namesTold and storiesTold bound what a failure prints.
const namesTold, storiesTold = 20, 4

func (p *play) report(wrong map[string][]string) string {
	var b strings.Builder
	names := make([]string, 0, len(wrong))
	for name := range wrong {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names[:min(len(names), namesTold)] {
		fmt.Fprintf(&b, "\n%s:\n  %s\n", name, strings.Join(wrong[name][:min(len(wrong[name]), 8)], "\n  "))
	}
	told := 0
	for _, s := range p.scripts {
		if len(wrong[s.commonName]) == 0 || told >= storiesTold {
			continue
		}
		told++
		fmt.Fprintf(&b, "\n--- play it alone with SEED=%d SEEDS=1\n%s\n", s.seed, s)
		for _, r := range p.sim.Requests() {
			if r.CommonName == s.commonName || r.CA == s.ca && r.CommonName == "" && len(r.Faults) > 0 {
				fmt.Fprintf(&b, "  %8s  %s %s -> %d %v\n", r.At.Sub(s.began).Round(time.Millisecond), r.Operation, r.Path, r.Status, r.Faults)
			}
		}
		for _, o := range p.sim.Orders() {
			if o.CommonName == s.commonName {
				fmt.Fprintf(&b, "  at the CA: %+v\n", o)
			}
		}
	}
	return b.String()
}
