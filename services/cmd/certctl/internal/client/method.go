package client

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// method is one RPC of a generated client.
type method struct {
	request func() proto.Message
	call    func(ctx context.Context, conn grpc.ClientConnInterface, req proto.Message) (proto.Message, error)
}

// bind makes a method of a generated client's constructor and one of its methods, as
// bind(v1.NewThingServiceClient, v1.ThingServiceClient.GetThing).
func bind[C any, Req, Resp proto.Message](client func(grpc.ClientConnInterface) C, call func(C, context.Context, Req, ...grpc.CallOption) (Resp, error)) method {
	return method{
		request: func() proto.Message {
			var r Req
			return r.ProtoReflect().Type().New().Interface()
		},
		call: func(ctx context.Context, conn grpc.ClientConnInterface, req proto.Message) (proto.Message, error) {
			typed, ok := req.(Req)
			if !ok {
				return nil, fmt.Errorf("call with %T", req)
			}
			return call(client(conn), ctx, typed)
		},
	}
}

// named makes a request for one resource.
func (m method) named(id string) proto.Message {
	req := m.request()
	setText(req, idField(req.ProtoReflect().Descriptor()), id)
	return req
}

// idField is the field of a request that names the resource.
func idField(md protoreflect.MessageDescriptor) protoreflect.Name {
	if md.Fields().ByName("id") != nil {
		return "id"
	}
	return "certificate_id"
}

func setText(m proto.Message, name protoreflect.Name, text string) {
	r := m.ProtoReflect()
	r.Set(r.Descriptor().Fields().ByName(name), protoreflect.ValueOfString(text))
}

func text(m proto.Message, name protoreflect.Name) string {
	r := m.ProtoReflect()
	if fd := r.Descriptor().Fields().ByName(name); fd != nil {
		return r.Get(fd).String()
	}
	return ""
}

func setNumber(m proto.Message, name protoreflect.Name, n int32) {
	r := m.ProtoReflect()
	if fd := r.Descriptor().Fields().ByName(name); fd != nil {
		r.Set(fd, protoreflect.ValueOfInt32(n))
	}
}

// payload is the one resource of a response, as the REST API answers it; a response that is more than that stays whole.
func payload(resp proto.Message) proto.Message {
	r := resp.ProtoReflect()
	fields := r.Descriptor().Fields()
	if fields.Len() != 1 {
		return resp
	}
	fd := fields.Get(0)
	if fd.Kind() != protoreflect.MessageKind || fd.IsList() || fd.IsMap() {
		return resp
	}
	return r.Get(fd).Message().Interface()
}

// resourceField is the field of a create or update request that holds the resource.
func resourceField(md protoreflect.MessageDescriptor) protoreflect.FieldDescriptor {
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		if fd.Kind() == protoreflect.MessageKind && fd.Message().FullName().Parent() != "google.protobuf" {
			return fd
		}
	}
	panic(string(md.FullName()) + " holds no resource")
}

// collection is the list of a list response.
func collection(resp proto.Message) protoreflect.FieldDescriptor {
	fields := resp.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if fd := fields.Get(i); fd.IsList() && fd.Kind() == protoreflect.MessageKind {
			return fd
		}
	}
	panic(string(resp.ProtoReflect().Descriptor().FullName()) + " lists nothing")
}

// items are the elements of a list response.
func items(resp proto.Message) []proto.Message {
	list := resp.ProtoReflect().Get(collection(resp)).List()
	out := make([]proto.Message, 0, list.Len())
	for i := range list.Len() {
		out = append(out, list.Get(i).Message().Interface())
	}
	return out
}
