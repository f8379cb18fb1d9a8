package rpc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/testing/testpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/testrpc"
)

func longLived(c *rpc.ServerConfig, _ *rpc.ServerDeps) {
	c.LongLivedStreams = []string{pingStream}
	c.DrainNotice = 100 * time.Millisecond
	c.DrainTimeout = time.Minute
}

// openStream opens a stream and waits until its handler runs.
func openStream(t *testing.T, s *testrpc.Server, started <-chan struct{}) testpb.TestService_PingStreamClient {
	t.Helper()
	stream, err := testpb.NewTestServiceClient(s.AsRole(t, rpcctx.RoleAdmin)).PingStream(t.Context())
	require.NoError(t, err)
	<-started
	return stream
}

func TestALongLivedStreamThatHeedsDrainingEndsInPeace(t *testing.T) {
	t.Parallel()
	started := make(chan struct{})
	var s *testrpc.Server
	s = serve(t, &fake{stream: func(st testpb.TestService_PingStreamServer) error {
		close(started)
		<-s.RPC.Draining()
		return st.Send(&testpb.PingStreamResponse{Value: "come back later"})
	}}, longLived)
	stream := openStream(t, s, started)

	require.NoError(t, s.Stop())

	m, err := stream.Recv()
	require.NoError(t, err)
	require.Equal(t, "come back later", m.GetValue())
	_, err = stream.Recv()
	require.ErrorContains(t, err, "EOF")
}

func TestALongLivedStreamThatDoesNotEndIsCut(t *testing.T) {
	t.Parallel()
	started := make(chan struct{})
	s := serve(t, &fake{stream: func(st testpb.TestService_PingStreamServer) error {
		close(started)
		_, err := st.Recv() // never told anything
		return err
	}}, longLived)
	stream := openStream(t, s, started)

	start := time.Now()
	require.NoError(t, s.Stop())

	require.Less(t, time.Since(start), 30*time.Second, "the drain timeout is a minute")
	_, err := stream.Recv()
	require.Equal(t, errs.Unavailable, errs.KindOf(err))
	require.Equal(t, "tested", errs.MetaOf(err)["service"])
}

func TestACallUnderWayIsWaitedForWhenAStreamIsNot(t *testing.T) {
	t.Parallel()
	streaming, calling, finish := make(chan struct{}), make(chan struct{}), make(chan struct{})
	s := serve(t, &fake{
		stream: func(st testpb.TestService_PingStreamServer) error {
			close(streaming)
			_, err := st.Recv()
			return err
		},
		ping: func(context.Context, *testpb.PingRequest) (*testpb.PingResponse, error) {
			close(calling)
			<-finish
			return &testpb.PingResponse{}, nil
		},
	}, longLived)
	openStream(t, s, streaming)
	conn := s.AsRole(t, rpcctx.RoleAdmin)
	var wg sync.WaitGroup
	var pingErr, stopErr error
	wg.Go(func() { pingErr = doPing(t.Context(), conn) })
	<-calling
	wg.Go(func() { stopErr = s.Stop() })
	<-s.RPC.Draining()
	notice := time.NewTimer(300 * time.Millisecond)
	<-notice.C // the notice of the streams is over, the call is not
	close(finish)
	wg.Wait()
	require.NoError(t, pingErr)
	require.NoError(t, stopErr)
}

func TestTheDrainIsBounded(t *testing.T) {
	t.Parallel()
	calling := make(chan struct{})
	s := serve(t, &fake{ping: func(ctx context.Context, _ *testpb.PingRequest) (*testpb.PingResponse, error) {
		close(calling)
		<-ctx.Done()
		return nil, ctx.Err()
	}}, func(c *rpc.ServerConfig, _ *rpc.ServerDeps) { c.DrainTimeout = 100 * time.Millisecond })
	conn := s.AsRole(t, rpcctx.RoleAdmin)
	result := make(chan error, 1)
	go func() { result <- doPing(t.Context(), conn) }()
	<-calling
	require.NoError(t, s.Stop())
	require.Equal(t, errs.Unavailable, errs.KindOf(<-result))
}

func TestHealthIsPublicAndEndsWithTheServer(t *testing.T) {
	t.Parallel()
	s := serve(t, pings(nil), nil)
	c := grpc_health_v1.NewHealthClient(s.AsStranger(t))
	for _, service := range []string{"", testpb.TestServiceFullName} {
		resp, err := c.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
		require.NoError(t, err)
		require.Equal(t, grpc_health_v1.HealthCheckResponse_SERVING, resp.GetStatus())
	}
	require.NoError(t, s.Stop())
	resp, err := s.RPC.Health().GRPC().Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	require.NoError(t, err)
	require.Equal(t, grpc_health_v1.HealthCheckResponse_NOT_SERVING, resp.GetStatus())
	require.False(t, s.RPC.Health().Ready(t.Context()).Ready)
}

func TestAnUnknownLongLivedStreamStopsTheStart(t *testing.T) {
	t.Parallel()
	s := newServer(t, rpc.ServerConfig{LongLivedStreams: []string{"/a.B/C"}}, rpc.ServerDeps{Table: rpc.AuthzTable{}})
	require.ErrorContains(t, s.Prepare(), "/a.B/C")
}

func TestAServerWithoutTLSServesInMemoryOnly(t *testing.T) {
	t.Parallel()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := newServer(t, rpc.ServerConfig{}, rpc.ServerDeps{Table: rpc.AuthzTable{}})
	require.ErrorContains(t, s.Serve(t.Context(), lis), "needs TLS")
	_, err = rpc.Dial(rpc.ClientConfig{Target: "dns:///inventory:9443"})
	require.ErrorContains(t, err, "needs TLS")
}

// certificate makes a self-signed certificate for 127.0.0.1.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestServiceAndPeerTalkOverTLS13(t *testing.T) {
	t.Parallel()
	cert, pool := certificate(t)
	s := newServer(t, rpc.ServerConfig{TLS: &tls.Config{Certificates: []tls.Certificate{cert}}}, rpc.ServerDeps{Table: table()})
	registerFakes(pings(nil))(s)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, lis) }()

	conn, err := rpc.Dial(rpc.ClientConfig{
		Service: "audit", Target: "dns:///" + lis.Addr().String(), InternalSecret: testrpc.Secret(), TLS: &tls.Config{RootCAs: pool},
	})
	require.NoError(t, err)
	require.NoError(t, doPing(t.Context(), conn))
	require.NoError(t, conn.Close())

	old := &tls.Dialer{Config: &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS12}}
	_, err = old.DialContext(t.Context(), "tcp", lis.Addr().String())
	require.ErrorContains(t, err, "protocol version")

	cancel()
	require.NoError(t, <-served)
}
