package e2e_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// mostKept is the size of an answer that is recorded whole.
const mostKept = 4 << 10

// exchange is one request of a client and what came of it.
type exchange struct {
	Client      string    `json:"client"`
	Method      string    `json:"method"`
	Path        string    `json:"path"`
	Key         string    `json:"key,omitempty"`           // Idempotency-Key
	IfNoneMatch string    `json:"if_none_match,omitempty"` // the tag of an earlier answer
	Body        object    `json:"body,omitempty"`
	Start       time.Time `json:"start"`
	End         time.Time `json:"end"`
	Status      int       `json:"status,omitempty"` // 0: there was no answer
	Tag         string    `json:"tag,omitempty"`
	Answer      object    `json:"answer,omitempty"` // lists: what the checker needs of them
	Error       string    `json:"error,omitempty"`
}

// acknowledged tells whether the server said that it has done what it was asked for.
func (e *exchange) acknowledged() bool {
	return e.Error == "" && (e.Status == http.StatusOK || e.Status == http.StatusCreated)
}

// write tells whether the request changes something.
func (e *exchange) write() bool { return e.Method != http.MethodGet }

// chaosRecord is all that clients asked and were answered, in the order of the answers.
type chaosRecord struct {
	mu        sync.Mutex
	exchanges []exchange
}

func (r *chaosRecord) add(e exchange) {
	if !strings.HasPrefix(e.Path, "/api/v1/certificates?name=") && size(e.Answer) > mostKept {
		e.Answer = nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exchanges = append(r.exchanges, e)
}

func size(o object) int {
	b, _ := json.Marshal(o)
	return len(b)
}

// all gives the exchanges; nobody may add any more.
func (r *chaosRecord) all() []exchange {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exchanges
}

// dump writes the record into a file, one exchange a line.
func (r *chaosRecord) dump(name string) (path string, err error) {
	path = filepath.Join(os.TempDir(), name)
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	w := bufio.NewWriter(f)
	lines := json.NewEncoder(w)
	for _, e := range r.all() {
		if err := lines.Encode(e); err != nil {
			return "", err
		}
	}
	return path, w.Flush()
}

// intent is what a client wanted, however often it had to ask: the requests with one Idempotency-Key.
type intent struct {
	exchange            // the first one that was acknowledged, else the last
	first    time.Time  // when it was first asked for
	acked    bool       // somebody was told that it is done
	answers  []exchange // all that were acknowledged
}

// intents gives the writes of a record, in the order in which they were first answered.
func intents(all []exchange) []*intent {
	byKey := map[string]*intent{}
	var list []*intent
	for _, e := range all {
		if !e.write() || e.Key == "" {
			continue
		}
		in := byKey[e.Key]
		if in == nil {
			in = &intent{exchange: e, first: e.Start}
			byKey[e.Key] = in
			list = append(list, in)
		}
		if e.Start.Before(in.first) {
			in.first = e.Start
		}
		switch {
		case e.acknowledged() && !in.acked:
			in.exchange, in.acked = e, true
			in.answers = append(in.answers, e)
		case e.acknowledged():
			in.answers = append(in.answers, e)
		case !in.acked:
			in.exchange = e
		}
	}
	return list
}

// resource gives what a path is about: "certificates/ID/renew" is "renew" of ID.
func resource(path string) (collection, id, verb string) {
	path, _, _ = strings.Cut(strings.TrimPrefix(path, "/api/v1/"), "?")
	parts := append(strings.SplitN(path, "/", 3), "", "")
	return parts[0], parts[1], parts[2]
}

func (e *exchange) String() string {
	return fmt.Sprintf("%s %s (%s) by %s at %s: %d %s", e.Method, e.Path, e.Key, e.Client, e.Start.Format("15:04:05.000"), e.Status, e.Error)
}
