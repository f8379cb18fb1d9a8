package control

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wire is a client whose streams the test plays.
type wire struct {
	agentv1.AgentServiceClient
	// play is the server's side of each stream: it ends the stream by returning.
	play     func(n int, p *played) error
	connects []time.Time
}

type played struct {
	agentv1.AgentService_ConnectClient
	ctx  context.Context //nolint:containedctx // the stream's own, as grpc.ClientStream has one
	down chan *agentv1.ConnectResponse
	up   chan *agentv1.ConnectRequest
	end  <-chan error
}

func (w *wire) Connect(ctx context.Context, _ ...grpc.CallOption) (agentv1.AgentService_ConnectClient, error) {
	w.connects = append(w.connects, time.Now())
	p := &played{ctx: ctx, down: make(chan *agentv1.ConnectResponse), up: make(chan *agentv1.ConnectRequest, 1000)}
	n := len(w.connects)
	p.end = run.Go(func() error { return w.play(n, p) })
	return p, nil
}

func (p *played) Send(m *agentv1.ConnectRequest) error {
	select {
	case p.up <- m:
		return nil
	case <-p.ctx.Done():
		return io.EOF
	}
}

func (p *played) Recv() (*agentv1.ConnectResponse, error) {
	select {
	case m := <-p.down:
		return m, nil
	case err := <-p.end:
		return nil, err
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

func (p *played) say(m *agentv1.ConnectResponse) {
	select {
	case p.down <- m:
	case <-p.ctx.Done():
	}
}

func (p *played) welcome(beat time.Duration) {
	p.say(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{Welcome: &agentv1.Welcome{HeartbeatInterval: durationpb.New(beat)}}})
}

// live holds the stream until its context or the time ends.
func (p *played) live(d time.Duration) error {
	_ = tick.Wait(p.ctx, d)
	return errs.New(errs.Unavailable, "AWAY", "the server is away")
}

// play runs a stream for a while and answers what Run returned.
func play(t *testing.T, w *wire, during time.Duration, refused func(context.Context, secretbox.Secret, error) (bool, error)) (work int, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), during)
	defer cancel()
	s := &Stream{Client: w, Log: zap.NewNop(), Credential: func() secretbox.Secret { return secretbox.NewSecret("credential") },
		Work: func() { work++ }, Rotate: func() {}, Refused: refused, State: func(error) {}}
	err = s.Run(ctx)
	synctest.Wait()
	return work, err
}

func TestHeartbeatsKeepTheirRhythm(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		asked    time.Duration
		min, max int
	}{
		"as asked":       {15 * time.Second, 36, 44},
		"nothing said":   {0, 18, 22},
		"much too often": {time.Nanosecond, 540, 660},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				beats := 0
				w := &wire{play: func(_ int, p *played) error {
					p.welcome(c.asked)
					<-p.ctx.Done()
					beats = len(p.up) - 1 // the hello
					return nil
				}}
				_, err := play(t, w, 10*time.Minute, nil)
				require.NoError(t, err)
				require.GreaterOrEqual(t, beats, c.min)
				require.LessOrEqual(t, beats, c.max)
				require.Len(t, w.connects, 1)
			})
		})
	}
}

func TestAServerThatDropsStreamsIsNotPressed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &wire{play: func(_ int, p *played) error {
			p.welcome(time.Minute)
			return p.live(0)
		}}
		work, err := play(t, w, time.Hour, nil)
		require.NoError(t, err)
		require.Greater(t, len(w.connects), 120, "about every 15 s")
		require.Less(t, len(w.connects), 400)
		require.Zero(t, work, "nothing was hinted, so nothing is asked for")
	})
}

func TestAStreamThatLivedLeadsToAQuickReturn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &wire{play: func(_ int, p *played) error {
			p.welcome(time.Minute)
			return p.live(5 * time.Minute)
		}}
		_, err := play(t, w, 3*time.Hour, nil)
		require.NoError(t, err)
		require.Greater(t, len(w.connects), 30)
		for i := 1; i < len(w.connects); i++ {
			require.LessOrEqual(t, w.connects[i].Sub(w.connects[i-1]), 5*time.Minute+time.Second)
		}
	})
}

func TestAServerThatNeverAnswersIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &wire{play: func(_ int, p *played) error { return p.live(time.Hour) }}
		_, err := play(t, w, time.Minute, nil)
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(w.connects), 2)
		require.GreaterOrEqual(t, w.connects[1].Sub(w.connects[0]), welcomeTimeout)
	})
}

func TestADrainIsBounded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ after, min, max time.Duration }{
		"as told":   {7 * time.Second, 7 * time.Second, 7 * time.Second},
		"not told":  {0, 1, time.Second},
		"for years": {10000 * time.Hour, maxDrain, maxDrain},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := &wire{play: func(n int, p *played) error {
					p.welcome(time.Minute)
					if n == 1 {
						p.say(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Drain{Drain: &agentv1.Drain{ReconnectAfter: durationpb.New(c.after)}}})
					}
					return p.live(24 * time.Hour)
				}}
				_, err := play(t, w, time.Hour, nil)
				require.NoError(t, err)
				require.Len(t, w.connects, 2)
				away := w.connects[1].Sub(w.connects[0])
				require.GreaterOrEqual(t, away, c.min)
				require.LessOrEqual(t, away, c.max)
			})
		})
	}
}

func TestARefusedCredentialIsRetriedAtOnceOnlyWithAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &wire{play: func(n int, p *played) error {
			if n <= 3 {
				return errs.New(errs.Unauthenticated, "CREDENTIAL_NOT_VALID", "no")
			}
			p.welcome(time.Minute)
			return p.live(time.Hour)
		}}
		_, err := play(t, w, time.Minute, func(_ context.Context, c secretbox.Secret, _ error) (bool, error) {
			require.Equal(t, "credential", c.Reveal())
			return len(w.connects) == 1, nil
		})
		require.NoError(t, err)
		require.Len(t, w.connects, 4)
		require.Zero(t, w.connects[1].Sub(w.connects[0]))
		require.Positive(t, w.connects[2].Sub(w.connects[1]))
	})
}

func TestAnIdentityThatCannotBeStoredEndsTheStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &wire{play: func(int, *played) error {
			return errs.New(errs.Unauthenticated, "CREDENTIAL_NOT_VALID", "no")
		}}
		_, err := play(t, w, time.Minute, func(context.Context, secretbox.Secret, error) (bool, error) { return false, io.ErrShortWrite })
		require.ErrorIs(t, err, io.ErrShortWrite)
	})
}

func TestTheWaitHasFullJitterBetweenOneSecondAndHalfAMinute(t *testing.T) {
	t.Parallel()
	ceilings := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second}
	low, high := make([]int, len(ceilings)), make([]int, len(ceilings))
	for range 2000 {
		var b Backoff
		for i, c := range ceilings {
			d := b.Next()
			require.Positive(t, d)
			require.LessOrEqual(t, d, c)
			if d < c/2 {
				low[i]++
			} else {
				high[i]++
			}
		}
	}
	for i := range ceilings {
		require.Greater(t, low[i], 800)
		require.Greater(t, high[i], 800)
	}
	var b Backoff
	b.Next()
	b.Next()
	b.Reset()
	require.LessOrEqual(t, b.Next(), time.Second)
}
