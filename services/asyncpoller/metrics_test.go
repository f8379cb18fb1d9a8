package asyncpoller_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"
	"gopkg.in/yaml.v3"

	"github.com/certctl/certctl/pkg/connector/issuertest"
	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	"github.com/certctl/certctl/services/asyncpoller"
)

func TestOperatorsSeeWhatIsPendingAndHowPollsGo(t *testing.T) {
	t.Parallel()
	s := guarded(t, generous, func(c *asyncpoller.Config) { c.CensusInterval, c.BreakerPause = 10*time.Millisecond, time.Hour })
	metric := func(name string, labels ...string) float64 { return s.replica.metric(t, name, labels...) }
	for n := range 3 {
		s.watch(fmt.Sprint("ord-a", n), "iss-a", issuertest.Plan{RetryAfter: 24 * time.Hour})
	}
	s.watch("ord-b", "iss-b", issuertest.Plan{RetryAfter: 24 * time.Hour})
	late := s.place("ord-late", "iss-b", issuertest.Plan{RetryAfter: 24 * time.Hour})
	late.DeadlineTime = timestamppb.New(s.clock().Add(time.Hour))
	_, err := s.client().CreatePoll(t.Context(), late)
	require.NoError(t, err)

	s.eventually("the census", func() bool {
		return metric("certctl_polls_pending", "iss-a") == 3 && metric("certctl_polls_pending", "iss-b") == 2
	})
	require.Zero(t, metric("certctl_polls_overdue", "iss-b"))
	for n := range 3 {
		s.waiting(fmt.Sprint("ord-a", n), 1)
	}
	require.InDelta(t, 3, metric("certctl_polls_total", "iss-a", "pending"), 0)
	require.Zero(t, metric("certctl_polls_total", "iss-a", "error"), "announced before there is one")
	require.InDelta(t, 1, metric("certctl_issuer_breaker_state", "iss-a", "CLOSED"), 0)
	require.InDelta(t, -1, metric("certctl_issuer_breaker_state", "iss-b", "CLOSED"), 0, "its connector shows no account")

	s.waiting("ord-late", 1)
	s.cas["iss-b"].SetDown(errors.New("connection refused"))
	s.turn(2 * time.Hour)
	s.eventually("beyond the deadline", func() bool { return metric("certctl_polls_overdue", "iss-b") == 1 })
	s.waiting("ord-late", 2)
	require.InDelta(t, 7200, metric("certctl_polls_oldest_pending_seconds", "iss-a"), 60)
	require.InDelta(t, 1, metric("certctl_polls_total", "iss-b", "error"), 0)

	require.NoError(t, s.cas["iss-a"].Release("ord-a0"))
	_, err = s.client().PollNow(t.Context(), &asyncpollerv1.PollNowRequest{OrderId: "ord-a0"})
	require.NoError(t, err)
	s.eventually("one less", func() bool { return metric("certctl_polls_pending", "iss-a") == 2 })
	require.InDelta(t, 1, metric("certctl_polls_total", "iss-a", "issued"), 0)

	s.cas["iss-a"].SetDown(errors.New("connection refused"))
	for range 5 {
		_, err = s.client().PollNow(t.Context(), &asyncpollerv1.PollNowRequest{OrderId: "ord-a1"})
		require.NoError(t, err)
		s.eventually("asked", func() bool { return !s.poll("ord-a1").GetHastened() })
	}
	require.InDelta(t, 1, metric("certctl_issuer_breaker_state", "iss-a", "OPEN"), 0)
	require.Zero(t, metric("certctl_issuer_breaker_state", "iss-a", "CLOSED"))
}

// rules is a file of alert rules as Prometheus reads it: a field that is not here is a mistake there too.
type rules struct {
	Groups []struct {
		Name     string `yaml:"name"`
		Interval string `yaml:"interval"`
		Rules    []struct {
			Alert       string            `yaml:"alert"`
			Expr        string            `yaml:"expr"`
			For         string            `yaml:"for"`
			Labels      map[string]string `yaml:"labels"`
			Annotations map[string]string `yaml:"annotations"`
		} `yaml:"rules"`
	} `yaml:"groups"`
}

func TestTheAlertRulesNameMetricsAndLabelsThatThereAre(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../deploy/helm/certctl/files/alerts.yaml")
	require.NoError(t, err)
	var file rules
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	require.NoError(t, d.Decode(&file))

	s := guarded(t, generous, func(c *asyncpoller.Config) { c.CensusInterval = 10 * time.Millisecond })
	s.watch("ord-1", "iss-a", issuertest.Plan{RetryAfter: time.Hour})
	s.waiting("ord-1", 1)
	s.eventually("the census", func() bool { return s.replica.metric(t, "certctl_polls_pending", "iss-a") == 1 })
	series := s.replica.series(t)
	metric := regexp.MustCompile(`certctl_[a-z0-9_]+`)
	selector := regexp.MustCompile(`(certctl_[a-z0-9_]+)\{([^}]*)\}`)
	matcher := regexp.MustCompile(`(\w+)\s*(=|!=)\s*["']([^"']*)["']`)
	grouping := regexp.MustCompile(`(?:by|on) \(([^)]*)\)`)
	seen := map[string]bool{}
	for _, g := range file.Groups {
		if g.Name != "certctl-async-poller" {
			continue // deploy/helm looks at those of all services
		}
		for _, r := range g.Rules {
			require.False(t, seen[r.Alert], "%s comes twice", r.Alert)
			seen[r.Alert] = true
			require.Regexp(t, `^Certctl[A-Za-z]+$`, r.Alert)
			require.NotEmpty(t, r.Labels["severity"], r.Alert)
			require.NotEmpty(t, r.Annotations["summary"], r.Alert)
			require.NotEmpty(t, r.Annotations["description"], r.Alert)
			if r.For != "" {
				_, err := time.ParseDuration(r.For)
				require.NoError(t, err, r.Alert)
			}
			require.Equal(t, strings.Count(r.Expr, "("), strings.Count(r.Expr, ")"), r.Alert)
			words := r.Expr + strings.Join([]string{r.Annotations["summary"], r.Annotations["description"]}, " ")
			names := metric.FindAllString(words, -1)
			require.NotEmpty(t, names, r.Alert)
			for _, name := range names {
				require.Contains(t, series, name, "%s: nothing exports it", r.Alert)
			}
			for _, sel := range selector.FindAllStringSubmatch(words, -1) {
				for _, m := range matcher.FindAllStringSubmatch(sel[2], -1) {
					require.Contains(t, series[sel[1]], m[1]+"="+m[3], "%s: no series has that label", r.Alert)
				}
			}
			for _, by := range grouping.FindAllStringSubmatch(r.Expr, -1) {
				for label := range strings.SplitSeq(by[1], ", ") {
					if label != "namespace" && label != "job" { // those are of the target: Prometheus adds them
						require.Contains(t, series[names[0]], label, "%s: no such label", r.Alert)
					}
				}
			}
		}
	}
	for _, must := range []string{"CertctlOrdersPendingBeyondDeadline", "CertctlOldestPendingOrderTooOld", "CertctlIssuerBreakerOpen", "CertctlPollsStuck"} {
		require.True(t, seen[must], must)
	}
}
