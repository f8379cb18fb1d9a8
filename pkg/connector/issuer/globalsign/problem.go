package globalsign

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// maxFields is the most fields of an error that are told.
const maxFields = 8

// readError finds what the CA says in an error: {"description": "…", "errors": {"field": "what is wrong with it"}}. There is
// no code. A token that the CA repeats is no business of a log.
func (i *Issuer) readError(body []byte) (code, message string, ok bool) {
	message, ok = readProblem(body)
	if token, known := i.token.Current(); known && token != "" {
		message = strings.ReplaceAll(message, token, "***")
	}
	return "", message, ok
}

func readProblem(body []byte) (message string, ok bool) {
	var p problem
	if json.Unmarshal(body, &p) != nil {
		return "", json.Unmarshal(body, &map[string]json.RawMessage{}) == nil
	}
	if strings.TrimSpace(string(body)) == "null" {
		return "", false
	}
	parts := make([]string, 0, maxFields+1)
	if p.Description != "" {
		parts = append(parts, p.Description)
	}
	for _, field := range slices.Sorted(maps.Keys(p.Errors)) {
		if len(parts) > maxFields {
			break
		}
		parts = append(parts, field+": "+plain(p.Errors[field]))
	}
	return strings.Join(parts, "; "), true
}

// plain gives a JSON string without its quotes, anything else as it is.
func plain(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	return string(raw)
}
