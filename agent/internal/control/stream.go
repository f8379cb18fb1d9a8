package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

const (
	// defaultHeartbeat is used until the server says how often.
	defaultHeartbeat = 30 * time.Second
	// minHeartbeat bounds how often the server may ask for heartbeats.
	minHeartbeat = time.Second
	// welcomeTimeout bounds the wait for the answer to a hello.
	welcomeTimeout = 20 * time.Second
	// settled is how long a stream must have lived for the next one to be tried without growing pauses: a server that takes
	// streams and drops them again is not to be pressed.
	settled = 10 * time.Second
	// maxDrain bounds for how long the server may send an agent away.
	maxDrain = 5 * time.Minute
)

var (
	// errEnded says that the stream has ended; why comes from the receiver.
	errEnded = errors.New("the stream has ended")
	// errAsked is why there is no stream when nothing went wrong.
	errAsked = errors.New("the server has asked to connect again")
)

// Stream keeps the agent present at the server and passes its hints on. Work never travels on it.
type Stream struct {
	Client agentv1.AgentServiceClient
	Host   *agentv1.HostInfo
	Log    *zap.Logger
	// Credential gives the newest credential.
	Credential func() secretbox.Secret
	// Work is called with each hint that there is work. The server gives one after the welcome if there is any.
	Work func()
	// Rotate is called when the server asks for a rotation of the credential.
	Rotate func()
	// Refused is called when the server refuses a credential. It answers whether there is another one to try at once.
	Refused func(ctx context.Context, credential secretbox.Secret, cause error) (bool, error)
	// State is called with nil when the server has welcomed the agent, and with the reason when there is no stream any more.
	State func(cause error)

	session  string
	welcomed time.Time
}

// Run connects again and again until ctx ends or the agent is retired (ErrRetired).
func (s *Stream) Run(ctx context.Context) error {
	s.session = rand.Text()
	var pause Backoff
	for ctx.Err() == nil {
		credential := s.Credential()
		s.welcomed = time.Time{}
		wait, err := s.once(With(ctx, credential))
		s.State(cmp.Or(err, errAsked))
		if !s.welcomed.IsZero() && time.Since(s.welcomed) > settled {
			pause.Reset()
		}
		if err != nil && ctx.Err() == nil {
			if wait, err = s.lost(ctx, credential, err, &pause); err != nil {
				return err
			}
		}
		if tick.Wait(ctx, wait) != nil {
			return nil //nolint:nilerr // told to end
		}
	}
	return nil
}

// lost decides what follows the unwanted end of a stream: an error is the end of the agent.
func (s *Stream) lost(ctx context.Context, credential secretbox.Secret, cause error, pause *Backoff) (time.Duration, error) {
	if Retired(cause) {
		return 0, ErrRetired
	}
	if Unauthenticated(cause) {
		another, err := s.Refused(ctx, credential, cause)
		if err != nil {
			return 0, err
		}
		if another {
			s.Log.Info("connecting again with another credential")
			return 0, nil
		}
	}
	wait := pause.Next()
	s.Log.Warn("connection to the server lost", zap.Error(cause), zap.Duration("retry_in", wait))
	return wait, nil
}

// once holds one stream until it ends. It answers how long to wait before the next one.
func (s *Stream) once(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.Client.Connect(ctx)
	if err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	messages := make(chan *agentv1.ConnectResponse)
	received := run.Go(func() error {
		defer close(messages)
		return receive(ctx, stream, messages)
	})
	wait, err := s.converse(stream, messages)
	cancel()
	if cause := <-received; errors.Is(err, errEnded) {
		return 0, fmt.Errorf("stream ended: %w", cause)
	}
	return wait, err
}

// receive passes messages on until the stream or ctx ends.
func receive(ctx context.Context, stream agentv1.AgentService_ConnectClient, out chan<- *agentv1.ConnectResponse) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case out <- m:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// converse says hello and sends heartbeats; it is the only one that sends. A Send that fails is not looked at: the stream
// has ended then, and the receiver knows why.
func (s *Stream) converse(stream agentv1.AgentService_ConnectClient, messages <-chan *agentv1.ConnectResponse) (time.Duration, error) {
	_ = stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.Hello{Host: s.Host, SessionId: s.session}}})
	patience := time.NewTimer(welcomeTimeout)
	defer patience.Stop()
	beat, err := tick.New(defaultHeartbeat, tick.DefaultJitter)
	if err != nil {
		return 0, err
	}
	defer func() { beat.Stop() }()
	for {
		select {
		case <-patience.C:
			return 0, fmt.Errorf("the server has not answered within %s", welcomeTimeout)
		case <-beat.C:
			_ = stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Heartbeat{Heartbeat: &agentv1.Heartbeat{}}})
		case m, ok := <-messages:
			switch m := m.GetMessage().(type) {
			case *agentv1.ConnectResponse_Welcome:
				patience.Stop()
				beat.Stop()
				if beat, err = tick.New(heartbeat(m.Welcome), tick.DefaultJitter); err != nil {
					return 0, err
				}
				s.welcome(m.Welcome)
			case *agentv1.ConnectResponse_WorkHint:
				s.Work()
			case *agentv1.ConnectResponse_RotateHint:
				s.Rotate()
			case *agentv1.ConnectResponse_Drain:
				return s.drain(m.Drain), nil
			case *agentv1.ConnectResponse_Retired:
				return 0, ErrRetired
			}
			if !ok {
				return 0, errEnded
			}
		}
	}
}

func heartbeat(w *agentv1.Welcome) time.Duration {
	d := w.GetHeartbeatInterval().AsDuration()
	if d <= 0 {
		return defaultHeartbeat
	}
	return max(d, minHeartbeat)
}

func (s *Stream) welcome(w *agentv1.Welcome) {
	s.welcomed = time.Now()
	s.State(nil)
	s.Log.Info("connected", zap.String("server_version", w.GetServerVersion()))
}

// drain answers how long to stay away. Without a word from the server the waits of a fleet must differ all the same.
func (s *Stream) drain(d *agentv1.Drain) time.Duration {
	after := min(d.GetReconnectAfter().AsDuration(), maxDrain)
	if after <= 0 {
		after = new(Backoff).Next()
	}
	s.Log.Info("the server asks to connect again", zap.Duration("after", after))
	return after
}
