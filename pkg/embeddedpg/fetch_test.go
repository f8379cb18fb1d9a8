package embeddedpg

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/certctl/certctl/pkg/internal/pgserver"
)

func nothingInstalled(context.Context, string) ([]pgserver.Binaries, error) { return nil, nil }

// repository serves a stand-in for the archive of programs (testdata/postgres.txz holds three shell scripts).
func repository(t *testing.T, downloads *atomic.Int64, checksum string) string {
	t.Helper()
	content, err := os.ReadFile("testdata/postgres.txz")
	require.NoError(t, err)
	var jar bytes.Buffer
	archive := zip.NewWriter(&jar)
	entry, err := archive.Create("postgres-linux-x86_64.txz")
	require.NoError(t, err)
	_, err = entry.Write(content)
	require.NoError(t, err)
	require.NoError(t, archive.Close())
	if checksum == "" {
		checksum = fmt.Sprintf("%x", sha256.Sum256(jar.Bytes()))
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, ".jar.sha256"):
			_, _ = w.Write([]byte(checksum))
		case strings.Contains(r.URL.Path, string(fetchedVersion)) && strings.HasSuffix(r.URL.Path, ".jar"):
			downloads.Add(1)
			_, _ = w.Write(jar.Bytes())
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestWithoutPostgresAPinnedVersionIsFetchedOnceAndSaysSo(t *testing.T) {
	t.Parallel()
	var downloads atomic.Int64
	core, logs := observer.New(zap.InfoLevel)
	place := site{dir: t.TempDir()}
	cfg := Config{Log: zap.New(core), find: nothingInstalled, repository: repository(t, &downloads, "")}
	for range 2 {
		binaries, err := choose(t.Context(), cfg, place)
		require.NoError(t, err)
		require.Equal(t, pgserver.Binaries{Dir: filepath.Join(place.dir, "postgres-"+string(fetchedVersion), "bin"), Major: fetchedMajor}, binaries)
	}
	require.EqualValues(t, 1, downloads.Load())
	require.Equal(t, 2, logs.Len(), "one line before and one after the download")
	require.Contains(t, logs.All()[0].Message, "no Postgres is installed")
	left, err := os.ReadDir(place.dir)
	require.NoError(t, err)
	require.Len(t, left, 1, "nothing but the programs stays")
}

func TestAFetchThatFailsSaysWhatElseToDo(t *testing.T) {
	t.Parallel()
	var downloads atomic.Int64
	none := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(none.Close)
	for name, address := range map[string]string{
		"not there":      none.URL,
		"wrong checksum": repository(t, &downloads, strings.Repeat("0", 64)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			place := site{dir: t.TempDir()}
			_, err := choose(t.Context(), Config{Log: zap.NewNop(), find: nothingInstalled, repository: address}, place)
			require.ErrorIs(t, err, pgserver.ErrNoBinaries)
			require.ErrorContains(t, err, "CERTCTL_POSTGRES_BIN")
			left, err := os.ReadDir(place.dir)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}
