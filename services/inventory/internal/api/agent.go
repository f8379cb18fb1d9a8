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
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get(CredentialMetadata)
	if len(values) != 1 || values[0] == "" {
		return ctx, store.Credential{}, errs.New(errs.Unauthenticated, "CREDENTIAL_MISSING", "no agent credential was sent")
	}
	secret := values[0]
	if rest, ok := strings.CutPrefix(secret, "Bearer "); ok {
		secret = rest
	}
	k, err := s.core.Authenticate(ctx, secret)
	if err != nil {
		return ctx, k, err
	}
	caller := rpcctx.Caller{Type: rpcctx.Agent, ID: k.AgentID, Role: rpcctx.RoleAgent}
	log := rpcctx.Logger(ctx).With(logx.ID(logx.KeyAgent, k.AgentID))
	return rpcctx.WithLogger(rpcctx.WithCaller(ctx, caller), log), k, nil
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

// stream is one open Connect call.
type stream struct {
	*agents
	grpc       agentv1.AgentService_ConnectServer
	credential store.Credential
	line       *hub.Stream
}

// helloTimeout bounds the wait for the first message.
const helloTimeout = 15 * time.Second

// Connect is presence up; hints and drain notices down. The handler's goroutine sends, one beside it receives.
func (s *agents) Connect(g agentv1.AgentService_ConnectServer) error {
	ctx, k, err := s.authenticate(g.Context())
	if errs.ReasonOf(err) == "AGENT_RETIRED" {
		return s.sendRetired(g, err)
	}
	if err != nil {
		return err
	}
	hello := make(chan *agentv1.Hello, 1)
	received := run.Go(func() error { return s.receive(g, k.AgentID, hello) })
	first, err := awaitHello(ctx, hello, received)
	if err != nil {
		return err
	}
	epoch, err := s.core.Opened(ctx, k.AgentID, clientAddress(ctx), first.GetHost())
	if err != nil {
		return err
	}
	st := &stream{agents: s, grpc: g, credential: k, line: hub.NewStream(k.AgentID, epoch)}
	s.hub.Attach(st.line)
	defer s.hub.Detach(st.line)
	return st.serve(ctx, received)
}

// sendRetired tells an agent that was retired while it was away.
func (s *agents) sendRetired(g agentv1.AgentService_ConnectServer, cause error) error {
	if err := g.Send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Retired{Retired: &agentv1.Retired{}}}); err != nil {
		return err
	}
	return cause
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
			err = errs.Field("hello", "must be the first message of a stream")
		}
		return nil, err
	case <-timer.C:
		return nil, errs.New(errs.DeadlineExceeded, "HELLO_MISSING", "no hello came within %s", helloTimeout)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

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

// serve sends until one side ends the stream. It returns nil when the server ends it in order.
func (s *stream) serve(ctx context.Context, received <-chan error) error {
	life := time.NewTimer(tick.Jittered(s.cfg.StreamLifetime, tick.DefaultJitter))
	defer life.Stop()
	check, err := tick.New(s.cfg.CredentialCheckInterval, tick.DefaultJitter)
	if err != nil {
		return err
	}
	defer check.Stop()
	if err := s.welcome(ctx); err != nil {
		return err
	}
	rotated := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-received:
			return err
		case <-s.line.Work():
			if err := s.hint(s.line.Number()); err != nil {
				return err
			}
		case why := <-s.line.Ended():
			return s.end(why)
		case <-life.C:
			return s.end(hub.Draining)
		case <-s.line.Recheck():
			if rotated, err = s.recheck(ctx, rotated); err != nil {
				return err
			}
			if err := s.hintOpen(ctx); err != nil {
				return err
			}
		case <-check.C:
			if rotated, err = s.recheck(ctx, rotated); err != nil {
				return err
			}
		}
	}
}

// welcome answers the hello, and says at once what is in the mailbox.
func (s *stream) welcome(ctx context.Context) error {
	err := s.grpc.Send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{Welcome: &agentv1.Welcome{
		HeartbeatInterval: durationpb.New(s.cfg.HeartbeatInterval), ServerVersion: s.cfg.ServerVersion,
	}}})
	if err != nil {
		return err
	}
	return s.hintOpen(ctx)
}

func (s *stream) hintOpen(ctx context.Context) error {
	number, err := s.core.OpenWork(ctx, s.line.AgentID)
	if err != nil || number == 0 {
		return err
	}
	return s.hint(number)
}

func (s *stream) hint(number int64) error {
	return s.grpc.Send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_WorkHint{WorkHint: &agentv1.WorkHint{Revision: number}}})
}

func (s *stream) end(why hub.End) error {
	switch why {
	case hub.Retired:
		return s.sendRetired(s.grpc, errs.New(errs.PermissionDenied, "AGENT_RETIRED", "agent %s is retired", s.line.AgentID))
	case hub.Superseded:
		return errs.New(errs.Conflict, "STREAM_SUPERSEDED", "the agent has opened a newer stream")
	default:
		return s.grpc.Send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Drain{Drain: &agentv1.Drain{
			ReconnectAfter: durationpb.New(hub.ReconnectAfter()),
		}}})
	}
}

// recheck ends a stream whose credential no longer holds, and hints, once, that an old one be rotated. A database that
// cannot be asked ends nothing.
func (s *stream) recheck(ctx context.Context, rotated bool) (bool, error) {
	rotate, err := s.core.Recheck(ctx, s.credential.ID)
	if errs.ReasonOf(err) == "AGENT_RETIRED" {
		return rotated, s.end(hub.Retired)
	}
	if errs.IsKind(err, errs.Unauthenticated) {
		return rotated, err
	}
	if err != nil {
		s.log.Warn("check credential of a stream", logx.ID(logx.KeyAgent, s.line.AgentID), logx.Error(err))
		return rotated, nil
	}
	if !rotate || rotated {
		return rotated, nil
	}
	return true, s.grpc.Send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_RotateHint{RotateHint: &agentv1.RotateHint{}}})
}
