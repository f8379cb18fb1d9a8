package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// Setting describes one setting, for documentation, flags and schemas.
type Setting struct {
	Name    string // the environment variable
	Flag    string // without dashes; empty when there is none
	Default string
	Help    string
	Form    string // the type in words, such as "a duration, such as 30s, 5m or 1h"
	Check   string // what else must hold, in words; may be empty
	Secret  bool   // may also be given by the variable with _FILE after it
}

type field struct {
	Setting
	index  []int
	typ    reflect.Type
	checks []check
}

// Settings returns the settings of structs (or pointers to them) in the order of their fields. It fails on tags that are
// not right, which is a mistake of the program.
func Settings(structs ...any) ([]Setting, error) {
	var out []Setting
	for _, s := range structs {
		t := reflect.TypeOf(s)
		if t != nil && t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		fields, err := fieldsOf(t)
		if err != nil {
			return nil, err
		}
		out = append(out, settingsOf(fields)...)
	}
	return out, nil
}

func settingsOf(fields []field) []Setting {
	out := make([]Setting, 0, len(fields))
	for _, f := range fields {
		out = append(out, f.Setting)
	}
	return out
}

func structOf(cfg any) (reflect.Value, []field, error) {
	v := reflect.ValueOf(cfg)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return reflect.Value{}, nil, fmt.Errorf("config: a pointer to a struct is needed, got %T", cfg)
	}
	fields, err := fieldsOf(v.Elem().Type())
	return v.Elem(), fields, err
}

func fieldsOf(t reflect.Type) ([]field, error) {
	if t == nil || t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("config: a struct is needed, got %v", t)
	}
	fields, err := walk(t, "", nil)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool)
	for _, f := range fields {
		for _, name := range f.names() {
			if seen[name] {
				return nil, fmt.Errorf("config: %s is there twice", name)
			}
			seen[name] = true
		}
	}
	return fields, nil
}

// names are the variables, and the flag, that set the field.
func (s Setting) names() []string {
	names := []string{s.Name}
	if s.Secret {
		names = append(names, s.Name+fileSuffix)
	}
	if s.Flag != "" {
		names = append(names, "--"+s.Flag)
	}
	return names
}

func walk(t reflect.Type, prefix string, at []int) ([]field, error) {
	var out []field
	for i := range t.NumField() {
		sf := t.Field(i)
		index := append(append([]int(nil), at...), i)
		switch {
		case !sf.IsExported():
			continue
		case isGroup(sf):
			inner, err := walk(sf.Type, prefix+sf.Tag.Get("envPrefix"), index)
			if err != nil {
				return nil, err
			}
			out = append(out, inner...)
		case sf.Tag.Get("env") != "":
			f, err := newField(sf, prefix, index)
			if err != nil {
				return nil, fmt.Errorf("config: field %s of %s: %w", sf.Name, t, err)
			}
			out = append(out, f)
		}
	}
	return out, nil
}

// isGroup tells a struct that holds settings from one that is a value.
func isGroup(sf reflect.StructField) bool {
	return sf.Type.Kind() == reflect.Struct && sf.Tag.Get("env") == "" && !isText(sf.Type)
}

func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func newField(sf reflect.StructField, prefix string, index []int) (field, error) {
	checks, err := parseChecks(sf.Tag.Get("check"))
	if err != nil {
		return field{}, err
	}
	f := field{
		Setting: Setting{
			Name:    prefix + sf.Tag.Get("env"),
			Flag:    sf.Tag.Get("flag"),
			Default: sf.Tag.Get("envDefault"),
			Help:    sf.Tag.Get("help"),
			Form:    formOf(sf.Type),
			Check:   inWords(checks),
			Secret:  sf.Type == secretType,
		},
		index:  index,
		typ:    sf.Type,
		checks: checks,
	}
	switch {
	case f.Secret && f.Flag != "":
		return field{}, errors.New("a secret has no flag")
	case f.Secret && f.Default != "":
		return field{}, errors.New("a secret has no default")
	case strings.ContainsAny(f.Name, ", "):
		return field{}, errors.New("the options of caarlos0/env are not used here: write a check")
	}
	return f, f.checkDefault()
}

// checkDefault finds defaults that the program itself would refuse.
func (f field) checkDefault() error {
	if f.Default == "" {
		return nil
	}
	v, err := parse(f, f.Default)
	if err != nil {
		return fmt.Errorf("default: %w", err)
	}
	if err := f.check(v); err != nil {
		return fmt.Errorf("default: %w", err)
	}
	return nil
}

// formOf says how a value of the type is written. It is empty for types that parse themselves.
func formOf(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "a duration, such as 30s, 5m or 1h"
	case t == secretType || isText(t):
		return ""
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number, not negative"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "a list with commas"
	case reflect.Map:
		return "a list of name=value with commas"
	default:
		return ""
	}
}
