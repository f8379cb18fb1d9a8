package gateway_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/certctl/certctl/gateway"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
)

const (
	adminKey    = "admin-key-0123456789"
	viewerKey   = "viewer-key-0123456789"
	operatorKey = "operator-key-0123456789"
	keyList     = adminKey + ",dash:viewer:" + viewerKey + ", ci:operator:" + operatorKey
)

var internalSecret = secretbox.NewSecret("an-internal-secret-for-tests")

// calls notes what reached a fake service.
type calls struct {
	mu      sync.Mutex
	callers []rpcctx.Caller
	md      []metadata.MD
}

func (c *calls) note(ctx context.Context) {
	md, _ := metadata.FromIncomingContext(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.callers = append(c.callers, rpcctx.CallerFrom(ctx))
	c.md = append(c.md, md)
}

func (c *calls) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.callers, c.md = nil, nil
}

func (c *calls) last() (rpcctx.Caller, metadata.MD) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.callers[len(c.callers)-1], c.md[len(c.md)-1]
}

// revisions is a RevisionService whose revisions tests raise.
type revisions struct {
	n     atomic.Int64
	asked atomic.Int64
}

func (r *revisions) GetRevision(context.Context, *eventv1.GetRevisionRequest) (*eventv1.GetRevisionResponse, error) {
	r.asked.Add(1)
	return &eventv1.GetRevisionResponse{Revision: r.n.Load()}, nil
}

// inventory is a fake with a list that tests change.
type inventory struct {
	inventoryv1.UnimplementedCertificateServiceServer
	inventoryv1.UnimplementedAgentRegistryServiceServer
	inventoryv1.UnimplementedDiscoveryServiceServer
	inventoryv1.UnimplementedStatsServiceServer
	inventoryv1.UnimplementedTargetServiceServer
	inventoryv1.UnimplementedDeploymentServiceServer
	inventoryv1.UnimplementedInventoryInternalServiceServer
	agentv1.UnimplementedAgentServiceServer
	calls
	revisions

	lists     atomic.Int64
	mu        sync.Mutex
	names     []string
	updated   *inventoryv1.UpdateCertificateRequest
	listed    *inventoryv1.ListCertificatesRequest
	failing   error
	cancelled chan struct{}
}

func (f *inventory) set(err error, names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failing, f.names = err, names
	f.n.Add(1)
}

func (f *inventory) ListCertificates(ctx context.Context, r *inventoryv1.ListCertificatesRequest) (*inventoryv1.ListCertificatesResponse, error) {
	f.note(ctx)
	f.lists.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listed = r
	if f.failing != nil {
		return nil, f.failing
	}
	out := &inventoryv1.ListCertificatesResponse{}
	for _, n := range f.names {
		out.Certificates = append(out.Certificates, &inventoryv1.Certificate{Id: "cert-" + n, Name: n, Labels: map[string]string{"b": "2", "a": "1"}})
	}
	return out, nil
}

func (f *inventory) ListAgents(ctx context.Context, _ *inventoryv1.ListAgentsRequest) (*inventoryv1.ListAgentsResponse, error) {
	f.note(ctx)
	return &inventoryv1.ListAgentsResponse{}, nil
}

func (f *inventory) ListDiscoveredCertificates(context.Context, *inventoryv1.ListDiscoveredCertificatesRequest) (*inventoryv1.ListDiscoveredCertificatesResponse, error) {
	return &inventoryv1.ListDiscoveredCertificatesResponse{}, nil
}

func (f *inventory) GetCertificate(ctx context.Context, r *inventoryv1.GetCertificateRequest) (*inventoryv1.GetCertificateResponse, error) {
	f.note(ctx)
	switch r.GetId() {
	case "panics":
		panic("on purpose")
	case "conflict":
		return nil, errs.New(errs.Conflict, "WRONG_STATE", "certificate is ARCHIVED").With("state", "ARCHIVED")
	case "precondition":
		return nil, errs.New(errs.PreconditionFailed, "REVISION_MISMATCH", "it has revision 4, not 3")
	case "limited":
		return nil, errs.New(errs.ResourceExhausted, "RATE_LIMITED", "too many").RetryAfter(1500 * time.Millisecond)
	case "secret":
		return nil, fmt.Errorf("dial tcp 10.0.0.7: password is hunter2")
	case "slow":
		<-ctx.Done()
		close(f.cancelled)
		return nil, ctx.Err()
	case "deadline":
		d, ok := ctx.Deadline()
		return &inventoryv1.GetCertificateResponse{Certificate: &inventoryv1.Certificate{Id: fmt.Sprint(ok, time.Until(d) < 3*time.Second)}}, nil
	case "missing":
		return nil, errs.New(errs.NotFound, "CERTIFICATE_NOT_FOUND", "certificate missing not found")
	}
	return &inventoryv1.GetCertificateResponse{Certificate: &inventoryv1.Certificate{Id: r.GetId(), Revision: 3}}, nil
}

func (f *inventory) CreateCertificate(ctx context.Context, r *inventoryv1.CreateCertificateRequest) (*inventoryv1.CreateCertificateResponse, error) {
	f.note(ctx)
	if len(r.GetCertificate().GetDnsNames()) == 1 && r.GetCertificate().GetDnsNames()[0] == "bad" {
		return nil, errs.Field("certificate.dns_names[0]", "is no name")
	}
	c := r.GetCertificate()
	c.Id = "cert-new"
	return &inventoryv1.CreateCertificateResponse{Certificate: c}, nil
}

func (f *inventory) UpdateCertificate(ctx context.Context, r *inventoryv1.UpdateCertificateRequest) (*inventoryv1.UpdateCertificateResponse, error) {
	f.note(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.updated = r
	return &inventoryv1.UpdateCertificateResponse{Certificate: r.GetCertificate()}, nil
}

func (f *inventory) DownloadCertificateVersion(context.Context, *inventoryv1.DownloadCertificateVersionRequest) (*httpbody.HttpBody, error) {
	return &httpbody.HttpBody{ContentType: "application/x-pem-file", Data: []byte("-----BEGIN CERTIFICATE-----\n")}, nil
}

func (f *inventory) GetCertificateVersion(_ context.Context, r *inventoryv1.GetCertificateVersionRequest) (*inventoryv1.GetCertificateVersionResponse, error) {
	return &inventoryv1.GetCertificateVersionResponse{Version: &inventoryv1.CertificateVersion{Version: r.GetVersion()}}, nil
}

func (f *inventory) CreateJoinToken(context.Context, *inventoryv1.CreateJoinTokenRequest) (*inventoryv1.CreateJoinTokenResponse, error) {
	return &inventoryv1.CreateJoinTokenResponse{JoinToken: &inventoryv1.JoinToken{Id: "join-1", Token: "t"}}, nil
}

func (f *inventory) Enroll(ctx context.Context, r *agentv1.EnrollRequest) (*agentv1.EnrollResponse, error) {
	f.note(ctx)
	return &agentv1.EnrollResponse{AgentId: "agent-" + r.GetName()}, nil
}

// Connect answers each heartbeat with a hint that counts.
func (f *inventory) Connect(s agentv1.AgentService_ConnectServer) error {
	f.note(s.Context())
	for n := int64(1); ; n++ {
		if _, err := s.Recv(); err != nil {
			if err == io.EOF { //nolint:errorlint // a fake
				return nil
			}
			return err
		}
		hint := &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_WorkHint{WorkHint: &agentv1.WorkHint{Revision: n}}}
		if err := s.Send(hint); err != nil {
			return err
		}
	}
}

type issuance struct {
	issuancev1.UnimplementedIssuerServiceServer
	issuancev1.UnimplementedCrlServiceServer
	issuancev1.UnimplementedProfileServiceServer
	issuancev1.UnimplementedOrderServiceServer
	calls
}

// GetCrl gives that of iss-older, whose issuance knows of no pieces.
func (f *issuance) GetCrl(ctx context.Context, r *issuancev1.GetCrlRequest) (*httpbody.HttpBody, error) {
	f.note(ctx)
	if r.GetIssuerId() != "iss-older" {
		return nil, errs.New(errs.NotFound, "ISSUER_NOT_FOUND", "no such issuer")
	}
	return &httpbody.HttpBody{ContentType: "application/pkix-crl", Data: []byte{0x30, 0x00}}, nil
}

// ReadCrl gives a CRL of four bytes, two at a time; that of iss-broken has only two of them.
func (f *issuance) ReadCrl(ctx context.Context, r *issuancev1.ReadCrlRequest) (*issuancev1.ReadCrlResponse, error) {
	f.note(ctx)
	switch {
	case r.GetIssuerId() == "iss-older":
		return f.UnimplementedCrlServiceServer.ReadCrl(ctx, r)
	case r.GetIssuerId() != "iss-local" && r.GetIssuerId() != "iss-broken":
		return nil, errs.New(errs.NotFound, "ISSUER_NOT_FOUND", "no such issuer")
	case r.GetOffset() == 0 && r.GetNumber() == 0:
		return &issuancev1.ReadCrlResponse{Number: 7, Size: 4, Data: []byte{0x30, 0x02}}, nil
	case r.GetOffset() == 2 && r.GetNumber() == 7 && r.GetIssuerId() == "iss-local":
		return &issuancev1.ReadCrlResponse{Number: 7, Size: 4, Data: []byte{0x05, 0x00}}, nil
	default:
		return nil, errs.New(errs.NotFound, "CRL_NOT_FOUND", "no such piece")
	}
}

type scheduler struct {
	schedulerv1.UnimplementedJobServiceServer
	schedulerv1.UnimplementedPolicyServiceServer
	revisions
}

func (f *scheduler) ListJobs(context.Context, *schedulerv1.ListJobsRequest) (*schedulerv1.ListJobsResponse, error) {
	return &schedulerv1.ListJobsResponse{}, nil
}

type audit struct {
	auditv1.UnimplementedAuditServiceServer
	revisions
}

func (f *audit) ListEvents(ctx context.Context, _ *auditv1.ListEventsRequest) (*auditv1.ListEventsResponse, error) {
	if r := rpcctx.CallerFrom(ctx).Role; r != rpcctx.RoleAdmin && r != rpcctx.RoleAuditor {
		return nil, errs.New(errs.PermissionDenied, "ROLE_NOT_ALLOWED", "role %q may not call this method", r)
	}
	return &auditv1.ListEventsResponse{}, nil
}

// tableOf lets all roles call all methods, which are the matter of the services; revisions are for peers as in the real ones.
func tableOf(register func(grpc.ServiceRegistrar)) rpc.AuthzTable {
	probe := grpc.NewServer()
	register(probe)
	t := rpc.AuthzTable{}
	for service, info := range probe.GetServiceInfo() {
		for _, m := range info.Methods {
			t["/"+service+"/"+m.Name] = rpc.Allow(append(rpcctx.Roles(), rpcctx.RoleNone)...)
			if service == "certctl.event.v1.RevisionService" {
				t["/"+service+"/"+m.Name] = rpc.Allow(rpcctx.RolePeer)
			}
		}
	}
	return t
}

// services are the fakes behind gateways.
type services struct {
	network   *rpc.MemoryNetwork
	inventory *inventory
	issuance  *issuance
	scheduler *scheduler
	audit     *audit
	stop      map[string]func()
}

func newServices(t *testing.T) *services {
	t.Helper()
	s := &services{
		network: rpc.NewMemoryNetwork(), inventory: &inventory{cancelled: make(chan struct{})}, issuance: &issuance{},
		scheduler: &scheduler{}, audit: &audit{}, stop: make(map[string]func()),
	}
	s.inventory.set(nil, "one", "two")
	s.serve(t, "inventory", func(r grpc.ServiceRegistrar) {
		inventoryv1.RegisterCertificateServiceServer(r, s.inventory)
		inventoryv1.RegisterAgentRegistryServiceServer(r, s.inventory)
		inventoryv1.RegisterDiscoveryServiceServer(r, s.inventory)
		inventoryv1.RegisterStatsServiceServer(r, s.inventory)
		inventoryv1.RegisterTargetServiceServer(r, s.inventory)
		inventoryv1.RegisterDeploymentServiceServer(r, s.inventory)
		inventoryv1.RegisterInventoryInternalServiceServer(r, s.inventory)
		agentv1.RegisterAgentServiceServer(r, s.inventory)
		eventv1.RegisterRevisionServiceServer(r, s.inventory)
	})
	s.serve(t, "issuance", func(r grpc.ServiceRegistrar) {
		issuancev1.RegisterIssuerServiceServer(r, s.issuance)
		issuancev1.RegisterCrlServiceServer(r, s.issuance)
		issuancev1.RegisterProfileServiceServer(r, s.issuance)
		issuancev1.RegisterOrderServiceServer(r, s.issuance)
	})
	s.serve(t, "renewalscheduler", func(r grpc.ServiceRegistrar) {
		schedulerv1.RegisterJobServiceServer(r, s.scheduler)
		schedulerv1.RegisterPolicyServiceServer(r, s.scheduler)
		eventv1.RegisterRevisionServiceServer(r, s.scheduler)
	})
	s.serve(t, "asyncpoller", func(grpc.ServiceRegistrar) {})
	s.serve(t, "audit", func(r grpc.ServiceRegistrar) {
		auditv1.RegisterAuditServiceServer(r, s.audit)
		eventv1.RegisterRevisionServiceServer(r, s.audit)
	})
	return s
}

func (s *services) serve(t *testing.T, name string, register func(grpc.ServiceRegistrar)) {
	t.Helper()
	var long []string
	if name == "inventory" {
		long = []string{agentv1.AgentService_Connect_FullMethodName}
	}
	server, err := rpc.NewServer(
		rpc.ServerConfig{Service: name, InternalSecret: internalSecret, LongLivedStreams: long, DrainNotice: 10 * time.Millisecond},
		rpc.ServerDeps{Logger: zap.NewNop(), Registry: metrics.New(name), Table: tableOf(register)})
	require.NoError(t, err)
	register(server)
	lis, err := s.network.Listen(name)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := run.Go(func() error { return server.Serve(ctx, lis) })
	s.stop[name] = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(s.stop[name])
}

// world is a gateway on a real TLS listener.
type world struct {
	*services
	url    string
	addr   string
	roots  *x509.CertPool
	logs   *observer.ObservedLogs
	client *http.Client
	stop   func() error
}

func serverCert(t *testing.T, name string) (cert tls.Certificate, certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	cert, err = tls.X509KeyPair(certPEM, keyPEM)
	require.NoError(t, err)
	return cert, certPEM, keyPEM
}

// start starts a gateway in front of new services.
func start(t *testing.T, change func(*gateway.Config, *gateway.Deps)) *world {
	t.Helper()
	return newServices(t).start(t, change)
}

func (s *services) start(t *testing.T, change func(*gateway.Config, *gateway.Deps)) *world {
	t.Helper()
	cert, certPEM, _ := serverCert(t, "first")
	core, logs := observer.New(zap.DebugLevel)
	cfg := gateway.Config{AuthSecret: secretbox.NewSecret(keyList)}
	deps := gateway.Deps{
		Backends: s.dial(t), Log: zap.New(core), Metrics: metrics.New("gateway"),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
		Loops: func() map[string][]tick.State {
			return map[string][]tick.State{"audit": {{Name: "chain verification", Interval: time.Hour, LastError: "internal"}}}
		},
	}
	if change != nil {
		change(&cfg, &deps)
	}
	g, err := gateway.New(cfg, deps)
	require.NoError(t, err)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := run.Go(func() error { return g.Serve(ctx, lis) })
	w := &world{services: s, addr: lis.Addr().String(), url: "https://" + lis.Addr().String(), roots: x509.NewCertPool(), logs: logs}
	w.roots.AppendCertsFromPEM(certPEM)
	w.client = w.httpClient(true)
	w.stop = sync.OnceValue(func() error {
		w.client.CloseIdleConnections() // else the stop gives them a second to go
		cancel()
		return <-done
	})
	t.Cleanup(func() { require.NoError(t, w.stop()) })
	return w
}

func (s *services) dial(t *testing.T) map[string]grpc.ClientConnInterface {
	t.Helper()
	conns := make(map[string]grpc.ClientConnInterface)
	for _, name := range gateway.Backends() {
		conn, err := rpc.Dial(rpc.ClientConfig{
			Service: rpc.Gateway, Target: name, InternalSecret: internalSecret, Dialer: s.network.Dialer(name),
		})
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		conns[name] = conn
	}
	return conns
}

func (w *world) httpClient(h2 bool) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots}, ForceAttemptHTTP2: h2}
	if !h2 {
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetHTTP1(true)
	}
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// grpcConn connects as a client of the gateway does, with a bearer token unless that is empty.
func (w *world) grpcConn(t *testing.T, token string) *grpc.ClientConn {
	t.Helper()
	opts := []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: w.roots}))}
	if token != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(bearer(token)))
	}
	conn, err := grpc.NewClient("dns:///"+w.addr, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// answer is a response, read.
type answer struct {
	*http.Response
	body string
}

// request makes a request as admin; headers are "Name: value", and an empty value removes.
func (w *world) request(t *testing.T, verb, path, body string, headers ...string) answer {
	t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(t.Context(), verb, w.url+path, reader)
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer "+adminKey)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Del(name)
		if value != "" {
			r.Header.Add(name, value)
		}
	}
	return w.do(t, r)
}

func (w *world) do(t *testing.T, r *http.Request) answer {
	t.Helper()
	resp, err := w.client.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return answer{Response: resp, body: string(b)}
}

func (w *world) get(t *testing.T, path string, headers ...string) answer {
	t.Helper()
	return w.request(t, http.MethodGet, path, "", headers...)
}

// problem is the shape of errors.
type problem struct {
	Code    int              `json:"code"`
	Message string           `json:"message"`
	Details []map[string]any `json:"details"`
}

// problem checks that an answer has the shape of errors and gives it.
func (a answer) problem(t *testing.T, status int) problem {
	t.Helper()
	require.Equal(t, status, a.StatusCode, a.body)
	require.Equal(t, "application/json", a.Header.Get("Content-Type"))
	var p problem
	dec := json.NewDecoder(bytes.NewReader([]byte(a.body)))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(&p), a.body)
	require.NotZero(t, p.Code)
	require.NotEmpty(t, p.Message)
	require.NotEmpty(t, p.Details)
	require.Equal(t, "type.googleapis.com/google.rpc.ErrorInfo", p.Details[0]["@type"])
	require.Equal(t, "certctl", p.Details[0]["domain"])
	require.NotEmpty(t, a.Header.Get("X-Request-Id"))
	return p
}

func (p problem) reason() string {
	s, _ := p.Details[0]["reason"].(string)
	return s
}

// fields gives the fields of the violations.
func (p problem) fields() []string {
	var out []string
	for _, d := range p.Details {
		list, _ := d["field_violations"].([]any)
		for _, v := range list {
			m, _ := v.(map[string]any)
			f, _ := m["field"].(string)
			out = append(out, f)
		}
	}
	return out
}

func writeFiles(t *testing.T, dir string, cert, key []byte) (certFile, keyFile string) {
	t.Helper()
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	require.NoError(t, os.WriteFile(certFile, cert, 0o600))
	require.NoError(t, os.WriteFile(keyFile, key, 0o600))
	return certFile, keyFile
}

func nopLog() *zap.Logger { return zap.NewNop() }

func newRegistry() *metrics.Registry { return metrics.New("gateway") }

func zapMethod(m string) zap.Field { return zap.String("method", m) }
