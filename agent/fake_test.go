package agent_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/run"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

const joinToken = "join-token-for-tests"

// The states of a credential at the server.
const (
	unused  = "unused"
	active  = "active"
	revoked = "revoked"
)

// entry is an assignment in the fake's mailbox.
type entry struct {
	*agentv1.Assignment
	leased, finished bool
	until            time.Time
	progress         int
	results          []*agentv1.ReportAssignmentRequest
}

// line is one open stream.
type line struct {
	credential string
	session    string
	out        chan *agentv1.ConnectResponse
	end        chan error
	beats      int
}

// server is an AgentService for one agent, as strict as the contract: what an agent must never do fails the test.
type server struct {
	agentv1.UnimplementedAgentServiceServer
	t       testing.TB
	address string
	caFile  string
	tls     *tls.Config
	lease   time.Duration
	beat    time.Duration
	grpc    *grpc.Server
	served  <-chan error

	mu          sync.Mutex
	taken       bool // the name belongs to another installation
	retired     bool
	enrolments  []*agentv1.EnrollRequest
	credentials map[string]string
	given       []string
	entries     []*entry
	revision    int64
	line        *line
	connects    []time.Time
	sessions    []string
	calls       map[string]int
	handshakes  int
	listed      chan struct{}

	// Hooks run before the call has an effect (before*) or when only its answer is missing (after*). Their error is the answer.
	afterEnroll    func() error
	afterRotate    func() error
	beforeFirstUse func() error
	afterFirstUse  func() error
	beforeList     func() error
	beforeReport   func(*agentv1.ReportAssignmentRequest) error
	afterReport    func(*agentv1.ReportAssignmentRequest) error
}

func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{t: t, lease: time.Minute, beat: time.Minute, credentials: map[string]string{}, calls: map[string]int{}, listed: make(chan struct{}, 1024)}
	ca, caKey := newCA(t, "server CA")
	s.caFile = filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(s.caFile, pemOf(ca.Raw), 0o600))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca, key.Public(), caKey)
	require.NoError(t, err)
	s.tls = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{leaf}, PrivateKey: key}},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.handshakes++
			return nil, nil
		}}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *server) start() {
	s.t.Helper()
	listen := "127.0.0.1:0"
	if s.address != "" {
		listen = s.address
	}
	l, err := (&net.ListenConfig{}).Listen(s.t.Context(), "tcp", listen)
	require.NoError(s.t, err)
	s.address = l.Addr().String()
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(s.tls)))
	agentv1.RegisterAgentServiceServer(g, s)
	s.grpc, s.served = g, run.Go(func() error { return g.Serve(l) })
}

// stop ends the server hard, as a crash would.
func (s *server) stop() {
	if s.grpc == nil {
		return
	}
	s.grpc.Stop()
	s.grpc = nil
	if err := <-s.served; !errors.Is(err, grpc.ErrServerStopped) { // the answer when it had not begun yet
		require.NoError(s.t, err)
	}
}

func (s *server) url() string { return "https://" + s.address }

// do runs f with the server's state held.
func (s *server) do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// see tells what f says with the state held; for waiting.
func (s *server) see(f func() bool) func() bool {
	return func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return f()
	}
}

// hook runs a hook, if there is one, without the state held.
func (s *server) hook(at *func() error) error {
	s.mu.Lock()
	f := *at
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	return f()
}

func (s *server) hookReport(at *func(*agentv1.ReportAssignmentRequest) error, r *agentv1.ReportAssignmentRequest) error {
	s.mu.Lock()
	f := *at
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(r)
}

func (s *server) called(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

func (s *server) count(ctx context.Context, method string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[method]++
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || info.State.Version != tls.VersionTLS13 {
		s.t.Errorf("%s came without TLS 1.3", method)
	}
}

// give makes a credential.
func (s *server) give() string {
	c := rand.Text() + rand.Text()
	s.credentials[c] = unused
	s.given = append(s.given, c)
	return c
}

func bearerOf(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	v := md.Get("authorization")
	if len(v) != 1 {
		return ""
	}
	c, _ := strings.CutPrefix(v[0], "Bearer ")
	return c
}

func (s *server) authenticate(ctx context.Context, method string) (string, error) {
	s.count(ctx, method)
	c := bearerOf(ctx)
	s.mu.Lock()
	state, retired := s.credentials[c], s.retired
	s.mu.Unlock()
	switch {
	case retired:
		return "", errs.New(errs.PermissionDenied, "AGENT_RETIRED", "the agent is retired")
	case state != unused && state != active:
		return "", errs.New(errs.Unauthenticated, "CREDENTIAL_NOT_VALID", "the agent's credential is not valid")
	case state == active:
		return c, nil
	}
	if err := s.hook(&s.beforeFirstUse); err != nil {
		return "", err
	}
	s.mu.Lock()
	for other, state := range s.credentials {
		if other != c && state != revoked {
			s.credentials[other] = revoked
		}
	}
	s.credentials[c] = active
	if s.line != nil && s.line.credential != c {
		s.line.end <- errs.New(errs.Unauthenticated, "CREDENTIAL_NOT_VALID", "the agent's credential is not valid")
		s.line = nil
	}
	s.mu.Unlock()
	return c, s.hook(&s.afterFirstUse)
}

func (s *server) Enroll(ctx context.Context, r *agentv1.EnrollRequest) (*agentv1.EnrollResponse, error) {
	s.count(ctx, "Enroll")
	s.mu.Lock()
	s.enrolments = append(s.enrolments, r)
	if bearerOf(ctx) != "" {
		s.t.Error("an enrolment must not carry a credential")
	}
	if len(r.GetInstanceId()) < 16 || r.GetHost().GetOs() == "" || len(r.GetHost().GetCapabilities()) == 0 {
		s.t.Errorf("incomplete enrolment: %v", r)
	}
	var err error
	switch {
	case r.GetJoinToken() != joinToken:
		err = errs.New(errs.Unauthenticated, "JOIN_TOKEN_NOT_VALID", "the join token is unknown, expired or used up")
	case s.taken:
		err = errs.New(errs.AlreadyExists, "AGENT_NAME_TAKEN", "an agent named %q exists", r.GetName())
	}
	answer := &agentv1.EnrollResponse{AgentId: "agent-1"}
	if err == nil {
		answer.Credential = s.give()
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return answer, s.hook(&s.afterEnroll)
}

func (s *server) RotateCredential(ctx context.Context, _ *agentv1.RotateCredentialRequest) (*agentv1.RotateCredentialResponse, error) {
	if _, err := s.authenticate(ctx, "RotateCredential"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	for c, state := range s.credentials {
		if state == unused {
			s.credentials[c] = revoked
		}
	}
	c := s.give()
	s.mu.Unlock()
	return &agentv1.RotateCredentialResponse{Credential: c}, s.hook(&s.afterRotate)
}

func (s *server) Connect(g agentv1.AgentService_ConnectServer) error {
	c, err := s.authenticate(g.Context(), "Connect")
	if err != nil {
		return err
	}
	m, err := g.Recv()
	if err != nil {
		return err
	}
	l := &line{credential: c, session: m.GetHello().GetSessionId(), out: make(chan *agentv1.ConnectResponse, 64), end: make(chan error, 4)}
	if l.session == "" || m.GetHello().GetHost().GetHostname() == "" {
		s.t.Errorf("a stream must begin with a hello, not %v", m)
	}
	received := run.Go(func() error { return s.hear(g, l) })
	l.out <- &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{Welcome: &agentv1.Welcome{HeartbeatInterval: durationpb.New(s.beat), ServerVersion: "test"}}}
	s.do(func() {
		if s.line != nil {
			s.line.end <- errs.New(errs.Conflict, "STREAM_SUPERSEDED", "the agent has opened a newer stream")
		}
		s.line = l
		s.connects = append(s.connects, time.Now())
		s.sessions = append(s.sessions, l.session)
		if s.revision > 0 { // as the server says what is in the mailbox
			l.out <- &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_WorkHint{WorkHint: &agentv1.WorkHint{Revision: s.revision}}}
		}
	})
	defer s.do(func() {
		if s.line == l {
			s.line = nil
		}
	})
	for {
		select {
		case err := <-received:
			return err
		case err := <-l.end:
			return err
		case m := <-l.out:
			if err := g.Send(m); err != nil {
				return err
			}
		}
	}
}

func (s *server) hear(g agentv1.AgentService_ConnectServer, l *line) error {
	for {
		m, err := g.Recv()
		if err != nil {
			return err
		}
		s.do(func() {
			if m.GetHeartbeat() == nil {
				s.t.Errorf("after the hello only heartbeats may come, not %v", m)
			}
			l.beats++
		})
	}
}

func (s *server) ListAssignments(ctx context.Context, r *agentv1.ListAssignmentsRequest) (*agentv1.ListAssignmentsResponse, error) {
	if _, err := s.authenticate(ctx, "ListAssignments"); err != nil {
		return nil, err
	}
	if err := s.hook(&s.beforeList); err != nil {
		return nil, err
	}
	out := &agentv1.ListAssignmentsResponse{}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.GetMaxAssignments() <= 0 || r.GetMaxAssignments() > 1000 {
		s.t.Errorf("asked for %d assignments", r.GetMaxAssignments())
	}
	for _, e := range s.entries {
		if e.finished || e.GetRevision() <= r.GetAfterRevision() {
			continue
		}
		if len(out.Assignments) == int(r.GetMaxAssignments()) {
			out.More = true
			break
		}
		if !e.leased || time.Now().After(e.until) {
			e.leased = true
			e.LeaseId = uuid.NewString()
			e.Attempt++
		}
		e.until = time.Now().Add(s.lease)
		e.LeaseEndTime = timestamppb.New(e.until)
		out.Assignments = append(out.Assignments, proto.CloneOf(e.Assignment))
	}
	select {
	case s.listed <- struct{}{}:
	default:
	}
	return out, nil
}

func (s *server) ReportAssignment(ctx context.Context, r *agentv1.ReportAssignmentRequest) (*agentv1.ReportAssignmentResponse, error) {
	if _, err := s.authenticate(ctx, "ReportAssignment"); err != nil {
		return nil, err
	}
	if err := s.hookReport(&s.beforeReport, r); err != nil {
		return nil, err
	}
	out, err := s.take(r)
	if err == nil {
		err = s.hookReport(&s.afterReport, r)
	}
	return out, err
}

func (s *server) take(r *agentv1.ReportAssignmentRequest) (*agentv1.ReportAssignmentResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.entries, func(e *entry) bool { return e.GetId() == r.GetAssignmentId() })
	if i < 0 || r.GetReport() == nil {
		s.t.Errorf("report about nothing: %v", r)
		return nil, errs.New(errs.NotFound, "ASSIGNMENT_NOT_FOUND", "no such assignment")
	}
	e := s.entries[i]
	if r.GetLeaseId() != e.GetLeaseId() || !e.leased {
		return &agentv1.ReportAssignmentResponse{Stale: true}, nil
	}
	if r.GetProgress() != nil {
		e.progress++
		e.until = time.Now().Add(s.lease)
		return &agentv1.ReportAssignmentResponse{LeaseEndTime: timestamppb.New(e.until), Stale: e.finished}, nil
	}
	if f := r.GetFailure(); f != nil && (f.GetProblem().GetReason() == "" || f.GetProblem().GetMessage() == "") {
		s.t.Errorf("a failure must say why: %v", r)
	}
	if e.finished && !proto.Equal(e.results[len(e.results)-1], r) {
		s.t.Errorf("two different reports under one lease: %v and %v", e.results[len(e.results)-1], r)
	}
	e.finished = true
	e.results = append(e.results, r)
	return &agentv1.ReportAssignmentResponse{}, nil
}

// add puts work into the mailbox and hints at it.
func (s *server) add(a *agentv1.Assignment) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	if a.Id == "" {
		a.Id = uuid.NewString()
	}
	a.Revision = s.revision
	e := &entry{Assignment: a}
	s.entries = append(s.entries, e)
	s.hint()
	return e
}

// reopen takes the lease away, so that the next question starts a new one.
func (s *server) reopen(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	e.leased, e.finished, e.Revision = false, false, s.revision
	s.entries = append(slices.DeleteFunc(s.entries, func(o *entry) bool { return o == e }), e)
	s.hint()
}

func (s *server) hint() {
	s.say(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_WorkHint{WorkHint: &agentv1.WorkHint{Revision: s.revision}}})
}

// say sends a message on the open stream, if there is one.
func (s *server) say(m *agentv1.ConnectResponse) {
	if s.line != nil {
		s.line.out <- m
	}
}

func (s *server) hintRotation() {
	s.do(func() {
		s.say(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_RotateHint{RotateHint: &agentv1.RotateHint{}}})
	})
}

func (s *server) connected() func() bool { return s.see(func() bool { return s.line != nil }) }

func (s *server) finished(e *entry) func() bool { return s.see(func() bool { return e.finished }) }

// result waits for the report.
func (s *server) result(e *entry) *agentv1.ReportAssignmentRequest {
	s.t.Helper()
	eventually(s.t, s.finished(e), "the assignment is reported")
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.results[len(e.results)-1]
}

func eventually(t testing.TB, condition func() bool, what string) {
	t.Helper()
	require.Eventually(t, condition, 30*time.Second, 2*time.Millisecond, what)
}

func newCA(t testing.TB, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	ca, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return ca, key
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func unavailable() error { return errs.New(errs.Unavailable, "AWAY", "the server is away") }

func fileMode(t testing.TB, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return fmt.Sprintf("%04o", info.Mode().Perm())
}
