package core

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// Reconcile works on one order that is due: it is the lease handler of the journal. What it finds it for:
//
//	CREATED     the CA was away: submit again, until the deadline
//	SUBMITTING  the lease ran out: whoever submitted has died, and the reply is lost
//	UNKNOWN     the reply was lost: ask the CA what became of the order
//	PENDING     each day, and after its deadline: the watch may have been lost
//
// An order whose reply was lost is submitted again only when that cannot buy a second certificate: when the CA says that
// it has no such order (issuer.Finder), or when the request fixes the result (a serial number that was stored with the
// intent). The local CA has both: what it signs leaves its process only through the transaction that stores it, so an
// order without a stored certificate has none, and signing again gives the same bytes.
func (c *Core) Reconcile(ctx context.Context, l lease.Lease) error {
	o, err := store.GetOrder(ctx, c.deps.DB.Pool, l.ID)
	if err != nil {
		return err
	}
	fence := uuid.NullUUID{UUID: l.LeaseID, Valid: true}
	switch o.Status {
	case Pending:
		_, err = c.watchOn(ctx, o, fence)
	case Created:
		err = c.submitAgain(ctx, o, fence)
	case Submitting, Unknown:
		err = c.reconcileLost(ctx, o, fence)
	default:
		return nil // ended between the claim and now
	}
	return err
}

func (c *Core) submitAgain(ctx context.Context, o store.Order, fence uuid.NullUUID) error {
	if !o.DeadlineTime.After(c.now()) {
		_, err := c.end(ctx, o, fence, Failed, reasonUnavailable, "the CA was not available until the order's deadline")
		return err
	}
	_, in, err := c.issuerOf(ctx, o.IssuerID)
	if err != nil {
		return err // the lease's backoff tries again
	}
	return c.submitIfAllowed(ctx, o, in, fence)
}

// submitIfAllowed calls the CA for an order that it does not have, if the rules still allow it: an issuer that was disabled
// and a profile that was narrowed since the intent was stored hold for what waits, too. An order of a chosen serial number
// may be at the CA in this moment, in the hands of whoever had the lease (orderLease): that one is not given up.
func (c *Core) submitIfAllowed(ctx context.Context, o store.Order, in *instance, fence uuid.NullUUID) error {
	if o.Status == Submitting && o.SerialNumber != "" {
		return c.resubmit(ctx, o, in, fence)
	}
	err := c.stillAllowed(ctx, o)
	if errs.IsKind(err, errs.Invalid) {
		_, err = c.end(ctx, o, fence, Failed, reasonNotAllowed, "the rules have changed since the order was placed: "+errs.From(err).Message())
		return err
	}
	if err != nil {
		return err
	}
	return c.resubmit(ctx, o, in, fence)
}

// stillAllowed holds an order against issuer and profile as they are now.
func (c *Core) stillAllowed(ctx context.Context, o store.Order) error {
	c.known.forget(o.IssuerID, o.ProfileID)
	ru, err := c.rulesFor(ctx, o.IssuerID, o.ProfileID)
	if err != nil {
		return err
	}
	var v errs.Violations
	if o.Lifetime > ru.profile.MaxValidity {
		v.Add("max_validity", "profile %s allows %s now", ru.profile.ID, ru.profile.MaxValidity)
	}
	for _, usage := range o.ExtendedKeyUsages {
		if !slices.Contains(ru.profile.ExtendedKeyUsages, usage) {
			v.Add("extended_key_usages", "profile %s does not have %s any more", ru.profile.ID, usage)
		}
	}
	if err := v.Err(); err != nil {
		return err
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: o.CSR})
	_, _, err = ru.judge(CSRRequest{CSR: csr, Request: Request{IssuerID: o.IssuerID, ProfileID: o.ProfileID, Names: o.Names}})
	return err
}

// resubmit calls the CA again for the same order. It keeps the lease that it runs under. When it does so is stored before: a
// CA that shows orders late is given time from then on, should this reply be lost too.
func (c *Core) resubmit(ctx context.Context, o store.Order, in *instance, fence uuid.NullUUID) error {
	csr, err := x509.ParseCertificateRequest(o.CSR)
	if err != nil {
		return fmt.Errorf("read CSR of order %s: %w", o.ID, err)
	}
	revision := o.Revision
	o, err = c.move(ctx, o, transition{to: Submitting, fence: fence, keep: true, action: "order.submitted",
		change: func(o *store.Order) { o.SubmitTime, o.NextPollTime = c.now(), time.Time{} }})
	if err != nil {
		return err
	}
	if o.Revision != revision+1 || o.Status != Submitting {
		return lease.ErrLost // somebody else has moved it
	}
	_, err = c.call(ctx, o, checkedCSR{CertificateRequest: csr}, in, fence)
	return err
}

func (c *Core) reconcileLost(ctx context.Context, o store.Order, fence uuid.NullUUID) error {
	if err := c.checkpoint(pointReconcile, o.ID); err != nil {
		return err
	}
	_, in, err := c.issuerOf(ctx, o.IssuerID)
	if err != nil {
		c.log.Warn("the issuer of an order to reconcile does not work", orderFields(o, err)...)
		_, err = c.lose(ctx, o, fence, reasonLost, "the reply of the CA was lost, and its issuer does not work at the moment: "+shown(err))
		return err
	}
	finder, ok := in.Issuer.(issuer.Finder)
	switch {
	case ok:
		return c.find(ctx, o, finder, in, fence)
	case in.caps.SerialNumber && o.SerialNumber != "":
		return c.resubmit(ctx, o, in, fence)
	default:
		_, err := c.lose(ctx, o, fence, reasonNoLookup, "the reply of the CA was lost, and this CA offers nothing to look the order up by: "+
			"see at the CA what became of it, then cancel this order; a new one is made only after that")
		return err
	}
}

// find adopts what the CA has of an order, or submits it when the CA has nothing.
func (c *Core) find(ctx context.Context, o store.Order, f issuer.Finder, in *instance, fence uuid.NullUUID) error {
	request, err := c.findRequest(ctx, o)
	if err != nil {
		return err
	}
	callCtx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	found, ok, err := f.FindOrder(callCtx, request)
	if err := c.checkpoint(pointFound, o.ID); err != nil {
		return err
	}
	switch {
	case err != nil:
		c.log.Warn("the CA could not tell what became of an order", orderFields(o, err)...)
		wait, _ := issuer.RetryDelay(err)
		reason := reasonLost
		if p, ok := asPermanent(err); ok && p.Fault == issuer.FaultRequest {
			reason = p.Reason // such as that no look-up will tell: a human has to
		}
		_, err := c.loseFor(ctx, o, fence, wait, reason, "the reply of the CA was lost, and it could not be told yet what became of the order: "+shown(err))
		return err
	case ok:
		_, err := c.settle(ctx, o, answer{submission: found, instance: in, fence: fence})
		return err
	default:
		return c.submitIfAllowed(ctx, o, in, fence)
	}
}

func (c *Core) findRequest(ctx context.Context, o store.Order) (issuer.FindRequest, error) {
	names, err := certcheck.ParseNames(o.Names)
	if err != nil {
		return issuer.FindRequest{}, fmt.Errorf("read names of order %s: %w", o.ID, err)
	}
	csr, err := x509.ParseCertificateRequest(o.CSR)
	if err != nil {
		return issuer.FindRequest{}, fmt.Errorf("read CSR of order %s: %w", o.ID, err)
	}
	r := issuer.FindRequest{
		OrderID: o.ID, CSRSHA256: sha256.Sum256(o.CSR), PublicKey: csr.PublicKey, Names: names, Since: o.CreateTime, LastSubmitted: o.SubmitTime,
	}
	if r.Ref, err = decodeReference(referenceText(o.CAReference)); err != nil {
		return issuer.FindRequest{}, err
	}
	if r.Previous, _, err = c.previousOf(ctx, o); err != nil {
		return issuer.FindRequest{}, err
	}
	if o.SerialNumber != "" {
		if r.SerialNumber, err = issuer.ParseSerial(o.SerialNumber); err != nil {
			return issuer.FindRequest{}, fmt.Errorf("read serial number of order %s: %w", o.ID, err)
		}
	}
	return r, nil
}

// decodeReference reads a CA reference as it travels: JSON, or nothing.
func decodeReference(text string) (issuer.Ref, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // no reference is not an error
	}
	const most = 64 << 10
	if len(text) > most {
		return nil, errs.Field("ca_reference", "has more than %d bytes", most)
	}
	ref := issuer.Ref{}
	if err := json.Unmarshal([]byte(text), &ref); err != nil {
		return nil, errs.Field("ca_reference", "is no JSON object of strings").Wrap(err)
	}
	return ref, nil
}
