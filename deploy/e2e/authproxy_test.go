package e2e_test

import (
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/targettest"
	"github.com/certctl/certctl/pkg/testpg"
)

const authProxyDocument = "docs/operator/auth-proxy.md"

// step is a block of shell that the document shows, after a comment that names it.
var step = regexp.MustCompile("(?ms)^<!-- run: ([^\n]*) -->\n+```sh\n(.*?)^```$")

// runSteps runs a block of the document, with values of the test in place of the example's.
func runSteps(t *testing.T, dir, name string, values ...string) (output string) {
	t.Helper()
	for _, m := range step.FindAllStringSubmatch(read(t, filepath.Join(root, authProxyDocument)), -1) {
		if m[1] != name {
			continue
		}
		for i := 0; i < len(values); i += 2 {
			require.Contains(t, m[2], values[i])
		}
		cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", strings.NewReplacer(values...).Replace(m[2]))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CLIENT_SECRET="+clientSecret)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s:\n%s\n%s", name, m[2], out)
		return string(out)
	}
	require.Fail(t, "no such step", "%s has no block after <!-- run: %s -->", authProxyDocument, name)
	return ""
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ca := targettest.NewAuthority(t)
	return &world{ca: ca, provider: startProvider(t, ca, map[string][]string{
		"alice": {"staff", "certctl-admins"}, "bob": {"staff", "certctl-operators"}, "mallory": {"staff"},
	})}
}

func caOf(t *testing.T, in *installation) []byte {
	t.Helper()
	return []byte(read(t, in.caFile))
}

// visitor is a browser or a script in front of the proxy.
type visitor struct {
	front  *front
	client *http.Client
	bearer string
}

func (f *front) visit(t *testing.T, w *world, bearer string) *visitor {
	t.Helper()
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	transport := f.transport(w)
	t.Cleanup(transport.CloseIdleConnections)
	return &visitor{front: f, bearer: bearer, client: &http.Client{Jar: jar, Transport: transport, Timeout: patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// send does a call without following redirects.
func (v *visitor) send(t *testing.T, c call) answer {
	t.Helper()
	target := c.path
	if strings.HasPrefix(target, "/") {
		target = v.front.url + target
	}
	req, err := http.NewRequestWithContext(t.Context(), c.method, target, c.reader(t))
	require.NoError(t, err)
	if v.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+v.bearer)
	}
	for k, value := range c.header {
		req.Header.Set(k, value)
	}
	resp, err := v.client.Do(req)
	require.NoError(t, err, "%s %s", c.method, c.path)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	require.NoError(t, err)
	return answer{status: resp.StatusCode, header: resp.Header, body: string(b)}
}

// page asks as a browser does that shows a page.
func (v *visitor) page(t *testing.T, path string) answer {
	t.Helper()
	return v.send(t, call{method: http.MethodGet, path: path, header: map[string]string{
		"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "none",
	}})
}

// follow goes where redirects lead, and tells where that is.
func (v *visitor) follow(t *testing.T, a answer, from string) (end answer, at string) {
	t.Helper()
	const most = 10
	at = from
	for range most {
		if a.status != http.StatusFound && a.status != http.StatusSeeOther {
			return a, at
		}
		base, err := url.Parse(at)
		require.NoError(t, err)
		next, err := base.Parse(a.header.Get("Location"))
		require.NoError(t, err)
		at = next.String()
		a = v.page(t, at)
	}
	require.Fail(t, "too many redirects", "at %s", at)
	return a, at
}

// logIn goes to a page, types name and password in at the provider, and ends at the page again.
func (v *visitor) logIn(t *testing.T, w *world, user, path string) (end answer, at string) {
	t.Helper()
	form, at := v.follow(t, v.page(t, path), v.front.url+path)
	require.True(t, strings.HasPrefix(at, w.provider.url+"/authorize?"), "sent to %s", at)
	require.Contains(t, form.body, `<form method="post">`)
	a := v.send(t, call{method: http.MethodPost, path: at, body: url.Values{"user": {user}, "password": {password}}.Encode(),
		header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}})
	require.Equal(t, http.StatusFound, a.status, a.body)
	return v.follow(t, a, at)
}

// create asks for a certificate.
func create(id string, header map[string]string) call {
	return call{method: http.MethodPost, path: "/api/v1/certificates", header: header,
		body: object{"id": id, "name": id, "issuer_id": "iss-local", "dns_names": []string{id + ".example.com"}}}
}

const certificates = "/api/v1/certificates"

// proxied is one kind of front before one certctl.
type proxied struct {
	*frontKind
	w     *world
	in    *installation
	front *front
}

func TestCertctlBehindAuthenticatingProxies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// The keys are there to show that they are not asked for.
	in := startOne(t, people, "CERTCTL_AUTH_TYPE=none", "CERTCTL_TLS_NAMES="+publicName)
	for _, kind := range fronts() {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			p := &proxied{frontKind: &kind, w: w, in: in, front: kind.start(t, w, behind{address: strings.TrimPrefix(in.url, "https://"), ca: caOf(t, in)})}
			t.Run("without a session", p.withoutASession)
			t.Run("with a session", p.withASession)
			t.Run("foreign pages may not use a session", p.foreignPages)
			t.Run("a member of no group is refused", p.memberOfNoGroup)
			t.Run("a JWT lets a script in", p.bearer)
			t.Run("a wrong JWT does not", p.wrongBearer)
			t.Run("CRLs need no login", p.publicFiles)
			t.Run("agents", p.agentsPass)
			t.Run("what certctl is told", p.headers)
			t.Run("a certctl that cannot be verified is not told anything", p.stranger)
		})
	}
}

// refuses looks at an answer that must come from nobody but the proxy.
func (p *proxied) refuses(t *testing.T, a answer, statuses ...int) {
	t.Helper()
	require.Contains(t, statuses, a.status, a.body)
	require.NotContains(t, a.body, `"certificates"`)
}

func (p *proxied) withoutASession(t *testing.T) {
	v := p.front.visit(t, p.w, "")
	for _, path := range []string{"/docs", certificates, certificates + "?status=ACTIVE&page_size=1"} {
		a, at := v.page(t, path), p.front.url+path
		require.Equal(t, http.StatusFound, a.status, "a browser is sent to log in: %s", a.body)
		_, at = v.follow(t, a, at)
		require.True(t, strings.HasPrefix(at, p.w.provider.url+"/authorize?"), "sent to %s", at)
	}
	forged := map[string]string{
		"X-Forwarded-User": "alice", "X-Forwarded-Email": "alice@example.com", "X-Auth-Request-Email": "alice@example.com", "Remote-User": "alice",
		"X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Uri": "/crl/iss-local.crl", "X-Original-Url": "/crl/iss-local.crl",
	}
	for _, header := range []map[string]string{{}, {"Accept": "application/json"}, {"Accept": "*/*"}, forged, {"Authorization": "Bearer " + rootKey}} {
		p.refuses(t, v.send(t, call{method: http.MethodGet, path: certificates, header: header}), http.StatusUnauthorized)
	}
	for _, path := range []string{"/ready", "/health", "/openapi.json", "/api/v1/auth/check", "/nothing"} {
		p.refuses(t, v.send(t, call{method: http.MethodGet, path: path}), http.StatusUnauthorized)
	}
	for _, header := range []map[string]string{{"Accept": "text/html"}, {"Content-Type": "application/grpc"}} {
		a := v.send(t, create("never", header))
		p.refuses(t, a, http.StatusUnauthorized)
	}
	require.Equal(t, http.StatusNotFound, p.in.get(t, certificates+"/never").status)
}

func (p *proxied) withASession(t *testing.T) {
	v := p.front.visit(t, p.w, "")
	page := certificates + "?page_size=7&name=none"
	end, at := v.logIn(t, p.w, "alice", page)
	require.Equal(t, http.StatusOK, end.status, end.body)
	require.Equal(t, p.front.url+page, at, "the browser is back where it wanted to go")

	list := v.send(t, call{method: http.MethodGet, path: certificates + "?name=none"})
	require.Equal(t, http.StatusOK, list.status, list.body)
	tag := list.header.Get("ETag")
	require.NotEmpty(t, tag)
	again := v.send(t, call{method: http.MethodGet, path: certificates + "?name=none", header: map[string]string{"If-None-Match": tag}})
	require.Equal(t, http.StatusNotModified, again.status)
	require.Equal(t, tag, again.header.Get("ETag"))
	require.Empty(t, again.body)

	id := "by-" + strings.ToLower(p.name)
	created := v.send(t, create(id, map[string]string{"Origin": p.front.url, "X-Request-Id": "an-id-of-the-client"}))
	require.Contains(t, []int{http.StatusOK, http.StatusCreated}, created.status, created.body)
	request := created.header.Get("X-Request-Id")
	require.NotEmpty(t, request)
	require.NotEqual(t, "an-id-of-the-client", request, "who makes the id could give it to others' changes")

	who := v.send(t, call{method: http.MethodGet, path: "/api/v1/auth/check"}).object(t)
	require.Equal(t, object{"name": "anonymous-admin", "role": "admin"}, who)
	p.onRecord(t, id, request)
}

// onRecord sees what the audit log shows, and that the log of the proxy has the name.
func (p *proxied) onRecord(t *testing.T, id, request string) {
	t.Helper()
	p.in.wait(t, "the creation on the record", func() bool {
		events := p.in.must(t, http.MethodGet, "/api/v1/audit?action=certificate.created&request_id="+request, nil).list("events")
		if len(events) != 1 {
			return false
		}
		actor, _ := events[0]["actor"].(map[string]any)
		resource, _ := events[0]["resource"].(map[string]any)
		require.Equal(t, "anonymous-admin", actor["id"])
		require.Equal(t, id, resource["id"])
		b, err := json.Marshal(events[0])
		require.NoError(t, err)
		require.NotContains(t, string(b), "alice", "the document says that the record has no names")
		return true
	})
	p.in.wait(t, "the name in the proxy's log", func() bool {
		for line := range strings.Lines(p.front.logs()) {
			if strings.Contains(line, request) && strings.Contains(line, "alice@example.com") {
				return true
			}
		}
		return false
	})
}

func (p *proxied) foreignPages(t *testing.T) {
	v := p.front.visit(t, p.w, "")
	v.logIn(t, p.w, "alice", "/docs")
	for _, header := range []map[string]string{
		{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, {"Sec-Fetch-Site": "same-site", "Origin": "https://other.example.com"},
		{"Origin": "https://evil.example"}, {"Origin": "null"},
	} {
		a := v.send(t, create("never", header))
		require.Equal(t, http.StatusForbidden, a.status, a.body)
		require.Contains(t, a.body, "CROSS_ORIGIN")
	}
}

func (p *proxied) memberOfNoGroup(t *testing.T) {
	v := p.front.visit(t, p.w, "")
	end, _ := v.logIn(t, p.w, "mallory", "/docs")
	p.refuses(t, end, http.StatusUnauthorized, http.StatusForbidden)
	p.refuses(t, v.send(t, call{method: http.MethodGet, path: certificates}), http.StatusUnauthorized, http.StatusForbidden)
}

// jwt is a token of the provider with claims that differ from alice's.
func (p *proxied) jwt(key *rsa.PrivateKey, differ map[string]any) string {
	claims := p.w.provider.claims("alice")
	maps.Copy(claims, differ)
	return signed(key, claims)
}

func (p *proxied) bearer(t *testing.T) {
	v := p.front.visit(t, p.w, p.jwt(p.w.provider.key, nil))
	a := v.send(t, call{method: http.MethodGet, path: certificates})
	require.Equal(t, http.StatusOK, a.status, a.body)
	id := "by-script-" + strings.ToLower(p.name)
	a = v.send(t, create(id, nil))
	require.Contains(t, []int{http.StatusOK, http.StatusCreated}, a.status, a.body)
	request := a.header.Get("X-Request-Id")
	p.onRecord(t, id, request)

	// What the document shows.
	curl := []string{"curl ", "curl --fail --silent --show-error --cacert idp-ca.crt --resolve " + publicName + ":" + p.front.port() + ":127.0.0.1 ",
		"https://" + publicName, p.front.url, "$JWT", v.bearer}
	require.Contains(t, runSteps(t, p.front.dir, "call of a script", curl...), `"id":"`+id+`"`)
	if p.name == "nginx" {
		out := runSteps(t, p.front.dir, "who did it", append(curl, "$REQUEST_ID", request, "/var/log/nginx/certctl.log", p.front.file("access.log"))...)
		require.Contains(t, out, `"request_id":"`+request+`"`)
		require.Regexp(t, "alice@example.com .* "+request, out)
	}
	if !p.grpc {
		return
	}
	client := p.in.as(v.bearer)
	client.url, client.caFile = "https://localhost:"+p.front.port(), p.front.file("idp-ca.crt")
	require.Contains(t, client.certctl(t, "certificates", "list"), id)
	p.onRecord(t, id+"-by-client", p.createdBy(t, client, id+"-by-client"))
}

// createdBy has the command-line client create a certificate, and tells its request's id.
func (p *proxied) createdBy(t *testing.T, client *installation, id string) (request string) {
	t.Helper()
	client.certctl(t, "certificates", "create", "--id", id, "--name", id, "--dns", id+".example.com", "--issuer", "iss-local")
	p.in.wait(t, "the creation on the record", func() bool {
		events := p.in.must(t, http.MethodGet, "/api/v1/audit?action=certificate.created&resource_id="+id, nil).list("events")
		if len(events) == 1 {
			request = events[0].str("request_id")
		}
		return request != ""
	})
	return request
}

func (p *proxied) wrongBearer(t *testing.T) {
	hour := time.Now().Add(-time.Hour).Unix()
	right := p.jwt(p.w.provider.key, nil)
	for what, token := range map[string]string{
		"of another key":       p.jwt(rsaKey(t), nil),
		"without a signature":  p.jwt(nil, nil),
		"for another client":   p.jwt(p.w.provider.key, map[string]any{"aud": "another"}),
		"of another issuer":    p.jwt(p.w.provider.key, map[string]any{"iss": "https://evil.example"}),
		"that has expired":     p.jwt(p.w.provider.key, map[string]any{"iat": hour - 300, "exp": hour}),
		"of no group":          p.jwt(p.w.provider.key, map[string]any{"groups": []string{"staff"}}),
		"with a changed claim": strings.Replace(right, ".", "."+segment(p.w.provider.claims("alice"))[:4], 1),
		"that is no JWT":       rootKey,
	} {
		v := p.front.visit(t, p.w, token)
		for _, c := range []call{
			{method: http.MethodGet, path: certificates}, create("never", nil), {
				method: http.MethodPost, path: "/certctl.inventory.v1.CertificateService/ListCertificates", body: "\x00\x00\x00\x00\x00",
				header: map[string]string{"Content-Type": "application/grpc", "Te": "trailers"},
			},
		} {
			a := v.send(t, c)
			require.Contains(t, []int{http.StatusUnauthorized, http.StatusForbidden}, a.status, "%s with a token %s: %s", c.method, what, a.body)
			require.NotContains(t, a.body, `"certificates"`)
		}
	}
}

// publicFiles reads a CRL without a login, and tries to get further with its path.
func (p *proxied) publicFiles(t *testing.T) {
	v := p.front.visit(t, p.w, "")
	require.Equal(t, http.StatusOK, v.send(t, call{method: http.MethodGet, path: "/ca/iss-local.pem"}).status)
	require.Equal(t, "application/pkix-crl", v.send(t, call{method: http.MethodGet, path: "/crl/iss-local.crl"}).header.Get("Content-Type"))
	for _, target := range []string{
		"/crl/../api/v1/certificates", "/crl/%2e%2e/api/v1/certificates", "/crl/..%2fapi/v1/certificates", "/crl//../api/v1/certificates",
		"//api/v1/certificates", "/./api/v1/certificates", "/crl/x.crl/../../api/v1/certificates", "/crl/x.crl/%2e%2e/%2e%2e/api/v1/certificates",
		"/api/v1/certificates?/crl/x.crl", "/api/v1/certificates#/crl/x.crl", "/api/v1/certificates;/crl/x.crl", "/api/v1/certificates/%2e%2e/%2e%2e/%2e%2e/crl/x.crl",
		"/CRL/../api/v1/certificates", "/ca/x.pem%00/../../api/v1/certificates", "/api/v1/../../crl/iss-local.crl", "/oauth2/../api/v1/certificates",
		"/oauth2/%2e%2e/api/v1/certificates", "/certctl.agent.v1.AgentService/../api/v1/certificates",
		"/certctl.agent.v1.AgentService/%2e%2e/api/v1/certificates", "/certctl.agent.v1.AgentService/Connect/../../api/v1/certificates",
	} {
		got := p.raw(t, "GET "+target+" HTTP/1.1")
		require.NotContains(t, got, `"certificates":`, "%s:\n%s", target, got)
	}
}

// raw sends a request line as it is.
func (p *proxied) raw(t *testing.T, line string) string {
	t.Helper()
	cfg := p.front.transport(p.w).TLSClientConfig
	cfg.ServerName = publicName
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", p.front.address)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(conn, line+"\r\nHost: "+strings.TrimPrefix(p.front.url, "https://")+"\r\nConnection: close\r\n\r\n")
	require.NoError(t, err)
	b, err := io.ReadAll(conn)
	require.NoError(t, err)
	return string(b)
}

// agentsPass enrols an agent through the proxy.
func (p *proxied) agentsPass(t *testing.T) {
	if !p.grpc {
		v := p.front.visit(t, p.w, "")
		p.refuses(t, v.send(t, call{method: http.MethodPost, path: "/certctl.agent.v1.AgentService/Enroll", header: map[string]string{"Content-Type": "application/grpc"}}), http.StatusUnauthorized)
		return
	}
	token, _ := p.in.must(t, http.MethodPost, "/api/v1/agents/join-tokens", object{})["token"].(string)
	name := "agent-by-" + strings.ToLower(p.name)
	// Agents look the name up; the front is there for localhost, too.
	at := "https://localhost:" + p.front.port()
	agent := &process{name: name, path: binaries.agent, args: []string{"run"}, env: []string{"HOME=" + p.front.dir, "CERTCTL_SERVER=" + at,
		"CERTCTL_SERVER_CA=" + p.front.file("idp-ca.crt"), "CERTCTL_DATA_DIR=" + filepath.Join(testpg.Dir(t), "agent"), "CERTCTL_JOIN_TOKEN=" + token, "CERTCTL_NAME=" + name}}
	(&installation{processes: map[string]*process{}}).add(t, agent)
	p.in.comesOnline(t, name)
}

func (in *installation) comesOnline(t *testing.T, agent string) {
	t.Helper()
	in.wait(t, agent+" to be online", func() bool {
		for _, a := range in.must(t, http.MethodGet, "/api/v1/agents", nil).list("agents") {
			if a.str("name") == agent && a.str("status") == "ONLINE" {
				return true
			}
		}
		return false
	})
}

// recorder stands where certctl does, and remembers what it was told.
type recorder struct {
	mu   sync.Mutex
	seen []*http.Request
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, req)
	answerJSON(w, http.StatusOK, object{})
}

func (r *recorder) requests() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen
}

// record starts a recorder with a certificate of an authority, for TLS 1.3 only.
func record(t *testing.T, ca *targettest.Authority, name string) (address string, r *recorder) {
	t.Helper()
	r = &recorder{}
	server := httptest.NewUnstartedServer(r)
	m := ca.Issue(t, name)
	pair, err := tls.X509KeyPair(append(m.CertificatePEM, m.ChainPEM...), []byte(m.Key.Reveal()))
	require.NoError(t, err)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String(), r
}

// headers forges what a proxy could pass on, with a session and with a token.
func (p *proxied) headers(t *testing.T) {
	address, r := record(t, p.w.ca, publicName)
	f := p.start(t, p.w, behind{address: address, ca: targettest.PEM(p.w.ca.Root)})
	forged := map[string]string{"X-Request-Id": "mine", "Accept-Language": "en"}
	for _, name := range []string{"Remote-User", "X-Remote-User", "X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-Groups", "X-Forwarded-Preferred-Username",
		"X-Forwarded-Access-Token", "X-Auth-Request-User", "X-Auth-Request-Email", "X-Auth-Request-Groups"} {
		forged[name] = "root"
	}
	browser := f.visit(t, p.w, "")
	end, _ := browser.logIn(t, p.w, "alice", "/docs")
	require.Equal(t, http.StatusOK, end.status, end.body)
	script := f.visit(t, p.w, p.jwt(p.w.provider.key, nil))
	for _, v := range []*visitor{browser, script} {
		before := len(r.requests())
		a := v.send(t, call{method: http.MethodPost, path: certificates + "?a=%2F&b=1", header: forged, body: object{"id": "x"}})
		require.Equal(t, http.StatusOK, a.status, a.body)
		require.Len(t, r.requests(), before+1)
		told := r.requests()[before]
		require.Equal(t, certificates+"?a=%2F&b=1", told.RequestURI)
		require.Equal(t, strings.TrimPrefix(f.url, "https://"), told.Host)
		require.Equal(t, "en", told.Header.Get("Accept-Language"))
		require.NotEqual(t, "mine", told.Header.Get("X-Request-Id"))
		for name, values := range told.Header {
			require.NotContains(t, values, "root", name)
			require.NotContains(t, strings.Join(values, " "), "alice", name)
		}
		for _, name := range []string{"Authorization", "Cookie"} {
			require.Empty(t, told.Header.Values(name), name)
		}
	}
}

// stranger puts somebody else where certctl was.
func (p *proxied) stranger(t *testing.T) {
	for _, who := range []struct {
		ca   *targettest.Authority
		name string
	}{{targettest.NewAuthority(t), publicName}, {p.w.ca, "other.example.com"}} {
		address, r := record(t, who.ca, who.name)
		f := p.start(t, p.w, behind{address: address, ca: targettest.PEM(p.w.ca.Root)})
		a := f.visit(t, p.w, p.jwt(p.w.provider.key, nil)).send(t, call{method: http.MethodGet, path: certificates})
		require.Contains(t, []int{http.StatusBadGateway, http.StatusInternalServerError}, a.status, a.body)
		require.Empty(t, r.requests())
	}
}

// TestWithoutAuthenticationOnlyLoopbackIsServed: nobody makes everybody an admin by accident.
func TestWithoutAuthenticationOnlyLoopbackIsServed(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), binaries.certctl, "serve")
	cmd.Env = environment("CERTCTL_DATA_DIR="+filepath.Join(testpg.Dir(t), "data"), "CERTCTL_AUTH_TYPE=none", "CERTCTL_LISTEN_ADDR=0.0.0.0:8443")
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "CERTCTL_AUTH_NONE_ACKNOWLEDGED=true")
}

// TestNginxSendsTheKeyOfWhoCalls keeps API keys, roles and the names of the record.
func TestNginxSendsTheKeyOfWhoCalls(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	in := startOne(t, people, "CERTCTL_TLS_NAMES="+publicName)
	b := behind{address: strings.TrimPrefix(in.url, "https://"), ca: caOf(t, in),
		edit: []string{`allowed_groups = ["certctl-admins"]`, `allowed_groups = ["certctl-admins", "certctl-operators", "staff"]`}}
	f := newFront(t, w, b)
	f.configureNginx(t, w, b)
	runSteps(t, f.dir, "nginx with keys", "/etc/nginx/conf.d/", f.dir+"/", "deploy/auth-proxy/", mustAbs(t, filepath.Join(root, "deploy", "auth-proxy"))+"/")
	info, err := os.Stat(f.file("certctl-keys.conf"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	keys := strings.NewReplacer("put-the-key-of-admins-here", rootKey, "put-the-key-of-operators-here", bobKey, "put-the-key-of-viewers-here", viewerKey,
		"put-the-key-of-alice-here", aliceKey).Replace(read(t, f.file("certctl-keys.conf")))
	require.NoError(t, os.WriteFile(f.file("certctl-keys.conf"), []byte(keys), 0o600))
	f.serveNginx(t)

	for user, want := range map[string]object{
		"alice": {"name": "alice", "role": "operator"}, "bob": {"name": "bob", "role": "operator"},
	} {
		v := f.visit(t, w, "")
		end, _ := v.logIn(t, w, user, "/api/v1/auth/check")
		require.Equal(t, http.StatusOK, end.status, end.body)
		require.Equal(t, want, end.object(t))
		a := v.send(t, call{method: http.MethodGet, path: "/api/v1/auth/check", header: map[string]string{"Authorization": "Bearer " + rootKey}})
		require.Equal(t, want, a.object(t), "whoever has a session is who the session says")
	}
	// The command-line client sends a JWT, and certctl gets bob's key.
	client := in.as(signed(w.provider.key, w.provider.claims("bob")))
	client.url, client.caFile = "https://localhost:"+f.port(), f.file("idp-ca.crt")
	client.certctl(t, "certificates", "create", "--id", "of-bob", "--name", "of-bob", "--dns", "of-bob.example.com", "--issuer", "iss-local")
	in.wait(t, "bob on the record", func() bool {
		events := in.must(t, http.MethodGet, "/api/v1/audit?action=certificate.created&resource_id=of-bob", nil).list("events")
		if len(events) != 1 {
			return false
		}
		actor, _ := events[0]["actor"].(map[string]any)
		return actor["id"] == "bob"
	})
	// Whoever may log in and has no key is refused by certctl.
	end, _ := f.visit(t, w, "").logIn(t, w, "mallory", "/api/v1/auth/check")
	require.Equal(t, http.StatusUnauthorized, end.status, end.body)
	require.Equal(t, http.StatusUnauthorized, in.send(t, call{method: http.MethodGet, path: certificates, key: nobody}).status)
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	require.NoError(t, err)
	return abs
}

// TestAgentsHaveAGatewayOfTheirOwn: the one without authentication is for the proxy alone, and agents use another.
func TestAgentsHaveAGatewayOfTheirOwn(t *testing.T) {
	t.Parallel()
	in := startSix(t, people, "CERTCTL_AUTH_TYPE=none")
	address := targettest.FreeAddress(t)
	forAgents := in.as(nobody)
	forAgents.url, forAgents.client = "https://"+address, nil
	forAgents.processes, forAgents.server = map[string]*process{}, []string{"agents' gateway"}
	forAgents.add(t, &process{name: "agents' gateway", path: binaries.certctl, args: []string{"serve", "--service", "gateway"},
		env: append(in.shared[:len(in.shared):len(in.shared)], "CERTCTL_LISTEN_ADDR="+address, "CERTCTL_AUTH_TYPE=api-key")})
	forAgents.ready(t)

	const name = "apart"
	forAgents.add(t, &process{name: name, path: binaries.agent, args: []string{"run"}, env: []string{"HOME=" + in.dir, "CERTCTL_SERVER=" + forAgents.url,
		"CERTCTL_SERVER_CA=" + in.caFile, "CERTCTL_DATA_DIR=" + filepath.Join(in.dir, name), "CERTCTL_JOIN_TOKEN=a standing token for the fleet", "CERTCTL_NAME=" + name}})
	in.comesOnline(t, name)
	require.Equal(t, http.StatusUnauthorized, forAgents.get(t, certificates).status)
	require.Equal(t, http.StatusOK, in.send(t, call{method: http.MethodGet, path: certificates, key: nobody}).status, "the other gateway asks nobody")
}

// TestOneAdminCannotApprove: without names everybody is who asked.
func TestOneAdminCannotApprove(t *testing.T) {
	t.Parallel()
	in := startOne(t, "CERTCTL_AUTH_TYPE=none", people)
	in.must(t, http.MethodPost, "/api/v1/profiles", object{"id": "guarded", "name": "guarded", "max_validity": "3600s", "requires_approval": true})
	in.wants(t, object{"id": "guarded", "dns_names": []string{"guarded.example.com"}, "profile_id": "guarded"})
	job := in.job(t, "guarded", "AWAITING_APPROVAL").str("id")
	in.send(t, in.approve(bobKey, job)).refused(t, ownRequest(job))
}
