package client

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// entries are the flags for the config of a resource.
type entries struct {
	config                string // all of it
	texts, encoded, files []string
}

const configFlag = "config"

func entryFlags(c *cobra.Command) *entries {
	e := &entries{}
	c.Flags().StringVar(&e.config, configFlag, "", "the configuration: a JSON object, or @FILE with it in JSON or YAML, @- for standard input")
	c.Flags().StringArrayVar(&e.texts, "set", nil, "entry of the configuration, KEY=TEXT; may be given several times")
	c.Flags().StringArrayVar(&e.encoded, "set-json", nil, `entry that is no text, KEY=JSON, such as 'command=["/usr/bin/systemctl","reload","haproxy"]'`)
	c.Flags().StringArrayVar(&e.files, "set-file", nil, "entry whose text is in a file, KEY=PATH; for secrets, which others could see on a command line")
	for _, name := range []string{configFlag, "set", "set-json"} {
		complete(c, name, cobra.NoFileCompletions)
	}
	return e
}

func (e *entries) given() bool {
	return e != nil && (e.whole() || len(e.texts)+len(e.encoded)+len(e.files) > 0)
}

// whole tells whether all of the configuration is given, not only entries of it.
func (e *entries) whole() bool { return e.config != "" }

// apply sets the entries in the config of a resource, and tells whether there were any.
func (e *entries) apply(s *session, resource proto.Message) (bool, error) {
	if !e.given() {
		return false, nil
	}
	r := resource.ProtoReflect()
	config, ok := r.Mutable(r.Descriptor().Fields().ByName("config")).Message().Interface().(*structpb.Struct)
	if !ok {
		return false, fmt.Errorf("%s has no config", r.Descriptor().FullName())
	}
	if e.whole() {
		given, err := e.read(s)
		if err != nil {
			return false, err
		}
		config.Fields = given.GetFields()
	}
	if config.Fields == nil {
		config.Fields = make(map[string]*structpb.Value)
	}
	for _, source := range []struct {
		flag   string
		given  []string
		decode func(string) (*structpb.Value, error)
	}{
		{"set", e.texts, func(s string) (*structpb.Value, error) { return structpb.NewStringValue(s), nil }},
		{"set-json", e.encoded, decodeEntry},
		{"set-file", e.files, readEntry},
	} {
		for _, text := range source.given {
			key, val, ok := strings.Cut(text, "=")
			if !ok || key == "" {
				return false, usagef("--%s %s: write KEY=VALUE", source.flag, key)
			}
			v, err := source.decode(val)
			if err != nil {
				return false, usagef("--%s %s: %v", source.flag, key, err)
			}
			config.Fields[key] = v
		}
	}
	return true, nil
}

// read gives the configuration of --config.
func (e *entries) read(s *session) (*structpb.Struct, error) {
	source, b := "--"+configFlag, []byte(e.config)
	if path, ok := strings.CutPrefix(e.config, "@"); ok {
		var err error
		if b, err = s.readInput(path); err != nil {
			return nil, err
		}
		source = path
	}
	object, _, err := toJSON(b)
	if err != nil {
		return nil, usagef("%s: %v", source, err)
	}
	config := &structpb.Struct{}
	if err := config.UnmarshalJSON(object); err != nil {
		return nil, usagef("%s: %v", source, err)
	}
	return config, nil
}

func decodeEntry(s string) (*structpb.Value, error) {
	var v any
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		return nil, err
	}
	return structpb.NewValue(v)
}

func readEntry(path string) (*structpb.Value, error) {
	text, err := readBounded(path)
	return structpb.NewStringValue(text), err
}
