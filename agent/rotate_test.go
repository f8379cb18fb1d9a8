package agent_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/agent"
	"github.com/certctl/certctl/pkg/errs"
)

func credentialFiles(cfg agent.Config) (current, next string) {
	dir := filepath.Join(cfg.DataDir, "identity")
	return filepath.Join(dir, "credential"), filepath.Join(dir, "credential.next")
}

// inUse waits until the n-th credential, from 0, is the only one on both sides.
func inUse(t *testing.T, s *server, cfg agent.Config, n int) {
	t.Helper()
	current, next := credentialFiles(cfg)
	eventually(t, s.see(func() bool {
		return len(s.given) > n && s.credentials[s.given[n]] == active && s.line != nil && s.line.credential == s.given[n]
	}), "the credential is used")
	eventually(t, func() bool { return read(t, current) == s.given[n] }, "the credential is stored")
	require.NoFileExists(t, next)
	require.Equal(t, "0600", fileMode(t, current))
}

func TestACredentialIsRotatedOnAHintWithoutEnrollingAgain(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	connect(t, s, cfg)
	inUse(t, s, cfg, 0)
	s.hintRotation()
	inUse(t, s, cfg, 1)
	require.Equal(t, 1, s.called("Enroll"), "the end of the old credential's stream is no reason to enrol")
	s.hintRotation()
	inUse(t, s, cfg, 2)
	require.Equal(t, revoked, s.credentials[s.given[0]])
}

func TestACredentialIsRotatedWhenItIsTime(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	cfg.Rotation = 100_000_000 // 100 ms
	connect(t, s, cfg)
	eventually(t, func() bool { return s.called("RotateCredential") >= 2 }, "two rotations")
}

// A process that dies at any point of a rotation leaves an agent that the server still knows.
func TestACrashDuringARotationLosesNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		set func(s *server, die func() error)
		use int // which credential is used after the restart
	}{
		"the answer is lost":       {func(s *server, die func() error) { s.afterRotate = die }, 0},
		"before the first use":     {func(s *server, die func() error) { s.beforeFirstUse = die }, 1},
		"before the use is stored": {func(s *server, die func() error) { s.afterFirstUse = die }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			cfg := config(t, s)
			first := startChild(t, cfg)
			eventually(t, s.connected(), "the agent connects")
			c.set(s, func() error {
				first.kill()
				return unavailable()
			})
			s.hintRotation()
			<-first.dead
			s.do(func() { s.afterRotate, s.beforeFirstUse, s.afterFirstUse = nil, nil, nil })

			startChild(t, cfg)
			inUse(t, s, cfg, c.use)
			s.hintRotation()
			inUse(t, s, cfg, 2)
			require.Equal(t, 1, s.called("Enroll"))
		})
	}
}

func TestARefusedNewCredentialIsDroppedForTheOldOne(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	connect(t, s, cfg)
	inUse(t, s, cfg, 0)
	s.do(func() {
		s.beforeFirstUse = func() error {
			s.do(func() { s.credentials[s.given[1]] = revoked })
			return errs.New(errs.Unauthenticated, "CREDENTIAL_NOT_VALID", "the agent's credential is not valid")
		}
	})
	s.hintRotation()
	eventually(t, s.see(func() bool { return len(s.given) == 2 && s.credentials[s.given[1]] == revoked }), "the new credential is refused")
	_, next := credentialFiles(cfg)
	e := s.add(csrWork("cert-1"))
	require.NotNil(t, s.result(e).GetCsr(), "the agent goes on with the old credential")
	inUse(t, s, cfg, 0)
	require.NoFileExists(t, next)
	require.Equal(t, 1, s.called("Enroll"))
}

// While nobody knows whether the server has taken the new credential, another rotation could leave the agent with two that
// are both dead.
func TestNoCredentialIsAskedForWhileOneIsUndecided(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(t, s)
	connect(t, s, cfg)
	inUse(t, s, cfg, 0)
	tries := 0
	s.do(func() {
		s.beforeFirstUse = func() error {
			s.mu.Lock()
			defer s.mu.Unlock()
			tries++
			if tries < 3 {
				return unavailable()
			}
			return nil
		}
	})
	s.hintRotation()
	eventually(t, func() bool { return s.called("RotateCredential") == 1 }, "the rotation")
	decided := false
	s.do(func() {
		s.afterRotate = func() error {
			s.do(func() { decided = tries >= 3 })
			return nil
		}
	})
	s.hintRotation()
	s.hintRotation()
	inUse(t, s, cfg, 2)
	require.True(t, decided, "the second rotation came after the first one was decided")
}
