// Command protodeps prints the third-party .proto files that ours import, from the descriptors inside the Go modules
// that the generated code links, so that buf needs no schema registry.
package main

import (
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
	if err := print(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "protodeps:", err)
		os.Exit(1)
	}
}

func print(dir string) error {
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
		if err := printFile(printer, dir, fd); err != nil {
			return fmt.Errorf("print %s: %w", fd.Path(), err)
		}
	}
	return nil
}

func printFile(printer *protoprint.Printer, dir string, fd protoreflect.FileDescriptor) error {
	path := filepath.Join(dir, filepath.FromSlash(fd.Path()))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = printer.PrintProtoFile(fd, f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
