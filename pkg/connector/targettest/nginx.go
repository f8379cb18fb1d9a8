package targettest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/target"
)

// NginxPath is where Debian has nginx.
const NginxPath = "/usr/sbin/nginx"

// Nginx is a private nginx on a free port of 127.0.0.1. Its configuration names the files by relative paths and in an
// included file, as configurations do.
type Nginx struct {
	Dir        string
	ConfigPath string
	SitePath   string
	Fullchain  string
	Key        string
	Address    string
	process    *exec.Cmd
}

// NewNginx writes a configuration and starts nothing. Without nginx on the host the test fails.
func NewNginx(t testing.TB) *Nginx {
	t.Helper()
	_, err := os.Stat(NginxPath)
	require.NoError(t, err, "the tests need a real nginx at %s (Debian: nginx-light)", NginxPath)
	dir := t.TempDir()
	for _, d := range []string{"conf.d", "tls"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, d), 0o750))
	}
	n := &Nginx{
		Dir: dir, ConfigPath: filepath.Join(dir, "nginx.conf"), SitePath: filepath.Join(dir, "conf.d", "site.conf"),
		Fullchain: filepath.Join(dir, "tls", "fullchain.pem"), Key: filepath.Join(dir, "tls", "key.pem"), Address: FreeAddress(t),
	}
	n.write(t, n.ConfigPath, `# a comment with a { brace
pid run.pid;
error_log "`+dir+`/error.log" notice;
worker_processes 2;
events { worker_connections 256; }
http {
	include mime.types;
	access_log off;
	client_body_temp_path `+dir+`/body; proxy_temp_path `+dir+`/proxy; fastcgi_temp_path `+dir+`/fastcgi;
	uwsgi_temp_path `+dir+`/uwsgi; scgi_temp_path `+dir+`/scgi;
	include conf.d/*.conf;
}
`)
	n.write(t, filepath.Join(dir, "mime.types"), "types { text/html html; }\n")
	n.Site(t, n.Address)
	return n
}

// Site writes the included file with a server that listens on the addresses.
func (n *Nginx) Site(t testing.TB, addresses ...string) {
	t.Helper()
	var listen bytes.Buffer
	for _, a := range addresses {
		_, _ = fmt.Fprintf(&listen, "listen %s ssl; ", a)
	}
	n.write(t, n.SitePath, fmt.Sprintf(`server {
	%s
	server_name www.example.com;
	ssl_certificate tls/fullchain.pem; # the full chain
	ssl_certificate_key "tls/key.pem";
	location ~ "^/a{2}$" { return 200 'it''s ; fine'; }
}
`, listen.String()))
	n.write(t, n.SitePath, string(bytes.ReplaceAll(n.read(t, n.SitePath), []byte("it''s"), []byte(`it\'s`))))
}

func (n *Nginx) write(t testing.TB, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

func (n *Nginx) read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

// Put writes a certificate and its key without any engine.
func (n *Nginx) Put(t testing.TB, m target.Material) {
	t.Helper()
	require.NoError(t, os.WriteFile(n.Fullchain, append(bytes.Clone(m.CertificatePEM), m.ChainPEM...), 0o600))
	require.NoError(t, os.WriteFile(n.Key, []byte(m.Key.Reveal()), 0o600))
}

// Start runs nginx until the test ends, and waits until it has written its pid file.
func (n *Nginx) Start(t testing.TB) {
	t.Helper()
	n.process = n.command("-g", "daemon off;")
	require.NoError(t, n.process.Start())
	t.Cleanup(n.Stop)
	require.Eventually(t, func() bool { return len(n.pid()) > 0 }, 10*time.Second, 5*time.Millisecond, "nginx did not start")
}

func (n *Nginx) pid() []byte {
	b, _ := os.ReadFile(filepath.Join(n.Dir, "run.pid"))
	return b
}

// Stop ends nginx and its workers.
func (n *Nginx) Stop() {
	if n.process == nil {
		return
	}
	_ = n.process.Process.Signal(syscall.SIGTERM) // the master ends its workers, by force after a second
	_ = n.process.Wait()
	n.process = nil
}

func (n *Nginx) command(args ...string) *exec.Cmd {
	return exec.CommandContext(context.Background(), NginxPath, append([]string{"-p", n.Dir, "-c", n.ConfigPath, "-e", filepath.Join(n.Dir, "error.log")}, args...)...)
}

// Reload tells nginx to reload as an operator would; the configuration may be one that it refuses.
func (n *Nginx) Reload() { _ = n.command("-s", "reload").Run() }

// Reloads counts how often the master was told to reload.
func (n *Nginx) Reloads() int {
	b, _ := os.ReadFile(filepath.Join(n.Dir, "error.log"))
	return bytes.Count(b, []byte("(SIGHUP) received"))
}

// Config is the configuration of a target for it.
func (n *Nginx) Config(more ...string) []byte {
	text := fmt.Sprintf(`{"fullchain_path":%q,"key_path":%q,"config_path":%q,"prefix":%q`, n.Fullchain, n.Key, n.ConfigPath, n.Dir)
	for _, m := range more {
		text += "," + m
	}
	return []byte(text + "}")
}

// FreeAddress gives a port of 127.0.0.1 that was free a moment ago. It is below those that systems give to clients (RFC 6335,
// section 6, names 49152 and up; Linux begins at 32768), as one of these could be taken before somebody listens on it.
func FreeAddress(t testing.TB) string {
	t.Helper()
	const first, last, tries = 10000, 32767, 100
	var c net.ListenConfig
	for range tries {
		address := fmt.Sprintf("127.0.0.1:%d", first+rand.IntN(last-first))
		if l, err := c.Listen(t.Context(), "tcp", address); err == nil {
			require.NoError(t, l.Close())
			return address
		}
	}
	require.Fail(t, "no port is free")
	return ""
}

// Restart stops nginx and starts it again, so that it serves what is on disk.
func (n *Nginx) Restart(t testing.TB) {
	t.Helper()
	n.Stop()
	require.NoError(t, os.RemoveAll(filepath.Join(n.Dir, "run.pid")))
	n.Start(t)
}
