package rest

import (
	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/certctl/certctl/gateway/internal/problem"
)

// marshaler writes messages as the API promises: proto names, fields that are not set with their zero value, and the
// same bytes for the same message.
type marshaler struct{ runtime.HTTPBodyMarshaler }

func newMarshaler() runtime.Marshaler {
	return &marshaler{runtime.HTTPBodyMarshaler{Marshaler: &runtime.JSONPb{
		MarshalOptions: protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true},
	}}}
}

// Marshal implements runtime.Marshaler.
func (m *marshaler) Marshal(v any) ([]byte, error) {
	b, err := m.HTTPBodyMarshaler.Marshal(v)
	if _, raw := v.(*httpbody.HttpBody); raw || err != nil {
		return b, err //nolint:wrapcheck // grpc-gateway tells it to the error handler as it is
	}
	return problem.Compact(b), nil
}
