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
	var frame emptypb.Empty // one without fields keeps what it is given
	err := u.ClientConnInterface.Invoke(ctx, method, args, &frame, opts...)
	if err == nil {
		m.ProtoReflect().SetUnknown(frame.ProtoReflect().GetUnknown())
	}
	return err //nolint:wrapcheck // likewise
}

// isList tells whether a method's answer is sent whole: of others a field is, or is looked at.
func isList(method string) bool {
	return strings.HasPrefix(method[strings.LastIndexByte(method, '/')+1:], "List")
}
