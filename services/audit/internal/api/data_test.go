package api

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// sameData compares with what protojson makes of a text.
func sameData(t *testing.T, text []byte) {
	t.Helper()
	want := &structpb.Struct{}
	wantErr := want.UnmarshalJSON(text)
	data := dataOf(text)
	if wantErr != nil {
		require.Nil(t, data, "%q: protojson: %v", text, wantErr)
		return
	}
	require.NotNil(t, data, "%q", text)
	wire, err := proto.Marshal(data)
	require.NoError(t, err)
	got := &structpb.Struct{}
	require.NoError(t, proto.Unmarshal(wire, got), "%q", text)
	require.True(t, proto.Equal(want, got), "%q: %s, not %s", text, got, want)
}

func seeds() []string {
	return []string{
		`{}`, ` { "a" : 1 , "b":[ ] , "c":{ } } `, `{"a":null,"b":true,"c":false,"d":"x","e":[1,"2",[3,{"f":[]}]]}`, `{"a":-1.5e3}`, `{"a":01}`, `{"a":1.}`,
		`{"a":"\u00e4\n\"\\"}`, `{"a":"ä"}`, `{"\u0061":1}`, `{"a":"\ud800"}`, "{\"a\":\"\xff\"}", `{"a":"\q"}`, `{"a":1}x`, `{"a":1,}`, `{"a" 1}`, `{`, `[1]`, `"a"`, ``,
		`{"a":nul}`, `{"a":truex}`, `{"a":1x}`, "{\"a\":\"\n\"}", `{"a":"b\"}`, `{"a":123456789012345678901234567890}`, strings.Repeat(`{"a":`, 120) + "1" + strings.Repeat("}", 120),
		`{"a":"\u0000"}`, `{"a":"�"}`, `{"a":}`, `{"a":[,]}`, `{"a":1 2}`, `{"a":00}`, `{"a":0}`, `{"a":""}`, `{"":""}`, `{"a":1,"a":2}`, `{"a":{"b":1,"b":2}}`,
	}
}

func TestDataIsWhatProtojsonMakesOfIt(t *testing.T) {
	t.Parallel()
	for _, text := range seeds() {
		sameData(t, []byte(text))
	}
}

func FuzzData(f *testing.F) {
	for _, text := range seeds() {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) { sameData(t, text) })
}

func TestDataThatWeStoreIsReadWithoutProtojson(t *testing.T) { //nolint:paralleltest // it counts allocations
	text := []byte(`{"dns_names":["shop.example.com","www.shop.example.com"],"issuer_id":"iss-local","name":"shop","target_ids":[],"version":3}`)
	ours := testing.AllocsPerRun(100, func() { dataOf(text) })
	theirs := testing.AllocsPerRun(100, func() { _ = new(structpb.Struct).UnmarshalJSON(text) })
	require.Less(t, 3*ours, theirs)
}
