package core

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// RenewCAs keeps the local CAs going without a human. A self-made one gets a new certificate for its intermediate when
// less is left than a third of its life or than the longest profile asks for; name and key stay, so its CRL serves what
// was issued before and after. One from files is read again, so that a certificate that was renewed on disk is used. It
// answers how many CAs changed.
func (c *Core) RenewCAs(ctx context.Context) (int, error) {
	longest, err := store.LongestValidity(ctx, c.deps.DB.Pool)
	if err != nil {
		return 0, err
	}
	all, err := store.IssuersOfTypes(ctx, c.deps.DB.Pool, []string{local.TypeName})
	if err != nil {
		return 0, err
	}
	changed := 0
	var failed error
	for _, i := range all {
		did, err := c.renewCA(ctx, i, longest)
		if did {
			changed++
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("renew CA of issuer %s: %w", i.ID, err))
		}
	}
	return changed, failed
}

func (c *Core) renewCA(ctx context.Context, i store.Issuer, longest time.Duration) (bool, error) {
	if slices.Contains(i.SecretNames, local.MaterialField) {
		return c.renewMaterial(ctx, i, longest)
	}
	if !i.DeleteTime.IsZero() {
		return false, nil
	}
	return c.reloadFiles(ctx, i)
}

// renewMaterial renews the intermediate of a self-made CA that is due.
func (c *Core) renewMaterial(ctx context.Context, i store.Issuer, longest time.Duration) (bool, error) {
	secrets, err := c.openSecrets(ctx, c.deps.DB.Pool, i.ID)
	if err != nil {
		return false, err
	}
	m, err := local.DecodeMaterial(secrets[local.MaterialField])
	if err != nil {
		return false, err
	}
	state, err := m.Renewal(c.now(), longest)
	if err != nil {
		return false, err
	}
	if state.Short {
		c.log.Warn("the root of a local CA ends soon; only a new issuer can go on after it",
			logx.ID(logx.KeyIssuer, i.ID), zap.Time("not_after", state.NotAfter))
	}
	if !state.Due {
		return false, nil
	}
	renewed, err := local.RenewIntermediate(m, c.now())
	if err != nil {
		return false, err
	}
	return c.storeMaterial(ctx, i, renewed)
}

// storeMaterial seals and stores the material of a renewed CA, if the issuer is still configured as it was when the old one
// was read: of two replicas that renew at once, one does.
func (c *Core) storeMaterial(ctx context.Context, i store.Issuer, m local.Material) (stored bool, err error) {
	ca, err := m.CA(c.now())
	if err != nil {
		return false, err
	}
	secret, err := m.Encode()
	if err != nil {
		return false, err
	}
	sealed := c.seal(i.ID, map[string]secretbox.Secret{local.MaterialField: secret})
	i.MaxValidity = ca.Certificate().NotAfter.Sub(ca.Certificate().NotBefore)
	err = c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		all, err := store.GetSecrets(ctx, tx, i.ID)
		if err != nil {
			return err
		}
		all[local.MaterialField] = sealed[local.MaterialField]
		stored, err = store.ReplaceMaterial(ctx, tx, i, configHash(i.Type, i.Config, all))
		if err != nil || !stored {
			return err
		}
		if err := putSecrets(ctx, tx, i.ID, sealed); err != nil {
			return err
		}
		return c.recordRenewal(ctx, tx, i.ID, ca.Certificate())
	})
	return stored && err == nil, err
}

func (c *Core) recordRenewal(ctx context.Context, tx pgx.Tx, id string, ca *x509.Certificate) error {
	entry := auditlog.Entry{Action: "issuer.ca_renewed", ResourceType: "issuer", ResourceID: id, Data: map[string]any{
		"serial_number": issuer.FormatSerial(ca.SerialNumber), "subject": ca.Subject.String(), "not_after": ca.NotAfter.UTC().Format(time.RFC3339),
	}}
	if err := emit(ctx, tx, auditlog.Event(ctx, entry)); err != nil {
		return err
	}
	return revision.Bump(ctx, tx, collectionIssuers)
}

// reloadFiles reads the files of a subordinate CA again and takes over what changed. Files that do not work, or are those
// of another CA, leave what is in use as it is.
func (c *Core) reloadFiles(ctx context.Context, i store.Issuer) (bool, error) {
	old, built := c.instances.current(i)
	if !built {
		return false, nil // whoever needs it reads them
	}
	in, err := c.rebuild(ctx, i)
	if err != nil {
		return false, err
	}
	same, err := sameChain(ctx, old.Issuer, in.Issuer)
	if err == nil && !same {
		c.log.Info("the files of a local CA have changed and are in use", logx.ID(logx.KeyIssuer, i.ID))
	}
	return err == nil && !same, err
}

func sameChain(ctx context.Context, a, b issuer.Issuer) (bool, error) {
	before, ok := a.(issuer.ChainProvider)
	after, too := b.(issuer.ChainProvider)
	if !ok || !too {
		return ok == too, nil
	}
	old, err := before.Chain(ctx)
	if err != nil {
		return false, err
	}
	now, err := after.Chain(ctx)
	return slices.EqualFunc(old, now, (*x509.Certificate).Equal), err
}
