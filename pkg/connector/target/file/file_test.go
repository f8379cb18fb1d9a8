package file_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/target"
	"github.com/certctl/certctl/pkg/connector/target/file"
	"github.com/certctl/certctl/pkg/connector/targettest"
)

func TestMain(m *testing.M) { targettest.Main(m) }

func TestFilePassesTheSuite(t *testing.T) {
	t.Parallel()
	targettest.Run(t, func(t *testing.T) targettest.Fixture { return fixture(t, "tls.pem", "key.pem") })
}

func TestOneCombinedFilePassesTheSuite(t *testing.T) {
	t.Parallel()
	targettest.Run(t, func(t *testing.T) targettest.Fixture { return fixture(t, "combined.pem", "combined.pem") })
}

// fixture is a program that only counts how often it was told to reload.
func fixture(t *testing.T, fullchain, key string) targettest.Fixture {
	dir := t.TempDir()
	script, count := filepath.Join(dir, "reload.sh"), filepath.Join(dir, "count")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\necho reloading\necho x >> \"$1\"\n"), 0o755))
	f := targettest.Fixture{
		Type: file.Type, Fullchain: filepath.Join(dir, fullchain), Key: filepath.Join(dir, key), Allow: target.AllowList{script},
		Reloads: func() int {
			b, _ := os.ReadFile(count)
			return bytes.Count(b, []byte("x"))
		},
	}
	fields := map[string]any{"command": []string{script, count}}
	if f.Fullchain == f.Key {
		fields["combined_path"] = f.Key
		f.Steps = targettest.Steps(1)
	} else {
		fields["fullchain_path"], fields["key_path"] = f.Fullchain, f.Key
		f.Steps = targettest.Steps(2)
	}
	raw, err := json.Marshal(fields)
	require.NoError(t, err)
	f.Config = raw
	f.Put = func(t testing.TB, m target.Material) {
		full := append(bytes.Clone(m.CertificatePEM), m.ChainPEM...)
		if f.Fullchain == f.Key {
			full = append(full, m.Key.Reveal()...)
		} else {
			require.NoError(t, os.WriteFile(f.Key, []byte(m.Key.Reveal()), 0o600))
		}
		require.NoError(t, os.WriteFile(f.Fullchain, full, 0o600))
	}
	return f
}
