// Package config reads a program's settings from the environment and the command line into one struct, strictly: a
// value that does not parse or does not pass its check, and a variable that is a misspelling of a known one, stop the
// start with an error that names the variable and the allowed form. The same struct makes the documentation.
//
//	type Settings struct {
//		Listen   string           `env:"CERTCTL_LISTEN_ADDR" envDefault:"127.0.0.1:8443" flag:"listen" help:"Where to listen." check:"address"`
//		Interval time.Duration    `env:"CERTCTL_INTERVAL" envDefault:"1h" help:"How often." check:"duration>=1s"`
//		Quotas   map[string]int   `env:"CERTCTL_QUOTAS" help:"Connections per service, as inventory=16,audit=4."`
//		Key      secretbox.Secret `env:"CERTCTL_KEY" help:"The key."`
//		TLS      TLSSettings      // nested structs are walked; envPrefix:"…" puts a prefix before their names
//	}
//
// An empty variable counts as not set. A secret may also come from the file that its name with _FILE after it names;
// secrets have no flag, because other users of a host can see command lines. A struct with a method Validate() error is
// asked after all its values are right. Parsing itself is done by caarlos0/env.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"

	"github.com/caarlos0/env/v11"

	"github.com/certctl/certctl/pkg/secretbox"
)

// maxSecretFile bounds what is read of a secret's file.
const maxSecretFile = 64 << 10

// fileSuffix makes the name of the variable that names a secret's file.
const fileSuffix = "_FILE"

// Options are what Load takes besides the environment.
type Options struct {
	// Flags are the values of flags that the command line has, by name without dashes. They win over variables.
	Flags map[string]string
	// Also are structs of other programs which may share the environment: their variables are known too.
	Also []any
}

// Load fills the struct that cfg points to from environ (as os.Environ gives it). All problems come in one error; see
// UnknownVariablesError. The warnings are sentences about CERTCTL_ variables that nobody knows and that are not like any
// known one.
func Load(cfg any, environ []string, opts Options) (warnings []string, err error) {
	root, fields, err := structOf(cfg)
	if err != nil {
		return nil, err
	}
	others, err := Settings(opts.Also...)
	if err != nil {
		return nil, err
	}
	src := source{env: toMap(environ), flags: opts.Flags}
	var problems []error
	for _, f := range fields {
		problems = append(problems, src.fill(root, f))
	}
	warnings, unknown := src.unknown(append(settingsOf(fields), others...))
	problems = append(problems, unknown, unknownFlags(fields, opts.Flags))
	if err := errors.Join(problems...); err != nil {
		return warnings, err
	}
	return warnings, validate(root)
}

type source struct {
	env   map[string]string
	flags map[string]string
}

func toMap(environ []string) map[string]string {
	m := make(map[string]string, len(environ))
	for _, kv := range environ {
		if name, value, ok := strings.Cut(kv, "="); ok {
			m[name] = value
		}
	}
	return m
}

// fill sets one field, and checks it.
func (s source) fill(root reflect.Value, f field) error {
	value, from, err := s.lookup(f.Setting)
	if err != nil {
		return err
	}
	target := root.FieldByIndex(f.index)
	if value != "" {
		parsed, err := parse(f, value)
		if err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
		target.Set(parsed)
	}
	if err := f.check(target); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return nil
}

// lookup finds the text of a setting, and how to name the place it came from.
func (s source) lookup(st Setting) (value, from string, err error) {
	if v, ok := s.flags[st.Flag]; ok && st.Flag != "" {
		return v, fmt.Sprintf("--%s (%s)", st.Flag, st.Name), nil
	}
	value = s.env[st.Name]
	if st.Secret {
		if value, err = s.secret(st.Name, value); err != nil {
			return "", "", err
		}
	}
	if value == "" {
		value = st.Default
	}
	return value, st.Name, nil
}

// secret takes the value from the variable or from the file, whichever is set.
func (s source) secret(name, value string) (string, error) {
	path := s.env[name+fileSuffix]
	switch {
	case path == "":
		return value, nil
	case value != "":
		return "", fmt.Errorf("%s and %s are both set: unset one of them", name, name+fileSuffix)
	}
	value, err := readSecret(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name+fileSuffix, err)
	}
	return value, nil
}

// readSecret returns the file without one line break at its end, which editors and kubectl put there.
func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxSecretFile {
		return "", fmt.Errorf("%s is larger than %d bytes", path, maxSecretFile)
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if text == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return text, nil
}

// parse gives the text to caarlos0/env in a struct of one field, so that an error belongs to this variable for sure.
func parse(f field, text string) (reflect.Value, error) {
	one := reflect.New(reflect.StructOf([]reflect.StructField{{
		Name: "Value",
		Type: f.typ,
		Tag:  reflect.StructTag(`env:"VALUE" envSeparator:"," envKeyValSeparator:"="`),
	}}))
	err := env.ParseWithOptions(one.Interface(), env.Options{Environment: map[string]string{"VALUE": text}})
	if err != nil {
		return reflect.Value{}, f.refuse(text, err)
	}
	v := one.Elem().Field(0)
	if list, ok := v.Interface().([]string); ok {
		for i := range list {
			list[i] = strings.TrimSpace(list[i])
		}
	}
	return v, nil
}

// refuse explains what the setting's type allows.
func (f field) refuse(text string, err error) error {
	if f.Secret {
		return errors.New("the value cannot be used")
	}
	if form := formOf(f.typ); form != "" {
		return fmt.Errorf("%q is not allowed; write %s", text, form)
	}
	var pe env.ParseError
	if errors.As(err, &pe) && pe.Err != nil {
		err = pe.Err
	}
	return fmt.Errorf("%q is not allowed: %w", text, err)
}

func validate(root reflect.Value) error {
	var problems []error
	for i := range root.NumField() {
		if f := root.Type().Field(i); f.IsExported() && isGroup(f) {
			problems = append(problems, validate(root.Field(i)))
		}
	}
	if v, ok := root.Addr().Interface().(interface{ Validate() error }); ok {
		problems = append(problems, v.Validate())
	}
	return errors.Join(problems...)
}

// unknownFlags is about mistakes of the program: a flag that was registered and has no field.
func unknownFlags(fields []field, flags map[string]string) error {
	known := make(map[string]bool, len(fields))
	for _, f := range fields {
		known[f.Flag] = true
	}
	for name := range flags {
		if name == "" || !known[name] {
			return fmt.Errorf("--%s: no such setting", name)
		}
	}
	return nil
}

var secretType = reflect.TypeFor[secretbox.Secret]()
