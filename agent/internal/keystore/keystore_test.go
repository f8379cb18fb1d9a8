package keystore

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func sum(t testing.TB, s *Store, assignment string) string {
	t.Helper()
	key, err := s.Make("cert-1", assignment, ECDSAP256)
	require.NoError(t, err)
	sum, err := PublicKeySHA256(key.Public())
	require.NoError(t, err)
	return sum
}

func TestAKeyIsMadeOnceForAnAssignmentAndFoundByItsPublicHalf(t *testing.T) {
	t.Parallel()
	s, err := Open(filepath.Join(t.TempDir(), "keys"))
	require.NoError(t, err)
	first, other := sum(t, s, "a"), sum(t, s, "b")
	require.NotEqual(t, first, other)
	require.Equal(t, first, sum(t, s, "a"))
	found, err := s.Find("cert-1", first)
	require.NoError(t, err)
	stored, err := os.ReadFile(filepath.Join(s.dir, "cert-1", "a.key"))
	require.NoError(t, err)
	require.Equal(t, string(stored), found.Reveal())
	_, err = s.Find("cert-2", first)
	require.ErrorIs(t, err, ErrNotFound, "a key belongs to one certificate")
}

func TestADamagedKeyIsNotReplacedSilently(t *testing.T) {
	t.Parallel()
	s, err := Open(t.TempDir())
	require.NoError(t, err)
	sum(t, s, "a")
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "cert-1", "a.key"), []byte("garbage"), 0o600))
	_, err = s.Make("cert-1", "a", ECDSAP256)
	require.ErrorContains(t, err, "no PEM")
	good := sum(t, s, "b")
	_, err = s.Find("cert-1", good)
	require.NoError(t, err, "one damaged key does not hide the others")
}

func FuzzNoIdLeadsOutOfTheStore(f *testing.F) {
	for _, id := range []string{"", ".", "..", "../x", "/etc", "a/b", "a/../../b", "a.b", "A", "-a", "a\x00", "ä", "a\n", "cert-1", "0198c7b2-7c1e-7d3a-9f00-000000000001"} {
		f.Add(id, "assignment")
		f.Add("certificate", id)
	}
	f.Fuzz(func(t *testing.T, certificate, assignment string) {
		home := t.TempDir()
		s, err := Open(filepath.Join(home, "keys"))
		require.NoError(t, err)
		_, err = s.Make(certificate, assignment, Ed25519)
		if err != nil {
			require.ErrorIs(t, err, ErrRefused)
		}
		var files []string
		require.NoError(t, filepath.WalkDir(home, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				files = append(files, path)
			}
			return err
		}))
		if err == nil {
			require.Equal(t, []string{filepath.Join(s.dir, certificate, assignment+".key")}, files)
		} else {
			require.Empty(t, files)
		}
	})
}

func TestWhatACrashLeftIsSweptAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(dir)
	require.NoError(t, err)
	sum(t, s, "a")
	left := filepath.Join(dir, "cert-1", ".new-123")
	require.NoError(t, os.WriteFile(left, []byte("half a key"), 0o600))
	_, err = Open(dir)
	require.NoError(t, err)
	require.NoFileExists(t, left)
	require.FileExists(t, filepath.Join(dir, "cert-1", "a.key"))
}

func TestOldKeysAreRemovedButNotTheOneInServiceNorTheOneBefore(t *testing.T) {
	t.Parallel()
	s, err := Open(t.TempDir())
	require.NoError(t, err)
	names := []string{"a", "b", "c", "d"} // oldest first
	sums := map[string]string{}
	for i, n := range names {
		sums[n] = sum(t, s, n)
		made := time.Now().Add(time.Duration(i-10) * time.Hour)
		require.NoError(t, os.Chtimes(filepath.Join(s.dir, "cert-1", n+".key"), made, made))
	}
	left := func() (found []string) {
		for _, n := range names {
			if _, err := s.Find("cert-1", sums[n]); err == nil {
				found = append(found, n)
			}
		}
		return found
	}
	require.NoError(t, s.Prune("cert-1", "unknown", 0))
	require.Equal(t, names, left())
	require.NoError(t, s.Prune("cert-1", sums["c"], 30*24*time.Hour))
	require.Equal(t, names, left(), "none is old enough")
	require.NoError(t, s.Prune("cert-1", sums["c"], time.Hour))
	require.Equal(t, []string{"b", "c", "d"}, left(), "a newer one waits for its certificate")
}
