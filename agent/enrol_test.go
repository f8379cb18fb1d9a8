package agent_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/agent"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
)

func TestAnAgentEnrolsOnceAndKeepsItsCredentialToItself(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	before, err := agent.Enrolled(cfg.DataDir)
	require.NoError(t, err)
	require.False(t, before)
	require.NoDirExists(t, cfg.DataDir, "a question changes nothing")

	r := connect(t, s, cfg)
	during, err := agent.Enrolled(cfg.DataDir)
	require.NoError(t, err)
	require.True(t, during)
	require.NoError(t, r.stop())

	require.Equal(t, s.given[0], read(t, cfg.DataDir, "identity", "credential"))
	require.Equal(t, "0600", fileMode(t, filepath.Join(cfg.DataDir, "identity", "credential")))
	require.Equal(t, "0700", fileMode(t, filepath.Join(cfg.DataDir, "identity")))
	require.Equal(t, "0700", fileMode(t, cfg.DataDir))
	e := s.enrolments[0]
	require.Equal(t, "web-1", e.GetName())
	require.Equal(t, map[string]string{"env": "test"}, e.GetLabels())
	require.Contains(t, e.GetHost().GetCapabilities(), "file")

	cfg.JoinToken = secretbox.Secret{}
	connect(t, s, cfg)
	require.Equal(t, 1, s.called("Enroll"), "a second start needs no token")
}

func TestALostAnswerToTheEnrolmentIsAskedForAgain(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.afterEnroll = func() error {
		if s.called("Enroll") < 3 {
			return unavailable()
		}
		return nil
	}
	cfg := config(t, s)
	r := start(t, cfg)
	eventually(t, func() bool { return s.called("Enroll") >= 1 }, "the first enrolment")
	require.NoError(t, r.stop())
	connect(t, s, cfg)
	require.GreaterOrEqual(t, len(s.enrolments), 3)
	for _, e := range s.enrolments {
		require.Equal(t, s.enrolments[0].GetInstanceId(), e.GetInstanceId(), "also after a restart")
	}
	require.Equal(t, s.given[len(s.given)-1], read(t, cfg.DataDir, "identity", "credential"))
}

func TestAServerThatIsAwayIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.stop()
	r := start(t, config(t, s))
	eventually(t, r.logged("enrolment not possible yet"), "the agent has tried")
	s.start()
	eventually(t, s.connected(), "the agent connects")
}

func TestAnAgentThatWaitsForItsServerEndsWhenTold(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.stop()
	r := start(t, config(t, s))
	eventually(t, r.logged("enrolment not possible yet"), "the agent has tried")
	require.NoError(t, r.stop())
}

func TestARefusedTokenEndsTheAgentWithTheReason(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	cfg.JoinToken = secretbox.NewSecret("another-join-token")
	err := start(t, cfg).wait()
	require.ErrorContains(t, err, "the join token is unknown, expired or used up")
	require.Equal(t, "JOIN_TOKEN_NOT_VALID", errs.ReasonOf(err))
	require.NotContains(t, err.Error(), "another-join-token")
	require.Equal(t, 1, s.called("Enroll"))
}

func TestANameThatIsTakenEndsTheAgentWithTheReason(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.taken = true
	err := start(t, config(t, s)).wait()
	require.Equal(t, "AGENT_NAME_TAKEN", errs.ReasonOf(err))
	require.ErrorContains(t, err, "certctl agents allow-reenrollment")
	require.ErrorContains(t, err, "certctl agents retire")
}

func TestATokenIsReadFromItsFileWhenItIsNeeded(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	cfg.JoinToken, cfg.JoinTokenFile = secretbox.Secret{}, filepath.Join(t.TempDir(), "join-token")
	require.ErrorContains(t, start(t, cfg).wait(), "read join token")
	require.NoError(t, os.WriteFile(cfg.JoinTokenFile, []byte("\n"), 0o600))
	require.ErrorContains(t, start(t, cfg).wait(), "is empty")
	require.NoError(t, os.WriteFile(cfg.JoinTokenFile, []byte(","+joinToken), 0o600))
	require.ErrorContains(t, start(t, cfg).wait(), cfg.JoinTokenFile+": item 1 of 2 is empty")
	require.NoError(t, os.WriteFile(cfg.JoinTokenFile, make([]byte, 1<<20), 0o600))
	require.ErrorContains(t, start(t, cfg).wait(), "is larger than 65536 bytes")
	require.Zero(t, s.called("Enroll"))
	require.NoError(t, os.WriteFile(cfg.JoinTokenFile, []byte(joinToken+"\n"), 0o600))
	require.NoError(t, connect(t, s, cfg).stop())
	require.NoError(t, os.Remove(cfg.JoinTokenFile))
	connect(t, s, cfg)
	require.Equal(t, 1, s.called("Enroll"), "who is enrolled needs no token")
}

func TestWithoutATokenTheFirstStartSaysWhereToGetOne(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	cfg.JoinToken = secretbox.Secret{}
	require.ErrorContains(t, start(t, cfg).wait(), "certctl agents join-token")
	cfg.JoinToken = secretbox.NewSecret("," + joinToken)
	require.ErrorContains(t, start(t, cfg).wait(), "--join-token: item 1 of 2 is empty")
	cfg.JoinTokenFile = t.TempDir()
	require.ErrorContains(t, start(t, cfg).wait(), "is no regular file")
	require.Zero(t, s.called("Enroll"))
}

func TestAServerThatIsNotTrustedGetsNoToken(t *testing.T) {
	t.Parallel()
	s, other := newServer(t), newServer(t)
	cfg := config(t, s)
	cfg.ServerCA = other.caFile
	start(t, cfg)
	eventually(t, s.see(func() bool { return s.handshakes > 1 }), "the agent has tried")
	require.Zero(t, s.called("Enroll"))
}

func TestARefusedCredentialIsReplacedWithTheTokenIfTheServerLetsIt(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	require.NoError(t, connect(t, s, cfg).stop())
	s.do(func() { s.credentials[s.given[0]] = revoked; s.taken = true })
	r := start(t, cfg)
	eventually(t, r.logged("not enrolled again"), "the server does not let it in")
	s.do(func() { s.taken = false })
	eventually(t, s.connected(), "the agent connects")
	require.Equal(t, s.given[1], read(t, cfg.DataDir, "identity", "credential"))
}

func TestTwoAgentsDoNotShareADirectory(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	connect(t, s, cfg)
	err := start(t, cfg).wait()
	require.ErrorContains(t, err, "another agent works in this directory")
	require.ErrorContains(t, err, "pid "+strconv.Itoa(os.Getpid()))
}

func TestUnusableSettingsAreErrorsAtOnce(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for name, change := range map[string]func(*agent.Config){
		"no server":          func(c *agent.Config) { c.Server = "" },
		"no TLS":             func(c *agent.Config) { c.Server = "http://127.0.0.1:8443" },
		"a path":             func(c *agent.Config) { c.Server = "https://127.0.0.1:8443/api" },
		"no CA file":         func(c *agent.Config) { c.ServerCA = "/nowhere/ca.crt" },
		"no CA in the file":  func(c *agent.Config) { c.ServerCA = "/dev/null" },
		"no directory":       func(c *agent.Config) { c.DataDir = "" },
		"a file":             func(c *agent.Config) { c.DataDir = s.caFile },
		"a relative command": func(c *agent.Config) { c.AllowCommands = []string{"sh"} },
		"a common directory": func(c *agent.Config) {
			require.NoError(t, os.Mkdir(c.DataDir, 0o700))
			require.NoError(t, os.Chmod(c.DataDir, 0o777))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := config(t, s)
			change(&cfg)
			require.Error(t, start(t, cfg).wait())
		})
	}
	t.Cleanup(func() { require.Zero(t, s.called("Enroll")) })
}
