package rpc

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"

	"go.uber.org/zap"
	"google.golang.org/grpc/metadata"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/secretbox"
)

// Authenticator tells who calls. It gives an errs.Unauthenticated error when there is no credential or a wrong one.
// An anonymous caller without an error is allowed: the table then refuses what is not public.
type Authenticator interface {
	Authenticate(ctx context.Context, fullMethod string, md metadata.MD) (rpcctx.Caller, error)
}

const (
	tokenPrefix  = "certctl-peer." //nolint:gosec // what every token begins with, no token
	bearerPrefix = "Bearer "
)

// PeerToken derives the token by which a service shows who it is: "certctl-peer.<service>.<hex>" with HMAC-SHA-256
// (RFC 2104) over "peer:<service>", keyed with the internal secret, the first if it is a list.
func PeerToken(secret secretbox.Secret, service string) secretbox.Secret {
	return secretbox.NewSecret(tokenPrefix + service + "." + hex.EncodeToString(peerMAC(secret.First(), service)))
}

func peerMAC(secret secretbox.Secret, service string) []byte {
	mac := hmac.New(sha256.New, []byte(secret.Reveal()))
	mac.Write([]byte("peer:" + service))
	return mac.Sum(nil)
}

// PeerAuthenticator knows the services of the installation by their tokens.
type PeerAuthenticator struct {
	secrets []secretbox.Secret
	// known are tokens that were right, with the name of the service: each call has one, and there is one for each service and secret.
	known sync.Map
	// callers are those that the gateway has forwarded, by what it wrote.
	callers memo[rpcctx.Caller]
}

// NewPeerAuthenticator makes the authenticator of a service behind the gateway. It believes tokens of each secret of a list.
func NewPeerAuthenticator(secret secretbox.Secret) (*PeerAuthenticator, error) {
	list, err := secret.InternalList()
	if err != nil {
		return nil, err
	}
	return &PeerAuthenticator{secrets: list}, nil
}

// Authenticate gives the service that calls, and for the gateway the caller that it forwards. A call of the gateway
// without a forwarded caller is anonymous, so that a forgotten one can never lend the gateway's own rights.
func (p *PeerAuthenticator) Authenticate(_ context.Context, _ string, md metadata.MD) (rpcctx.Caller, error) {
	token, err := Bearer(md)
	if err != nil {
		return rpcctx.Caller{}, err
	}
	service, ok := p.service(token)
	if !ok {
		return rpcctx.Caller{}, errs.New(errs.Unauthenticated, "PEER_NOT_AUTHENTICATED", "the peer credential is not valid")
	}
	if service != Gateway {
		return rpcctx.ServiceCaller(service), nil
	}
	return p.forwarded(md)
}

// service gives the service that a token names, if it is right.
func (p *PeerAuthenticator) service(token string) (string, bool) {
	if known, ok := p.known.Load(token); ok {
		service, ok := known.(string)
		return service, ok
	}
	service, ok := p.verify(token)
	if ok {
		p.known.Store(token, service)
	}
	return service, ok
}

// verify checks a peer token and gives the service it names.
func (p *PeerAuthenticator) verify(token string) (service string, ok bool) {
	rest, found := strings.CutPrefix(token, tokenPrefix)
	dot := strings.LastIndexByte(rest, '.')
	if !found || dot <= 0 {
		return "", false
	}
	mac, err := hex.DecodeString(rest[dot+1:])
	if err != nil {
		return "", false
	}
	service = rest[:dot]
	for _, secret := range p.secrets {
		if hmac.Equal(mac, peerMAC(secret, service)) {
			return service, true
		}
	}
	return "", false
}

// forwarded gives the caller in the gateway's metadata. The gateway may speak for users and agents, and for itself;
// it may not claim to be another service.
func (p *PeerAuthenticator) forwarded(md metadata.MD) (rpcctx.Caller, error) {
	value, ok, err := single(md, MetadataCaller)
	if err == nil && !ok {
		return rpcctx.AnonymousCaller(), nil
	}
	if c, known := p.callers.get(value); known {
		return c, nil
	}
	var c rpcctx.Caller
	if err == nil {
		c, err = decodeCaller(value)
	}
	if err != nil {
		return rpcctx.Caller{}, errs.New(errs.Unauthenticated, "CALLER_NOT_VALID", "the forwarded caller is not valid").Wrap(err)
	}
	if c.IsAnonymous() {
		return rpcctx.AnonymousCaller(), nil
	}
	if !mayForward(c) {
		return rpcctx.Caller{}, errs.New(errs.Unauthenticated, "CALLER_NOT_VALID", "the forwarded caller is not valid").
			Wrap(fmt.Errorf("gateway forwarded %s with role %q", c, c.Role))
	}
	p.callers.put(value, c)
	return c, nil
}

func mayForward(c rpcctx.Caller) bool {
	if c.ID == "" || !c.Role.Valid() {
		return false
	}
	switch c.Type {
	case rpcctx.User:
		return c.Role != rpcctx.RolePeer && c.Role != rpcctx.RoleAgent
	case rpcctx.Agent:
		return c.Role == rpcctx.RoleAgent
	case rpcctx.Service:
		return c == rpcctx.ServiceCaller(Gateway)
	case rpcctx.Anonymous:
		return false
	default:
		return false
	}
}

// Bearer gives the token of the authorization metadata (RFC 6750, section 2.1), or an errs.Unauthenticated error.
func Bearer(md metadata.MD) (string, error) {
	value, ok, err := single(md, MetadataAuthorization)
	if err != nil {
		return "", errs.New(errs.Unauthenticated, "CREDENTIAL_NOT_VALID", "more than one credential was sent").Wrap(err)
	}
	if !ok || value == "" {
		return "", errs.New(errs.Unauthenticated, "CREDENTIAL_MISSING", "no credential was sent")
	}
	if len(value) <= len(bearerPrefix) || !strings.EqualFold(value[:len(bearerPrefix)], bearerPrefix) {
		return "", errs.New(errs.Unauthenticated, "CREDENTIAL_NOT_VALID", "the credential is not a bearer token")
	}
	return value[len(bearerPrefix):], nil
}

// authn is the step that notes the caller.
type authn struct {
	auth  Authenticator
	table AuthzTable
}

func (a authn) around(ctx context.Context, c call, next func(context.Context) error) error {
	md, _ := metadata.FromIncomingContext(ctx)
	caller, err := a.auth.Authenticate(ctx, c.method, md)
	if err != nil {
		if !a.table[c.method].Public || !errs.IsKind(err, errs.Unauthenticated) {
			return err
		}
		caller = rpcctx.AnonymousCaller()
	}
	ctx = rpcctx.WithCaller(ctx, caller)
	fields := []zap.Field{logx.Caller(caller.String()), logx.Role(string(caller.Role))}
	if actor, ok := actorOf(caller, md); ok {
		ctx = rpcctx.WithOnBehalfOf(ctx, actor)
		fields = append(fields, logx.Actor(actor.String()))
	}
	noteFields(ctx, fields...)
	return next(rpcctx.WithLogger(ctx, rpcctx.Logger(ctx).WithLazy(fields...)))
}

// actorOf gives for whom a peer says it acts. What others say about that is not heard, and what cannot be read is
// not worth failing the call for: nothing is decided by it.
func actorOf(caller rpcctx.Caller, md metadata.MD) (rpcctx.Caller, bool) {
	if caller.Type != rpcctx.Service || caller.Role != rpcctx.RolePeer {
		return rpcctx.Caller{}, false
	}
	actor, ok, err := callerFromMetadata(md, MetadataActor)
	return actor, ok && err == nil && !actor.IsAnonymous()
}
