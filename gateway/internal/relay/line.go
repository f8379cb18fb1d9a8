package relay

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/genproto/googleapis/rpc/status"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
)

const (
	// heardInterval is how often inventory is told who was heard.
	heardInterval = 3 * time.Second
	// openedAtOnce is how many streams one request opens, as its message has it at the most.
	openedAtOnce = 500
	// again is the pause between two relays, unknownAgain that when inventory knows none; both are jittered.
	again        = 300 * time.Millisecond
	unknownAgain = 30 * time.Second
	spread       = 0.5
	// reconnectSpread is within what time agents come back to another replica when this one stops.
	reconnectSpread = 5 * time.Second
)

// state is what is known of inventory.
type state uint8

const (
	unasked state = iota
	relayed
	unknown // of a version that knows no relay
)

// line is one relay after the other, and the sessions on it.
type line struct {
	client inventoryv1.AgentRelayServiceClient
	log    *zap.Logger
	wake   *tick.Kicker
	asked  chan struct{} // closed when state is not unasked any more

	mu       sync.Mutex
	state    state
	stopped  bool
	last     uint64
	sessions map[uint64]*session
	up       bool
	// What is to be said on the relay that is up.
	opens         []uint64
	alive, closed []uint64
}

func newLine(client inventoryv1.AgentRelayServiceClient, log *zap.Logger) *line {
	return &line{client: client, log: log, wake: tick.NewKicker(), asked: make(chan struct{}), sessions: map[uint64]*session{}}
}

// known tells whether inventory knows relays; it waits for the first answer, but not longer than that.
func (l *line) known(ctx context.Context, patience time.Duration) (bool, error) {
	select {
	case <-l.asked: // nearly always
	default:
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-l.asked:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-timer.C:
			return false, errs.New(errs.Unavailable, "SERVICE_UNAVAILABLE", "inventory is not available").With("service", "inventory")
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == relayed, nil
}

func (l *line) note(s state) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == unasked {
		close(l.asked)
	}
	l.state = s
}

// add puts a session on the line.
func (l *line) add(s *session) {
	l.mu.Lock()
	l.last++
	s.id = l.last
	stopped := l.stopped
	if !stopped {
		l.sessions[s.id] = s
		l.opens = append(l.opens, s.id)
	}
	l.mu.Unlock()
	if stopped {
		s.deliver(goodbye())
		return
	}
	l.wake.Kick()
}

// remove takes a session off the line.
func (l *line) remove(s *session) {
	l.mu.Lock()
	_, there := l.sessions[s.id]
	delete(l.sessions, s.id)
	if there && l.up {
		l.closed = append(l.closed, s.id)
	}
	l.mu.Unlock()
	l.wake.Kick()
}

// heard notes that an agent lives.
func (l *line) heard(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up {
		l.alive = append(l.alive, s.id)
	}
}

// run keeps a relay until ctx ends, and then says good-bye.
func (l *line) run(ctx context.Context) error {
	defer l.stop()
	said := ""
	for {
		err := l.relay(rpcctx.WithCaller(ctx, rpcctx.ServiceCaller(rpc.Gateway)))
		l.mu.Lock()
		l.up = false
		l.mu.Unlock()
		pause := again
		if errs.IsKind(err, errs.Unimplemented) {
			l.note(unknown)
			pause = unknownAgain
		}
		if text := err.Error(); text != said && ctx.Err() == nil && errs.ReasonOf(err) != "RELAY_ENDS" {
			l.log.Warn("the relay of agents' streams to inventory has ended; it is opened again", logx.Error(err))
			said = text
		}
		timer := time.NewTimer(tick.Jittered(pause, spread))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// relay is one call; it ends with an error.
func (l *line) relay(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	call, err := l.client.Relay(ctx)
	if err != nil {
		return err //nolint:wrapcheck // it names the service
	}
	if header, err := call.Header(); err != nil || header == nil {
		_, err = call.Recv()
		return err //nolint:wrapcheck // it names the service
	}
	l.begin()
	received := run.Go(func() error { return l.receive(call) })
	listen, err := tick.New(heardInterval, tick.DefaultJitter)
	if err != nil {
		return err //nolint:wrapcheck // the interval is a constant
	}
	defer listen.Stop()
	for {
		withAlive := false
		select {
		case err := <-received:
			return err
		case <-listen.C:
			withAlive = true
		case <-l.wake.C():
		}
		for r := l.request(withAlive); r != nil; r = l.request(false) {
			if err := call.Send(r); err != nil {
				return <-received // it knows why
			}
		}
	}
}

// begin has all sessions opened on a relay that has just come up.
func (l *line) begin() {
	l.note(relayed)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up = true
	l.opens, l.alive, l.closed = make([]uint64, 0, len(l.sessions)), nil, nil
	for id := range l.sessions {
		l.opens = append(l.opens, id)
	}
	slices.Sort(l.opens)
	l.wake.Kick()
}

// request puts together what is to be said; nil is nothing.
func (l *line) request(withAlive bool) *inventoryv1.RelayRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &inventoryv1.RelayRequest{Closed: l.closed}
	l.closed = nil
	if withAlive {
		r.Heard, l.alive = l.alive, nil
	}
	n := min(len(l.opens), openedAtOnce)
	for _, id := range l.opens[:n] {
		if s := l.sessions[id]; s != nil {
			r.Open = append(r.Open, &inventoryv1.AgentStreamOpening{StreamId: id, Credential: s.credential, Address: s.address, First: s.first})
		}
	}
	if l.opens = l.opens[n:]; len(l.opens) == 0 {
		l.opens = nil
	}
	if len(r.GetOpen())+len(r.GetHeard())+len(r.GetClosed()) == 0 {
		return nil
	}
	return r
}

// receive hands out what inventory says until the relay ends.
func (l *line) receive(call inventoryv1.AgentRelayService_RelayClient) error {
	for {
		m, err := call.Recv()
		if err != nil {
			return err //nolint:wrapcheck // it names the service
		}
		for _, d := range m.GetDeliveries() {
			l.deliver(d)
		}
	}
}

func (l *line) deliver(d *inventoryv1.AgentStreamDelivery) {
	l.mu.Lock()
	s := l.sessions[d.GetStreamId()]
	if d.GetEnded() {
		delete(l.sessions, d.GetStreamId()) // inventory has forgotten it
	}
	l.mu.Unlock()
	if s != nil {
		s.deliver(d)
	}
}

// stop asks the agents at all sessions, and those that come later, to connect elsewhere.
func (l *line) stop() {
	l.mu.Lock()
	sessions := l.sessions
	l.stopped, l.sessions = true, nil
	l.mu.Unlock()
	for _, s := range sessions {
		s.deliver(goodbye())
	}
}

func goodbye() *inventoryv1.AgentStreamDelivery {
	after := tick.Jittered(reconnectSpread/2, 1)
	return &inventoryv1.AgentStreamDelivery{Ended: true, Messages: []*agentv1.ConnectResponse{
		{Message: &agentv1.ConnectResponse_Drain{Drain: &agentv1.Drain{ReconnectAfter: durationpb.New(after)}}},
	}}
}

// statusError makes an error of a google.rpc.Status; empty is none.
func statusError(serialised []byte) error {
	if len(serialised) == 0 {
		return nil
	}
	st := &status.Status{}
	if err := proto.Unmarshal(serialised, st); err != nil {
		return errs.New(errs.Unavailable, "SERVICE_UNAVAILABLE", "the stream has ended").Wrap(err)
	}
	return grpcstatus.ErrorProto(st) //nolint:wrapcheck // the agent gets the status as it is
}
