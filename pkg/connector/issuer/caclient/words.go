package caclient

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"unicode"
)

// maxWords is the most characters of the CA's own words in an error.
const maxWords = 200

// errorBody is the union of the forms that CAs have for errors:
//
//	DigiCert, ECS:  {"errors":[{"code":"…","message":"…"}]}
//	Sectigo:        {"code":-16,"description":"…"}
//	GlobalSign:     {"description":"…","errors":{"field":"…"}}
//	CA Gateway:     {"error":{"code":"…","message":"…"}}
//	OAuth 2:        {"error":"…","error_description":"…"}
type errorBody struct {
	Code             json.RawMessage `json:"code"`
	Message          string          `json:"message"`
	Description      string          `json:"description"`
	Error            json.RawMessage `json:"error"`
	ErrorDescription string          `json:"error_description"`
	Errors           json.RawMessage `json:"errors"`
}

type errorEntry struct {
	Code        json.RawMessage `json:"code"`
	Message     string          `json:"message"`
	Description string          `json:"description"`
}

// ReadError finds code and message in the usual forms of errors; ok is false when body is no JSON object.
func ReadError(body []byte) (code, message string, ok bool) {
	var b errorBody
	if json.Unmarshal(body, &b) != nil {
		var object map[string]json.RawMessage
		return "", "", json.Unmarshal(body, &object) == nil && object != nil
	}
	if strings.TrimSpace(string(body)) == "null" {
		return "", "", false
	}
	code, message = scalar(b.Code), first(b.Message, b.Description)
	var nested errorEntry
	var listed []errorEntry
	switch {
	case json.Unmarshal(b.Errors, &listed) == nil && len(listed) > 0:
		code, message = first(code, scalar(listed[0].Code)), first(listed[0].Message, listed[0].Description, message)
	case len(b.Error) > 0 && b.Error[0] == '{' && json.Unmarshal(b.Error, &nested) == nil:
		code, message = first(code, scalar(nested.Code)), first(nested.Message, nested.Description, message)
	case len(b.Error) > 0:
		code, message = first(code, scalar(b.Error)), first(b.ErrorDescription, message)
	}
	return code, first(message, fieldErrors(b.Errors)), true
}

// fieldErrors puts an object of texts by field into one sentence.
func fieldErrors(raw json.RawMessage) string {
	var fields map[string]string
	if json.Unmarshal(raw, &fields) != nil {
		return ""
	}
	out := make([]string, 0, len(fields))
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		out = append(out, name+": "+fields[name])
	}
	return strings.Join(out, "; ")
}

// scalar gives a JSON string or number as text.
func scalar(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var number json.Number
	if json.Unmarshal(raw, &number) == nil {
		return number.String()
	}
	return ""
}

func first(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// Clean makes words of a CA fit for an error or a detail: one line of visible characters, clipped, and nothing of a page.
func Clean(s string) string { return clean(s) }

func clean(s string) string {
	if lower := strings.ToLower(s[:min(len(s), 4096)]); strings.Contains(lower, "<html") || strings.Contains(lower, "<!doctype") {
		return "(a page)"
	}
	var out strings.Builder
	n, space := 0, false
	for _, r := range strings.ToValidUTF8(s, "\uFFFD") {
		if unicode.IsSpace(r) || !unicode.IsPrint(r) {
			space = n > 0
			continue
		}
		if space {
			out.WriteByte(' ')
			n++
		}
		if n >= maxWords {
			return out.String() + "…"
		}
		out.WriteRune(r)
		n, space = n+1, false
	}
	return out.String()
}

// mask takes our own secrets out of the CA's words.
func (c *Client) mask(s string) string {
	for _, secret := range c.cfg.Secrets {
		if plain := secret.Reveal(); plain != "" {
			s = strings.ReplaceAll(s, plain, "***")
		}
	}
	return s
}

// clippedError keeps an error of a library in the chain and its text short, as it may quote what was received.
type clippedError struct {
	doing string
	err   error
}

func (e *clippedError) Error() string { return e.doing + ": " + clean(e.err.Error()) }
func (e *clippedError) Unwrap() error { return e.err }
