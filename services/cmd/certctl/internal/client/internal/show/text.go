package show

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// maxListed is how many elements of a list a cell of a table names.
const maxListed = 2

// Clean makes text safe and fit for one line of a terminal: names and messages come from hosts and CAs, and a control
// character in them could rewrite what the reader sees.
func Clean(s string) string {
	if strings.IndexFunc(s, unprintable) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n' || r == '\t':
			b.WriteByte(' ')
		case unprintable(r):
			fmt.Fprintf(&b, "\\u%04x", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// unprintable are control characters, and the marks that turn the direction of writing.
func unprintable(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) }

// find walks a path; ok is false when something on the way is not set.
func find(m proto.Message, path string) (fd protoreflect.FieldDescriptor, v protoreflect.Value, ok bool) {
	r := m.ProtoReflect()
	for name := range strings.SplitSeq(path, ".") {
		if fd != nil {
			r = v.Message()
		}
		fd = r.Descriptor().Fields().ByName(protoreflect.Name(name))
		if fd == nil || !r.Has(fd) {
			return nil, v, false
		}
		v = r.Get(fd)
	}
	return fd, v, true
}

func exact(m proto.Message, path string) string {
	_, v, ok := find(m, path)
	if !ok {
		return ""
	}
	if t, ok := v.Interface().(protoreflect.Message); ok {
		if at, ok := t.Interface().(*timestamppb.Timestamp); ok {
			return instant(at.AsTime())
		}
	}
	return v.String()
}

// short is a field in a cell.
func (p Printer) short(m proto.Message, path string) string {
	fd, v, ok := find(m, path)
	if !ok {
		return ""
	}
	if !fd.IsList() {
		return p.scalar(fd, v)
	}
	parts := p.elements(fd, v)
	if len(parts) > maxListed {
		return fmt.Sprintf("%s +%d", strings.Join(parts[:maxListed], ","), len(parts)-maxListed)
	}
	return strings.Join(parts, ",")
}

func (p Printer) elements(fd protoreflect.FieldDescriptor, v protoreflect.Value) []string {
	list := v.List()
	parts := make([]string, 0, list.Len())
	for i := range list.Len() {
		parts = append(parts, p.scalar(fd, list.Get(i)))
	}
	return parts
}

// scalar is one value. A map is written as key=value.
func (p Printer) scalar(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch {
	case fd.IsMap():
		return pairs(v.Map())
	case fd.Kind() == protoreflect.EnumKind:
		if e := fd.Enum().Values().ByNumber(v.Enum()); e != nil {
			return string(e.Name())
		}
		return fmt.Sprint(v.Enum())
	case fd.Kind() == protoreflect.MessageKind:
		return p.message(v.Message().Interface())
	default:
		return v.String()
	}
}

func (p Printer) message(m proto.Message) string {
	switch m := m.(type) {
	case *timestamppb.Timestamp:
		return Relative(m.AsTime(), p.Now)
	case *durationpb.Duration:
		return Duration(m.AsDuration())
	default:
		return encoded(m)
	}
}

func encoded(m proto.Message) string {
	b, err := Marshal(m)
	if err != nil {
		return ""
	}
	return string(b)
}

func pairs(m protoreflect.Map) string {
	var parts []string
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		parts = append(parts, k.String()+"="+v.String())
		return true
	})
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

func instant(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Text gives a field as the cell of a table has it, without times counted from now.
func Text(m proto.Message, path string) string { return Clean(Printer{}.short(m, path)) }
