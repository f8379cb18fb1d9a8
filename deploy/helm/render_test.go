package helm_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
	helmchart "helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/strvals"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
)

const chartDir = "certctl"

// object is a rendered object.
type object map[string]any

func (o object) kind() string { return o["kind"].(string) }
func (o object) name() string { return o.at("metadata", "name").(string) }

// at goes down into maps and, by number, lists; nil when there is nothing.
func (o object) at(path ...any) any {
	var v any = map[string]any(o)
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, ok := v.(map[string]any)
			if !ok {
				return nil
			}
			v = m[p]
		case int:
			l, ok := v.([]any)
			if !ok || p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

// cluster is what `lookup` finds; nil: there is no cluster, as in `helm template`.
type cluster struct{ secrets []*corev1.Secret }

// GetClientFor implements engine.ClientProvider.
func (c *cluster) GetClientFor(_, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	if kind != "Secret" {
		return nil, false, fmt.Errorf("the chart looks up %s", kind)
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, false, err
	}
	var objects []runtime.Object
	for _, s := range c.secrets {
		objects = append(objects, s)
	}
	return fake.NewSimpleDynamicClient(scheme, objects...).Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}), true, nil
}

func secret(name string, data map[string]string) *corev1.Secret {
	s := &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Data: make(map[string][]byte)}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

const (
	releaseName = "rel"
	namespace   = "ns"
)

// rendering is how the chart is rendered.
type rendering struct {
	set     []string // as after --set
	upgrade bool
	cluster *cluster
	values  map[string]any // instead of set
	// reused gives the chart these values as its own, as --reuse-values does.
	reused map[string]any
}

// basic are the values that an install needs.
func basic(more ...string) rendering {
	return rendering{set: append([]string{"server.auth.apiKey=key-of-an-admin", "postgresql.auth.password=password-of-postgres"}, more...)}
}

func load(t testing.TB) *helmchart.Chart {
	t.Helper()
	c, err := loader.Load(chartDir)
	require.NoError(t, err)
	return c
}

// render answers the objects in the order of their names, or the error of the chart.
func (r rendering) render(t testing.TB) ([]object, error) {
	t.Helper()
	files, err := r.files(t)
	if err != nil {
		return nil, err
	}
	var objects []object
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		decoder := yaml.NewDecoder(strings.NewReader(files[name]))
		for {
			var o map[string]any
			if err := decoder.Decode(&o); err != nil {
				require.ErrorContains(t, err, "EOF", "%s\n%s", name, files[name])
				break
			}
			if o != nil {
				require.NotEmpty(t, object(o).at("metadata", "name"), "%s makes an object without a name:\n%s", name, files[name])
				objects = append(objects, o)
			}
		}
	}
	return objects, nil
}

// files answers what each template makes.
func (r rendering) files(t testing.TB) (map[string]string, error) {
	t.Helper()
	c := load(t)
	values := maps.Clone(r.values)
	if values == nil {
		values = map[string]any{}
	}
	for _, s := range r.set {
		require.NoError(t, strvals.ParseInto(s, values), s)
	}
	if r.reused != nil {
		c.Values = r.reused
	}
	if err := chartutil.ProcessDependenciesWithMerge(c, values); err != nil {
		return nil, err
	}
	caps := *chartutil.DefaultCapabilities
	caps.KubeVersion = chartutil.KubeVersion{Version: "v1.32.0", Major: "1", Minor: "32"}
	release := chartutil.ReleaseOptions{Name: releaseName, Namespace: namespace, Revision: 1, IsInstall: !r.upgrade, IsUpgrade: r.upgrade}
	input, err := chartutil.ToRenderValues(c, values, release, &caps)
	if err != nil {
		return nil, err
	}
	if r.cluster == nil {
		return engine.Render(c, input)
	}
	return engine.RenderWithClientProvider(c, input, r.cluster)
}

func (r rendering) must(t testing.TB) []object {
	t.Helper()
	objects, err := r.render(t)
	require.NoError(t, err)
	return objects
}

func find(t testing.TB, objects []object, kind, name string) object {
	t.Helper()
	for _, o := range objects {
		if o.kind() == kind && o.name() == name {
			return o
		}
	}
	require.Fail(t, "nothing is rendered as "+kind+" "+name)
	return nil
}

// podOf answers the pod template of an object that has one.
func (o object) pod() object {
	switch o.kind() {
	case "Deployment", "DaemonSet", "StatefulSet", "Job":
		return o.at("spec", "template").(map[string]any)
	case "CronJob":
		return o.at("spec", "jobTemplate", "spec", "template").(map[string]any)
	case "Pod":
		return o
	}
	return nil
}

func pods(objects []object) (with []object) {
	for _, o := range objects {
		if o.pod() != nil {
			with = append(with, o)
		}
	}
	return with
}

// containers of a pod template; init ones, too, when asked for.
func (o object) containers(init bool) (list []object) {
	keys := []string{"containers"}
	if init {
		keys = append(keys, "initContainers")
	}
	for _, key := range keys {
		all, _ := o.at("spec", key).([]any)
		for _, c := range all {
			list = append(list, c.(map[string]any))
		}
	}
	return list
}

// text is an object as YAML.
func text(t testing.TB, o any) string {
	t.Helper()
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	require.NoError(t, encoder.Encode(o))
	return b.String()
}
