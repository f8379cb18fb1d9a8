package rpc_test

import (
	"context"
	"net"
	"testing"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/secretbox"
)

// benchSecret is what the peers of the benchmark know each other by.
const benchSecret = "an internal secret of a benchmark"

// BenchmarkBare is what grpc itself costs: the limit of BenchmarkChain.
func BenchmarkBare(b *testing.B) {
	lis := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	registerFakes(pings(nil))(server)
	go func() { _ = server.Serve(lis) }()
	b.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///bare", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	require.NoError(b, err)
	b.Cleanup(func() { _ = conn.Close() })
	pingAll(b.Context(), b, conn)
}

// BenchmarkChain is the same call with all that the client and the server of certctl do around it, for a user of the gateway.
func BenchmarkChain(b *testing.B) {
	network := rpc.NewMemoryNetwork()
	reg := prometheus.NewRegistry()
	log := zap.New(zap.NewNop().Core())
	server, err := rpc.NewServer(rpc.ServerConfig{Service: "test", InternalSecret: secretbox.NewSecret(benchSecret)},
		rpc.ServerDeps{Logger: log, Registry: reg, Table: table()})
	require.NoError(b, err)
	registerFakes(pings(nil))(server)
	lis, err := network.Listen("test")
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, lis) }()
	b.Cleanup(func() {
		cancel()
		require.NoError(b, <-ended)
	})
	metrics, err := rpc.NewClientMetrics(reg)
	require.NoError(b, err)
	conn, err := rpc.Dial(rpc.ClientConfig{Service: rpc.Gateway, Target: "test", InternalSecret: secretbox.NewSecret(benchSecret), Dialer: network.Dialer("test"), Metrics: metrics})
	require.NoError(b, err)
	b.Cleanup(func() { _ = conn.Close() })
	pingAll(rpcctx.WithRequestID(rpcctx.WithCaller(b.Context(), rpcctx.Caller{Type: rpcctx.User, ID: "alice", Role: rpcctx.RoleAdmin}), "req-1"), b, conn)
}

func pingAll(ctx context.Context, b *testing.B, conn *grpc.ClientConn) {
	b.Helper()
	client := testpb.NewTestServiceClient(conn)
	b.ReportAllocs()
	b.SetParallelism(8)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, err := client.Ping(ctx, &testpb.PingRequest{Value: "x"}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
