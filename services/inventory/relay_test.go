package inventory_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/status"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/run"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
)

// relayed is a gateway's relay of many agents' streams.
type relayed struct {
	call inventoryv1.AgentRelayService_RelayClient
	down chan *inventoryv1.AgentStreamDelivery
	err  error
}

func (r *replica) relay(t testing.TB) *relayed {
	t.Helper()
	call, err := inventoryv1.NewAgentRelayServiceClient(r.peer).Relay(t.Context())
	require.NoError(t, err)
	header, err := call.Header()
	require.NoError(t, err)
	require.NotNil(t, header, "a gateway knows by the header that it is understood")
	out := &relayed{call: call, down: make(chan *inventoryv1.AgentStreamDelivery, 10000)}
	run.Go(func() error {
		defer close(out.down)
		for {
			m, err := call.Recv()
			if err != nil {
				out.err = err
				return nil
			}
			for _, d := range m.GetDeliveries() {
				out.down <- d
			}
		}
	})
	return out
}

func firstMessage(t testing.TB, hostname string) []byte {
	t.Helper()
	b, err := proto.Marshal(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.Hello{
		Host: &agentv1.HostInfo{Hostname: hostname, Os: "linux", Capabilities: []string{"file"}}, SessionId: "s",
	}}})
	require.NoError(t, err)
	return b
}

func (r *relayed) open(t testing.TB, openings ...*inventoryv1.AgentStreamOpening) {
	t.Helper()
	require.NoError(t, r.call.Send(&inventoryv1.RelayRequest{Open: openings}))
}

func (h *host) opening(t testing.TB, id uint64) *inventoryv1.AgentStreamOpening {
	t.Helper()
	return &inventoryv1.AgentStreamOpening{StreamId: id, Credential: h.credential, Address: "192.0.2.7", First: firstMessage(t, "h")}
}

// next waits for something on the relay; nil is its end.
func (r *relayed) next(t testing.TB) *inventoryv1.AgentStreamDelivery {
	t.Helper()
	select {
	case d := <-r.down:
		return d
	case <-time.After(patience):
		require.FailNow(t, "nothing came on the relay")
		return nil
	}
}

// until waits for a delivery that the condition takes.
func (r *relayed) until(t testing.TB, want func(*inventoryv1.AgentStreamDelivery) bool) *inventoryv1.AgentStreamDelivery {
	t.Helper()
	for {
		d := r.next(t)
		require.NotNil(t, d, "the relay ended: %v", r.err)
		if want(d) {
			return d
		}
	}
}

func welcomes(d *inventoryv1.AgentStreamDelivery) bool {
	return len(d.GetMessages()) > 0 && d.GetMessages()[0].GetWelcome() != nil
}

func hints(d *inventoryv1.AgentStreamDelivery) bool {
	return len(d.GetMessages()) > 0 && d.GetMessages()[0].GetWorkHint() != nil
}

func ends(d *inventoryv1.AgentStreamDelivery) bool { return d.GetEnded() }

func reasonOf(t testing.TB, d *inventoryv1.AgentStreamDelivery) string {
	t.Helper()
	st := &status.Status{}
	require.NoError(t, proto.Unmarshal(d.GetStatus(), st))
	return errs.ReasonOf(grpcstatus.ErrorProto(st))
}

func TestARelayCarriesManyAgents(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	relay := r.relay(t)
	web := r.enroll(t, "web")
	relay.open(t, web.opening(t, 1), r.enroll(t, "db").opening(t, 2))
	welcomed := map[uint64]bool{}
	for len(welcomed) < 2 {
		welcomed[relay.until(t, welcomes).GetStreamId()] = true
	}
	a, err := r.registry().GetAgent(t.Context(), &inventoryv1.GetAgentRequest{Id: web.id})
	require.NoError(t, err)
	require.Equal(t, inventoryv1.Agent_ONLINE, a.GetAgent().GetStatus())
	require.Equal(t, "h", a.GetAgent().GetHostname())
	require.Equal(t, []string{"file"}, a.GetAgent().GetCapabilities())
	require.Equal(t, "192.0.2.7", a.GetAgent().GetIpAddress())

	r.target(t, "t-relay", web.id)
	r.certificate(t, "c-relay", "t-relay")
	_, err = r.internal().CreateCsrTask(t.Context(), csrTask(web.id, "c-relay"))
	require.NoError(t, err)
	require.EqualValues(t, 1, relay.until(t, hints).GetStreamId())

	line := web.connect(t) // without a relay: one stream of an agent is as good as another
	d := relay.until(t, ends)
	require.EqualValues(t, 1, d.GetStreamId())
	require.Equal(t, "STREAM_SUPERSEDED", reasonOf(t, d))
	require.Positive(t, line.hint(t), "what was hinted is hinted again on a new stream")

	relay.open(t, web.opening(t, 3))
	require.EqualValues(t, 3, relay.until(t, welcomes).GetStreamId())
	require.EqualValues(t, 3, relay.until(t, hints).GetStreamId())
	_, err = r.registry().RetireAgent(t.Context(), &inventoryv1.RetireAgentRequest{Id: web.id, Force: true})
	require.NoError(t, err)
	d = relay.until(t, ends)
	require.Equal(t, "AGENT_RETIRED", reasonOf(t, d))
	require.NotNil(t, d.GetMessages()[len(d.GetMessages())-1].GetRetired())
}

func TestWhatOneAgentSendsEndsNoOtherStream(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	relay := r.relay(t)
	h := r.enroll(t, "good")
	bad := func(id uint64, change func(*inventoryv1.AgentStreamOpening)) *inventoryv1.AgentStreamOpening {
		o := r.enroll(t, fmt.Sprintf("bad-%d", id)).opening(t, id)
		change(o)
		return o
	}
	relay.open(t,
		bad(1, func(o *inventoryv1.AgentStreamOpening) { o.Credential = "wrong" }),
		bad(2, func(o *inventoryv1.AgentStreamOpening) { o.Credential = "" }),
		bad(3, func(o *inventoryv1.AgentStreamOpening) { o.First = []byte{0xff} }),
		bad(4, func(o *inventoryv1.AgentStreamOpening) { o.First = firstMessage(t, string(make([]byte, 300))) }),
		bad(5, func(o *inventoryv1.AgentStreamOpening) { o.First = firstMessage(t, "a\x00b") }),
		h.opening(t, 6))
	got := map[uint64]string{}
	for len(got) < 6 {
		d := relay.until(t, func(d *inventoryv1.AgentStreamDelivery) bool { return ends(d) || welcomes(d) })
		got[d.GetStreamId()] = "welcome"
		if d.GetEnded() {
			got[d.GetStreamId()] = reasonOf(t, d)
		}
	}
	require.Equal(t, map[uint64]string{
		1: "CREDENTIAL_NOT_VALID", 2: "CREDENTIAL_MISSING", 3: "INVALID_ARGUMENT", 4: "INVALID_ARGUMENT", 5: "INVALID_ARGUMENT", 6: "welcome",
	}, got)
}

func TestTheEndOfARelayIsTheEndOfItsStreams(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := r.enroll(t, "moves")
	first := r.relay(t)
	first.open(t, h.opening(t, 1))
	first.until(t, welcomes)
	require.NoError(t, first.call.CloseSend())
	for range first.down {
	}
	second := r.relay(t)
	second.open(t, h.opening(t, 1))
	second.until(t, welcomes)
	r.target(t, "t-moves", h.id)
	r.certificate(t, "c-moves", "t-moves")
	_, err := r.internal().CreateCsrTask(t.Context(), csrTask(h.id, "c-moves"))
	require.NoError(t, err)
	second.until(t, hints)

	r.stop()
	for range second.down {
	}
	require.Equal(t, "RELAY_ENDS", errs.ReasonOf(second.err), "a replica that stops sends no agent away")
}

// TestIdleAgentsCostNoGoroutinesAndFewStatements is not parallel: it counts goroutines of the whole process.
func TestIdleAgentsCostNoGoroutinesAndFewStatements(t *testing.T) { //nolint:paralleltest // see above
	const agents = 200
	r, sent := newWorld(t).counted(t)
	openings := make([]*inventoryv1.AgentStreamOpening, 0, agents)
	for i := range agents {
		h := r.enroll(t, fmt.Sprintf("idle-%d", i))
		h.list(t, 0) // the first use of a credential is a change
		openings = append(openings, h.opening(t, uint64(i)))
	}
	relay := r.relay(t)
	goroutines, statements := runtime.NumGoroutine(), sent.n.Load()
	relay.open(t, openings...)
	for range agents {
		relay.until(t, welcomes)
	}
	require.LessOrEqual(t, sent.n.Load()-statements, int64(6), "credentials, numbers, notices, revision and mailboxes, once for all")
	require.LessOrEqual(t, runtime.NumGoroutine(), goroutines+10, "a stream on which nothing happens has none")

	barrier := func() { // what was said before has been done when this is answered
		relay.open(t, &inventoryv1.AgentStreamOpening{StreamId: agents})
		relay.until(t, ends)
	}
	barrier()
	statements = sent.n.Load()
	heard := &inventoryv1.RelayRequest{}
	for i := range agents {
		heard.Heard = append(heard.Heard, uint64(i))
	}
	require.NoError(t, relay.call.Send(heard))
	barrier()
	require.Equal(t, statements, sent.n.Load(), "heartbeats write nothing: a loop writes them for all")
}
