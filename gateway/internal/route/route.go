// Package route knows what the gateway serves: the gRPC services that users and agents may call, with the service behind
// each, and their projection on HTTP as the google.api.http rules in the .proto files say. What is not in it does not
// exist for the outside.
package route

import (
	"net/http"
	"slices"
	"strings"
)

// Route is one HTTP verb on one path pattern.
type Route struct {
	Verb string
	// Pattern is a path whose segments are literals or "{variable}".
	Pattern string
	// RPC is what the route calls; nil for a route of the gateway's own.
	RPC *RPC
	// Handler serves a route of the gateway's own.
	Handler http.Handler
	// Public routes need no credential.
	Public bool

	segments []string
}

// Table finds routes.
type Table struct{ routes []*Route }

// NewTable makes a table. Where two patterns match a path, the one with the earlier literal wins.
func NewTable(routes ...*Route) *Table {
	t := &Table{routes: slices.Clone(routes)}
	for _, r := range t.routes {
		r.segments = strings.Split(r.Pattern, "/")
	}
	slices.SortStableFunc(t.routes, func(a, b *Route) int { return compare(a.segments, b.segments) })
	return t
}

// compare puts literals before variables.
func compare(a, b []string) int {
	for i := range min(len(a), len(b)) {
		if va, vb := isVariable(a[i]), isVariable(b[i]); va != vb {
			if va {
				return 1
			}
			return -1
		}
	}
	return 0
}

func isVariable(segment string) bool { return strings.HasPrefix(segment, "{") }

// Match finds the route for a verb and a path. HEAD is GET. When there is none, allow has the verbs that the path does
// have; when it is empty too, nothing is at the path.
func (t *Table) Match(verb, path string) (r *Route, allow []string) {
	if verb == http.MethodHead {
		verb = http.MethodGet
	}
	segments := strings.Split(path, "/")
	for _, r := range t.routes {
		if !r.matches(segments) {
			continue
		}
		if r.Verb == verb {
			return r, nil
		}
		allow = append(allow, r.Verb)
		if r.Verb == http.MethodGet {
			allow = append(allow, http.MethodHead)
		}
	}
	slices.Sort(allow)
	return nil, slices.Compact(allow)
}

func (r *Route) matches(segments []string) bool {
	if len(segments) != len(r.segments) {
		return false
	}
	for i, s := range r.segments {
		if isVariable(s) && segments[i] == "" || !isVariable(s) && s != segments[i] {
			return false
		}
	}
	return true
}

// Routes gives all routes.
func (t *Table) Routes() []*Route { return slices.Clone(t.routes) }
