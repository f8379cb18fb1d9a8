package store

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/certctl/certctl/pkg/pg"
)

// Labels are the pairs of a jsonb column.
type Labels map[string]string

// ScanBytes reads what Postgres sends for an object of strings (pgtype.BytesScanner). Its form is always the same, so that this needs no JSON decoder: that is
// slower by far, and lists have it in each row. What has escapes is left to the decoder.
func (l *Labels) ScanBytes(text []byte) error {
	if pairs, ok := plainPairs(string(text)); ok {
		*l = pairs
		return nil
	}
	*l = nil
	if err := json.Unmarshal(text, (*map[string]string)(l)); err != nil {
		return fmt.Errorf("read labels: %w", err)
	}
	return nil
}

func readLabels(r *pg.Columns) Labels {
	var l Labels
	text := r.JSON()
	if pairs, ok := plainPairs(text); ok {
		return pairs
	}
	r.Check(l.ScanBytes([]byte(text)))
	return l
}

// plainPairs reads {"a": "b", "c": "d"} without escapes.
func plainPairs(text string) (Labels, bool) {
	inner, ok := strings.CutPrefix(text, "{")
	if !ok || strings.IndexByte(text, '\\') >= 0 {
		return nil, false
	}
	pairs := Labels{}
	for inner != "}" {
		var key, value string
		if key, inner, ok = quoted(inner); !ok {
			return nil, false
		}
		if inner, ok = strings.CutPrefix(inner, ": "); !ok {
			return nil, false
		}
		if value, inner, ok = quoted(inner); !ok {
			return nil, false
		}
		pairs[key] = value
		if rest, more := strings.CutPrefix(inner, ", "); more {
			inner = rest
		} else if inner != "}" {
			return nil, false
		}
	}
	return pairs, true
}

// quoted takes a string without escapes off the front.
func quoted(text string) (s, rest string, ok bool) {
	if text, ok = strings.CutPrefix(text, `"`); !ok {
		return "", "", false
	}
	return strings.Cut(text, `"`)
}
