package gateway_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/certctl/certctl/gateway"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpcctx"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
)

const (
	waitTime = 5 * time.Second
	pollTime = 10 * time.Millisecond
)

func TestGRPCPassesThroughTheSamePort(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	client := inventoryv1.NewCertificateServiceClient(w.grpcConn(t, operatorKey))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "idempotency-key", "key-1", "certctl-caller", "forged", "certctl-credential", "x",
		"x-evil", "1", "x-request-id", "grpc-1")
	var header metadata.MD
	answer, err := client.ListCertificates(ctx, &inventoryv1.ListCertificatesRequest{PageSize: 7}, grpc.Header(&header))
	require.NoError(t, err)
	require.Len(t, answer.GetCertificates(), 2)
	require.EqualValues(t, 7, w.inventory.listed.GetPageSize())
	caller, md := w.inventory.last()
	require.Equal(t, rpcctx.Caller{Type: rpcctx.User, ID: "ci", Role: rpcctx.RoleOperator}, caller)
	require.Equal(t, []string{"key-1"}, md.Get("idempotency-key"))
	require.Equal(t, []string{"grpc-1"}, md.Get("x-request-id"))
	require.Equal(t, []string{"grpc-1"}, header.Get("x-request-id"))
	require.Empty(t, md.Get("x-evil"))
	require.Empty(t, md.Get("certctl-credential"))
}

func TestGRPCErrorsArriveWithTheirDetails(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	client := inventoryv1.NewCertificateServiceClient(w.grpcConn(t, adminKey))
	get := func(id string) error {
		_, err := client.GetCertificate(t.Context(), &inventoryv1.GetCertificateRequest{Id: id})
		return err
	}
	err := get("conflict")
	require.Equal(t, codes.Aborted, status.Code(err))
	require.Equal(t, "WRONG_STATE", errs.ReasonOf(err))
	require.Equal(t, map[string]string{"state": "ARCHIVED"}, errs.MetaOf(err))
	after, ok := errs.From(get("limited")).RetryDelay()
	require.True(t, ok)
	require.Equal(t, 1500*time.Millisecond, after)
	err = get("secret")
	require.Equal(t, codes.Internal, status.Code(err))
	require.NotContains(t, err.Error(), "hunter2")
	require.Len(t, errs.From(get("")).Violations(), 1)
	require.Equal(t, codes.Unimplemented, status.Code(func() error {
		_, err := client.RevokeCertificate(t.Context(), &inventoryv1.RevokeCertificateRequest{Id: "x", Reason: 1})
		return err
	}()))
}

func TestGRPCNeedsAKeyAsRESTDoes(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	for _, token := range []string{"", "wrong-key-0123456789"} {
		_, err := inventoryv1.NewCertificateServiceClient(w.grpcConn(t, token)).ListCertificates(t.Context(), &inventoryv1.ListCertificatesRequest{})
		require.Equal(t, codes.Unauthenticated, status.Code(err))
	}
	require.Zero(t, w.inventory.lists.Load())
}

func TestServicesForPeersDoNotExistOutside(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	conn := w.grpcConn(t, adminKey)
	_, err := inventoryv1.NewInventoryInternalServiceClient(conn).BatchGetCertificates(t.Context(), &inventoryv1.BatchGetCertificatesRequest{})
	require.Equal(t, codes.Unimplemented, status.Code(err))
	_, err = eventv1.NewRevisionServiceClient(conn).GetRevision(t.Context(), &eventv1.GetRevisionRequest{Collection: "certificates"})
	require.Equal(t, codes.Unimplemented, status.Code(err))
	_, err = eventv1.NewEventSinkServiceClient(conn).Deliver(t.Context(), &eventv1.DeliverRequest{})
	require.Equal(t, codes.Unimplemented, status.Code(err))
	_, err = grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	require.NoError(t, err, "load balancers may ask for health")
}

func TestDeadlinesAndCancellationReachTheService(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	client := inventoryv1.NewCertificateServiceClient(w.grpcConn(t, adminKey))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	answer, err := client.GetCertificate(ctx, &inventoryv1.GetCertificateRequest{Id: "deadline"})
	require.NoError(t, err)
	require.Equal(t, "true true", answer.GetCertificate().GetId())
	ctx, cancel = context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := client.GetCertificate(ctx, &inventoryv1.GetCertificateRequest{Id: "slow"})
		ended <- err
	}()
	require.Eventually(t, func() bool {
		w.inventory.calls.mu.Lock()
		defer w.inventory.calls.mu.Unlock()
		return len(w.inventory.callers) == 2
	}, waitTime, pollTime)
	cancel()
	require.Equal(t, codes.Canceled, status.Code(<-ended))
	select {
	case <-w.inventory.cancelled:
	case <-time.After(waitTime):
		require.Fail(t, "the service goes on")
	}
}

func TestAMessageOverTheLimitIsRefused(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	client := inventoryv1.NewCertificateServiceClient(w.grpcConn(t, adminKey))
	_, err := client.CreateCertificate(t.Context(), &inventoryv1.CreateCertificateRequest{
		Certificate: &inventoryv1.Certificate{Name: strings.Repeat("x", 1<<20)},
	})
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	require.Equal(t, "MESSAGE_TOO_LARGE", errs.ReasonOf(err))
}

func TestAnAgentShowsItsCredentialAndNoKey(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	enroll := &agentv1.EnrollRequest{JoinToken: strings.Repeat("t", 16), Name: "web-1", InstanceId: strings.Repeat("i", 16)}
	answer, err := agentv1.NewAgentServiceClient(w.grpcConn(t, "")).Enroll(t.Context(), enroll)
	require.NoError(t, err)
	require.Equal(t, "agent-web-1", answer.GetAgentId())
	caller, md := w.inventory.last()
	require.True(t, caller.IsAnonymous())
	require.Empty(t, md.Get("certctl-credential"))
	require.Equal(t, []string{"127.0.0.1"}, md.Get("certctl-peer-address"))

	ctx := metadata.AppendToOutgoingContext(t.Context(), "certctl-peer-address", "1.2.3.4", "certctl-caller", "forged")
	_, err = agentv1.NewAgentServiceClient(w.grpcConn(t, "the-agents-credential")).Enroll(ctx, enroll)
	require.NoError(t, err)
	caller, md = w.inventory.last()
	require.True(t, caller.IsAnonymous())
	require.Equal(t, []string{"the-agents-credential"}, md.Get("certctl-credential"))
	require.Equal(t, []string{"127.0.0.1"}, md.Get("certctl-peer-address"))
	_, md = w.inventory.last()
	require.NotContains(t, fmt.Sprint(md.Get("authorization")), "the-agents-credential")
}

// beat sends a heartbeat and reads what comes back for it.
func beat(s agentv1.AgentService_ConnectClient) (*agentv1.ConnectResponse, error) {
	if err := s.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Heartbeat{Heartbeat: &agentv1.Heartbeat{}}}); err != nil {
		return nil, err
	}
	return s.Recv()
}

func TestAgentsStreamsGoBothWaysAndHaveNoEnd(t *testing.T) {
	t.Parallel()
	const timeout = 300 * time.Millisecond
	w := start(t, func(c *gateway.Config, _ *gateway.Deps) { c.RequestTimeout = timeout })
	client := agentv1.NewAgentServiceClient(w.grpcConn(t, "the-agents-credential"))
	begin := time.Now()
	var agents sync.WaitGroup
	for range 50 {
		agents.Go(func() {
			s, err := client.Connect(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			last := int64(0)
			for last < 100 || time.Since(begin) < 4*timeout { // far beyond what a call may take
				m, err := beat(s)
				if err != nil || m.GetWorkHint().GetRevision() != last+1 {
					t.Errorf("after %d messages: %v %v", last, m, err)
					return
				}
				last++
			}
			if err := s.CloseSend(); err != nil {
				t.Error(err)
			}
			if m, err := s.Recv(); m != nil || err == nil || err.Error() != "EOF" {
				t.Errorf("the service ended the stream; got %v %v", m, err)
			}
		})
	}
	agents.Wait()
}

func TestAgentsAreAskedToConnectElsewhereWhenTheGatewayStops(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	s, err := agentv1.NewAgentServiceClient(w.grpcConn(t, "the-agents-credential")).Connect(t.Context())
	require.NoError(t, err)
	_, err = beat(s)
	require.NoError(t, err)
	begin := time.Now()
	stopped := make(chan error, 1)
	go func() { stopped <- w.stop() }()
	m, err := s.Recv()
	require.NoError(t, err)
	require.NotNil(t, m.GetDrain())
	require.Less(t, m.GetDrain().GetReconnectAfter().AsDuration(), 5*time.Second)
	_, err = s.Recv()
	require.EqualError(t, err, "EOF")
	require.NoError(t, <-stopped)
	require.Less(t, time.Since(begin), 5*time.Second, "the stop does not wait for agents")
}

func TestTheEndOfAnAgentsConnectionReachesTheService(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	conn := w.grpcConn(t, "the-agents-credential")
	s, err := agentv1.NewAgentServiceClient(conn).Connect(t.Context())
	require.NoError(t, err)
	_, err = beat(s)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.Eventually(t, func() bool { // the gateway has logged the end of the stream
		return w.logs.FilterField(zapMethod(agentv1.AgentService_Connect_FullMethodName)).Len() > 0
	}, waitTime, pollTime)
}

func TestAStreamTellsWhenItsServiceGoesAway(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	s, err := agentv1.NewAgentServiceClient(w.grpcConn(t, "the-agents-credential")).Connect(t.Context())
	require.NoError(t, err)
	_, err = beat(s)
	require.NoError(t, err)
	w.services.stop["inventory"]()
	_, err = s.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
}
