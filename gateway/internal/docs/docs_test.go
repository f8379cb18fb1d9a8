package docs

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/gateway/internal/route"
)

func spec(t *testing.T) object {
	t.Helper()
	b, err := description("1.2.3")
	require.NoError(t, err)
	var s object
	require.NoError(t, json.Unmarshal(b, &s))
	return s
}

func TestTheDescriptionHasEveryRouteOnce(t *testing.T) {
	t.Parallel()
	s := spec(t)
	require.Equal(t, "certctl", s["info"].(object)["title"])
	paths := s["paths"].(object)
	shapes := make(map[string]object)
	for path, item := range paths {
		shape := variable.ReplaceAllString(path, "{}")
		require.NotContains(t, shapes, shape, "OpenAPI: two paths that differ in names only are the same")
		shapes[shape] = item.(object)
	}
	for _, r := range route.REST() {
		item := shapes[variable.ReplaceAllString(r.Pattern, "{}")]
		require.Contains(t, item, strings.ToLower(r.Verb), r.Pattern)
	}
}

func TestPathsAndTheirParametersAgree(t *testing.T) {
	t.Parallel()
	s := spec(t)
	tags := make(map[any]bool)
	for _, tag := range s["tags"].([]any) {
		tags[tag.(object)["name"]] = true
	}
	require.NotContains(t, tags, "RevisionService")
	require.NotContains(t, tags, "IssuanceInternalService")
	for path, item := range s["paths"].(object) {
		var want []string
		for _, m := range regexp.MustCompile(`\{([^}]+)\}`).FindAllStringSubmatch(path, -1) {
			want = append(want, m[1])
		}
		for verb, op := range item.(object) {
			var got []string
			for _, p := range parameters(op) {
				if p["in"] == "path" {
					got = append(got, p["name"].(string))
				}
			}
			require.ElementsMatch(t, want, got, verb+" "+path)
			require.True(t, tags[op.(object)["tags"].([]any)[0]], path)
		}
	}
	require.Contains(t, s["paths"].(object)["/api/v1/certificates"].(object)["post"].(object)["responses"], "201")
}

func TestThePageLoadsNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	for _, content := range [][]byte{page, script, style} {
		require.NotRegexp(t, `(https?:)?//[a-z]`, string(content))
	}
	require.NotContains(t, string(page), "<script>", "the policy forbids scripts in the page")
	require.NotContains(t, string(page), "style=")
	require.NotContains(t, string(script), "innerHTML")
}
