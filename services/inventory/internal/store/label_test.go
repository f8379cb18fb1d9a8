package store

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestLabelsAreReadAsADecoderReadsThem(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`{}`, `{"a": "b"}`, `{"a": "b", "c": ""}`, `{"": ", "}`, `{"a": "}"}`, `{"a": "\"", "b": "\\"}`, `{"ä": "\u0041"}`, ` {"a":"b"}`, `null`,
		`{"a":"b"}`, `{"a": "b",}`, `{"a": 1}`, `{"a": "b"} `, `{"a"}`, `{`, `{"`, `{"a": "b"`, `{"a": "b", `, `["a"]`, ``,
	} {
		likeTheDecoder(t, text)
	}
	rapid.Check(t, func(t *rapid.T) {
		text, err := json.Marshal(rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "labels"))
		require.NoError(t, err)
		likeTheDecoder(t, string(text))
	})
}

func FuzzLabels(f *testing.F) {
	f.Add(`{"a": "b", "c": "d"}`)
	f.Fuzz(func(t *testing.T, text string) { likeTheDecoder(t, text) })
}

// likeTheDecoder holds for what Postgres sends, which is always valid JSON; what is not may be read in any way.
func likeTheDecoder(t require.TestingT, text string) {
	var want map[string]string
	var got Labels
	wantErr := json.Unmarshal([]byte(text), &want)
	err := got.ScanBytes([]byte(text))
	if json.Valid([]byte(text)) {
		require.Equal(t, wantErr == nil, err == nil, "%s: %v, %v", text, wantErr, err)
	}
	if wantErr == nil {
		require.Equal(t, want, map[string]string(got), text)
	}
}
