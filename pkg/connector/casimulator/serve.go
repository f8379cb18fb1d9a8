package casimulator

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	defaultSlow      = 10 * time.Second
	slowPieces       = 20
	defaultOversized = 64 << 20
)

// routes is what the simulator serves: the CAs, and the control API under the same host where control says so.
func (s *Simulator) routes(control bool) http.Handler {
	mux := http.NewServeMux()
	for _, a := range s.apis {
		for _, op := range a.operations() {
			mux.HandleFunc(op.method+" /"+a.name()+op.path, func(w http.ResponseWriter, r *http.Request) {
				s.serve(w, r, a, op)
			})
		}
		mux.HandleFunc("/"+a.name()+"/", func(w http.ResponseWriter, r *http.Request) {
			s.serve(w, r, a, operation{name: opOther, handle: func(c *call) reply { return c.noRoute() }})
		})
	}
	if control {
		mux.Handle("/control/", s.controlHandler())
	}
	return mux
}

// noRoute answers what is not in the API.
func (c *call) noRoute() reply {
	for _, op := range c.api.operations() {
		if pathMatches("/"+c.api.name()+op.path, c.request.URL.EscapedPath()) {
			return c.refuse(http.StatusMethodNotAllowed, "method %s is not allowed here", c.request.Method)
		}
	}
	return c.refuse(http.StatusNotFound, "there is no such resource")
}

func pathMatches(pattern, path string) bool {
	want, have := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(want) != len(have) {
		return false
	}
	for i, w := range want {
		if w != have[i] && !strings.HasPrefix(w, "{") {
			return false
		}
	}
	return true
}

// serve is one request from its reading to its end.
func (s *Simulator) serve(w http.ResponseWriter, r *http.Request, a api, op operation) {
	c := &call{sim: s, api: a, operation: op, request: r, now: s.now()}
	answered := 0
	defer func() { s.record.add(c, answered) }()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		answered = c.write(w, c.refuse(http.StatusRequestEntityTooLarge, "the request body is longer than %d bytes", maxBody))
		return
	case err != nil:
		panic(http.ErrAbortHandler) // the client has left in the middle of it
	}
	c.body = body
	c.subject = c.about()
	done, stopped := c.before()
	if !stopped {
		done = c.do()
	}
	if done.status == 0 {
		panic(http.ErrAbortHandler) // the way of net/http to cut a connection
	}
	if !stopped {
		done = c.after(done)
	}
	if done.status == 0 {
		panic(http.ErrAbortHandler)
	}
	answered = c.write(w, done)
}

// about is what faults may ask of a request.
func (c *call) about() subject {
	if c.operation.about != nil {
		return c.operation.about(c)
	}
	o, ok := c.api.locate(c)
	if !ok {
		return subject{}
	}
	return subject{commonName: o.newest().CommonName, order: o.ID, reference: o.Reference}
}

// before lets happen what happens before any work. A reply without status cuts the connection.
func (c *call) before() (done reply, stopped bool) {
	if kept, ok := c.sim.kept.get(c.key()); ok && c.changes() {
		return kept, true
	}
	if f, ok := c.fault(Delay); ok && pause(c.request.Context(), f.Delay) != nil {
		return reply{}, true
	}
	c.now = c.sim.now() // a delay takes its time
	kinds := []Kind{Hang, RateLimit, ServerError, ClientError, HTMLPage, DropBefore}
	if c.request.TLS != nil && len(c.request.TLS.PeerCertificates) > 0 {
		kinds = append(kinds, MTLSRefused)
	}
	f, ok := c.fault(kinds...)
	if !ok {
		return reply{}, false
	}
	switch f.Kind {
	case Hang:
		<-c.request.Context().Done()
		return reply{}, true
	case RateLimit:
		return f.limit(c.api, c.sim.said(c.now)), true
	case ServerError:
		return f.serverError(c.api), true
	case ClientError:
		return c.api.refusal(f.status(), f.Code, "the scenario says so"), true
	case HTMLPage:
		return htmlPage(f.status()), true
	case MTLSRefused:
		return htmlPage(http.StatusBadRequest), true
	default: // DropBefore
		return reply{}, true
	}
}

// do has the API handle the call.
func (c *call) do() reply {
	if c.operation.clientCertificate && (c.request.TLS == nil || len(c.request.TLS.PeerCertificates) == 0) {
		return c.refuse(http.StatusForbidden, "a client certificate is required")
	}
	if c.operation.clientCertificate && !c.sim.transport.accepts(c.request.TLS.PeerCertificates[0]) {
		return c.refuse(http.StatusForbidden, "the client certificate was replaced by another one")
	}
	return c.operation.handle(c)
}

// after lets happen what happens when the work is done.
func (c *call) after(done reply) reply {
	if c.changes() {
		if _, ok := c.fault(ReplyTwice); ok {
			c.sim.kept.put(c.key(), done)
		}
	}
	if f, ok := c.fault(DelayAfter); ok && pause(c.request.Context(), f.Delay) != nil {
		return reply{}
	}
	f, ok := c.fault(ServerErrorAfter, HTMLPageAfter, DropAfter, MalformedJSON, OversizedBody)
	if !ok {
		return done
	}
	switch f.Kind {
	case ServerErrorAfter:
		return f.serverError(c.api)
	case HTMLPageAfter:
		return htmlPage(f.status())
	case MalformedJSON:
		done.body = append(bytes.Clone(done.body[:len(done.body)/2]), []byte("\x00{[")...)
		return done
	case OversizedBody:
		return oversized(done, f.Bytes)
	default: // DropAfter
		return reply{}
	}
}

func (f Fault) limit(a api, now time.Time) reply {
	r := a.problem(http.StatusTooManyRequests, "too many requests")
	f.retryAfter(r, now)
	return r
}

func (f Fault) serverError(a api) reply {
	r := a.problem(f.status(), "the scenario says so")
	f.retryAfter(r, time.Time{})
	return r
}

func (f Fault) retryAfter(r reply, now time.Time) {
	switch {
	case f.RetryAfter == 0:
	case f.RetryAfterDate && !now.IsZero():
		r.header.Set("Retry-After", now.Add(f.RetryAfter).UTC().Format(http.TimeFormat))
	default:
		r.header.Set("Retry-After", strconv.Itoa(int(f.RetryAfter.Round(time.Second)/time.Second)))
	}
}

func htmlPage(status int) reply {
	text := fmt.Sprintf("<html>\r\n<head><title>%d %s</title></head>\r\n<body>\r\n<center><h1>%d %[2]s</h1></center>\r\n<hr><center>nginx</center>\r\n"+
		"</body>\r\n</html>\r\n", status, http.StatusText(status), status)
	return reply{status: status, header: http.Header{"Content-Type": {"text/html"}}, body: []byte(text)}
}

// oversized lengthens a JSON value by spaces in front of it, which are legal there.
func oversized(done reply, size int) reply {
	if size == 0 {
		size = defaultOversized
	}
	if n := size - len(done.body); n > 0 {
		done.body = append(bytes.Repeat([]byte(" "), n), done.body...)
	}
	return done
}

// write sends the reply, slowly or twice if a fault says so.
func (c *call) write(w http.ResponseWriter, r reply) int {
	h := w.Header()
	for name, values := range r.header {
		h[name] = values
	}
	h.Set("Date", c.sim.said(c.sim.now()).Format(http.TimeFormat))
	if r.status != http.StatusNoContent {
		h.Set("Content-Length", strconv.Itoa(len(r.body)))
	}
	if f, ok := c.fault(SlowBytes); ok {
		c.writeSlowly(w, r, f.Delay)
		return r.status
	}
	if _, ok := c.fault(DoubledReply); ok && doubled(w, r) {
		return r.status
	}
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body) // a client that has left sees nothing of it
	return r.status
}

func (c *call) writeSlowly(w http.ResponseWriter, r reply, in time.Duration) {
	if in == 0 {
		in = defaultSlow
	}
	w.WriteHeader(r.status)
	flush := http.NewResponseController(w)
	size := max(1, (len(r.body)+slowPieces-1)/slowPieces)
	for len(r.body) > 0 {
		n := min(size, len(r.body))
		if _, err := w.Write(r.body[:n]); err != nil {
			return
		}
		_ = flush.Flush() // a writer without it sends later
		r.body = r.body[n:]
		if pause(c.request.Context(), in/slowPieces) != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

// doubled takes the connection over and sends the reply twice. It says false where it cannot.
func doubled(w http.ResponseWriter, r reply) bool {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	for range 2 {
		writeRaw(buffered.Writer, w.Header(), r)
	}
	_ = buffered.Flush() // a client that has left sees nothing of it
	return true
}

func writeRaw(w *bufio.Writer, h http.Header, r reply) {
	_, _ = fmt.Fprintf(w, "HTTP/1.1 %d %s\r\n", r.status, http.StatusText(r.status)) // Flush tells of errors
	_ = h.Write(w)
	_, _ = w.WriteString("\r\n")
	_, _ = w.Write(r.body)
}

// pause waits, unless the client leaves before.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// keptReplies are given again when the same request comes again (ReplyTwice).
type keptReplies struct {
	mu      sync.Mutex
	replies map[string]reply
}

// maxKept bounds them.
const maxKept = 10_000

// changes says whether a request is to change something, so that an idempotent CA would have to know it again.
func (c *call) changes() bool { return c.request.Method != http.MethodGet }

// key of a request is all of it that a client sends on purpose.
func (c *call) key() string {
	return digest([]byte(c.request.Method + " " + c.request.URL.String() + "\n" + string(c.body)))
}

func (k *keptReplies) get(name string) (reply, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, ok := k.replies[name]
	return r, ok
}

func (k *keptReplies) put(name string, r reply) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.replies == nil || len(k.replies) >= maxKept {
		k.replies = map[string]reply{}
	}
	k.replies[name] = r
}

func (k *keptReplies) reset() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.replies = nil
}
