package agent_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certctl/certctl/agent"
	"github.com/certctl/certctl/pkg/errs"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

func retired() error { return errs.New(errs.PermissionDenied, "AGENT_RETIRED", "the agent is retired") }

// endsRetired asserts that the agent ends for good.
func endsRetired(t *testing.T, s *server, cfg agent.Config, r *running) {
	t.Helper()
	require.ErrorIs(t, r.wait(), agent.ErrRetired)
	enrolled, err := agent.Enrolled(cfg.DataDir)
	require.NoError(t, err)
	require.False(t, enrolled, "the credential is forgotten")
	current, next := credentialFiles(cfg)
	require.NoFileExists(t, current)
	require.NoFileExists(t, next)

	s.do(func() { s.retired = false })
	calls := s.called("Enroll")
	require.ErrorIs(t, start(t, cfg).wait(), agent.ErrRetired, "it does not come back with an old token")
	require.Equal(t, calls, s.called("Enroll"))
}

func TestRetirementEndsTheAgentForGood(t *testing.T) {
	t.Parallel()
	for name, retire := range map[string]func(*server){
		"by a message": func(s *server) {
			s.say(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Retired{Retired: &agentv1.Retired{}}})
		},
		"by the end of the stream": func(s *server) { s.retired = true; s.line.end <- retired() },
		"while it was away":        func(s *server) { s.retired = true; s.line.end <- unavailable() },
		"by the answer to a question for work": func(s *server) {
			s.retired = true
			s.hint()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			cfg := config(t, s)
			r := connect(t, s, cfg)
			s.do(func() { retire(s) })
			endsRetired(t, s, cfg, r)
		})
	}
}

func TestRetirementInTheAnswerToAReportEndsTheAgent(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	r := connect(t, s, cfg)
	s.do(func() {
		s.beforeReport = func(*agentv1.ReportAssignmentRequest) error { return retired() }
	})
	s.add(csrWork("cert-1"))
	endsRetired(t, s, cfg, r)
}

func TestARetiredAgentEndsItsProcess(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	c := startChild(t, config(t, s))
	eventually(t, s.connected(), "the agent connects")
	s.do(func() {
		s.say(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Retired{Retired: &agentv1.Retired{}}})
	})
	require.Equal(t, exitRetired, c.exit())
}

func TestADrainedAgentComesBackAfterTheGivenTime(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	connect(t, s, config(t, s))
	const after = 700 * time.Millisecond
	began := time.Now()
	s.do(func() {
		s.say(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Drain{Drain: &agentv1.Drain{ReconnectAfter: durationpb.New(after)}}})
	})
	eventually(t, s.see(func() bool { return len(s.connects) == 2 }), "the agent comes back")
	require.GreaterOrEqual(t, s.connects[1].Sub(began), after)
	require.Equal(t, s.sessions[0], s.sessions[1], "the same process")
}

func TestAfterALostStreamTheAgentComesBackAndDoesWhatItHasMissed(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	connect(t, s, config(t, s))
	eventually(t, s.see(func() bool { return s.line != nil }), "the agent is connected")
	var e *entry
	s.do(func() {
		s.line.end <- unavailable()
		s.line = nil
	})
	e = s.add(csrWork("cert-1")) // nobody is there to hear the hint
	require.NotNil(t, s.result(e).GetCsr())
	require.Len(t, s.connects, 2)
}

func TestARestartOfTheServerIsSurvived(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := connect(t, s, config(t, s))
	s.stop()
	eventually(t, r.logged("connection to the server lost"), "the agent notices")
	e := s.add(csrWork("cert-1"))
	s.start()
	require.NotNil(t, s.result(e).GetCsr())
}

func TestHeartbeatsComeAsOftenAsTheServerAsks(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.beat = time.Second
	connect(t, s, config(t, s))
	eventually(t, s.see(func() bool { return s.line.beats >= 2 }), "two heartbeats")
}

func TestAFailedQuestionForWorkIsRepeatedSoon(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	connect(t, s, config(t, s))
	failures := 0
	s.do(func() {
		s.beforeList = func() error {
			s.mu.Lock()
			defer s.mu.Unlock()
			failures++
			if failures > 2 {
				return nil
			}
			return unavailable()
		}
	})
	require.NotNil(t, s.result(s.add(csrWork("cert-1"))).GetCsr(), "without another hint, well before the sweep")
}
