package auth

import (
	"context"
	"fmt"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/certctl/certctl/gateway/internal/limit"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/secretbox"
)

// The types of authentication.
const (
	TypeAPIKey = "api-key"
	TypeNone   = "none"
)

// Nobody is who calls when there is no authentication.
func Nobody() rpcctx.Caller {
	return rpcctx.Caller{Type: rpcctx.User, ID: "anonymous-admin", Role: rpcctx.RoleAdmin}
}

// Config sets up a Gate.
type Config struct {
	// Type is TypeAPIKey (also for "") or TypeNone.
	Type   string
	Secret secretbox.Secret
	// Address bounds all requests of an address, before anything is known of the caller.
	Address limit.Rate
	// Failure bounds the wrong keys of an address.
	Failure limit.Rate
	// Caller bounds the requests of a user.
	Caller limit.Rate
}

// Gate lets requests in.
type Gate struct {
	none                             bool
	keys                             Keys
	address, agents, failure, caller *limit.Limiter
}

// agentBurst is how many times the burst of an address agents have behind it. They are counted apart from users: when a fleet behind one
// address returns, all at once, nobody else there must be refused, and neither must the fleet.
const agentBurst = 10

// NewGate makes a gate.
func NewGate(cfg Config) (*Gate, error) {
	agents := limit.Rate{PerSecond: cfg.Address.PerSecond, Burst: agentBurst * cfg.Address.Burst}
	g := &Gate{address: limit.New(cfg.Address), agents: limit.New(agents), failure: limit.New(cfg.Failure), caller: limit.New(cfg.Caller)}
	switch cfg.Type {
	case TypeNone:
		g.none = true
		return g, nil
	case "", TypeAPIKey:
		keys, err := Parse(cfg.Secret)
		if err != nil {
			return nil, err
		}
		g.keys = keys
		return g, nil
	default:
		return nil, fmt.Errorf("authentication type %q: want %s or %s. For single sign-on (OIDC, JWT, SAML) put an authenticating "+
			"proxy, such as oauth2-proxy, in front of the gateway: it logs people in and sends the API key of their role", cfg.Type, TypeAPIKey, TypeNone)
	}
}

// Address takes a request of an address ("host:port"), whoever it is from.
func (g *Gate) Address(hostport string) error { return g.address.Take(limit.AddressKey(hostport)) }

// Agent takes a request to an address' agents' own service.
func (g *Gate) Agent(hostport string) error { return g.agents.Take(limit.AddressKey(hostport)) }

// Caller tells whose request it is by its Authorization headers (RFC 6750, section 2.1). A right key is let in however many wrong
// ones its address has sent: behind one address there can be many users, and none may lock out the others.
func (g *Gate) Caller(hostport string, authorization []string) (rpcctx.Caller, error) {
	caller, err := g.authenticate(authorization)
	if err != nil {
		if limited := g.failure.Take(limit.AddressKey(hostport)); limited != nil {
			return rpcctx.Caller{}, limited
		}
		return rpcctx.Caller{}, err
	}
	if err := g.caller.Take(caller.String()); err != nil {
		return rpcctx.Caller{}, err
	}
	return caller, nil
}

func (g *Gate) authenticate(authorization []string) (rpcctx.Caller, error) {
	if g.none {
		return Nobody(), nil
	}
	token, err := rpc.Bearer(metadata.MD{rpc.MetadataAuthorization: authorization})
	if err != nil {
		return rpcctx.Caller{}, err
	}
	caller, ok := g.keys.Lookup(token)
	if !ok {
		return rpcctx.Caller{}, errs.New(errs.Unauthenticated, "CREDENTIAL_NOT_VALID", "the API key is not valid")
	}
	return caller, nil
}

// GRPC is the gate for gRPC calls.
type GRPC struct {
	Gate *Gate
	// Open tells which methods need no API key.
	Open func(fullMethod string) bool
}

// Authenticate implements rpc.Authenticator.
func (a GRPC) Authenticate(ctx context.Context, fullMethod string, md metadata.MD) (rpcctx.Caller, error) {
	address := ""
	if p, ok := peer.FromContext(ctx); ok {
		address = p.Addr.String()
	}
	if a.Open(fullMethod) {
		return rpcctx.AnonymousCaller(), a.Gate.Agent(address)
	}
	if err := a.Gate.Address(address); err != nil {
		return rpcctx.Caller{}, err
	}
	return a.Gate.Caller(address, md.Get(rpc.MetadataAuthorization))
}
