package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"gopkg.in/yaml.v3"
)

// maxInput bounds a resource or CSR that is read; the gateway takes no more either.
const maxInput = 1 << 20

// readFile fills a message from a file in JSON or YAML, as the REST API takes it, and answers which fields were there. No
// path: nothing.
func (s *session) readFile(path string, m proto.Message) (fields []string, err error) {
	if path == "" {
		return nil, nil
	}
	b, err := s.readInput(path)
	if err != nil {
		return nil, err
	}
	asJSON, keys, err := toJSON(b)
	if err != nil {
		return nil, usagef("%s: %v", path, err)
	}
	if err := protojson.Unmarshal(asJSON, m); err != nil {
		return nil, usagef("%s: %v", path, err)
	}
	return properNames(m, keys), nil
}

// readInput reads a file, or standard input for "-".
func (s *session) readInput(path string) ([]byte, error) {
	in := s.cmd.InOrStdin()
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, usage(err.Error())
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxInput {
		return nil, usagef("%s is larger than %d bytes", path, maxInput)
	}
	return b, nil
}

// toJSON reads one object. JSON is YAML too, so one reader does for both.
func toJSON(b []byte) (object []byte, keys []string, err error) {
	d := yaml.NewDecoder(bytes.NewReader(b))
	var tree map[string]any
	if err := d.Decode(&tree); errors.Is(err, io.EOF) || err == nil && tree == nil {
		return nil, nil, errors.New("there is no resource in it")
	} else if err != nil {
		return nil, nil, err
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, nil, errors.New("there is more than one resource in it; give one at a time")
	}
	if object, err = json.Marshal(tree); err != nil {
		return nil, nil, err
	}
	return object, slices.Sorted(maps.Keys(tree)), nil
}

// properNames gives the proto names of fields: the reader takes their JSON names too.
func properNames(m proto.Message, keys []string) []string {
	names := make([]string, 0, len(keys))
	for _, key := range keys {
		if fd := m.ProtoReflect().Descriptor().Fields().ByJSONName(key); fd != nil {
			key = string(fd.Name())
		}
		names = append(names, key)
	}
	return names
}
