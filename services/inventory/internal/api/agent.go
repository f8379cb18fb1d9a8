package api

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	"github.com/certctl/certctl/services/inventory/internal/core"
	"github.com/certctl/certctl/services/inventory/internal/hub"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

// CredentialMetadata carries the agent's bearer credential, as the gateway has received it.
const CredentialMetadata = "certctl-credential" //nolint:gosec // the name of a header, no credential

// addressMetadata carries the address from which the gateway was called.
const addressMetadata = "certctl-peer-address"

// agents is the service for agents.
type agents struct {
	agentv1.UnimplementedAgentServiceServer
	cfg  Config
	core *core.Core
	hub  *hub.Hub
	log  *zap.Logger
}

// authenticate finds the calling agent by its credential, and notes it as the caller.
func (s *agents) authenticate(ctx context.Context) (context.Context, store.Credential, error) {
	secret := credential(ctx)
	if secret == "" {
		return ctx, store.Credential{}, errCredentialMissing()
	}
	k, err := s.core.Authenticate(ctx, secret)
	if err != nil {
		return ctx, k, err
	}
	caller := rpcctx.Caller{Type: rpcctx.Agent, ID: k.AgentID, Role: rpcctx.RoleAgent}
	log := rpcctx.Logger(ctx).With(logx.ID(logx.KeyAgent, k.AgentID))
	return rpcctx.WithLogger(rpcctx.WithCaller(ctx, caller), log), k, nil
}

// credential gives the one that was sent, or "".
func credential(ctx context.Context) string {
	values := metadata.ValueFromIncomingContext(ctx, CredentialMetadata)
	if len(values) != 1 {
		return ""
	}
	return strings.TrimPrefix(values[0], "Bearer ")
}

func errCredentialMissing() error {
	return errs.New(errs.Unauthenticated, "CREDENTIAL_MISSING", "no agent credential was sent")
}

// Enroll trades a join token for a credential.
func (s *agents) Enroll(ctx context.Context, r *agentv1.EnrollRequest) (*agentv1.EnrollResponse, error) {
	return s.core.Enroll(ctx, r)
}

// RotateCredential answers a new credential.
func (s *agents) RotateCredential(ctx context.Context, _ *agentv1.RotateCredentialRequest) (*agentv1.RotateCredentialResponse, error) {
	ctx, k, err := s.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	return s.core.RotateCredential(ctx, k.AgentID)
}

// ListAssignments answers the agent's open work.
func (s *agents) ListAssignments(ctx context.Context, r *agentv1.ListAssignmentsRequest) (*agentv1.ListAssignmentsResponse, error) {
	ctx, k, err := s.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	s.hub.Heard(k.AgentID)
	return s.core.ListAssignments(ctx, k.AgentID, r)
}

// ReportAssignment takes progress or the result of work.
func (s *agents) ReportAssignment(ctx context.Context, r *agentv1.ReportAssignmentRequest) (*agentv1.ReportAssignmentResponse, error) {
	ctx, k, err := s.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	s.hub.Heard(k.AgentID)
	return s.core.ReportAssignment(ctx, k.AgentID, r)
}

// helloTimeout bounds the wait for the first message.
const helloTimeout = 15 * time.Second

// Connect is presence up; hints and drain notices down. The handler's goroutine sends, one beside it receives. The gateway uses Relay
// instead, which costs less.
func (s *agents) Connect(g agentv1.AgentService_ConnectServer) error {
	ctx, k, err := s.authenticate(g.Context())
	if err != nil {
		return s.refuse(g, err)
	}
	hello := make(chan *agentv1.Hello, 1)
	received := run.Go(func() error { return s.receive(g, k.AgentID, hello) })
	first, err := awaitHello(ctx, hello, received)
	if err != nil {
		return err
	}
	wake := tick.NewKicker()
	line, err := s.open(ctx, core.Opening{Credential: credential(ctx), Address: clientAddress(ctx), Hello: first}, wake)
	if err != nil {
		return s.refuse(g, err)
	}
	defer s.hub.Detach(line)
	return s.serve(ctx, g, line, wake, received)
}

// refuse tells an agent that was retired while it was away so, beside the error.
func (s *agents) refuse(g agentv1.AgentService_ConnectServer, cause error) error {
	if m := refusal(cause); m != nil {
		if err := g.Send(m); err != nil {
			return err
		}
	}
	return cause
}

func refusal(cause error) *agentv1.ConnectResponse {
	if errs.ReasonOf(cause) != "AGENT_RETIRED" {
		return nil
	}
	return &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Retired{Retired: &agentv1.Retired{}}}
}

// receive notes each sign of life until the agent or the call ends.
func (s *agents) receive(g agentv1.AgentService_ConnectServer, agentID string, hello chan<- *agentv1.Hello) error {
	greeted := false
	for {
		m, err := g.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h := m.GetHello(); h != nil && !greeted {
			greeted = true
			hello <- h
		}
		s.hub.Heard(agentID)
	}
}

func awaitHello(ctx context.Context, hello <-chan *agentv1.Hello, received <-chan error) (*agentv1.Hello, error) {
	timer := time.NewTimer(helloTimeout)
	defer timer.Stop()
	select {
	case h := <-hello:
		return h, nil
	case err := <-received:
		if err == nil {
			err = errHello()
		}
		return nil, err
	case <-timer.C:
		return nil, errs.New(errs.DeadlineExceeded, "HELLO_MISSING", "no hello came within %s", helloTimeout)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func errHello() error { return errs.Field("hello", "must be the first message of a stream") }

// clientAddress is where the agent calls from, as the gateway saw it.
func clientAddress(ctx context.Context) string {
	address := ""
	if v := metadata.ValueFromIncomingContext(ctx, addressMetadata); len(v) == 1 {
		address = v[0]
	} else if p, ok := peer.FromContext(ctx); ok {
		address = p.Addr.String()
	}
	if host, _, err := net.SplitHostPort(address); err == nil {
		address = host
	}
	if net.ParseIP(address) == nil {
		return ""
	}
	return address
}

// open makes one stream. Its work is looked at when notices about more of it already arrive.
func (s *agents) open(ctx context.Context, o core.Opening, wake *tick.Kicker) (*hub.Stream, error) {
	opened := s.core.Open(ctx, []core.Opening{o})[0]
	if opened.Err != nil {
		return nil, opened.Err
	}
	line := hub.NewStream(hub.StreamConfig{AgentID: opened.AgentID, CredentialID: opened.CredentialID, Epoch: opened.Epoch, Wake: wake.Kick})
	s.hub.Attach(line)
	work, err := s.core.OpenWork(ctx, []string{opened.AgentID})
	if err != nil {
		s.hub.Detach(line)
		return nil, err
	}
	line.Hint(work[opened.AgentID].Number)
	return line, nil
}

// serve sends until one side ends the stream. It returns nil when the server ends it in order.
func (s *agents) serve(ctx context.Context, g agentv1.AgentService_ConnectServer, line *hub.Stream, wake *tick.Kicker, received <-chan error) error {
	life := time.NewTimer(tick.Jittered(s.cfg.StreamLifetime, tick.DefaultJitter))
	defer life.Stop()
	if err := g.Send(s.welcome()); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-received:
			return err
		case <-life.C:
			line.Stop(hub.Draining)
		case <-wake.C():
		}
		messages, end := words(line)
		for _, m := range messages {
			if err := g.Send(m); err != nil {
				return err
			}
		}
		if end != nil {
			return end.err
		}
	}
}

// welcome answers the hello.
func (s *agents) welcome() *agentv1.ConnectResponse {
	return &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{Welcome: &agentv1.Welcome{
		HeartbeatInterval: durationpb.New(s.cfg.HeartbeatInterval), ServerVersion: s.cfg.ServerVersion,
	}}}
}

// ending is the end of a stream; without an error it ends in order.
type ending struct{ err error }

// words puts what is pending into messages.
func words(line *hub.Stream) (messages []*agentv1.ConnectResponse, end *ending) {
	p := line.Take()
	if p.Work > 0 {
		messages = append(messages, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_WorkHint{WorkHint: &agentv1.WorkHint{Revision: p.Work}}})
	}
	if p.Rotate {
		messages = append(messages, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_RotateHint{RotateHint: &agentv1.RotateHint{}}})
	}
	switch p.End {
	case hub.Retired:
		err := errs.New(errs.PermissionDenied, "AGENT_RETIRED", "agent %s is retired", line.AgentID)
		return append(messages, refusal(err)), &ending{err}
	case hub.Superseded:
		return messages, &ending{errs.New(errs.Conflict, "STREAM_SUPERSEDED", "the agent has opened a newer stream")}
	case hub.Refused:
		return messages, &ending{errs.New(errs.Unauthenticated, "CREDENTIAL_NOT_VALID", "the agent's credential is not valid")}
	case hub.Draining:
		drain := &agentv1.Drain{ReconnectAfter: durationpb.New(hub.ReconnectAfter())}
		return append(messages, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Drain{Drain: drain}}), &ending{}
	default:
		return messages, nil
	}
}
