package casimulator

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// maxRecord bounds how many requests and violations are kept.
const maxRecord = 20_000

// Request is one that was received.
type Request struct {
	At        time.Time `json:"at"`
	CA        string    `json:"ca"`
	Operation string    `json:"operation"`
	Method    string    `json:"method"`
	Path      string    `json:"path"`
	// Status is what was answered; 0 is a connection that was cut.
	Status     int    `json:"status"`
	CommonName string `json:"common_name,omitempty"`
	Order      string `json:"order,omitempty"`
	Faults     []Kind `json:"faults,omitempty"`
}

// Violation is something that a client did wrong.
type Violation struct {
	At        time.Time `json:"at"`
	CA        string    `json:"ca,omitempty"`
	Operation string    `json:"operation,omitempty"`
	Method    string    `json:"method,omitempty"`
	Path      string    `json:"path,omitempty"`
	Message   string    `json:"message"`
}

// record keeps what was received last.
type record struct {
	mu       sync.Mutex
	received ring[Request]
	violated ring[Violation]
}

// ring keeps the last maxRecord of what is added.
type ring[T any] struct {
	items []T
	next  int
}

func (r *ring[T]) add(item T) {
	if len(r.items) < maxRecord {
		r.items = append(r.items, item)
		return
	}
	r.items[r.next] = item
	r.next = (r.next + 1) % maxRecord
}

// list is oldest first.
func (r *ring[T]) list() []T { return append(append([]T{}, r.items[r.next:]...), r.items[:r.next]...) }

func newRecord() *record { return &record{} }

func (r *record) add(c *call, status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.received.add(Request{
		At: c.now, CA: c.api.name(), Operation: c.operation.name, Method: c.request.Method, Path: c.request.URL.RequestURI(),
		Status: status, CommonName: c.subject.commonName, Order: c.subject.order, Faults: c.faults,
	})
}

func (r *record) violate(v Violation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.violated.add(v)
}

func (r *record) requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.received.list()
}

func (r *record) violations() []Violation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.violated.list()
}

func (r *record) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.received, r.violated = ring[Request]{}, ring[Violation]{}
}

// controlHandler is the API of those who test: what the CAs do, and what they saw.
func (s *Simulator) controlHandler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(*http.Request) (any, error)) {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" /control/v1"+path, func(w http.ResponseWriter, r *http.Request) { answer(w, r, h) })
	}
	handle("GET /orders", s.controlOrders)
	handle("POST /orders/{id}/{verb}", s.controlOrder)
	handle("GET /faults", func(*http.Request) (any, error) { return s.faults.list(), nil })
	handle("PUT /faults", s.controlFaults)
	handle("DELETE /faults", func(*http.Request) (any, error) { s.Set(); return nil, nil })
	handle("PUT /scenario", s.controlScenario)
	handle("GET /requests", func(*http.Request) (any, error) { return s.Requests(), nil })
	handle("GET /violations", func(*http.Request) (any, error) { return s.Violations(), nil })
	handle("POST /clock", s.controlClock)
	handle("POST /reset", func(*http.Request) (any, error) { s.Reset(); return nil, nil })
	return mux
}

// badControl is a mistake in a request to the control API.
type badControl struct{ message string }

func (e *badControl) Error() string { return e.message }

func answer(w http.ResponseWriter, r *http.Request, h func(*http.Request) (any, error)) {
	r.Body = http.MaxBytesReader(w, r.Body, maxScenario)
	v, err := h(r)
	status := http.StatusOK
	var bad *badControl
	switch {
	case errors.Is(err, errNotFound):
		status = http.StatusNotFound
	case errors.As(err, &bad):
		status = http.StatusBadRequest
	case err != nil:
		status = http.StatusInternalServerError
	case v == nil:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if err != nil {
		v = map[string]string{"error": err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that has left sees nothing of it
}

// controlOrders lists the truth; ?ca= restricts it.
func (s *Simulator) controlOrders(r *http.Request) (any, error) {
	now := s.now()
	out := []Order{}
	for _, o := range s.store.all(r.URL.Query().Get("ca")) {
		out = append(out, o.truth(now))
	}
	return out, nil
}

func (s *Simulator) controlFaults(r *http.Request) (any, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, &badControl{err.Error()}
	}
	faults, err := parseFaults(body)
	if err != nil {
		return nil, &badControl{err.Error()}
	}
	s.Set(faults...)
	return nil, nil
}

func (s *Simulator) controlScenario(r *http.Request) (any, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, &badControl{err.Error()}
	}
	sc, err := ParseScenario(body)
	if err != nil {
		return nil, &badControl{err.Error()}
	}
	s.Play(sc)
	return nil, nil
}

func (s *Simulator) controlClock(r *http.Request) (any, error) {
	var in struct {
		Offset string `json:"offset"`
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return nil, &badControl{err.Error()}
	}
	offset, err := time.ParseDuration(in.Offset)
	if err != nil {
		return nil, &badControl{"offset: " + err.Error()}
	}
	s.SetClock(offset)
	return nil, nil
}

// controlOrder plays a human at the CA: approve, reject, issue (at once, whatever latency says), or forget. The number may be
// that of the order, of a certificate of it, or the client's reference.
func (s *Simulator) controlOrder(r *http.Request) (any, error) {
	o, ok := s.findOrder(r.PathValue("id"))
	if !ok {
		return nil, errNotFound
	}
	reason := r.URL.Query().Get("reason")
	changed, err := s.decide(o, r.PathValue("verb"), reason)
	if err != nil {
		return nil, err
	}
	return changed.truth(s.now()), nil
}

func (s *Simulator) findOrder(name string) (*order, bool) {
	for _, ca := range CAs() {
		if o, ok := s.store.byID(ca, name); ok {
			return o, true
		}
		if o, ok := s.store.byRequest(ca, name); ok {
			return o, true
		}
	}
	for _, o := range s.store.all("") {
		if o.Reference != "" && o.Reference == name {
			return o, true
		}
	}
	return nil, false
}

// Decide plays a human at a CA: verb is approve, reject, issue or forget.
func (s *Simulator) Decide(ca, id, verb, reason string) error {
	o, ok := s.store.byID(ca, id)
	if !ok {
		return fmt.Errorf("%s order %s of %s: %w", verb, id, ca, errNotFound)
	}
	_, err := s.decide(o, verb, reason)
	return err
}

func (s *Simulator) decide(o *order, verb, reason string) (*order, error) {
	return s.store.update(o.CA, o.ID, func(o *order) error {
		switch verb {
		case "approve":
			return o.approve(s.now())
		case "reject":
			return o.reject(s.now(), reason)
		case "issue":
			return o.issue(s.now())
		case "forget":
			o.Forgotten = true
			return nil
		}
		return &badControl{fmt.Sprintf("there is no %q; there are approve, reject, issue, forget", verb)}
	})
}

// approve lets the newest certificate that waits go on, or what else waits.
func (o *order) approve(now time.Time) error {
	r := o.newest()
	if r.state(now) == Waiting {
		r.Gate.ApprovedAt = now
		return nil
	}
	a, ok := o.waiting()
	if !ok {
		return &badControl{"nothing of this order waits for approval"}
	}
	a.Status = "approved"
	return o.perform(a, now)
}

func (o *order) reject(now time.Time, reason string) error {
	r := o.newest()
	if state := r.state(now); state == Waiting || state == Processing {
		r.Gate.RejectedAt, r.Gate.Reason = now, reason
		return nil
	}
	a, ok := o.waiting()
	if !ok {
		return &badControl{"nothing of this order waits for approval"}
	}
	a.Status = "rejected"
	return nil
}

func (o *order) issue(now time.Time) error {
	r := o.newest()
	if state := r.state(now); state != Waiting && state != Processing {
		return &badControl{fmt.Sprintf("the order is %s", state)}
	}
	if r.Gate.Needed && r.Gate.ApprovedAt.IsZero() {
		r.Gate.ApprovedAt = now
	}
	r.Gate.IssueAt = now
	return nil
}

// waiting is the newest action that nobody has decided.
func (o *order) waiting() (*action, bool) {
	for i := len(o.Actions) - 1; i >= 0; i-- {
		if o.Actions[i].Status == "pending" {
			return &o.Actions[i], true
		}
	}
	return nil, false
}

// perform does what was approved.
func (o *order) perform(a *action, now time.Time) error {
	if a.Type != "revoke" {
		return fmt.Errorf("perform %s: nobody knows how", a.Type)
	}
	for i := range o.Requests {
		if r := &o.Requests[i]; a.Request == "" || a.Request == r.ID {
			r.revoke(now, a.Reason)
		}
	}
	if a.Request == "" {
		o.set("revoked", "all")
	}
	return nil
}

// revoke takes an issued certificate back; another time changes nothing.
func (r *request) revoke(now time.Time, reason string) {
	if r.state(now) == Issued && r.RevokedAt.IsZero() {
		r.RevokedAt, r.RevocationReason = now, reason
	}
}
