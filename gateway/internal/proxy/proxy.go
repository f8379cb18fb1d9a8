// Package proxy passes gRPC calls through to the services behind the gateway, by the full name of the method and
// without knowing the messages. Deadlines, cancellation, statuses with their details and both directions of streams are
// as if the client spoke with the service; of the metadata only what is named here passes.
package proxy

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/certctl/certctl/gateway/internal/limit"
	"github.com/certctl/certctl/gateway/internal/route"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/run"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

// Metadata that inventory reads of agents' calls.
const (
	// CredentialMetadata has the agent's credential, which the gateway passes on and does not know.
	CredentialMetadata = "certctl-credential" //nolint:gosec // the name of it, not one
	// PeerAddressMetadata has the address that the agent calls from, without the port.
	PeerAddressMetadata = "certctl-peer-address"
)

// reconnectSpread is within what time agents come back to another replica when this one stops.
const reconnectSpread = 5 * time.Second

// errDraining is the cause of a stream's end when the gateway stops.
var errDraining = errors.New("gateway is stopping")

// frame is any message: one without fields keeps all it is given as unknown fields, and writes them again as they were.
type frame = emptypb.Empty

// Config sets up a Proxy.
type Config struct {
	// MaxMessage bounds a message of a client, in bytes.
	MaxMessage int
}

// Deps is what a Proxy works with.
type Deps struct {
	Methods  map[string]*route.RPC
	Backends map[string]grpc.ClientConnInterface
	// Draining ends when the gateway stops: streams of agents then end, calls go on.
	Draining context.Context //nolint:containedctx // it is the life of the gateway and not of a call
}

// Proxy passes calls through.
type Proxy struct {
	cfg  Config
	deps Deps
}

// New makes a proxy.
func New(cfg Config, deps Deps) *Proxy { return &Proxy{cfg: cfg, deps: deps} }

// Table is the authorisation table of the methods: users need some role, which the service behind checks; what agents
// show is for inventory to know.
func Table(methods map[string]*route.RPC, users rpc.Rule) rpc.AuthzTable {
	t := make(rpc.AuthzTable, len(methods))
	for name, m := range methods {
		t[name] = users
		if m.Agent {
			t[name] = rpc.Rule{Public: true}
		}
	}
	return t
}

// LongLived lists the streams without an end.
func LongLived(methods map[string]*route.RPC) []string {
	var names []string
	for name, m := range methods {
		if m.Streaming {
			names = append(names, name)
		}
	}
	return names
}

// Handle is a grpc.StreamHandler for all methods.
func (p *Proxy) Handle(_ any, ss grpc.ServerStream) error {
	name, _ := grpc.MethodFromServerStream(ss)
	method, ok := p.deps.Methods[name]
	if !ok {
		return errs.New(errs.Unimplemented, "METHOD_UNKNOWN", "there is no method %s here", name)
	}
	ctx := outgoing(ss.Context(), method)
	if !method.Streaming {
		return p.call(ctx, ss, method)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.deps.Draining, func() { cancel(errDraining) })()
	err := p.pass(ctx, cancel, ss, method)
	if err != nil && errors.Is(context.Cause(ctx), errDraining) {
		return sayGoodbye(ss, method)
	}
	return err
}

// call passes one message and its answer.
func (p *Proxy) call(ctx context.Context, ss grpc.ServerStream, method *route.RPC) error {
	var in, out frame
	if err := p.receive(ss, &in); errors.Is(err, io.EOF) {
		return errs.New(errs.Invalid, "MESSAGE_MISSING", "the call has no message")
	} else if err != nil {
		return err
	}
	var header, trailer metadata.MD
	err := p.deps.Backends[method.Backend].Invoke(ctx, method.Method, &in, &out, grpc.Header(&header), grpc.Trailer(&trailer))
	ss.SetTrailer(shown(trailer))
	if err != nil {
		return err //nolint:wrapcheck // the client gets the status as it is
	}
	if err := ss.SetHeader(shown(header)); err != nil {
		return err //nolint:wrapcheck // the call has ended
	}
	return ss.SendMsg(&out) //nolint:wrapcheck // the call has ended
}

// receive takes a message of a client.
func (p *Proxy) receive(ss grpc.ServerStream, m *frame) error {
	if err := ss.RecvMsg(m); err != nil {
		return err //nolint:wrapcheck // only a reason to end the call
	}
	if proto.Size(m) > p.cfg.MaxMessage {
		return errs.New(errs.ResourceExhausted, "MESSAGE_TOO_LARGE", "the message is larger than %d bytes", p.cfg.MaxMessage)
	}
	return nil
}

// pass copies both directions until the service ends the call.
func (p *Proxy) pass(ctx context.Context, cancel context.CancelCauseFunc, ss grpc.ServerStream, method *route.RPC) error {
	conn := p.deps.Backends[method.Backend]
	cs, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method.Method)
	if err != nil {
		return err //nolint:wrapcheck // the client gets the status as it is
	}
	// The copying of requests ends with the call: grpc ends RecvMsg when the handler has returned.
	run.Go(func() error {
		if err := p.requests(ss, cs); err != nil {
			cancel(err)
		}
		return nil
	})
	err = answers(ss, cs)
	if cause := context.Cause(ctx); err != nil && ss.Context().Err() == nil && isCoded(cause) {
		return cause // why the requests ended
	}
	return err
}

func isCoded(err error) bool {
	var e *errs.Error
	return errors.As(err, &e)
}

func (p *Proxy) requests(ss grpc.ServerStream, cs grpc.ClientStream) error {
	for {
		var m frame
		err := p.receive(ss, &m)
		if errors.Is(err, io.EOF) {
			return cs.CloseSend() //nolint:wrapcheck // only a reason to end the call
		}
		if err != nil {
			return err
		}
		if cs.SendMsg(&m) != nil {
			return nil //nolint:nilerr // the service has ended the call, and answers tells how
		}
	}
}

func answers(ss grpc.ServerStream, cs grpc.ClientStream) error {
	header, err := cs.Header()
	if err != nil {
		return err //nolint:wrapcheck // the client gets the status as it is
	}
	if err := ss.SendHeader(shown(header)); err != nil { // at once: a stream can be silent for long
		return err //nolint:wrapcheck // the call has ended
	}
	for {
		var m frame
		err := cs.RecvMsg(&m)
		if err != nil {
			ss.SetTrailer(shown(cs.Trailer()))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err //nolint:wrapcheck // the client gets the status as it is
		}
		if err := ss.SendMsg(&m); err != nil {
			return err //nolint:wrapcheck // the call has ended
		}
	}
}

// outgoing makes the metadata of a call from what may pass of its own. The connection adds the request id, the verified
// caller and who the gateway is.
func outgoing(ctx context.Context, method *route.RPC) context.Context {
	in, _ := metadata.FromIncomingContext(ctx)
	out := metadata.MD{}
	if !method.Agent {
		for _, key := range []string{rpc.MetadataIdempotencyKey, rpc.MetadataIfMatch} {
			if v := in.Get(key); len(v) > 0 {
				out.Set(key, v[0])
			}
		}
		return metadata.NewOutgoingContext(ctx, out)
	}
	if token, err := rpc.Bearer(in); err == nil {
		out.Set(CredentialMetadata, token)
	}
	if p, ok := peer.FromContext(ctx); ok {
		out.Set(PeerAddressMetadata, limit.Host(p.Addr.String()))
	}
	return metadata.NewOutgoingContext(ctx, out)
}

// shown gives the metadata of a service that its client may see.
func shown(md metadata.MD) metadata.MD {
	out := metadata.MD{}
	for _, key := range []string{"deprecation", "sunset", "warning"} {
		if v := md.Get(key); len(v) > 0 {
			out.Set(key, v...)
		}
	}
	return out
}

// sayGoodbye asks the agent at a stream to connect again, to a replica that stays.
func sayGoodbye(ss grpc.ServerStream, method *route.RPC) error {
	if method.Method != agentv1.AgentService_Connect_FullMethodName {
		return errs.New(errs.Unavailable, "GATEWAY_STOPPING", "the gateway is stopping; connect again")
	}
	after := time.Duration(rand.Int64N(int64(reconnectSpread))) //nolint:gosec // spreads load, keeps no secret
	err := ss.SendMsg(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Drain{
		Drain: &agentv1.Drain{ReconnectAfter: durationpb.New(after)},
	}})
	return err //nolint:wrapcheck // the call has ended
}
