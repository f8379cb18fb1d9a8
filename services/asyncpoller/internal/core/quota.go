package core

import (
	"time"

	"github.com/certctl/certctl/pkg/connector/issuer/account"
)

// Quota is what an issuer's CA account allows.
type Quota struct {
	Account string
	Calls   int           // how many may begin now
	Again   time.Duration // when Calls is 0: when to ask next
	PerCall time.Duration // the mean time between two calls
}

// Quotas gives those of the issuers whose connectors show their accounts, by issuer.
func (p *Poller) Quotas() map[string]Quota {
	guards := p.connectors.guards()
	out := make(map[string]Quota, len(guards))
	for id, g := range guards {
		q := Quota{Account: g.Key(), PerCall: perCall(g)}
		q.Calls, q.Again = g.Allowance()
		out[id] = q
	}
	return out
}

// Breakers gives the states of the issuers' breakers.
func (p *Poller) Breakers() map[string]account.State {
	guards := p.connectors.guards()
	out := make(map[string]account.State, len(guards))
	for id, g := range guards {
		out[id] = g.State()
	}
	return out
}

func perCall(g *account.Guard) time.Duration {
	if rate := g.Rate(); rate > 0 {
		return time.Duration(float64(time.Second) / rate)
	}
	return 0
}

// paceReserve keeps a part of an account's rate free for orders that somebody waits for: slow polls take at most half of it.
const paceReserve = 2

// pace is the mean time between two slow polls of an order of an issuer: all that are pending at its account in turn, at half
// of what all replicas may call.
func (p *Poller) pace(issuerID string) time.Duration {
	guards := p.connectors.guards()
	g, ok := guards[issuerID]
	if !ok {
		return 0
	}
	pending := 0
	for _, line := range p.deps.Metrics.census() {
		if other, ok := guards[line.IssuerID]; ok && other == g {
			pending += line.Orders
		}
	}
	return time.Duration(pending) * perCall(g) * paceReserve / time.Duration(max(p.cfg.Replicas, 1))
}
