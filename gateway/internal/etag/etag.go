// Package etag spares clients that poll a list the body, and the services the query, as long as the list has not
// changed.
//
// A tag is strong (RFC 9110, section 8.8): SHA-256 over the body. Bodies over MaxBuffered go through without one. For
// each caller scope and URL the cache remembers the answer with the revision that the collection had before the list was
// read; while the owner of the collection answers the same revision, which is one indexed read, the remembered answer is
// the current one. Revisions are raised in the transaction of each change, so an answer is never older than what a client
// may have seen, whichever replica it asks. Requests that come at the same time share the question for the revision, and
// those for the same list share the query.
package etag

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/gateway/internal/route"
	"github.com/certctl/certctl/pkg/batch"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
)

const (
	// MaxBuffered is the largest body, in bytes, that gets a tag.
	MaxBuffered = 64 << 10
	// maxEntries and maxBytes bound the memory: an entry has about 300 bytes beside its body.
	maxEntries = 8192
	maxBytes   = 32 << 20
	// maxAge bounds how long a tag is trusted. Revisions see all changes of the data; a new version of a service may
	// show the same data in another way.
	maxAge = 5 * time.Minute
	// revisionTimeout bounds the question for a revision; without an answer the list is read.
	revisionTimeout = 2 * time.Second
)

// List is a collection that clients poll.
type List struct{ Backend, Collection string }

// lists by the pattern of their path.
func lists() map[string]List {
	return map[string]List{
		"/api/v1/certificates":            {route.Inventory, "certificates"},
		"/api/v1/agents":                  {route.Inventory, "agents"},
		"/api/v1/discovered-certificates": {route.Inventory, "discovered-certificates"},
		"/api/v1/jobs":                    {route.RenewalScheduler, "jobs"},
		"/api/v1/audit":                   {route.Audit, "audit"},
	}
}

// ListOf gives the list that is served at a path pattern.
func (c *Cache) ListOf(pattern string) (List, bool) {
	l, ok := c.lists[pattern]
	return l, ok
}

// Cache remembers answers. It is safe for concurrent use.
type Cache struct {
	lists     map[string]List
	memory    *memory
	flights   *flights
	clients   map[string]eventv1.RevisionServiceClient
	revisions map[List]*batch.Reads[List, int64]
	results   *prometheus.CounterVec
}

// The results that are counted.
const (
	resultUnchanged   = "unchanged"   // 304 without running the query
	resultRevalidated = "revalidated" // 304 after running it
	resultRemembered  = "remembered"  // the body was sent without running the query
	resultSent        = "sent"        // the body was sent with a tag
	resultUntagged    = "untagged"    // too large, or no success
)

// New makes a cache that asks the backends for revisions.
func New(backends map[string]grpc.ClientConnInterface, reg prometheus.Registerer) (*Cache, error) {
	c := &Cache{
		lists: lists(), memory: newMemory(maxEntries, maxBytes), flights: newFlights(),
		clients: make(map[string]eventv1.RevisionServiceClient), revisions: make(map[List]*batch.Reads[List, int64]),
	}
	for name, conn := range backends {
		c.clients[name] = eventv1.NewRevisionServiceClient(conn)
	}
	for _, l := range c.lists {
		if c.clients[l.Backend] != nil {
			c.revisions[l] = batch.NewReads(batch.ReadsConfig{AtOnce: 1, Timeout: revisionTimeout}, c.ask)
		}
	}
	c.results = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "certctl_gateway_list_answers_total",
		Help: "Answers of the lists that have entity tags, by what had to be done.",
	}, []string{"collection", "result"})
	return c, reg.Register(c.results)
}

// Request is a GET or HEAD of a list.
type Request struct {
	List List
	// Scope tells callers apart that are shown different things.
	Scope string
	// URL is the path with the normal form of the query.
	URL string
	// IfNoneMatch are the header lines of that name.
	IfNoneMatch []string
	// HTTP is what goes to the next handler.
	HTTP *http.Request
}

// Serve answers 304 when the client has what there is, and else what is remembered or what next answers.
func (c *Cache) Serve(w http.ResponseWriter, r Request, next http.Handler) {
	key := sha256.Sum256([]byte(r.Scope + "\x00" + r.URL))
	wanted := parse(r.IfNoneMatch)
	revision, known := c.revision(r.HTTP.Context(), r.List)
	if !known {
		c.fresh(w, r, wanted, next)
		return
	}
	if a, ok := c.memory.get(key, revision, time.Now()); ok {
		c.known(w, r.List, wanted, a)
		return
	}
	done, first := c.flights.join(key, revision)
	if first {
		defer c.flights.land(key, revision) // also when it ends in a panic
		if a, ok := c.fresh(w, r, wanted, next); ok {
			c.memory.put(key, revision, a, time.Now())
		}
		return
	}
	select {
	case <-done:
	case <-r.HTTP.Context().Done(): // next tells the client, if it is there
	}
	if a, ok := c.memory.get(key, revision, time.Now()); ok {
		c.known(w, r.List, wanted, a)
		return
	}
	c.fresh(w, r, wanted, next)
}

// known answers what is remembered.
func (c *Cache) known(w http.ResponseWriter, l List, wanted condition, a answer) {
	if wanted.match(a.tag) {
		c.count(l, resultUnchanged)
		notModified(w, a.tag)
		return
	}
	c.count(l, resultRemembered)
	a.write(w)
}

// fresh asks for the list; ok is false for an answer without a tag.
func (c *Cache) fresh(w http.ResponseWriter, r Request, wanted condition, next http.Handler) (a answer, ok bool) {
	buffered := newWriter(w)
	next.ServeHTTP(buffered, r.HTTP)
	a, ok = buffered.answer()
	switch {
	case !ok:
		c.count(r.List, resultUntagged)
		buffered.flush()
	case wanted.match(a.tag):
		c.count(r.List, resultRevalidated)
		notModified(w, a.tag)
	default:
		c.count(r.List, resultSent)
		setValidators(w.Header(), a.tag)
		buffered.flush()
	}
	return a, ok
}

// revision asks the owner of a list, with all who ask at the time; known is false when it does not answer.
func (c *Cache) revision(ctx context.Context, l List) (revision int64, known bool) {
	group, ok := c.revisions[l]
	if !ok {
		return 0, false
	}
	revision, known, err := group.Get(ctx, l)
	return revision, known && err == nil // the connection has counted it; the list itself tells the client what is wrong
}

// ask is the question for one list, the only key that its group has.
func (c *Cache) ask(ctx context.Context, keys []List) (map[List]int64, error) {
	l := keys[0]
	ctx = rpcctx.WithCaller(ctx, rpcctx.ServiceCaller(rpc.Gateway))
	a, err := c.clients[l.Backend].GetRevision(ctx, &eventv1.GetRevisionRequest{Collection: l.Collection})
	if err != nil {
		return nil, err //nolint:wrapcheck // nobody sees it
	}
	return map[List]int64{l: a.GetRevision()}, nil
}

func (c *Cache) count(l List, result string) { c.results.WithLabelValues(l.Collection, result).Inc() }

func tagOf(body []byte) string {
	sum := sha256.Sum256(body)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

// setValidators lets a client keep the answer, and makes it ask each time.
func setValidators(h http.Header, tag string) {
	h.Set("ETag", tag)
	h.Set("Cache-Control", "private, no-cache")
	h.Add("Vary", "Authorization")
}

// notModified answers 304 (RFC 9110, section 15.4.5), which has no body.
func notModified(w http.ResponseWriter, tag string) {
	h := w.Header()
	h.Del("Content-Type")
	h.Del("Content-Length")
	setValidators(h, tag)
	w.WriteHeader(http.StatusNotModified)
}
