// Package field makes command-line flags of the fields of API messages, so that a flag takes exactly what its field takes.
package field

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Field is a field that has a flag.
type Field struct {
	// Path in the message, such as "endpoint.address".
	Path string
	// Flag is the flag's name without dashes; empty: the path with hyphens.
	Flag string
	Help string
	// Complete proposes values. Enums and booleans need none.
	Complete cobra.CompletionFunc
}

// Set is the flags of one command for one message.
type Set struct{ values []*value }

// Register gives the command a flag for each field of messages like md. A path that md does not have is a mistake of the
// program and panics.
func Register(cmd *cobra.Command, md protoreflect.MessageDescriptor, now func() time.Time, fields ...Field) *Set {
	s := &Set{}
	for _, f := range fields {
		v := newValue(md, now, f)
		flag := cmd.Flags().VarPF(v, v.flag, "", f.Help)
		if v.leaf().Kind() == protoreflect.BoolKind {
			flag.NoOptDefVal = "true"
		}
		if complete := v.complete(f); complete != nil {
			if err := cmd.RegisterFlagCompletionFunc(v.flag, complete); err != nil {
				panic(err)
			}
		}
		s.values = append(s.values, v)
	}
	return s
}

// Apply sets the fields whose flags were given, and answers their paths.
func (s *Set) Apply(m proto.Message) (paths []string) {
	for _, v := range s.values {
		if v.given {
			v.apply(m.ProtoReflect())
			paths = append(paths, v.path)
		}
	}
	return paths
}

// value implements pflag.Value for one field. Texts are parsed when they are set, so a wrong one is the flag's error.
type value struct {
	path, flag string
	chain      []protoreflect.FieldDescriptor
	now        func() time.Time

	given   bool
	raw     []string
	scalars []protoreflect.Value
	pairs   map[string]string
}

func newValue(md protoreflect.MessageDescriptor, now func() time.Time, f Field) *value {
	v := &value{path: f.Path, flag: f.Flag, now: now}
	if v.flag == "" {
		v.flag = strings.NewReplacer("_", "-", ".", "-").Replace(f.Path)
	}
	for name := range strings.SplitSeq(f.Path, ".") {
		fd := md.Fields().ByName(protoreflect.Name(name))
		if fd == nil {
			panic(fmt.Sprintf("%s has no field %s", md.FullName(), f.Path))
		}
		v.chain = append(v.chain, fd)
		md = fd.Message()
	}
	return v
}

func (v *value) leaf() protoreflect.FieldDescriptor { return v.chain[len(v.chain)-1] }

// String implements pflag.Value.
func (v *value) String() string { return strings.Join(v.raw, ",") }

// Type implements pflag.Value.
func (v *value) Type() string {
	fd := v.leaf()
	switch {
	case fd.IsMap():
		return "key=value"
	case fd.IsList():
		return kindName(fd) + "s"
	default:
		return kindName(fd)
	}
}

// Set implements pflag.Value. A list or a map takes several texts, in one flag with commas or in several; the empty text
// empties it.
func (v *value) Set(text string) error {
	fd := v.leaf()
	v.given = true
	switch {
	case fd.IsMap():
		return v.setPairs(text)
	case fd.IsList():
		return v.setList(text)
	}
	parsed, err := parse(fd, text, v.now())
	if err != nil {
		return err
	}
	v.raw, v.scalars = []string{text}, []protoreflect.Value{parsed}
	return nil
}

func (v *value) setList(text string) error {
	if text == "" {
		v.raw, v.scalars = nil, nil
		return nil
	}
	for part := range strings.SplitSeq(text, ",") {
		parsed, err := parse(v.leaf(), strings.TrimSpace(part), v.now())
		if err != nil {
			return err
		}
		v.raw, v.scalars = append(v.raw, part), append(v.scalars, parsed)
	}
	return nil
}

func (v *value) setPairs(text string) error {
	if v.pairs == nil || text == "" {
		v.pairs = make(map[string]string)
	}
	if text == "" {
		return nil
	}
	for part := range strings.SplitSeq(text, ",") {
		key, val, ok := strings.Cut(part, "=")
		if !ok || key == "" {
			return errors.New("write key=value")
		}
		v.pairs[key] = val
		v.raw = append(v.raw, part)
	}
	return nil
}

func (v *value) apply(m protoreflect.Message) {
	for _, fd := range v.chain[:len(v.chain)-1] {
		m = m.Mutable(fd).Message()
	}
	fd := v.leaf()
	switch {
	case fd.IsMap():
		m.Clear(fd)
		entries := m.Mutable(fd).Map()
		for key, val := range v.pairs {
			entries.Set(protoreflect.ValueOfString(key).MapKey(), protoreflect.ValueOfString(val))
		}
	case fd.IsList():
		m.Clear(fd)
		list := m.Mutable(fd).List()
		for _, e := range v.scalars {
			list.Append(e)
		}
	case !v.scalars[0].IsValid():
		m.Clear(fd)
	default:
		m.Set(fd, v.scalars[0])
	}
}

// complete proposes the values of an enum and of a boolean, or asks the field's own function. In a list it completes the
// part after the last comma.
func (v *value) complete(f Field) cobra.CompletionFunc {
	switch {
	case f.Complete != nil:
		return f.Complete
	case v.leaf().Kind() == protoreflect.EnumKind:
		return func(_ *cobra.Command, _ []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			done := ""
			if i := strings.LastIndexByte(toComplete, ','); i >= 0 {
				done = toComplete[:i+1]
			}
			var proposals []cobra.Completion
			for _, name := range enumNames(v.leaf().Enum()) {
				if strings.HasPrefix(done+name, toComplete) {
					proposals = append(proposals, done+name)
				}
			}
			return proposals, cobra.ShellCompDirectiveNoFileComp
		}
	default:
		return cobra.NoFileCompletions
	}
}
