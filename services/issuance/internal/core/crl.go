package core

import (
	"context"
	"errors"
	"math/big"
	"slices"
	"sync"
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

// crlShare is how many times as long as a CRL took the loop rests before the next one of the issuer: one of a million entries must
// not keep a core busy while certificates are being revoked. Who asks for a CRL does not wait for the loop.
const crlShare = 20

// crlCheap is what a CRL may take for which the floor of the loop is rest enough.
const crlCheap = 250 * time.Millisecond

// crlNoted is in how many revocations at a time is noted that a CRL lists them.
const crlNoted = 10_000

// crlList is what a CRL that this process has made lists.
type crlList struct {
	number  int64
	entries issuer.CRLEntries
	whole   time.Time // when all was read
	rest    time.Time // the loop makes no other before
}

// crlLists remembers them, by issuer, so that the next CRL costs a read of what is new.
type crlLists struct {
	mu   sync.Mutex
	byID map[string]crlList
}

func newCRLLists() *crlLists { return &crlLists{byID: map[string]crlList{}} }

func (l *crlLists) get(issuerID string) (crlList, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list, ok := l.byID[issuerID]
	list.entries = list.entries.Clone()
	return list, ok
}

func (l *crlLists) put(issuerID string, list crlList) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.byID[issuerID] = list
}

func (l *crlLists) resting(issuerID string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Before(l.byID[issuerID].rest)
}

// CRL gives the newest CRL of an issuer, DER. When revocations wait for the next one, or there is none yet, or it has run
// out, that one is made first: what is revoked before the question is in the answer.
func (c *Core) CRL(ctx context.Context, issuerID string) (store.CRL, error) {
	latest, err := c.currentCRL(ctx, issuerID)
	if err != nil || latest.DER != nil {
		return latest, err
	}
	latest.DER, err = store.GetCRL(ctx, c.deps.DB.Pool, issuerID, latest.Number)
	return latest, err
}

// currentCRL makes sure that there is a CRL with all that was revoked before. One that it has not made itself has no DER.
func (c *Core) currentCRL(ctx context.Context, issuerID string) (store.CRL, error) {
	// One that was being made when the question came may have been begun before the revocation: then it is made once more.
	const attempts = 3
	var made store.CRL
	for attempt := 1; ; attempt++ {
		latest, unlisted, err := store.LatestCRL(ctx, c.deps.DB.Pool, issuerID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return store.CRL{}, err
		}
		if latest.Number == made.Number {
			latest.DER = made.DER
		}
		valid := err == nil && latest.NextUpdate.After(c.now())
		if valid && !unlisted {
			return latest, nil
		}
		if valid && attempt > attempts {
			return latest, nil // revocations come faster than CRLs can be made: this one was begun after the question
		}
		if made, err = c.MakeCRL(ctx, issuerID); err != nil {
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
		if err != nil {
			return store.CRL{}, err
		}
		if !unlisted {
			latest.DER, err = store.GetCRL(ctx, c.deps.DB.Pool, issuerID, latest.Number)
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
	began := time.Now()
	revoked, fresh, err := c.gather(ctx, issuerID, latest.Number, now)
	if err != nil {
		return store.CRL{}, false, err
	}
	made = store.CRL{
		IssuerID: issuerID, Number: latest.Number + 1, Entries: revoked.entries.Len(), ThisUpdate: now.Add(-crlBackdate), NextUpdate: now.Add(c.cfg.CRLValidity),
	}
	made.DER, err = signer.SignCRL(ctx, issuer.CRLRequest{
		Number: big.NewInt(made.Number), ThisUpdate: made.ThisUpdate, NextUpdate: made.NextUpdate, Entries: revoked.entries,
	})
	if err != nil {
		return store.CRL{}, false, instanceError(i, err)
	}
	at := min(crlNoted, len(fresh))
	if stored, err = c.storeCRL(ctx, made, fresh[:at]); err != nil || !stored {
		return made, stored, err
	}
	if err := c.noteListed(ctx, made, fresh[at:]); err != nil {
		// It is a CRL all the same. Those that are not noted are listed by the next one, which is read as a whole.
		c.log.Warn("not all revocations are noted as listed; another CRL will be made for them", logx.ID(logx.KeyIssuer, issuerID), logx.Error(err))
		return made, true, nil
	}
	revoked.number, revoked.rest = made.Number, time.Time{}
	if took := time.Since(began); took > crlCheap {
		revoked.rest = time.Now().Add(crlShare * took)
	}
	c.lists.put(issuerID, revoked)
	return made, true, nil
}

// noteListed notes what is too much for the transaction that stored the CRL: a part that is lost costs another CRL, and nothing else.
func (c *Core) noteListed(ctx context.Context, list store.CRL, ids []string) error {
	for part := range slices.Chunk(ids, crlNoted) {
		err := func() error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.CallTimeout)
			defer cancel()
			return store.NoteListed(ctx, c.deps.DB.Pool, list.Number, part)
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

// gather encodes what the CRL after the given one lists, and gives the ids of what no CRL lists yet. Where this process has made
// that one, only those are read; what has ended since then goes when all is read again.
func (c *Core) gather(ctx context.Context, issuerID string, after int64, now time.Time) (crlList, []string, error) {
	var fresh []string
	list, known := c.lists.get(issuerID)
	add := func(l store.Listed) error {
		serial, err := issuer.ParseSerial(l.SerialNumber)
		if err != nil {
			return err
		}
		if l.ID != "" {
			fresh = append(fresh, l.ID)
		}
		return list.entries.Add(issuer.CRLEntry{SerialNumber: serial, RevokedAt: l.RevocationTime, Reason: issuer.Reason(uint8(l.Reason))})
	}
	if known && list.number == after && now.Before(list.whole.Add(c.cfg.CRLValidity/2)) {
		return list, fresh, store.EachUnlisted(ctx, c.deps.DB.Pool, issuerID, add)
	}
	list = crlList{whole: now}
	err := store.EachListed(ctx, c.deps.DB.Pool, issuerID, now.Add(-2*c.cfg.CRLValidity), add)
	return list, fresh, err
}

func (c *Core) storeCRL(ctx context.Context, list store.CRL, fresh []string) (stored bool, err error) {
	err = c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if stored, err = store.InsertCRL(ctx, tx, list); err != nil || !stored {
			return err
		}
		if err := store.NoteListed(ctx, tx, list.Number, fresh); err != nil {
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
				_, err = c.currentCRL(ctx, i.ID) // once more if it was begun before the revocation that made it due
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
	if err != nil || !c.now().Before(half) {
		return err == nil, err
	}
	if unlisted && c.lists.resting(i.ID) {
		c.crlKick.Kick() // the loop looks again
		return false, nil
	}
	return unlisted, nil
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
