package client_test

import (
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
)

// measured is what the tests look at of a report.
type measured struct {
	Command    string
	Steps      []measuredStep
	Bottleneck struct{ Kind, Text, Advice string } `json:"first_bottleneck"`
	Headroom   []struct {
		What, How, From string
		Value           float64
	}
	Issuance *struct {
		Name                               string
		Created, Issued, Revoked, Archived int
		PerSecond                          float64 `json:"per_second"`
	}
	Policy  struct{ ID string }
	Network struct {
		Health map[string]float64 `json:"health_ms"`
	}
	Notes       []string
	Interrupted bool
}

type measuredStep struct {
	Rate                        float64
	Sent, Done, Refused, Failed int
	Verdict, Error              string
	Latency                     map[string]float64 `json:"latency_ms"`
	Limit                       struct {
		Of        string
		PerSecond float64 `json:"per_second"`
	}
	Reads []struct {
		Name        string
		Done        int
		NotModified int `json:"not_modified"`
	}
}

func report(t *testing.T, r result) measured {
	t.Helper()
	var m measured
	require.NoError(t, json.Unmarshal([]byte(r.out), &m), "%s\n%s", r.out, r.err)
	return m
}

// pages are the paths that the fake answers over REST.
type pages map[string]string

// benched is a gateway with what bench asks for; tests may answer in its place.
func benched(t *testing.T, pages pages, instead func(w http.ResponseWriter, r *http.Request) (done bool)) *gateway {
	t.Helper()
	g := newGateway(t)
	answers := map[string]string{
		"/health": `{}`, "/ready": `{"services":{"inventory":{"ready":true}}}`, "/api/v1/auth/check": `{"name":"ops","role":"admin"}`,
		"/api/v1/certificates": `{"certificates":[],"next_page_token":""}`, "/api/v1/jobs": `{}`, "/api/v1/stats/summary": `{}`,
	}
	for path, text := range pages {
		answers[path] = text
	}
	rest := g.http.Config.Handler
	g.http.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := answers[r.URL.Path]
		switch {
		case !ok || strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
			rest.ServeHTTP(w, r)
		case instead != nil && instead(w, r):
		case r.Header.Get("If-None-Match") == `"same"`:
			w.WriteHeader(http.StatusNotModified)
		default:
			w.Header().Set("ETag", `"same"`)
			_, _ = w.Write([]byte(text))
		}
	})
	answer(g, inventoryv1.StatsService_GetSummary_FullMethodName, (*inventoryv1.GetSummaryRequest)(nil),
		&inventoryv1.GetSummaryResponse{Certificates: map[string]int32{"ACTIVE": 2}, Agents: map[string]int32{"ONLINE": 1}})
	answer(g, schedulerv1.PolicyService_ListPolicies_FullMethodName, (*schedulerv1.ListPoliciesRequest)(nil),
		&schedulerv1.ListPoliciesResponse{Policies: []*schedulerv1.Policy{{Id: "pol-default"}}})
	answer(g, schedulerv1.JobService_ListJobs_FullMethodName, (*schedulerv1.ListJobsRequest)(nil), &schedulerv1.ListJobsResponse{})
	return g
}

func TestBenchReadsAndSaysWhatItHasNotMeasured(t *testing.T) {
	t.Parallel()
	g := benched(t, nil, nil)

	r := g.ok(t, "bench", "--max-rate", "20", "--duration", "3s", "--p95", "10s", "-o", "json")

	m := report(t, r)
	require.Len(t, m.Steps, 3)
	last := m.Steps[2]
	require.Equal(t, "kept", last.Verdict)
	require.Equal(t, 20, last.Done)
	for _, kind := range last.Reads {
		require.NotContains(t, kind.Name, "by id", "there is none")
		require.NotZero(t, kind.Done, kind.Name)
		require.Equal(t, kind.Name == "certificates, unchanged", kind.NotModified > 0, kind.Name)
	}
	require.Equal(t, "none_found", m.Bottleneck.Kind)
	require.Contains(t, strings.Join(m.Notes, "\n"), "there are no certificates")
	require.Equal(t, "pol-default", m.Policy.ID)
	require.NotZero(t, m.Network.Health["p50"])
	require.Equal(t, "certctl bench --duration=3s --max-rate=20 --output=json --p95=10s", m.Command)
	for _, h := range m.Headroom {
		if h.What == "agents" || strings.HasPrefix(h.What, "renewals an hour") && h.What != "renewals an hour needed now" {
			require.Equal(t, "not measured", h.How, h.What)
		}
	}
	require.Contains(t, r.err, "5, 10, 20 requests a second, 1s each")
	require.Contains(t, r.err, "nothing is written")
	require.Empty(t, requests[*inventoryv1.CreateCertificateRequest](g, inventoryv1.CertificateService_CreateCertificate_FullMethodName))
}

func TestBenchGoesIntoTheListOfCertificates(t *testing.T) {
	t.Parallel()
	var later atomic.Int64
	g := benched(t, pages{"/api/v1/certificates/cert-a": `{}`, "/api/v1/certificates/cert-b": `{}`}, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/api/v1/certificates" {
			return false
		}
		text := `{"certificates":[{"id":"cert-a"}],"next_page_token":"more"}`
		if r.URL.Query().Get("page_token") == "more" {
			text = `{"certificates":[{"id":"cert-b"}]}`
			later.Add(1)
		}
		_, _ = w.Write([]byte(text))
		return true
	})

	r := g.ok(t, "bench", "--max-rate", "5", "--duration", "2s", "--p95", "10s")

	for _, part := range []string{
		"certificates, from row 2 on", "certificate by id", "READS AT", "GET /health", "of p50 ", "first bottleneck: none up to 5/s", "not measured from outside: see docs/operator/scale.md; there are 1",
		"2 active certificates / 752 h (47 days at 2/3)",
	} {
		require.Contains(t, r.out, part)
	}
	require.Greater(t, later.Load(), int64(1), "the later page is measured")
}

func TestBenchTellsTheRateLimitOfTheKeyFromASlowServer(t *testing.T) {
	t.Parallel()
	const limited = `{"code":8,"message":"too many requests; try again later","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"RATE_LIMITED","domain":"certctl"}]}`
	limit := rate.NewLimiter(12, 4)
	g := benched(t, nil, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/health" || limit.Allow() {
			return false
		}
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = w.Write([]byte(limited))
		return true
	})

	m := report(t, g.ok(t, "bench", "--max-rate", "80", "--duration", "20s", "--p95", "10s", "-o", "json"))

	last := m.Steps[len(m.Steps)-1]
	require.Equal(t, "refused", last.Verdict)
	require.NotZero(t, last.Refused)
	require.Equal(t, "api_key", last.Limit.Of)
	require.InDelta(t, 12, last.Limit.PerSecond, 4)
	require.Equal(t, "rate_limit_api_key", m.Bottleneck.Kind)
	require.LessOrEqual(t, last.Rate, 40.0, "it went no further")
}

func TestBenchSeesALimitThatIsNotCertctls(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	g := benched(t, nil, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/api/v1/jobs" || asked.Add(1) < 2 {
			return false
		}
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	m := report(t, g.ok(t, "bench", "--max-rate", "20", "--duration", "4s", "--p95", "10s", "-o", "json"))
	require.Equal(t, "rate_limit_in_front", m.Bottleneck.Kind)
}

func TestBenchStopsWhereAnswersAreTooLate(t *testing.T) {
	t.Parallel()
	g := benched(t, nil, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/api/v1/stats/summary" {
			timer := time.NewTimer(1500 * time.Millisecond)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-r.Context().Done():
			}
		}
		return false
	})
	m := report(t, g.ok(t, "bench", "--max-rate", "40", "--duration", "8s", "--p95", "700ms", "-o", "json"))
	require.Len(t, m.Steps, 1)
	require.Equal(t, "too slow", m.Steps[0].Verdict)
	require.Greater(t, m.Steps[0].Latency["p95"], 1400.)
	require.Contains(t, []string{"services", "network_or_gateway"}, m.Bottleneck.Kind, "on a busy machine GET /health is slow, too")
}

func TestBenchStopsAtErrors(t *testing.T) {
	t.Parallel()
	g := benched(t, nil, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/api/v1/jobs" {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"code":14,"message":"renewalscheduler is away"}`))
		return true
	})
	m := report(t, g.ok(t, "bench", "--max-rate", "40", "--duration", "10s", "--p95", "10s", "-o", "json"))
	last := m.Steps[len(m.Steps)-1]
	require.Equal(t, "failing", last.Verdict)
	require.Equal(t, 3, last.Failed, "then it has ended")
	require.Equal(t, "errors", m.Bottleneck.Kind)
	require.Contains(t, m.Bottleneck.Text, "renewalscheduler is away")
}

func TestAnInterruptedBenchShowsWhatItHas(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var asked atomic.Int64
	g := benched(t, nil, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/api/v1/jobs" && asked.Add(1) == 3 {
			interrupt()
		}
		return false
	})
	answer(g, issuancev1.IssuerService_GetIssuer_FullMethodName, (*issuancev1.GetIssuerRequest)(nil), &issuancev1.GetIssuerResponse{Issuer: &issuancev1.Issuer{Type: "local"}})
	r := program{environ: []string{"CERTCTL_DATA_DIR=" + g.dir}}.runContext(ctx, "bench", "--max-rate", "80", "--duration", "50s", "--p95", "10s", "-o", "json", "--write")
	require.Equal(t, 1, r.code)
	require.ErrorContains(t, r.failure, "interrupted; what was measured until then is shown")
	m := report(t, r)
	require.True(t, m.Interrupted)
	require.NotEmpty(t, m.Steps)
	require.Equal(t, "interrupted", m.Steps[len(m.Steps)-1].Verdict)
	require.Nil(t, m.Issuance, "nothing is begun after an interrupt")
}

func TestBenchDoesNotMeasureWhatItCannot(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pages pages
		args  []string
		code  int
		says  []string
	}{
		"not ready":  {pages{"/ready": `{"services":{"audit":{"ready":false,"message":"it is away"}}}`}, nil, 1, []string{"audit: it is away", "what is not ready cannot be measured"}},
		"a viewer":   {pages{"/api/v1/auth/check": `{"name":"vera","role":"viewer"}`}, []string{"--write"}, 1, []string{"vera's, whose role viewer cannot have certificates issued", "leave out --write"}},
		"rate":       {nil, []string{"--max-rate", "0"}, 2, []string{"--max-rate is between 1 and 5000"}},
		"rate NaN":   {nil, []string{"--max-rate", "NaN"}, 2, []string{"--max-rate is between 1 and 5000"}},
		"duration":   {nil, []string{"--duration", "5s"}, 2, []string{"there are 6 rates up to 160 a second"}},
		"p95":        {nil, []string{"--p95", "0s"}, 2, []string{"--p95 is more than 0"}},
		"connection": {nil, []string{"--connections", "65"}, 2, []string{"between 1 and 64"}},
		"many":       {nil, []string{"--write", "--certificates", "1001"}, 2, []string{"between 1 and 1000"}},
		"names":      {nil, []string{"-o", "name"}, 2, []string{"no names"}},
		"two URLs":   {nil, []string{"--url", "https://a", "--against", "https://b"}, 2, []string{"are the same"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := benched(t, c.pages, nil).run(t, append([]string{"bench"}, c.args...)...)
			require.Equal(t, c.code, r.code)
			require.Empty(t, r.out)
			for _, part := range c.says {
				require.ErrorContains(t, r.failure, part)
			}
		})
	}
}

func TestBenchSaysThatTheServerCannotBeReachedOrDoesNotKnowTheKey(t *testing.T) {
	t.Parallel()
	g := benched(t, nil, nil)
	other := program{environ: []string{"CERTCTL_API_KEY=another-key", "CERTCTL_CA=" + filepath.Join(g.dir, "ca.crt")}}
	r := other.run(t, "bench", "--against", g.url)
	require.Equal(t, 1, r.code)
	require.ErrorContains(t, r.failure, "the API key was from CERTCTL_API_KEY; is it one of CERTCTL_AUTH_SECRET of the server?")
	g.http.Close()
	r = g.run(t, "bench")
	require.Equal(t, 1, r.code)
	require.ErrorContains(t, r.failure, g.url+" cannot be reached")
}

func TestBenchHasCertificatesIssuedAndCleansUp(t *testing.T) {
	t.Parallel()
	dir := serveAll(t)
	args := []string{"bench", "--max-rate", "5", "--duration", "2s", "--p95", "30s", "--write", "--certificates", "8", "-o", "json"}

	r := certctl(t, dir, args...)
	require.NoError(t, r.failure, r.err)
	m := report(t, r)
	require.Equal(t, 8, m.Issuance.Created)
	require.Equal(t, 8, m.Issuance.Issued)
	require.Equal(t, 8, m.Issuance.Revoked)
	require.Equal(t, 8, m.Issuance.Archived)
	require.Positive(t, m.Issuance.PerSecond)
	require.Contains(t, r.err, "then has up to 8 certificates issued by iss-local, and revokes and archives them")
	left := certctl(t, dir, "certificates", "list", "--name", m.Issuance.Name, "--status", "PENDING,ACTIVE,REVOKED", "-o", "name")
	require.NoError(t, left.failure)
	require.Empty(t, left.out)

	require.NoError(t, certctl(t, dir, "profiles", "create", "--id", "asks", "--name", "asks", "--requires-approval").failure)
	r = certctl(t, dir, append(args, "--profile", "asks")...)
	require.Equal(t, 1, r.code)
	require.ErrorContains(t, r.failure, "somebody approve each certificate")
	m = report(t, r)
	require.Equal(t, m.Issuance.Created, m.Issuance.Archived, "also what waits is cleaned up")
	require.NotZero(t, m.Issuance.Archived)
}

func TestBenchHasNoOtherCAIssueUnlessThatIsSaid(t *testing.T) {
	t.Parallel()
	g := benched(t, nil, nil)
	answer(g, issuancev1.IssuerService_GetIssuer_FullMethodName, (*issuancev1.GetIssuerRequest)(nil), &issuancev1.GetIssuerResponse{Issuer: &issuancev1.Issuer{Id: "paid", Type: "digicert"}})
	r := g.run(t, "bench", "--max-rate", "5", "--duration", "1s", "--p95", "10s", "--write", "--issuer", "paid", "-o", "json")
	require.Equal(t, 2, r.code)
	require.ErrorContains(t, r.failure, "issuer paid is of type digicert: 50 certificates from it may cost money")
	require.Empty(t, r.out, "it is said before anything is measured")
	require.Empty(t, requests[*inventoryv1.CreateCertificateRequest](g, inventoryv1.CertificateService_CreateCertificate_FullMethodName))
}
