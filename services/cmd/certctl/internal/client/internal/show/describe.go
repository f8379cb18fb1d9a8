package show

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// describe writes the fields that are set, each on a line, in the order of the API, with their values under each other. Text
// of several lines (PEM) follows its name.
func (p Printer) describe(m proto.Message) error {
	lines := p.lines("", m.ProtoReflect())
	width := 0
	for _, l := range lines {
		if name, _, ok := strings.Cut(l, "\t"); ok {
			width = max(width, len(name))
		}
	}
	for _, l := range lines {
		if name, text, ok := strings.Cut(l, "\t"); ok {
			l = fmt.Sprintf("%-*s  %s", width, name, text)
		}
		if _, err := fmt.Fprintln(p.Out, l); err != nil {
			return err
		}
	}
	return nil
}

// lines are the fields of a message; in those that have a value on the same line a tab is before it.
func (p Printer) lines(indent string, m protoreflect.Message) []string {
	var out []string
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if fd := fields.Get(i); m.Has(fd) {
			out = append(out, p.field(indent, fd, m.Get(fd))...)
		}
	}
	return out
}

func (p Printer) field(indent string, fd protoreflect.FieldDescriptor, v protoreflect.Value) []string {
	name := indent + string(fd.Name()) + ":"
	switch {
	case fd.IsMap():
		return []string{name + "\t" + Clean(pairs(v.Map()))}
	case fd.IsList() && nested(fd):
		out := []string{name}
		for i := range v.List().Len() {
			out = append(out, bullet(p.lines(indent+"    ", v.List().Get(i).Message()))...)
		}
		return out
	case fd.IsList():
		return []string{name + "\t" + Clean(strings.Join(p.elements(fd, v), ", "))}
	case nested(fd):
		return append([]string{name}, p.lines(indent+"  ", v.Message())...)
	default:
		return p.value(name, fd, v)
	}
}

// bullet marks the first line of an element.
func bullet(lines []string) []string {
	if len(lines) > 0 {
		text := strings.TrimLeft(lines[0], " ")
		lines[0] = strings.Repeat(" ", len(lines[0])-len(text)-2) + "- " + text
	}
	return lines
}

// nested tells a message whose fields are shown one by one.
func nested(fd protoreflect.FieldDescriptor) bool {
	return fd.Kind() == protoreflect.MessageKind && !fd.IsMap() && fd.Message().FullName().Parent() != "google.protobuf"
}

func (p Printer) value(name string, fd protoreflect.FieldDescriptor, v protoreflect.Value) []string {
	if fd.Kind() == protoreflect.StringKind && strings.Contains(v.String(), "\n") {
		out := []string{name}
		for line := range strings.Lines(v.String()) {
			out = append(out, Clean(strings.TrimRight(line, "\r\n")))
		}
		return out
	}
	if fd.Kind() == protoreflect.MessageKind {
		switch m := v.Message().Interface().(type) {
		case *timestamppb.Timestamp:
			return []string{fmt.Sprintf("%s\t%s (%s)", name, instant(m.AsTime()), Relative(m.AsTime(), p.Now))}
		case *structpb.Struct:
			return settings(name, m)
		default:
		}
	}
	return []string{name + "\t" + Clean(p.scalar(fd, v))}
}

// settings are the entries of a configuration.
func settings(name string, m *structpb.Struct) []string {
	indent := strings.Repeat(" ", len(name)-len(strings.TrimLeft(name, " "))+2)
	out := []string{name}
	for _, key := range slices.Sorted(maps.Keys(m.GetFields())) {
		text := encoded(m.GetFields()[key])
		if s, ok := m.GetFields()[key].GetKind().(*structpb.Value_StringValue); ok {
			text = s.StringValue
		}
		out = append(out, indent+Clean(key)+":\t"+Clean(text))
	}
	return out
}
