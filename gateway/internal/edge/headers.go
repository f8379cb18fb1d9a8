package edge

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/certctl/certctl/pkg/errs"
)

// secure sets what keeps browsers from misusing an answer. Handlers may set other values.
func secure(h http.Header, r *http.Request) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if !isLocal(r.Host) { // a browser would demand TLS of all that developers run on "localhost"
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
}

func isLocal(hostport string) bool {
	host := hostport
	if name, _, err := net.SplitHostPort(hostport); err == nil {
		host = name
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || err == nil && ip.IsLoopback()
}

// cors lets the pages of configured origins use the API (Fetch Standard, section 3.2), and no page of another origin change
// anything: without API keys the browser's place in the network would be enough to get in.
type cors struct {
	origins    []string
	protection *http.CrossOriginProtection // nil when every origin is allowed
}

const anyOrigin = "*"

func newCORS(origins []string) (*cors, error) {
	c := &cors{origins: origins}
	if slices.Contains(origins, anyOrigin) {
		return c, nil
	}
	c.protection = http.NewCrossOriginProtection()
	for _, o := range origins {
		if err := c.protection.AddTrustedOrigin(o); err != nil {
			return nil, fmt.Errorf("CORS origin %q: %w", o, err)
		}
	}
	return c, nil
}

// serve sets the headers of CORS, and answers a preflight request; done tells that it did.
func (c *cors) serve(w http.ResponseWriter, r *http.Request) (done bool) {
	if len(c.origins) == 0 {
		return false
	}
	h := w.Header()
	h.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if origin == "" || !slices.Contains(c.origins, origin) && !slices.Contains(c.origins, anyOrigin) {
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", "ETag, Location, Retry-After, X-Request-Id")
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PATCH, DELETE")
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, X-Request-Id")
	h.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
	return true
}

func (c *cors) check(r *http.Request) error {
	if c.protection == nil {
		return nil
	}
	if err := c.protection.Check(r); err != nil {
		return errs.New(errs.PermissionDenied, "CROSS_ORIGIN", "a page of another origin may not do this; see CERTCTL_CORS_ORIGINS").Wrap(err)
	}
	return nil
}
