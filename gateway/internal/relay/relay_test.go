package relay_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certctl/certctl/gateway/internal/auth"
	"github.com/certctl/certctl/gateway/internal/relay"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/testrpc"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
)

const (
	patience = 20 * time.Second
	interval = 5 * time.Millisecond
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inventory is a fake that welcomes every stream and answers what tests have it say.
type inventory struct {
	mu     sync.Mutex
	relays map[*call]struct{}
	opened []*inventoryv1.AgentStreamOpening
	caller []rpcctx.Caller
	heard  int
	closed int
}

// call is one relay; stop ends it.
type call struct {
	down    chan *inventoryv1.RelayResponse
	streams map[string]uint64 // by credential
	stop    context.CancelFunc
}

func (f *inventory) Relay(g inventoryv1.AgentRelayService_RelayServer) error {
	ctx, cancel := context.WithCancel(g.Context())
	defer cancel()
	c := &call{down: make(chan *inventoryv1.RelayResponse, 10000), streams: map[string]uint64{}, stop: cancel}
	f.mu.Lock()
	f.relays[c] = struct{}{}
	f.caller = append(f.caller, rpcctx.CallerFrom(ctx))
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.relays, c)
	}()
	if err := g.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	run.Go(func() error { return f.receive(g, c) })
	for {
		select {
		case <-ctx.Done():
			return errs.New(errs.Unavailable, "RELAY_ENDS", "open the streams again")
		case m := <-c.down:
			if err := g.Send(m); err != nil {
				return err
			}
		}
	}
}

func (f *inventory) receive(g inventoryv1.AgentRelayService_RelayServer, c *call) error {
	for {
		m, err := g.Recv()
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.heard += len(m.GetHeard())
		f.closed += len(m.GetClosed())
		f.opened = append(f.opened, m.GetOpen()...)
		for _, o := range m.GetOpen() {
			c.streams[o.GetCredential()] = o.GetStreamId()
			c.down <- delivery(o.GetStreamId(), &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{
				Welcome: &agentv1.Welcome{HeartbeatInterval: durationpb.New(time.Minute)},
			}})
		}
		f.mu.Unlock()
	}
}

func delivery(id uint64, messages ...*agentv1.ConnectResponse) *inventoryv1.RelayResponse {
	return &inventoryv1.RelayResponse{Deliveries: []*inventoryv1.AgentStreamDelivery{{StreamId: id, Messages: messages}}}
}

// say sends something to the agent with the credential, wherever it is.
func (f *inventory) say(credential string, change func(*inventoryv1.AgentStreamDelivery)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.relays {
		if id, ok := c.streams[credential]; ok {
			d := delivery(id)
			change(d.GetDeliveries()[0])
			c.down <- d
		}
	}
}

func (f *inventory) hint(credential string, n int64) {
	f.say(credential, func(d *inventoryv1.AgentStreamDelivery) {
		d.Messages = append(d.Messages, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_WorkHint{WorkHint: &agentv1.WorkHint{Revision: n}}})
	})
}

// end ends all relays.
func (f *inventory) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.relays {
		c.stop()
	}
}

func (f *inventory) count(of func(f *inventory) int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return of(f)
}

// world is a gateway's relay between agents and a fake inventory.
type world struct {
	inventory *inventory
	url       string
	roots     *x509.CertPool
	stop      func()
}

func start(t *testing.T, known bool) *world {
	t.Helper()
	w := &world{inventory: &inventory{relays: map[*call]struct{}{}}, roots: x509.NewCertPool()}
	table := rpc.AuthzTable{}
	s := testrpc.Serve(t, testrpc.Config{
		Table: tableFor(table, known),
		Register: func(r grpc.ServiceRegistrar) {
			if known {
				inventoryv1.RegisterAgentRelayServiceServer(r, w.inventory)
			}
		},
		Change: func(c *rpc.ServerConfig, _ *rpc.ServerDeps) {
			if known {
				c.LongLivedStreams = []string{inventoryv1.AgentRelayService_Relay_FullMethodName}
			}
		},
	})
	gate, err := auth.NewGate(auth.Config{Type: auth.TypeNone})
	require.NoError(t, err)
	h, err := relay.New(relay.Config{MaxMessage: 1 << 20}, relay.Deps{
		Inventory: s.AsRole(t, rpcctx.RoleNone), Gate: gate, Log: zap.NewNop(), Metrics: metrics.New("gateway"),
		Next: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Grpc-Status", "6")
			w.Header().Set("Grpc-Message", "the next handler")
		}),
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := run.Go(func() error { return h.Run(ctx) })
	server := httptest.NewUnstartedServer(h)
	server.EnableHTTP2 = true
	server.StartTLS()
	w.url = strings.TrimPrefix(server.URL, "https://")
	w.roots.AddCert(server.Certificate())
	w.stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ran)
	})
	t.Cleanup(func() {
		w.stop()
		server.Close()
	})
	return w
}

func tableFor(t rpc.AuthzTable, known bool) rpc.AuthzTable {
	if known {
		t[inventoryv1.AgentRelayService_Relay_FullMethodName] = rpc.Allow(rpcctx.RolePeer)
	}
	return t
}

type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// agent is a client's stream whose hello has been sent.
type agent struct {
	agentv1.AgentService_ConnectClient
	conn *grpc.ClientConn
}

func (w *world) connect(t *testing.T, credential string) agent {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+w.url, grpc.WithPerRPCCredentials(bearer(credential)),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: w.roots, ServerName: "example.com"})))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	s, err := agentv1.NewAgentServiceClient(conn).Connect(t.Context())
	require.NoError(t, err)
	hello := &agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.Hello{SessionId: credential}}}
	require.NoError(t, s.Send(hello))
	return agent{s, conn}
}

func (a agent) welcomed(t *testing.T) agent {
	t.Helper()
	m, err := a.Recv()
	require.NoError(t, err)
	require.NotNil(t, m.GetWelcome())
	return a
}

func (a agent) hinted(t *testing.T) int64 {
	t.Helper()
	m, err := a.Recv()
	require.NoError(t, err)
	require.NotNil(t, m.GetWorkHint(), "%v", m)
	return m.GetWorkHint().GetRevision()
}

func TestAStreamGoesBothWays(t *testing.T) {
	t.Parallel()
	w := start(t, true)
	a := w.connect(t, "one").welcomed(t)
	w.inventory.hint("one", 7)
	require.EqualValues(t, 7, a.hinted(t))
	for range 3 {
		require.NoError(t, a.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Heartbeat{Heartbeat: &agentv1.Heartbeat{}}}))
	}
	require.Eventually(t, func() bool { return w.inventory.count(func(f *inventory) int { return f.heard }) == 3 }, patience, interval)
	w.inventory.mu.Lock()
	opened := w.inventory.opened[0]
	callers := w.inventory.caller
	w.inventory.mu.Unlock()
	require.Equal(t, "one", opened.GetCredential())
	require.Equal(t, "127.0.0.1", opened.GetAddress())
	first := &agentv1.ConnectRequest{}
	require.NoError(t, proto.Unmarshal(opened.GetFirst(), first))
	require.Equal(t, "one", first.GetHello().GetSessionId())
	for _, c := range callers {
		require.Equal(t, rpcctx.ServiceCaller(rpc.Gateway), c)
	}
	require.NoError(t, a.CloseSend())
	_, err := a.Recv()
	require.ErrorIs(t, err, io.EOF)
	require.Eventually(t, func() bool { return w.inventory.count(func(f *inventory) int { return f.closed }) == 1 }, patience, interval)
}

func TestTheEndComesWithItsReasonAfterTheMessages(t *testing.T) {
	t.Parallel()
	w := start(t, true)
	a := w.connect(t, "one").welcomed(t)
	status, err := proto.Marshal(errs.New(errs.PermissionDenied, "AGENT_RETIRED", "agent one is retired: a%b ü").GRPCStatus().Proto())
	require.NoError(t, err)
	w.inventory.say("one", func(d *inventoryv1.AgentStreamDelivery) {
		d.Messages = append(d.Messages, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Retired{Retired: &agentv1.Retired{}}})
		d.Ended, d.Status = true, status
	})
	m, err := a.Recv()
	require.NoError(t, err)
	require.NotNil(t, m.GetRetired())
	_, err = a.Recv()
	require.Equal(t, errs.PermissionDenied, errs.KindOf(err))
	require.Equal(t, "AGENT_RETIRED", errs.ReasonOf(err))
	require.Equal(t, "agent one is retired: a%b ü", errs.From(err).Message())
}

func TestAnAgentNoticesNothingWhenInventoryStartsAgain(t *testing.T) {
	t.Parallel()
	w := start(t, true)
	agents := map[string]agent{}
	for i := range 20 {
		name := fmt.Sprintf("agent-%d", i)
		agents[name] = w.connect(t, name).welcomed(t)
	}
	w.inventory.end()
	require.Eventually(t, func() bool { return w.inventory.count(func(f *inventory) int { return len(f.opened) }) == 40 }, patience, interval, "all are opened again")
	for name, a := range agents {
		w.inventory.hint(name, 9)
		require.EqualValues(t, 9, a.hinted(t), "and are not welcomed again")
	}
}

func TestAgentsAreAskedToConnectElsewhereWhenTheRelayStops(t *testing.T) {
	t.Parallel()
	w := start(t, true)
	a := w.connect(t, "one").welcomed(t)
	w.stop()
	for _, late := range []agent{a, w.connect(t, "two")} {
		m, err := late.Recv()
		require.NoError(t, err)
		require.NotNil(t, m.GetDrain())
		require.LessOrEqual(t, m.GetDrain().GetReconnectAfter().AsDuration(), 5*time.Second)
		_, err = late.Recv()
		require.ErrorIs(t, err, io.EOF)
	}
}

func TestAnInventoryThatKnowsNoRelayIsCalledForEachStream(t *testing.T) {
	t.Parallel()
	w := start(t, false)
	_, err := w.connect(t, "one").Recv()
	require.ErrorContains(t, err, "the next handler")
}

func TestAConnectionThatBreaksIsClosedForInventory(t *testing.T) {
	t.Parallel()
	w := start(t, true)
	a := w.connect(t, "one").welcomed(t)
	require.NoError(t, a.conn.Close())
	require.Eventually(t, func() bool { return w.inventory.count(func(f *inventory) int { return f.closed }) == 1 }, patience, interval)
}

// TestAnIdleStreamHasThreeGoroutines counts: two of HTTP/2 for each connection, and the one that reads. Not parallel: it looks at all of
// the process.
func TestAnIdleStreamHasThreeGoroutines(t *testing.T) { //nolint:paralleltest // see above
	const agents = 200
	w := start(t, true)
	for i := range agents {
		w.connect(t, fmt.Sprint(i)).welcomed(t)
	}
	want := map[string]int{
		"relay.(*Handler).ServeHTTP(": agents, "net/http.(*http2serverConn).readFrames(": agents, "net/http.(*conn).serve(": agents, "relay.(*session).write(": 0,
	}
	got := map[string]int{}
	defer func() { t.Log(got) }()
	require.Eventually(t, func() bool {
		all := goroutines(t)
		for f := range want {
			got[f] = all(f)
		}
		return maps.Equal(want, got) && all("gateway/internal/relay.") <= agents+3*4 // those of the relays
	}, patience, interval)
}

// goroutines counts those that have a function on their stack.
func goroutines(t *testing.T) func(name string) int {
	t.Helper()
	var text strings.Builder
	require.NoError(t, pprof.Lookup("goroutine").WriteTo(&text, 2))
	stacks := strings.Split(text.String(), "\n\n")
	return func(name string) (n int) {
		for _, s := range stacks {
			if strings.Contains(s, name) && !strings.Contains(s, "testing.tRunner") {
				n++
			}
		}
		return n
	}
}
