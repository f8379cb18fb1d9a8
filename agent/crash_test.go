package agent_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/agent"
)

// killed is an agent that died when its deployment had swapped the files and the server's command had just begun.
func killed(t *testing.T, s *server, cfg agent.Config) (p *place, renewed version, e *entry) {
	t.Helper()
	first := startChild(t, cfg)
	eventually(t, s.connected(), "the agent connects")
	p, g := newPlace(t, "target-1"), newGate(t)
	require.NotNil(t, s.result(s.add(p.deploy(t, "cert-1", s.certify("cert-1")))).GetDeploy())

	p.command = g.command()
	renewed = s.certify("cert-1")
	e = s.add(p.deploy(t, "cert-1", renewed))
	eventually(t, func() bool { return g.runs() == 1 }, "the deployment has swapped the files")
	first.kill()
	require.Greater(t, len(p.names(t)), 2, "the kill left a deployment half done")
	require.NoError(t, os.WriteFile(filepath.Join(g.dir, "open"), nil, 0o600))
	return p, renewed, e
}

func TestAKilledAgentTakesItsDeploymentUpAgain(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	p, renewed, e := killed(t, s, cfg)
	startChild(t, cfg)
	report := s.result(e)
	require.Equal(t, renewed.fingerprint, report.GetDeploy().GetServedFingerprintSha256())
	require.True(t, report.GetDeploy().GetUnchanged(), "the engine had ended it before the work was done again")
	require.Equal(t, renewed.pem+renewed.chain, read(t, p.fullchain()))
	require.Equal(t, []string{"tls.crt", "tls.key"}, p.names(t))
	require.Equal(t, 1, s.called("Enroll"))
	require.Len(t, e.results, 1)
}

func TestWhatAKillLeftIsMendedAlsoWhenNobodyAsksAgain(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	p, renewed, _ := killed(t, s, cfg)
	s.stop()
	startChild(t, cfg)
	eventually(t, func() bool { return len(p.names(t)) == 2 }, "the engine ends the deployment, without a server")
	require.Equal(t, renewed.pem+renewed.chain, read(t, p.fullchain()))
}

func TestAnAgentWithNothingToDoUsesNoProcessorTime(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.beat = time.Second
	c := startChild(t, config(t, s))
	eventually(t, s.see(func() bool { return s.line != nil && s.line.beats >= 1 }), "the agent has settled")
	before, calls := ticks(t, c.cmd.Process.Pid), s.called("ListAssignments")
	eventually(t, s.see(func() bool { return s.line.beats >= 4 }), "some seconds pass")
	require.LessOrEqual(t, ticks(t, c.cmd.Process.Pid)-before, 10, "hundredths of a second in three seconds")
	require.Equal(t, calls, s.called("ListAssignments"))
}

// ticks is the processor time of a process in hundredths of a second, proc(5).
func ticks(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(b), ") ")
	require.True(t, ok)
	fields := strings.Fields(rest)
	user, err := strconv.Atoi(fields[11])
	require.NoError(t, err)
	system, err := strconv.Atoi(fields[12])
	require.NoError(t, err)
	return user + system
}
