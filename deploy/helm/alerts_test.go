package helm_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	metricName   = regexp.MustCompile(`certctl_[a-z0-9_]+`)
	loopMatcher  = regexp.MustCompile(`loop(?:=|!=|=~|!~)"([^"]*)"`)
	queueMatcher = regexp.MustCompile(`queue(?:=|!=)"([^"]*)"`)
)

// sources is the text of the programs without their tests.
func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range []string{"pkg", "services", "gateway"} {
		err := filepath.WalkDir(filepath.Join("../..", dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			all.Write(b)
			return err
		})
		require.NoError(t, err)
	}
	return all.String()
}

// alertRules are those that the chart gives to the operator of Prometheus.
func alertRules(t *testing.T) []object {
	t.Helper()
	var all []object
	for _, g := range find(t, everything().must(t), "PrometheusRule", "rel-metrics").at("spec", "groups").([]any) {
		for _, r := range g.(map[string]any)["rules"].([]any) {
			all = append(all, r.(map[string]any))
		}
	}
	require.NotEmpty(t, all)
	return all
}

// requireMetrics fails for a metric that no program registers under this name.
func requireMetrics(t *testing.T, code, expr, where string) {
	t.Helper()
	for _, name := range metricName.FindAllString(expr, -1) {
		registered := strings.Contains(code, `"`+name+`"`)
		for _, suffix := range []string{"_bucket", "_sum", "_count"} { // what a histogram makes of its name
			base, ok := strings.CutSuffix(name, suffix)
			registered = registered || ok && strings.Contains(code, `"`+base+`"`)
		}
		require.True(t, registered, "%s: nothing registers the metric %s", where, name)
	}
}

func TestAlertsNameWhatThereIsAndSayWhatToDo(t *testing.T) {
	t.Parallel()
	code, seen := sources(t), map[string]bool{}
	for _, r := range alertRules(t) {
		name, expr := r["alert"].(string), r["expr"].(string)
		require.False(t, seen[name], "%s comes twice", name)
		seen[name] = true
		require.Contains(t, []any{"critical", "warning"}, r.at("labels", "severity"), name)
		require.NotEmpty(t, r.at("annotations", "summary"), name)
		require.NotEmpty(t, r.at("annotations", "description"), name)
		require.FileExists(t, filepath.Join("../..", r.at("annotations", "runbook_url").(string)), name)

		require.NotEmpty(t, metricName.FindAllString(expr, -1), name)
		requireMetrics(t, code, text(t, r), name)
		for _, m := range loopMatcher.FindAllStringSubmatch(expr, -1) {
			for loop := range strings.SplitSeq(m[1], "|") {
				require.Contains(t, code, strings.TrimPrefix(loop, ".*")+`"`, "%s: there is no loop %q", name, loop)
			}
		}
		for _, m := range queueMatcher.FindAllStringSubmatch(expr, -1) {
			require.Contains(t, code, `"`+m[1]+`"`, "%s: there is no queue %q", name, m[1])
		}
	}
	for metric, alert := range map[string]string{
		"certctl_audit_chain_broken": "CertctlAuditChainBroken", "certctl_stuck_rows": "CertctlRowsStuck", "certctl_loop_last_run_timestamp_seconds": "CertctlLoopDoesNotRun",
		"certctl_outbox_dead_events": "CertctlEventsDead", "certctl_lease_oldest_due_seconds": "CertctlWorkBehind", "certctl_secrets_under_old_keys": "CertctlSecretsUnderOldKeys",
	} {
		require.True(t, seen[alert], "no alert on %s", metric)
	}
}

// TestAlertsKeepInstallationsApart: one Prometheus may look at several, and must not take the maximum over all of them.
func TestAlertsKeepInstallationsApart(t *testing.T) {
	t.Parallel()
	aggregation := regexp.MustCompile(`\b(?:sum|max|min|count|avg)\b( by \(namespace[,)])?`)
	for _, r := range alertRules(t) {
		for _, m := range aggregation.FindAllStringSubmatch(r["expr"].(string), -1) {
			require.NotEmpty(t, m[1], "%s: %q is over all namespaces", r["alert"], m[0])
		}
	}
}

func TestTheDashboardNamesMetricsThatThereAre(t *testing.T) {
	t.Parallel()
	dashboard, ok := find(t, everything().must(t), "ConfigMap", "rel-dashboard").at("data", "certctl.json").(string)
	require.True(t, ok)
	require.True(t, json.Valid([]byte(dashboard)))
	require.NotEmpty(t, metricName.FindAllString(dashboard, -1))
	requireMetrics(t, sources(t), dashboard, "dashboard.json")
}
