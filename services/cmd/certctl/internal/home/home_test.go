package home_test

import (
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/services/cmd/certctl/internal/home"
)

func TestSecretsAreMadeOnceAndOnlyForUs(t *testing.T) {
	t.Parallel()
	dir, err := home.Open(t.TempDir())
	require.NoError(t, err)
	key, err := dir.APIKey()
	require.NoError(t, err)
	again, err := dir.APIKey()
	require.NoError(t, err)
	require.True(t, key.Equal(again))
	require.Len(t, key.Reveal(), 43, "32 bytes, base64url")
	info, err := os.Stat(dir.Path(home.APIKeyFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func TestProcessesThatStartAtOnceHaveOneSecret(t *testing.T) {
	t.Parallel()
	dir, err := home.Open(t.TempDir())
	require.NoError(t, err)
	var all [32]secretbox.Secret
	var g errgroup.Group
	for i := range all {
		g.Go(func() error {
			var err error
			all[i], err = dir.InternalSecret()
			return err
		})
	}
	require.NoError(t, g.Wait())
	for _, s := range all {
		require.True(t, s.Equal(all[0]))
	}
	entries, err := os.ReadDir(string(dir))
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing temporary is left")
}

func TestSecretsThatADatabaseStandsOnAreNotMadeAnew(t *testing.T) {
	t.Parallel()
	dir, err := home.Open(t.TempDir())
	require.NoError(t, err)
	secrets := map[string]func() error{
		"internal-secret": func() error { _, err := dir.InternalSecret(); return err },
		"encryption-key":  func() error { _, err := dir.Box(secretbox.Secret{}); return err },
	}
	for _, get := range secrets {
		require.NoError(t, get())
	}
	require.NoError(t, os.MkdirAll(dir.Path("postgres/data"), 0o700))
	for name, get := range secrets {
		require.NoError(t, get())
		require.NoError(t, os.Remove(dir.Path(name)))
		require.ErrorContains(t, get(), dir.Path(name))
		require.NoFileExists(t, dir.Path(name))
	}
	given := secretbox.NewSecret("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
	_, err = dir.Box(given)
	require.NoError(t, err, "a key from the settings is used")
	_, err = dir.APIKey()
	require.NoError(t, err, "an API key may always be a new one")
}

func TestADirectoryThatEverybodyMayWriteToIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o777))
	_, err := home.Open(dir)
	require.ErrorContains(t, err, "everybody may write")
}

func TestAnEmptySecretFileIsNamed(t *testing.T) {
	t.Parallel()
	dir, err := home.Open(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, dir.Write(home.APIKeyFile, nil, 0o600))
	_, err = dir.APIKey()
	require.ErrorContains(t, err, dir.Path(home.APIKeyFile))
}

func TestWhatWasSealedIsOpenedAfterARestart(t *testing.T) {
	t.Parallel()
	dir, err := home.Open(t.TempDir())
	require.NoError(t, err)
	place := secretbox.Place{Table: "t", Row: "r", Column: "c"}
	box, err := dir.Box(secretbox.Secret{})
	require.NoError(t, err)
	sealed := box.Seal([]byte("plain"), place)
	box, err = dir.Box(secretbox.Secret{})
	require.NoError(t, err)
	plain, err := box.Open(sealed, place)
	require.NoError(t, err)
	require.Equal(t, "plain", string(plain))
}

func TestADirectoryThatIsInUseNamesWhoHasIt(t *testing.T) {
	t.Parallel()
	dir, err := home.Open(t.TempDir())
	require.NoError(t, err)
	unlock, err := dir.Lock()
	require.NoError(t, err)
	_, err = dir.Lock()
	require.ErrorContains(t, err, strconv.Itoa(os.Getpid()))
	unlock()
	unlock, err = dir.Lock()
	require.NoError(t, err)
	unlock()
}
