package api

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/inventory/internal/core"
	"github.com/certctl/certctl/services/inventory/internal/hub"
)

// Bounds of a relay.
const (
	// openedAtOnce is how many streams are opened in one transaction.
	openedAtOnce = 500
	// openingFloor is the least time between the beginnings of two such transactions. An agent that comes alone does not wait.
	openingFloor = 200 * time.Millisecond
	// sentAtOnce is for how many streams one response has deliveries.
	sentAtOnce = 500
)

// errRelayEnds tells the gateway to open the streams again on another relay.
var errRelayEnds = errs.New(errs.Unavailable, "RELAY_ENDS", "open the streams again")

// relays is the service that has many agents' streams in one.
type relays struct{ *agents }

// relay is one call of Relay. One goroutine receives, one opens streams, and that of the call sends.
type relay struct {
	*agents
	wake, opening *tick.Kicker

	mu      sync.Mutex
	closed  bool
	waiting []*inventoryv1.AgentStreamOpening
	streams map[uint64]*hub.Stream // nil while it is being opened

	// out is locked by itself: hub and streams call wakeStream.
	out struct {
		sync.Mutex
		ready []*inventoryv1.AgentStreamDelivery
		awake map[uint64]*hub.Stream
	}
}

// Relay carries the streams of many agents.
func (s *relays) Relay(g inventoryv1.AgentRelayService_RelayServer) error {
	r := &relay{agents: s.agents, wake: tick.NewKicker(), opening: tick.NewKicker(), streams: map[uint64]*hub.Stream{}}
	r.out.awake = map[uint64]*hub.Stream{}
	defer r.close()
	ctx, cancel := context.WithCancel(g.Context())
	defer cancel()
	if err := g.SendHeader(metadata.MD{}); err != nil { // so that the gateway knows that it is understood
		return err
	}
	received := run.Go(func() error { return r.receive(g) })
	opened := run.Go(func() error { return r.openAll(ctx) })
	life := time.NewTimer(tick.Jittered(s.cfg.StreamLifetime, tick.DefaultJitter))
	defer life.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-received:
			return err
		case err := <-opened:
			return err
		case <-life.C:
			return errRelayEnds
		case <-r.wake.C():
			if err := r.send(g); err != nil {
				return err
			}
		}
	}
}

// receive takes what the gateway says until it ends the relay.
func (r *relay) receive(g inventoryv1.AgentRelayService_RelayServer) error {
	for {
		m, err := g.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r.take(m)
	}
}

func (r *relay) take(m *inventoryv1.RelayRequest) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	var heard []string
	for _, id := range m.GetHeard() {
		if line := r.streams[id]; line != nil {
			heard = append(heard, line.AgentID)
		}
	}
	for _, o := range m.GetOpen() {
		r.streams[o.GetStreamId()] = nil
		r.waiting = append(r.waiting, o)
	}
	var gone []*hub.Stream
	for _, id := range m.GetClosed() {
		if line := r.streams[id]; line != nil {
			gone = append(gone, line)
		}
		delete(r.streams, id)
	}
	r.mu.Unlock()
	r.hub.Heard(heard...)
	for _, line := range gone {
		r.hub.Detach(line)
	}
	if len(m.GetOpen()) > 0 {
		r.opening.Kick()
	}
}

// openAll opens what is waiting. What comes while a transaction is under way goes into the next: many agents that come at once cost few.
func (r *relay) openAll(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.opening.C():
		}
		for waiting := r.takeWaiting(); len(waiting) > 0; waiting = r.takeWaiting() {
			rest := time.NewTimer(openingFloor)
			r.open(ctx, waiting)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-rest.C:
			}
		}
	}
}

func (r *relay) takeWaiting() []*inventoryv1.AgentStreamOpening {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(r.waiting), openedAtOnce)
	waiting := r.waiting[:n:n]
	r.waiting = r.waiting[n:]
	return waiting
}

func (r *relay) open(ctx context.Context, waiting []*inventoryv1.AgentStreamOpening) {
	var ids []uint64
	var openings []core.Opening
	for _, w := range waiting {
		o, err := opening(w)
		if err != nil {
			r.refuse(w.GetStreamId(), err)
			continue
		}
		ids, openings = append(ids, w.GetStreamId()), append(openings, o)
	}
	if len(openings) == 0 {
		return
	}
	lines := map[string]*hub.Stream{}
	var agents []string
	for i, opened := range r.core.Open(ctx, openings) {
		if line := r.attach(ids[i], opened); line != nil {
			lines[opened.AgentID] = line
			agents = append(agents, opened.AgentID)
		}
	}
	if len(agents) == 0 {
		return
	}
	work, err := r.core.OpenWork(ctx, agents)
	if err != nil { // it is looked at again soon
		rpcctx.Logger(ctx).Warn("look for work of agents that have connected", logx.Error(err))
	}
	for agent, mailbox := range work {
		lines[agent].Hint(mailbox.Number)
	}
}

// opening checks what an agent says.
func opening(w *inventoryv1.AgentStreamOpening) (core.Opening, error) {
	o := core.Opening{Credential: w.GetCredential()}
	if o.Credential == "" {
		return o, errCredentialMissing()
	}
	if net.ParseIP(w.GetAddress()) != nil {
		o.Address = w.GetAddress()
	}
	first := &agentv1.ConnectRequest{}
	if err := proto.Unmarshal(w.GetFirst(), first); err != nil || first.GetHello() == nil {
		return o, errHello()
	}
	if err := protovalidate.Validate(first); err != nil {
		return o, errs.New(errs.Invalid, "INVALID_ARGUMENT", "the hello is not valid: %s", err.Error())
	}
	o.Hello = first.GetHello()
	return o, nil
}

// attach makes a stream of what was opened, unless it has been closed meanwhile.
func (r *relay) attach(id uint64, opened core.Opened) *hub.Stream {
	if opened.Err != nil {
		r.refuse(id, opened.Err)
		return nil
	}
	line := hub.NewStream(hub.StreamConfig{AgentID: opened.AgentID, CredentialID: opened.CredentialID, Epoch: opened.Epoch})
	line.Wake = func() { r.wakeStream(id, line) }
	r.mu.Lock()
	_, wanted := r.streams[id]
	wanted = wanted && !r.closed
	if wanted {
		r.streams[id] = line
	}
	r.mu.Unlock()
	if !wanted {
		return nil
	}
	r.deliver(id, []*agentv1.ConnectResponse{r.welcome()}, nil)
	r.hub.Attach(line)
	if r.lost(id, line) {
		r.hub.Detach(line)
	}
	return line
}

// refuse ends a stream that was not opened.
func (r *relay) refuse(id uint64, cause error) {
	var messages []*agentv1.ConnectResponse
	if m := refusal(cause); m != nil {
		messages = append(messages, m)
	}
	r.forget(id)
	r.deliver(id, messages, &ending{cause})
}

// lost tells whether a stream was closed before the hub knew it.
func (r *relay) lost(id uint64, line *hub.Stream) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed || r.streams[id] != line
}

func (r *relay) wakeStream(id uint64, line *hub.Stream) {
	r.out.Lock()
	r.out.awake[id] = line
	r.out.Unlock()
	r.wake.Kick()
}

func (r *relay) deliver(id uint64, messages []*agentv1.ConnectResponse, end *ending) {
	d := &inventoryv1.AgentStreamDelivery{StreamId: id, Messages: messages, Ended: end != nil}
	if end != nil && end.err != nil {
		d.Status = statusOf(end.err)
	}
	r.out.Lock()
	r.out.ready = append(r.out.ready, d)
	r.out.Unlock()
	r.wake.Kick()
}

// statusOf is what may be shown of an error, as in grpc-status-details-bin.
func statusOf(err error) []byte {
	b, _ := proto.Marshal(errs.From(err).GRPCStatus().Proto()) // a message of valid strings
	return b
}

// send sends what there is for all streams.
func (r *relay) send(g inventoryv1.AgentRelayService_RelayServer) error {
	r.out.Lock()
	deliveries, awake := r.out.ready, r.out.awake
	r.out.ready, r.out.awake = nil, map[uint64]*hub.Stream{}
	r.out.Unlock()
	var ended []*hub.Stream
	for id, line := range awake {
		d, end := delivery(id, line)
		if end != nil && end.err == nil {
			return errRelayEnds // this replica stops, which is no matter of the agents
		}
		if end != nil {
			ended = append(ended, r.forget(id))
		}
		deliveries = append(deliveries, d)
	}
	for _, line := range ended {
		if line != nil {
			r.hub.Detach(line)
		}
	}
	for first := 0; first < len(deliveries); first += sentAtOnce {
		part := deliveries[first:min(first+sentAtOnce, len(deliveries))]
		if err := g.Send(&inventoryv1.RelayResponse{Deliveries: part}); err != nil {
			return err
		}
	}
	return nil
}

func delivery(id uint64, line *hub.Stream) (*inventoryv1.AgentStreamDelivery, *ending) {
	messages, end := words(line)
	d := &inventoryv1.AgentStreamDelivery{StreamId: id, Messages: messages, Ended: end != nil}
	if end != nil && end.err != nil {
		d.Status = statusOf(end.err)
	}
	return d, end
}

// forget takes a stream off the relay.
func (r *relay) forget(id uint64) *hub.Stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	line := r.streams[id]
	delete(r.streams, id)
	return line
}

// close has the hub forget the streams. Those that are being opened are not attached any more.
func (r *relay) close() {
	r.mu.Lock()
	r.closed = true
	streams := r.streams
	r.streams = nil
	r.mu.Unlock()
	for _, line := range streams {
		if line != nil {
			r.hub.Detach(line)
		}
	}
}
