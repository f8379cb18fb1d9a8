package core

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// DefaultIssuerID is the local issuer of a first start.
const DefaultIssuerID = "iss-local"

// Bootstrap makes what a first start has: the default profile and, if it is configured, a local issuer. What somebody
// deleted is not made again. Replicas that start at once wait for each other on the row in table bootstrap.
func (c *Core) Bootstrap(ctx context.Context) error {
	err := c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := c.bootstrapProfile(ctx, tx); err != nil {
			return err
		}
		return c.bootstrapIssuer(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("make what a first start has: %w", err)
	}
	return c.checkEncryptionKey(ctx)
}

func (c *Core) bootstrapProfile(ctx context.Context, tx pgx.Tx) error {
	first, err := store.TryBootstrap(ctx, tx, DefaultProfileID)
	if err != nil || !first {
		return err
	}
	_, err = c.CreateProfile(ctx, tx, store.Profile{
		ID: DefaultProfileID, Name: "Default", Description: "Server certificates for any name, 90 days.",
		AllowWildcards: true, MaxValidity: DefaultValidity,
	})
	return err
}

func (c *Core) bootstrapIssuer(ctx context.Context, tx pgx.Tx) error {
	if !c.cfg.BootstrapLocalIssuer {
		return nil
	}
	if _, ok := c.deps.Types.Lookup(local.TypeName); !ok {
		return errors.New("this program has no local issuers")
	}
	first, err := store.TryBootstrap(ctx, tx, DefaultIssuerID)
	if err != nil || !first {
		return err
	}
	draft, err := c.DraftIssuer(ctx, NewIssuer{ID: DefaultIssuerID, Name: "Local CA", Type: local.TypeName, Settings: Settings{}, Enabled: true})
	if err != nil {
		return err
	}
	_, err = c.CreateIssuer(ctx, tx, draft)
	return err
}
