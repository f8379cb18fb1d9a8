package datadir

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

const (
	// asInit has the test's program prepare a directory, so that it can do so with fewer rights.
	asInit = "CERTCTL_TEST_PREPARE"
	// base is the name of that directory.
	base = "agent"
)

// agentUser is a user who is not the one of the tests.
var agentUser = Owner{65532, 65533}

func TestMain(m *testing.M) {
	if os.Getenv(asInit) != "" {
		if _, err := Prepare(base, agentUser); err != nil {
			_, _ = os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// root skips what only root can try. CI runs as root.
func root(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root gives files to others")
	}
}

func ownerOf(t *testing.T, path string) Owner {
	t.Helper()
	info, err := os.Lstat(path)
	require.NoError(t, err)
	s, err := status(info)
	require.NoError(t, err)
	return Owner{int(s.Uid), int(s.Gid)}
}

func modeOf(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	require.NoError(t, err)
	return info.Mode().Perm()
}

// directory makes what an agent leaves.
func directory(t *testing.T) (dir, key string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), base)
	key = filepath.Join(dir, "keys", "cert-a", "1.key")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "identity"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Dir(key), 0o755))
	require.NoError(t, os.WriteFile(key, []byte("a key"), 0o600))
	return dir, key
}

func TestAMissingDirectoryIsMade(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "var", "lib", "agent")
	r, err := Prepare(dir+"/", Owner{os.Geteuid(), -1})
	require.NoError(t, err)
	require.Equal(t, Report{Made: true}, r)
	require.Equal(t, os.FileMode(0o700), modeOf(t, dir))
	r, err = Prepare(dir, Owner{os.Geteuid(), -1})
	require.NoError(t, err)
	require.Equal(t, Report{}, r, "a repeat has nothing to do")
}

func TestAllThatIsInItBelongsToTheOwner(t *testing.T) {
	t.Parallel()
	root(t)
	dir, key := directory(t)
	r, err := Prepare(dir, agentUser)
	require.NoError(t, err)
	require.Equal(t, Report{Closed: true, Given: 5}, r)
	for path := key; len(path) >= len(dir); path = filepath.Dir(path) {
		require.Equal(t, agentUser, ownerOf(t, path), path)
	}
	require.Equal(t, os.FileMode(0o600), modeOf(t, key))
	require.Equal(t, os.FileMode(0o700), modeOf(t, filepath.Dir(key)))
	require.Equal(t, os.FileMode(0o700), modeOf(t, dir))

	require.NoError(t, os.Lchown(key, 0, 0))
	r, err = Prepare(dir, agentUser)
	require.NoError(t, err)
	require.Equal(t, Report{Given: 1}, r, "root has left a file meanwhile")
	r, err = Prepare(dir, agentUser)
	require.NoError(t, err)
	require.Equal(t, Report{}, r)
}

func TestAGroupThatIsNotNamedStays(t *testing.T) {
	t.Parallel()
	root(t)
	dir, key := directory(t)
	_, err := Prepare(dir, Owner{agentUser.UID, -1})
	require.NoError(t, err)
	require.Equal(t, Owner{agentUser.UID, os.Getegid()}, ownerOf(t, key))
}

func TestNothingOutsideIsGivenAway(t *testing.T) {
	t.Parallel()
	root(t)
	dir, _ := directory(t)
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	require.NoError(t, os.WriteFile(secret, nil, 0o600))
	require.NoError(t, os.Symlink(secret, filepath.Join(dir, "keys", "a-file")))
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "keys", "a-directory")))
	linked := filepath.Join(outside, "linked")
	require.NoError(t, os.WriteFile(linked, nil, 0o600))
	require.NoError(t, os.Link(linked, filepath.Join(dir, "keys", "second-name")))

	r, err := Prepare(dir, agentUser)
	require.ErrorContains(t, err, "keys/second-name has a second name")
	require.Positive(t, r.Given)
	for _, path := range []string{outside, secret, linked} {
		require.Equal(t, Owner{0, 0}, ownerOf(t, path), path)
	}
	require.Equal(t, agentUser, ownerOf(t, filepath.Join(dir, "keys", "a-file")), "the link itself")
	require.Equal(t, agentUser, ownerOf(t, filepath.Join(dir, "keys")), "the rest was given")
	require.Equal(t, agentUser, ownerOf(t, dir))
}

func TestADirectoryOfSomethingElseStaysAsItIs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "passwd"), nil, 0o644))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "lost+found"), 0o700))
	before, mode := ownerOf(t, dir), modeOf(t, dir)
	_, err := Prepare(dir, agentUser)
	require.ErrorContains(t, err, "is no agent's directory")
	require.Equal(t, before, ownerOf(t, dir))
	require.Equal(t, mode, modeOf(t, dir))
	require.Equal(t, before, ownerOf(t, filepath.Join(dir, "passwd")))

	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, link))
	for _, path := range []string{link, link + "/", filepath.Join(dir, "passwd")} {
		_, err = Prepare(path, agentUser)
		require.ErrorContains(t, err, "no directory", path)
	}
}

// TestWhatHasTheNameOfAnAgentsFilesIsNoProof has what is in /var and may be elsewhere.
func TestWhatHasTheNameOfAnAgentsFilesIsNoProof(t *testing.T) {
	t.Parallel()
	target := t.TempDir()
	for what, make := range map[string]func(dir string) error{
		"a link lock":        func(dir string) error { return os.Symlink(target, filepath.Join(dir, "lock")) },
		"a directory lock":   func(dir string) error { return os.Mkdir(filepath.Join(dir, "lock"), 0o755) },
		"a link identity":    func(dir string) error { return os.Symlink(target, filepath.Join(dir, "identity")) },
		"a file identity":    func(dir string) error { return os.WriteFile(filepath.Join(dir, "identity"), nil, 0o644) },
		"a file lost+found2": func(dir string) error { return os.WriteFile(filepath.Join(dir, "lost+found2"), nil, 0o644) },
	} {
		dir := t.TempDir()
		require.NoError(t, make(dir))
		_, err := Prepare(dir, Owner{os.Geteuid(), -1})
		require.ErrorContains(t, err, "is no agent's directory", what)
	}
	for what, make := range map[string]func(dir string) error{
		"a volume of its own": func(dir string) error { return os.Mkdir(filepath.Join(dir, "lost+found"), 0o700) },
		"a file lock":         func(dir string) error { return os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600) },
	} {
		dir := t.TempDir()
		require.NoError(t, make(dir))
		_, err := Prepare(dir, Owner{os.Geteuid(), -1})
		require.NoError(t, err, what)
	}
}

// TestCHOWNIsEnough runs as an init container that has dropped all capabilities but one.
func TestCHOWNIsEnough(t *testing.T) {
	t.Parallel()
	root(t)
	dir, key := directory(t)
	for _, when := range []string{"first", "again, in directories that others have closed"} {
		out, err := withCHOWN(t, dir)
		require.NoError(t, err, "%s: %s", when, out)
		require.Equal(t, agentUser, ownerOf(t, key), when)
		require.Equal(t, agentUser, ownerOf(t, dir), when)
	}
}

func withCHOWN(t *testing.T, dir string) (string, error) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	child := exec.CommandContext(t.Context(), self)
	child.Dir, child.Env = filepath.Dir(dir), append(os.Environ(), asInit+"=yes")
	var out []byte
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with what it has lost
		const prctlBoundingSetDrop, chown, last = 24, 0, 63
		for c := uintptr(chown + 1); c <= last; c++ {
			_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prctlBoundingSetDrop, c, 0) // those that this kernel does not know are not there
		}
		var err error
		out, err = child.CombinedOutput()
		done <- err
	}()
	err = <-done
	return string(out), err
}
