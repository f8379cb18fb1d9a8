package rest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/gateway/internal/route"
	"github.com/certctl/certctl/pkg/errs"
)

// maskField is the field of an update that names what is changed.
const maskField = "update_mask"

// query checks the parameters of a request against the fields of its message, and gives them as grpc-gateway wants
// them. A parameter that is no field, or is filled by the path or the body, is refused: a filter with a slip of the pen
// must not answer everything.
func query(rpc *route.RPC, raw string) (url.Values, error) {
	in, err := url.ParseQuery(raw)
	if err != nil {
		return nil, errs.Field("", "the query is not valid: %v", err)
	}
	var bad errs.Violations
	out := make(url.Values, len(in))
	for _, name := range slices.Sorted(maps.Keys(in)) {
		if problem := checkString(name); problem != "" {
			bad.Add("", "the name of a parameter %s", problem)
			continue
		}
		key, fd := parameter(rpc, name)
		if fd == nil {
			bad.Add(name, "is not a parameter here")
			continue
		}
		values := in[name]
		if len(values) > 1 && !fd.IsList() {
			bad.Add(name, "is there more than once")
			continue
		}
		for _, v := range values {
			if problem := checkText(elementOf(fd), v); problem != "" {
				bad.Add(name, "%s", problem)
			}
		}
		out[key] = values
	}
	return out, bad.Err()
}

// elementOf gives the field that describes one value: of a map its values.
func elementOf(fd protoreflect.FieldDescriptor) protoreflect.FieldDescriptor {
	if fd.IsMap() {
		return fd.MapValue()
	}
	return fd
}

// parameter finds the field that a parameter fills, and how grpc-gateway calls it. Maps are "field.key=value".
func parameter(rpc *route.RPC, name string) (key string, fd protoreflect.FieldDescriptor) {
	if rpc.Body == "*" {
		return "", nil
	}
	first, mapKey, dotted := strings.Cut(name, ".")
	fd = rpc.Input.Fields().ByName(protoreflect.Name(first))
	if fd == nil || first == rpc.Body || slices.Contains(rpc.PathFields, first) || fd.IsMap() != dotted {
		return "", nil
	}
	if dotted {
		if mapKey == "" || strings.ContainsAny(mapKey, "[]") {
			return "", nil
		}
		return first + "[" + mapKey + "]", fd
	}
	if fd.Message() != nil && !isText(fd.Message().FullName()) {
		return "", nil
	}
	return first, fd
}

const (
	timestampName = "google.protobuf.Timestamp"
	durationName  = "google.protobuf.Duration"
	maskName      = "google.protobuf.FieldMask"
)

// isText tells whether a message is one text in JSON.
func isText(name protoreflect.FullName) bool {
	return name == timestampName || name == durationName || name == maskName
}

// checkText tells what is wrong with a value in text; "" is nothing.
func checkText(fd protoreflect.FieldDescriptor, v string) string {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		if v != "true" && v != "false" {
			return fmt.Sprintf("is %q: want true or false", v)
		}
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return checkInteger(v, 32)
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return checkInteger(v, 64)
	case protoreflect.EnumKind:
		return checkEnum(fd.Enum(), v)
	case protoreflect.MessageKind:
		return checkMessageText(fd.Message().FullName(), v)
	default:
		return checkString(v)
	}
	return ""
}

// checkString refuses what no service can send on or store: protobuf wants UTF-8, and Postgres no NUL.
func checkString(v string) string {
	switch {
	case !utf8.ValidString(v):
		return "is not UTF-8"
	case strings.ContainsRune(v, 0):
		return "holds a NUL character"
	default:
		return ""
	}
}

func checkInteger(v string, bits int) string {
	if _, err := strconv.ParseInt(v, 10, bits); err != nil {
		return fmt.Sprintf("is %q: want an integer of %d bits", v, bits)
	}
	return ""
}

// checkEnum takes names only, and not the one that stands for "not set".
func checkEnum(ed protoreflect.EnumDescriptor, v string) string {
	if ev := ed.Values().ByName(protoreflect.Name(v)); ev != nil && ev.Number() != 0 {
		return ""
	}
	var names []string
	for i := range ed.Values().Len() {
		if ev := ed.Values().Get(i); ev.Number() != 0 {
			names = append(names, string(ev.Name()))
		}
	}
	return fmt.Sprintf("is %q: want %s", v, strings.Join(names, ", "))
}

func checkMessageText(name protoreflect.FullName, v string) string {
	switch name {
	case timestampName:
		if !parses(v, &timestamppb.Timestamp{}) {
			return fmt.Sprintf("is %q: want a time as 2006-01-02T15:04:05Z (RFC 3339)", v)
		}
	case durationName:
		if !parses(v, &durationpb.Duration{}) {
			return fmt.Sprintf("is %q: want a duration such as 3600s", v)
		}
	default:
		return checkString(v)
	}
	return ""
}

// parses tells whether a text is a message in the JSON of protobuf, by which grpc-gateway will read it.
func parses(v string, m proto.Message) bool {
	quoted, err := json.Marshal(v)
	return err == nil && protojson.Unmarshal(quoted, m) == nil
}

// checkPath checks what fills the variables of a path.
func checkPath(rpc *route.RPC, pattern, path string) error {
	var bad errs.Violations
	segments := strings.Split(path, "/")
	for i, s := range strings.Split(pattern, "/") {
		name, ok := strings.CutPrefix(s, "{")
		if !ok || i >= len(segments) {
			continue
		}
		name = strings.TrimSuffix(name, "}")
		if fd := fieldAt(rpc.Input, name); fd != nil {
			if problem := checkText(fd, segments[i]); problem != "" {
				bad.Add(strings.TrimPrefix(name, rpc.Body+"."), "%s", problem)
			}
		}
	}
	return bad.Err()
}

// fieldAt finds a field by its path, such as "certificate.id".
func fieldAt(md protoreflect.MessageDescriptor, path string) protoreflect.FieldDescriptor {
	first, rest, nested := strings.Cut(path, ".")
	fd := md.Fields().ByName(protoreflect.Name(first))
	if fd == nil || !nested {
		return fd
	}
	if fd.Message() == nil {
		return nil
	}
	return fieldAt(fd.Message(), rest)
}
