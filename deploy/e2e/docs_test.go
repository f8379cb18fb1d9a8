package e2e_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	mdFence     = regexp.MustCompile("(?ms)^```.*?^```[ \t]*$")
	mdLink      = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)
	mdHeading   = regexp.MustCompile(`(?m)^#{1,6}[ \t]+(.+?)[ \t]*$`)
	mdNotSlug   = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	settingName = regexp.MustCompile(`\bCERTCTL_[A-Z][A-Z0-9_]*[A-Z0-9]\b`)
	flagName    = regexp.MustCompile(`(?m)^\s+(?:-\w, )?--([a-z][a-z-]*)`)
)

// documents are the Markdown files for people: the README, docs and deploy.
func documents(t *testing.T) []string {
	t.Helper()
	files := []string{filepath.Join(root, "README.md")}
	for _, dir := range []string{"docs", "deploy"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.Type().IsRegular() && strings.HasSuffix(path, ".md") {
				files = append(files, path)
			}
			return err
		})
		require.NoError(t, err)
	}
	return files
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

// prose is the text without blocks of code, in which nothing is a link or a heading.
func prose(text string) string { return mdFence.ReplaceAllString(text, "") }

// anchors are the fragments that a Markdown file has, as GitHub makes them of its headings.
func anchors(text string) []string {
	var all []string
	for _, m := range mdHeading.FindAllStringSubmatch(prose(text), -1) {
		slug := mdNotSlug.ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, strings.ReplaceAll(slug, " ", "-"))
	}
	return all
}

func TestLinksBetweenDocumentsLeadSomewhere(t *testing.T) {
	t.Parallel()
	followed := 0
	for _, file := range documents(t) {
		text := read(t, file)
		for _, m := range mdLink.FindAllStringSubmatch(prose(text), -1) {
			path, fragment, _ := strings.Cut(m[1], "#")
			if strings.Contains(path, ":") { // another site
				continue
			}
			followed++
			target, content := file, text
			if path != "" {
				target = filepath.Join(filepath.Dir(file), path)
				if _, err := os.Stat(target); err != nil {
					t.Errorf("%s: the link %s leads nowhere: %v", file, m[1], err)
					continue
				}
			}
			if fragment == "" {
				continue
			}
			if target != file {
				content = read(t, target)
			}
			if !slices.Contains(anchors(content), fragment) {
				t.Errorf("%s: %s has no heading for #%s", file, target, fragment)
			}
		}
	}
	require.Greater(t, followed, 30, "the test does not see the links")
}

func TestEveryVariableInTheDocumentsIsASetting(t *testing.T) {
	t.Parallel()
	known := make(map[string]bool)
	for _, v := range settingName.FindAllString(read(t, filepath.Join(root, "deploy", "ENVIRONMENTS.md")), -1) {
		known[v] = true
	}
	require.Greater(t, len(known), 30, "the test does not see the settings")
	help, err := exec.CommandContext(t.Context(), binaries.agent, "run", "--help").Output()
	require.NoError(t, err)
	flags := flagName.FindAllStringSubmatch(string(help), -1)
	require.NotEmpty(t, flags, "the test does not see the agent's flags")
	for _, f := range flags {
		known["CERTCTL_"+strings.ToUpper(strings.ReplaceAll(f[1], "-", "_"))] = true
	}
	for _, file := range documents(t) {
		for _, v := range settingName.FindAllString(read(t, file), -1) {
			if !known[v] {
				t.Errorf("%s names %s, which is no setting of the server, the client or the agent", file, v)
			}
		}
	}
}
