package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// sealedBatch is how many sealed secrets are read at once.
const sealedBatch = 200

// resealAttempts bounds how often a secret is looked at again that was changed meanwhile.
const resealAttempts = 3

// Resealed is what a run of Reseal did.
type Resealed struct {
	// Done were encrypted anew; Left are still under an older key.
	Done, Left int
	// Unreadable are under a key that is not there, or damaged. No key that is there opens them.
	Unreadable int
}

// Reseal encrypts anew what is not under the first encryption key, so that older keys can be dropped. It changes no secret,
// so connectors that are built stay. Whoever stores another secret meanwhile wins. What cannot be opened is told in each run.
func (c *Core) Reseal(ctx context.Context) (Resealed, error) {
	var r Resealed
	err := c.eachSecret(ctx, func(s store.SealedSecret) error {
		if !c.deps.Box.Stale(s.Sealed) {
			return nil
		}
		return c.reseal(ctx, s, &r)
	})
	if err != nil {
		return r, err
	}
	c.tellResealed(r)
	return r, nil
}

func (c *Core) reseal(ctx context.Context, s store.SealedSecret, r *Resealed) error {
	for range resealAttempts {
		plain, err := c.openSecret(s.IssuerID, s.Name, s.Sealed)
		if err != nil {
			c.tellUnreadable(s, err)
			r.Unreadable++
			return nil // others can still be resealed
		}
		done, err := store.ReplaceSecret(ctx, c.deps.DB.Pool, s, c.deps.Box.Seal([]byte(plain.Reveal()), secretPlace(s.IssuerID, s.Name)))
		if err != nil {
			return err
		}
		if done {
			r.Done++
			return nil
		}
		// Another replica has resealed it, or somebody has edited the issuer.
		now, err := store.GetSecrets(ctx, c.deps.DB.Pool, s.IssuerID)
		if err != nil {
			return err
		}
		sealed, ok := now[s.Name]
		if !ok || !c.deps.Box.Stale(sealed) {
			return nil
		}
		s.Sealed = sealed
	}
	r.Left++
	return nil
}

func (c *Core) tellUnreadable(s store.SealedSecret, err error) {
	fields := []zap.Field{logx.ID(logx.KeyIssuer, s.IssuerID), zap.String("field", s.Name), zap.String("key", secretbox.KeyOf(s.Sealed)), logx.Error(err)}
	if s.Deleted {
		c.log.Warn("a secret of a deleted issuer cannot be opened: what it issued cannot be revoked", fields...)
		return
	}
	c.log.Error("a secret at rest cannot be opened: its issuer does not work", fields...)
}

// tellResealed says once that older keys may go, and again when it has become true again.
func (c *Core) tellResealed(r Resealed) {
	if r.Done > 0 {
		c.log.Info("secrets at rest were encrypted anew", zap.Int("rows", r.Done), zap.String("key", c.deps.Box.First()))
		c.saidResealed.Store(false)
	}
	if r.Left+r.Unreadable > 0 {
		c.saidResealed.Store(false)
		return
	}
	if c.deps.Box.Keys() > 1 && c.saidResealed.CompareAndSwap(false, true) {
		c.log.Info("every secret at rest is under the first key of CERTCTL_ENCRYPTION_KEY; when all replicas of issuance say so, its other lines are no longer needed",
			zap.String("key", c.deps.Box.First()))
	}
}

// eachSecret reads all sealed secrets, those of deleted issuers included.
func (c *Core) eachSecret(ctx context.Context, f func(store.SealedSecret) error) error {
	var last store.SealedSecret
	for {
		batch, err := store.ListSecrets(ctx, c.deps.DB.Pool, last, sealedBatch)
		if err != nil || len(batch) == 0 {
			return err
		}
		for _, s := range batch {
			if err := f(s); err != nil {
				return err
			}
		}
		last = batch[len(batch)-1]
	}
}

// checkEncryptionKey refuses to start with keys that open nothing of what is stored: they are those of another installation, or
// a list in a rotation that is too short. Single secrets that do not open stop nobody: their issuers say so, and Reseal.
func (c *Core) checkEncryptionKey(ctx context.Context) error {
	var issuers, keys []string
	opened := false
	err := c.eachSecret(ctx, func(s store.SealedSecret) error {
		_, err := c.openSecret(s.IssuerID, s.Name, s.Sealed)
		opened = opened || err == nil
		if errors.Is(err, secretbox.ErrUnknownKey) {
			issuers, keys = append(issuers, s.IssuerID), append(keys, secretbox.KeyOf(s.Sealed))
		}
		return nil
	})
	if err != nil || opened || len(keys) == 0 {
		return err
	}
	unique := func(list []string) string {
		return strings.Join(slices.Compact(slices.Sorted(slices.Values(list))), ", ")
	}
	return fmt.Errorf("all secrets in this database (of %s) are encrypted under another key (%s): set CERTCTL_ENCRYPTION_KEY to the one that they were stored "+
		"with, below the new one if there is one, or put its file encryption-key back into the data directory; if it is lost for good, delete the rows of "+
		"issuance.issuer_secrets and give the issuers their secrets anew: %w", unique(issuers), unique(keys), secretbox.ErrUnknownKey)
}
