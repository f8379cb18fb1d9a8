package fleet_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certctl/certctl/deploy/bench/internal/fleet"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

const patience = 30 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// gateway is a fake that has one piece of work for each agent.
type gateway struct {
	agentv1.UnimplementedAgentServiceServer
	mu    sync.Mutex
	open  map[string]*agentv1.Assignment // by credential
	beats int
	csrs  []string
	end   chan struct{} // closed: all streams end
}

func credentialOf(ctx context.Context) string {
	return metadata.ValueFromIncomingContext(ctx, "authorization")[0]
}

func (g *gateway) Enroll(_ context.Context, r *agentv1.EnrollRequest) (*agentv1.EnrollResponse, error) {
	return &agentv1.EnrollResponse{AgentId: "agent-of-" + r.GetName(), Credential: "credential-of-" + r.GetName()}, nil
}

func (g *gateway) Connect(s agentv1.AgentService_ConnectServer) error {
	if _, err := s.Recv(); err != nil {
		return err
	}
	g.mu.Lock()
	end, work := g.end, g.open[credentialOf(s.Context())]
	g.mu.Unlock()
	err := s.Send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{Welcome: &agentv1.Welcome{HeartbeatInterval: durationpb.New(20 * time.Millisecond)}}})
	if err == nil && work != nil {
		err = s.Send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_WorkHint{WorkHint: &agentv1.WorkHint{Revision: work.GetRevision()}}})
	}
	if err != nil {
		return err
	}
	received := run.Go(func() error {
		for {
			if _, err := s.Recv(); err != nil {
				return err
			}
			g.mu.Lock()
			g.beats++
			g.mu.Unlock()
		}
	})
	select {
	case <-end:
		return nil
	case err := <-received:
		return err
	}
}

func (g *gateway) ListAssignments(ctx context.Context, _ *agentv1.ListAssignmentsRequest) (*agentv1.ListAssignmentsResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := &agentv1.ListAssignmentsResponse{}
	if work := g.open[credentialOf(ctx)]; work != nil {
		out.Assignments = append(out.Assignments, work)
	}
	return out, nil
}

func (g *gateway) ReportAssignment(ctx context.Context, r *agentv1.ReportAssignmentRequest) (*agentv1.ReportAssignmentResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.open, credentialOf(ctx))
	g.csrs = append(g.csrs, r.GetCsr().GetCsrPem())
	return &agentv1.ReportAssignmentResponse{}, nil
}

// serve serves a fake and gives what a fleet must know of it.
func serve(t *testing.T) (*gateway, fleet.Config) {
	t.Helper()
	pattern := httptest.NewTLSServer(nil) // has a certificate
	pattern.Close()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := &gateway{open: map[string]*agentv1.Assignment{}, end: make(chan struct{})}
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&pattern.TLS.Certificates[0])))
	agentv1.RegisterAgentServiceServer(server, g)
	served := run.Go(func() error { return server.Serve(lis) })
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-served)
	})
	ca := filepath.Join(t.TempDir(), "ca.crt")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: pattern.Certificate().Raw}
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(block), 0o600))
	return g, fleet.Config{URL: "https://" + lis.Addr().String(), CAFile: ca}
}

func TestAFleetConnectsWorksAndComesBack(t *testing.T) {
	t.Parallel()
	const agents = 30
	g, cfg := serve(t)
	var err error
	cfg.Credentials, err = fleet.Enroll(t.Context(), cfg, secretbox.NewSecret("a token of the test"), agents)
	require.NoError(t, err)
	for i, c := range cfg.Credentials {
		g.open["Bearer "+c.Secret.Reveal()] = &agentv1.Assignment{Id: c.AgentID, Revision: 1, LeaseId: "lease", Work: &agentv1.Assignment_CreateCsr{
			CreateCsr: &agentv1.CreateCsr{CertificateId: fmt.Sprint("cert-", i), Names: &typev1.Names{DnsNames: []string{"www.example.com"}}},
		}}
	}
	f, err := fleet.Start(t.Context(), cfg)
	require.NoError(t, err)
	defer f.Close()
	f.Created("cert-0", time.Now())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, f.WaitConnected(ctx, agents))
	require.Eventually(t, func() bool { return f.Counts().Reported == agents }, patience, 5*time.Millisecond)
	require.Zero(t, f.Waiting())
	require.Positive(t, f.Delays().Latency().Max)
	g.mu.Lock()
	block, _ := pem.Decode([]byte(g.csrs[0]))
	g.mu.Unlock()
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	require.NoError(t, err)
	require.NoError(t, csr.CheckSignature())
	require.Equal(t, []string{"www.example.com"}, csr.DNSNames)
	require.Eventually(t, func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.beats > 3*agents
	}, patience, 5*time.Millisecond, "heartbeats come as asked for")

	g.mu.Lock()
	close(g.end)
	g.end = make(chan struct{})
	g.mu.Unlock()
	require.Eventually(t, func() bool { return f.Counts().Welcomes == 2*agents && f.Connected() == agents }, patience, 5*time.Millisecond)
	require.Equal(t, agents, f.Counts().Losses)
	require.Zero(t, f.Counts().Failed)
}

func TestAFleetThatDoesNotConnectIsToldWithItsNumber(t *testing.T) {
	t.Parallel()
	_, cfg := serve(t)
	cfg.Credentials = []fleet.Credential{{AgentID: "one", Secret: secretbox.NewSecret("secret of one")}}
	f, err := fleet.Start(t.Context(), cfg)
	require.NoError(t, err)
	defer f.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, f.WaitConnected(ctx, 2), "of 2 agents connected")
}
