package agent_test

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/agent"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

// probed gives an agent an address for probes.
func probed(t testing.TB, cfg agent.Config) agent.Config {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	cfg.HealthListen = l.Addr().String()
	require.NoError(t, l.Close())
	return cfg
}

// probe asks for the health; status 0: there is no answer.
func probe(t testing.TB, cfg agent.Config, path string) (status int, sentence string) {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + cfg.HealthListen + path)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(b)
}

// says waits until /readyz has a status and words, while the process is alive.
func says(t testing.TB, cfg agent.Config, status int, words string) {
	t.Helper()
	eventually(t, func() bool {
		got, sentence := probe(t, cfg, "/readyz")
		return got == status && strings.Contains(sentence, words)
	}, words)
	alive, _ := probe(t, cfg, "/healthz")
	require.Equal(t, http.StatusOK, alive)
}

func TestProbesAreToldWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.stop()
	cfg := probed(t, config(t, s))
	r := start(t, cfg)
	says(t, cfg, http.StatusServiceUnavailable, "not enrolled yet: enrol as \"web-1\": ")
	s.start()
	says(t, cfg, http.StatusOK, "enrolled and connected")
	s.stop()
	says(t, cfg, http.StatusServiceUnavailable, "not connected: ")
	s.start()
	says(t, cfg, http.StatusOK, "enrolled and connected")
	s.do(func() {
		s.say(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Drain{Drain: &agentv1.Drain{}}})
	})
	says(t, cfg, http.StatusOK, "enrolled and connected")
	status, _ := probe(t, cfg, "/metrics")
	require.Equal(t, http.StatusNotFound, status)
	require.NoError(t, r.stop())
	status, _ = probe(t, cfg, "/healthz")
	require.Zero(t, status, "nothing listens any more")
}

func TestAnAddressForProbesThatIsTakenIsAnErrorAtOnce(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	cfg.HealthListen = s.address
	require.ErrorContains(t, start(t, cfg).wait(), "--health-listen")
	require.Zero(t, s.called("Enroll"))
}

func TestAnAgentThatMayWaitWaitsUntilTheServerLetsItIn(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.taken = true
	cfg := probed(t, config(t, s))
	cfg.WaitToEnrol, cfg.JoinToken, cfg.JoinTokenFile = true, secretbox.Secret{}, filepath.Join(t.TempDir(), "join-token")
	r := start(t, cfg)
	says(t, cfg, http.StatusServiceUnavailable, "not enrolled yet: there is no join token")
	require.NoError(t, os.WriteFile(cfg.JoinTokenFile, []byte("another-join-token\n"), 0o600))
	says(t, cfg, http.StatusServiceUnavailable, "the join token is unknown, expired or used up. Make another with 'certctl agents join-token'")
	require.NoError(t, os.WriteFile(cfg.JoinTokenFile, []byte(joinToken+"\n"), 0o600))
	says(t, cfg, http.StatusServiceUnavailable, "an agent named \"web-1\" exists. 'certctl agents list' has its id. To let this host take its place: 'certctl agents allow-reenrollment ID'")
	eventually(t, r.logged("enrolment not possible yet"), "a line in the log")
	s.do(func() { s.taken = false })
	says(t, cfg, http.StatusOK, "enrolled and connected")
}

func TestAnAgentThatMayWaitEndsWithWhatOnlyItsOwnSettingsCure(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.afterEnroll = func() error { return errs.New(errs.Invalid, "INVALID_ARGUMENT", "the name is not right") }
	cfg := config(t, s)
	cfg.WaitToEnrol = true
	require.ErrorContains(t, start(t, cfg).wait(), "the name is not right")
}

func TestARefusedCredentialIsToldWithTheWayOut(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := probed(t, config(t, s))
	require.NoError(t, connect(t, s, cfg).stop())
	s.do(func() { s.credentials[s.given[0]] = revoked; s.taken = true })
	start(t, cfg)
	says(t, cfg, http.StatusServiceUnavailable, "not enrolled again: enrol as \"web-1\": ")
	says(t, cfg, http.StatusServiceUnavailable, "certctl agents allow-reenrollment")
}

func TestAServerWithAnotherCAIsTrustedOnceItsFileIsThere(t *testing.T) {
	t.Parallel()
	s, other := newServer(t), newServer(t)
	cfg := probed(t, config(t, s))
	cfg.ServerCA = filepath.Dir(s.caFile)
	connect(t, s, cfg)
	s.stop()
	s.do(func() { s.tls = other.tls })
	s.start()
	says(t, cfg, http.StatusServiceUnavailable, "certificate signed by unknown authority")
	content, err := os.ReadFile(other.caFile)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.caFile, content, 0o600))
	says(t, cfg, http.StatusOK, "enrolled and connected")
	require.Equal(t, 1, s.called("Enroll"))
}
