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

// operation gives what is said of one verb of a path, and its parameters by place and name.
func operation(t *testing.T, verb, path string) (op object, params []string) {
	t.Helper()
	item, _ := spec(t)["paths"].(object)[path].(object)
	op, _ = item[verb].(object)
	require.NotNil(t, op, verb+" "+path)
	for _, p := range parameters(op) {
		params = append(params, p["in"].(string)+" "+p["name"].(string))
	}
	return op, params
}

func TestTheDescriptionHasWhatOnlyRESTHas(t *testing.T) {
	t.Parallel()
	_, params := operation(t, "get", "/api/v1/certificates")
	require.Contains(t, params, "query label.<key>", "as the gateway calls it")
	_, params = operation(t, "patch", "/api/v1/certificates/{id}")
	require.Subset(t, params, []string{"header Idempotency-Key", "header If-Match", "query update_mask"})
	_, params = operation(t, "post", "/api/v1/certificates/{certificate_id}/renew")
	require.Contains(t, params, "header Idempotency-Key")
	require.NotContains(t, params, "header If-Match")
	_, params = operation(t, "get", "/api/v1/audit")
	require.NotContains(t, params, "header Idempotency-Key", "there request_id is a filter")
	op, params := operation(t, "get", "/api/v1/certificates/{certificate_id}/versions/{version}")
	require.Contains(t, params, "query format")
	require.Equal(t, []any{"application/json", "application/x-pem-file"}, op["produces"])
	op, params = operation(t, "get", "/crl/{issuer_id}.crl")
	require.Equal(t, []string{"path issuer_id"}, params)
	require.Equal(t, []any{"application/pkix-crl", "application/json"}, op["produces"])
	require.Equal(t, object{"type": "string", "format": "binary"}, op["responses"].(object)["200"].(object)["schema"])
}

func TestTheDescriptionIsSoundOpenAPI(t *testing.T) {
	t.Parallel()
	s := spec(t)
	require.Equal(t, "2.0", s["swagger"])
	operations := make(map[any]string)
	for path, item := range s["paths"].(object) {
		for verb, op := range item.(object) {
			id := op.(object)["operationId"]
			require.NotContains(t, operations, id, "%s %s and %s", verb, path, operations[id])
			operations[id] = verb + " " + path
			seen := make(map[string]bool)
			for _, p := range parameters(op) {
				key := p["in"].(string) + " " + p["name"].(string)
				require.False(t, seen[key], "%s %s has %s twice", verb, path, key)
				seen[key] = true
			}
		}
	}
	resolve(t, s, s)
}

// resolve checks that each $ref in a part of the description leads to a definition.
func resolve(t *testing.T, s object, part any) {
	t.Helper()
	switch part := part.(type) {
	case object:
		if ref, ok := part["$ref"].(string); ok {
			name, found := strings.CutPrefix(ref, "#/definitions/")
			require.True(t, found, ref)
			require.Contains(t, s["definitions"], name)
		}
		for _, v := range part {
			resolve(t, s, v)
		}
	case []any:
		for _, v := range part {
			resolve(t, s, v)
		}
	}
}
