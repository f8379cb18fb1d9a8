//go:build cluster

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// home is where the documents keep values and secrets.
var home string

func TestMain(m *testing.M) {
	var err error
	if home, err = os.MkdirTemp("", "certctl-e2e"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(home)
	os.Exit(code)
}

// looks are the blocks of commands that only look, by name: `<!-- run: look-NAME -->`.
func looks(t *testing.T) (names []string) {
	t.Helper()
	for _, pattern := range []string{filepath.Join(chart, "README.md"), "../../../docs/operator/*.md", "../../../docs/operator/runbooks/*.md"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range files {
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			for _, m := range regexp.MustCompile(`<!-- run: (look-[a-z-]+) -->`).FindAllStringSubmatch(string(b), -1) {
				names = append(names, m[1])
			}
		}
	}
	return names
}

// documented finds a block of commands that the documents mark with "<!-- run: NAME -->".
func documented(t *testing.T, name string) string {
	t.Helper()
	for _, pattern := range []string{filepath.Join(chart, "README.md"), "../../../docs/operator/*.md", "../../../docs/operator/runbooks/*.md"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range files {
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			if _, rest, ok := strings.Cut(string(b), "<!-- run: "+name+" -->"); ok {
				_, rest, ok = strings.Cut(rest, "```sh\n")
				require.True(t, ok, "%s: no ```sh after the mark %s", file, name)
				block, _, ok := strings.Cut(rest, "\n```")
				require.True(t, ok)
				return "set -eu\nexport HOME=" + home + "\n" + block
			}
		}
	}
	require.Fail(t, "no document has the block "+name)
	return ""
}
