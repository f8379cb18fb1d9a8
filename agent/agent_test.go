package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/certctl/certctl/agent"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
)

// asAgent has the test's program be an agent, so that it can be killed.
const asAgent = "CERTCTL_TEST_AS_AGENT"

// exitRetired is the exit code of such an agent after ErrRetired.
const exitRetired = 3

func TestMain(m *testing.M) {
	if os.Getenv(asAgent) != "" {
		os.Exit(beAgent())
	}
	goleak.VerifyTestMain(m)
}

func beAgent() int {
	var cfg agent.Config
	if err := json.Unmarshal([]byte(os.Getenv(asAgent)), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg.JoinToken = secretbox.NewSecret(joinToken)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := agent.Run(ctx, cfg, agent.Deps{Log: zap.NewNop()})
	switch {
	case errors.Is(err, agent.ErrRetired):
		return exitRetired
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func config(t testing.TB, s *server) agent.Config {
	return agent.Config{
		Server: s.url(), ServerCA: s.caFile, DataDir: filepath.Join(t.TempDir(), "agent"), Name: "web-1", JoinToken: secretbox.NewSecret(joinToken),
		Labels: map[string]string{"env": "test"}, AllowCommands: []string{"/bin/sh"},
	}
}

// running is an agent in this process.
type running struct {
	t      testing.TB
	logs   *observer.ObservedLogs
	cancel context.CancelFunc
	once   sync.Once
	done   <-chan error
	err    error
}

// start runs an agent until the end of the test.
func start(t testing.TB, cfg agent.Config) *running {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: t, logs: logs, cancel: cancel, done: run.Go(func() error { return agent.Run(ctx, cfg, agent.Deps{Log: zap.New(core)}) })}
	t.Cleanup(func() { _ = r.stop() })
	return r
}

// stop ends the agent as a signal does.
func (r *running) stop() error {
	r.cancel()
	return r.wait()
}

// wait answers what Run returned.
func (r *running) wait() error {
	r.t.Helper()
	r.once.Do(func() {
		select {
		case r.err = <-r.done:
		case <-time.After(30 * time.Second):
			r.t.Error("the agent does not end")
		}
	})
	return r.err
}

func (r *running) logged(message string) func() bool {
	return func() bool { return r.logs.FilterMessage(message).Len() > 0 }
}

// connect starts an agent and waits until it is there.
func connect(t testing.TB, s *server, cfg agent.Config) *running {
	t.Helper()
	r := start(t, cfg)
	eventually(t, s.connected(), "the agent connects")
	return r
}

// child is an agent in a process of its own.
type child struct {
	t    testing.TB
	cmd  *exec.Cmd
	out  bytes.Buffer
	once sync.Once
	dead chan struct{}
}

func startChild(t testing.TB, cfg agent.Config) *child {
	t.Helper()
	cfg.JoinToken = secretbox.Secret{}
	b, err := json.Marshal(cfg)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	c := &child{t: t, cmd: exec.Command(self), dead: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), asAgent+"="+string(b))
	c.cmd.Stderr = &c.out
	require.NoError(t, c.cmd.Start())
	t.Cleanup(c.kill)
	return c
}

// kill is kill -9.
func (c *child) kill() {
	c.once.Do(func() {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
		close(c.dead)
	})
}

// exit waits for the end of the process.
func (c *child) exit() int {
	c.t.Helper()
	c.once.Do(func() {
		_ = c.cmd.Wait()
		close(c.dead)
	})
	return c.cmd.ProcessState.ExitCode()
}

func read(t testing.TB, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	require.NoError(t, err)
	return string(b)
}
