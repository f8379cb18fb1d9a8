package sectigo_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/sectigo"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/secretbox"
)

const lifetime = 90 * 24 * time.Hour

// ca is a simulated CA with what it takes to reach it.
type ca struct {
	sim *casimulator.Simulator
	at  casimulator.Addresses
}

func newCA(t testing.TB, scenario casimulator.Scenario) *ca {
	t.Helper()
	sim, err := casimulator.New(casimulator.Config{Dir: t.TempDir(), Scenario: scenario})
	require.NoError(t, err)
	at, err := sim.Start(t.Context(), casimulator.Listen{Address: "127.0.0.1:0", ControlAddress: "127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sim.Close()) })
	return &ca{sim: sim, at: at}
}

func (c *ca) settings() map[string]any {
	known := c.sim.Credentials()
	return map[string]any{
		"base_url": c.at.URL(casimulator.Sectigo) + "/api", "ca_file": c.sim.CAFile(), "login": known.SectigoLogin,
		"customer_uri": known.SectigoCustomerURI, "organization_id": known.SectigoOrganization,
		"certificate_profile_id": known.SectigoCertType, "timeout_seconds": 10, "requests_per_second": 500, "burst": 500,
	}
}

// issuer makes an issuer; change edits its settings, in which "password" is the secret.
func (c *ca) issuer(t testing.TB, change func(map[string]any)) *sectigo.Issuer {
	t.Helper()
	s := c.settings()
	s["password"] = c.sim.Credentials().SectigoPassword
	if change != nil {
		change(s)
	}
	raw, err := json.Marshal(s)
	require.NoError(t, err)
	public, secrets, err := sectigo.Type().SplitSecrets(raw)
	require.NoError(t, err)
	i, err := sectigo.New(issuer.Config{Settings: public, Secrets: secrets}, issuer.Deps{})
	require.NoError(t, err)
	return i
}

// decide does something to all orders that wait.
func (c *ca) decide(t testing.TB, verb string) {
	t.Helper()
	client := &http.Client{Timeout: time.Minute}
	for _, o := range c.sim.Orders() {
		url := "http://" + c.at.Control + "/control/v1/orders/" + o.ID + "/" + verb
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader("{}"))
		require.NoError(t, err)
		resp, err := client.Do(req)
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

// checked holds what came against the request.
func checked(r issuer.SubmitRequest, sub issuer.Submission) (certcheck.Chain, error) {
	return certcheck.CheckIssued(slices.Concat(sub.CertificatePEM, sub.ChainPEM), certcheck.Issued{
		PublicKey: r.CSR.PublicKey, Names: r.Names, Now: time.Now(), NotAfter: r.RequestedAt.Add(r.Lifetime + 24*time.Hour),
	})
}

func check(t testing.TB, r issuer.SubmitRequest, sub issuer.Submission) certcheck.Chain {
	t.Helper()
	require.Equal(t, issuer.Issued, sub.State, sub.Detail)
	chain, err := checked(r, sub)
	require.NoError(t, err)
	return chain
}

func findRequest(r issuer.SubmitRequest) issuer.FindRequest {
	return issuer.FindRequest{
		OrderID: r.OrderID, CSRSHA256: sha256.Sum256(r.CSR.Raw), Names: r.Names, Since: r.RequestedAt.Add(-time.Hour),
		PublicKey: r.CSR.PublicKey, Previous: r.Previous,
	}
}

func find(t testing.TB, i *sectigo.Issuer, r issuer.SubmitRequest) (issuer.Submission, bool) {
	t.Helper()
	sub, ok, err := i.FindOrder(t.Context(), findRequest(r))
	require.NoError(t, err)
	return sub, ok
}

func TestConformance(t *testing.T) {
	t.Parallel()
	issuertest.Run(t, issuertest.Suite{
		Type: sectigo.Type(),
		New: func(t testing.TB) issuer.Issuer {
			c := newCA(t, casimulator.Scenario{})
			t.Cleanup(func() { require.Empty(t, c.sim.Violations()) })
			return c.issuer(t, nil)
		},
		KeyAlgorithms: []certcheck.KeyAlgorithm{certcheck.ECDSAP256, certcheck.ECDSAP384, certcheck.RSA2048},
		DNSOnly:       true, Lifetime: lifetime, WholeDays: true, NoIdempotency: true,
		Hold: func(t testing.TB) issuer.Issuer {
			return newCA(t, casimulator.Scenario{Approval: casimulator.Approval{Needed: true}}).issuer(t, nil)
		},
		Wrong: func(t testing.TB) map[string]issuer.Issuer {
			c := newCA(t, casimulator.Scenario{})
			change := func(field string, value any) issuer.Issuer {
				return c.issuer(t, func(s map[string]any) { s[field] = value })
			}
			return map[string]issuer.Issuer{
				"password":               change("password", "wrong"),
				"certificate_profile_id": change("certificate_profile_id", 1),
				"term":                   change("term", 31),
				"base_url":               change("base_url", c.at.URL("nothing")),
				"ca_file":                change("ca_file", ""),
			}
		},
	})
}

func TestLoginByClientCertificate(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	i := c.issuer(t, func(s map[string]any) {
		delete(s, "password")
		s["client_cert_file"], s["client_key_file"] = c.sim.ClientCertificate()
	})
	require.NoError(t, i.Test(t.Context()))
	r := request(t, "mtls")
	check(t, r, finish(t, i, submit(t, i, r)))
	require.NoError(t, c.sim.RotateClientCertificate())
	r = request(t, "rotated")
	check(t, r, finish(t, i, submit(t, i, r)))
	require.Empty(t, c.sim.Violations())
}

func TestPrivateAddressHasNoPassword(t *testing.T) {
	t.Parallel()
	for _, secrets := range []map[string]secretbox.Secret{nil, {"password": secretbox.NewSecret("")}} {
		_, err := sectigo.New(issuer.Config{Settings: []byte(`{"customer_uri":"c","login":"l","organization_id":1,"certificate_profile_id":2}`), Secrets: secrets}, issuer.Deps{})
		require.ErrorContains(t, err, "client_cert_file")
	}
}

func TestEachFormatOfBundlesIsRead(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	for _, format := range []string{"x509", "x509R", "pem", "pemia", "base64", "bin"} {
		i := c.issuer(t, func(s map[string]any) { s["collect_format"] = format })
		r := request(t, "format-"+format)
		sub := finish(t, i, submit(t, i, r))
		chain := check(t, r, sub)
		leaf, err := certcheck.ParseBundle(sub.CertificatePEM)
		require.NoError(t, err)
		require.Len(t, leaf, 1)
		require.True(t, leaf[0].Equal(chain.Leaf))
		if format != "pemia" {
			require.NotEmpty(t, chain.Intermediates, format)
		}
	}
}

func TestReplacementKeepsTheSSLIDAndIsNotTheOldCertificate(t *testing.T) {
	t.Parallel()
	for _, sameKey := range []bool{false, true} {
		c := newCA(t, casimulator.Scenario{})
		i := c.issuer(t, nil)
		old := request(t, "old")
		first := finish(t, i, submit(t, i, old))
		r := request(t, "old")
		r.OrderID = "replacement"
		if sameKey {
			r.CSR = old.CSR
		}
		r.Previous, r.PreviousCertificate = first.Ref, check(t, old, first).Leaf
		c.sim.Play(casimulator.Scenario{Approval: casimulator.Approval{Needed: true}})
		sub := submit(t, i, r)
		require.Equal(t, first.Ref["ssl_id"], sub.Ref["ssl_id"])
		for range 3 {
			again, err := i.Poll(t.Context(), sub.Ref)
			require.NoError(t, err)
			require.Equal(t, issuer.Pending, again.State, "the old certificate is not the new one")
		}
		found, ok := find(t, i, r)
		require.True(t, ok)
		adopted := maps.Clone(sub.Ref)
		adopted["adopted"] = "true" // nobody knows yet whose it is
		require.Equal(t, adopted, found.Ref)
		c.decide(t, "approve")
		chain := check(t, r, finish(t, i, sub))
		require.NotEqual(t, r.PreviousCertificate.SerialNumber, chain.Leaf.SerialNumber)
		found, ok = find(t, i, r)
		require.True(t, ok)
		require.True(t, check(t, r, finish(t, i, found)).Leaf.Equal(chain.Leaf))
		orders := c.sim.Orders()
		require.Len(t, orders, 1)
		require.Equal(t, 1, orders[0].Billed)
	}
}

func TestReplacedCertificateIsRevokedAndNotTheNewOne(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	i := c.issuer(t, nil)
	old := request(t, "old")
	first := finish(t, i, submit(t, i, old))
	r := request(t, "old")
	r.OrderID, r.Previous, r.PreviousCertificate = "replacement", first.Ref, check(t, old, first).Leaf
	second := check(t, r, finish(t, i, submit(t, i, r)))
	revocation, err := i.Revoke(t.Context(), issuer.RevokeRequest{Ref: first.Ref, Certificate: r.PreviousCertificate, Reason: issuer.Superseded})
	require.NoError(t, err)
	require.Equal(t, issuer.Revoked, revocation.State)
	revoked := c.sim.Orders()[0].Revoked
	require.Len(t, revoked, 1)
	require.NotEqual(t, strings.ToUpper(second.Leaf.SerialNumber.Text(16)), revoked[0])
}

func TestRenewalNearTheEndIsANewOrder(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	i := c.issuer(t, nil)
	old := request(t, "old")
	old.Lifetime = 30 * 24 * time.Hour // the term is 30 days, of which a third of what is asked for next is left
	first := finish(t, i, submit(t, i, old))
	r := request(t, "old")
	r.OrderID, r.Previous, r.PreviousCertificate = "renewal", first.Ref, check(t, old, first).Leaf
	sub := submit(t, i, r)
	require.NotEqual(t, first.Ref["ssl_id"], sub.Ref["ssl_id"])
	check(t, r, finish(t, i, sub))
	require.Len(t, c.sim.Orders(), 2)
}

func TestTermIsTheLongestThatIsNotTooLong(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	i := c.issuer(t, nil)
	for id, days := range map[string][2]int{"short": {45, 30}, "exact": {90, 90}, "long": {1000, 199}} {
		r := request(t, id)
		r.Lifetime = time.Duration(days[0]) * 24 * time.Hour
		leaf := check(t, r, finish(t, i, submit(t, i, r))).Leaf
		require.InDelta(t, days[1], leaf.NotAfter.Sub(leaf.NotBefore).Hours()/24, 1)
	}
	r := request(t, "none")
	r.Lifetime = 24 * time.Hour
	_, err := i.Submit(t.Context(), r)
	p, ok := issuer.AsPermanent(err)
	require.True(t, ok)
	require.Equal(t, "LIFETIME_TOO_SHORT", p.Reason)
}

func TestRequestThatWasRefusedByAHumanHasEnded(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{Approval: casimulator.Approval{Needed: true}})
	i := c.issuer(t, nil)
	sub := submit(t, i, request(t, "refused"))
	c.decide(t, "reject")
	sub, err := i.Poll(t.Context(), sub.Ref)
	require.NoError(t, err)
	require.Equal(t, issuer.Rejected, sub.State)
	require.Contains(t, sub.Detail, "declined")
}

func TestListGoesFromTheNewestToTheOldestOverAllPages(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	i := c.issuer(t, nil)
	const orders = 60
	for n := range orders {
		submit(t, i, request(t, "listed-"+string(rune('a'+n/26))+string(rune('a'+n%26))))
	}
	seen := map[string]bool{}
	r := issuer.ListRequest{Since: time.Now()}
	for pages := 1; ; pages++ {
		listing, err := i.ListOrders(t.Context(), r)
		require.NoError(t, err)
		for _, o := range listing.Orders {
			require.False(t, seen[o.OrderID])
			seen[o.OrderID] = true
		}
		if pages == 1 {
			require.True(t, seen["listed-ch"], "the newest comes first")
		}
		if r.Page = listing.Next; r.Page == "" {
			require.Equal(t, 3, pages)
			break
		}
	}
	require.Len(t, seen, orders)
}

func TestSubmissionThatEndsWithItsContextMayHaveBeenTaken(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`[{"id":2,"terms":[90]}]`))
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		cancel() // the order is there, and nobody waits for the reply
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	file := certificateFile(t, server)
	raw, err := json.Marshal(map[string]any{
		"base_url": server.URL + "/api", "ca_file": file, "customer_uri": "c", "login": "l", "organization_id": 1, "certificate_profile_id": 2,
	})
	require.NoError(t, err)
	i, err := sectigo.New(issuer.Config{Settings: raw, Secrets: map[string]secretbox.Secret{"password": secretbox.NewSecret("p")}}, issuer.Deps{})
	require.NoError(t, err)
	_, err = i.Submit(ctx, request(t, "left"))
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err))
}

// certificateFile writes the certificate of a server where ca_file wants it.
func certificateFile(t testing.TB, server *httptest.Server) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	return file
}
