// Package show writes messages of the API for people (tables and descriptions) and for programs (JSON, YAML, names).
package show

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"gopkg.in/yaml.v3"
)

// Format is a form of output.
type Format string

// The formats.
const (
	Table Format = "table"
	JSON  Format = "json"
	YAML  Format = "yaml"
	Name  Format = "name"
)

// Formats are all formats.
func Formats() []string { return []string{string(Table), string(JSON), string(YAML), string(Name)} }

// ParseFormat finds a format by its name.
func ParseFormat(s string) (Format, error) {
	for _, f := range Formats() {
		if s == f {
			return Format(s), nil
		}
	}
	return "", fmt.Errorf("output %q is not one of %s", s, strings.Join(Formats(), ", "))
}

// Printer writes to one place in one format.
type Printer struct {
	Out    io.Writer
	Format Format
	// Now is what times are counted from.
	Now time.Time
}

// Describe writes one message with all its fields; in the formats for programs, whole.
func (p Printer) Describe(m proto.Message) error {
	if p.Format == Table {
		return p.describe(m)
	}
	return p.whole(m, []proto.Message{m})
}

// Rows writes a table of messages of one type. In JSON and YAML it writes whole, which is the list response or the one
// message that the rows were taken from.
func (p Printer) Rows(whole proto.Message, items []proto.Message, columns []Column) error {
	if p.Format == Table {
		return p.table(items, columns)
	}
	return p.whole(whole, items)
}

func (p Printer) whole(m proto.Message, items []proto.Message) error {
	if p.Format == Name {
		for _, item := range items {
			if _, err := fmt.Fprintln(p.Out, Clean(ID(item))); err != nil {
				return err
			}
		}
		return nil
	}
	b, err := Marshal(m)
	if err != nil {
		return err
	}
	return p.Encoded(b)
}

// Encoded writes JSON in the format for programs that was asked for.
func (p Printer) Encoded(b []byte) error {
	if p.Format == YAML {
		return writeYAML(p.Out, b)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return fmt.Errorf("encode JSON: %w", err)
	}
	out.WriteByte('\n')
	_, err := p.Out.Write(out.Bytes())
	return err
}

// Marshal gives the JSON of the REST API: proto names, and fields that are not set with their zero value. The same message
// always gives the same bytes, which protojson alone does not promise.
func Marshal(m proto.Message) ([]byte, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode JSON: %w", err)
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return nil, fmt.Errorf("encode JSON: %w", err)
	}
	return out.Bytes(), nil
}

// writeYAML keeps the order of fields: JSON is YAML, so it is read as a tree and written in another style.
func writeYAML(w io.Writer, b []byte) error {
	var tree yaml.Node
	if err := yaml.Unmarshal(b, &tree); err != nil {
		return fmt.Errorf("encode YAML: %w", err)
	}
	block(&tree)
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(&tree); err != nil {
		return fmt.Errorf("encode YAML: %w", err)
	}
	return e.Close()
}

func block(n *yaml.Node) {
	if len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
		n.Style = 0
	}
	for _, c := range n.Content {
		block(c)
	}
}

// ID gives what names a message: its id, or its version for the versions of a certificate.
func ID(m proto.Message) string {
	r := m.ProtoReflect()
	for _, name := range []protoreflect.Name{"id", "version", "certificate_id", "sequence"} {
		if fd := r.Descriptor().Fields().ByName(name); fd != nil {
			return r.Get(fd).String()
		}
	}
	return ""
}
