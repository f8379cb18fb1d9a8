package field

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	timestampName = "google.protobuf.Timestamp"
	durationName  = "google.protobuf.Duration"
)

// kindName says what a flag takes, for its help.
func kindName(fd protoreflect.FieldDescriptor) string {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return "bool"
	case protoreflect.EnumKind:
		return "name"
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		return "int"
	case protoreflect.DoubleKind:
		return "number"
	case protoreflect.MessageKind:
		return strings.ToLower(string(fd.Message().Name()))
	default:
		return "string"
	}
}

// parse makes a value of the field's type. An empty text for a time or a duration gives no value: the field is cleared.
func parse(fd protoreflect.FieldDescriptor, text string, now time.Time) (protoreflect.Value, error) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text), nil
	case protoreflect.BoolKind:
		v, err := strconv.ParseBool(text)
		return protoreflect.ValueOfBool(v), allowed(err, "true or false")
	case protoreflect.Int32Kind:
		v, err := strconv.ParseInt(text, 10, 32)
		return protoreflect.ValueOfInt32(int32(v)), allowed(err, "a whole number")
	case protoreflect.Int64Kind:
		v, err := strconv.ParseInt(text, 10, 64)
		return protoreflect.ValueOfInt64(v), allowed(err, "a whole number")
	case protoreflect.DoubleKind:
		v, err := strconv.ParseFloat(text, 64)
		return protoreflect.ValueOfFloat64(v), allowed(err, "a number")
	case protoreflect.EnumKind:
		return parseEnum(fd.Enum(), text)
	case protoreflect.MessageKind:
		return parseMessage(fd.Message(), text, now)
	default:
		return protoreflect.Value{}, fmt.Errorf("fields of kind %s cannot be set by a flag", fd.Kind())
	}
}

func allowed(err error, form string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("write %s", form)
}

// enumNames are the values that may be asked for: all but the zero.
func enumNames(ed protoreflect.EnumDescriptor) []string {
	var names []string
	for i := range ed.Values().Len() {
		if v := ed.Values().Get(i); v.Number() != 0 {
			names = append(names, string(v.Name()))
		}
	}
	return names
}

// parseEnum takes names in any case, and with hyphens.
func parseEnum(ed protoreflect.EnumDescriptor, text string) (protoreflect.Value, error) {
	name := protoreflect.Name(strings.ToUpper(strings.ReplaceAll(text, "-", "_")))
	v := ed.Values().ByName(name)
	if v == nil || v.Number() == 0 {
		return protoreflect.Value{}, fmt.Errorf("write one of %s", strings.Join(enumNames(ed), ", "))
	}
	return protoreflect.ValueOfEnum(v.Number()), nil
}

func parseMessage(md protoreflect.MessageDescriptor, text string, now time.Time) (protoreflect.Value, error) {
	if text == "" {
		return protoreflect.Value{}, nil
	}
	switch md.FullName() {
	case timestampName:
		t, err := Time(text, now)
		return protoreflect.ValueOfMessage(timestamppb.New(t).ProtoReflect()), err
	case durationName:
		d, err := Duration(text)
		return protoreflect.ValueOfMessage(durationpb.New(d).ProtoReflect()), err
	default:
		return protoreflect.Value{}, fmt.Errorf("%s cannot be set by a flag", md.FullName())
	}
}

// Time reads a time: RFC 3339, a day in UTC, or a distance from now with its sign.
func Time(text string, now time.Time) (time.Time, error) {
	if strings.HasPrefix(text, "+") || strings.HasPrefix(text, "-") {
		d, err := Duration(text[1:])
		if text[0] == '-' {
			d = -d
		}
		return now.Add(d), err
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errors.New("write a time, such as 2026-01-31T12:00:00Z, 2026-01-31, +30d or -1h")
}

// Duration reads a duration as Go writes it, with days before: "90d", "1d12h", "1h30m".
func Duration(text string) (time.Duration, error) {
	problem := errors.New("write a duration, such as 90d, 1d12h, 1h30m or 45s")
	rest, total := text, time.Duration(0)
	if days, after, ok := strings.Cut(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, problem
		}
		rest, total = after, time.Duration(n)*24*time.Hour
		if rest == "" {
			return total, nil
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 {
		return 0, problem
	}
	return total + d, nil
}
