package rest

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/certctl/certctl/gateway/internal/problem"
)

// encoder writes messages in the JSON form of protobuf, with the same bytes as protojson with UseProtoNames and EmitUnpopulated, and
// without its spaces, of which protojson puts some in at random. It is here because protojson takes most of the time of a list
// (BenchmarkEncode): that looks up, sorts and quotes the names of the fields for each message anew. It reads messages as they are on
// the wire (protobuf.dev/programming-guides/encoding), so that what comes from a service need not be read into Go's memory first.
type encoder struct{ plans sync.Map }

// options of protojson, whose bytes these are.
func options() protojson.MarshalOptions {
	return protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}
}

func (e *encoder) marshal(m proto.Message) ([]byte, error) {
	wire := []byte(m.ProtoReflect().GetUnknown())
	if proto.Size(m) != len(wire) { // else it was never read; see unread
		var err error
		if wire, err = proto.Marshal(m); err != nil {
			return nil, fmt.Errorf("write %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
		}
	}
	const room = 256 // names and punctuation make the text about twice as long as the message
	return e.message(make([]byte, 0, 2*len(wire)+room), e.planOf(m.ProtoReflect().Descriptor()), wire)
}

// value is where a field is in a message: at the start and end of its last value, whose first one begins with the tag at first.
// For bytes, strings and messages the start is behind the length.
type value struct {
	first, start, end int
	many              bool
}

func (v value) found() bool { return v.end > 0 }

// mostFields is up to how many fields a message is written without asking for memory.
const mostFields = 48

func (e *encoder) message(b []byte, p *plan, wire []byte) ([]byte, error) {
	var room [mostFields]value
	values := room[:]
	if len(p.fields) > len(room) {
		values = make([]value, len(p.fields))
	}
	values = values[:len(p.fields)]
	if p.form == foreign {
		return appendForeign(b, p.md, wire)
	}
	if err := p.find(wire, values); err != nil {
		return nil, err
	}
	switch p.form {
	case timestamp:
		return appendTimestamp(b, wire, values)
	case wrapped:
		return e.field(b, &p.fields[0], wire, values[0])
	case dynamic:
		return e.dynamic(b, p, wire, values)
	case foreign, ordinary:
	}
	return e.object(b, p, wire, values)
}

func (e *encoder) object(b []byte, p *plan, wire []byte, values []value) (_ []byte, err error) {
	b = append(b, '{')
	first := true
	for i := range p.fields {
		f := &p.fields[i]
		if f.optional && !values[i].found() {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		if b, err = e.field(append(b, f.name...), f, wire, values[i]); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

// dynamic writes a google.protobuf.Value: the one field that is set.
func (e *encoder) dynamic(b []byte, p *plan, wire []byte, values []value) ([]byte, error) {
	for i := range p.fields {
		if !values[i].found() {
			continue
		}
		if p.fields[i].kind == protoreflect.DoubleKind {
			if n := floatAt(wire, values[i]); math.IsNaN(n) || math.IsInf(n, 0) {
				return nil, fmt.Errorf("write %s: %v is no number of JSON", p.md.FullName(), n)
			}
		}
		return e.field(b, &p.fields[i], wire, values[i])
	}
	return nil, fmt.Errorf("write %s: it is empty", p.md.FullName())
}

func appendTimestamp(b, wire []byte, values []value) ([]byte, error) {
	return appendTime(b, int64(varintAt(wire, values[0])), int32(varintAt(wire, values[1])))
}

// appendForeign leaves a message to protojson.
func appendForeign(b []byte, md protoreflect.MessageDescriptor, wire []byte) ([]byte, error) {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(md.FullName())
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", md.FullName(), err)
	}
	m := mt.New().Interface()
	if err := proto.Unmarshal(wire, m); err != nil {
		return nil, fmt.Errorf("write %s: %w", md.FullName(), err)
	}
	text, err := options().Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", md.FullName(), err)
	}
	return append(b, problem.Compact(text)...), nil
}

func (e *encoder) field(b []byte, f *planned, wire []byte, v value) ([]byte, error) {
	switch {
	case f.list:
		return e.list(b, f, wire, v)
	case f.dictionary:
		return e.dictionary(b, f, wire, v)
	case f.kind != protoreflect.MessageKind:
		return f.scalar(b, wire, v)
	case !v.found():
		return append(b, "null"...), nil
	case v.many:
		return e.message(b, e.planFor(f), f.merged(wire, v))
	default:
		return e.message(b, e.planFor(f), wire[v.start:v.end])
	}
}

// planFor is the plan of a field's messages.
func (e *encoder) planFor(f *planned) *plan {
	if p := f.plan.Load(); p != nil {
		return p
	}
	p := e.planOf(f.md)
	f.plan.Store(p)
	return p
}

func (e *encoder) list(b []byte, f *planned, wire []byte, v value) ([]byte, error) {
	b = append(b, '[')
	began := len(b)
	err := f.each(wire, v, func(element value) (err error) {
		if len(b) > began {
			b = append(b, ',')
		}
		if f.kind == protoreflect.MessageKind {
			b, err = e.message(b, e.planFor(f), wire[element.start:element.end])
		} else {
			b, err = f.scalar(b, wire, element)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return append(b, ']'), nil
}

// pair is an entry of a map.
type pair struct {
	key   []byte
	wire  []byte
	value value
}

// dictionary writes a map in the order of its keys.
func (e *encoder) dictionary(b []byte, f *planned, wire []byte, v value) ([]byte, error) {
	pairs, err := e.pairs(f, wire, v)
	if err != nil {
		return nil, err
	}
	b = append(b, '{')
	for i, p := range pairs {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = appendString(b, p.key); err != nil {
			return nil, err
		}
		if b, err = e.entry(append(b, ':'), &e.planFor(f).fields[1], p); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

// entry writes the value of a pair: one that was not sent is empty, and not null.
func (e *encoder) entry(b []byte, f *planned, p pair) ([]byte, error) {
	if f.kind == protoreflect.MessageKind && !p.value.found() {
		return e.message(b, e.planFor(f), nil)
	}
	return e.field(b, f, p.wire, p.value)
}

// pairs gives the entries of a map in the order of their keys; of one key the last.
func (e *encoder) pairs(f *planned, wire []byte, v value) ([]pair, error) {
	p := e.planFor(f)
	if v.found() && p.fields[0].kind != protoreflect.StringKind {
		return nil, fmt.Errorf("write %s: a map whose keys are no strings", p.md.FullName())
	}
	var pairs []pair
	err := f.each(wire, v, func(element value) error {
		var values [2]value
		entry := wire[element.start:element.end]
		if err := p.find(entry, values[:]); err != nil {
			return err
		}
		key := entry[values[0].start:values[0].end]
		at, known := slices.BinarySearchFunc(pairs, key, func(p pair, key []byte) int { return slices.Compare(p.key, key) })
		if known {
			pairs[at] = pair{key, entry, values[1]}
		} else {
			pairs = slices.Insert(pairs, at, pair{key, entry, values[1]})
		}
		return nil
	})
	return pairs, err
}

// scalar writes a value that is no message; its zero value if it is not there.
func (f *planned) scalar(b, wire []byte, v value) ([]byte, error) {
	switch f.kind {
	case protoreflect.StringKind:
		return appendString(b, wire[v.start:v.end])
	case protoreflect.BytesKind:
		return append(base64.StdEncoding.AppendEncode(append(b, '"'), wire[v.start:v.end]), '"'), nil
	case protoreflect.BoolKind:
		return strconv.AppendBool(b, varintAt(wire, v) != 0), nil
	case protoreflect.EnumKind:
		return f.appendEnum(b, protoreflect.EnumNumber(int32(varintAt(wire, v)))), nil
	case protoreflect.DoubleKind:
		return appendFloat(b, floatAt(wire, v), 64), nil
	case protoreflect.FloatKind:
		return appendFloat(b, float64(math.Float32frombits(fixed32At(wire, v))), 32), nil
	case protoreflect.GroupKind, protoreflect.MessageKind:
		return nil, errors.New("write a message as a scalar")
	default:
		return f.integer(b, wire, v), nil
	}
}

// integer writes 64 bits as a string.
func (f *planned) integer(b, wire []byte, v value) []byte {
	switch f.kind {
	case protoreflect.Int32Kind:
		return strconv.AppendInt(b, int64(int32(varintAt(wire, v))), 10)
	case protoreflect.Sint32Kind:
		return strconv.AppendInt(b, int64(int32(protowire.DecodeZigZag(varintAt(wire, v)&math.MaxUint32))), 10)
	case protoreflect.Sfixed32Kind:
		return strconv.AppendInt(b, int64(int32(fixed32At(wire, v))), 10)
	case protoreflect.Uint32Kind:
		return strconv.AppendUint(b, uint64(uint32(varintAt(wire, v))), 10)
	case protoreflect.Fixed32Kind:
		return strconv.AppendUint(b, uint64(fixed32At(wire, v)), 10)
	default:
		return append(f.long(append(b, '"'), wire, v), '"')
	}
}

func (f *planned) long(b, wire []byte, v value) []byte {
	switch f.kind {
	case protoreflect.Int64Kind:
		return strconv.AppendInt(b, int64(varintAt(wire, v)), 10)
	case protoreflect.Sint64Kind:
		return strconv.AppendInt(b, protowire.DecodeZigZag(varintAt(wire, v)), 10)
	case protoreflect.Sfixed64Kind:
		return strconv.AppendInt(b, int64(fixed64At(wire, v)), 10)
	case protoreflect.Fixed64Kind:
		return strconv.AppendUint(b, fixed64At(wire, v), 10)
	default:
		return strconv.AppendUint(b, varintAt(wire, v), 10)
	}
}

func (f *planned) appendEnum(b []byte, n protoreflect.EnumNumber) []byte {
	if f.names == nil {
		return append(b, "null"...)
	}
	if name, ok := f.names[n]; ok {
		return append(b, name...)
	}
	return strconv.AppendInt(b, int64(n), 10)
}

// What is not there is 0. The values were checked by find.
func varintAt(wire []byte, v value) uint64 {
	n, _ := protowire.ConsumeVarint(wire[v.start:v.end])
	return n
}

func fixed32At(wire []byte, v value) uint32 {
	n, _ := protowire.ConsumeFixed32(wire[v.start:v.end])
	return n
}

func fixed64At(wire []byte, v value) uint64 {
	n, _ := protowire.ConsumeFixed64(wire[v.start:v.end])
	return n
}

func floatAt(wire []byte, v value) float64 { return math.Float64frombits(fixed64At(wire, v)) }
