package docs

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/certctl/certctl/gateway/internal/route"
)

// mapSuffix ends the name of a parameter that is given once per key, such as "label.<key>".
const mapSuffix = ".<key>"

// completeOperations adds what REST has and the generated description does not: the headers of changes, update_mask,
// ?format=pem, the names of filters by key, and the types of answers that are not JSON.
func completeOperations(paths object) {
	shapes := make(map[string]object, len(paths))
	for path, item := range paths {
		operations, _ := item.(object)
		shapes[variable.ReplaceAllString(path, "{}")] = operations
	}
	for _, r := range route.REST() {
		op, _ := shapes[variable.ReplaceAllString(r.Pattern, "{}")][strings.ToLower(r.Verb)].(object)
		if op == nil {
			continue
		}
		renameMaps(op)
		addParameters(op, r.RPC.Input.Fields(), r.RPC.Body)
		completeDownload(op, r.RPC.Name)
	}
}

// renameMaps calls a parameter as the gateway does: "label.<key>", not "label[string]".
func renameMaps(op object) {
	for _, p := range parameters(op) {
		if name, ok := p["name"].(string); ok && strings.HasSuffix(name, "[string]") {
			p["name"] = strings.TrimSuffix(name, "[string]") + mapSuffix
		}
	}
}

func addParameters(op object, fields protoreflect.FieldDescriptors, body string) {
	if fields.ByName("request_id") != nil && !isRead(op) {
		add(op, "header", "Idempotency-Key", "The same key with the same request answers the same for 24 hours; at most 128 bytes.")
	}
	if fields.ByName("if_revision") != nil {
		add(op, "header", "If-Match", `The revision that the change is for, in quotes: "3".`)
	}
	if fields.ByName("update_mask") != nil && body != "*" {
		add(op, "query", "update_mask", "Fields to change, comma-separated. Without it: those that the body has.")
	}
}

// isRead tells a list that can be filtered by request_id from a change that is named by it.
func isRead(op object) bool {
	id, _ := op["operationId"].(string)
	_, method, _ := strings.Cut(id, "_")
	return strings.HasPrefix(method, "List") || strings.HasPrefix(method, "Get")
}

func add(op object, in, name, description string) object {
	p := object{"name": name, "in": in, "type": "string", "required": false, "description": description}
	list, _ := op["parameters"].([]any)
	op["parameters"] = append(list, p)
	return p
}

// completeDownload describes answers that are bytes.
func completeDownload(op object, method string) {
	switch method {
	case "GetCertificateVersion":
		add(op, "query", "format", "pem: leaf and chain, as application/x-pem-file.")["enum"] = []string{"json", "pem"}
		op["produces"] = []string{"application/json", pemType}
	case "DownloadCertificateVersion", "GetCaCertificate":
		bytesOf(op, pemType)
	case "GetCrl":
		bytesOf(op, crlType)
	}
}

const (
	pemType = "application/x-pem-file"
	crlType = "application/pkix-crl"
)

func bytesOf(op object, contentType string) {
	op["produces"] = []string{contentType, "application/json"}
	responses, _ := op["responses"].(object)
	responses["200"] = object{"description": "A successful response.", "schema": object{"type": "string", "format": "binary"}}
}
