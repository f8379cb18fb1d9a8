package client

import (
	"fmt"
	"time"

	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
)

const (
	// benchLifetime is what publicly trusted certificates live at most from 2029-03-15 on (CA/Browser Forum, SC-081v3).
	benchLifetime = 47 * 24 * time.Hour
	// defaultFraction is when a policy that says nothing renews.
	defaultFraction = 2. / 3

	scalePage = "docs/operator/scale.md"
)

// benchPolicy is the policy that renews most often: with each of its certificates once in Hours.
type benchPolicy struct {
	ID    string  `json:"id"`
	Hours float64 `json:"renewal_period_hours"`
	Text  string  `json:"rule"`
}

// mostFrequent finds the automatic policy whose certificates of benchLifetime are renewed most often.
func mostFrequent(policies []*schedulerv1.Policy) benchPolicy {
	least := benchPolicy{Hours: (benchLifetime.Hours()) * defaultFraction, Text: "47 days at 2/3"}
	first := true
	for _, p := range policies {
		if p.Automatic != nil && !p.GetAutomatic() {
			continue
		}
		if of := periodOf(p); first || of.Hours < least.Hours {
			least, first = of, false
		}
	}
	return least
}

func periodOf(p *schedulerv1.Policy) benchPolicy {
	life := benchLifetime.Hours()
	before := p.GetRenewBefore().AsDuration().Hours()
	switch {
	case p.GetRenewBefore() != nil && before < life:
		return benchPolicy{p.GetId(), life - before, fmt.Sprintf("47 days less the %.4g before the end", before/24)}
	case p.GetRenewBefore() == nil && p.RenewAtFraction != nil:
		return benchPolicy{p.GetId(), life * p.GetRenewAtFraction(), fmt.Sprintf("47 days at %.2g", p.GetRenewAtFraction())}
	default:
		return benchPolicy{p.GetId(), life * defaultFraction, "47 days at 2/3"}
	}
}

// conclude says what the figures come to.
func (r *benchReport) conclude(o benchOptions) {
	r.Headroom = []benchHeadroom{r.readHeadroom(), r.renewalHeadroom(), r.needHeadroom()}
	r.Headroom = append(r.Headroom, r.certificateHeadroom()...)
	r.Headroom = append(r.Headroom, r.listHeadroom(), r.agentHeadroom())
	r.Bottleneck = r.bottleneck(o)
	if r.issued() {
		r.note("what bounds the issuance is not seen from outside: see CPU and connections of issuance, renewalscheduler and Postgres meanwhile (%s)", scalePage)
	}
	if r.Issuance != nil && r.Issuance.Refused > 0 {
		r.note("the rate limit of the API key refused %d calls while certificates were issued: the issuance is measured too low", r.Issuance.Refused)
	}
}

func (r *benchReport) readHeadroom() benchHeadroom {
	h := benchHeadroom{What: "API requests a second", How: howMeasured}
	kept := r.kept()
	if kept == nil {
		h.How, h.From = howNot, "no rate was kept"
		return h
	}
	h.Value, h.From = kept.Rate, fmt.Sprintf("kept for %.3g s", kept.Seconds)
	h.AtLeast = kept == &r.Steps[len(r.Steps)-1]
	return h
}

func (r *benchReport) renewalHeadroom() benchHeadroom {
	h := benchHeadroom{What: "renewals an hour", How: howNot, From: "no renewal has been done yet; use --write"}
	switch {
	case r.issued():
		h.How, h.Value = howDerived, r.Issuance.PerSecond*3600
		h.AtLeast = r.Issuance.Refused > 0
		h.From = fmt.Sprintf("3600 x %.3g issued a second by %s (measured), CSR to version stored; agents and deployment are not in it", r.Issuance.PerSecond, r.Issuance.Issuer)
	case r.History != nil:
		h.How, h.Value, h.AtLeast = howMeasured, float64(r.History.MostInAnHour), true
		h.From = fmt.Sprintf("the most in one hour of the last %d renewals; what it could do: use --write", r.History.Renewals)
	}
	return h
}

// issued tells whether the rate of issuance was measured.
func (r *benchReport) issued() bool { return r.Issuance != nil && r.Issuance.PerSecond > 0 }

// needHeadroom is how many renewals the certificates need that there are.
func (r *benchReport) needHeadroom() benchHeadroom {
	active := r.Inventory.Certificates["ACTIVE"]
	return benchHeadroom{What: "renewals an hour needed now", Value: float64(active) / r.Policy.Hours, How: howDerived,
		From: fmt.Sprintf("%d active certificates / %.4g h (%s), if they live 47 days", active, r.Policy.Hours, r.Policy.Text)}
}

// certificateHeadroom is how many certificates the renewals are enough for: when they are spread evenly, and when all have to be
// replaced at once, as after a CA has revoked them (within 24 hours: CA/Browser Forum, Baseline Requirements, 4.9.1.1).
func (r *benchReport) certificateHeadroom() []benchHeadroom {
	spread := benchHeadroom{What: "certificates, by renewals", How: howNot, From: "needs the renewals an hour; use --write"}
	replaced := benchHeadroom{What: "certificates, all replaced in 24 h", How: howNot, From: spread.From}
	if r.issued() {
		hourly, least := r.Issuance.PerSecond*3600, r.Issuance.Refused > 0
		spread.How, spread.Value, spread.AtLeast = howDerived, hourly*r.Policy.Hours, least
		spread.From = fmt.Sprintf("renewals an hour x %.4g h (%s), evenly spread and at full use", r.Policy.Hours, r.Policy.Text)
		replaced.How, replaced.Value, replaced.AtLeast, replaced.From = howDerived, hourly*24, least, "renewals an hour x 24 h"
	}
	return []benchHeadroom{spread, replaced}
}

// listHeadroom says with how many certificates lists have been fast. That they stay so is not seen from one size.
func (r *benchReport) listHeadroom() benchHeadroom {
	h := benchHeadroom{What: "certificates, by lists", How: howNot, From: "no rate was kept"}
	kept := r.kept()
	if n := total(r.Inventory.Certificates); kept != nil && n > 0 {
		h.How, h.Value, h.AtLeast = howMeasured, float64(n), true
		h.From = fmt.Sprintf("what there are; more are not measured from outside: see %s", scalePage)
	} else if kept != nil {
		h.From = "there are none"
	}
	return h
}

func (r *benchReport) agentHeadroom() benchHeadroom {
	return benchHeadroom{What: "agents", How: howNot, From: fmt.Sprintf("not measured from outside: see %s; there are %d", scalePage, total(r.Inventory.Agents))}
}

// The kinds of bottlenecks.
const (
	bottleneckNone     = "none_found"
	bottleneckKey      = "rate_limit_api_key"
	bottleneckAddress  = "rate_limit_address"
	bottleneckFront    = "rate_limit_in_front"
	bottleneckNetwork  = "network_or_gateway"
	bottleneckServices = "services"
	bottleneckErrors   = "errors"
)

// bottleneck names what ended the climb.
func (r *benchReport) bottleneck(o benchOptions) benchBottleneck {
	if len(r.Steps) == 0 {
		return benchBottleneck{bottleneckNone, "nothing was measured", ""}
	}
	last := r.Steps[len(r.Steps)-1]
	switch last.Verdict {
	case verdictLimited:
		return limited(last)
	case verdictSlow:
		return r.slow(last, o.p95)
	case verdictFailing:
		return benchBottleneck{bottleneckErrors, fmt.Sprintf("requests fail at %g/s: %s", last.Rate, last.Error), "see /ready, and the logs of the service that it names"}
	case verdictInterrupted:
		return benchBottleneck{bottleneckNone, "none until it was interrupted", ""}
	default:
		return benchBottleneck{bottleneckNone, fmt.Sprintf("none up to %g/s, the most that was asked for", last.Rate), "ask for more with --max-rate"}
	}
}

func limited(s benchStep) benchBottleneck {
	rate := ""
	if s.Limit.PerSecond > 0 {
		rate = fmt.Sprintf(", which lets in about %.0f/s", s.Limit.PerSecond)
	}
	seen := "; it refuses with 429, and is no sign of a slow server"
	switch s.Limit.Of {
	case limitAddress:
		return benchBottleneck{bottleneckAddress, "the rate limit of your address" + rate + " (CERTCTL_RATE_LIMIT_PER_ADDRESS)" + seen, "raise it when many clients or agents come from one address"}
	case limitFront:
		return benchBottleneck{bottleneckFront, "the rate limit of something in front of certctl" + rate + seen, "ask who runs the proxy or the load balancer"}
	default:
		return benchBottleneck{bottleneckKey, "the rate limit of your API key" + rate + " (CERTCTL_RATE_LIMIT_PER_CALLER)" + seen,
			"each key has its own: give each client one. To see further, raise the limit for the time of the measurement"}
	}
}

// slow tells network and gateway from the services behind: GET /health, asked at the same time, takes only the former.
func (r *benchReport) slow(s benchStep, bound time.Duration) benchBottleneck {
	at := fmt.Sprintf("at %g/s the 95th percentile is %s, above %s", s.Rate, milliseconds(s.Latency.P95), bound)
	if s.Health.P95 > bound/2 {
		return benchBottleneck{bottleneckNetwork, fmt.Sprintf("the network or the gateway: %s, and GET /health, which asks no service, has %s", at, milliseconds(s.Health.P95)),
			"run it from near the server to tell them apart; see the CPU of the gateway"}
	}
	slowest := s.Reads[0]
	for _, k := range s.Reads {
		if k.Latency.P95 > slowest.Latency.P95 {
			slowest = k
		}
	}
	return benchBottleneck{bottleneckServices, fmt.Sprintf("the services or the database: %s; the slowest is %q with %s, while GET /health has %s",
		at, slowest.Name, milliseconds(slowest.Latency.P95), milliseconds(s.Health.P95)),
		"see CPU and connections of services and Postgres: " + scalePage}
}
