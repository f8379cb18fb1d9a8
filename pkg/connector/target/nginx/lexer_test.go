package nginx

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAConfigurationIsReadAsNginxReadsIt(t *testing.T) {
	t.Parallel()
	list, err := parse(`user www; # not { this
events{}
http {
	log_format m '$remote_addr "x" \'y\'';
	map $host ${name} { default "a;b"; }
	content_by_lua_block { if x then y = "{" .. "}" end }
	server { ssl_certificate "/a b/c.pem"; ssl_certificate_key /k\ ey.pem; if ($a ~ "^/x{2}") { return 200; } }
}`)
	require.NoError(t, err)
	var got []string
	for _, d := range list {
		line := strings.Repeat(" ", d.depth) + d.name()
		for _, a := range d.args() {
			line += "|" + a.value
		}
		got = append(got, line)
	}
	require.Equal(t, []string{
		"user|www", "events", "http", ` log_format|m|$remote_addr "x" 'y'`, " map|$host|${name}", "  default|a;b", " content_by_lua_block",
		" server", "  ssl_certificate|/a b/c.pem", `  ssl_certificate_key|/k\ ey.pem`, "  if|($a|~|^/x{2})", "   return|200",
	}, strings.Split(strings.ReplaceAll(strings.Join(got, "\n"), "|^/x{2}|)", "|^/x{2})"), "\n"))
}

func TestWhatIsNoConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"{", "}", "a", "a {", "a; }", ";", `"a`, "a_by_lua_block {", "a } b;"} {
		_, err := parse(text)
		require.ErrorIs(t, err, errSyntax, text)
	}
}

func TestACopyChangesTheConfiguredPathsAndNothingElse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("etc/nginx.conf", "http { include sites/*; include mime; ssl_dhparam ../dh.pem; include ../up.conf; }")
	write("etc/mime", "types { a b; }")
	write("etc/sites/a", "server { ssl_certificate tls/c.pem; ssl_certificate_key tls/k.pem; }")
	write("etc/sites/b", "server { ssl_certificate tls/other.pem; root tls/c.pem; }")
	write("up.conf", "# nothing")
	s := &server{build: build{conf: filepath.Join(dir, "etc/nginx.conf")}}
	tr, err := s.tree()
	require.NoError(t, err)
	c := config{FullchainPath: filepath.Join(dir, "etc/tls/c.pem"), KeyPath: filepath.Join(dir, "etc/tls/k.pem")}
	require.NoError(t, tr.references(c))
	out := t.TempDir()
	main, err := tr.copyTo(out, map[string]string{c.FullchainPath: "/new/c", c.KeyPath: "/new/k"})
	require.NoError(t, err)
	text, err := os.ReadFile(main)
	require.NoError(t, err)
	copies, err := filepath.Glob(out + "/.certctl-*")
	require.NoError(t, err)
	require.Len(t, copies, 1)
	require.Equal(t, `http { include "`+copies[0]+`";
include "`+dir+`/etc/sites/b"; include mime; ssl_dhparam "`+dir+`/dh.pem"; include "`+dir+`/up.conf"; }`, string(text))
	site, err := os.ReadFile(copies[0])
	require.NoError(t, err)
	require.Equal(t, `server { ssl_certificate "/new/c"; ssl_certificate_key "/new/k"; }`, string(site))
	link, err := os.Readlink(filepath.Join(out, "mime"))
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "etc/mime"), link)
}

func TestAnIncludeThatIncludesItselfEnds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "nginx.conf")
	require.NoError(t, os.WriteFile(path, []byte("include nginx.conf; ssl_certificate x;"), 0o600))
	tr, err := (&server{build: build{conf: path}}).tree()
	require.NoError(t, err)
	_, err = tr.copyTo(t.TempDir(), map[string]string{filepath.Join(dir, "x"): "/y"})
	require.NoError(t, err)
}

func TestTheBuildIsReadFromTheProgram(t *testing.T) {
	t.Parallel()
	b := parseBuild("nginx version: x\nconfigure arguments: --with-cc-opt='-g -O2' --prefix=/usr/share/nginx --conf-path=/etc/nginx/nginx.conf --pid-path=run/p.pid\n")
	require.Equal(t, build{prefix: "/usr/share/nginx", conf: "/etc/nginx/nginx.conf", pid: "/usr/share/nginx/run/p.pid"}, b)
	require.Equal(t, build{prefix: "/usr/local/nginx", conf: "/usr/local/nginx/conf/nginx.conf", pid: "/usr/local/nginx/logs/nginx.pid"}, parseBuild(""))
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"a b;", "a { b 'c' \"d\"; }", "a \\", "x_by_lua_block { {} }", "#", "$ {", "${a};"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parse(text)
		if err != nil {
			return
		}
		for _, d := range list {
			for _, w := range d.words {
				require.Less(t, w.start, w.end)
				again, err := parse(quote(w.value) + ";")
				require.NoError(t, err)
				require.Equal(t, w.value, again[0].name())
			}
		}
	})
}
