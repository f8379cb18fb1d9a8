package rest

import (
	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/gateway/internal/problem"
)

// marshaler writes messages as the API promises: proto names, fields that are not set with their zero value, and the
// same bytes for the same message.
type marshaler struct {
	runtime.HTTPBodyMarshaler

	encoder encoder
}

func newMarshaler() runtime.Marshaler {
	return &marshaler{HTTPBodyMarshaler: runtime.HTTPBodyMarshaler{Marshaler: &runtime.JSONPb{MarshalOptions: options()}}}
}

// Marshal implements runtime.Marshaler.
func (m *marshaler) Marshal(v any) ([]byte, error) {
	if _, raw := v.(*httpbody.HttpBody); raw {
		return m.HTTPBodyMarshaler.Marshal(v) //nolint:wrapcheck // grpc-gateway tells it to the error handler as it is
	}
	if message, ok := v.(proto.Message); ok {
		return m.encoder.marshal(message)
	}
	b, err := m.HTTPBodyMarshaler.Marshal(v)
	return problem.Compact(b), err //nolint:wrapcheck // likewise
}
