package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/certctl/certctl/gateway/internal/problem"
	"github.com/certctl/certctl/gateway/internal/route"
	"github.com/certctl/certctl/pkg/errs"
)

// maxDepth bounds how deep a body is nested.
const maxDepth = 64

// readBody reads what the client sent, up to limit bytes.
func readBody(r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, problem.BodyTooLarge(limit)
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, errs.New(errs.Invalid, "BODY_NOT_READ", "the body did not arrive").Wrap(err)
	}
	if int64(len(b)) > limit {
		return nil, problem.BodyTooLarge(limit)
	}
	return b, nil
}

// checkMediaType takes JSON, what has no type, and what curl calls a form unless told otherwise.
func checkMediaType(h http.Header) error {
	value := h.Get("Content-Type")
	if value == "" {
		return nil
	}
	media, _, err := mime.ParseMediaType(value)
	if err == nil && (media == "application/json" || media == "application/x-www-form-urlencoded") {
		return nil
	}
	return problem.MediaType(value)
}

// checkBody checks JSON against the message that it fills and gives the fields that it has. All that is wrong is told
// at once, by the names that the fields have in the body.
func checkBody(rpc *route.RPC, body []byte) (fields []string, err error) {
	if len(bytes.TrimSpace(body)) == 0 {
		if rpc.Body != "" && rpc.Body != "*" { // grpc-gateway would make an empty resource of it
			return nil, errs.Field("", "there is no body: want the %s as JSON", rpc.Body)
		}
		return nil, nil
	}
	if rpc.Body == "" {
		return nil, errs.New(errs.Invalid, "BODY_NOT_ALLOWED", "this request has no body")
	}
	if !utf8.Valid(body) {
		return nil, errs.Field("", "the body is not UTF-8")
	}
	var bad errs.Violations
	value, err := parse(body, &bad)
	if err != nil {
		return nil, errs.Field("", "the body is no JSON: %v", err)
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, errs.Field("", "the body is %s: want an object", kindOf(value))
	}
	w := walker{bad: &bad}
	md := rpc.Input
	if rpc.Body != "*" {
		md = md.Fields().ByName(protoreflect.Name(rpc.Body)).Message()
	}
	w.message("", md, object)
	return slices.Sorted(maps.Keys(object)), bad.Err()
}

// parse reads one JSON value, with nothing after it. A name that an object has twice goes to bad.
func parse(body []byte, bad *errs.Violations) (any, error) {
	p := parser{dec: json.NewDecoder(bytes.NewReader(body)), bad: bad}
	p.dec.UseNumber()
	value, err := p.value("", 0)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	if _, err := p.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something after its end")
	}
	return value, nil
}

type parser struct {
	dec *json.Decoder
	bad *errs.Violations
}

func (p parser) value(path string, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("it is nested deeper than %d levels", maxDepth)
	}
	token, err := p.dec.Token()
	if err != nil {
		return nil, err //nolint:wrapcheck // the text goes to the client as it is
	}
	switch token {
	case json.Delim('{'):
		return p.object(path, depth)
	case json.Delim('['):
		return p.array(path, depth)
	default:
		if text, ok := token.(string); ok {
			p.text(path, text)
		}
		return token, nil
	}
}

func (p parser) text(path, text string) {
	if problem := checkString(text); problem != "" {
		p.bad.Add(path, "%s", problem)
	}
}

func (p parser) object(path string, depth int) (any, error) {
	object := make(map[string]any)
	for p.dec.More() {
		token, err := p.dec.Token()
		if err != nil {
			return nil, err //nolint:wrapcheck // the text goes to the client as it is
		}
		name, _ := token.(string)
		at := join(path, name)
		if _, twice := object[name]; twice {
			p.bad.Add(at, "is there twice")
		}
		p.text(path, name)
		if object[name], err = p.value(at, depth+1); err != nil {
			return nil, err
		}
	}
	_, err := p.dec.Token()
	return object, err //nolint:wrapcheck // the text goes to the client as it is
}

func (p parser) array(path string, depth int) (any, error) {
	array := []any{}
	for p.dec.More() {
		v, err := p.value(at(path, len(array)), depth+1)
		if err != nil {
			return nil, err
		}
		array = append(array, v)
	}
	_, err := p.dec.Token()
	return array, err //nolint:wrapcheck // the text goes to the client as it is
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func at(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// walker compares a JSON value with the descriptor of a message.
type walker struct{ bad *errs.Violations }

func (w walker) message(path string, md protoreflect.MessageDescriptor, object map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(object)) {
		fd := md.Fields().ByName(protoreflect.Name(name))
		if fd == nil {
			w.unknown(join(path, name), md, name)
			continue
		}
		w.field(join(path, name), fd, object[name])
	}
}

// unknown tells of a name that is no field, and of the field that may be meant.
func (w walker) unknown(path string, md protoreflect.MessageDescriptor, name string) {
	if fd := md.Fields().ByJSONName(name); fd != nil {
		w.bad.Add(path, "is not a field; it is called %s", fd.Name())
		return
	}
	w.bad.Add(path, "is not a field")
}

func (w walker) field(path string, fd protoreflect.FieldDescriptor, v any) {
	if v == nil && !isValue(fd) {
		return // null is "not set"
	}
	switch {
	case fd.IsMap():
		w.entries(path, fd, v)
	case fd.IsList():
		w.list(path, fd, v)
	default:
		w.single(path, fd, v)
	}
}

func (w walker) entries(path string, fd protoreflect.FieldDescriptor, v any) {
	object, ok := v.(map[string]any)
	if !ok {
		w.wrong(path, v, "an object")
		return
	}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		w.element(join(path, key), fd.MapValue(), object[key])
	}
}

func (w walker) list(path string, fd protoreflect.FieldDescriptor, v any) {
	array, ok := v.([]any)
	if !ok {
		w.wrong(path, v, "an array")
		return
	}
	for i, e := range array {
		w.element(at(path, i), fd, e)
	}
}

// element is a value in a list or a map, where null is not allowed.
func (w walker) element(path string, fd protoreflect.FieldDescriptor, v any) {
	if v == nil && !isValue(fd) {
		w.bad.Add(path, "is null")
		return
	}
	w.single(path, fd, v)
}

func (w walker) single(path string, fd protoreflect.FieldDescriptor, v any) {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		if _, ok := v.(bool); !ok {
			w.wrong(path, v, "true or false")
		}
	case protoreflect.StringKind, protoreflect.BytesKind:
		if _, ok := v.(string); !ok {
			w.wrong(path, v, "a string")
		}
	case protoreflect.EnumKind:
		w.enum(path, fd.Enum(), v)
	case protoreflect.MessageKind, protoreflect.GroupKind:
		w.nested(path, fd.Message(), v)
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		w.number(path, v)
	default:
		w.integer(path, fd, v)
	}
}

func (w walker) number(path string, v any) {
	n, ok := v.(json.Number)
	if !ok {
		w.wrong(path, v, "a number")
	} else if _, err := n.Float64(); err != nil {
		w.bad.Add(path, "is %s: that is too large for a number", n)
	}
}

func (w walker) enum(path string, ed protoreflect.EnumDescriptor, v any) {
	name, ok := v.(string)
	if !ok {
		w.wrong(path, v, "a name")
		return
	}
	// What a GET has answered for "not set" may be sent back.
	if ev := ed.Values().ByName(protoreflect.Name(name)); ev != nil && ev.Number() == 0 {
		return
	}
	if problem := checkEnum(ed, name); problem != "" {
		w.bad.Add(path, "%s", problem)
	}
}

// integer takes numbers, and strings of digits as JSON has for 64 bits.
func (w walker) integer(path string, fd protoreflect.FieldDescriptor, v any) {
	var text string
	switch n := v.(type) {
	case json.Number:
		text = n.String()
	case string:
		text = n
	default:
		w.wrong(path, v, "an integer")
		return
	}
	if problem := checkText(fd, text); problem != "" {
		w.bad.Add(path, "%s", problem)
	}
}

func (w walker) nested(path string, md protoreflect.MessageDescriptor, v any) {
	switch md.FullName() {
	case timestampName, durationName, maskName:
		text, ok := v.(string)
		if !ok {
			w.wrong(path, v, "a string")
		} else if problem := checkMessageText(md.FullName(), text); problem != "" {
			w.bad.Add(path, "%s", problem)
		}
	case "google.protobuf.Value":
	case "google.protobuf.ListValue":
		if _, ok := v.([]any); !ok {
			w.wrong(path, v, "an array")
		}
	default:
		object, ok := v.(map[string]any)
		if !ok {
			w.wrong(path, v, "an object")
		} else if !strings.HasPrefix(string(md.FullName()), "google.protobuf.") {
			w.message(path, md, object)
		}
	}
}

func (w walker) wrong(path string, v any, want string) {
	w.bad.Add(path, "is %s: want %s", kindOf(v), want)
}

// isValue tells whether a field is any JSON, null included.
func isValue(fd protoreflect.FieldDescriptor) bool {
	return fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Value"
}

func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "true or false"
	case string:
		return "a string"
	case json.Number:
		return "a number"
	case []any:
		return "an array"
	default:
		return "an object"
	}
}

// updateMask gives the mask of a PATCH: the fields in the body that a client may write. The id is in the path, and what
// only the server writes may be sent back as a GET has answered it.
func updateMask(rpc *route.RPC, fields []string) string {
	md := rpc.Input.Fields().ByName(protoreflect.Name(rpc.Body)).Message()
	var paths []string
	for _, name := range fields {
		if fd := md.Fields().ByName(protoreflect.Name(name)); fd != nil && name != "id" && !outputOnly(fd) {
			paths = append(paths, name)
		}
	}
	return strings.Join(paths, ",")
}

func outputOnly(fd protoreflect.FieldDescriptor) bool {
	behaviors, _ := proto.GetExtension(fd.Options(), annotations.E_FieldBehavior).([]annotations.FieldBehavior)
	return slices.Contains(behaviors, annotations.FieldBehavior_OUTPUT_ONLY)
}
