package e2e_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	// root is the top of the source tree, seen from here.
	root = "../.."
	ours = "github.com/certctl/certctl/"
)

// ban forbids a package, and all below it, anywhere in what some packages link.
type ban struct{ prefix, reason string }

var (
	noDatabase = []ban{
		{"github.com/jackc/pgx", "the driver of a database that it never talks to"},
		{"github.com/pressly/goose", "migrations are the server's"},
		{ours + "pkg/pg", "the way to a database that it never talks to"},
	}
	noTestHelpers = []ban{
		{"github.com/stretchr/testify", "test helpers stay out of the product"},
		{ours + "pkg/testpg", "test helpers stay out of the product"},
		{ours + "pkg/testrpc", "test helpers stay out of the product"},
		{ours + "pkg/connector/issuertest", "a CA that signs anything stays out of the product"},
		{ours + "pkg/connector/targettest", "test helpers stay out of the product"},
	}
)

// boundary says what packages must never link, also not by way of others: depguard sees only direct imports.
type boundary struct {
	module   string // folder of the module
	packages string // pattern within it
	bans     []ban
}

func boundaries(t *testing.T) []boundary {
	t.Helper()
	list := []boundary{
		{"agent", "./cmd/certctl-agent", slices.Concat(noDatabase, noTestHelpers, []ban{
			{ours + "services", "the agent runs on customers' hosts and links no server code"},
			{ours + "gateway", "the agent runs on customers' hosts and links no server code"},
			{ours + "pkg/connector/issuer", "the agent never talks to a CA and knows no credential of one"},
			{ours + "pkg/embeddedpg", "the agent starts no database"},
		})},
		{"gateway", ".", slices.Concat(noDatabase, noTestHelpers, []ban{
			{ours + "services", "the gateway meets services through generated clients only"},
			{ours + "agent", "the gateway passes agents through and knows nothing of them"},
			{ours + "pkg/connector", "the gateway knows no CA and no server software"},
		})},
		{"services", "./cmd/certctl", noTestHelpers},
		{"pkg/connector", "./...", slices.Concat(noDatabase, []ban{
			{ours + "services", "a connector knows its CA or server, no service"},
			{ours + "gateway", "a connector knows its CA or server, not the gateway"},
			{ours + "agent", "a connector knows its CA or server, not the agent"},
		})},
		{"pkg", "./...", []ban{
			{ours + "services", "pkg is plumbing: services use it, it never uses them"},
			{ours + "gateway", "pkg is below the gateway"},
			{ours + "agent", "pkg is below the agent"},
			{ours + "pkg/connector", "connectors use pkg, never the other way round"},
		}},
		{"proto", "./...", []ban{
			{ours + "pkg", "whoever speaks to certctl imports proto, and nothing else of certctl with it"},
			{ours + "services", "whoever speaks to certctl imports proto, and nothing else of certctl with it"},
		}},
	}
	names := services(t)
	for _, name := range names {
		bans := []ban{
			{ours + "gateway", "services do not know the edge"},
			{ours + "agent", "services do not link the agent"},
		}
		for _, other := range names {
			if other != name {
				bans = append(bans, ban{ours + "services/" + other, "services meet through generated clients only"})
			}
		}
		if slices.Contains([]string{"audit", "inventory", "renewalscheduler"}, name) {
			bans = append(bans, ban{ours + "pkg/connector/issuer", "only issuance and asyncpoller know CA protocols"})
		}
		list = append(list, boundary{"services", "./" + name, slices.Concat(bans, noTestHelpers)})
	}
	return list
}

// services are the folders of the services.
func services(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(root, "services"))
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		if e.IsDir() && e.Name() != "cmd" {
			names = append(names, e.Name())
		}
	}
	require.Contains(t, names, "inventory")
	require.Greater(t, len(names), 3)
	return names
}

func TestNobodyLinksWhatIsBeyondItsBoundary(t *testing.T) {
	t.Parallel()
	for _, b := range boundaries(t) {
		t.Run(b.module+"/"+b.packages, func(t *testing.T) {
			t.Parallel()
			g := link(t, b.module, b.packages)
			for _, ban := range b.bans {
				for _, pkg := range slices.Sorted(maps.Keys(g.imports)) {
					if within(pkg, ban.prefix) && !g.listed[pkg] {
						t.Errorf("%s must not link %s: %s\n  by way of %s", b.packages, pkg, ban.reason, strings.Join(g.path(pkg), "\n          -> "))
						break // one way in is enough to begin with
					}
				}
			}
		})
	}
}

func TestTheSearchFindsWhatIsLinkedByWayOfOthers(t *testing.T) {
	t.Parallel()
	g := link(t, "services", "./cmd/certctl")
	for _, prefix := range []string{"github.com/jackc/pgx", ours + "agent", ours + "gateway", ours + "services/audit"} {
		require.True(t, slices.ContainsFunc(slices.Collect(maps.Keys(g.imports)), func(p string) bool { return within(p, prefix) }), prefix)
	}
	path := g.path("github.com/jackc/pgx/v5/pgconn")
	require.Greater(t, len(path), 2)
	require.Equal(t, ours+"services/cmd/certctl", path[0])
	require.False(t, within("testing/synctest2", "testing/synctest"))
	require.False(t, within(ours+"pkg/page", ours+"pkg/pg"))
}

func within(pkg, prefix string) bool { return pkg == prefix || strings.HasPrefix(pkg, prefix+"/") }

// graph is what some packages link.
type graph struct {
	imports map[string][]string
	listed  map[string]bool // those that the pattern names
}

func link(t *testing.T, module, pattern string) graph {
	t.Helper()
	g := graph{imports: map[string][]string{}, listed: map[string]bool{}}
	for line := range strings.Lines(goList(t, module, "-deps", "-f", "{{.ImportPath}} {{.DepOnly}}{{range .Imports}} {{.}}{{end}}", pattern)) {
		words := strings.Fields(line)
		require.GreaterOrEqual(t, len(words), 2, line)
		g.imports[words[0]] = words[2:]
		g.listed[words[0]] = words[1] == "false"
	}
	require.NotEmpty(t, g.imports)
	return g
}

// path is a shortest way to a package, for the one who has to break it.
func (g graph) path(to string) []string {
	from := map[string]string{}
	queue := slices.DeleteFunc(slices.Sorted(maps.Keys(g.listed)), func(p string) bool { return !g.listed[p] })
	for _, p := range queue {
		from[p] = ""
	}
	for ; len(queue) > 0; queue = queue[1:] {
		for _, p := range g.imports[queue[0]] {
			if _, seen := from[p]; !seen {
				from[p] = queue[0]
				queue = append(queue, p)
			}
		}
	}
	var path []string
	for p := to; p != ""; p = from[p] {
		path = append(path, p)
	}
	slices.Reverse(path)
	return path
}

func goList(t *testing.T, module string, args ...string) string {
	t.Helper()
	var problems strings.Builder
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	cmd.Dir, cmd.Stderr = filepath.Join(root, module), &problems
	out, err := cmd.Output()
	require.NoError(t, err, problems.String())
	return string(out)
}

// source is the Go files of one package, without generated ones.
type source struct {
	name  string
	docs  []string // "file: comment"
	tests bool     // there is nothing but tests
}

func TestEveryPackageHasOneComment(t *testing.T) {
	t.Parallel()
	all := sources(t)
	require.Greater(t, len(all), 50)
	for _, dir := range slices.Sorted(maps.Keys(all)) {
		s := all[dir]
		if len(s.docs) != 1 {
			t.Errorf("package %s in %s has %d package comments, not one: %s", s.name, dir, len(s.docs), strings.Join(s.docs, "; "))
			continue
		}
		_, text, _ := strings.Cut(s.docs[0], ": ")
		want := "Package " + s.name + " "
		if s.name == "main" {
			want = "Command "
		}
		if !strings.HasPrefix(text, want) {
			t.Errorf("the comment of package %s in %s does not begin with %q: %s", s.name, dir, want, text)
		}
	}
}

// sources reads every package of every module. Tests count only where there is nothing else.
func sources(t *testing.T) map[string]*source {
	t.Helper()
	all := map[string]*source{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if name := e.Name(); name != ".." && (name[0] == '.' || name[0] == '_' || name == "testdata" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		return addFile(all, path)
	})
	require.NoError(t, err)
	return all
}

func addFile(all map[string]*source, path string) error {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.PackageClauseOnly|parser.ParseComments)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if ast.IsGenerated(f) {
		return nil
	}
	dir, test := filepath.Dir(path), strings.HasSuffix(path, "_test.go")
	s := all[dir]
	switch {
	case s == nil, s.tests && !test:
		s = &source{name: f.Name.Name, tests: test}
		all[dir] = s
	case !s.tests && test:
		return nil
	}
	if f.Doc != nil {
		s.docs = append(s.docs, filepath.Base(path)+": "+strings.TrimSpace(f.Doc.Text()))
	}
	return nil
}
