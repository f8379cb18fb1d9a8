package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/targettest"
	"github.com/certctl/certctl/pkg/testpg"
)

// publicName is the name of certctl in the example configurations.
const publicName = "certctl.example.com"

// world is what is around certctl: a CA, and an OpenID provider.
type world struct {
	ca       *targettest.Authority
	provider *provider
}

// front is a running authenticating proxy.
type front struct {
	dir     string // what others may look into
	address string
	url     string
	logs    func() string // who did what, by request id
}

// behind says what a front stands before.
type behind struct {
	address string // host:port of certctl
	ca      []byte // PEM, what it trusts for it
	edit    []string
}

type frontKind struct {
	name  string
	start func(*testing.T, *world, behind) *front
	grpc  bool // lets agents and the command-line client through
}

func fronts() []frontKind {
	return []frontKind{{"nginx", startNginx, true}, {"Caddy", startCaddy, true}, {"Apache", startApache, false}}
}

// oauth2Proxy builds oauth2-proxy, once.
var oauth2Proxy = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(binaries.certctl), "oauth2-proxy")
	build := exec.Command("go", "build", "-o", path, "github.com/oauth2-proxy/oauth2-proxy/v7")
	build.Dir = filepath.Join(root, "deploy", "auth-proxy", "tools")
	build.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build oauth2-proxy: %w\n%s", err, out)
	}
	return path, nil
})

// newFront makes the files that all fronts have.
func newFront(t *testing.T, w *world, b behind) *front {
	t.Helper()
	f := &front{dir: testpg.Dir(t), address: targettest.FreeAddress(t)}
	_, port, err := net.SplitHostPort(f.address)
	require.NoError(t, err)
	f.url = "https://" + net.JoinHostPort(publicName, port)
	m := w.ca.Issue(t, publicName, "localhost")
	f.write(t, "tls.crt", append(m.CertificatePEM, m.ChainPEM...))
	f.write(t, "tls.key", []byte(m.Key.Reveal()))
	f.write(t, "certctl-ca.crt", b.ca)
	f.write(t, "idp-ca.crt", targettest.PEM(w.ca.Root))
	return f
}

func (f *front) file(name string) string { return filepath.Join(f.dir, name) }

func (f *front) write(t *testing.T, name string, content []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(f.file(name), content, 0o644))
}

func (f *front) port() string {
	_, port, _ := strings.Cut(f.address, ":")
	return port
}

// configure writes an example configuration with values of the test in place of the example's. Each of these must be there.
func (f *front) configure(t *testing.T, example, name string, values ...string) {
	t.Helper()
	text := read(t, filepath.Join(root, "deploy", "auth-proxy", example))
	for i := 0; i < len(values); i += 2 {
		require.Contains(t, text, values[i], "%s has no %q to put %q in place of", example, values[i], values[i+1])
	}
	f.write(t, name, []byte(strings.NewReplacer(values...).Replace(text)))
}

// process runs a program until the test ends, and waits until it listens.
func (f *front) process(t *testing.T, address string, p *process) {
	t.Helper()
	p.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + f.dir}
	(&installation{processes: map[string]*process{}}).add(t, p)
	ended := false
	require.Eventually(t, func() bool {
		select {
		case <-p.done:
			ended = true
			return true
		default:
		}
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	}, patience, interval, "%s does not listen on %s", p.name, address)
	require.False(t, ended, "%s ended: %v\n%s", p.name, p.err, p.output())
}

// startOAuth2Proxy gives the address of an oauth2-proxy, and its log.
func (f *front) startOAuth2Proxy(t *testing.T, w *world, edit ...string) (address string, p *process) {
	t.Helper()
	path, err := oauth2Proxy()
	require.NoError(t, err)
	address = targettest.FreeAddress(t)
	runSteps(t, f.dir, "secrets of oauth2-proxy", "/etc/oauth2-proxy/", f.dir+"/")
	f.configure(t, "oauth2-proxy/oauth2-proxy.cfg", "oauth2-proxy.cfg", append(edit,
		"127.0.0.1:4180", address, "https://idp.example.com", w.provider.url, "# provider_ca_files", "provider_ca_files",
		"https://"+publicName, f.url, "/etc/oauth2-proxy/", f.dir+"/")...)
	p = &process{name: "oauth2-proxy", path: path, args: []string{"--config", f.file("oauth2-proxy.cfg")}}
	f.process(t, address, p)
	return address, p
}

func startNginx(t *testing.T, w *world, b behind) *front {
	t.Helper()
	f := newFront(t, w, b)
	f.configureNginx(t, w, b)
	f.serveNginx(t)
	return f
}

func (f *front) configureNginx(t *testing.T, w *world, b behind) {
	t.Helper()
	auth, _ := f.startOAuth2Proxy(t, w, b.edit...)
	f.configure(t, "nginx/certctl.conf", "certctl.conf", "listen 443 ssl", "listen "+f.address+" ssl", "/etc/nginx/tls/certctl.crt", f.file("tls.crt"),
		"/etc/nginx/tls/certctl.key", f.file("tls.key"), "/etc/nginx/certctl-ca.crt", f.file("certctl-ca.crt"),
		"/var/log/nginx/certctl.log", f.file("access.log"), "127.0.0.1:8443", b.address, "127.0.0.1:4180", auth)
}

// serveNginx starts nginx with all that is in the directory as conf.d.
func (f *front) serveNginx(t *testing.T) {
	t.Helper()
	f.write(t, "nginx.main", []byte(`pid `+f.file("nginx.pid")+`;
error_log stderr info;
daemon off;
worker_processes 2;
events { worker_connections 256; }
http {
	client_body_temp_path `+f.file("body")+`; proxy_temp_path `+f.file("proxy")+`; fastcgi_temp_path `+f.file("fastcgi")+`;
	uwsgi_temp_path `+f.file("uwsgi")+`; scgi_temp_path `+f.file("scgi")+`;
	include `+f.dir+`/*.conf;
}
`))
	f.process(t, f.address, &process{name: "nginx", path: targettest.NginxPath, args: []string{"-p", f.dir, "-c", f.file("nginx.main"), "-e", "stderr"}})
	f.logs = func() string { return read(t, f.file("access.log")) }
}

func startCaddy(t *testing.T, w *world, b behind) *front {
	t.Helper()
	f := newFront(t, w, b)
	auth, p := f.startOAuth2Proxy(t, w, b.edit...)
	f.configure(t, "caddy/Caddyfile", "site.caddy", "\n"+publicName+" {", "\n"+f.url+", https://localhost:"+f.port()+" {",
		"/etc/caddy/tls/certctl.crt", f.file("tls.crt"), "/etc/caddy/tls/certctl.key", f.file("tls.key"), "/etc/caddy/certctl-ca.crt", f.file("certctl-ca.crt"),
		"/var/log/caddy/certctl.log", f.file("access.log"), "127.0.0.1:8443", b.address, "127.0.0.1:4180", auth)
	f.write(t, "Caddyfile", []byte("{\n\tadmin off\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n\tstorage file_system "+f.file("storage")+"\n}\nimport site.caddy\n"))
	f.process(t, f.address, &process{name: "caddy", path: "/usr/bin/caddy", args: []string{"run", "--config", f.file("Caddyfile"), "--adapter", "caddyfile"}})
	f.logs = p.output
	return f
}

func startApache(t *testing.T, w *world, b behind) *front {
	t.Helper()
	f := newFront(t, w, b)
	runSteps(t, f.dir, "secrets of mod_auth_openidc", "/etc/apache2/", f.dir+"/")
	f.configure(t, "apache/certctl.conf", "certctl.conf", "*:443", f.address, "https://idp.example.com", w.provider.url, "# OIDCCABundlePath ", "OIDCCABundlePath ",
		"https://"+publicName, f.url, "/etc/apache2/tls/certctl.crt", f.file("tls.crt"), "/etc/apache2/tls/certctl.key", f.file("tls.key"),
		"/etc/apache2/", f.dir+"/", "/var/log/apache2/certctl.log", f.file("access.log"), "127.0.0.1:8443", b.address)
	modules := ""
	for _, name := range []string{"mpm_event", "authn_core", "authz_core", "auth_openidc", "headers", "socache_shmcb", "ssl", "proxy", "proxy_http"} {
		modules += "LoadModule " + name + "_module /usr/lib/apache2/modules/mod_" + name + ".so\n"
	}
	if os.Geteuid() == 0 {
		modules += "User www-data\nGroup www-data\n"
	}
	f.write(t, "apache.main", []byte(modules+`ServerRoot `+f.dir+`
DefaultRuntimeDir `+f.dir+`
PidFile apache.pid
ServerName `+publicName+`
ErrorLog /dev/stderr
Listen `+f.address+`
Include `+f.file("certctl.conf")+"\n"))
	f.process(t, f.address, &process{name: "apache2", path: "/usr/sbin/apache2", args: []string{"-f", f.file("apache.main"), "-DFOREGROUND"}})
	f.logs = func() string { return read(t, f.file("access.log")) }
	return f
}

// transport reaches the front under its public name.
func (f *front) transport(w *world) *http.Transport {
	roots := x509.NewCertPool()
	roots.AddCert(w.ca.Root)
	return &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if host, _, _ := net.SplitHostPort(address); host == publicName {
				address = f.address
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
}
