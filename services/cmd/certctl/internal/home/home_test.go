package home_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

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
