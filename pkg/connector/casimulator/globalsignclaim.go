package casimulator

import (
	"crypto/rand"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// globalSignClaimLife is how long the customer has to show that he controls a domain, and how long that holds.
const (
	globalSignAssertTime = 30 * 24 * time.Hour
	globalSignClaimLife  = 365 * 24 * time.Hour
)

// globalSignClaim is a domain that the customer says is his. Claims are kept in memory only, and no order depends on them:
// the CA of the simulator trusts every name.
type globalSignClaim struct {
	ID        string `json:"id"`
	Status    string `json:"status"`
	Domain    string `json:"domain"`
	CreatedAt int64  `json:"created_at"`
	ExpiresAt int64  `json:"expires_at"`
	AssertBy  int64  `json:"assert_by"`

	Log []globalSignClaimEvent `json:"log"`

	token string
}

type globalSignClaimEvent struct {
	Status      string `json:"status"`
	Description string `json:"description"`
	Timestamp   int64  `json:"timestamp"`
}

func (a *globalsignAPI) claimOperations(op func(name, method, path string, h func(*call) reply) operation) []operation {
	return []operation{
		op(opOther, http.MethodGet, "/claims/domains", a.listClaims),
		op(opOther, http.MethodPost, "/claims/domains/{claim}", a.claim),
		op(opOther, http.MethodGet, "/claims/domains/{claim}", a.getClaim),
		op(opOther, http.MethodDelete, "/claims/domains/{claim}", a.deleteClaim),
		op(opOther, http.MethodPost, "/claims/domains/{claim}/reassert", a.reassertClaim),
		op(opOther, http.MethodPost, "/claims/domains/{claim}/dns", a.assertClaim),
		op(opOther, http.MethodPost, "/claims/domains/{claim}/http", a.assertClaim),
		op(opOther, http.MethodPost, "/claims/domains/{claim}/email", a.assertClaim),
	}
}

// claim makes one. The path names the domain, the answer what has to be published there.
func (a *globalsignAPI) claim(c *call) reply {
	domain := strings.TrimSuffix(c.path("claim"), ".")
	if domain == "" || strings.ContainsAny(domain, " /:@") {
		return c.refuse(http.StatusUnprocessableEntity, "%q is not a domain", domain)
	}
	now := a.sim.said(c.now)
	claim := &globalSignClaim{
		ID: strings.ToUpper(rand.Text()), Status: "PENDING", Domain: domain + ".", CreatedAt: now.Unix(),
		AssertBy: now.Add(globalSignAssertTime).Unix(), Log: []globalSignClaimEvent{}, token: rand.Text(),
	}
	a.mu.Lock()
	a.claims[claim.ID] = claim
	a.mu.Unlock()
	r := claim.assertion(http.StatusCreated)
	r.header.Set("Location", "https://"+c.request.Host+"/"+GlobalSign+"/v2/claims/domains/"+claim.ID)
	return r
}

func (g globalSignClaim) assertion(status int) reply {
	return globalSignReply(status, struct {
		Token    string `json:"token"`
		AssertBy int64  `json:"assert_by"`
		ID       string `json:"id"`
	}{g.token, g.AssertBy, g.ID})
}

// withClaim gives a handler the claim of the path, as a copy that it may change.
func (a *globalsignAPI) withClaim(c *call, h func(*globalSignClaim) reply) reply {
	a.mu.Lock()
	defer a.mu.Unlock()
	claim, ok := a.claims[c.path("claim")]
	if !ok {
		return a.problem(http.StatusNotFound, "there is no such domain claim")
	}
	return h(claim)
}

func (a *globalsignAPI) getClaim(c *call) reply {
	return a.withClaim(c, func(g *globalSignClaim) reply { return globalSignReply(http.StatusOK, *g) })
}

func (a *globalsignAPI) deleteClaim(c *call) reply {
	return a.withClaim(c, func(g *globalSignClaim) reply {
		delete(a.claims, g.ID)
		return globalSignReply(http.StatusNoContent, nil)
	})
}

func (a *globalsignAPI) reassertClaim(c *call) reply {
	return a.withClaim(c, func(g *globalSignClaim) reply {
		g.token, g.Status = rand.Text(), "PENDING"
		g.AssertBy = a.sim.said(c.now).Add(globalSignAssertTime).Unix()
		return g.assertion(http.StatusOK)
	})
}

// assertClaim asks the CA to look whether the token is published. The first time it does not find it, the second time it
// does, as it is with DNS.
func (a *globalsignAPI) assertClaim(c *call) reply {
	return a.withClaim(c, func(g *globalSignClaim) reply {
		now := a.sim.said(c.now)
		if len(g.Log) == 0 {
			g.Log = append(g.Log, globalSignClaimEvent{"ERROR", "the token was not found", now.Unix()})
			return globalSignReply(http.StatusCreated, nil)
		}
		g.Status, g.ExpiresAt = "VERIFIED", now.Add(globalSignClaimLife).Unix()
		g.Log = append(g.Log, globalSignClaimEvent{"SUCCESS", "the domain is verified", now.Unix()})
		return globalSignReply(http.StatusNoContent, nil)
	})
}

// listClaims lists those of one status; without one, those that are verified.
func (a *globalsignAPI) listClaims(c *call) reply {
	status := c.request.URL.Query().Get("status")
	if status == "" {
		status = "VERIFIED"
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	found := []globalSignClaim{}
	for _, g := range a.claims {
		if g.Status == status {
			found = append(found, *g)
		}
	}
	slices.SortFunc(found, func(x, y globalSignClaim) int { return strings.Compare(x.Domain, y.Domain) })
	r := globalSignReply(http.StatusOK, found)
	r.header.Set("Total-Count", strconv.Itoa(len(found)))
	return r
}
