package rest

import (
	"fmt"
	"strconv"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// plan is what is known of a type of messages.
type plan struct {
	md     protoreflect.MessageDescriptor
	form   form
	fields []planned
	// places are those of fields, by their number; -1 is no field.
	places []int16
}

// form is how a type is written.
type form int8

const (
	ordinary  form = iota
	timestamp      // RFC 3339
	wrapped        // as its only field: Struct and ListValue
	dynamic        // as the one field that is set: Value
	foreign        // has a form of its own, which protojson knows
)

// planned is a field.
type planned struct {
	number           protowire.Number
	kind             protoreflect.Kind
	list, dictionary bool
	// name is quoted, with the colon.
	name []byte
	// optional is left out when it is not set; a message that is not set is null.
	optional bool
	// choice is the place of the oneof of which only one field is set; -1 is none.
	choice int
	// names of an enum, quoted; nil for NullValue, which is null whatever its number.
	names map[protoreflect.EnumNumber][]byte
	// md is of messages, and of the entries of a map; plan is its plan, once it was wanted.
	md   protoreflect.MessageDescriptor
	plan atomic.Pointer[plan]
}

func (e *encoder) planOf(md protoreflect.MessageDescriptor) *plan {
	if known, ok := e.plans.Load(md); ok {
		p, _ := known.(*plan)
		return p
	}
	known, _ := e.plans.LoadOrStore(md, newPlan(md))
	p, _ := known.(*plan)
	return p
}

// mostNumber bounds the table of places.
const mostNumber = 1 << 12

func newPlan(md protoreflect.MessageDescriptor) *plan {
	p := &plan{md: md, form: formOf(md), fields: make([]planned, md.Fields().Len())}
	for i := range p.fields {
		fd := md.Fields().Get(i)
		if fd.Number() > mostNumber || fd.Kind() == protoreflect.GroupKind || fd.Syntax() == protoreflect.Proto2 {
			p.form = foreign
			return p
		}
		for len(p.places) <= int(fd.Number()) {
			p.places = append(p.places, -1)
		}
		p.places[fd.Number()] = int16(i)
		p.fields[i].set(fd)
	}
	return p
}

func formOf(md protoreflect.MessageDescriptor) form {
	switch {
	case md.FullName() == timestampName:
		return timestamp
	case md.FullName() == "google.protobuf.Struct", md.FullName() == "google.protobuf.ListValue":
		return wrapped
	case md.FullName() == "google.protobuf.Value":
		return dynamic
	case md.ParentFile().Package() == "google.protobuf" && !md.IsMapEntry(), md.ExtensionRanges().Len() > 0:
		return foreign
	default:
		return ordinary
	}
}

func (f *planned) set(fd protoreflect.FieldDescriptor) {
	f.number, f.kind, f.list, f.dictionary, f.md = fd.Number(), fd.Kind(), fd.IsList(), fd.IsMap(), fd.Message()
	f.name = append(strconv.AppendQuote(nil, string(fd.Name())), ':')
	f.optional, f.choice = fd.ContainingOneof() != nil, -1
	if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() {
		f.choice = o.Index()
	}
	if fd.Enum() != nil && fd.Enum().FullName() != "google.protobuf.NullValue" {
		f.names = namesOf(fd.Enum())
	}
}

func namesOf(ed protoreflect.EnumDescriptor) map[protoreflect.EnumNumber][]byte {
	names := make(map[protoreflect.EnumNumber][]byte, ed.Values().Len())
	for i := range ed.Values().Len() {
		v := ed.Values().Get(i)
		if _, alias := names[v.Number()]; !alias {
			names[v.Number()] = strconv.AppendQuote(nil, string(v.Name()))
		}
	}
	return names
}

// find fills in where the fields of a message are. What is no field, or has not the wire type of one, is skipped as protobuf does.
func (p *plan) find(wire []byte, values []value) error {
	for at := 0; at < len(wire); {
		number, typ, n := protowire.ConsumeTag(wire[at:])
		if n < 0 {
			return fmt.Errorf("read %s: %w", p.md.FullName(), protowire.ParseError(n))
		}
		length := protowire.ConsumeFieldValue(number, typ, wire[at+n:])
		if length < 0 {
			return fmt.Errorf("read %s: %w", p.md.FullName(), protowire.ParseError(length))
		}
		if i := p.place(number, typ); i >= 0 {
			p.note(values, i, value{at, behindLength(wire, at+n, typ), at + n + length, values[i].found()})
		}
		at += n + length
	}
	return nil
}

// place is that of a field; -1 without one.
func (p *plan) place(number protowire.Number, typ protowire.Type) int {
	if int(number) >= len(p.places) {
		return -1
	}
	i := int(p.places[number])
	if i >= 0 && typ != p.fields[i].wireType() && (typ != protowire.BytesType || !p.fields[i].list) {
		return -1
	}
	return i
}

// note puts a value in its place. Of the fields of a oneof the last counts.
func (p *plan) note(values []value, i int, v value) {
	if v.many {
		v.first = values[i].first
	}
	if choice := p.fields[i].choice; choice >= 0 {
		for j := range values {
			if j != i && p.fields[j].choice == choice {
				values[j] = value{}
			}
		}
	}
	values[i] = v
}

// behindLength is where a value begins.
func behindLength(wire []byte, at int, typ protowire.Type) int {
	if typ == protowire.BytesType {
		_, n := protowire.ConsumeVarint(wire[at:])
		return at + n
	}
	return at
}

func (f *planned) wireType() protowire.Type {
	switch f.kind {
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.GroupKind:
		return protowire.StartGroupType
	default:
		return protowire.VarintType
	}
}

// each gives all values of a list or a map, also of one that is packed.
func (f *planned) each(wire []byte, v value, do func(value) error) error {
	for at := v.first; at < v.end; {
		number, typ, n := protowire.ConsumeTag(wire[at:])
		end := at + n + protowire.ConsumeFieldValue(number, typ, wire[at+n:])
		element := value{start: behindLength(wire, at+n, typ), end: end}
		at = end
		if number != f.number {
			continue
		}
		var err error
		switch { // another is skipped, as find does
		case typ == f.wireType():
			err = do(element)
		case typ == protowire.BytesType:
			err = f.packed(wire, element, do)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// packed gives the scalars that are one after the other in one value.
func (f *planned) packed(wire []byte, v value, do func(value) error) error {
	for at := v.start; at < v.end; {
		n := protowire.ConsumeFieldValue(f.number, f.wireType(), wire[at:v.end])
		if n < 0 {
			return fmt.Errorf("read field %s %w", f.name, protowire.ParseError(n))
		}
		if err := do(value{start: at, end: at + n}); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// merged is a message that came in parts: to have them one after the other is to merge them.
func (f *planned) merged(wire []byte, v value) []byte {
	var whole []byte
	_ = f.each(wire, v, func(part value) error {
		whole = append(whole, wire[part.start:part.end]...)
		return nil
	})
	return whole
}
