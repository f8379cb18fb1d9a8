package rest

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/gateway/internal/problem"
)

// encoder writes messages in the JSON form of protobuf, with the same bytes as protojson with UseProtoNames and EmitUnpopulated, and
// without its spaces, of which protojson puts some in at random. It is here because protojson takes most of the time of a list
// (BenchmarkEncode): that looks up, sorts and quotes the names of the fields for each message anew.
type encoder struct{ plans sync.Map }

// plan is what is known of a type of messages.
type plan struct {
	// foreign types have a JSON form of their own; protojson writes them.
	foreign bool
	fields  []planned
}

// planned is a field.
type planned struct {
	fd protoreflect.FieldDescriptor
	// name is quoted, with the colon.
	name []byte
	// optional is left out when it is not set; a message that is not set is null.
	optional, message bool
}

// options of protojson, whose bytes these are.
func options() protojson.MarshalOptions {
	return protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}
}

func (e *encoder) marshal(m proto.Message) ([]byte, error) {
	const room = 256 // names and punctuation make the text about twice as long as the message
	return e.message(make([]byte, 0, 2*proto.Size(m)+room), m.ProtoReflect())
}

func (e *encoder) planOf(md protoreflect.MessageDescriptor) *plan {
	if known, ok := e.plans.Load(md); ok {
		p, _ := known.(*plan)
		return p
	}
	p := newPlan(md)
	e.plans.Store(md, p)
	return p
}

func newPlan(md protoreflect.MessageDescriptor) *plan {
	p := &plan{foreign: md.ParentFile().Package() == "google.protobuf" || md.ExtensionRanges().Len() > 0}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		p.foreign = p.foreign || fd.Kind() == protoreflect.GroupKind || fd.Syntax() == protoreflect.Proto2
		p.fields = append(p.fields, planned{
			fd: fd, name: append(strconv.AppendQuote(nil, string(fd.Name())), ':'),
			optional: fd.ContainingOneof() != nil, message: !fd.IsList() && !fd.IsMap() && fd.Message() != nil,
		})
	}
	return p
}

func (e *encoder) message(b []byte, m protoreflect.Message) ([]byte, error) {
	if t, ok := m.Interface().(*timestamppb.Timestamp); ok {
		return appendTimestamp(b, t)
	}
	p := e.planOf(m.Descriptor())
	if p.foreign {
		return appendForeign(b, m.Interface())
	}
	b = append(b, '{')
	first := true
	for i := range p.fields {
		f := &p.fields[i]
		if f.optional && !m.Has(f.fd) {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(b, f.name...)
		if f.message && !m.Has(f.fd) {
			b = append(b, "null"...)
			continue
		}
		var err error
		if b, err = e.field(b, f.fd, m.Get(f.fd)); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendForeign(b []byte, m proto.Message) ([]byte, error) {
	text, err := options().Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return append(b, problem.Compact(text)...), nil
}

func (e *encoder) field(b []byte, fd protoreflect.FieldDescriptor, v protoreflect.Value) ([]byte, error) {
	switch {
	case fd.IsList():
		return e.list(b, fd, v.List())
	case fd.IsMap():
		return e.dictionary(b, fd, v.Map())
	default:
		return e.value(b, fd, v)
	}
}

func (e *encoder) list(b []byte, fd protoreflect.FieldDescriptor, l protoreflect.List) ([]byte, error) {
	b = append(b, '[')
	for i := range l.Len() {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = e.value(b, fd, l.Get(i)); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}

// dictionary writes a map in the order of its keys.
func (e *encoder) dictionary(b []byte, fd protoreflect.FieldDescriptor, m protoreflect.Map) ([]byte, error) {
	if m.Len() > 0 && fd.MapKey().Kind() != protoreflect.StringKind {
		return nil, fmt.Errorf("write %s: a map whose keys are no strings", fd.FullName())
	}
	keys := make([]string, 0, m.Len())
	m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, k.String())
		return true
	})
	slices.Sort(keys)
	b = append(b, '{')
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendString(b, k); err != nil {
			return nil, err
		}
		b = append(b, ':')
		if b, err = e.value(b, fd.MapValue(), m.Get(protoreflect.ValueOfString(k).MapKey())); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func (e *encoder) value(b []byte, fd protoreflect.FieldDescriptor, v protoreflect.Value) ([]byte, error) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return appendString(b, v.String())
	case protoreflect.MessageKind:
		return e.message(b, v.Message())
	case protoreflect.BoolKind:
		return strconv.AppendBool(b, v.Bool()), nil
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return strconv.AppendInt(b, v.Int(), 10), nil
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return strconv.AppendUint(b, v.Uint(), 10), nil
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return append(strconv.AppendInt(append(b, '"'), v.Int(), 10), '"'), nil
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return append(strconv.AppendUint(append(b, '"'), v.Uint(), 10), '"'), nil
	case protoreflect.EnumKind:
		return appendEnum(b, fd, v.Enum()), nil
	case protoreflect.BytesKind:
		return append(base64.StdEncoding.AppendEncode(append(b, '"'), v.Bytes()), '"'), nil
	case protoreflect.DoubleKind:
		return appendFloat(b, v.Float(), 64), nil
	case protoreflect.FloatKind:
		return appendFloat(b, v.Float(), 32), nil
	case protoreflect.GroupKind:
		return nil, fmt.Errorf("write %s: a group", fd.FullName())
	default:
		return nil, fmt.Errorf("write %s: unknown kind %v", fd.FullName(), fd.Kind())
	}
}

func appendEnum(b []byte, fd protoreflect.FieldDescriptor, n protoreflect.EnumNumber) []byte {
	if fd.Enum().FullName() == "google.protobuf.NullValue" {
		return append(b, "null"...)
	}
	if v := fd.Enum().Values().ByNumber(n); v != nil {
		return append(append(append(b, '"'), v.Name()...), '"')
	}
	return strconv.AppendInt(b, int64(n), 10)
}

// appendFloat writes as ECMA-262 does, like encoding/json.
func appendFloat(b []byte, f float64, bits int) []byte {
	switch {
	case math.IsNaN(f):
		return append(b, `"NaN"`...)
	case math.IsInf(f, 1):
		return append(b, `"Infinity"`...)
	case math.IsInf(f, -1):
		return append(b, `"-Infinity"`...)
	}
	format := byte('f')
	if abs := math.Abs(f); abs != 0 {
		if bits == 64 && (abs < 1e-6 || abs >= 1e21) || bits == 32 && (float32(abs) < 1e-6 || float32(abs) >= 1e21) {
			format = 'e'
		}
	}
	b = strconv.AppendFloat(b, f, format, -1, bits)
	if n := len(b); format == 'e' && n >= 4 && b[n-4] == 'e' && b[n-3] == '-' && b[n-2] == '0' { // e-09 is e-9
		b[n-2] = b[n-1]
		b = b[:n-1]
	}
	return b
}

// The range of a Timestamp (google/protobuf/timestamp.proto).
const (
	minTimestamp = -62135596800
	maxTimestamp = 253402300799
)

// appendTimestamp writes RFC 3339 in UTC with 0, 3, 6 or 9 digits of the second.
func appendTimestamp(b []byte, t *timestamppb.Timestamp) ([]byte, error) {
	if s, n := t.GetSeconds(), t.GetNanos(); s < minTimestamp || s > maxTimestamp || n < 0 || n > 999_999_999 {
		return nil, fmt.Errorf("write a timestamp: %d s, %d ns are out of range", s, n)
	}
	layout := "2006-01-02T15:04:05"
	switch n := t.GetNanos(); {
	case n == 0:
	case n%1_000_000 == 0:
		layout = "2006-01-02T15:04:05.000"
	case n%1_000 == 0:
		layout = "2006-01-02T15:04:05.000000"
	default:
		layout = "2006-01-02T15:04:05.000000000"
	}
	b = time.Unix(t.GetSeconds(), int64(t.GetNanos())).UTC().AppendFormat(append(b, '"'), layout)
	return append(b, 'Z', '"'), nil
}

var errNotUTF8 = errors.New("write a string: it is not UTF-8")

// appendString quotes as RFC 8259, section 7 asks, and no more.
func appendString(b []byte, s string) ([]byte, error) {
	if !utf8.ValidString(s) {
		return nil, errNotUTF8
	}
	b = append(b, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, '\\', 'b')
		case '\f':
			b = append(b, '\\', 'f')
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			const hex = "0123456789abcdef"
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		}
	}
	return append(append(b, s[from:]...), '"'), nil
}
