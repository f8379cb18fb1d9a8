package helm_test

import (
	"crypto/x509"
	"encoding/pem"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
	corev1 "k8s.io/api/core/v1"
)

// environment is what a container's variables are set to; those from elsewhere are empty.
func environment(c object) map[string]string {
	env := map[string]string{}
	all, _ := c["env"].([]any)
	for _, e := range all {
		m := e.(map[string]any)
		value, _ := m["value"].(string)
		env[m["name"].(string)] = value
	}
	return env
}

func TestEveryPodKeepsToTheRestrictedStandard(t *testing.T) {
	t.Parallel()
	for name, r := range matrix() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			objects := r.must(t)
			require.NotEmpty(t, pods(objects))
			for _, o := range pods(objects) {
				pod := o.pod()
				require.Equal(t, false, pod.at("spec", "automountServiceAccountToken"), o.name())
				account := pod.at("spec", "serviceAccountName")
				require.Equal(t, false, find(t, objects, "ServiceAccount", account.(string))["automountServiceAccountToken"])
				require.Equal(t, true, pod.at("spec", "securityContext", "runAsNonRoot"), o.name())
				require.Equal(t, "RuntimeDefault", pod.at("spec", "securityContext", "seccompProfile", "type"), o.name())
				for _, c := range pod.containers(true) {
					id := o.name() + " " + c["name"].(string)
					require.Equal(t, false, c.at("securityContext", "allowPrivilegeEscalation"), id)
					require.Equal(t, true, c.at("securityContext", "readOnlyRootFilesystem"), id)
					require.Equal(t, []any{"ALL"}, c.at("securityContext", "capabilities", "drop"), id)
					require.NotEmpty(t, c.at("resources", "requests", "memory"), id)
					require.NotEmpty(t, c.at("resources", "limits", "memory"), id)
					require.Regexp(t, `:.+|@sha256:`, c["image"], id)
					if c["name"] == "prepare" { // gives the host path to the agent
						require.Equal(t, []any{"CHOWN"}, c.at("securityContext", "capabilities", "add"), id)
						continue
					}
					require.Nil(t, c.at("securityContext", "capabilities", "add"), id)
					require.Nil(t, c.at("securityContext", "runAsUser"), id)
				}
				if slices.Contains(r.set, "global.fixedIds=false") && o.kind() != "DaemonSet" { // whose host path needs an owner
					require.Nil(t, pod.at("spec", "securityContext", "runAsUser"), o.name())
					require.Nil(t, pod.at("spec", "securityContext", "fsGroup"), o.name())
				} else {
					require.NotZero(t, pod.at("spec", "securityContext", "runAsUser"), o.name())
				}
				if !slices.Contains([]string{"Deployment", "DaemonSet", "StatefulSet"}, o.kind()) {
					continue
				}
				require.NotEmpty(t, pod.at("spec", "terminationGracePeriodSeconds"), o.name())
				for _, c := range pod.containers(false) {
					for _, probe := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
						require.NotEmpty(t, c[probe], "%s has no %s", o.name(), probe)
					}
				}
			}
		})
	}
}

// secretsOfValues are values that are secret, and the objects whose pods read them.
var secretsOfValues = map[string][]string{
	"server.auth.apiKey":            {"server"},
	"global.secrets.internalSecret": {"server", "inventory", "issuance", "renewal-scheduler", "async-poller", "audit"},
	"global.secrets.roleSecret":     {"inventory", "issuance", "renewal-scheduler", "async-poller", "audit"},
	"global.secrets.encryptionKey":  {"issuance"},
	"global.secrets.joinToken":      {"inventory", "agent"},
	"postgresql.auth.password":      nil, // only the migration, the backup and Postgres itself, which knows the first one for good
}

func TestNothingSecretStandsOutsideOfSecrets(t *testing.T) {
	t.Parallel()
	for key := range secretsOfValues {
		const sentinel = "sentinel-of-this-test"
		r := everything()
		r.set = append(r.set, key+"="+sentinel)
		found := 0
		for _, o := range r.must(t) {
			if strings.Contains(text(t, o), sentinel) {
				require.Equal(t, "Secret", o.kind(), "%s is in %s %s", key, o.kind(), o.name())
				found++
			}
		}
		require.Positive(t, found, key)
	}
	const url = "postgres://u:sentinel-of-this-test@db.example.com/d"
	for _, o := range (rendering{set: []string{"postgresql.enabled=false", "server.auth.apiKey=k", "server.databaseUrl=" + url}}).must(t) {
		if strings.Contains(text(t, o), "sentinel-of-this-test") {
			require.Equal(t, "Secret", o.kind(), o.name())
		}
	}
}

func hash(t *testing.T, r rendering, component string) string {
	t.Helper()
	kind := "Deployment"
	if component == "agent" {
		kind = "DaemonSet"
	}
	h, ok := find(t, r.must(t), kind, releaseName+"-"+component).pod().at("metadata", "annotations", "checksum/secrets").(string)
	require.True(t, ok)
	return h
}

func TestPodsRollWhenASecretThatTheyReadChanges(t *testing.T) {
	t.Parallel()
	for key, readers := range secretsOfValues {
		same, changed := everything(), everything()
		changed.set = append(changed.set, key+"=changed-for-this-test")
		for _, component := range readers {
			require.NotEqual(t, hash(t, everything(), component), hash(t, changed, component), "%s and %s", key, component)
			require.Equal(t, hash(t, everything(), component), hash(t, same, component), "without a change pods must not roll")
		}
	}
	r := external()
	r.upgrade = true
	with := func(name, content string) rendering {
		r.cluster = &cluster{secrets: []*corev1.Secret{secret(name, map[string]string{"key": content})}}
		return r
	}
	for name, component := range map[string]string{"own-secrets": "inventory", "own-keys": "server", "own-database": "audit"} {
		require.NotEqual(t, hash(t, with(name, "old"), component), hash(t, with(name, "new"), component), name)
	}
	// A TLS Secret is read again by the gateway itself.
	require.Equal(t, hash(t, with("own-tls", "old"), "server"), hash(t, with("own-tls", "new"), "server"))
}

func TestTheCAHasAnotherNameThanTheCertificatesThatItSigns(t *testing.T) {
	t.Parallel()
	text, ok := find(t, basic().must(t), "ConfigMap", "rel-server-ca").at("data", "ca.crt").(string)
	require.True(t, ok)
	block, _ := pem.Decode([]byte(text))
	require.NotNil(t, block)
	ca, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	require.True(t, ca.IsCA)
	// The gateway's own is called certctl; OpenSSL, and so curl, would call it self-signed.
	require.NotEqual(t, "certctl", ca.Subject.CommonName)
}

func TestWhatTheChartMadeOnceStays(t *testing.T) {
	t.Parallel()
	made := map[string]string{"internal-secret": "made-before-1", "role-secret": "made-before-2", "encryption-key": "made-before-3", "join-token": "made-before-4"}
	r := basic()
	r.upgrade = true
	r.cluster = &cluster{secrets: []*corev1.Secret{secret("rel-secrets", made), secret("rel-server-ca", map[string]string{"ca.crt": "the-ca", "ca.key": "the-key"})}}
	objects := r.must(t)
	for key, want := range made {
		require.Equal(t, want, find(t, objects, "Secret", "rel-secrets").at("stringData", key))
	}
	require.Equal(t, "made-before-2", find(t, objects, "Secret", "rel-migrate-hook").at("stringData", "role-secret"))
	require.Equal(t, "the-key", find(t, objects, "Secret", "rel-server-ca").at("stringData", "ca.key"))
	require.Equal(t, "the-ca", find(t, objects, "ConfigMap", "rel-server-ca").at("data", "ca.crt"))
	for _, name := range []string{"rel-secrets", "rel-server-ca"} {
		require.Equal(t, "keep", find(t, objects, "Secret", name).at("metadata", "annotations", "helm.sh/resource-policy"))
	}
	first := basic().must(t)
	require.Equal(t, find(t, first, "Secret", "rel-secrets").at("stringData", "role-secret"), find(t, first, "Secret", "rel-migrate-hook").at("stringData", "role-secret"),
		"both migrations of an install must give the roles the same passwords")
}

// TestVariablesAreOnesThatTheProgramsKnow compares with the reference that is made from the code.
func TestVariablesAreOnesThatTheProgramsKnow(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../ENVIRONMENTS.md")
	require.NoError(t, err)
	known := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(CERTCTL_[A-Z_]+)`(?: or `(CERTCTL_[A-Z_]+)`)? \\|[^|]*\\| (?:`([^`]*)`)? ?\\|").FindAllStringSubmatch(string(b), -1) {
		known[m[1]] = m[3]
		if m[2] != "" {
			known[m[2]] = ""
		}
	}
	require.Greater(t, len(known), 40)
	flags, err := os.ReadFile("../../docs/agents.md")
	require.NoError(t, err)
	for _, o := range pods(everything().must(t)) {
		for _, c := range o.pod().containers(false) {
			for name, value := range environment(c) {
				if !strings.HasPrefix(name, "CERTCTL_") {
					continue
				}
				if c["name"] == "agent" {
					require.Contains(t, string(flags), name, "the agent does not know it")
					continue
				}
				def, ok := known[name]
				require.True(t, ok, "%s: certctl does not know %s", o.name(), name)
				if strings.HasSuffix(name, "_INTERVAL") || name == "CERTCTL_RENEWAL_CONCURRENCY" {
					require.Equal(t, def, value, "%s has another default than the program", name)
				}
			}
		}
	}
}

// TestThePoliciesAllowWhoCallsWhom compares them with the wiring of the program.
func TestThePoliciesAllowWhoCallsWhom(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../services/cmd/certctl/internal/serve/service.go")
	require.NoError(t, err)
	component := map[string]string{"nameInventory": "inventory", "nameIssuance": "issuance", "nameRenewalScheduler": "renewal-scheduler", "nameAsyncPoller": "async-poller", "nameAudit": "audit"}
	want := map[string][]string{} // callee to callers
	for _, callee := range component {
		want[callee] = []string{"server"}
	}
	for _, m := range regexp.MustCompile(`dialAll\((\w+), ([^)]+)\)`).FindAllStringSubmatch(string(b), -1) {
		for peer := range strings.SplitSeq(m[2], ", ") {
			want[component[peer]] = append(want[component[peer]], component[m[1]])
		}
	}
	objects := basic().must(t)
	for callee, callers := range want {
		policy := find(t, objects, "NetworkPolicy", releaseName+"-"+callee)
		var got []string
		for _, c := range policy.at("spec", "ingress", 0, "from", 0, "podSelector", "matchExpressions", 0, "values").([]any) {
			got = append(got, c.(string))
		}
		require.ElementsMatch(t, callers, got, "who calls %s", callee)
	}
}

// TestTheValuesForAProxyCloseTheGatewayOff renders the example of docs/operator/auth-proxy.md.
func TestTheValuesForAProxyCloseTheGatewayOff(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../auth-proxy/kubernetes/values.yaml")
	require.NoError(t, err)
	var values map[string]any
	require.NoError(t, yaml.Unmarshal(b, &values))
	// As by `helm upgrade --reuse-values`: over the values of an installation that has an API key.
	server := values["server"].(map[string]any)
	auth, before := server["auth"].(map[string]any), map[string]any{"type": "api-key", "apiKey": "key-of-an-admin"}
	maps.Copy(before, auth)
	server["auth"] = before
	policy := find(t, rendering{values: values, set: []string{"postgresql.auth.password=p"}}.must(t), "NetworkPolicy", "rel-server")
	from, ok := policy.at("spec", "ingress", 0, "from").([]any)
	require.True(t, ok, "everybody may connect")
	require.Len(t, from, 2, "the pods of the release, and those of the proxy")
	require.Equal(t, []any{"agent", "smoke"}, policy.at("spec", "ingress", 0, "from", 0, "podSelector", "matchExpressions", 0, "values"))
	require.Equal(t, "certctl-proxy", policy.at("spec", "ingress", 0, "from", 1, "podSelector", "matchLabels", "app.kubernetes.io/name"))
}
