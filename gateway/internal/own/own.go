// Package own serves the gateway's own routes: health and readiness, version, the check of an API key, and what anybody
// may read of a CA.
package own

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/certctl/certctl/gateway/internal/crl"
	"github.com/certctl/certctl/gateway/internal/docs"
	"github.com/certctl/certctl/gateway/internal/etag"
	"github.com/certctl/certctl/gateway/internal/problem"
	"github.com/certctl/certctl/gateway/internal/route"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/health"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/tick"
	"github.com/certctl/certctl/pkg/version"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
)

// publicCaching lets caches keep a CRL or a CA certificate, for some seconds: a revocation should not wait long.
const publicCaching = "public, max-age=60"

// Deps is what the routes work with.
type Deps struct {
	// Health has one check per service.
	Health *health.Health
	// Loops tells how the loops of the services are, where they run in this process; it may be nil.
	Loops func() map[string][]tick.State
	// Issuance is the connection to the service that publishes.
	Issuance grpc.ClientConnInterface
	// Timeout bounds a call.
	Timeout time.Duration
}

// Routes gives the routes.
func Routes(deps Deps) ([]*route.Route, error) {
	api, err := docs.OpenAPI(version.Version)
	if err != nil {
		return nil, err
	}
	p := publisher{client: issuancev1.NewCrlServiceClient(deps.Issuance), timeout: deps.Timeout}
	public := map[string]http.Handler{
		"/":                http.RedirectHandler("/docs", http.StatusFound),
		"/health":          http.HandlerFunc(alive),
		"/ready":           ready(deps),
		"/openapi.json":    api,
		"/docs":            docs.Page(),
		"/docs/page.js":    docs.Script(),
		"/docs/page.css":   docs.Style(),
		"/crl/{issuer_id}": http.HandlerFunc(p.crl),
		"/ca/{issuer_id}":  http.HandlerFunc(p.ca),
	}
	routes := []*route.Route{
		{Verb: http.MethodGet, Pattern: "/api/v1/version", Handler: http.HandlerFunc(showVersion)},
		{Verb: http.MethodGet, Pattern: "/api/v1/auth/check", Handler: http.HandlerFunc(checkAuth)},
	}
	for pattern, handler := range public {
		routes = append(routes, &route.Route{Verb: http.MethodGet, Pattern: pattern, Handler: handler, Public: true})
	}
	return routes, nil
}

func write(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		problem.Write(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client left; nobody is there to be told
}

func alive(w http.ResponseWriter, _ *http.Request) {
	write(w, http.StatusOK, map[string]string{"status": "healthy"})
}

func showVersion(w http.ResponseWriter, _ *http.Request) {
	write(w, http.StatusOK, map[string]string{"version": version.Version, "commit": version.Commit})
}

func checkAuth(w http.ResponseWriter, r *http.Request) {
	c := rpcctx.CallerFrom(r.Context())
	write(w, http.StatusOK, map[string]string{"name": c.ID, "role": string(c.Role)})
}

// readiness is the answer of /ready.
type readiness struct {
	// Status is ready, not_ready or stopping.
	Status   string                  `json:"status"`
	Services map[string]serviceState `json:"services"`
}

type serviceState struct {
	Ready   bool          `json:"ready"`
	Message string        `json:"message,omitempty"`
	Time    time.Time     `json:"time"`
	Loops   []tick.Report `json:"loops,omitempty"`
}

func ready(deps Deps) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		report := deps.Health.Ready(r.Context())
		answer := readiness{Status: "ready", Services: make(map[string]serviceState)}
		status := http.StatusOK
		if !report.Ready {
			answer.Status, status = "not_ready", http.StatusServiceUnavailable
		}
		if report.Stopping {
			answer.Status = "stopping"
		}
		var loops map[string][]tick.State
		if deps.Loops != nil {
			loops = deps.Loops()
		}
		for _, c := range report.Checks {
			answer.Services[c.Name] = serviceState{Ready: c.OK, Message: c.Error, Time: c.Time, Loops: tick.Reports(loops[c.Name])}
		}
		write(w, status, answer)
	})
}

// publisher serves what relying parties fetch without a credential (RFC 5280, sections 4.2.1.13 and 4.2.2.1). The calls are anonymous:
// what is published here is what nobody needs a role for.
type publisher struct {
	client  issuancev1.CrlServiceClient
	timeout time.Duration
}

func (p publisher) crl(w http.ResponseWriter, r *http.Request) {
	publish(w, r, ".crl", func(r *http.Request, id string) error {
		return crl.Handler{Client: p.client, Timeout: p.timeout}.Serve(w, r, id, publicCaching)
	})
}

func (p publisher) ca(w http.ResponseWriter, r *http.Request) {
	publish(w, r, ".pem", func(r *http.Request, id string) error {
		ctx, cancel := context.WithTimeout(r.Context(), p.timeout)
		defer cancel()
		body, err := p.client.GetCaCertificate(ctx, &issuancev1.GetCaCertificateRequest{IssuerId: id})
		if err != nil {
			return err //nolint:wrapcheck // the client gets the status as it is
		}
		sum := sha256.Sum256(body.GetData())
		tag := `"` + hex.EncodeToString(sum[:]) + `"`
		h := w.Header()
		h.Set("Cache-Control", publicCaching)
		h.Set("ETag", tag)
		if etag.Match(r.Header.Values("If-None-Match"), tag) {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
		h.Set("Content-Type", "application/x-pem-file")
		h.Set("Content-Length", strconv.Itoa(len(body.GetData())))
		_, _ = w.Write(body.GetData()) // the client left; nobody is there to be told
		return nil
	})
}

// publish answers a file that is named after an issuer.
func publish(w http.ResponseWriter, r *http.Request, suffix string, serve func(r *http.Request, id string) error) {
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	id, ok := strings.CutSuffix(name, suffix)
	if !ok || id == "" {
		problem.Write(w, problem.NotFound(r.URL.Path))
		return
	}
	w.Header().Set("Cross-Origin-Resource-Policy", "cross-origin")
	if err := serve(r.WithContext(rpcctx.WithCaller(r.Context(), rpcctx.AnonymousCaller())), id); err != nil {
		problem.Write(w, published(err, r.URL.Path))
	}
}

// published makes of a name that can be no issuer's what it is for the reader of a URL: nothing is there.
func published(err error, path string) error {
	if errs.IsKind(err, errs.Invalid) {
		return problem.NotFound(path)
	}
	return err
}
