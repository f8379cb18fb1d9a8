package targettest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/secretbox"
)

// childVariable names the file with the order for a child process.
const childVariable = "CERTCTL_TARGETTEST_CHILD"

// order is what a child process does. The key stands apart because a Secret does not marshal.
type order struct {
	Journal string
	Allow   target.AllowList
	Request target.Request
	Key     string
	KillAt  string
}

// Main is the TestMain of a package that runs the suite: the same binary is the process that dies.
func Main(m *testing.M) {
	path := os.Getenv(childVariable)
	if path == "" {
		os.Exit(m.Run())
	}
	err := child(path)
	_, _ = fmt.Fprintln(os.Stderr, "the child was not killed:", err)
	os.Exit(3)
}

func child(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var o order
	err = json.Unmarshal(data, &o)
	if err != nil {
		return err
	}
	o.Request.Material.Key = secretbox.NewSecret(o.Key)
	e, err := target.NewEngine(target.Config{JournalDir: o.Journal, Allow: o.Allow, Hook: func(step string) error {
		if step == o.KillAt {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}}, target.Deps{})
	if err != nil {
		return err
	}
	_, err = e.Deploy(context.Background(), o.Request)
	return err
}

// DeployAndDie deploys in a process of its own that kills itself after the step.
func DeployAndDie(t testing.TB, journal string, allow target.AllowList, r target.Request, killAt string) {
	t.Helper()
	data, err := json.Marshal(order{Journal: journal, Allow: allow, Request: r, Key: r.Material.Key.Reveal(), KillAt: killAt})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "order.json")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+path)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "the child ended by itself: %s", out)
	status, ok := exit.Sys().(syscall.WaitStatus)
	require.True(t, ok && status.Signaled() && status.Signal() == syscall.SIGKILL, "the child was not killed: %s", out)
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// DeployAs deploys in a process of its own under another user, and gives what it ended with. Only root can call it.
func DeployAs(t testing.TB, uid uint32, journal string, r target.Request) string {
	t.Helper()
	data, err := json.Marshal(order{Journal: journal, Request: r, Key: r.Material.Key.Reveal()})
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "certctl-order-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path, program := filepath.Join(dir, "order.json"), filepath.Join(dir, "test")
	binary, err := os.ReadFile(os.Args[0]) // the binary may stand where only root can go
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(program, binary, 0o755)) // another user must run it
	require.NoError(t, os.WriteFile(path, data, 0o600))
	require.NoError(t, os.Chown(path, int(uid), int(uid)))
	require.NoError(t, os.Chown(dir, int(uid), int(uid)))
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = []string{childVariable + "=" + path}
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, _ := cmd.CombinedOutput() // it ends with an error in any case
	return string(out)
}
