package core

import (
	"context"
	"errors"
	"math/big"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// crlBackdate is how far this update lies before the clock, for clients whose clock is slow.
const crlBackdate = time.Minute

// CRL gives the newest CRL of an issuer, DER. When revocations wait for the next one, or there is none yet, or it has run
// out, that one is made first: what is revoked before the question is in the answer.
func (c *Core) CRL(ctx context.Context, issuerID string) (store.CRL, error) {
	// One that was being made when the question came may have been begun before the revocation: then it is made once more.
	const attempts = 3
	for attempt := 1; ; attempt++ {
		latest, unlisted, err := store.LatestCRL(ctx, c.deps.DB.Pool, issuerID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return store.CRL{}, err
		}
		valid := err == nil && latest.NextUpdate.After(c.now())
		if valid && !unlisted {
			return latest, nil
		}
		if valid && attempt > attempts {
			return latest, nil // revocations come faster than CRLs can be made: this one was begun after the question
		}
		if _, err := c.MakeCRL(ctx, issuerID); err != nil {
			if !valid {
				return store.CRL{}, err
			}
			c.log.Warn("a CRL could not be made; the last one is served", logx.ID(logx.KeyIssuer, issuerID), logx.Error(err))
			return latest, nil
		}
	}
}

// MakeCRL makes the next CRL of an issuer. Callers who ask at the same time get the same one; between replicas the number
// decides: who comes second gets what the first stored.
func (c *Core) MakeCRL(ctx context.Context, issuerID string) (store.CRL, error) {
	got, err, _ := c.crls.Do(issuerID, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.CallTimeout)
		defer cancel()
		return c.makeCRL(ctx, issuerID)
	})
	if err != nil {
		return store.CRL{}, err
	}
	made, ok := got.(store.CRL)
	if !ok {
		return store.CRL{}, errors.New("make CRL: no CRL")
	}
	return made, nil
}

func (c *Core) makeCRL(ctx context.Context, issuerID string) (store.CRL, error) {
	const attempts = 3 // each lost race means that another replica has stored one
	for range attempts {
		made, stored, err := c.nextCRL(ctx, issuerID)
		if err != nil || stored {
			return made, err
		}
		latest, unlisted, err := store.LatestCRL(ctx, c.deps.DB.Pool, issuerID)
		if err != nil || !unlisted {
			return latest, err
		}
	}
	return store.CRL{}, errs.New(errs.Unavailable, "CRL_BUSY", "the CRL of issuer %s is being made elsewhere: try again", issuerID)
}

func (c *Core) nextCRL(ctx context.Context, issuerID string) (made store.CRL, stored bool, err error) {
	i, in, err := c.issuerOf(ctx, issuerID)
	if err != nil {
		if errs.IsKind(err, errs.NotFound) {
			return store.CRL{}, false, err
		}
		return store.CRL{}, false, instanceError(i, err)
	}
	signer, ok := in.Issuer.(issuer.CRLSigner)
	if !ok {
		return store.CRL{}, false, errs.New(errs.NotFound, "CRL_NOT_FOUND", "issuer %s publishes its CRL itself", issuerID)
	}
	latest, _, err := store.LatestCRL(ctx, c.deps.DB.Pool, issuerID)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return store.CRL{}, false, err
	}
	now := c.now().Truncate(time.Second)
	revoked, err := store.RevocationsForCRL(ctx, c.deps.DB.Pool, issuerID, now.Add(-2*c.cfg.CRLValidity))
	if err != nil {
		return store.CRL{}, false, err
	}
	made = store.CRL{IssuerID: issuerID, Number: latest.Number + 1, Entries: len(revoked), ThisUpdate: now.Add(-crlBackdate), NextUpdate: now.Add(c.cfg.CRLValidity)}
	if made.DER, err = signCRL(ctx, signer, made, revoked); err != nil {
		return store.CRL{}, false, instanceError(i, err)
	}
	stored, err = c.storeCRL(ctx, made, revoked)
	return made, stored, err
}

func signCRL(ctx context.Context, s issuer.CRLSigner, list store.CRL, revoked []store.Revocation) ([]byte, error) {
	r := issuer.CRLRequest{Number: big.NewInt(list.Number), ThisUpdate: list.ThisUpdate, NextUpdate: list.NextUpdate}
	for _, row := range revoked {
		serial, err := issuer.ParseSerial(row.SerialNumber)
		if err != nil {
			return nil, err
		}
		r.Entries = append(r.Entries, issuer.CRLEntry{
			SerialNumber: serial, RevokedAt: row.RevocationTime, Reason: issuer.Reason(uint8(row.Reason)),
		})
	}
	return s.SignCRL(ctx, r)
}

func (c *Core) storeCRL(ctx context.Context, list store.CRL, revoked []store.Revocation) (stored bool, err error) {
	ids := make([]string, 0, len(revoked))
	for _, r := range revoked {
		ids = append(ids, r.ID)
	}
	err = c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if stored, err = store.InsertCRL(ctx, tx, list, ids); err != nil || !stored {
			return err
		}
		return emit(ctx, tx, auditlog.Event(ctx, auditlog.Entry{
			Action: "crl.generated", ResourceType: "issuer", ResourceID: list.IssuerID,
			Data: map[string]any{"number": list.Number, "entries": list.Entries, "next_update": list.NextUpdate.Format(time.RFC3339)},
		}))
	})
	return stored, err
}

// RefreshCRLs makes the CRLs that are due: those of issuers with revocations that none lists yet, and those in the second
// half of their life. It answers how many it made.
func (c *Core) RefreshCRLs(ctx context.Context) (int, error) {
	var types []string
	for _, t := range c.deps.Types {
		if t.Capabilities.CRL {
			types = append(types, t.Name)
		}
	}
	all, err := store.IssuersOfTypes(ctx, c.deps.DB.Pool, types)
	if err != nil {
		return 0, err
	}
	made := 0
	var failed error
	for _, i := range all {
		due, err := c.crlDue(ctx, i)
		if err == nil && due {
			if _, err = c.MakeCRL(ctx, i.ID); err == nil {
				made++
				_, err = c.CRL(ctx, i.ID) // once more if it was begun before the revocation that made it due
			}
		}
		failed = errors.Join(failed, err)
	}
	return made, failed
}

func (c *Core) crlDue(ctx context.Context, i store.Issuer) (bool, error) {
	latest, unlisted, err := store.LatestCRL(ctx, c.deps.DB.Pool, i.ID)
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	half := latest.ThisUpdate.Add(latest.NextUpdate.Sub(latest.ThisUpdate) / 2)
	return unlisted || !c.now().Before(half), err
}

// CACertificates gives the issuing certificate and those above it, PEM.
func (c *Core) CACertificates(ctx context.Context, issuerID string) ([]byte, error) {
	i, in, err := c.issuerOf(ctx, issuerID)
	if err != nil {
		if errs.IsKind(err, errs.NotFound) {
			return nil, err
		}
		return nil, instanceError(i, err)
	}
	p, ok := in.Issuer.(issuer.ChainProvider)
	if !ok {
		return nil, errs.New(errs.NotFound, "CA_CERTIFICATE_NOT_FOUND", "issuer %s does not tell its certificate", issuerID)
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	chain, err := p.Chain(ctx)
	if err != nil {
		return nil, instanceError(i, err)
	}
	return certcheck.EncodePEM(chain...), nil
}
