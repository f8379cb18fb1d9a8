package torture_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
)

// without are scripts of seeds from first on, none of which waits for a human.
func without(human bool, first uint64, n int) []*script {
	var out []*script
	for seed := first; len(out) < n; seed++ {
		if s := newScript(seed); s.human == human {
			out = append(out, s)
		}
	}
	return out
}

// perRestart is how many certificates are ordered while something is restarted.
const perRestart = 60

// TestTheCAsAreKilledInTheMiddleOfOrders kills the process of the CAs with kill -9 and starts it again on its directory.
func TestTheCAsAreKilledInTheMiddleOfOrders(t *testing.T) {
	t.Parallel()
	first := number(t, "SEED", 1) + 1_000_000
	w := newWorld(t, casimulator.Scenario{})
	p := newPlayOf(t, w, without(false, first, perRestart))
	address := w.at.CAs
	require.NoError(t, w.sim.Close())
	w.sim = nil
	e := errand{CADir: w.dir, CAAddress: address, Scenario: scenarioText(t, p.scenario(first).Faults)}
	cas, killed := start(t, e), 0
	p.disturb = func(n int) {
		if n%20 == 19 && killed < 8 {
			cas.kill()
			cas = start(t, e)
			killed++
		}
	}
	p.nodes = append(p.nodes, p.replica())
	p.run(t.Context())
	cas.kill()
	w.startCAs(address, casimulator.Scenario{Unlimited: true, Faults: p.lasting()})
	p.settle()
	p.require(p.expectations())
	require.Positive(t, killed)
}

// TestPostgresAndReplicasAreRestartedInTheMiddleOfOrders stops and kills the database, and one replica after the other.
func TestPostgresAndReplicasAreRestartedInTheMiddleOfOrders(t *testing.T) {
	t.Parallel()
	first := number(t, "SEED", 1) + 2_000_000
	server := testpg.NewServer(t, testpg.ServerConfig{Settings: map[string]string{"synchronous_commit": "on"}})
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: secretbox.NewSecret(server.URL()), Schemas: schemas()}))
	w := newWorldOn(t, server.URL(), casimulator.Scenario{})
	p := newPlayOf(t, w, without(false, first, perRestart))
	p.sim.Play(p.scenario(first))
	p.nodes = append(p.nodes, p.replica(), p.replica())
	restarted := 0
	p.disturb = func(n int) {
		switch n {
		case 15:
			server.Restart(t)
		case 45, 75:
			server.Kill(t)
			server.Start(t)
		case 30, 60:
			old := p.nodes[0]
			p.mu.Lock()
			p.nodes = append(p.nodes[1:], p.replica())
			p.mu.Unlock()
			require.NoError(t, ended(old.stop()))
		default:
			return
		}
		restarted++
	}
	p.run(t.Context())
	p.settle()
	p.require(p.expectations())
	require.Positive(t, restarted)
}

// ended is the error of a replica's end, without that of a pool whose database is away.
func ended(err error) error {
	if err != nil && os.IsTimeout(err) {
		return nil
	}
	return err
}

// TestTwoReplicasAskOncePerLease has two replicas of both services share orders that are polled often, without any fault.
func TestTwoReplicasAskOncePerLease(t *testing.T) {
	t.Parallel()
	const orders, least = 60, 3
	w := newWorld(t, casimulator.Scenario{})
	var scripts []*script
	for n := range orders {
		ca := []string{casimulator.DigiCert, casimulator.Sectigo, casimulator.EntrustECS}[n%3]
		scripts = append(scripts, &script{
			seed: uint64(n), ca: ca, issuer: issuerID(ca, n%issuersPerCA), commonName: fmt.Sprintf("r%d.example.com", n),
			orders: []string{fmt.Sprintf("ord-%d", n)}, ends: endsIssued, seen: map[string]int{}, again: 3,
		})
	}
	p := newPlayOf(t, w, scripts)
	w.sim.Play(casimulator.Scenario{Unlimited: true, Approval: casimulator.Approval{Needed: true}, Faults: []casimulator.Fault{
		{Operation: "status", Kind: casimulator.Delay, Delay: 30 * time.Millisecond},
	}})
	p.disturb = func(n int) {
		if n%5 == 0 && w.one(`SELECT count(*) FROM asyncpoller.polls WHERE attempts >= $1`, least) == orders {
			p.approve()
		}
	}
	p.nodes = append(p.nodes, p.replica(), p.replica())
	p.run(t.Context())
	p.settle()
	p.require(p.expectations())
	f, err := collect(t.Context(), w.admin, w.sim)
	require.NoError(t, err)
	require.Len(t, f.watches, orders)
	for _, row := range f.watches {
		require.GreaterOrEqual(t, row.Attempts, least, "order %s", row.Order)
		require.Equal(t, row.Attempts, p.asked[row.Order], "order %s: one question per lease", row.Order)
	}
	require.Empty(t, p.twice)
}
