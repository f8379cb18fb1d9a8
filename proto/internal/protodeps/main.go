// Command protodeps prints the third-party .proto files that ours import, from the descriptors inside the Go modules
// that the generated code links, so that buf needs no schema registry.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv2/options"
	"github.com/jhump/protoreflect/v2/protoprint"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: protodeps DIRECTORY")
		os.Exit(2)
	}
	if err := printAll(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "protodeps:", err)
		os.Exit(1)
	}
}

func printAll(dir string) (err error) {
	if err := os.MkdirAll(dir, 0o750); err != nil { //nolint:gosec // a tool of the build writes where its caller says
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	printer := &protoprint.Printer{}
	files := []protoreflect.FileDescriptor{
		annotations.File_google_api_annotations_proto,
		annotations.File_google_api_http_proto,
		annotations.File_google_api_field_behavior_proto,
		httpbody.File_google_api_httpbody_proto,
		validate.File_buf_validate_validate_proto,
		options.File_protoc_gen_openapiv2_options_annotations_proto,
		options.File_protoc_gen_openapiv2_options_openapiv2_proto,
	}
	for _, fd := range files {
		if err := printFile(printer, root, fd); err != nil {
			return fmt.Errorf("print %s: %w", fd.Path(), err)
		}
	}
	return nil
}

func printFile(printer *protoprint.Printer, root *os.Root, fd protoreflect.FileDescriptor) error {
	path := filepath.FromSlash(fd.Path())
	if err := root.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := root.Create(path)
	if err != nil {
		return err
	}
	err = printer.PrintProtoFile(fd, f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
