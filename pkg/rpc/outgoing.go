package rpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpcctx"
)

// unary is the interceptor of unary calls.
func (c *ClientConfig) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, err := c.outgoing(ctx)
	if err != nil {
		return err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.DefaultTimeout)
		defer cancel()
	}
	return c.explain(invoker(ctx, method, req, reply, cc, opts...))
}

// stream is the interceptor of streams.
func (c *ClientConfig) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, err := c.outgoing(ctx)
	if err != nil {
		return nil, err
	}
	cs, err := streamer(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, c.explain(err)
	}
	return &explainedStream{ClientStream: cs, cfg: c}, nil
}

// outgoing sets the metadata of a call: what this service says, and nothing of what its own caller said.
func (c *ClientConfig) outgoing(ctx context.Context) (context.Context, error) {
	md, _ := metadata.FromOutgoingContext(ctx) // a copy
	if md == nil {
		md = metadata.MD{}
	}
	id := rpcctx.RequestID(ctx)
	if id == "" {
		var err error
		if id, err = newRequestID(); err != nil {
			return nil, err
		}
	}
	md.Set(MetadataRequestID, id)
	if c.Service != "" {
		md.Delete(MetadataAuthorization)
		md.Delete(MetadataCaller)
		md.Delete(MetadataActor)
		if err := c.speakFor(ctx, md); err != nil {
			return nil, err
		}
	}
	return metadata.NewOutgoingContext(ctx, md), nil
}

// speakFor says for whom the call is: the gateway forwards the caller that it has verified, the others name the actor
// for the audit trail.
func (c *ClientConfig) speakFor(ctx context.Context, md metadata.MD) error {
	key, who := MetadataActor, rpcctx.Actor(ctx)
	if c.Service == Gateway {
		key, who = MetadataCaller, rpcctx.CallerFrom(ctx)
	}
	if who.IsAnonymous() {
		return nil
	}
	value, err := encodeCaller(who)
	if err != nil {
		return err
	}
	md.Set(key, value)
	return nil
}

// explain makes of "connection error: dial tcp …" an error that names the service that is away.
func (c *ClientConfig) explain(err error) error {
	if err == nil || errs.KindOf(err) != errs.Unavailable || errs.From(err).Unwrap() == nil {
		return err
	}
	return errs.New(errs.Unavailable, "SERVICE_UNAVAILABLE", "%s is not available", c.Peer).With("service", c.Peer).Wrap(err)
}

type explainedStream struct {
	grpc.ClientStream
	cfg *ClientConfig
}

// RecvMsg receives; its error names the service that is away.
func (s *explainedStream) RecvMsg(m any) error { return s.cfg.explain(s.ClientStream.RecvMsg(m)) }
