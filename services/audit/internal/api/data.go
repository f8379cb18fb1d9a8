package api

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/structpb"
)

// dataOf makes the Struct of an event's data. What is stored came in as a Struct; should somebody have changed the row, it is nil, and
// a list still shows the rest. The text is turned into what is on the wire in the end (struct.proto) and left in that form: to make a
// message of each value of each event, by protojson, took half of the time of a list.
func dataOf(text []byte) *structpb.Struct {
	data := &structpb.Struct{}
	r := jsonReader{text: text}
	if wire, ok := r.object(nil, 0); ok && r.rest() == "" {
		data.ProtoReflect().SetUnknown(wire)
		return data
	}
	if err := data.UnmarshalJSON(text); err != nil {
		return nil
	}
	return data
}

// Numbers of fields in struct.proto.
const (
	fieldsOfStruct = 1
	valuesOfList   = 1
	keyOfEntry     = 1
	valueOfEntry   = 2
	nullValue      = 1
	numberValue    = 2
	stringValue    = 3
	boolValue      = 4
	structValue    = 5
	listValue      = 6
)

// Bounds of what is read here: the depth, and the fields of an object, which are looked through for one that is there twice.
const (
	maxNesting = 100
	maxFields  = 24
)

// jsonReader turns JSON into the wire format, as far as it is what encoding/json writes. It says no to all that it does not know.
type jsonReader struct {
	text []byte
	at   int
}

func (r *jsonReader) rest() string {
	r.space()
	return string(r.text[r.at:])
}

func (r *jsonReader) space() {
	for r.at < len(r.text) && (r.text[r.at] == ' ' || r.text[r.at] == '\n' || r.text[r.at] == '\t' || r.text[r.at] == '\r') {
		r.at++
	}
}

// took goes on if c is next.
func (r *jsonReader) took(c byte) bool {
	r.space()
	if r.at >= len(r.text) || r.text[r.at] != c {
		return false
	}
	r.at++
	return true
}

// object appends a Struct.
func (r *jsonReader) object(b []byte, depth int) (_ []byte, ok bool) {
	if depth > maxNesting || !r.took('{') {
		return nil, false
	}
	if r.took('}') {
		return b, true
	}
	var entry []byte
	var known [maxFields][]byte
	for n := 0; n < maxFields; n++ {
		key, ok := r.string()
		if !ok || !r.took(':') || slices.ContainsFunc(known[:n], func(k []byte) bool { return bytes.Equal(k, key) }) {
			return nil, false
		}
		known[n] = key
		entry = protowire.AppendBytes(protowire.AppendTag(entry[:0], keyOfEntry, protowire.BytesType), key)
		value, ok := r.value(nil, depth)
		if !ok {
			return nil, false
		}
		entry = protowire.AppendBytes(protowire.AppendTag(entry, valueOfEntry, protowire.BytesType), value)
		b = protowire.AppendBytes(protowire.AppendTag(b, fieldsOfStruct, protowire.BytesType), entry)
		if r.took('}') {
			return b, true
		}
		if !r.took(',') {
			return nil, false
		}
	}
	return nil, false
}

// list appends a ListValue.
func (r *jsonReader) list(b []byte, depth int) (_ []byte, ok bool) {
	if depth > maxNesting || !r.took('[') {
		return nil, false
	}
	if r.took(']') {
		return b, true
	}
	var value []byte
	for {
		if value, ok = r.value(value[:0], depth); !ok {
			return nil, false
		}
		b = protowire.AppendBytes(protowire.AppendTag(b, valuesOfList, protowire.BytesType), value)
		if r.took(']') {
			return b, true
		}
		if !r.took(',') {
			return nil, false
		}
	}
}

// value appends a Value.
func (r *jsonReader) value(b []byte, depth int) (_ []byte, ok bool) {
	r.space()
	if r.at >= len(r.text) {
		return nil, false
	}
	switch r.text[r.at] {
	case '{':
		nested, ok := r.object(nil, depth+1)
		return protowire.AppendBytes(protowire.AppendTag(b, structValue, protowire.BytesType), nested), ok
	case '[':
		nested, ok := r.list(nil, depth+1)
		return protowire.AppendBytes(protowire.AppendTag(b, listValue, protowire.BytesType), nested), ok
	case '"':
		text, ok := r.string()
		return protowire.AppendBytes(protowire.AppendTag(b, stringValue, protowire.BytesType), text), ok
	case 'n':
		return protowire.AppendVarint(protowire.AppendTag(b, nullValue, protowire.VarintType), 0), r.word("null")
	case 't':
		return protowire.AppendVarint(protowire.AppendTag(b, boolValue, protowire.VarintType), 1), r.word("true")
	case 'f':
		return protowire.AppendVarint(protowire.AppendTag(b, boolValue, protowire.VarintType), 0), r.word("false")
	default:
		return r.number(b)
	}
}

func (r *jsonReader) word(w string) bool {
	if !bytes.HasPrefix(r.text[r.at:], []byte(w)) {
		return false
	}
	r.at += len(w)
	return true
}

// number appends one of digits alone, which are most; others are not known here.
func (r *jsonReader) number(b []byte) (_ []byte, ok bool) {
	from := r.at
	for r.at < len(r.text) && r.text[r.at] >= '0' && r.text[r.at] <= '9' {
		r.at++
	}
	digits := string(r.text[from:r.at])
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || len(digits) > 1 && digits[0] == '0' || r.at < len(r.text) && bytes.IndexByte([]byte(",]} \n\t\r"), r.text[r.at]) < 0 {
		return nil, false
	}
	return protowire.AppendFixed64(protowire.AppendTag(b, numberValue, protowire.Fixed64Type), math.Float64bits(n)), true
}

// string reads a text. One with escapes, or that is not ASCII, is left to encoding/json.
func (r *jsonReader) string() (text []byte, ok bool) {
	if !r.took('"') {
		return nil, false
	}
	from, plain := r.at, true
	for r.at < len(r.text) {
		switch c := r.text[r.at]; {
		case c == '"':
			text = r.text[from:r.at]
			r.at++
			return unquoted(text, plain)
		case c < ' ':
			return nil, false
		case c == '\\':
			plain = false
			r.at += 2
		default:
			plain = plain && c < 0x80
			r.at++
		}
	}
	return nil, false
}

func unquoted(text []byte, plain bool) ([]byte, bool) {
	if plain {
		return text, true
	}
	if bytes.Contains(text, []byte(`\u`)) || !json.Valid(quoted(text)) { // protojson is strict about surrogates
		return nil, false
	}
	var s string
	err := json.Unmarshal(quoted(text), &s)
	return []byte(s), err == nil && bytes.IndexByte([]byte(s), 0) < 0 && !bytes.Contains([]byte(s), []byte("\uFFFD"))
}

func quoted(text []byte) []byte { return append(append([]byte{'"'}, text...), '"') }
