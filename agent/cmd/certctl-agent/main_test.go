package main

import (
	"context"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/certctl/certctl/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// parse gives the options that arguments and environment lead to.
func parse(t *testing.T, environment map[string]string, args ...string) (options, error) {
	t.Helper()
	var got options
	lookup := func(name string) (string, bool) {
		v, ok := environment[name]
		return v, ok
	}
	c := runCommand(lookup, func(_ context.Context, o options) error {
		got = o
		return nil
	})
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs(args)
	return got, c.ExecuteContext(t.Context())
}

func TestEveryFlagCanComeFromTheEnvironment(t *testing.T) {
	t.Parallel()
	o, err := parse(t, map[string]string{
		"CERTCTL_SERVER": "https://certctl.example.com", "CERTCTL_SERVER_CA": "/ca.crt", "CERTCTL_JOIN_TOKEN": "token", "CERTCTL_JOIN_TOKEN_FILE": "/token",
		"CERTCTL_DATA_DIR": "/data", "CERTCTL_NAME": "web-1", "CERTCTL_LABEL": "env=prod,site=a", "CERTCTL_ALLOW_COMMAND": "/bin/a,/bin/b",
		"CERTCTL_CREDENTIAL_ROTATION": "12h", "CERTCTL_LOG_FORMAT": "json", "CERTCTL_LOG_LEVEL": "debug", "CERTCTL_WAIT_TO_ENROL": "true",
		"CERTCTL_HEALTH_LISTEN_ADDR": ":9090",
	})
	require.NoError(t, err)
	require.Equal(t, options{server: "https://certctl.example.com", serverCA: "/ca.crt", joinToken: "token", joinTokenFile: "/token", dataDir: "/data",
		name: "web-1", labels: map[string]string{"env": "prod", "site": "a"}, allow: []string{"/bin/a", "/bin/b"}, rotation: 12 * time.Hour, logFormat: "json",
		logLevel: "debug", waitToEnrol: true, healthListen: ":9090"}, o)

	usage := runCommand(os.LookupEnv, run).Flags().FlagUsages()
	require.Equal(t, len(settings()), strings.Count(usage, " --"), "settings lists every flag:\n%s", usage)
}

func TestAFlagWinsOverTheEnvironment(t *testing.T) {
	t.Parallel()
	o, err := parse(t, map[string]string{"CERTCTL_NAME": "from-environment", "CERTCTL_LABEL": "a=1", "CERTCTL_ALLOW_COMMAND": "/bin/a"},
		"--name", "from-flag", "--label", "b=2", "--label", "c=3", "--allow-command", "/bin/b", "--allow-command", "/bin/c")
	require.NoError(t, err)
	require.Equal(t, "from-flag", o.name)
	require.Equal(t, map[string]string{"b": "2", "c": "3"}, o.labels)
	require.Equal(t, []string{"/bin/b", "/bin/c"}, o.allow)
}

func TestTheDefaultsNeedOnlyAServer(t *testing.T) {
	t.Parallel()
	o, err := parse(t, nil)
	require.NoError(t, err)
	require.Equal(t, options{dataDir: "/var/lib/certctl-agent", rotation: agent.DefaultRotation, logFormat: "console", logLevel: "info"}, options{
		dataDir: o.dataDir, rotation: o.rotation, logFormat: o.logFormat, logLevel: o.logLevel, server: o.server, name: o.name,
		healthListen: o.healthListen, waitToEnrol: o.waitToEnrol})
	require.ErrorContains(t, run(t.Context(), o), "--server is required")
}

func TestBadSettingsAreNamed(t *testing.T) {
	t.Parallel()
	_, err := parse(t, map[string]string{"CERTCTL_LABEL": "no-value"})
	require.ErrorContains(t, err, "CERTCTL_LABEL")
	_, err = parse(t, map[string]string{"CERTCTL_CREDENTIAL_ROTATION": "monthly"})
	require.ErrorContains(t, err, "CERTCTL_CREDENTIAL_ROTATION")
	_, err = parse(t, nil, "surplus")
	require.Error(t, err)
	require.ErrorContains(t, run(t.Context(), options{server: "https://x", logFormat: "xml"}), "--log-format")
	require.ErrorContains(t, run(t.Context(), options{server: "https://x", logLevel: "loud"}), "--log-level")
	require.ErrorContains(t, run(t.Context(), options{server: "https://x", joinToken: "a", joinTokenFile: "b"}), "exclude each other")
	require.ErrorContains(t, run(t.Context(), options{server: "https://x", joinTokenFile: "/nowhere", dataDir: filepath.Join(t.TempDir(), "agent")}), "read join token")
}

// prepared runs the command, and answers what it says.
func prepared(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	c := prepareCommand(func(string) (string, bool) { return "", false })
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetOut(&out)
	c.SetArgs(args)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func TestPrepareSaysWhatItDid(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "agent")
	owner := strconv.Itoa(os.Geteuid())
	out, err := prepared(t, "--data-dir", dir, "--owner", owner)
	require.NoError(t, err)
	require.Equal(t, "made "+dir+"\n", out)
	require.NoError(t, os.Chmod(dir, 0o755))
	out, err = prepared(t, "--data-dir", dir, "--owner", owner)
	require.NoError(t, err)
	require.Equal(t, "closed "+dir+" to all but its owner (0700)\n", out)
	out, err = prepared(t, "--data-dir", dir, "--owner", owner)
	require.NoError(t, err)
	require.Equal(t, dir+" is as it has to be, and belongs to "+owner+"\n", out)

	_, err = prepared(t, "--data-dir", dir)
	require.ErrorContains(t, err, "--owner is required")
	for _, wrong := range []string{"nobody", "1:", ":1", "-1", "1:2:3", "99999999999"} {
		_, err = prepared(t, "--data-dir", dir, "--owner", wrong)
		require.ErrorContains(t, err, "UID:GID", wrong)
	}
}

// The agent runs on customers' hosts: what it does not need is not there.
func TestTheAgentLinksNoServerCode(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	require.NoError(t, err)
	deps := strings.Fields(string(out))
	require.Contains(t, deps, "github.com/certctl/certctl/agent/internal/work")
	for _, dep := range deps {
		for _, banned := range []string{
			"github.com/jackc/", "database/sql", "github.com/certctl/certctl/services", "github.com/certctl/certctl/gateway",
			"github.com/certctl/certctl/pkg/pg", "github.com/certctl/certctl/pkg/rpc", "github.com/certctl/certctl/pkg/test", "github.com/certctl/certctl/pkg/connector/issuer",
			"github.com/prometheus/client_golang/prometheus/promhttp", "github.com/grpc-ecosystem/", "github.com/stretchr/", "github.com/pressly/", "github.com/google/cel-go",
		} {
			require.False(t, strings.HasPrefix(dep, banned), "the agent links %s", dep)
		}
	}
}

func TestTheBinaryIsStaticAndSmall(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "certctl-agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Less(t, info.Size(), int64(25<<20))
	t.Logf("%.1f MiB", float64(info.Size())/(1<<20))
	f, err := elf.Open(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	for _, p := range f.Progs {
		require.NotEqual(t, elf.PT_INTERP, p.Type, "it needs a dynamic linker")
	}
	version, err := exec.CommandContext(t.Context(), path, "--version").Output()
	require.NoError(t, err)
	require.Contains(t, string(version), "certctl-agent")

	refused := exec.CommandContext(t.Context(), path, "run", "--server", "http://127.0.0.1:1", "--data-dir", filepath.Join(t.TempDir(), "agent"))
	out, err = refused.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "must be a URL")
}
