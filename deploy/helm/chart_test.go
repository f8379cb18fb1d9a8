// Package helm_test renders the chart with Helm's own engine, without a cluster and without a helm binary.
package helm_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/certctl/certctl/deploy/helm/chartdoc"
	"github.com/certctl/certctl/pkg/pg"
)

var update = flag.Bool("update", false, "write the golden renderings anew")

// everything switches on what can be on at once.
func everything() rendering {
	return basic("backup.enabled=true", "global.metrics.enabled=true", "global.networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring", "monitoring.serviceMonitor.enabled=true", "monitoring.prometheusRule.enabled=true",
		"monitoring.dashboard.enabled=true", "server.ingress.enabled=true", "server.ingress.host=certctl.example.com", "server.replicas=2", "inventory.autoscaling.enabled=true",
		"global.secrets.internalSecret=internal-secret-of-services", "global.secrets.roleSecret=secret-of-roles", "global.secrets.encryptionKey=key-of-encryption",
		"global.secrets.joinToken=token-of-agents")
}

// external is an installation on a database of one's own, with Secrets of one's own.
func external() rendering {
	return rendering{set: []string{"postgresql.enabled=false", "global.database.existingSecret=own-database", "global.secrets.existingSecret=own-secrets",
		"server.auth.existingSecret=own-keys", "global.tls.existingSecret=own-tls", "backup.enabled=true"}}
}

func matrix() map[string]rendering {
	return map[string]rendering{
		"defaults":   basic(),
		"everything": everything(),
		"external":   external(),
		"externalURL": {set: []string{"postgresql.enabled=false", "server.databaseUrl=postgres://u:p@db.example.com:5433/certctl", "server.auth.apiKey=k",
			"global.database.roles=shared"}},
		"certManager": basic("server.tls.certManager.enabled=true", "server.tls.certManager.issuerRef.name=letsencrypt"),
		"authNone":    {set: []string{"server.auth.type=none", "postgresql.auth.existingSecret=own", "server.allowFrom[0].podSelector.matchLabels.app=oauth2-proxy"}},
		"agentsAlone": {set: []string{"tags.control-plane=false", "postgresql.enabled=false", "agent.serverUrl=https://certctl.example.com:8443", "agent.serverCA=PEM",
			"global.secrets.joinToken=token-of-agents", "agent.hostPaths[0].name=nginx", "agent.hostPaths[0].path=/etc/nginx/certs", "agent.labels.site=a"}},
		"migrateJob": basic("migrate.mode=job", "global.fixedIds=false"),
		"noPolicies": basic("global.networkPolicy.enabled=false", "agent.enabled=false"),
	}
}

func TestEveryRenderingIsWhatKubernetesTakes(t *testing.T) {
	t.Parallel()
	codec := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	foreign := []string{"ServiceMonitor", "PrometheusRule", "Certificate"} // types of others
	for name, r := range matrix() {
		for _, upgrade := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, upgrade %v", name, upgrade), func(t *testing.T) {
				t.Parallel()
				r.upgrade = upgrade
				seen := map[string]bool{}
				for _, o := range r.must(t) {
					id := o.kind() + " " + o.name()
					require.False(t, seen[id], "%s is rendered twice", id)
					seen[id] = true
					require.Equal(t, namespace, o.at("metadata", "namespace"), id)
					require.True(t, o.name() == releaseName || strings.HasPrefix(o.name(), releaseName+"-"), "%s does not begin with the release's name", id)
					for _, label := range []string{"name", "instance", "component", "version", "part-of", "managed-by"} {
						require.NotEmpty(t, o.at("metadata", "labels", "app.kubernetes.io/"+label), "%s has no label %s", id, label)
					}
					if !slices.Contains(foreign, o.kind()) {
						_, _, err := codec.Decode([]byte(text(t, o)), nil, nil)
						require.NoError(t, err, id)
					}
				}
				jobs := seen["Job rel-migrate-install"]
				require.Equal(t, !upgrade && name != "agentsAlone" && name != "migrateJob", jobs, "the first migration is no hook, and only the first")
			})
		}
	}
}

// volatile hides what differs from rendering to rendering.
var volatile = regexp.MustCompile(`(?m)^(\s+(?:internal-secret|role-secret|encryption-key|join-token|ca\.key|ca\.crt): ).*(?:\n\s{8,}.*|\n\n)*$`)

func TestRenderingsAreAsReviewed(t *testing.T) {
	t.Parallel()
	for name, r := range matrix() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var b strings.Builder
			for _, o := range r.must(t) {
				if s, ok := o["stringData"].(map[string]any); ok {
					for k := range s {
						s[k] = "…"
					}
				}
				if d, ok := o["data"].(map[string]any); ok && strings.HasSuffix(o.name(), "-ca") {
					d["ca.crt"] = "…"
				}
				b.WriteString("---\n" + text(t, o))
			}
			path := filepath.Join("testdata", name+".yaml")
			if *update {
				require.NoError(t, os.MkdirAll("testdata", 0o755))
				require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o644))
			}
			want, err := os.ReadFile(path)
			require.NoError(t, err)
			was, is := strings.Split(string(want), "\n"), strings.Split(b.String(), "\n")
			for i := range min(len(was), len(is)) {
				require.Equal(t, was[i], is[i], "%s:%d: review the difference, then: go test ./deploy/helm -run AsReviewed -update", path, i+1)
			}
			require.Len(t, is, len(was), "%s: review the difference, then: go test ./deploy/helm -run AsReviewed -update", path)
		})
	}
}

func TestWhatIsMissingOrContradictsItselfIsToldInOneSentence(t *testing.T) {
	t.Parallel()
	noDB := []string{"postgresql.enabled=false", "server.auth.apiKey=k"}
	for name, c := range map[string]struct {
		rendering rendering
		want      []string
	}{
		"no API key":                       {rendering{set: []string{"postgresql.auth.password=p"}}, []string{"server.auth.apiKey is not set", "openssl rand"}},
		"no password":                      {rendering{set: []string{"server.auth.apiKey=k"}}, []string{"postgresql.auth.password is not set", "openssl rand"}},
		"jwt":                              {basic("server.auth.type=jwt"), []string{"server.auth.type=jwt", "authenticating proxy", "server.auth.type=none"}},
		"oidc":                             {basic("server.auth.type=oidc"), []string{"server.auth.type=oidc", "authenticating proxy"}},
		"two sources of keys":              {basic("server.auth.existingSecret=s"), []string{"server.auth.apiKey and server.auth.existingSecret"}},
		"two passwords":                    {basic("postgresql.auth.existingSecret=s"), []string{"postgresql.auth.password and postgresql.auth.existingSecret"}},
		"none with a key":                  {basic("server.auth.type=none"), []string{"server.auth.type=none with server.auth.apiKey"}},
		"none open to all":                 {rendering{set: []string{"server.auth.type=none", "postgresql.auth.password=p", "global.networkPolicy.enabled=false"}}, []string{"everybody", "server.allowFrom"}},
		"quotas":                           {basic("audit.database.quota=9"), []string{"add up to 51", "global.database.maxConns is 50"}},
		"too many replicas":                {basic("audit.replicas=4"), []string{"audit: 8 connections", "4 replicas", "audit.database.quota to 10"}},
		"too much scaling":                 {basic("audit.autoscaling.enabled=true", "audit.autoscaling.maxReplicas=9"), []string{"9 replicas"}},
		"nothing to scale by":              {basic("audit.autoscaling.enabled=true", "audit.autoscaling.targetCPUUtilizationPercentage=0"), []string{"audit.autoscaling", "targetQueueAgeSeconds"}},
		"min over max":                     {basic("audit.autoscaling.enabled=true", "audit.autoscaling.minReplicas=3", "audit.autoscaling.maxReplicas=2"), []string{"minReplicas (3)", "maxReplicas (2)"}},
		"shared roles of our own Postgres": {basic("global.database.roles=shared"), []string{"global.database.roles=shared", "separate"}},
		"shared and bundled":               {basic("global.database.roles=shared"), []string{"global.database.roles=shared", "separate"}},
		"no database":                      {rendering{set: noDB}, []string{"set server.databaseUrl=postgres://"}},
		"two databases":                    {basic("server.databaseUrl=postgres://u:p@h/d"), []string{"postgresql.enabled=false"}},
		"another database kind":            {rendering{set: append(slices.Clone(noDB), "server.databaseUrl=mysql://u@h/d")}, []string{"no Postgres URL"}},
		"two URLs":                         {rendering{set: append(slices.Clone(noDB), "server.databaseUrl=postgres://a@h/d", "global.database.url=postgres://b@h/d")}, []string{"global.database.url and server.databaseUrl differ"}},
		"URL and Secret":                   {rendering{set: append(slices.Clone(noDB), "server.databaseUrl=postgres://a@h/d", "global.database.existingSecret=s")}, []string{"global.database.existingSecret and a database URL"}},
		"agents without trust":             {basic("server.tls.existingSecret=own"), []string{"global.tls.existingSecret=own"}},
		"two certificates":                 {basic("global.tls.existingSecret=own", "server.tls.certManager.enabled=true", "server.tls.certManager.issuerRef.name=i"), []string{"certManager", "existing TLS Secret"}},
		"no issuer":                        {basic("server.tls.certManager.enabled=true"), []string{"server.tls.certManager.issuerRef.name"}},
		"no host":                          {basic("server.ingress.enabled=true"), []string{"server.ingress.host"}},
		"rules without metrics":            {basic("monitoring.prometheusRule.enabled=true"), []string{"global.metrics.enabled=true"}},
		"no time to drain":                 {basic("inventory.preStopSeconds=40"), []string{"inventory.terminationGracePeriodSeconds (45)"}},
		"none past the proxy":              {rendering{set: []string{"server.auth.type=none", "postgresql.auth.password=p", "server.service.type=LoadBalancer"}}, []string{"past the proxy"}},
		"a gateway's queue":                {basic("server.autoscaling.enabled=true", "server.autoscaling.targetQueueAgeSeconds=9"), []string{"server.autoscaling.targetQueueAgeSeconds"}},
		"a queue unseen":                   {basic("audit.autoscaling.enabled=true", "audit.autoscaling.targetQueueAgeSeconds=9"), []string{"global.metrics.enabled=true"}},
		"metrics for nobody":               {basic("global.metrics.enabled=true"), []string{"global.networkPolicy.metricsFrom"}},
		"a label of ours":                  {basic(`global.commonLabels.app\.kubernetes\.io/name=x`), []string{"global.commonLabels.app.kubernetes.io/name"}},
		"agents with Postgres":             {basic("tags.control-plane=false", "agent.serverUrl=https://x"), []string{"postgresql.enabled=false"}},
		"another database": {rendering{upgrade: true, cluster: &cluster{secrets: []*corev1.Secret{secret("rel-database", map[string]string{"url": "postgres://u@rel-postgres:5432/d"})}},
			set: append(slices.Clone(noDB), "global.database.url=postgres://u@new/d")}, []string{"an upgrade moves no data"}},
		"agents without server": {rendering{set: []string{"tags.control-plane=false", "postgresql.enabled=false"}}, []string{"agent.serverUrl"}},
		"agents without token":  {rendering{set: []string{"tags.control-plane=false", "postgresql.enabled=false", "agent.serverUrl=https://x"}}, []string{"join token"}},
		"agents without CA":     {rendering{set: []string{"tags.control-plane=false", "postgresql.enabled=false", "agent.serverUrl=https://x", "global.secrets.joinToken=t"}}, []string{"agent.serverCA"}},
		"a typo":                {basic("inventory.replica=3"), []string{"/inventory", "'replica' not allowed"}},
		"a section's typo":      {basic("inventori.replicas=3"), []string{"'inventori' not allowed"}},
		"the wrong type":        {basic("inventory.replicas=many"), []string{"/inventory/replicas", "want integer"}},
		"no such level":         {basic("audit.logLevel=loud"), []string{"logLevel"}},
		"changed URL": {rendering{upgrade: true, cluster: &cluster{secrets: []*corev1.Secret{secret("rel-database", map[string]string{"url": "postgres://u@old/d"})}},
			set: append(slices.Clone(noDB), "server.databaseUrl=postgres://u@new/d")}, []string{"server.databaseUrl has changed", "global.database.url"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := c.rendering.render(t)
			require.Error(t, err)
			for _, w := range c.want {
				require.ErrorContains(t, err, w)
			}
		})
	}
}

// TestEveryKeyOfTheValuesMatters changes one after the other and looks whether that changes anything: a key that no template reads
// would be a promise that nothing keeps.
func TestEveryKeyOfTheValuesMatters(t *testing.T) {
	t.Parallel()
	values, err := chartdoc.Read(filepath.Join(chartDir, "values.yaml"))
	require.NoError(t, err)
	bases := []rendering{everything(), external(), matrix()["certManager"], matrix()["externalURL"], basic("audit.autoscaling.enabled=true"), matrix()["agentsAlone"]}
	plain := make([]string, len(bases))
	for i, b := range bases {
		plain[i] = stable(t, b)
	}
	matters := func(key, set string) {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			for i, b := range bases {
				b.set = append(slices.Clone(b.set), set)
				changed := stable(t, b)
				require.NotContains(t, changed, "don't meet the specifications", "this test has to think of another value")
				if changed != plain[i] {
					return
				}
			}
			require.Fail(t, "nothing reads "+key)
		})
	}
	for _, v := range chartdoc.Leaves(values) {
		matters(v.Name(), change(t, v))
		// A service overrides the defaults of all: inventory, which has autoscaling on, stands for the others.
		if strings.HasPrefix(v.Name(), "global.service.") {
			matters(strings.Replace(v.Name(), "global.service", "inventory", 1), strings.ReplaceAll(change(t, v), "global.service.", "inventory."))
		}
	}
}

// change is another value than the default for a key, as after --set.
func change(t *testing.T, v *chartdoc.Value) string {
	t.Helper()
	key := v.Name()
	if allowed, ok := v.Schema["enum"].([]any); ok {
		for _, a := range allowed {
			if a != v.Node.Value {
				return fmt.Sprintf("%s=%v", key, a)
			}
		}
	}
	switch {
	case v.Node.Kind == yaml.MappingNode:
		return key + ".changed=x"
	case v.Node.Kind == yaml.SequenceNode:
		switch items, _ := v.Schema["items"].(map[string]any); {
		case key == "agent.hostPaths":
			return key + "[0].name=x," + key + "[0].path=/x"
		case items["type"] == "object":
			return key + "[0].name=x"
		case key == "agent.allowCommands":
			return key + "[0]=/x"
		default:
			return key + "[0]=/x"
		}
	case v.Node.Tag == "!!bool":
		return fmt.Sprintf("%s=%v", key, v.Node.Value != "true")
	case v.Node.Tag == "!!int":
		var n int
		require.NoError(t, v.Node.Decode(&n))
		return fmt.Sprintf("%s=%d", key, n+1)
	case strings.HasSuffix(key, "rl") || strings.HasSuffix(key, "Url"):
		return key + "=postgres://changed@h/d"
	case key == "agent.dataDir":
		return key + "=/changed"
	case key == "global.service.autoscaling.targetQueueAgeSeconds":
		return key + "=9"
	default:
		return key + "=changed"
	}
}

// stable is a rendering, or its error, without what is random.
func stable(t *testing.T, r rendering) string {
	t.Helper()
	files, err := r.files(t)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		b.WriteString(name + "\n" + volatile.ReplaceAllString(files[name], "$1…") + "\n")
	}
	// A certificate of more than one line is one quoted string.
	return regexp.MustCompile(`"-----BEGIN[^"]*"`).ReplaceAllString(b.String(), "…")
}

func TestTheSchemaKnowsEveryKeyAndNoOther(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join(chartDir, "values.schema.json"))
	require.NoError(t, err)
	var root map[string]any
	require.NoError(t, json.Unmarshal(b, &root))
	var sections []string
	var walk func(path []string, s map[string]any)
	walk = func(path []string, s map[string]any) {
		properties, _ := s["properties"].(map[string]any)
		if properties == nil {
			return
		}
		require.Equal(t, false, s["additionalProperties"], "%v lets any key in", path)
		sections = append(sections, strings.Join(path, "."))
		for name, p := range properties {
			if sub, ok := p.(map[string]any); ok {
				walk(append(slices.Clone(path), name), sub)
			}
		}
	}
	walk(nil, root)
	require.Greater(t, len(sections), 40)
	for _, section := range sections {
		key := strings.TrimPrefix(section+".typo", ".")
		_, err := basic(key + "=1").render(t)
		require.ErrorContains(t, err, "typo", "%s is taken", key)
	}
}

func TestGeneratedFilesAreCurrent(t *testing.T) {
	t.Parallel()
	files, err := chartdoc.Files(chartDir)
	require.NoError(t, err)
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(chartDir, name))
		require.NoError(t, err)
		require.Equal(t, string(want), string(got), "%s is not what values.yaml makes: run make helm-generate", name)
	}
}

func TestWithTheValuesOfAnOlderChartTheDefaultsOfThisOneCount(t *testing.T) {
	t.Parallel()
	want := stable(t, everything())
	older := load(t).Values
	for _, gone := range [][]string{{"backup", "keep"}, {"global", "service", "preStopSeconds"}, {"global", "networkPolicy"}, {"issuance", "intervals"}, {"agent", "image"}, {"migrate"}} {
		m := older
		for _, k := range gone[:len(gone)-1] {
			m = m[k].(map[string]any)
		}
		require.Contains(t, m, gone[len(gone)-1])
		delete(m, gone[len(gone)-1])
	}
	r := everything()
	r.reused = older
	require.Equal(t, want, stable(t, r))
}

// TestNoScalingExceedsTheQuotas tries random sizes: the chart refuses them, or all pods that can run at a time keep to the quota.
func TestNoScalingExceedsTheQuotas(t *testing.T) {
	t.Parallel()
	services := []string{"inventory", "issuance", "renewal-scheduler", "async-poller", "audit"}
	random := rand.New(rand.NewPCG(1, 2))
	rendered := 0
	for range 40 {
		var sets []string
		most, sum := map[string]int{}, 0
		quota := map[string]int{}
		for _, s := range services {
			quota[s] = 4 + random.IntN(30)
			sum += quota[s]
			replicas := 1 + random.IntN(4)
			most[s] = replicas
			if random.IntN(2) == 0 {
				sets = append(sets, s+".autoscaling.enabled=true", fmt.Sprintf("%s.autoscaling.maxReplicas=%d", s, replicas), s+".replicas=1")
			} else {
				sets = append(sets, fmt.Sprintf("%s.replicas=%d", s, replicas))
			}
			sets = append(sets, fmt.Sprintf("%s.database.quota=%d", s, quota[s]))
		}
		objects, err := basic(append(sets, fmt.Sprintf("global.database.maxConns=%d", sum))...).render(t)
		if err != nil {
			require.ErrorContains(t, err, "are too few for")
			continue
		}
		rendered++
		total := 0
		for _, s := range services {
			size := pg.Share(quota[s], most[s]) // what each of them takes
			require.LessOrEqual(t, size*(most[s]+1), quota[s], "%s in a rolling update", s)
			total += size * (most[s] + 1)
			env := environment(find(t, objects, "Deployment", releaseName+"-"+s).pod().containers(false)[0])
			if s == "issuance" || s == "async-poller" { // who share the rates of CA accounts
				require.Equal(t, fmt.Sprint(most[s]), env["CERTCTL_SERVICE_REPLICAS"])
			}
		}
		require.LessOrEqual(t, total, sum)
		migrate := environment(find(t, objects, "Job", releaseName+"-migrate").pod().containers(false)[0])
		require.Equal(t, fmt.Sprint(sum), migrate["CERTCTL_DATABASE_MAX_CONNS"])
		for s, name := range map[string]string{"inventory": "inventory", "renewal-scheduler": "renewalscheduler", "async-poller": "asyncpoller", "audit": "audit", "issuance": "issuance"} {
			require.Contains(t, migrate["CERTCTL_DATABASE_POOL_QUOTAS"], fmt.Sprintf("%s=%d", name, quota[s]), "Postgres enforces what the migration sets")
		}
	}
	require.Greater(t, rendered, 5)
}
