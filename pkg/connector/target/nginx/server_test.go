package nginx_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/connector/target/nginx"
	"github.com/certctl/certctl/pkg/connector/targettest"
	"github.com/certctl/certctl/pkg/errs"
)

// bench is an nginx with an engine.
type bench struct {
	*targettest.Nginx
	ca     *targettest.Authority
	engine *target.Engine
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return &bench{Nginx: targettest.NewNginx(t), ca: targettest.NewAuthority(t), engine: newEngine(t, 2*time.Second)}
}

func newEngine(t *testing.T, verify time.Duration) *target.Engine {
	t.Helper()
	e, err := target.NewEngine(target.Config{JournalDir: t.TempDir(), Timeouts: target.Timeouts{Verify: verify}}, target.Deps{})
	require.NoError(t, err)
	return e
}

// running starts the server with a first certificate.
func running(t *testing.T) (*bench, target.Material) {
	t.Helper()
	b := newBench(t)
	old := b.ca.Issue(t, targettest.Name)
	b.Put(t, old)
	b.Start(t)
	return b, old
}

func (b *bench) request(m target.Material) target.Request {
	return target.Request{TargetID: "target-1", Type: nginx.Type, Config: b.Config(), Endpoint: target.Endpoint{Address: b.Address}, Material: m}
}

func (b *bench) deploy(t *testing.T, m target.Material) (target.Result, error) {
	t.Helper()
	return b.engine.Deploy(t.Context(), b.request(m))
}

func (b *bench) onDisk(t *testing.T, m target.Material) {
	t.Helper()
	full, err := os.ReadFile(b.Fullchain)
	require.NoError(t, err)
	leaf, _, err := target.ParseChain(full)
	require.NoError(t, err)
	want, _, err := target.ParseChain(m.CertificatePEM)
	require.NoError(t, err)
	require.True(t, leaf.Equal(want))
	left, err := filepath.Glob(filepath.Dir(b.Fullchain) + "/.certctl-*")
	require.NoError(t, err)
	require.Empty(t, left)
}

func (b *bench) servesNow(t *testing.T, m target.Material) {
	t.Helper()
	got, err := b.engine.Verify(t.Context(), target.VerifyRequest{Endpoint: target.Endpoint{Address: b.Address, ServerName: targettest.Name}})
	require.NoError(t, err)
	require.Equal(t, targettest.Fingerprint(t, m), got.FingerprintSHA256)
}

func TestTheFirstDeploymentReachesAServerWhoseConfigurationDoesNotLoadYet(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	site, err := os.ReadFile(b.SitePath)
	require.NoError(t, err)
	require.NoError(t, os.Remove(b.SitePath))
	b.Start(t)
	require.NoError(t, os.WriteFile(b.SitePath, site, 0o644))
	m := b.ca.Issue(t, targettest.Name)
	result, err := b.deploy(t, m)
	require.NoError(t, err)
	require.Equal(t, target.OutcomeServed, result.Outcome)
	require.Contains(t, result.Output, "test is successful")
	b.onDisk(t, m)
}

func TestOpenSSLVerifiesTheServedChain(t *testing.T) {
	t.Parallel()
	b, _ := running(t)
	_, err := b.deploy(t, b.ca.Issue(t, targettest.Name))
	require.NoError(t, err)
	root := filepath.Join(t.TempDir(), "root.pem")
	require.NoError(t, os.WriteFile(root, targettest.PEM(b.ca.Root), 0o600))
	out, err := exec.CommandContext(t.Context(), "openssl", "s_client", "-connect", b.Address, "-servername", targettest.Name,
		"-verify_hostname", targettest.Name, "-verify_return_error", "-CAfile", root).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "Verify return code: 0 (ok)")
}

func TestTheFilesStayWhenTheServerIsNotRunningAndTheNextDeploymentReloadsIt(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	m := b.ca.Issue(t, targettest.Name)
	for range 2 {
		result, err := b.deploy(t, m)
		require.Equal(t, "SERVER_NOT_RUNNING", errs.ReasonOf(err))
		require.Equal(t, target.OutcomeKept, result.Outcome)
		require.Equal(t, target.StepReload, result.Step)
		b.onDisk(t, m)
	}
	b.Start(t)
	result, err := b.deploy(t, m)
	require.NoError(t, err)
	require.Equal(t, target.OutcomeUnchanged, result.Outcome)
	require.True(t, result.Reloaded)
}

func TestAPidOfAnotherProgramIsNotSignalled(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	other := exec.CommandContext(t.Context(), "/bin/sleep", "60")
	require.NoError(t, other.Start())
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	require.NoError(t, os.WriteFile(filepath.Join(b.Dir, "run.pid"), []byte(strconv.Itoa(other.Process.Pid)), 0o600))
	_, err := b.deploy(t, b.ca.Issue(t, targettest.Name))
	require.Equal(t, "SERVER_NOT_RUNNING", errs.ReasonOf(err))
	require.NoError(t, other.Process.Signal(syscall.Signal(0)), "the other program must live")
}

func TestRenewalUnderLoadLosesNoHandshake(t *testing.T) {
	t.Parallel()
	b, _ := running(t)
	ctx, stop := context.WithCancel(t.Context())
	var made atomic.Int64
	var failed sync.Map
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				err := handshake(b.Address)
				if err != nil {
					failed.Store(err.Error(), true)
				}
				made.Add(1)
			}
		})
	}
	var last target.Material
	for range 5 {
		from := made.Load()
		last = b.ca.Issue(t, targettest.Name)
		_, err := b.deploy(t, last)
		require.NoError(t, err)
		require.Eventually(t, func() bool { return made.Load() > from+20 }, 10*time.Second, time.Millisecond)
	}
	stop()
	clients.Wait()
	failed.Range(func(err, _ any) bool {
		t.Errorf("a handshake failed: %s", err)
		return true
	})
	b.servesNow(t, last)
	t.Logf("%d handshakes over 5 renewals", made.Load())
}

func handshake(address string) error {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", address, &tls.Config{ServerName: targettest.Name, InsecureSkipVerify: true})
	if err != nil {
		return err
	}
	return c.Close()
}

func TestAReloadThatTheMasterRefusesIsRolledBack(t *testing.T) {
	t.Parallel()
	b, old := running(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = taken.Close() })
	// nginx -t does not mind a port in use; the running master does, and keeps its old configuration.
	b.Site(t, b.Address, taken.Addr().String())
	result, err := b.deploy(t, b.ca.Issue(t, targettest.Name))
	require.Equal(t, "RELOAD_REFUSED", errs.ReasonOf(err))
	require.ErrorContains(t, err, "bind() to "+taken.Addr().String()+" failed")
	require.Equal(t, target.OutcomeRolledBack, result.Outcome)
	require.Equal(t, target.StepReload, result.Step)
	require.True(t, result.RollbackVerified)
	b.onDisk(t, old)
	b.servesNow(t, old)
}

func TestABrokenConfigurationLeavesTheOldFilesUntouched(t *testing.T) {
	t.Parallel()
	b, old := running(t)
	site, err := os.ReadFile(b.SitePath)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(b.SitePath, append(site, []byte("\nno_such_directive on;\n")...), 0o644))
	before, err := os.Stat(b.Key)
	require.NoError(t, err)
	result, err := b.deploy(t, b.ca.Issue(t, targettest.Name))
	require.Equal(t, "CHECK_FAILED", errs.ReasonOf(err))
	require.ErrorContains(t, err, "no_such_directive")
	require.Contains(t, result.Output, "no_such_directive")
	require.Equal(t, target.OutcomeUntouched, result.Outcome)
	require.Equal(t, target.StepValidate, result.Step)
	after, err := os.Stat(b.Key)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))
	b.onDisk(t, old)
	require.Zero(t, b.Reloads())
}

func TestAnEndpointThatGoesOnServingTheOldCertificateFailsTheDeployment(t *testing.T) {
	t.Parallel()
	b, old := running(t)
	elsewhere, _ := running(t)
	stuck := elsewhere.ca.Issue(t, targettest.Name)
	elsewhere.Put(t, stuck)
	elsewhere.Restart(t)
	r := b.request(b.ca.Issue(t, targettest.Name))
	r.Endpoint.Address = elsewhere.Address
	result, err := b.engine.Deploy(t.Context(), r)
	require.Equal(t, "NOT_SERVED", errs.ReasonOf(err))
	require.Equal(t, target.OutcomeRolledBack, result.Outcome)
	require.Equal(t, targettest.Fingerprint(t, stuck), result.Served.FingerprintSHA256)
	require.True(t, result.RollbackVerified)
	b.onDisk(t, old)
	require.Eventually(t, func() bool { return b.Reloads() == 2 }, 5*time.Second, 5*time.Millisecond)
	require.Eventually(t, func() bool {
		got, err := b.engine.Verify(t.Context(), target.VerifyRequest{Endpoint: target.Endpoint{Address: b.Address, ServerName: targettest.Name}})
		return err == nil && got.FingerprintSHA256 == targettest.Fingerprint(t, old)
	}, 5*time.Second, 5*time.Millisecond)
}

func TestACancelledDeploymentIsStillRolledBack(t *testing.T) {
	t.Parallel()
	b, old := running(t)
	ctx, cancel := context.WithCancel(t.Context())
	e, err := target.NewEngine(target.Config{JournalDir: t.TempDir(), Hook: func(step string) error {
		if step == "reload" {
			cancel()
		}
		return nil
	}}, target.Deps{})
	require.NoError(t, err)
	result, err := e.Deploy(ctx, b.request(b.ca.Issue(t, targettest.Name)))
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, target.OutcomeRolledBack, result.Outcome)
	require.True(t, result.RollbackVerified)
	b.onDisk(t, old)
	b.servesNow(t, old)
}

func TestAConfigurationThatDoesNotUseTheFilesIsAPreflightError(t *testing.T) {
	t.Parallel()
	b, old := running(t)
	r := b.request(b.ca.Issue(t, targettest.Name))
	r.Config = []byte(strings.Replace(string(r.Config), "fullchain.pem", "other.pem", 1))
	result, err := b.engine.Deploy(t.Context(), r)
	require.Equal(t, "NGINX_CONFIG_NOT_REFERENCED", errs.ReasonOf(err))
	require.ErrorContains(t, err, "does not reference fullchain_path")
	require.ErrorContains(t, err, "tls/fullchain.pem")
	require.Equal(t, target.StepPreflight, result.Step)
	b.onDisk(t, old)
}

func TestAnEndpointIsRequired(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.request(b.ca.Issue(t, targettest.Name))
	r.Endpoint = target.Endpoint{}
	_, err := b.engine.Deploy(t.Context(), r)
	require.Equal(t, "endpoint.address", errs.From(err).Violations()[0].Field)
}

func TestAProgramThatTheAgentDoesNotAllowIsRefused(t *testing.T) {
	t.Parallel()
	b, old := running(t)
	r := b.request(b.ca.Issue(t, targettest.Name))
	r.Config = b.Config(`"nginx_path":"/bin/echo"`)
	_, err := b.engine.Deploy(t.Context(), r)
	require.Equal(t, "COMMAND_NOT_ALLOWED", errs.ReasonOf(err))
	require.Equal(t, errs.PermissionDenied, errs.KindOf(err))
	b.onDisk(t, old)
}

func TestOneOfTwoCertificatesOfAServerIsSeenByItsKeyType(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	other := b.ca.Issue(t, targettest.Name)
	require.NoError(t, os.WriteFile(filepath.Join(b.Dir, "tls", "ecdsa.pem"), append(other.CertificatePEM, other.Key.Reveal()...), 0o600))
	site, err := os.ReadFile(b.SitePath)
	require.NoError(t, err)
	both := strings.Replace(string(site), "server_name", "ssl_certificate tls/ecdsa.pem; ssl_certificate_key tls/ecdsa.pem; server_name", 1)
	require.NoError(t, os.WriteFile(b.SitePath, []byte(both), 0o644))
	b.Put(t, b.rsa(t))
	b.Start(t)
	result, err := b.deploy(t, b.rsa(t))
	require.NoError(t, err)
	require.Equal(t, target.OutcomeServed, result.Outcome)
}

func (b *bench) rsa(t *testing.T) target.Material {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	return b.ca.IssueFor(t, key, time.Now().Add(-time.Minute), time.Now().Add(time.Hour), targettest.Name)
}

func TestNoKeyIsInTheJournalAtAnyStep(t *testing.T) {
	t.Parallel()
	b, _ := running(t)
	dir := t.TempDir()
	seen := 0
	e, err := target.NewEngine(target.Config{JournalDir: dir, Hook: func(string) error {
		return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			seen++
			if strings.Contains(string(text), "PRIVATE KEY") {
				return errors.New("there is a key in " + path)
			}
			return nil
		})
	}}, target.Deps{})
	require.NoError(t, err)
	_, err = e.Deploy(t.Context(), b.request(b.ca.Issue(t, targettest.Name)))
	require.NoError(t, err)
	require.Positive(t, seen)
}

func TestASwapInterruptedWhileTheServerIsDownIsCompletedForItsNextStart(t *testing.T) {
	t.Parallel()
	b, _ := running(t)
	journal := t.TempDir()
	m := b.ca.Issue(t, targettest.Name)
	targettest.DeployAndDie(t, journal, nil, b.request(m), "swap-1")
	b.Stop()
	e, err := target.NewEngine(target.Config{JournalDir: journal}, target.Deps{})
	require.NoError(t, err)
	require.NoError(t, e.Recover(t.Context()))
	b.onDisk(t, m)
	b.Restart(t)
	result, err := e.Deploy(t.Context(), b.request(m))
	require.NoError(t, err)
	require.Equal(t, target.OutcomeUnchanged, result.Outcome)
	b.servesNow(t, m)
}

func TestWithoutAPathTheConfigurationThatNginxWasBuiltWithIsRead(t *testing.T) {
	t.Parallel()
	b, _ := running(t)
	r := b.request(b.ca.Issue(t, targettest.Name))
	r.Config = []byte(`{"fullchain_path":"` + b.Fullchain + `","key_path":"` + b.Key + `"}`)
	_, err := b.engine.Deploy(t.Context(), r)
	require.Equal(t, "NGINX_CONFIG_NOT_REFERENCED", errs.ReasonOf(err))
	require.ErrorContains(t, err, "the nginx configuration /etc/nginx/nginx.conf does not reference")
}
