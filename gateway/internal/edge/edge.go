// Package edge is what every request passes on its way in: gRPC goes one way and HTTP the other, which has limits, request
// ids, a log line, metrics, security headers, CORS, authentication and the search for the route.
package edge

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/certctl/certctl/gateway/internal/auth"
	"github.com/certctl/certctl/gateway/internal/problem"
	"github.com/certctl/certctl/gateway/internal/rest"
	"github.com/certctl/certctl/gateway/internal/route"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
)

const (
	headerRequestID = "X-Request-Id"
	// slack is what the connection's deadlines leave beyond the deadline of the call, so that its answer arrives.
	slack = 10 * time.Second
	// healthMethods may be called by load balancers.
	healthMethods = "/grpc.health.v1.Health/"
)

// Config sets up a Handler.
type Config struct {
	// Timeout bounds an HTTP request.
	Timeout time.Duration
	// Origins may read answers in a browser; "*" is all.
	Origins []string
}

// Deps is what a Handler works with.
type Deps struct {
	Log     *zap.Logger
	Metrics *Metrics
	Gate    *auth.Gate
	Routes  *route.Table
	REST    *rest.Handler
	// GRPC serves the methods in Methods.
	GRPC    http.Handler
	Methods map[string]*route.RPC
}

// Handler serves all requests of the listener.
type Handler struct {
	cfg  Config
	deps Deps
	cors *cors
}

// New makes a handler.
func New(cfg Config, deps Deps) (*Handler, error) {
	c, err := newCORS(cfg.Origins)
	if err != nil {
		return nil, err
	}
	return &Handler{cfg: cfg, deps: deps, cors: c}, nil
}

// ServeHTTP tells gRPC and HTTP apart by the content type, so that one connection can carry both.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if isGRPC(r) {
		h.serveGRPC(w, r)
		return
	}
	h.serveHTTP(w, r)
}

func isGRPC(r *http.Request) bool {
	rest, ok := strings.CutPrefix(r.Header.Get("Content-Type"), "application/grpc")
	return ok && r.ProtoMajor == 2 && r.Method == http.MethodPost && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// serveGRPC sets no deadlines on the stream: an agent's is open for hours, and calls have their own.
func (h *Handler) serveGRPC(w http.ResponseWriter, r *http.Request) {
	if _, ok := h.deps.Methods[r.URL.Path]; ok || strings.HasPrefix(r.URL.Path, healthMethods) {
		h.deps.GRPC.ServeHTTP(w, r)
		return
	}
	// The services for peers do not exist here, and the answer does not tell them from what never was.
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Grpc-Status", "12") // UNIMPLEMENTED
	w.Header().Set("Grpc-Message", "unknown method")
	w.WriteHeader(http.StatusOK)
}

func (h *Handler) serveHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	id := requestID(r)
	rec := &recorder{ResponseWriter: w, route: "unmatched"}
	rec.Header().Set(headerRequestID, id)
	r = r.WithContext(rpcctx.WithRequestID(r.Context(), id))
	h.setDeadlines(w)
	err := run.Safely(func() error { return h.serve(rec, r) })
	if err != nil {
		h.fail(rec, err)
	}
	h.deps.Metrics.observe(rec, r, time.Since(start))
	h.log(rec, r, time.Since(start))
}

// fail answers an error, unless an answer has begun: then cutting the connection is the only way to tell.
func (h *Handler) fail(rec *recorder, err error) {
	rec.err = err
	if rec.status != 0 {
		h.deps.Log.Error("answer broken off", logx.Error(err))
		panic(http.ErrAbortHandler)
	}
	problem.Write(rec, err)
}

// requestID keeps a sane id of the client.
func requestID(r *http.Request) string {
	if id := r.Header.Get(headerRequestID); rpcctx.ValidRequestID(id) {
		return id
	}
	id, err := uuid.NewV7()
	if err != nil {
		return uuid.Nil.String() // no randomness: better an id that is not unique than no service
	}
	return id.String()
}

// setDeadlines bounds how long a slow client can hold a request.
func (h *Handler) setDeadlines(w http.ResponseWriter) {
	end := time.Now().Add(h.cfg.Timeout + slack)
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(end)  // not there in tests that use no connection
	_ = rc.SetWriteDeadline(end) // likewise
}

func (h *Handler) serve(rec *recorder, r *http.Request) error {
	secure(rec.Header(), r)
	if err := h.deps.Gate.Address(r.RemoteAddr); err != nil {
		return err
	}
	if h.cors.serve(rec, r) {
		return nil
	}
	if err := h.cors.check(r); err != nil {
		return err
	}
	rt, err := h.find(r)
	if err != nil {
		return err
	}
	rec.route, rec.quiet = rt.Pattern, rt.Public
	if !rt.Public {
		if rec.caller, err = h.deps.Gate.Caller(r.RemoteAddr, r.Header.Values("Authorization")); err != nil {
			return err
		}
		r = r.WithContext(rpcctx.WithCaller(r.Context(), rec.caller))
	}
	if rt.RPC != nil {
		h.deps.REST.Serve(rec, r, rt)
		return nil
	}
	rt.Handler.ServeHTTP(rec, r)
	return nil
}

func (h *Handler) find(r *http.Request) (*route.Route, error) {
	if r.URL.RawPath != "" { // nothing here has a name that needs escapes, and "%2F" must not become another path
		return nil, problem.NotFound(r.URL.EscapedPath())
	}
	rt, allow := h.deps.Routes.Match(r.Method, r.URL.Path)
	switch {
	case rt != nil:
		return rt, nil
	case len(allow) > 0:
		return nil, problem.MethodNotAllowed(r.Method, r.URL.Path, allow)
	default:
		return nil, problem.NotFound(r.URL.Path)
	}
}

// log writes one line for a request.
func (h *Handler) log(rec *recorder, r *http.Request, took time.Duration) {
	entry := h.deps.Log.Check(level(rec), "request")
	if entry == nil {
		return
	}
	fields := []zap.Field{
		logx.RequestID(rpcctx.RequestID(r.Context())), logx.Method(r.Method), logx.Path(r.URL.Path),
		zap.Int(logx.KeyCode, rec.status), zap.Int64("bytes", rec.bytes), logx.Duration(took), logx.Peer(r.RemoteAddr),
	}
	if !rec.caller.IsAnonymous() {
		fields = append(fields, logx.Caller(rec.caller.String()), logx.Role(string(rec.caller.Role)))
	}
	if rec.err != nil {
		fields = append(fields, logx.Reason(errs.ReasonOf(rec.err)), logx.Error(rec.err))
	}
	var p *run.PanicError
	if errors.As(rec.err, &p) {
		fields = append(fields, logx.Stack(p.Stack))
	}
	entry.Write(fields...)
}
