package core

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// instance is a connector that was built from one configuration.
type instance struct {
	issuer.Issuer

	hash string
	caps issuer.Capabilities
}

// account is the key of the CA account, empty where the CA has none.
func (in *instance) account() string {
	if m, ok := in.Issuer.(issuer.Metered); ok {
		return m.Account().Key()
	}
	return ""
}

// orderKey is how the CA's list calls an order; empty where there is no list.
func (in *instance) orderKey(ref issuer.Ref) string {
	if l, ok := in.Issuer.(issuer.Lister); ok && len(ref) > 0 {
		return l.OrderKey(ref)
	}
	return ""
}

// instances keeps one connector per issuer, by the hash of its configuration: changing an issuer rebuilds that one and
// leaves the accounts, tokens and keys of all others alone.
type instances struct {
	build   func(ctx context.Context, i store.Issuer) (*instance, error)
	timeout time.Duration // of a build
	flight  singleflight.Group

	mu   sync.RWMutex
	byID map[string]*instance
}

func newInstances(build func(context.Context, store.Issuer) (*instance, error), timeout time.Duration) *instances {
	return &instances{build: build, timeout: timeout, byID: map[string]*instance{}}
}

// get gives the connector of an issuer as it is configured in i.
func (s *instances) get(ctx context.Context, i store.Issuer) (*instance, error) {
	if in, ok := s.current(i); ok {
		return in, nil
	}
	// The hash is part of the key: who waits gets what it asked for. That the first who asked leaves ends it for nobody.
	got, err, _ := s.flight.Do(i.ID+" "+i.ConfigHash, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timeout)
		defer cancel()
		in, err := s.build(ctx, i)
		if err != nil {
			return nil, err
		}
		s.put(i.ID, in)
		return in, nil
	})
	if err != nil {
		return nil, err
	}
	in, ok := got.(*instance)
	if !ok {
		return nil, fmt.Errorf("build connector of issuer %s: no connector", i.ID)
	}
	return in, nil
}

// put makes a connector the one of an issuer.
func (s *instances) put(id string, in *instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID[id] = in
}

// current gives the connector of an issuer if it is built already.
func (s *instances) current(i store.Issuer) (*instance, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	in, ok := s.byID[i.ID]
	return in, ok && in.hash == i.ConfigHash
}

func (s *instances) drop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, id)
}

// build opens the secrets of an issuer and makes its connector.
func (c *Core) build(ctx context.Context, i store.Issuer) (*instance, error) {
	t, ok := c.deps.Types.Lookup(i.Type)
	if !ok {
		return nil, issuer.Misconfigured("ISSUER_TYPE_UNKNOWN", "issuer %s has type %q, which this program does not have", i.ID, i.Type)
	}
	secrets, err := c.openSecrets(ctx, c.deps.DB.Pool, i.ID)
	if err != nil {
		return nil, err
	}
	connector, err := t.New(ctx, issuer.Config{Settings: i.Config, Secrets: secrets}, issuer.Deps{Now: c.deps.Now, Accounts: c.deps.Accounts})
	if err != nil {
		return nil, fmt.Errorf("build connector of issuer %s: %w", i.ID, err)
	}
	return &instance{Issuer: connector, hash: i.ConfigHash, caps: capabilitiesOf(t, connector)}, nil
}

func capabilitiesOf(t issuer.Type, connector issuer.Issuer) issuer.Capabilities {
	if d, ok := connector.(issuer.Describer); ok {
		return d.Capabilities()
	}
	return t.Capabilities
}

func secretPlace(issuerID, name string) secretbox.Place {
	return secretbox.Place{Table: "issuer_secrets", Row: issuerID, Column: name}
}

func (c *Core) openSecrets(ctx context.Context, q store.Querier, issuerID string) (map[string]secretbox.Secret, error) {
	sealed, err := store.GetSecrets(ctx, q, issuerID)
	if err != nil {
		return nil, err
	}
	out := make(map[string]secretbox.Secret, len(sealed))
	for name, b := range sealed {
		if out[name], err = c.openSecret(issuerID, name, b); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// openSecret opens one; that it cannot be opened is a fault of the configuration, which an operator can mend.
func (c *Core) openSecret(issuerID, name string, sealed []byte) (secretbox.Secret, error) {
	plain, err := c.deps.Box.Open(sealed, secretPlace(issuerID, name))
	if err == nil {
		return secretbox.NewSecret(string(plain)), nil
	}
	p := &issuer.PermanentError{Fault: issuer.FaultConfiguration, Reason: "SECRET_UNREADABLE", Field: name, Cause: err,
		Message: fmt.Sprintf("secret %s of issuer %s was altered or moved in the database: give it anew, or restore it", name, issuerID)}
	if errors.Is(err, secretbox.ErrUnknownKey) {
		p.Message = fmt.Sprintf("secret %s of issuer %s is encrypted under %s, which is not in CERTCTL_ENCRYPTION_KEY: put its line back below the first, "+
			"or give the secret anew if that key is lost", name, issuerID, secretbox.KeyOf(sealed))
	}
	return secretbox.Secret{}, p
}

// issuerOf reads an issuer, deleted ones included, and its connector. What was issued outlives the wish to issue more.
func (c *Core) issuerOf(ctx context.Context, id string) (store.Issuer, *instance, error) {
	i, err := store.GetIssuer(ctx, c.deps.DB.Pool, id)
	if errors.Is(err, store.ErrNotFound) {
		return store.Issuer{ID: id}, nil, issuerNotFound(id)
	}
	if err != nil {
		return store.Issuer{ID: id}, nil, err
	}
	in, err := c.instances.get(ctx, i)
	return i, in, err
}

func issuerNotFound(id string) error {
	return errs.New(errs.NotFound, "ISSUER_NOT_FOUND", "issuer %s not found", id)
}
