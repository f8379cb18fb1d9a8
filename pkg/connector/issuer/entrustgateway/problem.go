package entrustgateway

import (
	"encoding/json"
	"strings"
)

// errorResponse is the body of errors: {"type":"ErrorResponse","error":{"code","message","target","details"}}.
type errorResponse struct {
	Error json.RawMessage `json:"error"`
}

// readError finds what the gateway says in an error. A code is there only in the gateway's own form, so that a server
// without such a path is told from a gateway without such a resource.
func readError(body []byte) (code, sentence string, ok bool) {
	if !strings.HasPrefix(strings.TrimSpace(string(body)), "{") {
		return "", "", false
	}
	var outer errorResponse
	if json.Unmarshal(body, &outer) != nil {
		return "", "", false
	}
	var inner message
	if json.Unmarshal(outer.Error, &inner) != nil {
		return "", "", true
	}
	sentence = inner.Message
	if inner.Target != "" {
		sentence = strings.TrimSpace(sentence + " [" + inner.Target + "]")
	}
	return inner.Code, sentence, true
}
