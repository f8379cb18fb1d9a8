package core

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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
// not keep a core busy while certificates are being revoked.
const crlShare = 20

// crlCheap is what a CRL may take for which the floor of the loop is rest enough.
const crlCheap = 250 * time.Millisecond

// crlPrompt is up to how many entries a CRL is made for who asks for it. A larger one is left to the loop, which rests: who asks has
// the last one meanwhile.
const crlPrompt = 200_000

// crlTimeout bounds the making of a CRL: twice a day all that is revoked is read for it.
const crlTimeout = 5 * time.Minute

// crlWhole is up to how many bytes entries are stored with their CRL, besides, so that it is read at once, and by the version before.
const crlWhole = 256 << 10

// crlBatch is how many revocations a transaction lists, and crlPart up to how many bytes a part is added to.
const (
	crlBatch = 10_000
	crlPart  = 256 << 10
)

// rests tells until when the loop makes no other CRL, by issuer.
type rests struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func newRests() *rests { return &rests{until: map[string]time.Time{}} }

func (r *rests) set(issuerID string, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.until[issuerID] = until
}

func (r *rests) resting(issuerID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.until[issuerID])
}

// CRL gives the newest CRL of an issuer, DER. When revocations wait for the next one, or there is none yet, or it has run
// out, that one is made first: what is revoked before the question is in the answer, up to crlPrompt entries.
func (c *Core) CRL(ctx context.Context, issuerID string) (store.CRL, []byte, error) {
	list, der, err := c.ReadCRL(ctx, issuerID, 0, 0)
	for all, _ := list.Bytes(); err == nil && int64(len(der)) < all; {
		var more []byte
		_, more, err = c.ReadCRL(ctx, issuerID, list.Number, int64(len(der)))
		der = append(der, more...)
	}
	return list, der, err
}

// ReadCRL gives bytes of a CRL from an offset on, about a megabyte; none at its end. Number 0 is the newest, from its beginning on. Of a
// CRL that is not kept any more the error is NotFound.
func (c *Core) ReadCRL(ctx context.Context, issuerID string, number, offset int64) (store.CRL, []byte, error) {
	if number == 0 {
		if offset != 0 {
			return store.CRL{}, nil, errs.Field("number", "is needed with an offset: the newest CRL may be another one by now")
		}
		latest, err := c.currentCRL(ctx, issuerID)
		if err != nil {
			return store.CRL{}, nil, err
		}
		number = latest.Number
	}
	list, err := store.GetCRL(ctx, c.deps.DB.Pool, issuerID, number)
	if errors.Is(err, store.ErrNotFound) {
		return store.CRL{}, nil, errs.New(errs.NotFound, "CRL_NOT_FOUND", "issuer %s has no CRL %d any more: ask for the newest", issuerID, number)
	}
	if err != nil {
		return store.CRL{}, nil, err
	}
	der, err := c.readCRL(ctx, list, offset)
	return list, der, err
}

func (c *Core) readCRL(ctx context.Context, list store.CRL, offset int64) ([]byte, error) {
	all, size := list.Bytes()
	entries, end := int64(len(list.Head)), int64(len(list.Head))+size
	if offset < 0 || offset > all {
		return nil, errs.Field("offset", "is not in 0 to %d, the size of the CRL", all)
	}
	var der []byte
	if offset < entries {
		der = slices.Clone(list.Head[offset:])
	}
	if at := offset + int64(len(der)); at < end {
		some, err := store.CRLEntries(ctx, c.deps.DB.Pool, list, at-entries)
		if err == nil && len(some) == 0 {
			err = errs.New(errs.NotFound, "CRL_NOT_FOUND", "issuer %s has no CRL %d any more: ask for the newest", list.IssuerID, list.Number)
		}
		if err != nil {
			return nil, err
		}
		der = append(der, some...)
	}
	if at := offset + int64(len(der)); at >= end {
		der = append(der, list.Tail[at-end:]...)
	}
	return der, nil
}

// currentCRL makes sure that there is a CRL with all that was revoked before.
func (c *Core) currentCRL(ctx context.Context, issuerID string) (store.CRL, error) {
	// One that was being made when the question came may have been begun before the revocation: then it is made once more.
	const attempts = 3
	for attempt := 1; ; attempt++ {
		latest, unlisted, err := store.LatestCRL(ctx, c.deps.DB.Pool, issuerID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return store.CRL{}, err
		}
		valid := err == nil && latest.NextUpdate.After(c.now())
		switch {
		case valid && !unlisted:
			return latest, nil
		case valid && latest.Entries > crlPrompt:
			c.crlKick.Kick()
			return latest, nil
		case valid && attempt > attempts:
			return latest, nil // revocations come faster than CRLs can be made: this one was begun after the question
		}
		if err := c.MakeCRL(ctx, issuerID); err != nil {
			if !valid {
				return store.CRL{}, err
			}
			c.log.Warn("a CRL could not be made; the last one is served", logx.ID(logx.KeyIssuer, issuerID), logx.Error(err))
			return latest, nil
		}
	}
}

// MakeCRL makes the next CRL of an issuer. Those who ask at the same time share one; between replicas the number decides: what who
// comes second made is left, and what the first stored is there.
func (c *Core) MakeCRL(ctx context.Context, issuerID string) error {
	_, err, _ := c.crls.Do(issuerID, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), crlTimeout)
		defer cancel()
		began := time.Now()
		err := c.makeCRL(ctx, issuerID)
		if err != nil {
			c.rest(issuerID, began)
		}
		return nil, err
	})
	return err
}

func (c *Core) makeCRL(ctx context.Context, issuerID string) error {
	i, in, err := c.issuerOf(ctx, issuerID)
	if err != nil {
		if errs.IsKind(err, errs.NotFound) {
			return err
		}
		return instanceError(i, err)
	}
	signer, ok := in.Issuer.(issuer.CRLSigner)
	if !ok {
		return errs.New(errs.NotFound, "CRL_NOT_FOUND", "issuer %s publishes its CRL itself", issuerID)
	}
	now := c.now().Truncate(time.Second)
	next, err := c.listRevocations(ctx, issuerID, now)
	if err != nil {
		return err
	}
	began := time.Now()
	next.ThisUpdate, next.NextUpdate = now.Add(-crlBackdate), now.Add(c.cfg.CRLValidity)
	var whole bytes.Buffer
	var unread error
	signed, err := signer.SignCRL(ctx, issuer.CRLRequest{
		Number: big.NewInt(next.Number), ThisUpdate: next.ThisUpdate, NextUpdate: next.NextUpdate,
		Entries: issuer.CRLEntries{Size: next.Size, Write: func(to io.Writer) error {
			if next.Size <= crlWhole {
				to = io.MultiWriter(to, &whole)
			}
			unread = c.writeEntries(ctx, next, to)
			return unread
		}},
	})
	if unread != nil {
		return unread
	}
	if err != nil {
		return instanceError(i, err)
	}
	next.Head, next.Tail = signed.Head, signed.Tail
	if next.Size <= crlWhole {
		next.Head, next.Tail = slices.Concat(signed.Head, whole.Bytes(), signed.Tail), nil
	}
	if err := c.storeCRL(ctx, next); err != nil {
		return err
	}
	c.rest(issuerID, began)
	return nil
}

// rest has the loop rest after a CRL that took long.
func (c *Core) rest(issuerID string, began time.Time) {
	if took := time.Since(began); took > crlCheap {
		c.rests.set(issuerID, time.Now().Add(crlShare*took))
	}
}

func (c *Core) writeEntries(ctx context.Context, list store.CRL, to io.Writer) error {
	for at := int64(0); at < list.Size; {
		some, err := store.CRLEntries(ctx, c.deps.DB.Pool, list, at)
		if err != nil {
			return err
		}
		if len(some) == 0 {
			return errs.New(errs.Unavailable, "CRL_BUSY", "the CRL of issuer %s is being made elsewhere: try again", list.IssuerID)
		}
		if _, err := to.Write(some); err != nil {
			return fmt.Errorf("read entries of CRL: %w", err)
		}
		at += int64(len(some))
	}
	return nil
}

// listRevocations adds what no CRL lists to the parts, and gives the number and the extent of the next CRL. What one transaction has
// added stays, whatever becomes of that CRL.
func (c *Core) listRevocations(ctx context.Context, issuerID string, now time.Time) (next store.CRL, err error) {
	for more := true; more && err == nil; {
		err = c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
			next, more, err = c.listSome(ctx, tx, issuerID, now)
			return err
		})
	}
	return next, err
}

func (c *Core) listSome(ctx context.Context, tx pgx.Tx, issuerID string, now time.Time) (next store.CRL, more bool, err error) {
	if err := store.LockCRL(ctx, tx, issuerID); err != nil {
		return store.CRL{}, false, err
	}
	latest, _, err := store.LatestCRL(ctx, tx, issuerID)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return store.CRL{}, false, err
	}
	next = store.CRL{IssuerID: issuerID, Number: latest.Number + 1}
	last, err := store.LastCRLPart(ctx, tx, issuerID)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return store.CRL{}, false, err
	}
	// What the version before has listed is in no part.
	byOlder := latest.Number > 0 && latest.Generation == 0
	if err != nil || byOlder || last.Entries > 0 && !now.Before(last.BeginTime.Add(c.cfg.CRLValidity/2)) {
		last, err = c.beginGeneration(ctx, tx, store.CRLPart{
			IssuerID: issuerID, Part: 1, CRLExtent: store.CRLExtent{Generation: max(next.Number, last.Generation+1)}, BeginTime: now,
		})
		if err != nil {
			return store.CRL{}, false, err
		}
	}
	fresh, err := store.ListRevocations(ctx, tx, issuerID, next.Number, crlBatch)
	if err == nil {
		last, err = addEntries(ctx, tx, last, fresh)
	}
	next.CRLExtent = last.CRLExtent
	return next, len(fresh) == crlBatch, err
}

// beginGeneration reads all that is listed again, but for what has ended (RFC 5280, section 3.3: an entry stays until one CRL beyond the
// certificate's end).
func (c *Core) beginGeneration(ctx context.Context, tx pgx.Tx, last store.CRLPart) (store.CRLPart, error) {
	if err := store.PutCRLPart(ctx, tx, last, nil); err != nil {
		return last, err
	}
	after := ""
	for {
		some, err := store.RevocationsListed(ctx, tx, last.IssuerID, last.BeginTime.Add(-2*c.cfg.CRLValidity), after, crlBatch)
		if err != nil {
			return last, err
		}
		if last, err = addEntries(ctx, tx, last, some); err != nil || len(some) < crlBatch {
			return last, err
		}
		after = some[len(some)-1].SerialNumber
	}
}

// addEntries adds revocations to the last part, or to one after it, and gives what is the last then.
func addEntries(ctx context.Context, tx pgx.Tx, last store.CRLPart, revocations []store.Listed) (store.CRLPart, error) {
	if len(revocations) == 0 {
		return last, nil
	}
	var der []byte
	for _, r := range revocations {
		serial, err := issuer.ParseSerial(r.SerialNumber)
		if err != nil {
			return last, err
		}
		if der, err = (issuer.CRLEntry{SerialNumber: serial, RevokedAt: r.RevocationTime, Reason: issuer.Reason(uint8(r.Reason))}).AppendDER(der); err != nil {
			return last, err
		}
	}
	if last.Length+len(der) > crlPart && last.Length > 0 {
		last.Part, last.Length = last.Part+1, 0
	}
	last.Entries, last.Size, last.Length = last.Entries+len(revocations), last.Size+int64(len(der)), last.Length+len(der)
	return last, store.PutCRLPart(ctx, tx, last, der)
}

func (c *Core) storeCRL(ctx context.Context, list store.CRL) error {
	return c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		stored, err := store.InsertCRL(ctx, tx, list)
		if err != nil || !stored {
			return err
		}
		return emit(ctx, tx, auditlog.Event(ctx, auditlog.Entry{
			Action: "crl.generated", ResourceType: "issuer", ResourceID: list.IssuerID,
			Data: map[string]any{"number": list.Number, "entries": list.Entries, "next_update": list.NextUpdate.Format(time.RFC3339)},
		}))
	})
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
			if err = c.MakeCRL(ctx, i.ID); err == nil {
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
	if unlisted && c.rests.resting(i.ID) {
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
