//go:build cluster

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	password = `p/a@s#s%w?o,r$d`
	firstKey = "the-first-key-of-the-installation"
	nextKey  = "the-next-key-of-the-installation"
)

// set escapes a value for --set.
func set(key, value string) string {
	return key + "=" + strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(value)
}

// basics are the two values that an install needs.
func basics() []string {
	return append(small(), "--set", set("server.auth.apiKey", firstKey), "--set", set("postgresql.auth.password", password))
}

// small asks for next to nothing of the node, on which several releases have to find room at the same time.
func small() (args []string) {
	for _, section := range []string{"global.service", "server", "inventory", "issuance", "postgresql", "migrate", "agent"} {
		args = append(args, "--set", section+".resources.requests.cpu=1m")
	}
	return args
}

// TestTheInstallCommandOfTheDocuments runs it word for word, and what an operator does with the release until it is removed.
func TestTheInstallCommandOfTheDocuments(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "certctl", "certctl")
	r.volume("data-" + r.name + "-postgres-0")
	// The command creates the namespace by itself, too; it is there already for the volume and for the clean-up.
	out, err := try(t, "", "bash", "-c", "cd ../../.. && "+documented(t, "install"))
	require.NoError(t, err, out)
	require.Contains(t, out, "STATUS: deployed")
	r.ready()
	r.neverRestarted()
	r.helm("test", r.name)

	key := r.secret("certctl-server-auth", "api-key")
	a := r.api(key, r.ca())
	require.Equal(t, http.StatusUnauthorized, r.api("wrong", r.ca()).status("/api/v1/agents"))
	a.agent()
	t.Run("tour", func(t *testing.T) { tour(t, a) })
	t.Run("blocks that look", func(t *testing.T) { lookAround(t, r, key) })
	t.Run("another API key", func(t *testing.T) {
		out, err := try(t, "", "bash", "-c", "cd ../../.. && "+documented(t, "rotate-api-key"))
		require.NoError(t, err, out)
		require.Equal(t, http.StatusUnauthorized, a.status("/api/v1/agents"))
		a = r.api(r.secret("certctl-server-auth", "api-key"), r.ca())
		require.Equal(t, http.StatusOK, a.status("/api/v1/agents"))
	})
	t.Run("another password in the values only", func(t *testing.T) { trap(t, r) })
	t.Run("backup and restore", func(t *testing.T) { backup(t, r, a) })
	t.Run("uninstall, and install again on the claim that was kept", func(t *testing.T) { reinstall(t, r) })
	t.Run("the remedy that loses everything", func(t *testing.T) { remedyThatLosesEverything(t, r) })
}

// lookAround runs the blocks of the documents that only look, as an operator who has certctl at hand.
func lookAround(t *testing.T, r *release, key string) {
	bin := t.TempDir()
	command(t, "go", "build", "-o", filepath.Join(bin, "certctl"), "github.com/certctl/certctl/services/cmd/certctl")
	ca := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(ca, []byte(r.ca()), 0o600))
	for _, block := range []string{"wait", "test"} {
		out, err := try(t, "", "bash", "-c", "cd ../../.. && "+documented(t, block))
		require.NoError(t, err, out)
	}
	out, err := try(t, "", "bash", "-c", "cd ../../.. && "+documented(t, "use"))
	require.NoError(t, err, out)
	require.Contains(t, out, `"agents"`)
	names := looks(t)
	require.Greater(t, len(names), 10)
	// As `kubectl port-forward` does, for as long as the blocks run.
	forward := exec.CommandContext(t.Context(), "kubectl", "-n", r.ns, "port-forward", "service/"+r.name+"-server", "18443:8443")
	require.NoError(t, forward.Start())
	t.Cleanup(func() {
		_ = forward.Process.Kill()
		_ = forward.Wait()
	})
	environ := fmt.Sprintf("export PATH=%s:$PATH CERTCTL_URL=https://localhost:18443 CERTCTL_CA=%s CERTCTL_API_KEY=%s; cd ../../..; ", bin, ca, key)
	require.Eventually(t, func() bool {
		_, err := try(t, "", "bash", "-c", environ+"certctl agents list")
		return err == nil
	}, patience, interval)
	for _, name := range names {
		out, err := try(t, "", "bash", "-c", environ+documented(t, name))
		require.NoError(t, err, "%s\n%s", name, out)
	}
}

// tour goes from a certificate to its renewal, revocation and record, over the Service.
func tour(t *testing.T, a *api) {
	dir := "/data/tour"
	agent := a.agent()
	a.must(http.MethodPost, "/api/v1/targets", object{"id": "tour", "name": "tour", "type": "file", "agent_id": agent,
		"config": object{"fullchain_path": dir + "-fullchain.pem", "key_path": dir + "-key.pem"}})
	a.must(http.MethodPost, "/api/v1/certificates", object{"id": "tour", "name": "tour", "dns_names": []string{"tour.example.com"},
		"issuer_id": "iss-local", "target_ids": []string{"tour"}})
	served := func(version float64) {
		require.Eventually(t, func() bool {
			d := list(a.must(http.MethodGet, "/api/v1/deployments?certificate_id=tour", nil), "deployments")
			return len(d) == 1 && str(d[0], "status") == "SERVED" && d[0]["served_version"] == version
		}, patience, interval)
	}
	served(1)
	a.must(http.MethodPost, "/api/v1/certificates/tour/renew", object{"force": true})
	served(2)
	a.must(http.MethodPost, "/api/v1/certificates/tour/revoke", object{"reason": "SUPERSEDED"})
	require.NotEmpty(t, str(a.must(http.MethodGet, "/api/v1/certificates/tour/explain", nil), "summary"))
	require.NotEmpty(t, list(a.must(http.MethodGet, "/api/v1/audit?resource_id=tour", nil), "events"))
	a.intact()
}

// trap changes the password in the values only, and mends it without loss.
func trap(t *testing.T, r *release) {
	r.ready() // no pod of the rotation before is on its way out
	before := r.pods("")
	out, err := try(t, "", "bash", "-c", "cd ../../.. && "+documented(t, "trap-symptom"))
	require.Error(t, err, "an upgrade with a password that Postgres does not know must fail")
	log := r.kubectl("logs", "-l", "app.kubernetes.io/component=migrate", "--tail=-1")
	require.Contains(t, log, "28P01", out)
	readme, err := os.ReadFile(filepath.Join(chart, "README.md"))
	require.NoError(t, err)
	require.Contains(t, string(readme), "Postgres refuses the password of role")
	require.Contains(t, unquoted(log), quotedIn(t, string(readme), "Postgres refuses the password of role"), "the README quotes another message")
	r.ready()
	require.ElementsMatch(t, uids(before, "server"), uids(r.pods(""), "server"), "what runs must not notice")
	out, err = try(t, "", "bash", "-c", "cd ../../.. && "+documented(t, "trap-remedy"))
	require.NoError(t, err, out)
	r.ready()
	r.neverRestarted()
	r.helm("test", r.name)
}

// unquoted undoes the escaping of a JSON log line.
func unquoted(s string) string { return strings.ReplaceAll(s, `\"`, `"`) }

// quotedIn finds the sentence that begins so, to the end of its line or code span.
func quotedIn(t *testing.T, text, begin string) string {
	t.Helper()
	i := strings.Index(text, begin)
	require.GreaterOrEqual(t, i, 0)
	line, _, _ := strings.Cut(text[i:], "\n")
	return strings.TrimSpace(line)
}

func uids(pods []pod, component string) (ids []string) {
	for _, p := range pods {
		if p.Metadata.Labels["app.kubernetes.io/component"] == component {
			ids = append(ids, p.Metadata.UID)
		}
	}
	return ids
}

// backup makes a dump now, and restores it after something was lost.
func backup(t *testing.T, r *release, a *api) {
	r.volume(r.name + "-backup")
	r.helm("upgrade", r.name, chart, "--reuse-values", "--set", "backup.enabled=true")
	r.ready()
	before := list(a.must(http.MethodGet, "/api/v1/certificates", nil), "certificates")
	require.NotEmpty(t, before)
	out, err := try(t, "", "bash", "-c", "cd ../../.. && "+documented(t, "backup-now"))
	require.NoError(t, err, out)
	require.Contains(t, out, "wrote /backup/certctl-")
	r.sql("DROP SCHEMA inventory CASCADE")
	out, err = try(t, "", "bash", "-c", "cd ../../.. && "+documented(t, "restore"))
	require.NoError(t, err, out)
	r.ready()
	require.Len(t, list(a.must(http.MethodGet, "/api/v1/certificates", nil), "certificates"), len(before))
	a.intact()
	r.helm("test", r.name)
}

// reinstall removes the release; what the chart keeps is enough for the same installation.
func reinstall(t *testing.T, r *release) {
	key := r.secret("certctl-server-auth", "api-key")
	a := r.api(key, r.ca())
	before := list(a.must(http.MethodGet, "/api/v1/certificates", nil), "certificates")
	agent := a.agent()
	out, err := try(t, "", "bash", "-c", "cd ../../.. && "+documented(t, "uninstall"))
	require.NoError(t, err, out)
	require.Eventually(t, func() bool {
		return len(r.pods("server")) == 0 && len(r.pods("postgres")) == 0 && len(r.pods("agent")) == 0
	}, patience, interval)
	out, err = try(t, "", "bash", "-c", "cd ../../.. && "+documented(t, "reinstall"))
	require.NoError(t, err, out)
	r.ready()
	r.neverRestarted()
	a = r.api(r.secret("certctl-server-auth", "api-key"), r.ca())
	require.Len(t, list(a.must(http.MethodGet, "/api/v1/certificates", nil), "certificates"), len(before))
	require.Equal(t, agent, a.agent())
	a.intact()
	r.helm("test", r.name)
}

// remedyThatLosesEverything has the database initialised anew, with another password.
func remedyThatLosesEverything(t *testing.T, r *release) {
	out, err := try(t, "", "bash", "-c", "cd ../../.. && "+documented(t, "trap-remedy-loses"))
	require.NoError(t, err, out)
	r.volume("data-" + r.name + "-postgres-0")
	out, err = try(t, "", "bash", "-c", "cd ../../.. && "+documented(t, "install"))
	require.NoError(t, err, out)
	r.ready()
	r.neverRestarted()
	a := r.api(r.secret("certctl-server-auth", "api-key"), r.ca())
	require.Empty(t, list(a.must(http.MethodGet, "/api/v1/certificates", nil), "certificates"))
	r.helm("test", r.name)
}

// TestScalingRotationKillsAndDrainsUnderLoad shakes one installation while certificates are made.
func TestScalingRotationKillsAndDrainsUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRelease(t, "certctl", "certctl-load")
	r.volume("data-" + r.name + "-postgres-0")
	r.install(append(basics(), "--wait", "--timeout", "5m")...) // hooks run after the wait: the first migration must not be one
	r.neverRestarted()
	a := r.api(firstKey, r.ca())
	upgrade := func(args ...string) {
		t.Helper()
		r.helm(append([]string{"upgrade", r.name, chart, "--reuse-values"}, args...)...)
		r.ready()
	}
	agent := a.agent()

	for _, services := range [][]string{{"server", "inventory"}, {"issuance", "renewal-scheduler"}, {"async-poller", "audit"}} {
		names := strings.Join(services, "-")
		t.Run("scale "+names, func(t *testing.T) {
			a.shake("scale-"+names, func() {
				upgrade("--set", services[0]+".replicas=3", "--set", services[1]+".replicas=3")
				require.Len(t, r.pods(services[0]), 3)
				require.Len(t, r.pods(services[1]), 3)
				upgrade("--set", services[0]+".replicas=1", "--set", services[1]+".replicas=1")
			})
		})
	}
	t.Run("kill pods", func(t *testing.T) {
		a.shake("kill", func() {
			for _, service := range []string{"server", "inventory", "issuance", "renewal-scheduler", "async-poller", "audit", "agent", "postgres"} {
				r.kubectl("delete", "pod", "-l", "app.kubernetes.io/instance="+r.name+",app.kubernetes.io/component="+service, "--grace-period=0", "--force")
				r.ready()
			}
		})
		require.Equal(t, agent, a.agent(), "a pod that was made anew is the same agent")
	})
	t.Run("drain", func(t *testing.T) {
		two := []string{}
		for _, service := range []string{"server", "inventory", "issuance", "renewal-scheduler", "async-poller", "audit"} {
			two = append(two, "--set", service+".replicas=2")
		}
		upgrade(two...)
		node := command(t, "kubectl", "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
		a.shake("drain", func() {
			// The only node: the replacement of what was evicted first has nowhere to go, so the budget must keep the second.
			out, err := try(t, "", "kubectl", "drain", node, "--pod-selector=app.kubernetes.io/instance="+r.name+",app.kubernetes.io/component notin (postgres,agent,migrate)",
				"--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=30s")
			require.Error(t, err, out)
			require.Contains(t, out, "disruption budget")
			for _, service := range []string{"server", "inventory", "issuance"} {
				running := 0
				for _, p := range r.pods(service) {
					if p.Status.Phase == "Running" && p.Metadata.DeletionTimestamp == nil {
						running++
					}
				}
				require.GreaterOrEqual(t, running, 1, service)
			}
			command(t, "kubectl", "uncordon", node)
			r.ready()
		})
	})
	t.Run("rotate API keys", func(t *testing.T) {
		next := r.api(nextKey, r.ca())
		a.shake("rotate-key", func() {
			upgrade("--set", set("server.auth.apiKey", nextKey+","+firstKey))
			require.Equal(t, http.StatusOK, next.status("/api/v1/agents"))
			require.Equal(t, http.StatusOK, a.status("/api/v1/agents"))
		})
		next.shake("rotate-key-2", func() { upgrade("--set", set("server.auth.apiKey", nextKey)) })
		require.Equal(t, http.StatusUnauthorized, a.status("/api/v1/agents"))
		require.Equal(t, agent, next.agent())
		a = next
	})
	t.Run("rotate the secrets that the chart made", func(t *testing.T) {
		// All in the same three steps. Before the old ones may go, audit has sealed and issuance has encrypted anew.
		secrets := map[string]string{"internalSecret": "internal-secret", "encryptionKey": "encryption-key", "roleSecret": "role-secret", "joinToken": "join-token"}
		done := map[string]string{"audit": "every anchor of the audit chain is sealed", "issuance": "every secret at rest is under the first key"}
		was, next := map[string]string{}, map[string]string{}
		for value, key := range secrets {
			raw := make([]byte, 32)
			_, _ = rand.Read(raw)
			was[value], next[value] = r.secret(r.name+"-secrets", key), base64.StdEncoding.EncodeToString(raw)
		}
		step := func(list func(value string) string) {
			var args []string
			for value := range secrets {
				args = append(args, "--set", set("global.secrets."+value, list(value)))
			}
			upgrade(args...)
		}
		a.shake("rotate-secrets", func() {
			step(func(v string) string { return was[v] + "," + next[v] })
			step(func(v string) string { return next[v] + "," + was[v] })
			for component, line := range done {
				require.Eventually(t, func() bool {
					for _, p := range r.pods(component) {
						if !strings.Contains(r.kubectl("logs", p.Metadata.Name), line) {
							return false
						}
					}
					return true
				}, patience, interval, "%s does not say: %s", component, line)
			}
			step(func(v string) string { return next[v] })
		})
		for value, key := range secrets {
			require.Equal(t, next[value], r.secret(r.name+"-secrets", key))
		}
	})
	t.Run("roll back", func(t *testing.T) {
		a.shake("rollback", func() {
			r.helm("rollback", r.name, "--wait")
			r.ready()
		})
	})
	r.neverRestarted()
	r.helm("test", r.name)
}

// TestAnUpgradeFromTheChartBeforeTakesOldValues upgrades from a chart that knew less.
func TestAnUpgradeFromTheChartBeforeTakesOldValues(t *testing.T) {
	t.Parallel()
	before := filepath.Join(t.TempDir(), "certctl")
	require.NoError(t, os.CopyFS(before, os.DirFS(chart)))
	// What an older chart did not have: a section, a key of every service, and a key of one.
	edit := func(name string, cut func(string) string) {
		path := filepath.Join(before, name)
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		text := cut(string(b))
		require.NotEqual(t, string(b), text)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	edit("values.yaml", func(s string) string {
		s, _, _ = strings.Cut(s, "# Dumps of the database to a claim.")
		for _, line := range []string{"    preStopSeconds: 5\n", "    orphanSearch: 1h\n", "  networkPolicy:\n    # -- Nothing"} {
			require.Contains(t, s, line)
		}
		return strings.Replace(strings.Replace(s, "    preStopSeconds: 5\n", "", 1), "    orphanSearch: 1h\n", "", 1)
	})
	edit("Chart.yaml", func(s string) string { return strings.Replace(s, "version: 0.1.0", "version: 0.0.9", 1) })
	edit("charts/common/templates/_defaults.tpl", func(s string) string {
		s = strings.Replace(strings.Replace(s, "0.1.0", "0.0.9", 1), "        preStopSeconds: 5\n", "", 1)
		return strings.Replace(s, "        orphanSearch: 1h\n", "", 1)
	})
	require.NoError(t, os.Remove(filepath.Join(before, "values.schema.json")))
	require.NoError(t, os.Remove(filepath.Join(before, "templates", "backup.yaml")))
	// What read them. (The service of that time had no preStop, and issuance its own interval.)
	edit("charts/common/templates/_service.tpl", func(s string) string {
		return strings.ReplaceAll(s, "int $values.preStopSeconds", "int 0")
	})
	edit("charts/issuance/templates/issuance.yaml", func(s string) string {
		return strings.Replace(s, "$values.intervals.orphanSearch", `"1h"`, 1)
	})

	r := newRelease(t, "certctl", "certctl-upgrade")
	r.volume("data-" + r.name + "-postgres-0")
	// Its image is the one that there is.
	r.helm(append([]string{"install", r.name, before, "--set", "global.image.tag=" + appVersion(t), "--set", "agent.image.tag=" + appVersion(t)}, basics()...)...)
	r.ready()
	a := r.api(firstKey, r.ca())
	database := uids(r.pods(""), "postgres")
	a.shake("upgrade", func() {
		for _, flag := range []string{"--reuse-values", "--reset-then-reuse-values"} {
			r.helm("upgrade", r.name, chart, flag, "--set", "global.commonLabels.step="+strings.Trim(flag, "-"))
			r.ready()
		}
	})
	require.Equal(t, database, uids(r.pods(""), "postgres"), "an upgrade is no reason to restart the database")
	r.helm("test", r.name)
	r.neverRestarted()
}

// appVersion is the version of the images.
func appVersion(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(chart, "Chart.yaml"))
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(b), "appVersion: \"")
	require.True(t, ok)
	version, _, ok := strings.Cut(rest, "\"")
	require.True(t, ok)
	return version
}

// certificate makes a self-signed certificate, as people do with openssl.
func certificate(t *testing.T, names ...string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}, &x509.Certificate{Subject: pkix.Name{CommonName: names[0]}}, k.Public(), k)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

// tlsSecret makes or replaces a Secret as `kubectl create secret tls` does, without ca.crt.
func (r *release) tlsSecret(name, cert, key string) {
	r.t.Helper()
	dir := r.t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	require.NoError(r.t, os.WriteFile(certFile, []byte(cert), 0o600))
	require.NoError(r.t, os.WriteFile(keyFile, []byte(key), 0o600))
	r.apply(r.kubectl("create", "secret", "tls", name, "--cert", certFile, "--key", keyFile, "--dry-run=client", "-o", "yaml"))
}

// TestACertificateOfOnesOwnUnderAnotherNameIsServedAndReplaced has a release of another name, a TLS Secret without ca.crt, and a second
// release of that name beside it.
func TestACertificateOfOnesOwnUnderAnotherNameIsServedAndReplaced(t *testing.T) {
	t.Parallel()
	one, other := newRelease(t, "edge", "certctl-one"), newRelease(t, "edge", "certctl-other")
	one.volume("data-" + one.name + "-postgres-0")
	other.volume("data-" + other.name + "-postgres-0")
	cert, key := certificate(t, one.host(), "localhost")
	one.tlsSecret("own", cert, key)
	one.install(append(basics(), "--set", "global.tls.existingSecret=own")...)
	other.install(basics()...)
	one.api(firstKey, cert).agent()
	other.api(firstKey, other.ca()).agent()
	one.helm("test", one.name)
	other.helm("test", other.name)

	next, nextKey := certificate(t, one.host(), "localhost")
	one.tlsSecret("own", next, nextKey)
	require.Eventually(t, func() bool { return servedBy(t, one) == next }, patience, interval, "the new certificate is not served")
	a := one.api(firstKey, next)
	agent := a.agent()
	// An agent that connects anew trusts the new certificate, too.
	one.kubectl("delete", "pod", "-l", "app.kubernetes.io/component=agent")
	one.ready()
	require.Equal(t, agent, a.agent())
	one.neverRestarted()
}

// servedBy answers the leaf certificate that the gateway serves, PEM.
func servedBy(t *testing.T, r *release) string {
	t.Helper()
	conn, err := tls.Dial("tcp", r.address(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return ""
	}
	defer func() { _ = conn.Close() }()
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: conn.ConnectionState().PeerCertificates[0].Raw}))
}

// TestARestrictedNamespaceHoldsTheControlPlane installs the control plane where Pod Security is restricted, on a Postgres of its own
// elsewhere that comes late, without authentication; and the agents in a namespace of their own.
func TestARestrictedNamespaceHoldsTheControlPlane(t *testing.T) {
	t.Parallel()
	db := newRelease(t, "db", "certctl-db")
	db.volume("data-" + db.name + "-postgres-0")
	r := newRelease(t, "certctl", "certctl-restricted", "pod-security.kubernetes.io/enforce=restricted")
	url := "postgres://certctl:" + strings.NewReplacer("/", "%2F", "@", "%40", "#", "%23", "%", "%25", "?", "%3F").Replace(password) +
		"@external." + db.ns + ".svc:5432/certctl?sslmode=disable"
	r.helm(append(small(), "install", r.name, chart, "--set", "agent.enabled=false", "--set", "postgresql.enabled=false", "--set", set("server.databaseUrl", url),
		"--set", "server.auth.type=none", "--set", "server.allowFrom[0].ipBlock.cidr=0.0.0.0/0", "--no-hooks")...)
	require.Eventually(t, func() bool {
		log, err := try(t, "", "kubectl", "-n", r.ns, "logs", "-l", "app.kubernetes.io/component=inventory")
		return err == nil && strings.Contains(log, "waiting for the database")
	}, patience, interval)
	db.apply(externalPostgres)
	r.ready()
	r.neverRestarted()
	r.helm("test", r.name)
	a := r.api("", r.ca())

	agents := newRelease(t, "agents", "certctl-agents")
	ca := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(ca, []byte(r.ca()), 0o600))
	agents.install("--set", "tags.control-plane=false", "--set", "postgresql.enabled=false", "--set", "agent.serverUrl=https://"+r.host()+":8443",
		"--set-file", "agent.serverCA="+ca, "--set", set("global.secrets.joinToken", r.secret("certctl-secrets", "join-token")))
	a.agent()
	a.intact()
}

// externalPostgres is a Postgres that is not the chart's.
const externalPostgres = `
apiVersion: v1
kind: Pod
metadata: {name: external, labels: {app: external}}
spec:
  securityContext: {runAsUser: 999, fsGroup: 999}
  containers:
    - name: postgres
      image: postgres:16-alpine
      env:
        - {name: POSTGRES_USER, value: certctl}
        - {name: POSTGRES_DB, value: certctl}
        - {name: POSTGRES_PASSWORD, value: 'p/a@s#s%w?o,r$d'}
        - {name: PGDATA, value: /data/pgdata}
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: external}
spec: {selector: {app: external}, ports: [{port: 5432}]}
`
