package target_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/connector/targettest"
	"github.com/certctl/certctl/pkg/errs"
)

func TestMain(m *testing.M) { targettest.Main(m) }

// bench is a directory with a file target.
type bench struct {
	dir    string
	ca     *targettest.Authority
	config map[string]any
	allow  target.AllowList
	limits target.Timeouts
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{dir: dir, ca: targettest.NewAuthority(t)}
	b.config = map[string]any{"fullchain_path": b.path("tls.pem"), "key_path": b.path("key.pem")}
	return b
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) engine(t *testing.T) *target.Engine {
	t.Helper()
	e, err := target.NewEngine(target.Config{JournalDir: filepath.Join(b.dir, "journal"), Allow: b.allow, Timeouts: b.limits}, target.Deps{})
	require.NoError(t, err)
	return e
}

func (b *bench) request(t *testing.T, m target.Material) target.Request {
	t.Helper()
	raw, err := json.Marshal(b.config)
	require.NoError(t, err)
	return target.Request{TargetID: "target-1", Type: "file", Config: raw, Material: m}
}

func (b *bench) deploy(t *testing.T) (target.Result, error) {
	t.Helper()
	return b.engine(t).Deploy(t.Context(), b.request(t, b.ca.Issue(t, targettest.Name)))
}

func (b *bench) script(t *testing.T, name, text string) string {
	t.Helper()
	require.NoError(t, os.WriteFile(b.path(name), []byte("#!/bin/sh\n"+text+"\n"), 0o755))
	return b.path(name)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestTheTypesAreTheOnesThatCanBeMade(t *testing.T) {
	t.Parallel()
	for _, name := range target.Types() {
		_, err := target.New(name)
		require.NoError(t, err)
	}
	_, err := target.New("iis")
	require.ErrorContains(t, err, "known are file, nginx")
}

func TestEndpointsAreCheckedByShape(t *testing.T) {
	t.Parallel()
	config := json.RawMessage(`{"fullchain_path":"/a","key_path":"/b"}`)
	for _, good := range []target.Endpoint{{}, {Address: "[::1]:443"}, {Address: "mail:25", StartTLS: "smtp", ServerName: "mail.example.com"}} {
		require.NoError(t, target.Validate("file", config, good))
	}
	for field, bad := range map[string]target.Endpoint{
		"endpoint.address":     {Address: "host"},
		"endpoint.server_name": {Address: "h:1", ServerName: "*.example.com"},
		"endpoint.starttls":    {Address: "h:1", StartTLS: "ldap"},
	} {
		err := target.Validate("file", config, bad)
		require.Equal(t, field, errs.From(err).Violations()[0].Field)
	}
	require.Error(t, target.Validate("file", config, target.Endpoint{ServerName: "a"}))
	require.Error(t, target.Validate("file", config, target.Endpoint{Address: "h:99999"}))
	require.Error(t, target.Validate("nginx", config, target.Endpoint{}))
}

func TestAllLayoutsAreWritten(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.config["chain_path"], b.config["certificate_path"], b.config["combined_path"] = b.path("chain.pem"), b.path("cert.pem"), b.path("all.pem")
	b.config["mode"] = "0640"
	m := b.ca.Issue(t, targettest.Name)
	result, err := b.engine(t).Deploy(t.Context(), b.request(t, m))
	require.NoError(t, err)
	require.Equal(t, target.ByFiles, result.Served.VerifiedBy)
	full := string(m.CertificatePEM) + string(m.ChainPEM)
	for name, want := range map[string]string{"tls.pem": full, "key.pem": m.Key.Reveal(), "chain.pem": string(m.ChainPEM), "cert.pem": string(m.CertificatePEM), "all.pem": full + m.Key.Reveal()} {
		got, err := os.ReadFile(b.path(name))
		require.NoError(t, err)
		require.Equal(t, want, string(got), name)
		info, err := os.Stat(b.path(name))
		require.NoError(t, err)
		mode := os.FileMode(0o640)
		if strings.Contains(want, "PRIVATE") {
			mode = 0o600
		}
		require.Equal(t, mode, info.Mode().Perm(), name)
	}
}

func TestAChainMayStandBehindTheLeaf(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	m := b.ca.Issue(t, targettest.Name)
	m.CertificatePEM, m.ChainPEM = append(m.CertificatePEM, m.ChainPEM...), nil
	result, err := b.engine(t).Deploy(t.Context(), b.request(t, m))
	require.NoError(t, err)
	require.Len(t, result.Served.Chain, 2)
}

func TestACommandOutsideTheAllowListIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.config["command"] = []string{b.script(t, "reload", "touch "+b.path("ran"))}
	result, err := b.deploy(t)
	require.Equal(t, "COMMAND_NOT_ALLOWED", errs.ReasonOf(err))
	require.Equal(t, errs.PermissionDenied, errs.KindOf(err))
	require.Equal(t, target.StepPreflight, result.Step)
	require.False(t, exists(b.path("key.pem")))
	require.False(t, exists(b.path("ran")))
}

func TestACommandThatEverybodyMayWriteIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	script := b.script(t, "reload", "true")
	require.NoError(t, os.Chmod(script, 0o777))
	b.config["command"], b.allow = []string{script}, target.AllowList{script}
	_, err := b.deploy(t)
	require.Equal(t, "COMMAND_NOT_ALLOWED", errs.ReasonOf(err))
}

func TestACommandThatHangsIsKilledWithAllThatItStarted(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	script := b.script(t, "reload", "sleep 300 &\necho $! > "+b.path("pid")+"\nwait")
	b.config["command"], b.allow = []string{script}, target.AllowList{script}
	b.limits.Command = 300 * time.Millisecond
	result, err := b.deploy(t)
	require.Equal(t, "COMMAND_TIMEOUT", errs.ReasonOf(err))
	require.Equal(t, target.OutcomeRolledBack, result.Outcome)
	require.False(t, exists(b.path("key.pem")), "there was no file before")
	text, err := os.ReadFile(b.path("pid"))
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return gone(pid) }, 5*time.Second, 5*time.Millisecond)
}

// gone tells whether a process has ended; where nobody reaps orphans it stays as a zombie.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil && syscall.Kill(pid, 0) != nil || bytes.Contains(stat, []byte(") Z "))
}

func TestACommandThatLeavesADaemonBehindHasWorked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	script := b.script(t, "reload", "sleep 20 &\necho $! > "+b.path("pid"))
	b.config["command"], b.allow = []string{script}, target.AllowList{script}
	_, err := b.deploy(t)
	require.NoError(t, err)
	text, err := os.ReadFile(b.path("pid"))
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	require.False(t, gone(pid))
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
}

func TestACommandSeesNoSecretsOfTheAgentAndItsOutputIsBounded(t *testing.T) {
	b := newBench(t)
	t.Setenv("CERTCTL_AGENT_SECRET", "hunter2")
	script := b.script(t, "reload", "head -c 1000000 /dev/zero | tr '\\0' x; env; echo \"$1\"")
	b.config["command"], b.allow = []string{script, "$(id); `id` 'q'"}, target.AllowList{script}
	result, err := b.deploy(t)
	require.NoError(t, err)
	require.LessOrEqual(t, len(result.Output), 16<<10)
	require.Contains(t, result.Output, "$(id); `id` 'q'")
	require.NotContains(t, result.Output, "hunter2")
}

func TestARollbackWhoseCommandFailsTooSaysSo(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.deploy(t)
	require.NoError(t, err)
	old, err := os.ReadFile(b.path("tls.pem"))
	require.NoError(t, err)
	script := b.script(t, "reload", "echo cannot reload; exit 7")
	b.config["command"], b.allow = []string{script}, target.AllowList{script}
	result, err := b.deploy(t)
	require.Equal(t, "COMMAND_FAILED", errs.ReasonOf(err))
	require.ErrorContains(t, err, "cannot reload")
	require.ErrorContains(t, err, "the old files are back, but the server did not take them")
	require.Equal(t, "reload", errs.MetaOf(err)["step"])
	require.Equal(t, "rolled_back", errs.MetaOf(err)["outcome"])
	require.True(t, result.RolledBack)
	require.False(t, result.RollbackVerified)
	now, err := os.ReadFile(b.path("tls.pem"))
	require.NoError(t, err)
	require.Equal(t, old, now)
}

func TestALinkIsFollowedAndStays(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	require.NoError(t, os.MkdirAll(b.path("archive"), 0o755))
	require.NoError(t, os.Symlink("archive/tls1.pem", b.path("tls.pem")))
	_, err := b.deploy(t)
	require.NoError(t, err)
	to, err := os.Readlink(b.path("tls.pem"))
	require.NoError(t, err)
	require.Equal(t, "archive/tls1.pem", to)
	info, err := os.Lstat(b.path("archive/tls1.pem"))
	require.NoError(t, err)
	require.True(t, info.Mode().IsRegular())
}

func TestPathsThatCannotBeTrustedAreRefused(t *testing.T) {
	t.Parallel()
	cases := map[string]func(t *testing.T, b *bench){
		"a directory in place of the file": func(t *testing.T, b *bench) { require.NoError(t, os.Mkdir(b.path("key.pem"), 0o755)) },
		"a missing directory":              func(_ *testing.T, b *bench) { b.config["key_path"] = b.path("no/key.pem") },
		"a file in place of a directory": func(t *testing.T, b *bench) {
			require.NoError(t, os.WriteFile(b.path("no"), nil, 0o600))
			b.config["key_path"] = b.path("no/key.pem")
		},
		"a directory that everybody may write to": func(t *testing.T, b *bench) {
			require.NoError(t, os.Mkdir(b.path("open"), 0o755))
			require.NoError(t, os.Chmod(b.path("open"), 0o777))
			b.config["key_path"] = b.path("open/key.pem")
		},
		"a sticky directory that everybody may write to": func(t *testing.T, b *bench) {
			require.NoError(t, os.Mkdir(b.path("open"), 0o755))
			require.NoError(t, os.Chmod(b.path("open"), 0o777|os.ModeSticky))
			b.config["key_path"] = b.path("open/key.pem")
		},
		"links in a circle":               func(t *testing.T, b *bench) { require.NoError(t, os.Symlink("key.pem", b.path("key.pem"))) },
		"two paths that lead to one file": func(t *testing.T, b *bench) { require.NoError(t, os.Symlink("tls.pem", b.path("key.pem"))) },
		"a pipe":                          func(t *testing.T, b *bench) { require.NoError(t, syscall.Mkfifo(b.path("key.pem"), 0o600)) },
	}
	for name, arrange := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			arrange(t, b)
			result, err := b.deploy(t)
			require.Contains(t, []string{"PATH_REFUSED", "DIRECTORY_NOT_FOUND"}, errs.ReasonOf(err), "%v", err)
			require.Equal(t, target.OutcomeUntouched, result.Outcome)
			require.False(t, exists(b.path("tls.pem")))
		})
	}
}

func TestALinkOfAnotherUserIsRefused(t *testing.T) {
	t.Parallel()
	asRoot(t)
	b := newBench(t)
	require.NoError(t, os.Symlink("/etc/shadow", b.path("key.pem")))
	require.NoError(t, os.Lchown(b.path("key.pem"), 65534, 65534))
	_, err := b.deploy(t)
	require.ErrorContains(t, err, "belongs to another user")
}

func TestOwnersAreSetKeptAndPutBack(t *testing.T) {
	t.Parallel()
	asRoot(t)
	b := newBench(t)
	b.config["owner"], b.config["key_mode"] = "nobody", "0640"
	_, err := b.deploy(t)
	require.NoError(t, err)
	require.Equal(t, []int{65534, 0, 0o640}, look(t, b.path("key.pem")))
	delete(b.config, "owner")
	delete(b.config, "key_mode")
	b.config["group"] = "12345"
	_, err = b.deploy(t)
	require.NoError(t, err)
	require.Equal(t, []int{65534, 12345, 0o640}, look(t, b.path("key.pem")), "what is not configured is kept")
	script := b.script(t, "reload", "exit 1")
	b.config["command"], b.allow = []string{script}, target.AllowList{script}
	b.config["owner"], b.config["group"], b.config["key_mode"] = "0", "0", "0400"
	_, err = b.deploy(t)
	require.Error(t, err)
	require.Equal(t, []int{65534, 12345, 0o640}, look(t, b.path("key.pem")), "a rollback brings the old owner back")
	b.config["owner"] = "no-such-account"
	_, err = b.deploy(t)
	require.Equal(t, "ACCOUNT_NOT_FOUND", errs.ReasonOf(err))
}

func TestAnAgentThatMayNotChangeOwnersSaysSo(t *testing.T) {
	t.Parallel()
	asRoot(t)
	b := newBench(t)
	b.config["owner"] = "root"
	m := b.ca.Issue(t, targettest.Name)
	work, err := os.MkdirTemp("", "certctl-unprivileged-") // a test's own directory has a parent that only root may enter
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(work) })
	b.dir = work
	b.config["fullchain_path"], b.config["key_path"] = b.path("tls.pem"), b.path("key.pem")
	require.NoError(t, os.Chown(work, 65534, 65534))
	out := targettest.DeployAs(t, 65534, b.path("journal"), b.request(t, m))
	require.Contains(t, out, "cannot give "+b.path("key.pem")+" to user 0")
	left, err := filepath.Glob(work + "/*.pem")
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestAKeyThatEverybodyMayReadIsReported(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.deploy(t)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(b.path("key.pem"), 0o644))
	result, err := b.deploy(t)
	require.NoError(t, err)
	require.Len(t, result.Warnings, 1)
	require.Contains(t, result.Warnings[0], "0644")
}

func TestAFailedRollbackIsTriedAgainAtTheNextDeployment(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.deploy(t)
	require.NoError(t, err)
	// The command hides the backups, as a disk that fails would.
	script := b.script(t, "reload", "mkdir -p "+b.path("hidden")+"; mv "+b.dir+"/.certctl-*.old "+b.path("hidden")+"; exit 1")
	b.config["command"], b.allow = []string{script}, target.AllowList{script}
	result, err := b.deploy(t)
	require.Equal(t, "ROLLBACK_FAILED", errs.ReasonOf(err))
	require.Equal(t, target.OutcomeBroken, result.Outcome)
	require.Error(t, b.engine(t).Recover(t.Context()))
	require.NoError(t, exec.CommandContext(t.Context(), "/bin/sh", "-c", "mv "+b.path("hidden")+"/.certctl-* "+b.dir).Run())
	b.script(t, "reload", "true")
	_, err = b.deploy(t)
	require.NoError(t, err)
	left, err := filepath.Glob(b.dir + "/.certctl-*")
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestAJournalThatCannotBeReadStopsDeployments(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.deploy(t)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(b.path("journal/target-1/journal.json"), []byte("{"), 0o600))
	require.Error(t, b.engine(t).Recover(t.Context()))
	_, err = b.deploy(t)
	require.Equal(t, "JOURNAL_UNREADABLE", errs.ReasonOf(err))
}

func TestTargetsCannotLeaveTheJournal(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, id := range []string{"", ".", "..", "../x", "a/b"} {
		r := b.request(t, b.ca.Issue(t, targettest.Name))
		r.TargetID = id
		_, err := b.engine(t).Deploy(t.Context(), r)
		require.Equal(t, errs.Invalid, errs.KindOf(err), id)
	}
}

func TestNothingThatIsLoggedOrReturnedHoldsTheKey(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	core, logs := observer.New(zap.DebugLevel)
	m := b.ca.Issue(t, targettest.Name)
	targettest.DeployAndDie(t, b.path("journal"), nil, b.request(t, m), "swap-1")
	e, err := target.NewEngine(target.Config{JournalDir: b.path("journal")}, target.Deps{Logger: zap.New(core)})
	require.NoError(t, err)
	require.NoError(t, e.Recover(t.Context()))
	require.Equal(t, 1, logs.Len())
	m.Key = targettest.KeyPEM(t, targettest.NewKey(t))
	result, err := e.Deploy(t.Context(), b.request(t, m))
	require.Error(t, err)
	secret := strings.Split(m.Key.Reveal(), "\n")[1]
	text := fmt.Sprintf("%+v %+v %+v %+v", logs.All(), result, err, b.request(t, m))
	require.NotContains(t, text, secret)
}

func look(t *testing.T, path string) []int {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	s, ok := info.Sys().(*syscall.Stat_t)
	require.True(t, ok)
	return []int{int(s.Uid), int(s.Gid), int(info.Mode().Perm())}
}

func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may change owners")
	}
}

func TestWhatACheckLeftBehindIsRemoved(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.deploy(t)
	require.NoError(t, err)
	left := b.path("journal/target-1/check-123")
	require.NoError(t, os.Mkdir(left, 0o700))
	require.NoError(t, b.engine(t).Recover(t.Context()))
	require.False(t, exists(left))
}
