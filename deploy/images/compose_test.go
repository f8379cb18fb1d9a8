package images

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	compose "github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"
)

// composeDir is where compose.yaml is.
const composeDir = root + "/deploy/compose"

// project loads compose.yaml as 'docker compose config' does: with the schema, interpolation, defaults and cross-references.
func project(t *testing.T) *compose.Project {
	t.Helper()
	dir, err := filepath.Abs(composeDir)
	require.NoError(t, err)
	p, err := loader.LoadWithContext(t.Context(), compose.ConfigDetails{
		WorkingDir:  dir,
		ConfigFiles: []compose.ConfigFile{{Filename: filepath.Join(dir, "compose.yaml")}},
		Environment: compose.Mapping{},
	}, func(o *loader.Options) { o.SetProjectName("certctl", true); o.Profiles = []string{"client"} })
	require.NoError(t, err)
	return p
}

// processes are the services that run 'certctl serve', by the name that they serve.
func processes(p *compose.Project) map[string]compose.ServiceConfig {
	all := make(map[string]compose.ServiceConfig)
	for _, s := range p.Services {
		if len(s.Command) == 3 && s.Command[0] == "serve" && s.Command[1] == "--service" {
			all[s.Command[2]] = s
		}
	}
	return all
}

// value of a variable; empty if it is not set.
func value(s compose.ServiceConfig, name string) string {
	if v := s.Environment[name]; v != nil {
		return *v
	}
	return ""
}

func TestComposeStartsTheWholeOfCertctl(t *testing.T) {
	t.Parallel()
	p := project(t)
	require.Equal(t, []string{"agent", "async-poller", "audit", "client", "gateway", "inventory", "issuance", "migrate", "nginx", "postgres", "renewal-scheduler", "served"},
		slices.Sorted(maps.Keys(p.Services)))
	six := processes(p)
	require.Equal(t, []string{"asyncpoller", "audit", "gateway", "inventory", "issuance", "renewalscheduler"}, slices.Sorted(maps.Keys(six)))
	require.Equal(t, "postgres:16-alpine", p.Services["postgres"].Image)
	for name, s := range six {
		require.Equal(t, "ghcr.io/certctl/certctl:dev", s.Image)
		require.Equal(t, ":9443", value(s, "CERTCTL_GRPC_LISTEN_ADDR"))
		require.Equal(t, "/run/secrets/internal-secret", value(s, "CERTCTL_INTERNAL_SECRET_FILE"))
		if name == "gateway" {
			continue
		}
		require.Equal(t, compose.ServiceConditionCompletedSuccessfully, s.DependsOn["migrate"].Condition, name)
		require.Contains(t, s.Networks, "database", name)
	}
	require.Equal(t, []string{"async-poller", "audit", "inventory", "issuance", "renewal-scheduler"}, slices.Sorted(maps.Keys(six["gateway"].DependsOn)))
	require.Equal(t, compose.ServiceConditionHealthy, p.Services["migrate"].DependsOn["postgres"].Condition)
	require.NotNil(t, p.Services["postgres"].HealthCheck)
}

func TestComposeFindsServicesUnderTheAddressesThatAreBuiltIn(t *testing.T) {
	t.Parallel()
	p := project(t)
	addresses := regexp.MustCompile("`CERTCTL_[A-Z]+_ADDR` \\|  \\| `([a-z-]+):9443`").FindAllStringSubmatch(environments(t), -1)
	require.Len(t, addresses, 5)
	for _, a := range addresses {
		require.Contains(t, p.Services[a[1]].Networks, "peers", a[1])
	}
	require.Contains(t, p.Services["gateway"].Networks, "peers")
	for _, name := range []string{"database", "peers"} {
		require.True(t, p.Networks[name].Internal, name)
	}
	require.Equal(t, "https://gateway:8443", value(p.Services["agent"], "CERTCTL_SERVER"))
	require.Equal(t, "gateway", value(p.Services["gateway"], "CERTCTL_TLS_NAMES"))
}

func TestComposeTakesRightsAway(t *testing.T) {
	t.Parallel()
	for name, s := range project(t).Services {
		require.True(t, s.ReadOnly, name)
		require.Equal(t, []string{"ALL"}, s.CapDrop, name)
		require.Equal(t, []string{"no-new-privileges:true"}, s.SecurityOpt, name)
		require.False(t, s.Privileged, name)
		for _, port := range s.Ports {
			require.Equal(t, "127.0.0.1", port.HostIP, name)
		}
		if name != "served" {
			require.Empty(t, s.CapAdd, name)
			require.NotEqual(t, "root", s.User, name)
		}
	}
}

func TestComposeSharesTheDatabaseConnectionsOutOnce(t *testing.T) {
	t.Parallel()
	p := project(t)
	users := processes(p)
	delete(users, "gateway")
	users["migrate"] = p.Services["migrate"]
	for name, s := range users {
		sum := 0
		for _, quota := range strings.Split(value(s, "CERTCTL_DATABASE_POOL_QUOTAS"), ",") {
			service, n, ok := strings.Cut(quota, "=")
			require.True(t, ok, quota)
			require.Contains(t, users, service)
			connections, err := strconv.Atoi(n)
			require.NoError(t, err)
			sum += connections
		}
		require.Equal(t, value(s, "CERTCTL_DATABASE_MAX_CONNS"), strconv.Itoa(sum), name)
		require.Equal(t, value(users["migrate"], "CERTCTL_DATABASE_POOL_QUOTAS"), value(s, "CERTCTL_DATABASE_POOL_QUOTAS"), name)
		require.Equal(t, value(users["migrate"], "CERTCTL_DATABASE_URL"), value(s, "CERTCTL_DATABASE_URL"), name)
		require.Less(t, sum, 90, "Postgres takes 100 connections unless it is told otherwise")
	}
}

func environments(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "deploy", "ENVIRONMENTS.md"))
	require.NoError(t, err)
	return string(b)
}

// settings are the server's and client's variables as the reference lists them, and whether each is a secret. One that may be
// in a file is there under both names, and in the file it is none.
func settings(t *testing.T) map[string]bool {
	t.Helper()
	known := make(map[string]bool)
	for line := range strings.Lines(environments(t)) {
		names := regexp.MustCompile("`(CERTCTL_[A-Z_]+)`").FindAllStringSubmatch(strings.Split(line+"||", "|")[1], -1)
		for _, n := range names {
			known[n[1]] = strings.HasSuffix(strings.TrimSpace(line), "| secret |") && !strings.HasSuffix(n[1], "_FILE")
		}
	}
	require.Greater(t, len(known), 40)
	return known
}

// agentSettings are the variables of the agent: one for each flag.
func agentSettings(t *testing.T) map[string]bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "agent", "cmd", "certctl-agent", "main.go"))
	require.NoError(t, err)
	known := make(map[string]bool)
	for _, f := range regexp.MustCompile(`\.\w+Var\(&\S+, "([a-z-]+)"`).FindAllSubmatch(b, -1) {
		known["CERTCTL_"+strings.ToUpper(strings.ReplaceAll(string(f[1]), "-", "_"))] = string(f[1]) == "join-token"
	}
	require.Greater(t, len(known), 8)
	return known
}

func TestComposeSetsOnlyWhatThereIsAndNoSecrets(t *testing.T) {
	t.Parallel()
	server, agent := settings(t), agentSettings(t)
	for name, s := range project(t).Services {
		known := server
		if name == "agent" {
			known = agent
		}
		for variable := range s.Environment {
			text := value(s, variable)
			if path, ok := strings.CutPrefix(text, "/run/secrets/"); ok {
				require.True(t, slices.ContainsFunc(s.Secrets, func(c compose.ServiceSecretConfig) bool { return c.Source == path }), "%s: %s", name, text)
			}
			if !strings.HasPrefix(variable, "CERTCTL_") {
				require.Regexp(t, `^POSTGRES_(USER|DB|PASSWORD_FILE)$`, variable)
				continue
			}
			secret, ok := known[variable]
			require.True(t, ok, "%s: there is no setting %s", name, variable)
			if variable == "CERTCTL_DATABASE_URL" {
				u, err := url.Parse(text)
				require.NoError(t, err)
				_, hasPassword := u.User.Password()
				require.False(t, hasPassword, name)
				continue
			}
			require.False(t, secret, "%s: %s is a secret and belongs in a file", name, variable)
		}
	}
}

func TestComposeGivesTheKeyOfTheCAToTheGatewayAlone(t *testing.T) {
	t.Parallel()
	p := project(t)
	readers := make(map[string][]string)
	for name, s := range p.Services {
		for _, secret := range s.Secrets {
			readers[secret.Source] = append(readers[secret.Source], name)
		}
	}
	require.Equal(t, []string{"gateway"}, readers["ca-key"])
	require.Equal(t, []string{"issuance"}, readers["encryption-key"])
	require.ElementsMatch(t, []string{"agent", "inventory"}, readers["join-token"])
	require.ElementsMatch(t, []string{"client", "gateway"}, readers["api-key"])
	require.Len(t, readers, len(p.Secrets))
	for _, s := range p.Secrets {
		require.Equal(t, "secrets", filepath.Base(filepath.Dir(s.File)))
	}
}

func TestPrepareMakesEverySecretOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	script, err := os.ReadFile(filepath.Join(composeDir, "prepare"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "prepare"), script, 0o755))
	prepare := func() {
		out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "prepare")).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	prepare()
	made := sums(t, dir)
	prepare()
	require.Equal(t, made, sums(t, dir), "what is there stays")

	p := project(t)
	files := []string{p.Configs["ca.crt"].File}
	for _, s := range p.Secrets {
		files = append(files, s.File)
	}
	require.Len(t, made, 1+len(files))
	for _, f := range files {
		info, err := os.Stat(filepath.Join(dir, "secrets", filepath.Base(f)))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o444), info.Mode().Perm(), "users of containers, whom the host does not know, read it")
		require.NotZero(t, info.Size())
	}
	info, err := os.Stat(filepath.Join(dir, "secrets"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())

	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "secrets", "ca.crt"), filepath.Join(dir, "secrets", "ca.key"))
	require.NoError(t, err)
	require.True(t, pair.Leaf.IsCA)
	require.NotZero(t, pair.Leaf.KeyUsage&x509.KeyUsageCertSign)
	require.NoError(t, pair.Leaf.CheckSignatureFrom(pair.Leaf))
	b, err := os.ReadFile(filepath.Join(dir, "secrets", "ca.key"))
	require.NoError(t, err)
	block, rest := pem.Decode(b)
	require.NotNil(t, block)
	require.Empty(t, rest)
}
