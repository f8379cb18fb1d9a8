// Package etag spares clients that poll a list the body, and the services the query, as long as the list has not
// changed.
//
// A tag is strong (RFC 9110, section 8.8): SHA-256 over the body. Bodies over MaxBuffered go through without one. For
// each caller scope and URL the cache remembers the tag with the revision that the collection had before the list was
// read; while the owner of the collection answers the same revision, which is one indexed read, the remembered tag is
// the current one. Revisions are raised in the transaction of each change, so a tag is never older than what a client
// may have seen, whichever replica it asks.
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
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
)

const (
	// MaxBuffered is the largest body, in bytes, that gets a tag.
	MaxBuffered = 64 << 10
	// maxEntries bounds the memory: an entry has about 200 bytes.
	maxEntries = 8192
	// maxAge bounds how long a tag is trusted. Revisions see all changes of the data; a new version of a service may
	// show the same data in another way.
	maxAge = 5 * time.Minute
	// revisionTimeout bounds the question for a revision; without an answer the list is read.
	revisionTimeout = 2 * time.Second
)

// List is a collection that clients poll.
type List struct{ Backend, Collection string }

// ListOf gives the list that is served at a path pattern.
func ListOf(pattern string) (List, bool) {
	switch pattern {
	case "/api/v1/certificates":
		return List{route.Inventory, "certificates"}, true
	case "/api/v1/agents":
		return List{route.Inventory, "agents"}, true
	case "/api/v1/discovered-certificates":
		return List{route.Inventory, "discovered-certificates"}, true
	case "/api/v1/jobs":
		return List{route.RenewalScheduler, "jobs"}, true
	case "/api/v1/audit":
		return List{route.Audit, "audit"}, true
	default:
		return List{}, false
	}
}

// Cache remembers tags. It is safe for concurrent use.
type Cache struct {
	memory    *memory
	revisions map[string]eventv1.RevisionServiceClient
	results   *prometheus.CounterVec
}

// The results that are counted.
const (
	resultUnchanged   = "unchanged"   // 304 without running the query
	resultRevalidated = "revalidated" // 304 after running it
	resultSent        = "sent"        // the body was sent with a tag
	resultUntagged    = "untagged"    // too large, or no success
)

// New makes a cache that asks the backends for revisions.
func New(backends map[string]grpc.ClientConnInterface, reg prometheus.Registerer) (*Cache, error) {
	c := &Cache{memory: newMemory(maxEntries), revisions: make(map[string]eventv1.RevisionServiceClient)}
	for name, conn := range backends {
		c.revisions[name] = eventv1.NewRevisionServiceClient(conn)
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

// Serve answers 304 when the client has what there is, and else what next answers.
func (c *Cache) Serve(w http.ResponseWriter, r Request, next http.Handler) {
	key := sha256.Sum256([]byte(r.Scope + "\x00" + r.URL))
	wanted := parse(r.IfNoneMatch)
	revision, known := c.revision(r.HTTP.Context(), r.List)
	if known {
		if tag, ok := c.memory.get(key, revision, time.Now()); ok && wanted.match(tag) {
			c.count(r.List, resultUnchanged)
			notModified(w, tag)
			return
		}
	}
	buffered := newWriter(w)
	next.ServeHTTP(buffered, r.HTTP)
	tag, ok := buffered.tag()
	if !ok {
		c.count(r.List, resultUntagged)
		buffered.flush()
		return
	}
	if known {
		c.memory.put(key, revision, tag, time.Now())
	}
	if wanted.match(tag) {
		c.count(r.List, resultRevalidated)
		notModified(w, tag)
		return
	}
	c.count(r.List, resultSent)
	setValidators(w.Header(), tag)
	buffered.flush()
}

// revision asks the owner of a list; known is false when it does not answer.
func (c *Cache) revision(ctx context.Context, l List) (revision int64, known bool) {
	client, ok := c.revisions[l.Backend]
	if !ok {
		return 0, false
	}
	ctx, cancel := context.WithTimeout(rpcctx.WithCaller(ctx, rpcctx.ServiceCaller(rpc.Gateway)), revisionTimeout)
	defer cancel()
	answer, err := client.GetRevision(ctx, &eventv1.GetRevisionRequest{Collection: l.Collection})
	if err != nil {
		return 0, false // the connection has counted it; the list itself tells the client what is wrong
	}
	return answer.GetRevision(), true
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
