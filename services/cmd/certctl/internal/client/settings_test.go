package client

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheKeyOfTheDataDirectoryIsNotSentToAnotherHost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, keyFile), []byte("key-of-the-tests\n"), 0o600))
	for url, key := range map[string]string{"https://certctl.example.com": "", "https://127.0.0.1:8443": "key-of-the-tests"} {
		ac, err := Settings{URL: url, DataDir: dir}.resolve("")
		require.NoError(t, err, "a server that asks for no key can be anywhere")
		require.Equal(t, key, ac.key.Reveal(), url)
	}
}
