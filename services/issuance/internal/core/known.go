package core

import (
	"context"
	"errors"
	"sync"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// rules are an issuer and a profile as read from the database, ready to judge and submit orders.
type rules struct {
	issuer   store.Issuer
	instance *instance
	profile  store.Profile
	patterns []pattern
}

func (r rules) guard() store.Guard {
	return store.Guard{ConfigHash: r.issuer.ConfigHash, ProfileRevision: r.profile.Revision}
}

// known remembers rules between orders, so that an order costs no reads of them. What it holds may be stale: the insert of
// an intent names the revisions that it was judged by (store.Guard) and fails when they are not current any more.
type known struct {
	mu     sync.RWMutex
	byPair map[[2]string]rules
}

// maxKnown bounds the memory; beyond it everything is read again.
const maxKnown = 10_000

func newKnown() *known { return &known{byPair: map[[2]string]rules{}} }

func (k *known) get(issuerID, profileID string) (rules, bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	r, ok := k.byPair[[2]string{issuerID, profileID}]
	return r, ok
}

func (k *known) put(r rules) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.byPair) >= maxKnown {
		clear(k.byPair)
	}
	k.byPair[[2]string{r.issuer.ID, r.profile.ID}] = r
}

func (k *known) forget(issuerID, profileID string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.byPair, [2]string{issuerID, profileID})
}

// rulesFor gives the rules of an order. An issuer or profile that is not there, and an issuer that may not be used, is an
// errs.Invalid on its field.
func (c *Core) rulesFor(ctx context.Context, issuerID, profileID string) (rules, error) {
	if r, ok := c.known.get(issuerID, profileID); ok {
		var err error
		if r.instance, err = c.instances.get(ctx, r.issuer); err != nil {
			return rules{}, instanceError(r.issuer, err)
		}
		return r, nil
	}
	var v errs.Violations
	i, err := c.usableIssuer(ctx, &v, issuerID)
	if err != nil {
		return rules{}, err
	}
	p, patterns, err := c.readProfile(ctx, &v, profileID)
	if err != nil {
		return rules{}, err
	}
	if err := v.Err(); err != nil {
		return rules{}, err
	}
	in, err := c.instances.get(ctx, i)
	if err != nil {
		return rules{}, instanceError(i, err)
	}
	r := rules{issuer: i, instance: in, profile: p, patterns: patterns}
	c.known.put(rules{issuer: i, profile: p, patterns: patterns})
	return r, nil
}

func (c *Core) usableIssuer(ctx context.Context, v *errs.Violations, id string) (store.Issuer, error) {
	if id == "" {
		v.Add("issuer_id", "is needed")
		return store.Issuer{}, nil
	}
	i, err := store.GetIssuer(ctx, c.deps.DB.Pool, id)
	switch {
	case errors.Is(err, store.ErrNotFound) || err == nil && !i.DeleteTime.IsZero():
		v.Add("issuer_id", "there is no issuer %q", id)
	case err != nil:
		return store.Issuer{}, err
	case !i.Enabled:
		v.Add("issuer_id", "issuer %s is disabled", id)
	}
	return i, nil
}

func (c *Core) readProfile(ctx context.Context, v *errs.Violations, id string) (store.Profile, []pattern, error) {
	if id == "" {
		id = DefaultProfileID
	}
	p, err := store.GetProfile(ctx, c.deps.DB.Pool, id)
	if errors.Is(err, store.ErrNotFound) {
		v.Add("profile_id", "there is no profile %q", id)
		return store.Profile{}, nil, nil
	}
	if err != nil {
		return store.Profile{}, nil, err
	}
	patterns, err := compilePatterns(p.AllowedSANPatterns)
	return p, patterns, err
}

// instanceError is for a caller who wants to use an issuer whose connector cannot be built. What a connector says about
// its settings is made to be shown.
func instanceError(i store.Issuer, err error) error {
	if p, ok := asPermanent(err); ok {
		return errs.New(errs.Unavailable, "ISSUER_MISCONFIGURED", "issuer %s does not work: %s", i.ID, p.Message).
			With("reason", p.Reason).Wrap(err)
	}
	return errs.New(errs.Unavailable, "ISSUER_UNAVAILABLE", "issuer %s does not work at the moment", i.ID).Wrap(err)
}
