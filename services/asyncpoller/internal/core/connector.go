package core

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
)

const (
	// credentialsFresh is how long the settings of an issuer are taken for current without asking issuance.
	credentialsFresh = 30 * time.Second
	// maxConnectors bounds the memory; beyond it everything is built again.
	maxConnectors = 1000
)

// Credentials are an issuer's settings.
type Credentials struct {
	Type       string
	ConfigHash string
	Config     []byte // JSON with secrets in clear; empty when the hash was known
}

// Source gives credentials.
type Source interface {
	Credentials(ctx context.Context, issuerID, knownHash string) (Credentials, error)
}

// connector is an issuer built from one configuration.
type connector struct {
	issuer.Issuer

	typ  string
	hash string
}

// known is a connector and when its configuration was current.
type known struct {
	connector *connector
	seen      time.Time
}

// connectors keeps one connector per issuer, by the hash of its configuration. Credentials are in memory only.
type connectors struct {
	source Source
	types  issuer.Types
	deps   issuer.Deps
	flight singleflight.Group

	mu       sync.Mutex
	byIssuer map[string]known
}

func newConnectors(source Source, types issuer.Types, deps issuer.Deps) *connectors {
	return &connectors{source: source, types: types, deps: deps, byIssuer: map[string]known{}}
}

// now tells the time.
func (c *connectors) now() time.Time { return c.deps.Clock()() }

// get gives the connector of an issuer as it is configured now. A configuration that does not work is an error of package
// issuer, others come from the source.
func (c *connectors) get(ctx context.Context, issuerID string) (*connector, error) {
	if in, current := c.known(issuerID); current {
		return in, nil
	}
	got, err, _ := c.flight.Do(issuerID, func() (any, error) {
		in, current := c.known(issuerID) // a flight may have ended just now
		if current {
			return in, nil
		}
		return c.refresh(ctx, issuerID, in)
	})
	if err != nil {
		return nil, err
	}
	return got.(*connector), nil //nolint:forcetypeassert,errcheck // the function above makes nothing else
}

func (c *connectors) refresh(ctx context.Context, issuerID string, old *connector) (*connector, error) {
	hash := ""
	if old != nil {
		hash = old.hash
	}
	credentials, err := c.source.Credentials(ctx, issuerID, hash)
	if err != nil {
		return nil, fmt.Errorf("get credentials of issuer %s: %w", issuerID, err)
	}
	in := old
	if old == nil || credentials.ConfigHash != old.hash || credentials.Type != old.typ {
		if in, err = c.build(ctx, issuerID, credentials); err != nil {
			return nil, err
		}
	}
	c.keep(issuerID, in)
	return in, nil
}

func (c *connectors) build(ctx context.Context, issuerID string, credentials Credentials) (*connector, error) {
	t, ok := c.types.Lookup(credentials.Type)
	if !ok {
		return nil, issuer.Misconfigured("ISSUER_TYPE_UNKNOWN", "issuer %s has type %q, which this program does not have", issuerID, credentials.Type)
	}
	settings, secrets, err := t.SplitSecrets(credentials.Config)
	if err != nil {
		return nil, issuer.Misconfigured(ReasonNotUsable, "the settings of issuer %s cannot be read", issuerID)
	}
	in, err := t.New(ctx, issuer.Config{Settings: settings, Secrets: secrets}, c.deps)
	if err != nil {
		return nil, &buildError{issuerID: issuerID, cause: err}
	}
	return &connector{Issuer: in, typ: credentials.Type, hash: credentials.ConfigHash}, nil
}

// buildError says that a connector could not be made. Its cause is one of package issuer, or an errs.Invalid.
type buildError struct {
	issuerID string
	cause    error
}

func (e *buildError) Error() string {
	return "build connector of issuer " + e.issuerID + ": " + e.cause.Error()
}
func (e *buildError) Unwrap() error { return e.cause }

// known gives the connector that there is, nil if none, and whether its configuration is current.
func (c *connectors) known(issuerID string) (in *connector, current bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.byIssuer[issuerID]
	return k.connector, ok && c.now().Sub(k.seen) < credentialsFresh
}

// guards gives the guards of the issuers that show theirs.
func (c *connectors) guards() map[string]*account.Guard {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]*account.Guard, len(c.byIssuer))
	for id, k := range c.byIssuer {
		if m, ok := k.connector.Issuer.(issuer.Metered); ok && m.Account() != nil {
			out[id] = m.Account()
		}
	}
	return out
}

func (c *connectors) keep(issuerID string, in *connector) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.byIssuer) >= maxConnectors {
		clear(c.byIssuer)
	}
	c.byIssuer[issuerID] = known{connector: in, seen: c.now()}
}

// doubt makes the next use ask issuance for the configuration.
func (c *connectors) doubt(issuerID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k, ok := c.byIssuer[issuerID]; ok {
		k.seen = time.Time{}
		c.byIssuer[issuerID] = k
	}
}
