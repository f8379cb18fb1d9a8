package rpc_test

import (
	"context"
	"testing"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	testvalidatev1 "github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testvalidate/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/testrpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ping       = testpb.TestService_Ping_FullMethodName
	pingStream = testpb.TestService_PingStream_FullMethodName
	send       = testvalidatev1.TestValidateService_Send_FullMethodName
)

// fake is a service whose methods are given by each test; the others say that they are not implemented.
type fake struct {
	testpb.UnimplementedTestServiceServer

	ping   func(context.Context, *testpb.PingRequest) (*testpb.PingResponse, error)
	stream func(testpb.TestService_PingStreamServer) error
}

func (f *fake) Ping(ctx context.Context, r *testpb.PingRequest) (*testpb.PingResponse, error) {
	return f.ping(ctx, r)
}

func (f *fake) PingStream(s testpb.TestService_PingStreamServer) error { return f.stream(s) }

// table has every method of the fakes: admins and peers may call all, viewers may ping.
func table() rpc.AuthzTable {
	all := rpc.Allow(rpcctx.RoleAdmin, rpcctx.RolePeer)
	return rpc.AuthzTable{
		ping:       rpc.Allow(rpcctx.RoleAdmin, rpcctx.RolePeer, rpcctx.RoleViewer),
		pingStream: all,
		testpb.TestService_PingEmpty_FullMethodName:        {Public: true},
		testpb.TestService_PingError_FullMethodName:        rpc.Allow(rpcctx.RoleNone),
		testpb.TestService_PingList_FullMethodName:         all,
		testpb.TestService_PingClientStream_FullMethodName: all,
		send: all,
		testvalidatev1.TestValidateService_SendStream_FullMethodName: all,
	}
}

func serve(t *testing.T, f *fake, change func(*rpc.ServerConfig, *rpc.ServerDeps)) *testrpc.Server {
	t.Helper()
	return testrpc.Serve(t, testrpc.Config{Table: table(), Register: registerFakes(f), Change: change})
}

func registerFakes(f *fake) func(grpc.ServiceRegistrar) {
	return func(r grpc.ServiceRegistrar) {
		testpb.RegisterTestServiceServer(r, f)
		testvalidatev1.RegisterTestValidateServiceServer(r, validated{})
	}
}

// validated has rules in its .proto: the message is an e-mail address.
type validated struct {
	testvalidatev1.UnimplementedTestValidateServiceServer
}

func (validated) Send(context.Context, *testvalidatev1.SendRequest) (*testvalidatev1.SendResponse, error) {
	return &testvalidatev1.SendResponse{}, nil
}

func (validated) SendStream(_ *testvalidatev1.SendStreamRequest, s testvalidatev1.TestValidateService_SendStreamServer) error {
	return s.Send(&testvalidatev1.SendStreamResponse{})
}

// callerSeen is a fake that notes what its handlers find in the context.
func callerSeen(seen *context.Context) *fake {
	return &fake{ping: func(ctx context.Context, _ *testpb.PingRequest) (*testpb.PingResponse, error) {
		*seen = ctx
		return &testpb.PingResponse{}, nil
	}}
}

// doPing calls Ping on a connection.
func doPing(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
	_, err := testpb.NewTestServiceClient(conn).Ping(ctx, &testpb.PingRequest{}, opts...)
	return err
}

func pings(err error) *fake {
	return &fake{ping: func(context.Context, *testpb.PingRequest) (*testpb.PingResponse, error) {
		if err != nil {
			return nil, err
		}
		return &testpb.PingResponse{}, nil
	}}
}

func memoryConn(t *testing.T, s *testrpc.Server, cfg rpc.ClientConfig) *grpc.ClientConn {
	t.Helper()
	cfg.Target, cfg.Dialer = testrpc.Service, s.Network.Dialer(testrpc.Service)
	conn, err := rpc.Dial(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}
