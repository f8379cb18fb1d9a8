package client_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/errs"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client"
)

// now is the time of all tests.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(d)) }

const day = 24 * time.Hour

const testKey = "key-of-the-tests"

// gateway is a server with TLS 1.3 that has the services of a gateway; tests say what their methods answer.
type gateway struct {
	url, dir string
	http     *httptest.Server

	mu       sync.Mutex
	handlers map[string]func(context.Context, any) (any, error)
	calls    []call
}

type call struct {
	method  string
	request proto.Message
}

func newGateway(t *testing.T) *gateway {
	t.Helper()
	g := &gateway{handlers: make(map[string]func(context.Context, any) (any, error))}
	srv := grpc.NewServer(grpc.UnaryInterceptor(g.serve))
	inventoryv1.RegisterCertificateServiceServer(srv, inventoryv1.UnimplementedCertificateServiceServer{})
	inventoryv1.RegisterTargetServiceServer(srv, inventoryv1.UnimplementedTargetServiceServer{})
	inventoryv1.RegisterDeploymentServiceServer(srv, inventoryv1.UnimplementedDeploymentServiceServer{})
	inventoryv1.RegisterAgentRegistryServiceServer(srv, inventoryv1.UnimplementedAgentRegistryServiceServer{})
	inventoryv1.RegisterStatsServiceServer(srv, inventoryv1.UnimplementedStatsServiceServer{})
	issuancev1.RegisterIssuerServiceServer(srv, issuancev1.UnimplementedIssuerServiceServer{})
	issuancev1.RegisterProfileServiceServer(srv, issuancev1.UnimplementedProfileServiceServer{})
	issuancev1.RegisterOrderServiceServer(srv, issuancev1.UnimplementedOrderServiceServer{})
	schedulerv1.RegisterJobServiceServer(srv, schedulerv1.UnimplementedJobServiceServer{})
	schedulerv1.RegisterPolicyServiceServer(srv, schedulerv1.UnimplementedPolicyServiceServer{})
	auditv1.RegisterAuditServiceServer(srv, auditv1.UnimplementedAuditServiceServer{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/version", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+testKey {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte(`{"version":"v9.8.7","commit":"abcdef0"}`))
	})
	g.http = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			srv.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	g.http.EnableHTTP2 = true
	g.http.StartTLS()
	t.Cleanup(g.http.Close)
	g.url = g.http.URL
	g.dir = g.home(t)
	return g
}

// home makes a data directory as serve does.
func (g *gateway) home(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.http.Certificate().Raw})
	for name, text := range map[string]string{"url": g.url + "\n", "api-key": testKey + "\n", "ca.crt": string(ca)} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir
}

func (g *gateway) serve(ctx context.Context, req any, info *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
	if err := grpc.SetHeader(ctx, metadata.Pairs("x-request-id", "req-1")); err != nil {
		return nil, err
	}
	md, _ := metadata.FromIncomingContext(ctx)
	switch authorization := md.Get("authorization"); {
	case len(authorization) == 0:
		return nil, errs.New(errs.Unauthenticated, "CREDENTIAL_MISSING", "an API key is needed").GRPCStatus().Err()
	case authorization[0] != "Bearer "+testKey:
		return nil, errs.New(errs.Unauthenticated, "CREDENTIAL_NOT_VALID", "the API key is not valid").GRPCStatus().Err()
	}
	g.mu.Lock()
	message, _ := req.(proto.Message)
	g.calls = append(g.calls, call{info.FullMethod, message})
	handler := g.handlers[info.FullMethod]
	g.mu.Unlock()
	if handler == nil {
		return nil, errs.New(errs.Unimplemented, "NO_FAKE", "no fake for %s", info.FullMethod).GRPCStatus().Err()
	}
	resp, err := handler(ctx, req)
	if err != nil {
		return nil, errs.From(err).GRPCStatus().Err()
	}
	return resp, nil
}

// on says what a method answers.
func on[Req, Resp proto.Message](g *gateway, method string, f func(Req) (Resp, error)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.handlers[method] = func(_ context.Context, req any) (any, error) { return f(req.(Req)) }
}

// answer is on for an answer that is always the same.
func answer[Req, Resp proto.Message](g *gateway, method string, _ Req, resp Resp) {
	on(g, method, func(Req) (Resp, error) { return resp, nil })
}

// requests gives what a method was asked, in order.
func requests[Req proto.Message](g *gateway, method string) []Req {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []Req
	for _, c := range g.calls {
		if c.method == method {
			out = append(out, c.request.(Req))
		}
	}
	return out
}

// result is what a run of the program did.
type result struct {
	out, err string
	failure  error
	code     int
}

// program is a run of certctl.
type program struct {
	environ     []string
	input       string
	interactive bool
}

func (p program) run(t *testing.T, args ...string) result {
	t.Helper()
	return p.runContext(t.Context(), args...)
}

func (p program) runContext(ctx context.Context, args ...string) result {
	root := &cobra.Command{Use: "certctl"}
	root.AddCommand(client.Commands(client.Config{
		Environ: p.environ, Now: func() time.Time { return now }, Poll: time.Millisecond,
		Interactive: func(io.Reader) bool { return p.interactive },
	})...)
	var out, errOut bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errOut)
	root.SetIn(strings.NewReader(p.input))
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	return result{out.String(), errOut.String(), err, client.ExitCode(err)}
}

// run runs the program with the gateway's data directory.
func (g *gateway) run(t *testing.T, args ...string) result {
	t.Helper()
	return program{environ: []string{"CERTCTL_DATA_DIR=" + g.dir}}.run(t, args...)
}

// ok runs what must work.
func (g *gateway) ok(t *testing.T, args ...string) result {
	t.Helper()
	r := g.run(t, args...)
	require.NoError(t, r.failure)
	require.Zero(t, r.code)
	return r
}
