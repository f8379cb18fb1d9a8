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

// Resealed is what a run of Reseal did.
type Resealed struct {
	// Done were encrypted anew; Left are still under an older key.
	Done, Left int
}

// Reseal encrypts anew what is not under the first encryption key, so that older keys can be dropped. It changes no secret,
// so connectors that are built stay. Whoever stores another secret meanwhile wins.
func (c *Core) Reseal(ctx context.Context) (Resealed, error) {
	var r Resealed
	err := c.eachSecret(ctx, func(s store.SealedSecret) error {
		if !c.deps.Box.Stale(s.Sealed) {
			return nil
		}
		done, err := c.reseal(ctx, s)
		switch {
		case err != nil:
			return err
		case done:
			r.Done++
		default:
			r.Left++
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	c.tellResealed(r)
	return r, nil
}

func (c *Core) reseal(ctx context.Context, s store.SealedSecret) (bool, error) {
	place := secretPlace(s.IssuerID, s.Name)
	plain, err := c.deps.Box.Open(s.Sealed, place)
	if err != nil {
		// Others can still be resealed.
		c.log.Error("a secret at rest cannot be opened and stays under its key: put the line of CERTCTL_ENCRYPTION_KEY back that it was stored with",
			logx.ID(logx.KeyIssuer, s.IssuerID), zap.String("field", s.Name), zap.String("key", secretbox.KeyOf(s.Sealed)), zap.Error(err))
		return false, nil
	}
	return store.ReplaceSecret(ctx, c.deps.DB.Pool, s, c.deps.Box.Seal(plain, place))
}

// tellResealed says once that older keys may go, and again when it has become true again.
func (c *Core) tellResealed(r Resealed) {
	if r.Done > 0 {
		c.log.Info("secrets at rest were encrypted anew", zap.Int("rows", r.Done), zap.String("key", c.deps.Box.First()))
		c.saidResealed.Store(false)
	}
	if r.Left > 0 {
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

// checkEncryptionKey refuses to start with keys that do not open all that is stored: the use of some issuer would fail later.
// So a replica that is given too short a list during a rotation never takes the place of one that works.
func (c *Core) checkEncryptionKey(ctx context.Context) error {
	var issuers, keys []string
	err := c.eachSecret(ctx, func(s store.SealedSecret) error {
		_, err := c.deps.Box.Open(s.Sealed, secretPlace(s.IssuerID, s.Name))
		if errors.Is(err, secretbox.ErrUnknownKey) {
			issuers, keys = append(issuers, s.IssuerID), append(keys, secretbox.KeyOf(s.Sealed))
		}
		return nil
	})
	if err != nil || len(keys) == 0 {
		return err
	}
	unique := func(list []string) string {
		return strings.Join(slices.Compact(slices.Sorted(slices.Values(list))), ", ")
	}
	return fmt.Errorf("secrets in this database (of %s) are encrypted under another key (%s): set CERTCTL_ENCRYPTION_KEY to the one that they were stored "+
		"with, below the new one if there is one, or put its file encryption-key back into the data directory: %w", unique(issuers), unique(keys), secretbox.ErrUnknownKey)
}
