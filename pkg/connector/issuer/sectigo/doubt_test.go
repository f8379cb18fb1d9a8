package sectigo_test

import (
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
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

// renewal is an order that renews one that is issued.
func renewal(t testing.TB, i issuer.Issuer, id string) issuer.SubmitRequest {
	t.Helper()
	old := request(t, "old")
	first := finish(t, i, submit(t, i, old))
	r := request(t, "old")
	r.OrderID, r.Previous, r.PreviousCertificate = id, first.Ref, check(t, old, first).Leaf
	return r
}

func TestQuestionsThatAreRefusedAreAskedAgain(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	i := c.issuer(t, nil)
	r := request(t, "asked")
	ref := submit(t, i, r).Ref
	for _, code := range []string{"-1", "-2", "-65", "-129", "-195", "-9999"} {
		for _, operation := range []string{"status", "list", "profiles", "collect"} {
			c.sim.Set(casimulator.Fault{CA: casimulator.Sectigo, Operation: operation, Kind: casimulator.ClientError, Code: code})
			var err error
			switch operation {
			case "list":
				_, _, err = i.FindOrder(t.Context(), findRequest(r))
			case "profiles":
				_, err = c.issuer(t, nil).Submit(t.Context(), request(t, "profiles"))
			default:
				_, err = i.Poll(t.Context(), ref)
			}
			require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%s of %s: %v", code, operation, err)
		}
	}
	c.sim.Set(casimulator.Fault{CA: casimulator.Sectigo, Operation: "status", Kind: casimulator.ClientError, Status: 404, Code: "-1"})
	_, err := i.Poll(t.Context(), ref)
	p, ok := issuer.AsPermanent(err)
	require.True(t, ok)
	require.Equal(t, issuer.ReasonOrderNotFound, p.Reason)
}

func TestOrderOfACSRWithoutACommonNameIsFoundWhateverSCMMakesOfIt(t *testing.T) {
	t.Parallel()
	names := issuertest.Names(t, "guessed.example.com", "other.example.com")
	r := issuertest.NewRequest(t, "ord-guessed", issuertest.NewKey(t, certcheck.ECDSAP256), names)
	i := scripted(t, func(w http.ResponseWriter, req *http.Request) {
		row := `{"sslId":7,"commonName":"other.example.com","subjectAlternativeNames":["other.example.com","guessed.example.com"]`
		switch {
		case req.URL.Path == "/api/ssl/v1/7":
			write(w, row+`,"status":"Applied","comments":"ord-guessed"}`)
		case req.URL.Query().Get("subjectAlternativeName") == "guessed.example.com":
			w.Header().Set("X-Total-Count", "1")
			write(w, "["+row+"}]")
		default:
			w.Header().Set("X-Total-Count", "0")
			write(w, "[]")
		}
	})
	sub, ok := find(t, i, r)
	require.True(t, ok)
	require.Equal(t, "7", sub.Ref["ssl_id"])
}

func TestCSRWithAnotherCommonNameThanIsSearchedForIsRefused(t *testing.T) {
	t.Parallel()
	r := request(t, "named")
	r.Names.CommonName = r.Names.DNSNames[1]
	csr := *r.CSR
	csr.Subject.CommonName = r.Names.DNSNames[0]
	r.CSR = &csr
	_, err := newCA(t, casimulator.Scenario{}).issuer(t, nil).Submit(t.Context(), r)
	p, ok := issuer.AsPermanent(err)
	require.True(t, ok, "%v", err)
	require.Equal(t, "CSR_NAMES_DIFFER", p.Reason)
}

func TestListThatCannotBeReadToItsEndIsNotAnAnswer(t *testing.T) {
	t.Parallel()
	rows := func(n int) string {
		all := make([]map[string]any, n)
		for k := range all {
			all[k] = map[string]any{"sslId": k + 1, "commonName": "x.example.com", "subjectAlternativeNames": []string{"x.example.com"}}
		}
		raw, err := json.Marshal(all)
		require.NoError(t, err)
		return string(raw)
	}
	for n, want := range map[int]issuer.Outcome{200: issuer.OutcomePermanent, 0: issuer.OutcomeRetry} {
		body := rows(n)
		i := scripted(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Total-Count", "1000000")
			write(w, body)
		})
		_, _, err := i.FindOrder(t.Context(), findRequest(request(t, "many")))
		require.Equal(t, want, issuer.OutcomeOf(err), "%v", err)
		if p, ok := issuer.AsPermanent(err); ok {
			require.Equal(t, "LOOKUP_TOO_LARGE", p.Reason)
		}
	}
}

func TestReplacementIsFoundWhateverTheSettingsSayToday(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	r := renewal(t, c.issuer(t, nil), "replacement")
	c.sim.Set(casimulator.Fault{CA: casimulator.Sectigo, Operation: "reissue", Kind: casimulator.DropAfter, Times: 1})
	_, err := c.issuer(t, nil).Submit(t.Context(), r)
	require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err), "%v", err)
	today := c.issuer(t, func(s map[string]any) { s["renewal"] = "new_order" })
	sub, ok := find(t, today, r)
	require.True(t, ok)
	check(t, r, finish(t, today, sub))
	require.Len(t, c.sim.Orders(), 1)
}

func TestReplacementThatIsNotThereIsWaitedForLonger(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	i := c.issuer(t, nil)
	r := renewal(t, i, "replacement")
	f := findRequest(r)
	f.Since = time.Now().Add(-time.Hour)
	_, _, err := i.FindOrder(t.Context(), f)
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%v", err)
	f.Since = time.Now().Add(-7 * time.Hour)
	_, there, err := i.FindOrder(t.Context(), f)
	require.NoError(t, err)
	require.False(t, there)
}

func TestRenewalInTheLastPartOfATermIsNotWaitedForLonger(t *testing.T) {
	t.Parallel()
	expires := time.Now().Add(20 * 24 * time.Hour).Format("01/02/2006")
	i := scripted(t, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/api/ssl/v1/7" {
			write(w, fmt.Sprintf(`{"sslId":7,"status":"Issued","serialNumber":"AB","term":90,"expires":%q}`, expires))
			return
		}
		w.Header().Set("X-Total-Count", "0")
		write(w, "[]")
	})
	r := request(t, "last")
	r.Previous = issuer.Ref{"ssl_id": "7", "serial_number": issuer.FormatSerial(big.NewInt(0xab))}
	f := findRequest(r)
	f.Since = time.Now().Add(-time.Hour)
	_, there, err := i.FindOrder(t.Context(), f)
	require.NoError(t, err)
	require.False(t, there)
}

func TestReplacementOfSomebodyElseIsToldFromOurs(t *testing.T) {
	t.Parallel()
	c := newCA(t, casimulator.Scenario{})
	i := c.issuer(t, nil)
	r := renewal(t, i, "ours")
	theirs := request(t, "old")
	theirs.OrderID, theirs.Previous, theirs.PreviousCertificate = "theirs", r.Previous, r.PreviousCertificate
	c.sim.Play(casimulator.Scenario{Approval: casimulator.Approval{Needed: true}})
	submit(t, i, theirs)
	found, ok := find(t, i, r) // under way, and nobody can tell whose it is
	require.True(t, ok)
	c.decide(t, "approve")
	sub := finish(t, i, found)
	require.Equal(t, issuer.Rejected, sub.State)
	require.Contains(t, sub.Detail, "somebody else's")
	f := findRequest(r)
	_, ok, err := i.FindOrder(t.Context(), f)
	require.NoError(t, err)
	require.False(t, ok, "its key is seen where the certificate is there")
}

// scripted makes an issuer whose CA answers what a test says.
func scripted(t testing.TB, answer http.HandlerFunc) *sectigo.Issuer {
	t.Helper()
	server := httptest.NewTLSServer(answer)
	t.Cleanup(server.Close)
	raw, err := json.Marshal(map[string]any{
		"base_url": server.URL + "/api", "ca_file": certificateFile(t, server), "customer_uri": "c", "login": "l", "organization_id": 1,
		"certificate_profile_id": 2, "requests_per_second": 500, "burst": 500,
	})
	require.NoError(t, err)
	i, err := sectigo.New(issuer.Config{Settings: raw, Secrets: map[string]secretbox.Secret{"password": secretbox.NewSecret("p")}}, issuer.Deps{})
	require.NoError(t, err)
	return i
}

func write(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(body))
}
