// Package chartdoc makes, from the commented values.yaml of the chart, what must agree with it: the schema that refuses other keys,
// the defaults that templates fall back to, and the table of the README.
package chartdoc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Value is one key of values.yaml.
type Value struct {
	Path        []string
	Description string
	Node        *yaml.Node
	// Schema is what the comment adds to the schema that follows from the default.
	Schema   map[string]any
	Children []*Value // of a map whose keys are all known
}

// services are the sections that take every key of global.service, too.
var services = []string{"server", "inventory", "issuance", "renewal-scheduler", "async-poller", "audit"}

// free are maps that Kubernetes defines and not this chart.
var free = []string{"resources", "podSecurityContext", "containerSecurityContext", "labels"}

// Files answers the generated files of a chart, by path in it.
func Files(chart string) (map[string][]byte, error) {
	values, err := Read(filepath.Join(chart, "values.yaml"))
	if err != nil {
		return nil, err
	}
	schema, err := json.MarshalIndent(schemaOf(values), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode schema: %w", err)
	}
	defaults, err := defaultsTemplate(chart)
	if err != nil {
		return nil, err
	}
	readme, err := withTable(filepath.Join(chart, "README.md"), values)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"values.schema.json":                    append(schema, '\n'),
		"charts/common/templates/_defaults.tpl": defaults,
		"README.md":                             readme,
	}, nil
}

// Read reads a values.yaml with its comments.
func Read(path string) ([]*Value, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read values: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s is no map", path)
	}
	return children(nil, doc.Content[0])
}

func children(path []string, node *yaml.Node) ([]*Value, error) {
	var list []*Value
	for i := 0; i < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		v := &Value{Path: append(slices.Clone(path), key.Value), Node: value}
		if err := v.comment(key.HeadComment); err != nil {
			return nil, err
		}
		if value.Kind == yaml.MappingNode && len(value.Content) > 0 && !slices.Contains(free, key.Value) {
			var err error
			if v.Children, err = children(v.Path, value); err != nil {
				return nil, err
			}
		}
		list = append(list, v)
	}
	return list, nil
}

func (v *Value) comment(text string) error {
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(strings.TrimPrefix(line, "#"))
		if d, ok := strings.CutPrefix(line, "-- "); ok {
			v.Description = d
		}
		if s, ok := strings.CutPrefix(line, "@schema "); ok {
			if err := json.Unmarshal([]byte(s), &v.Schema); err != nil {
				return fmt.Errorf("%s: @schema: %w", v.Name(), err)
			}
		}
	}
	return nil
}

// Name is the key as it is given to --set.
func (v *Value) Name() string { return strings.Join(v.Path, ".") }

// Leaf tells whether the key holds a value and not more keys of the chart.
func (v *Value) Leaf() bool { return v.Children == nil }

// Leaves answers all keys that hold values.
func Leaves(values []*Value) []*Value {
	var leaves []*Value
	for _, v := range values {
		if v.Leaf() {
			leaves = append(leaves, v)
		}
		leaves = append(leaves, Leaves(v.Children)...)
	}
	return leaves
}

func schemaOf(values []*Value) map[string]any {
	sections := make(map[string]map[string]any, len(values))
	var service map[string]any
	for _, v := range values {
		sections[v.Path[0]] = properties(v.Children)
		for _, c := range v.Children {
			if c.Name() == "global.service" {
				service = properties(c.Children)
			}
		}
	}
	all := make(map[string]any, len(values))
	for _, v := range values {
		name, keys := v.Path[0], sections[v.Path[0]]
		if slices.Contains(services, name) {
			own := keys
			keys = maps.Clone(service)
			maps.Copy(keys, own)
		}
		if name != "global" {
			keys["global"] = map[string]any{} // Helm copies it into every section
		}
		all[name] = closed(keys)
	}
	all["common"] = map[string]any{} // Helm gives the library chart a section, too
	all["tags"] = closed(map[string]any{"control-plane": map[string]any{"type": "boolean", "description": "false: a release of agents alone."}})
	root := closed(all)
	root["$schema"] = "http://json-schema.org/draft-07/schema#"
	root["title"] = "Values of the certctl chart"
	return root
}

// closed is an object with these keys and no others.
func closed(properties map[string]any) map[string]any {
	return map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
}

func properties(values []*Value) map[string]any {
	all := make(map[string]any, len(values))
	for _, v := range values {
		s := v.schema()
		if v.Description != "" {
			s["description"] = v.Description
		}
		maps.Copy(s, v.Schema)
		all[v.Path[len(v.Path)-1]] = s
	}
	return all
}

func (v *Value) schema() map[string]any {
	switch {
	case v.Children != nil:
		return closed(properties(v.Children))
	case v.Node.Kind == yaml.MappingNode:
		return map[string]any{"type": "object"}
	case v.Node.Kind == yaml.SequenceNode:
		return map[string]any{"type": "array"}
	}
	switch v.Node.Tag {
	case "!!int":
		return map[string]any{"type": "integer"}
	case "!!bool":
		return map[string]any{"type": "boolean"}
	default:
		return map[string]any{"type": "string"}
	}
}

const tableBegin, tableEnd = "<!-- values: made by `make helm-generate` -->", "<!-- end of values -->"

// withTable puts the table of values between its marks in the README.
func withTable(path string, values []*Value) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read README: %w", err)
	}
	before, rest, ok := bytes.Cut(b, []byte(tableBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(tableEnd))
	if !ok || !ok2 {
		return nil, fmt.Errorf("%s lacks %q and %q around the table of values", path, tableBegin, tableEnd)
	}
	var out bytes.Buffer
	out.Write(before)
	out.WriteString(tableBegin + "\n\n| key | default | meaning |\n|---|---|---|\n")
	for _, v := range Leaves(values) {
		def, err := v.text()
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&out, "| `%s` | `%s` | %s |\n", v.Name(), def, v.meaning())
	}
	out.WriteString("\n" + tableEnd)
	out.Write(after)
	return out.Bytes(), nil
}

func (v *Value) meaning() string {
	text := v.Description
	if allowed, ok := v.Schema["enum"].([]any); ok {
		words := make([]string, 0, len(allowed))
		for _, w := range allowed {
			words = append(words, fmt.Sprintf("`%v`", w))
		}
		text = strings.TrimSpace(text + " One of " + strings.Join(words, ", ") + ".")
	}
	return strings.ReplaceAll(text, "|", `\|`)
}

func (v *Value) text() (string, error) {
	var x any
	if err := v.Node.Decode(&x); err != nil {
		return "", fmt.Errorf("%s: %w", v.Name(), err)
	}
	b, err := json.Marshal(x)
	if err != nil {
		return "", fmt.Errorf("%s: %w", v.Name(), err)
	}
	return strings.ReplaceAll(string(b), "|", `\|`), nil
}

// defaultsTemplate is values.yaml without its comments, for templates; and the version, which a subchart does not know.
func defaultsTemplate(chart string) ([]byte, error) {
	var values, meta map[string]any
	for name, into := range map[string]*map[string]any{"values.yaml": &values, "Chart.yaml": &meta} {
		b, err := os.ReadFile(filepath.Join(chart, name))
		if err != nil {
			return nil, fmt.Errorf("read chart: %w", err)
		}
		if err := yaml.Unmarshal(b, into); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
	}
	version, ok := meta["appVersion"].(string)
	if !ok {
		return nil, errors.New("there is no appVersion in Chart.yaml")
	}
	b, err := yaml.Marshal(values)
	if err != nil {
		return nil, fmt.Errorf("encode defaults: %w", err)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "{{/* Made from values.yaml and Chart.yaml by `make helm-generate`; why: see _values.tpl. */}}\n")
	fmt.Fprintf(&out, "{{- define \"certctl.appVersion\" -}}%s{{- end }}\n{{- define \"certctl.defaults\" }}\n%s{{- end }}\n", version, b)
	return out.Bytes(), nil
}
