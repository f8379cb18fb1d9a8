//go:build cluster

// Package e2e installs the chart into the cluster that KUBECONFIG names, with real pods. It is run by `make helm-e2e`; see
// docs/dev/testing.md for what the cluster has to offer.
package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	chart    = "../certctl"
	patience = 4 * time.Minute
	interval = 500 * time.Millisecond
)

// command runs a program and answers what it printed; it must succeed.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(t, "", name, args...)
	require.NoError(t, err, "%s %s\n%s", name, strings.Join(args, " "), out)
	return out
}

// try runs a program and answers what it printed, errors included.
func try(t *testing.T, stdin, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

// release is one installation of the chart.
type release struct {
	t    *testing.T
	name string
	ns   string
}

// namespaces are made anew: their names must not be taken by what an earlier run left.
func newRelease(t *testing.T, name, ns string, labels ...string) *release {
	t.Helper()
	r := &release{t: t, name: name, ns: ns}
	command(t, "kubectl", "create", "namespace", ns)
	t.Cleanup(func() {
		if t.Failed() {
			r.report()
		}
		if os.Getenv("HELM_E2E_KEEP") == "" {
			r.remove()
		}
	})
	for _, l := range labels {
		command(t, "kubectl", "label", "namespace", ns, l)
	}
	return r
}

// remove takes the namespace away, with its volumes.
func (r *release) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, args := range [][]string{
		{"helm", "-n", r.ns, "uninstall", r.name, "--ignore-not-found", "--no-hooks"},
		{"kubectl", "delete", "namespace", r.ns, "--wait=true"},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			r.t.Logf("%v: %v\n%s", args, err, out)
		}
	}
	for _, dir := range r.volumes() {
		_ = os.RemoveAll(dir)
	}
	_ = exec.CommandContext(ctx, "kubectl", "delete", "pv", "-l", "certctl-e2e="+r.ns).Run()
}

// report shows what the cluster thinks of a release that failed.
func (r *release) report() {
	for _, args := range [][]string{
		{"get", "pods,jobs,pvc", "-o", "wide"},
		{"get", "events", "--sort-by=.lastTimestamp"},
		{"logs", "-l", "app.kubernetes.io/name=certctl", "--all-containers", "--prefix", "--tail=15", "--max-log-requests=30"},
	} {
		out, _ := exec.CommandContext(context.Background(), "kubectl", append([]string{"-n", r.ns}, args...)...).CombinedOutput()
		r.t.Logf("kubectl %v\n%s", args, tail(string(out), 8000))
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func (r *release) kubectl(args ...string) string {
	r.t.Helper()
	return command(r.t, "kubectl", append([]string{"-n", r.ns}, args...)...)
}

func (r *release) helm(args ...string) string {
	r.t.Helper()
	return command(r.t, "helm", append([]string{"-n", r.ns}, args...)...)
}

// apply makes objects of YAML.
func (r *release) apply(yaml string) {
	r.t.Helper()
	out, err := try(r.t, yaml, "kubectl", "-n", r.ns, "apply", "-f", "-")
	require.NoError(r.t, err, out)
}

// volume gives a claim a volume where the cluster makes none by itself: a directory of this node, in
// HELM_E2E_VOLUME_DIR.
func (r *release) volume(claim string) {
	r.t.Helper()
	root := os.Getenv("HELM_E2E_VOLUME_DIR")
	if root == "" {
		return
	}
	name := fmt.Sprintf("certctl-e2e-%s-%d", r.ns, volumeNumber.Add(1))
	dir := filepath.Join(root, name)
	require.NoError(r.t, os.MkdirAll(dir, 0o755))
	node := command(r.t, "kubectl", "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
	r.apply(`{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":"` + name + `","labels":{"certctl-e2e":"` + r.ns + `"}},
		"spec":{"capacity":{"storage":"10Gi"},"accessModes":["ReadWriteOnce"],"persistentVolumeReclaimPolicy":"Retain","local":{"path":"` + dir + `"},"claimRef":{"namespace":"` + r.ns + `","name":"` + claim + `"},
		"nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"kubernetes.io/hostname","operator":"In","values":["` + node + `"]}]}]}}}}`)
}

func (r *release) volumes() []string {
	dirs, _ := filepath.Glob(filepath.Join(os.Getenv("HELM_E2E_VOLUME_DIR"), "certctl-e2e-"+r.ns+"-[0-9]*"))
	return dirs
}

var volumeNumber atomic.Int64

// install installs the chart and waits until all of it is ready.
func (r *release) install(args ...string) {
	r.t.Helper()
	r.helm(append([]string{"install", r.name, chart}, args...)...)
	r.ready()
}

// ready waits until every pod that is to stay is ready, and no old one is left.
func (r *release) ready() {
	r.t.Helper()
	var pods []pod
	ok := false
	defer func() {
		if !ok {
			r.t.Logf("pods: %+v", pods)
		}
	}()
	require.Eventually(r.t, func() bool {
		pods = r.pods("")
		kinds := r.kubectl("get", "deployments,statefulsets,daemonsets", "-o", "json")
		var list struct {
			Items []struct {
				Kind     string
				Metadata struct {
					Name       string
					Generation int64
				}
				Spec   struct{ Replicas int }
				Status struct {
					ObservedGeneration                                          int64
					Replicas, ReadyReplicas, UpdatedReplicas                    int
					DesiredNumberScheduled, NumberReady, UpdatedNumberScheduled int
				}
			}
		}
		require.NoError(r.t, json.Unmarshal([]byte(kinds), &list))
		for _, i := range list.Items {
			s := i.Status
			if s.ObservedGeneration != i.Metadata.Generation {
				return false
			}
			if i.Kind == "DaemonSet" {
				if s.NumberReady != s.DesiredNumberScheduled || s.UpdatedNumberScheduled != s.DesiredNumberScheduled {
					return false
				}
				continue
			}
			if s.ReadyReplicas != i.Spec.Replicas || s.UpdatedReplicas != i.Spec.Replicas || s.Replicas != i.Spec.Replicas {
				return false
			}
		}
		for _, p := range pods {
			if p.Metadata.DeletionTimestamp != nil {
				return false
			}
		}
		return len(list.Items) > 0
	}, patience, interval, "%s in %s did not become ready", r.name, r.ns)
	ok = true
}

// pod is what we look at in a pod.
type pod struct {
	Metadata struct {
		Name              string
		UID               string
		Labels            map[string]string
		DeletionTimestamp *string
	}
	Status struct {
		Phase             string
		ContainerStatuses []struct {
			RestartCount int
			Ready        bool
		}
	}
}

// pods answers those of a component, or all.
func (r *release) pods(component string) []pod {
	r.t.Helper()
	selector := "app.kubernetes.io/instance=" + r.name
	if component != "" {
		selector += ",app.kubernetes.io/component=" + component
	}
	var list struct{ Items []pod }
	require.NoError(r.t, json.Unmarshal([]byte(r.kubectl("get", "pods", "-l", selector, "-o", "json")), &list))
	return list.Items
}

// neverRestarted sees that no container was started twice.
func (r *release) neverRestarted() {
	r.t.Helper()
	for _, p := range r.pods("") {
		for _, c := range p.Status.ContainerStatuses {
			require.Zero(r.t, c.RestartCount, "%s was restarted", p.Metadata.Name)
		}
	}
}

// secret reads a key of a Secret.
func (r *release) secret(name, key string) string {
	r.t.Helper()
	text := r.kubectl("get", "secret", name, "-o", "jsonpath={.data."+strings.ReplaceAll(key, ".", `\.`)+"}")
	b, err := base64.StdEncoding.DecodeString(text)
	require.NoError(r.t, err)
	return string(b)
}

// sql asks the bundled Postgres, as its superuser, over the socket in the pod.
func (r *release) sql(statement string) string {
	r.t.Helper()
	return r.kubectl("exec", r.name+"-postgres-0", "--", "psql", "-U", "certctl", "-d", "certctl", "-Atc", statement)
}
