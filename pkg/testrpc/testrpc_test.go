package testrpc_test

import (
	"context"
	"testing"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/testrpc"
)

// whoami answers with the caller.
type whoami struct {
	testpb.UnimplementedTestServiceServer
}

func (whoami) Ping(ctx context.Context, _ *testpb.PingRequest) (*testpb.PingResponse, error) {
	return &testpb.PingResponse{Value: rpcctx.CallerFrom(ctx).String()}, nil
}

func TestEachConnectionIsItsCaller(t *testing.T) {
	t.Parallel()
	table := rpc.AuthzTable{}
	for _, m := range testpb.TestService_ServiceDesc.Methods {
		table["/"+testpb.TestServiceFullName+"/"+m.MethodName] = rpc.Allow(rpcctx.Roles()...)
	}
	for _, m := range testpb.TestService_ServiceDesc.Streams {
		table["/"+testpb.TestServiceFullName+"/"+m.StreamName] = rpc.Allow(rpcctx.Roles()...)
	}
	s := testrpc.Serve(t, testrpc.Config{Table: table, Register: func(r grpc.ServiceRegistrar) {
		testpb.RegisterTestServiceServer(r, whoami{})
	}})
	ask := func(ctx context.Context, conn *grpc.ClientConn) (string, error) {
		resp, err := testpb.NewTestServiceClient(conn).Ping(ctx, &testpb.PingRequest{})
		return resp.GetValue(), err
	}

	for role, want := range map[rpcctx.Role]string{
		rpcctx.RoleAdmin: "user:admin", rpcctx.RoleAgent: "agent:agent", rpcctx.RolePeer: "service:peer",
	} {
		got, err := ask(t.Context(), s.AsRole(t, role))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}

	bob := rpcctx.Caller{Type: rpcctx.User, ID: "bob", Role: rpcctx.RoleViewer}
	got, err := ask(rpcctx.WithCaller(t.Context(), bob), s.AsRole(t, rpcctx.RoleAdmin))
	require.NoError(t, err)
	require.Equal(t, "user:bob", got, "the caller of the context goes first")

	_, err = ask(t.Context(), s.AsStranger(t))
	require.Equal(t, errs.Unauthenticated, errs.KindOf(err))
	_, err = ask(t.Context(), s.AsRole(t, rpcctx.RoleNone))
	require.Equal(t, errs.Unauthenticated, errs.KindOf(err))
}
