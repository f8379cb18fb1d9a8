package rpc_test

import (
	"testing"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
)

func TestTheTableDecidesPerRole(t *testing.T) {
	t.Parallel()
	s := serve(t, pings(nil), nil)
	for _, role := range rpcctx.Roles() {
		err := doPing(t.Context(), s.AsRole(t, role))
		switch role {
		case rpcctx.RoleAdmin, rpcctx.RoleViewer, rpcctx.RolePeer:
			require.NoError(t, err, role)
		default:
			require.Equal(t, errs.PermissionDenied, errs.KindOf(err), role)
			require.Equal(t, string(role), errs.MetaOf(err)["role"])
		}
	}
}

func TestAStreamIsRefusedLikeAUnaryCall(t *testing.T) {
	t.Parallel()
	s := serve(t, pings(nil), nil)
	stream, err := testpb.NewTestServiceClient(s.AsRole(t, rpcctx.RoleViewer)).PingStream(t.Context())
	require.NoError(t, err)
	_, err = stream.Recv()
	require.Equal(t, "ROLE_NOT_ALLOWED", errs.ReasonOf(err))
}

func TestATableMustBeComplete(t *testing.T) {
	t.Parallel()
	server := grpc.NewServer()
	registerFakes(pings(nil))(server)
	require.NoError(t, table().CheckComplete(server))

	for name, c := range map[string]struct {
		change func(rpc.AuthzTable)
		want   string
	}{
		"missing":      {func(a rpc.AuthzTable) { delete(a, ping) }, ping + ": registered and not in"},
		"stale":        {func(a rpc.AuthzTable) { a[ping+"s"] = rpc.Rule{Public: true} }, ping + "s: in the authorisation table and not registered"},
		"nobody":       {func(a rpc.AuthzTable) { a[ping] = rpc.Rule{} }, "either public or names roles"},
		"both":         {func(a rpc.AuthzTable) { a[ping] = rpc.Rule{Public: true, Roles: rpcctx.Roles()} }, "either public or names roles"},
		"unknown role": {func(a rpc.AuthzTable) { a[ping] = rpc.Allow("root") }, `unknown role "root"`},
	} {
		all := table()
		c.change(all)
		require.ErrorContains(t, all.CheckComplete(server), c.want, name)
	}
}

func TestAServerWithAnIncompleteTableDoesNotStart(t *testing.T) {
	t.Parallel()
	incomplete := table()
	delete(incomplete, ping)
	s := newServer(t, rpc.ServerConfig{}, rpc.ServerDeps{Table: incomplete})
	registerFakes(pings(nil))(s)
	n := rpc.NewMemoryNetwork()
	lis, err := n.Listen("x")
	require.NoError(t, err)
	require.ErrorContains(t, s.Serve(t.Context(), lis), ping)
	_, err = n.Listen("x")
	require.NoError(t, err, "the listener was closed")
}

// raw lets any method through, as the proxy of the gateway does.
func raw(_ any, _ grpc.ServerStream) error { return status.Error(codes.OK, "") }

func TestAProxiedMethodThatIsNotInTheTableIsRefused(t *testing.T) {
	t.Parallel()
	s := serve(t, pings(nil), func(_ *rpc.ServerConfig, d *rpc.ServerDeps) {
		d.Unknown = raw
		d.Table["/elsewhere.Service/Known"] = rpc.Allow(rpcctx.RoleAdmin)
	})
	admin := s.AsRole(t, rpcctx.RoleAdmin)
	err := admin.Invoke(t.Context(), "/elsewhere.Service/Other", &testpb.PingRequest{}, &testpb.PingResponse{})
	require.Equal(t, "METHOD_NOT_ALLOWED", errs.ReasonOf(err))

	stream, err := admin.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/elsewhere.Service/Known")
	require.NoError(t, err)
	require.NoError(t, stream.CloseSend())
	require.ErrorContains(t, stream.RecvMsg(&testpb.PingResponse{}), "EOF")

	families, err := s.Metrics.Gather()
	require.NoError(t, err)
	for _, f := range families {
		require.NotContains(t, f.String(), "Other", "a name that a client made up is no label")
	}
}
