package digicert_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/digicert"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/secretbox"
)

const lifetime = 90 * 24 * time.Hour

// ca is a simulated CA with what it takes to reach it.
type ca struct {
	sim     *casimulator.Simulator
	at      casimulator.Addresses
	control *http.Client
}

func newCA(t testing.TB, scenario casimulator.Scenario) *ca {
	t.Helper()
	sim, err := casimulator.New(casimulator.Config{Dir: t.TempDir(), Scenario: scenario})
	require.NoError(t, err)
	at, err := sim.Start(t.Context(), casimulator.Listen{Address: "127.0.0.1:0", ControlAddress: "127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sim.Close()) })
	return &ca{sim: sim, at: at, control: &http.Client{Timeout: time.Minute}}
}

func (c *ca) settings() map[string]any {
	return map[string]any{
		"base_url": c.at.URL(casimulator.DigiCert) + "/services/v2", "ca_file": c.sim.CAFile(), "product_name_id": "ssl_basic",
		"organization_id": c.sim.Credentials().DigiCertOrganization, "skip_approval": true, "timeout_seconds": 10,
	}
}

// issuer makes an issuer; change edits its settings.
func (c *ca) issuer(t testing.TB, change func(map[string]any)) *digicert.Issuer {
	t.Helper()
	return c.issuerWithKey(t, c.sim.Credentials().DigiCertAPIKey, change)
}

func (c *ca) issuerWithKey(t testing.TB, key string, change func(map[string]any)) *digicert.Issuer {
	t.Helper()
	s := c.settings()
	if change != nil {
		change(s)
	}
	raw, err := json.Marshal(s)
	require.NoError(t, err)
	i, err := digicert.New(issuer.Config{Settings: raw, Secrets: map[string]secretbox.Secret{"api_key": secretbox.NewSecret(key)}}, issuer.Deps{})
	require.NoError(t, err)
	return i
}

// decide does something to all orders that wait, or to all their revocations.
func (c *ca) decide(t testing.TB, verb string) {
	t.Helper()
	for _, o := range c.sim.Orders() {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+c.at.Control+"/control/v1/orders/"+o.ID+"/"+verb, bytes.NewReader([]byte("{}")))
		require.NoError(t, err)
		resp, err := c.control.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Less(t, resp.StatusCode, 300, "%s order %s", verb, o.ID)
	}
}

func request(t testing.TB, id string) issuer.SubmitRequest {
	t.Helper()
	r := issuertest.NewRequest(t, id, issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, id+".example.com", "www."+id+".example.com"))
	r.Lifetime = lifetime
	return r
}

func submit(t testing.TB, i issuer.Issuer, r issuer.SubmitRequest) issuer.Submission {
	t.Helper()
	sub, err := i.Submit(t.Context(), r)
	require.NoError(t, err)
	return sub
}

// finish polls until an order has ended.
func finish(t testing.TB, i issuer.Issuer, sub issuer.Submission) issuer.Submission {
	t.Helper()
	for n := 0; sub.State == issuer.Pending; n++ {
		require.Less(t, n, 20, "still pending")
		var err error
		sub, err = i.Poll(t.Context(), sub.Ref)
		require.NoError(t, err)
	}
	return sub
}

// check holds what came against the request.
func check(t testing.TB, r issuer.SubmitRequest, sub issuer.Submission) certcheck.Chain {
	t.Helper()
	require.Equal(t, issuer.Issued, sub.State, sub.Detail)
	chain, err := certcheck.CheckIssued(slices.Concat(sub.CertificatePEM, sub.ChainPEM), certcheck.Issued{
		PublicKey: r.CSR.PublicKey, Names: r.Names, Now: time.Now(), NotAfter: r.RequestedAt.Add(r.Lifetime),
	})
	require.NoError(t, err)
	return chain
}

func find(t testing.TB, i *digicert.Issuer, r issuer.SubmitRequest) (issuer.Submission, bool) {
	t.Helper()
	sub, ok, err := i.FindOrder(t.Context(), findRequest(r))
	require.NoError(t, err)
	return sub, ok
}

func (c *ca) requireClean(t testing.TB) {
	t.Helper()
	require.Empty(t, c.sim.Violations())
}

func TestConformance(t *testing.T) {
	t.Parallel()
	issuertest.Run(t, issuertest.Suite{
		Type: digicert.Type(),
		New: func(t testing.TB) issuer.Issuer {
			c := newCA(t, casimulator.Scenario{})
			t.Cleanup(func() { c.requireClean(t) })
			return c.issuer(t, nil)
		},
		KeyAlgorithms: []certcheck.KeyAlgorithm{certcheck.ECDSAP256, certcheck.ECDSAP384, certcheck.RSA2048},
		DNSOnly:       true, Lifetime: lifetime, NoIdempotency: true,
		Hold: func(t testing.TB) issuer.Issuer {
			return newCA(t, casimulator.Scenario{}).issuer(t, func(s map[string]any) { s["skip_approval"] = false })
		},
		Wrong: func(t testing.TB) map[string]issuer.Issuer {
			c := newCA(t, casimulator.Scenario{})
			return map[string]issuer.Issuer{
				"api_key":         c.issuerWithKey(t, "wrong", nil),
				"organization_id": c.issuer(t, func(s map[string]any) { s["organization_id"] = 1 }),
				"product_name_id": c.issuer(t, func(s map[string]any) { s["product_name_id"] = "ssl_nothing" }),
				"base_url":        c.issuer(t, func(s map[string]any) { s["base_url"] = c.at.URL("nothing") }),
				"ca_file":         c.issuer(t, func(s map[string]any) { delete(s, "ca_file") }),
			}
		},
		Approval: func(t testing.TB) (issuer.Issuer, func(bool)) {
			c := newCA(t, casimulator.Scenario{})
			i := c.issuer(t, func(s map[string]any) { s["skip_approval"] = false })
			return approving{Issuer: i, t: t, c: c}, func(approve bool) {
				verb := "reject"
				if approve {
					verb = "approve"
				}
				c.decide(t, verb)
			}
		},
	})
}

// approving is an issuer whose orders an administrator approves at once.
type approving struct {
	*digicert.Issuer
	t testing.TB
	c *ca
}

func (a approving) Poll(ctx context.Context, ref issuer.Ref) (issuer.Submission, error) {
	before, err := a.Issuer.Poll(ctx, ref)
	if err != nil || before.State != issuer.Pending {
		return before, err
	}
	a.c.decide(a.t, "approve")
	return before, nil
}

func findRequest(r issuer.SubmitRequest) issuer.FindRequest {
	return issuer.FindRequest{
		OrderID: r.OrderID, CSRSHA256: sha256.Sum256(r.CSR.Raw), Names: r.Names, Since: r.RequestedAt.Add(-time.Hour),
		PublicKey: r.CSR.PublicKey, Previous: r.Previous,
	}
}

func TestOrderCarriesWhatTheSettingsSay(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	i := c.issuer(t, nil)
	r := request(t, "carries")
	chain := check(t, r, finish(t, i, submit(t, i, r)))
	require.Len(t, chain.Intermediates, 1)
	orders := c.sim.Orders()
	require.Len(t, orders, 1)
	require.Equal(t, r.OrderID, orders[0].Reference)
	require.Equal(t, fmt.Sprintf("%x", sha256.Sum256(r.CSR.Raw)), orders[0].CSRSHA256)
	require.ElementsMatch(t, r.Names.DNSNames, orders[0].DNSNames)
	c.requireClean(t)
}
