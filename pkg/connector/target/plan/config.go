package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/certctl/certctl/pkg/errs"
)

// maxConfig bounds a target's configuration, in bytes.
const maxConfig = 64 << 10

// Decode reads a configuration into the struct that dst points to. Every key must be the exact JSON name of a field:
// encoding/json alone would take "KEY_PATH" for key_path and name only the first unknown one.
func Decode(config json.RawMessage, dst any) error {
	if len(config) > maxConfig {
		return errs.Field("config", "is longer than %d bytes", maxConfig)
	}
	var raw map[string]json.RawMessage
	err := json.Unmarshal(config, &raw)
	if err != nil || raw == nil {
		return errs.Field("config", "must be a JSON object")
	}
	err = unknownFields(raw, names(dst))
	if err != nil {
		return err
	}
	err = json.NewDecoder(bytes.NewReader(config)).Decode(dst)
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return errs.Field("config."+wrong.Field, "must be %s, not %s", kind(wrong.Type), wrong.Value)
	}
	if err != nil {
		return errs.Field("config", "cannot be read")
	}
	return nil
}

// unknownFields makes a violation of every key that is not known.
func unknownFields(raw map[string]json.RawMessage, known []string) error {
	var v errs.Violations
	for key := range raw {
		if !slices.Contains(known, key) {
			v.Add("config."+key, "unknown field; known are %s", strings.Join(known, ", "))
		}
	}
	return v.Err()
}

// names gives the JSON names of a struct's fields, those of embedded structs included.
func names(dst any) []string {
	var list []string
	for _, f := range reflect.VisibleFields(reflect.TypeOf(dst).Elem()) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.Anonymous && name != "" && name != "-" {
			list = append(list, name)
		}
	}
	return list
}

func kind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Slice:
		return "a list of strings"
	default:
		return "a " + t.String()
	}
}

// Ownership is the part of a configuration that says how files look, the same for all connectors that write files. Modes
// are octal strings such as "0640". Mode is for files without a key, KeyMode for those with one.
type Ownership struct {
	Mode    string `json:"mode"`
	KeyMode string `json:"key_mode"`
	Owner   string `json:"owner"`
	Group   string `json:"group"`
}

// Check adds a violation for each field that is wrong.
func (o Ownership) Check(v *errs.Violations) {
	_, ok := octal(o.Mode)
	if !ok {
		v.Add("config.mode", "must be an octal string between 0400 and 0777, such as \"0644\"")
	}
	key, ok := octal(o.KeyMode)
	switch {
	case !ok:
		v.Add("config.key_mode", "must be an octal string between 0400 and 0777, such as \"0640\"")
	case key&0o007 != 0:
		v.Add("config.key_mode", "must give other users nothing: a private key is not for everybody")
	}
	account(v, "config.owner", o.Owner)
	account(v, "config.group", o.Group)
}

// File makes a file of a plan with the mode and owner of its content.
func (o Ownership) File(path string, c Content) File {
	mode, _ := octal(o.Mode)
	if c.Secret() {
		mode, _ = octal(o.KeyMode)
	}
	return File{Path: filepath.Clean(path), Content: c, Mode: mode, Owner: o.Owner, Group: o.Group}
}

// octal reads a mode; the empty string is 0, "not set". The owner must be able to read.
func octal(s string) (fs.FileMode, bool) {
	if s == "" {
		return 0, true
	}
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o777 || n&0o400 == 0 {
		return 0, false
	}
	return fs.FileMode(n), true
}

func account(v *errs.Violations, field, name string) {
	if len(name) > 256 || strings.ContainsAny(name, ":\x00\n/ ") {
		v.Add(field, "must be the name or the number of an account")
	}
}

// CheckPath adds a violation unless path is an absolute path to a file. The empty path is right only when it is optional.
func CheckPath(v *errs.Violations, field, path string, required bool) {
	field = "config." + field
	switch {
	case path == "" && required:
		v.Add(field, "is required")
	case path == "":
	case len(path) > 4096 || strings.ContainsAny(path, "\x00\n\r"):
		v.Add(field, "is not a path")
	case !filepath.IsAbs(path):
		v.Add(field, "must be an absolute path, not %q", path)
	case strings.HasSuffix(path, "/") || filepath.Clean(path) == "/":
		v.Add(field, "must name a file, not the directory %q", path)
	case slices.Contains(strings.Split(path, "/"), ".."):
		v.Add(field, "must not contain \"..\"")
	}
}

// CheckDistinct adds a violation when two files of a plan have the same path.
func CheckDistinct(v *errs.Violations, files []File) {
	seen := make(map[string]Content, len(files))
	for _, f := range files {
		other, twice := seen[f.Path]
		if twice {
			v.Add("config", "%q is named for both %s and %s", f.Path, other, f.Content)
		}
		seen[f.Path] = f.Content
	}
}

// CheckDirectory adds a violation unless path is empty or an absolute path.
func CheckDirectory(v *errs.Violations, field, path string) {
	CheckPath(v, field, strings.TrimRight(path, "/"), false)
}
