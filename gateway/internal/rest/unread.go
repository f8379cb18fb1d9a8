package rest

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// unread is a connection whose answers to lists are not read into messages, since nothing is done with them but to write them as
// JSON: the message has all that came as unknown fields, which the encoder knows.
type unread struct{ grpc.ClientConnInterface }

// Invoke makes a call.
func (u unread) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	m, ok := reply.(proto.Message)
	if !ok || !isList(method) {
		return u.ClientConnInterface.Invoke(ctx, method, args, reply, opts...) //nolint:wrapcheck // as grpc.ClientConnInterface has it
	}
	wire, err := invoke(ctx, u.ClientConnInterface, method, args, opts...)
	if err == nil {
		m.ProtoReflect().SetUnknown(wire)
	}
	return err
}

// invoke makes a call and gives the answer as it is on the wire.
func invoke(ctx context.Context, conn grpc.ClientConnInterface, method string, args any, opts ...grpc.CallOption) ([]byte, error) {
	var frame emptypb.Empty // one without fields keeps what it is given
	err := conn.Invoke(ctx, method, args, &frame, opts...)
	return frame.ProtoReflect().GetUnknown(), err //nolint:wrapcheck // as grpc.ClientConnInterface has it
}

// isList tells whether a method's answer is sent whole: of others a field is, or is looked at.
func isList(method string) bool {
	return strings.HasPrefix(method[strings.LastIndexByte(method, '/')+1:], "List")
}
