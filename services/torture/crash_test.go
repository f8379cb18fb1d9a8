package torture_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
)

// fates are what becomes of a reply of the CA.
func fates() map[string]casimulator.Fault {
	return map[string]casimulator.Fault{
		"delivered": {},
		"lost":      {Kind: casimulator.DropAfter, Times: 1},
		"doubled":   {Kind: casimulator.DoubledReply, Times: 1},
		"late":      {Kind: casimulator.DelayAfter, Times: 1, Delay: timeout*time.Second + ms(100)},
	}
}

// cell is one death: of an order at a point, with a fate of the CA's reply.
type cell struct {
	death

	before []death // that are needed for the order to come there
	fate   string
	fault  casimulator.Fault
	order  string
	name   string
}

// afterLoss are the points to which only an order comes whose reply was lost.
func afterLoss() []string { return []string{"reconciling", "CA searched"} }

func cells(ca string) []cell {
	var out []cell
	for _, d := range points() {
		for fate, fault := range fates() {
			c := cell{death: d, fate: fate, fault: fault}
			c.name = fmt.Sprintf("m%d.example.com", len(out))
			c.order = fmt.Sprintf("ord-%s-%d", ca, len(out))
			c.fault.Operation = "submit"
			if d.service == nameAsyncPoller || d.point == "poll received" {
				c.fault.Operation = "status"
			}
			if slices.Contains(afterLoss(), d.point) && fate != "lost" && fate != "late" {
				c.before = []death{{service: nameIssuance, point: "CA called"}}
			}
			out = append(out, c)
		}
	}
	return out
}

// TestCrashMatrix kills the process of the services at every labelled point of an order's way, with each fate of the CA's
// reply, at each CA. The process that takes over is the next one to die.
func TestCrashMatrix(t *testing.T) {
	t.Parallel()
	for n, c := range connectors() {
		t.Run(c.ca, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			w := newWorld(t, casimulator.Scenario{})
			all := cells(c.ca)
			w.sim.Play(matrixScenario(c.ca, all))
			want := map[string]expectation{}
			for _, one := range all {
				want[one.name] = expectation{orders: []string{one.order}, ends: endsIssued}
				w.crash(issuerID(c.ca, n%issuersPerCA), one)
			}
			w.finish()
			w.requireInvariants(want)
			t.Logf("%d deaths in %s", len(all), time.Since(began).Round(time.Millisecond))
		})
	}
}

// matrixScenario has each order take a moment, so that it is polled, and gives each reply its fate.
func matrixScenario(ca string, all []cell) casimulator.Scenario {
	s := casimulator.Scenario{Unlimited: true, Latency: ms(100)}
	for _, one := range all {
		if one.fault.Kind != "" {
			one.fault.CA, one.fault.CommonName = ca, one.name
			s.Faults = append(s.Faults, one.fault)
		}
	}
	return s
}

// crash plays one cell.
func (w *world) crash(issuer string, one cell) {
	w.t.Helper()
	intent, err := newIntent(one.order, "cert-"+one.order, issuer, one.name)
	require.NoError(w.t, err)
	w.intend(intent)
	for _, d := range append(slices.Clone(one.before), one.death) {
		c := w.services(d, one.order)
		reached := eventually(w.t.Context(), patience, func() bool {
			w.pass(w.issued(one.name))
			return !c.running()
		})
		require.True(w.t, reached, "%s with its reply %s: the order does not come to %q of %s", one.order, one.fate, d.point, d.service)
		require.True(w.t, c.died(), "%s with its reply %s: %v", one.order, one.fate, c.err)
		w.buried()
	}
}

// issued tells whether the CA has made the certificate.
func (w *world) issued(name string) bool {
	return slices.ContainsFunc(w.sim.Orders(), func(o casimulator.Order) bool { return o.CommonName == name && o.State == casimulator.Issued })
}

// finish has a process that does not die bring all to its end.
func (w *world) finish() {
	w.t.Helper()
	c := w.services(death{}, "")
	w.until("all to come to rest", func() bool {
		w.pass(true)
		return !c.running() || w.rest()
	})
	require.True(w.t, c.running(), "%v", c.err)
	c.kill()
	w.sweep()
}

func (w *world) requireInvariants(want map[string]expectation) {
	w.t.Helper()
	f, err := collect(w.t.Context(), w.admin, w.sim)
	require.NoError(w.t, err)
	var b strings.Builder
	for name, wrong := range judge(f, want) {
		fmt.Fprintf(&b, "%s %v: %s\n", name, want[name].orders, strings.Join(wrong, "; "))
		for _, r := range w.sim.Requests() {
			if r.CommonName == name {
				fmt.Fprintf(&b, "  %s %s -> %d %v\n", r.Operation, r.Path, r.Status, r.Faults)
			}
		}
	}
	require.Empty(w.t, b.String())
}

// rounds is how often a process is killed at a random moment.
const rounds = 24

// TestKilledAtRandomMoments kills the process of the services with kill -9 while it has orders of all CAs in hand.
func TestKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	seed := number(t, "SEED", 1)
	r := rand.New(rand.NewPCG(seed, 9))
	w := newWorld(t, casimulator.Scenario{})
	sc := casimulator.Scenario{Unlimited: true, Latency: ms(60), Seed: seed}
	want := map[string]expectation{}
	var intents [rounds][]string
	for round := range rounds {
		for _, c := range connectors() {
			name := fmt.Sprintf("k%d-%s.example.com", round, c.ca)
			if chance(r, 60) {
				f := passing(r, pick(r, "submit", "submit", "status"))
				f.CA, f.CommonName = c.ca, name
				sc.Faults = append(sc.Faults, f)
			}
			id := fmt.Sprintf("ord-%d-%s", round, c.ca)
			want[name] = expectation{orders: []string{id}, ends: endsIssued}
			intents[round] = append(intents[round], name)
		}
	}
	w.sim.Play(sc)
	for round := range rounds {
		for n, c := range connectors() {
			name := intents[round][n]
			intent, err := newIntent(want[name].orders[0], "cert-"+name, issuerID(c.ca, round%issuersPerCA), name)
			require.NoError(t, err)
			w.intend(intent)
		}
		c := w.services(death{}, "")
		life := time.Duration(100+r.IntN(900)) * time.Millisecond
		_ = eventually(t.Context(), life, func() bool { w.pass(true); return !c.running() })
		require.True(t, c.running(), "%v", c.err)
		c.kill()
		w.buried()
	}
	w.finish()
	w.requireInvariants(want)
}
