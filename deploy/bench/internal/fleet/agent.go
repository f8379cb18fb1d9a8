package fleet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"runtime"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

// What the real agent has, see its packages control and work; only the buffers are smaller here.
const (
	connectTimeout = 30 * time.Second
	welcomeTimeout = 20 * time.Second
	callTimeout    = 20 * time.Second
	settled        = 10 * time.Second
	maxDrain       = 5 * time.Minute
	buffer         = 2 << 10
)

// agent is one of a fleet.
type agent struct {
	*Fleet
	id      string
	client  agentv1.AgentServiceClient
	session string

	// fetching and again have one fetch of work at a time, and one more after it when there was a hint meanwhile.
	mu              sync.Mutex
	fetching, again bool
	inHand          map[string]bool
	work            sync.WaitGroup
}

// bearer adds the credential to each call.
type bearer struct{ secret secretbox.Secret }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.secret.Reveal()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return true }

func (f *Fleet) dial(options ...grpc.DialOption) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+f.host, append(options,
		grpc.WithTransportCredentials(f.tls),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout,
			Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.5, MaxDelay: 10 * time.Second}}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Minute, Timeout: 15 * time.Second}),
		grpc.WithReadBufferSize(buffer), grpc.WithWriteBufferSize(buffer),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy())...)
	if err != nil {
		return nil, fmt.Errorf("fleet: prepare a connection: %w", err)
	}
	return conn, nil
}

// run is one agent until ctx ends or the server retires it.
func (f *Fleet) run(ctx context.Context, c Credential) {
	conn, err := f.dial(grpc.WithPerRPCCredentials(bearer{c.Secret}))
	if err != nil {
		f.log.Error("agent not started", zap.String("agent_id", c.AgentID), zap.Error(err))
		return
	}
	defer func() { _ = conn.Close() }()
	a := &agent{Fleet: f, id: c.AgentID, client: agentv1.NewAgentServiceClient(conn), session: rand.Text(), inHand: map[string]bool{}}
	defer a.work.Wait()
	var pause pause
	for ctx.Err() == nil {
		began := time.Now()
		after, welcomed, err := a.once(ctx)
		if welcomed && time.Since(began) > settled {
			pause = 0
		}
		if errors.Is(err, errRetired) || errs.ReasonOf(err) == "AGENT_RETIRED" {
			return
		}
		if err != nil && ctx.Err() == nil {
			f.losses.Add(1)
			after = pause.next()
			f.log.Debug("connection lost", zap.String("agent_id", a.id), zap.Error(explain(err)), zap.Duration("retry_in", after))
		}
		if tick.Wait(ctx, after) != nil {
			return
		}
	}
}

var (
	errRetired = errors.New("the agent has been retired")
	errSilent  = errors.New("the server has not answered the hello")
)

// pause counts the tries that failed one after the other.
type pause uint

// next is a wait with full jitter under a ceiling that doubles, 1 s to 30 s.
func (p *pause) next() time.Duration {
	ceiling := min(30*time.Second, time.Second<<min(*p, 5))
	*p++
	return 1 + mathrand.N(ceiling) //nolint:gosec // spreads load, keeps no secret
}

// once holds one stream until it ends. It answers how long to wait before the next one, and whether the server has welcomed this one.
func (a *agent) once(ctx context.Context) (after time.Duration, welcomed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := a.client.Connect(ctx)
	if err != nil {
		return 0, false, err
	}
	err = stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Hello{Hello: &agentv1.Hello{Host: host(), SessionId: a.session}}})
	if err != nil {
		return 0, false, received(stream, err)
	}
	patience := time.AfterFunc(welcomeTimeout, func() { cancel(errSilent) }) //nolint:forbidigo // happens once
	defer patience.Stop()
	var heart heart
	defer heart.stop()
	for {
		m, err := stream.Recv()
		if err != nil {
			return 0, welcomed, errors.Join(err, context.Cause(ctx))
		}
		switch m := m.GetMessage().(type) {
		case *agentv1.ConnectResponse_Welcome:
			if !welcomed && patience.Stop() {
				welcomed = true
				defer a.welcome()()
				heart.start(stream, m.Welcome.GetHeartbeatInterval().AsDuration())
			}
		case *agentv1.ConnectResponse_WorkHint:
			a.fetch(ctx)
		case *agentv1.ConnectResponse_Drain:
			return min(m.Drain.GetReconnectAfter().AsDuration(), maxDrain), welcomed, nil
		case *agentv1.ConnectResponse_Retired:
			return 0, welcomed, errRetired
		}
	}
}

// received gives why a stream on which nothing could be sent has ended.
func received(stream agentv1.AgentService_ConnectClient, err error) error {
	if _, why := stream.Recv(); why != nil {
		return why
	}
	return err
}

// heart sends heartbeats without a goroutine that waits.
type heart struct {
	mu    sync.Mutex
	timer *time.Timer
	ended bool
}

func (h *heart) start(stream agentv1.AgentService_ConnectClient, interval time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.timer = time.AfterFunc(tick.Jittered(interval, tick.DefaultJitter), func() { //nolint:forbidigo // a ticker for each agent would be a goroutine for each
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.ended {
			return
		}
		_ = stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Heartbeat{Heartbeat: &agentv1.Heartbeat{}}}) // Recv tells why not
		h.timer.Reset(tick.Jittered(interval, tick.DefaultJitter))
	})
}

func (h *heart) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	if h.timer != nil {
		h.timer.Stop()
	}
}

func host() *agentv1.HostInfo {
	return &agentv1.HostInfo{Hostname: "bench.example.com", Os: runtime.GOOS, Architecture: runtime.GOARCH, Version: "bench", Capabilities: []string{"file", "nginx"}}
}
