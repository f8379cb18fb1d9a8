// Package e2e_test drives whole installations as their users do: real processes, REST, a real nginx.
package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/targettest"
	"github.com/certctl/certctl/pkg/testpg"
)

// patience is how long a condition may take on a busy machine before it counts as failed.
const patience = 60 * time.Second

// interval between two looks at a condition.
const interval = 20 * time.Millisecond

var binaries = struct{ certctl, agent string }{}

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "certctl-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	// Other users run Postgres and look for nothing here but the path.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	binaries.certctl, binaries.agent = filepath.Join(dir, "certctl"), filepath.Join(dir, "certctl-agent")
	for out, pkg := range map[string]string{
		binaries.certctl: "github.com/certctl/certctl/services/cmd/certctl",
		binaries.agent:   "github.com/certctl/certctl/agent/cmd/certctl-agent",
	} {
		build := exec.Command("go", "build", "-o", out, pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, b)
			return 1
		}
	}
	return m.Run()
}

// process is a program that runs until the test ends it.
type process struct {
	name string
	path string
	args []string
	env  []string
	skew time.Duration // of the clock that it is started with

	mu   sync.Mutex
	log  bytes.Buffer
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Write takes what the program prints.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func (p *process) start(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command(p.path, p.args...)
	p.cmd.Env = p.env
	p.cmd.Stdout, p.cmd.Stderr = p, p
	// Should the test be killed, nothing outlives it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.skew == 0 {
		require.NoError(t, p.cmd.Start())
	} else {
		require.NoError(t, startWithClock(p.cmd, p.skew))
	}
	p.done = make(chan struct{})
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
}

// kill ends the program as kill -9 does.
func (p *process) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Kill())
	<-p.done
}

// stop ends the program as an init system does, and answers how it went.
func (p *process) stop(t *testing.T) (took time.Duration, err error) {
	t.Helper()
	begin := time.Now()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.done:
		return time.Since(begin), p.err
	case <-time.After(patience):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // prints what it hangs on
		<-p.done
		return time.Since(begin), fmt.Errorf("%s did not end", p.name)
	}
}

// installation is a running certctl.
type installation struct {
	dir       string
	url       string
	processes map[string]*process
	server    []string // names of processes of the control plane
	client    *http.Client
	key       string
	caFile    string
	shared    []string // environment of processes that run apart
}

// Keys of an installation that was started with people: one for each role, and two operators.
const (
	rootKey   = "key-of-root-0123456789"
	aliceKey  = "key-of-alice-0123456789"
	bobKey    = "key-of-bob-0123456789"
	viewerKey = "key-of-vera-0123456789"
	auditKey  = "key-of-otto-0123456789"
)

// people is the setting that gives an installation the keys of all roles.
const people = "CERTCTL_AUTH_SECRET=root:admin:" + rootKey + ",alice:operator:" + aliceKey + ",bob:operator:" + bobKey +
	",vera:viewer:" + viewerKey + ",otto:auditor:" + auditKey

// as gives the installation as the owner of another key sees it.
func (in *installation) as(key string) *installation {
	other := *in
	other.key = key
	return &other
}

// withKey uses a key of people, where the settings have them.
func (in *installation) withKey(settings []string) *installation {
	if slices.Contains(settings, people) {
		in.key = rootKey
	}
	return in
}

func environment(more ...string) []string {
	env := []string{"HOME=" + os.Getenv("HOME"), "PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.Getenv("TMPDIR"), "CERTCTL_LOG_LEVEL=info",
		"CERTCTL_SCHEDULER_JOB_PROCESSOR_INTERVAL=2s", "CERTCTL_SCHEDULER_RETRY_INTERVAL=2s", "CERTCTL_JOB_TIMEOUT_INTERVAL=5s",
		"CERTCTL_SCHEDULER_RENEWAL_CHECK_INTERVAL=2s"}
	return append(env, more...)
}

// startOne starts everything in one process, on a Postgres of its own.
func startOne(t *testing.T, settings ...string) *installation {
	t.Helper()
	dir := filepath.Join(testpg.Dir(t), "data")
	address := targettest.FreeAddress(t)
	in := &installation{dir: dir, url: "https://" + address, processes: map[string]*process{}, server: []string{"certctl"}, caFile: filepath.Join(dir, "ca.crt")}
	env := append(environment("CERTCTL_DATA_DIR="+dir, "CERTCTL_LISTEN_ADDR="+address), settings...)
	in.withKey(settings).add(t, &process{name: "certctl", path: binaries.certctl, args: []string{"serve"}, env: env})
	in.ready(t)
	return in
}

// startSix starts the gateway, the five services and an agent apart, on one Postgres of their own: roles and their limits
// belong to a whole server.
func startSix(t *testing.T, settings ...string) *installation {
	t.Helper()
	dir := filepath.Join(testpg.Dir(t), "data")
	address := targettest.FreeAddress(t)
	in := &installation{dir: dir, url: "https://" + address, processes: map[string]*process{}, caFile: filepath.Join(dir, "ca.crt")}
	secret := make([]byte, 32)
	_, err := rand.Read(secret)
	require.NoError(t, err)
	shared := environment("CERTCTL_DATABASE_URL="+testpg.NewServer(t, testpg.ServerConfig{}).URL(), "CERTCTL_INTERNAL_SECRET="+hex.EncodeToString(secret),
		"CERTCTL_DATA_DIR="+dir, "CERTCTL_LISTEN_ADDR="+address, "CERTCTL_AGENT_JOIN_TOKEN=a standing token for the fleet")
	shared = append(shared, settings...)
	services := []string{"audit", "inventory", "issuance", "renewalscheduler", "asyncpoller"}
	listen := map[string]string{}
	for _, s := range services {
		listen[s] = targettest.FreeAddress(t)
		shared = append(shared, "CERTCTL_"+strings.ToUpper(s)+"_ADDR="+listen[s])
	}
	migrate := exec.CommandContext(t.Context(), binaries.certctl, "migrate")
	migrate.Env = shared
	out, err := migrate.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, s := range services {
		in.add(t, &process{name: s, path: binaries.certctl, args: []string{"serve", "--service", s}, env: append(shared[:len(shared):len(shared)], "CERTCTL_GRPC_LISTEN_ADDR="+listen[s])})
		in.server = append(in.server, s)
	}
	in.shared = shared
	in.withKey(settings).add(t, &process{name: "gateway", path: binaries.certctl, args: []string{"serve", "--service", "gateway"}, env: shared})
	in.server = append(in.server, "gateway")
	in.ready(t)
	in.add(t, &process{name: "agent", path: binaries.agent, args: []string{"run"}, env: []string{"HOME=" + dir, "CERTCTL_SERVER=" + in.url,
		"CERTCTL_SERVER_CA=" + in.caFile, "CERTCTL_DATA_DIR=" + filepath.Join(dir, "agent"), "CERTCTL_JOIN_TOKEN=a standing token for the fleet"}})
	return in
}

// replica starts one more gateway of an installation whose processes run apart, and gives the installation as it looks
// through that gateway.
func (in *installation) replica(t *testing.T) *installation {
	t.Helper()
	address := targettest.FreeAddress(t)
	other := in.as(in.key)
	other.url, other.client = "https://"+address, nil
	other.processes, other.server = map[string]*process{}, []string{"second gateway"}
	env := append(in.shared[:len(in.shared):len(in.shared)], "CERTCTL_LISTEN_ADDR="+address) // the last one counts
	other.add(t, &process{name: "second gateway", path: binaries.certctl, args: []string{"serve", "--service", "gateway"}, env: env})
	other.ready(t)
	return other
}

func (in *installation) add(t *testing.T, p *process) {
	t.Helper()
	in.processes[p.name] = p
	p.start(t)
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(20 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.done
		}
		if t.Failed() {
			t.Logf("--- output of %s:\n%s", p.name, p.output())
		}
	})
}

// ready waits until /ready says so, and prepares the client.
func (in *installation) ready(t *testing.T) {
	t.Helper()
	in.wait(t, "ready", func() bool {
		for _, name := range in.server {
			select {
			case <-in.processes[name].done:
				require.Fail(t, "process ended", "%s: %v\n%s", name, in.processes[name].err, in.processes[name].output())
			default:
			}
		}
		if in.client == nil && !in.connect() {
			return false
		}
		status, _, err := in.try(t.Context(), http.MethodGet, "/ready", nil)
		return err == nil && status == http.StatusOK
	})
}

func (in *installation) connect() bool {
	ca, err := os.ReadFile(in.caFile)
	if err != nil {
		return false
	}
	if in.key == "" {
		key, err := os.ReadFile(filepath.Join(in.dir, "api-key"))
		if err != nil {
			return false
		}
		in.key = strings.TrimSpace(string(key))
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return false
	}
	in.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}}
	return true
}

// wait looks at a condition until it holds.
func (in *installation) wait(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, patience, interval, "waited for: %s", what)
}

// object is a JSON object of the API.
type object map[string]any

func (o object) str(key string) string {
	s, _ := o[key].(string)
	return s
}

func (o object) list(key string) []object {
	items, _ := o[key].([]any)
	out := make([]object, 0, len(items))
	for _, i := range items {
		m, _ := i.(map[string]any)
		out = append(out, m)
	}
	return out
}

func (in *installation) try(ctx context.Context, method, path string, body any) (int, object, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, in.url+path, r)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+in.key)
	resp, err := in.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return 0, nil, err
	}
	var o object
	if len(b) > 0 && strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal(b, &o); err != nil {
			return resp.StatusCode, nil, fmt.Errorf("%s %s: %w: %s", method, path, err, b)
		}
	} else {
		o = object{"body": string(b)}
	}
	return resp.StatusCode, o, nil
}

// must does a call that has to succeed.
func (in *installation) must(t *testing.T, method, path string, body any) object {
	t.Helper()
	status, o, err := in.try(t.Context(), method, path, body)
	require.NoError(t, err)
	require.Contains(t, []int{http.StatusOK, http.StatusCreated}, status, "%s %s: %v", method, path, o)
	return o
}

// certctl runs the command-line client against the installation.
func (in *installation) certctl(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binaries.certctl, args...)
	cmd.Env = []string{"HOME=" + in.dir, "PATH=" + os.Getenv("PATH"), "CERTCTL_URL=" + in.url, "CERTCTL_API_KEY=" + in.key, "CERTCTL_CA=" + in.caFile}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "certctl %s:\n%s", strings.Join(args, " "), out)
	return string(out)
}
