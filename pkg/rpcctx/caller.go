// Package rpcctx keeps the typed facts of a call in its context: who calls, for whom, under which request id, and
// the logger that carries all of that. Package rpc writes them; everybody reads them.
package rpcctx

import (
	"context"
	"slices"
)

// CallerType says what sort of party a caller is.
type CallerType string

// The caller types.
const (
	User      CallerType = "user"
	Agent     CallerType = "agent"
	Service   CallerType = "service"
	Anonymous CallerType = "anonymous"
)

// Role is what a caller may do; a caller has exactly one.
type Role string

// The roles. RoleNone is that of an anonymous caller; it satisfies no rule that does not name it.
const (
	RoleNone     Role = ""
	RoleAdmin    Role = "admin"
	RoleOperator Role = "operator"
	RoleViewer   Role = "viewer"
	RoleAuditor  Role = "auditor"
	RoleAgent    Role = "agent"
	RolePeer     Role = "peer"
)

// Roles gives every role except RoleNone.
func Roles() []Role {
	return []Role{RoleAdmin, RoleOperator, RoleViewer, RoleAuditor, RoleAgent, RolePeer}
}

// Valid tells whether r is one of Roles.
func (r Role) Valid() bool { return slices.Contains(Roles(), r) }

// Caller is a verified party. The ID is the name of the API key, the agent's id, or the service's name; it is
// empty for an anonymous caller.
type Caller struct {
	Type CallerType `json:"type"`
	ID   string     `json:"id,omitempty"`
	Role Role       `json:"role,omitempty"`
}

// ServiceCaller gives the caller that a service of certctl is.
func ServiceCaller(name string) Caller { return Caller{Type: Service, ID: name, Role: RolePeer} }

// AnonymousCaller gives the caller of whom nothing is known.
func AnonymousCaller() Caller { return Caller{Type: Anonymous} }

// IsAnonymous tells whether nothing is known of the caller; the zero Caller is anonymous.
func (c Caller) IsAnonymous() bool { return c.Type == "" || c.Type == Anonymous }

// String gives "type:id", as it stands in logs and as key of a rate limit.
func (c Caller) String() string {
	switch {
	case c.Type == "":
		return string(Anonymous)
	case c.ID == "":
		return string(c.Type)
	default:
		return string(c.Type) + ":" + c.ID
	}
}

type callerKey struct{}

// WithCaller notes the verified caller.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFrom gives the verified caller, and AnonymousCaller when there is none.
func CallerFrom(ctx context.Context) Caller {
	if c, ok := ctx.Value(callerKey{}).(Caller); ok {
		return c
	}
	return AnonymousCaller()
}

type onBehalfOfKey struct{}

// WithOnBehalfOf notes for whom a peer says it acts. It is a claim for the audit trail and must never decide what
// a call may do.
func WithOnBehalfOf(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, onBehalfOfKey{}, c)
}

// OnBehalfOf gives the party for whom the calling peer says it acts; ok is false when it said nothing.
func OnBehalfOf(ctx context.Context) (c Caller, ok bool) {
	c, ok = ctx.Value(onBehalfOfKey{}).(Caller)
	return c, ok
}

// Actor gives whom the audit trail names: the party on whose behalf a peer calls, else the caller itself.
func Actor(ctx context.Context) Caller {
	if c, ok := OnBehalfOf(ctx); ok {
		return c
	}
	return CallerFrom(ctx)
}
