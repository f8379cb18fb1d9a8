// Package relay carries the streams of agents between their connections and inventory: many of them on one call of
// AgentRelayService.Relay, since a call for each would cost gateway and inventory most of their memory. It knows nothing of agents but
// what their streams say; who they are is for inventory to find out.
//
// A stream outlives the relay that it is on: when inventory goes away, it is opened again at the next replica that there is, and the agent
// notices nothing.
package relay

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/certctl/certctl/gateway/internal/auth"
	"github.com/certctl/certctl/gateway/internal/limit"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/run"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
)

const (
	// lines is how many relays a gateway keeps: with several, its agents are spread over the replicas of inventory.
	lines = 4
	// helloTimeout bounds the wait for an agent's first message.
	helloTimeout = 15 * time.Second
	// lineTimeout bounds the wait for inventory's first answer.
	lineTimeout = 10 * time.Second
	// maxHello bounds an agent's first message, bytes.
	maxHello = 64 << 10
	// listenBuffer has room for a heartbeat: each read from the connection is some work for HTTP/2.
	listenBuffer = 32
)

// Config sets up a Handler.
type Config struct {
	// MaxMessage bounds a message of an agent, in bytes.
	MaxMessage int
}

// Deps is what a Handler works with.
type Deps struct {
	Inventory grpc.ClientConnInterface
	Gate      *auth.Gate
	Log       *zap.Logger
	Metrics   prometheus.Registerer
	// Next serves all other methods, and this one where inventory is of a version that knows no relay.
	Next http.Handler
}

// Handler serves AgentService.Connect.
type Handler struct {
	cfg   Config
	deps  Deps
	lines [lines]*line
	next  atomic.Uint64
	open  prometheus.Gauge
}

// New makes a handler. Its streams get nowhere before Run.
func New(cfg Config, deps Deps) (*Handler, error) {
	h := &Handler{cfg: cfg, deps: deps, open: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "certctl_gateway_agent_streams", Help: "Agents whose stream is open here.",
	})}
	if err := deps.Metrics.Register(h.open); err != nil {
		return nil, fmt.Errorf("register relay metrics: %w", err)
	}
	for i := range h.lines {
		h.lines[i] = newLine(inventoryv1.NewAgentRelayServiceClient(deps.Inventory), deps.Log)
	}
	return h, nil
}

// Run keeps the relays until ctx ends; then the agents are asked to connect elsewhere.
func (h *Handler) Run(ctx context.Context) error {
	g := run.NewGroup(ctx, run.Config{})
	for _, l := range h.lines {
		g.Go("relay", l.run)
	}
	return g.Wait()
}

// ServeHTTP serves one stream, until it ends.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != agentv1.AgentService_Connect_FullMethodName {
		h.deps.Next.ServeHTTP(w, r)
		return
	}
	l := h.lines[h.next.Add(1)%lines]
	known, err := l.known(r.Context(), lineTimeout)
	if err == nil && !known {
		h.deps.Next.ServeHTTP(w, r)
		return
	}
	began := time.Now()
	s := newSession(w)
	if err == nil {
		err = run.Safely(func() error { return h.serve(s, l, r) })
	}
	s.finish(err)
	h.log(r, err, time.Since(began))
}

func (h *Handler) log(r *http.Request, err error, took time.Duration) {
	level := zap.DebugLevel
	if errs.IsKind(err, errs.Internal) {
		level = zap.ErrorLevel
	}
	if entry := h.deps.Log.Check(level, "agent's stream ended"); entry != nil {
		fields := []zap.Field{logx.Method(r.URL.Path), logx.Peer(r.RemoteAddr), logx.Duration(took)}
		if err != nil {
			fields = append(fields, logx.Reason(errs.ReasonOf(err)), logx.Error(err))
		}
		entry.Write(fields...)
	}
}

// serve is a stream from its begin to its end. A nil error is the end in order. The goroutine that stays does little itself: a stack that
// has once grown to 8 KiB is hardly ever made smaller, and there is one for each agent.
func (h *Handler) serve(s *session, l *line, r *http.Request) error {
	if err := <-run.Go(func() error { return h.admit(s, l, r) }); err != nil {
		return err
	}
	defer h.open.Dec()
	defer l.remove(s)
	return h.listen(s, l, r.Body)
}

// admit begins the stream, learns what inventory must know of it, and puts it on the line.
func (h *Handler) admit(s *session, l *line, r *http.Request) error {
	if err := h.deps.Gate.Agent(r.RemoteAddr); err != nil {
		return err
	}
	s.begin()
	if err := s.hello(r.Body); err != nil {
		return err
	}
	s.address = limit.Host(r.RemoteAddr)
	if token, err := rpc.Bearer(metadata.MD{rpc.MetadataAuthorization: r.Header.Values("Authorization")}); err == nil {
		s.credential = token
	}
	h.open.Inc()
	l.add(s)
	return nil
}

// listen takes what the agent says: that it says something is all that matters.
func (h *Handler) listen(s *session, l *line, body io.Reader) error {
	whole := bufio.NewReaderSize(body, listenBuffer)
	for {
		err := skipMessage(whole, h.cfg.MaxMessage)
		if ended, how := s.ending(); ended {
			return how
		}
		if err == io.EOF { //nolint:errorlint // as io.Reader has it: the agent has said all it had to say
			return nil
		}
		if err != nil {
			return err
		}
		l.heard(s)
	}
}
