package control

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

// defaultHeartbeat is used until the server says how often.
const defaultHeartbeat = 30 * time.Second

// Stream keeps the agent present at the server and passes its hints on. Work never travels on it.
type Stream struct {
	Client agentv1.AgentServiceClient
	Host   *agentv1.HostInfo
	Log    *zap.Logger
	// Work is called when there may be work: after each connect and with each hint.
	Work func()
	// Rotate is called when the server asks for a rotation of the credential.
	Rotate func()
	// Refused is called when the server refuses the credential; nil means that it is worth another try at once.
	Refused func(ctx context.Context, cause error) error

	session   string
	connected atomic.Bool
}

// Connected tells whether the stream is up.
func (s *Stream) Connected() bool { return s.connected.Load() }

// Run connects again and again until ctx ends or the agent is retired (ErrRetired).
func (s *Stream) Run(ctx context.Context) error {
	s.session = rand.Text()
	var pause Backoff
	for ctx.Err() == nil {
		wait, err := s.once(ctx, &pause)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if Retired(err) {
				return ErrRetired
			}
			if Unauthenticated(err) {
				if err := s.Refused(ctx, err); err != nil {
					return err
				}
			}
			wait = pause.Next()
			s.Log.Warn("connection to the server lost", zap.Error(err), zap.Duration("retry_in", wait))
		}
		if !Wait(ctx, wait) {
			return nil
		}
	}
	return nil
}

// once holds one stream until it ends. It answers how long to wait before the next one.
func (s *Stream) once(parent context.Context, pause *Backoff) (time.Duration, error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	stream, err := s.Client.Connect(ctx)
	if err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	hello := &agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.Hello{Host: s.Host, SessionId: s.session}}}
	if err := stream.Send(hello); err != nil {
		_, err = stream.Recv() // says why
		return 0, fmt.Errorf("connect: %w", err)
	}
	defer s.connected.Store(false)
	messages := make(chan *agentv1.ConnectResponse)
	ended := make(chan error, 1)
	go receive(ctx, stream, messages, ended)
	beat, err := tick.New(defaultHeartbeat, tick.DefaultJitter)
	if err != nil {
		return 0, err
	}
	defer func() { beat.Stop() }()
	for {
		select {
		case err := <-ended:
			return 0, fmt.Errorf("stream ended: %w", err)
		case <-beat.C:
			// A failed Send ends the stream; the receiver says why.
			_ = stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Heartbeat{Heartbeat: &agentv1.Heartbeat{}}})
		case m := <-messages:
			switch m := m.GetMessage().(type) {
			case *agentv1.ConnectResponse_Welcome:
				pause.Reset()
				s.connected.Store(true)
				if d := m.Welcome.GetHeartbeatInterval().AsDuration(); d > 0 {
					beat.Stop()
					if beat, err = tick.New(d, tick.DefaultJitter); err != nil {
						return 0, err
					}
				}
				s.Log.Info("connected", zap.String("server_version", m.Welcome.GetServerVersion()))
				s.Work()
			case *agentv1.ConnectResponse_WorkHint:
				s.Work()
			case *agentv1.ConnectResponse_RotateHint:
				s.Rotate()
			case *agentv1.ConnectResponse_Drain:
				s.Log.Info("the server asks to connect again", zap.Duration("after", m.Drain.GetReconnectAfter().AsDuration()))
				return m.Drain.GetReconnectAfter().AsDuration(), nil
			case *agentv1.ConnectResponse_Retired:
				return 0, ErrRetired
			}
		}
	}
}

// receive passes messages on until the stream ends; it never outlives ctx.
func receive(ctx context.Context, stream agentv1.AgentService_ConnectClient, out chan<- *agentv1.ConnectResponse, ended chan<- error) {
	for {
		m, err := stream.Recv()
		if err != nil {
			ended <- err
			return
		}
		select {
		case out <- m:
		case <-ctx.Done():
			return
		}
	}
}
