// Package docs describes the API: as OpenAPI at /openapi.json, and as a page to read and try it at /docs. The page loads
// nothing from elsewhere.
package docs

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/certctl/certctl/proto/gen/openapi"
)

//go:embed page.html
var page []byte

//go:embed page.js
var script []byte

//go:embed page.css
var style []byte

// policy lets the page load its own script and style and call the API, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Page serves the page.
func Page() http.Handler { return static(page, "text/html; charset=utf-8") }

// Script serves the page's script.
func Script() http.Handler { return static(script, "text/javascript; charset=utf-8") }

// Style serves the page's style.
func Style() http.Handler { return static(style, "text/css; charset=utf-8") }

// OpenAPI serves the description of the API.
func OpenAPI(version string) (http.Handler, error) {
	b, err := description(version)
	if err != nil {
		return nil, err
	}
	return static(b, "application/json"), nil
}

func static(content []byte, contentType string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", contentType)
		h.Set("Content-Security-Policy", policy)
		h.Set("Cache-Control", "no-cache")
		h.Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = w.Write(content) // the client left; nobody is there to be told
	})
}

type object = map[string]any

// description completes what is generated: title and version, how to authenticate, the gateway's own paths, the status
// of creations, the headers of changes; and paths that differ in the name of a variable only become one, as OpenAPI demands.
func description(version string) ([]byte, error) {
	var spec object
	if err := json.Unmarshal(openapi.JSON, &spec); err != nil {
		return nil, fmt.Errorf("read OpenAPI description: %w", err)
	}
	spec["info"] = object{
		"title": "certctl", "version": version,
		"description": "Certificate lifecycle: inventory, issuance, renewal, deployment and audit. Errors have the shape of google.rpc.Status.",
	}
	spec["schemes"] = []string{"https"}
	spec["securityDefinitions"] = object{"bearer": object{
		"type": "apiKey", "in": "header", "name": "Authorization", "description": "Bearer <API key>",
	}}
	spec["security"] = []object{{"bearer": []string{}}}
	paths, _ := spec["paths"].(object)
	merged := mergePaths(paths)
	spec["paths"] = merged
	spec["tags"] = publicTags(spec["tags"], paths)
	completeOperations(merged)
	addOwn(merged)
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("write OpenAPI description: %w", err)
	}
	return b, nil
}

var variable = regexp.MustCompile(`\{([^}]+)\}`)

// mergePaths joins the operations of "/certificates/{id}" and "/certificates/{certificate.id}".
func mergePaths(in object) object {
	out, names := make(object), make(map[string]string)
	for _, dotted := range []bool{false, true} { // the plain names stay
		for path, item := range in {
			if strings.Contains(path, ".id}") != dotted {
				continue
			}
			shape := variable.ReplaceAllString(path, "{}")
			known, ok := names[shape]
			if !ok {
				names[shape], out[path] = path, item
				markCreations(item)
				continue
			}
			operations, _ := item.(object)
			target, _ := out[known].(object)
			for verb, op := range operations {
				renameVariables(op, path, known)
				target[verb] = op
			}
		}
	}
	return out
}

func renameVariables(op any, from, to string) {
	old, current := variable.FindAllStringSubmatch(from, -1), variable.FindAllStringSubmatch(to, -1)
	for _, p := range parameters(op) {
		for i := range old {
			if p["in"] == "path" && p["name"] == old[i][1] {
				p["name"] = current[i][1]
			}
		}
	}
}

func parameters(op any) []object {
	operation, _ := op.(object)
	list, _ := operation["parameters"].([]any)
	var out []object
	for _, p := range list {
		if m, ok := p.(object); ok {
			out = append(out, m)
		}
	}
	return out
}

// markCreations gives 201 to what creates.
func markCreations(item any) {
	operations, _ := item.(object)
	post, ok := operations["post"].(object)
	if !ok {
		return
	}
	id, _ := post["operationId"].(string)
	_, method, _ := strings.Cut(id, "_")
	responses, _ := post["responses"].(object)
	if strings.HasPrefix(method, "Create") && responses["200"] != nil {
		responses["201"] = responses["200"]
		delete(responses, "200")
	}
}

// publicTags drops the services that have no path.
func publicTags(tags any, paths object) []any {
	used := make(map[any]bool)
	for _, item := range paths {
		operations, _ := item.(object)
		for _, op := range operations {
			operation, _ := op.(object)
			list, _ := operation["tags"].([]any)
			for _, tag := range list {
				used[tag] = true
			}
		}
	}
	all, _ := tags.([]any)
	out := []any{}
	for _, tag := range all {
		if t, ok := tag.(object); ok && used[t["name"]] {
			out = append(out, tag)
		}
	}
	return append(out, object{"name": ownTag, "description": "The gateway's own."})
}

const ownTag = "Gateway"

func addOwn(paths object) {
	paths["/api/v1/version"] = own("GetVersion", "The version of the server.", false)
	paths["/api/v1/auth/check"] = own("CheckAuth", "Whose the API key is, and its role.", false)
	paths["/health"] = own("Health", "Whether the gateway lives.", true)
	paths["/ready"] = own("Ready", "Whether the gateway and each service behind are ready: 200, or 503.", true)
	paths["/crl/{issuer_id}.crl"] = file("PublicCrl", "The certificate revocation list of an issuer, DER.", crlType)
	paths["/ca/{issuer_id}.pem"] = file("PublicCa", "The certificate of an issuer with its chain, PEM.", pemType)
}

func own(id, summary string, public bool) object {
	op := object{
		"operationId": ownTag + "_" + id, "summary": summary, "tags": []any{ownTag}, "parameters": []any{},
		"responses": object{"200": object{"description": "A successful response."}},
	}
	if public {
		op["security"] = []object{}
	}
	return object{"get": op}
}

// file describes what anybody may fetch about an issuer.
func file(id, summary, contentType string) object {
	item := own(id, summary, true)
	op, _ := item["get"].(object)
	op["parameters"] = []any{object{"name": "issuer_id", "in": "path", "required": true, "type": "string"}}
	bytesOf(op, contentType)
	return item
}
