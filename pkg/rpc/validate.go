package rpc

import (
	"context"
	"errors"
	"fmt"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/errs"
)

// validation checks messages against the rules in their .proto. The interceptor of go-grpc-middleware does the same,
// but answers with buf.validate details where certctl's contract has google.rpc.BadRequest.
type validation struct{ validator protovalidate.Validator }

func (v validation) step() step {
	return step{name: stepValidate, unary: v.unary, stream: v.stream}
}

func (v validation) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := v.check(req); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func (v validation) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return handler(srv, &validatedStream{ServerStream: ss, validation: v})
}

type validatedStream struct {
	grpc.ServerStream
	validation validation
}

// RecvMsg receives and checks.
func (s *validatedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err //nolint:wrapcheck // io.EOF must stay io.EOF
	}
	return s.validation.check(m)
}

// check validates one message. What is not a proto message is raw bytes on their way through the gateway; the
// service behind it checks them.
func (v validation) check(m any) error {
	msg, ok := m.(proto.Message)
	if !ok {
		return nil
	}
	err := v.validator.Validate(msg)
	if err == nil {
		return nil
	}
	var invalid *protovalidate.ValidationError
	if !errors.As(err, &invalid) {
		return fmt.Errorf("validate %s: %w", msg.ProtoReflect().Descriptor().FullName(), err)
	}
	return violations(invalid)
}

func violations(invalid *protovalidate.ValidationError) error {
	var out errs.Violations
	for _, v := range invalid.Violations {
		message := v.Proto.GetMessage()
		if message == "" {
			message = "breaks the rule " + v.Proto.GetRuleId()
		}
		out.Add(protovalidate.FieldPathString(v.Proto.GetField()), "%s", message)
	}
	return out.Err()
}
