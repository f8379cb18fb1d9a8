package identity

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/secretbox"
)

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	require.NoError(t, err)
	return s
}

func secret(s string) secretbox.Secret { return secretbox.NewSecret(s) }

func enrolled(t testing.TB) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "identity")
	s := open(t, dir)
	require.NoError(t, s.Enrol("agent-1", "web-1", secret("old")))
	return s, dir
}

func TestTheInstanceIsTheSameForItsWholeLife(t *testing.T) {
	t.Parallel()
	s, dir := enrolled(t)
	require.GreaterOrEqual(t, len(s.InstanceID()), 16)
	again := open(t, dir)
	require.Equal(t, s.InstanceID(), again.InstanceID())
	require.Equal(t, "agent-1", again.AgentID())
	require.Equal(t, "old", again.Credential().Reveal())
	require.NotEqual(t, s.InstanceID(), open(t, t.TempDir()).InstanceID())
}

// Each step is looked at through the eyes of a new process.
func TestBothCredentialsAreKeptUntilTheServerHasDecided(t *testing.T) {
	t.Parallel()
	s, dir := enrolled(t)
	require.NoError(t, s.Offer(secret("new")))
	s = open(t, dir)
	require.True(t, s.Offered())
	require.Equal(t, "new", s.Credential().Reveal())

	another, err := s.Refuse(secret("new"))
	require.NoError(t, err)
	require.True(t, another)
	s = open(t, dir)
	require.False(t, s.Offered())
	require.Equal(t, "old", s.Credential().Reveal())

	require.NoError(t, s.Offer(secret("newer")))
	require.NoError(t, s.Accept(secret("new")))
	require.True(t, open(t, dir).Offered(), "another one was offered meanwhile")
	require.NoError(t, s.Accept(secret("newer")))
	s = open(t, dir)
	require.False(t, s.Offered())
	require.Equal(t, "newer", s.Credential().Reveal())
}

func TestARefusalOfAReplacedCredentialChangesNothing(t *testing.T) {
	t.Parallel()
	s, _ := enrolled(t)
	require.NoError(t, s.Offer(secret("new")))
	another, err := s.Refuse(secret("old"))
	require.NoError(t, err)
	require.True(t, another, "the new one is to be tried")
	require.True(t, s.Offered())
	require.NoError(t, s.Accept(secret("new")))
	another, err = s.Refuse(secret("old"))
	require.NoError(t, err)
	require.True(t, another)
	another, err = s.Refuse(secret("new"))
	require.NoError(t, err)
	require.False(t, another)
	require.Equal(t, "new", s.Credential().Reveal(), "kept: the server may have been wrong")
}

func TestWhatCannotBeACredentialIsNotStored(t *testing.T) {
	t.Parallel()
	s, _ := enrolled(t)
	for _, bad := range []string{"", "a b", "line\nbreak", "nul\x00", "ümlaut", string(make([]byte, 300))} {
		require.Error(t, s.Offer(secret(bad)))
		require.Error(t, s.Enrol("agent-2", "web-1", secret(bad)))
	}
	require.Equal(t, "old", s.Credential().Reveal())
}

func TestARetiredAgentIsRemembered(t *testing.T) {
	t.Parallel()
	s, dir := enrolled(t)
	require.NoError(t, s.Offer(secret("new")))
	there, err := Exists(dir)
	require.NoError(t, err)
	require.True(t, there)
	require.NoError(t, s.Retire())
	s = open(t, dir)
	require.True(t, s.Retired())
	require.False(t, s.Enrolled())
	there, err = Exists(dir)
	require.NoError(t, err)
	require.False(t, there)
}

func TestADamagedIdentityIsAnErrorAndNoNewInstance(t *testing.T) {
	t.Parallel()
	_, dir := enrolled(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "agent.json"), []byte("{"), 0o600))
	_, err := Open(dir)
	require.Error(t, err)
}
