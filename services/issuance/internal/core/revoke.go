package core

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/rpcctx"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// The states of a revocation.
const (
	RevocationPending     = "PENDING"
	RevocationAwaiting    = "AWAITING_APPROVAL" // a human at the CA has to approve
	RevocationDone        = "DONE"
	RevocationFailed      = "FAILED"
	RevocationUnsupported = "UNSUPPORTED" // neither the CA nor a CRL of ours can tell anybody
)

// RevokeRequest says what to revoke.
type RevokeRequest struct {
	CertificateID  string
	SerialNumbers  []string // empty: all that were issued and have not expired
	Reason         int16    // CRLReason, RFC 5280, section 5.3.1
	RevocationTime time.Time
	RequestID      string // of the request that it comes from; empty: that of the context

	// answered: who asks hears from the answer what CAs with a CRL of ours know, and is sent no event of it. Should the answer be lost,
	// the event that brings the same revocation has one sent.
	answered bool
	by       rpcctx.Caller // whom the record names; zero: the caller of the context
}

func (r RevokeRequest) check() error {
	var v errs.Violations
	if r.Reason < 0 || !issuer.Reason(uint8(r.Reason)).Valid() {
		v.Add("reason", "%d is no reason to revoke for", r.Reason)
	}
	for i, s := range r.SerialNumbers {
		if _, err := issuer.ParseSerial(s); err != nil {
			v.Add(fmt.Sprintf("serial_numbers[%d]", i), "%s", err.Error())
		}
	}
	return v.Err()
}

// tellFirst is how long a stored revocation is left to the call that brought it, or that is on its way beside the event.
// After that RetryRevocation has it.
const tellFirst = 10 * time.Second

// Revoke stores revocations and tells the CAs at once. The revocation holds from here on: CRLs list it whether the CA has
// been told or not, and what could not be told before ctx ends is told by RetryRevocation. done is true when every CA
// knows. A CA whose CRL is made here knows as soon as the revocation is stored: the next question for its CRL has it.
func (c *Core) Revoke(ctx context.Context, r RevokeRequest) (done bool, err error) {
	if err := r.check(); err != nil {
		return false, err
	}
	r.RequestID, r.by, r.answered = orElse(r.RequestID, rpcctx.RequestID(ctx)), rpcctx.Actor(ctx), true
	rows, err := c.journal.revoke(ctx, r)
	if err != nil {
		return false, err
	}
	c.crlKick.Kick()
	return c.tell(ctx, r, rows)
}

// StoreRevocations stores the revocations of what was issued for certificates, and answers them all as they are stored. A
// certificate that is revoked already keeps its first reason; a serial number that was not issued here has nothing to
// revoke. However many there are, they are read and written together; several of one certificate come one after the other.
func (c *Core) StoreRevocations(ctx context.Context, tx pgx.Tx, requests ...RevokeRequest) ([]store.Revocation, error) {
	for i := range requests {
		if err := requests[i].check(); err != nil {
			return nil, err
		}
		if requests[i].RevocationTime.IsZero() {
			requests[i].RevocationTime = c.now()
		}
		if requests[i].by == (rpcctx.Caller{}) {
			requests[i].by = rpcctx.Actor(ctx)
		}
	}
	var all []store.Revocation
	for len(requests) > 0 {
		first, again := firsts(requests, func(r RevokeRequest) string { return r.CertificateID })
		rows, err := c.storeRevocations(ctx, tx, pick(requests, first))
		if err != nil {
			return nil, err
		}
		all, requests = append(all, rows...), pick(requests, again)
	}
	return all, nil
}

// storeRevocations stores those of requests that are about different certificates.
func (c *Core) storeRevocations(ctx context.Context, tx pgx.Tx, requests []RevokeRequest) ([]store.Revocation, error) {
	wanted, known, origins, err := c.revocationsOf(ctx, tx, requests)
	if err != nil {
		return nil, err
	}
	ids, err := store.InsertRevocations(ctx, tx, wanted)
	if err != nil {
		return nil, err
	}
	var events []outbox.Event
	rows := make([]store.Revocation, 0, len(wanted)+len(known))
	for _, row := range wanted {
		id, stored := ids[row.Serial()]
		if !stored {
			known = append(known, row.Serial())
			continue
		}
		row.ID = id
		rows = append(rows, row)
		events = append(events, from(origins[row.CertificateID], recorded(ctx, row, origins[row.CertificateID]))...)
	}
	standing, err := store.RevocationsOf(ctx, tx, known)
	if err != nil {
		return nil, err
	}
	for _, row := range standing {
		rows = append(rows, row)
		events = append(events, from(origins[row.CertificateID], ended(row, origins[row.CertificateID]))...)
	}
	return rows, emit(ctx, tx, events...)
}

// revocationsOf makes the revocations that requests ask for, gives the certificates that are revoked already, and tells which request
// each certificate has.
func (c *Core) revocationsOf(ctx context.Context, tx pgx.Tx, requests []RevokeRequest) (wanted []store.Revocation, known []store.SerialNumber,
	origins map[string]RevokeRequest, err error,
) {
	origins = make(map[string]RevokeRequest, len(requests))
	var sought store.Sought
	for _, r := range requests {
		origins[r.CertificateID] = r
		if len(r.SerialNumbers) == 0 {
			sought.CertificateIDs = append(sought.CertificateIDs, r.CertificateID)
		}
		for _, serial := range r.SerialNumbers {
			sought.Of, sought.SerialNumbers = append(sought.Of, r.CertificateID), append(sought.SerialNumbers, serial)
		}
	}
	certificates, err := store.Revocable(ctx, tx, sought, c.now())
	if err != nil {
		return nil, nil, nil, err
	}
	for _, certificate := range certificates {
		if certificate.Stands {
			known = append(known, store.SerialNumber{IssuerID: certificate.IssuerID, SerialNumber: certificate.SerialNumber})
			continue
		}
		row, err := c.revocation(certificate, origins[certificate.CertificateID])
		if err != nil {
			return nil, nil, nil, err
		}
		wanted = append(wanted, row)
	}
	return wanted, known, origins, nil
}

func (c *Core) revocation(certificate store.Revoked, r RevokeRequest) (store.Revocation, error) {
	id, err := newID("rev")
	if err != nil {
		return store.Revocation{}, err
	}
	row := store.Revocation{
		ID: id, IssuerID: certificate.IssuerID, SerialNumber: certificate.SerialNumber, CertificateID: certificate.CertificateID,
		Reason: r.Reason, RevocationTime: r.RevocationTime, NotAfter: certificate.NotAfter, Status: RevocationPending, DueTime: c.now().Add(tellFirst),
	}
	caps := c.Capabilities(store.Issuer{ID: certificate.IssuerID, Type: certificate.IssuerType, ConfigHash: certificate.ConfigHash})
	switch {
	case caps.CRL:
		row.Status, row.DueTime = RevocationDone, time.Time{}
	case caps.Revocation:
	default:
		row.Status, row.DueTime, row.LastError = RevocationUnsupported, time.Time{}, "this CA has no revocation that certctl could use"
	}
	return row, nil
}

// recorded tells others of a revocation that was stored.
func recorded(ctx context.Context, row store.Revocation, r RevokeRequest) []outbox.Event {
	return append([]outbox.Event{auditRevocation(rpcctx.WithOnBehalfOf(ctx, r.by), row, "revocation.recorded", auditlog.Success)}, ended(row, r)...)
}

// ended tells inventory, where it may think that it goes on, of a revocation that is over.
func ended(row store.Revocation, r RevokeRequest) []outbox.Event {
	switch {
	case row.Status == RevocationDone && !r.answered:
		return []outbox.Event{revocationDone(row)}
	case row.Status == RevocationFailed, row.Status == RevocationUnsupported:
		return []outbox.Event{revocationChanged(row)}
	default:
		return nil
	}
}

// from names the request that events come from.
func from(r RevokeRequest, events []outbox.Event) []outbox.Event {
	for i := range events {
		events[i].RequestID = r.RequestID
	}
	return events
}

func auditRevocation(ctx context.Context, r store.Revocation, action string, outcome auditv1.Event_Outcome) outbox.Event {
	data := map[string]any{
		"certificate_id": r.CertificateID, "issuer_id": r.IssuerID, "serial_number": r.SerialNumber,
		"reason": issuer.Reason(uint8(r.Reason)).String(), "status": r.Status,
	}
	if r.LastError != "" {
		data["error"] = r.LastError
	}
	return auditlog.Event(ctx, auditlog.Entry{Action: action, ResourceType: "revocation", ResourceID: r.ID, Outcome: outcome, Data: data})
}

func revocationDone(r store.Revocation) outbox.Event {
	return outbox.Event{
		Type: "revocation.done", ResourceType: "certificate", ResourceID: r.CertificateID, Destination: toInventory,
		Payload: &issuancev1.RevocationDone{CertificateId: r.CertificateID, SerialNumbers: []string{r.SerialNumber}},
	}
}

// revocationChanged tells inventory why a certificate is not revoked at its CA.
func revocationChanged(r store.Revocation) outbox.Event {
	state := map[string]issuancev1.RevocationChanged_State{
		RevocationAwaiting: issuancev1.RevocationChanged_AWAITING_APPROVAL, RevocationFailed: issuancev1.RevocationChanged_FAILED,
		RevocationUnsupported: issuancev1.RevocationChanged_UNSUPPORTED,
	}[r.Status]
	return outbox.Event{
		Type: "revocation.changed", ResourceType: "certificate", ResourceID: r.CertificateID, Destination: toInventory,
		Payload: &issuancev1.RevocationChanged{
			CertificateId: r.CertificateID, SerialNumbers: []string{r.SerialNumber}, State: state, Message: r.LastError,
		},
	}
}

// tell tells the CAs of a request's revocations, as far as one call's time goes, and answers whether all that was asked for is
// known to them.
func (c *Core) tell(ctx context.Context, r RevokeRequest, rows []store.Revocation) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	wanted := map[string]bool{}
	for _, s := range r.SerialNumbers {
		wanted[s] = true
	}
	done := true
	for _, row := range rows {
		delete(wanted, row.SerialNumber)
		if ctx.Err() != nil {
			return false, nil
		}
		known, err := c.tellNow(ctx, row)
		if err != nil {
			c.log.Warn("a CA could not be told of a revocation; it is told later", revocationFields(row, err)...)
		}
		done = done && known
	}
	return done && len(wanted) == 0, nil
}

func (c *Core) tellNow(ctx context.Context, row store.Revocation) (bool, error) {
	if row.Status != RevocationPending {
		return row.Status == RevocationDone, nil
	}
	l := uuid.New()
	mine, err := store.LeaseRevocation(ctx, c.deps.DB.Pool, row.ID, l, c.cfg.leaseFor())
	if err != nil || !mine {
		return false, err
	}
	return c.revokeAtCA(ctx, row, lease.Lease{ID: row.ID, LeaseID: l, Attempts: 1})
}

// RetryRevocation works on one revocation that is due: it is the lease handler of the revocations.
func (c *Core) RetryRevocation(ctx context.Context, l lease.Lease) error {
	row, err := store.GetRevocation(ctx, c.deps.DB.Pool, l.ID)
	if err != nil {
		return err
	}
	_, err = c.revokeAtCA(ctx, row, l)
	return err
}

func revocationBackoff() lease.Backoff { return lease.Backoff{Base: 10 * time.Second, Cap: time.Hour} }

// approvalBackoff is how often a CA is asked whether a human has approved a revocation.
func approvalBackoff() lease.Backoff { return lease.Backoff{Base: time.Minute, Cap: time.Hour} }

// revokeAtCA calls the CA under the row's lease and stores what it said, also when ctx ends before that. A CA that is away
// is asked for ever: a revocation is never given up for that.
func (c *Core) revokeAtCA(ctx context.Context, row store.Revocation, l lease.Lease) (done bool, err error) {
	answered, callErr := c.callRevoke(ctx, row)
	ctx = context.WithoutCancel(ctx)
	p, permanent := asPermanent(callErr)
	switch {
	case callErr == nil && answered.State == issuer.AwaitingApproval:
		return false, c.awaitApproval(ctx, row, l, answered)
	case callErr == nil:
		row.Status, row.LastError = RevocationDone, clip(answered.Detail)
		return true, c.endRevocation(ctx, row, l, "revocation.done", auditlog.Success, revocationDone(row))
	case permanent && p.Fault == issuer.FaultRequest:
		c.log.Warn("a CA refused a revocation", revocationFields(row, callErr)...)
		row.Status, row.LastError = RevocationFailed, clip(p.Message)
		return false, c.endRevocation(ctx, row, l, "revocation.failed", auditlog.Failure, revocationChanged(row))
	default:
		c.log.Warn("a CA could not be told of a revocation", revocationFields(row, callErr)...)
		wait, _ := revocationBackoff().Next(l.Attempts)
		if d, ok := issuer.RetryDelay(callErr); ok {
			wait = max(wait, d)
		}
		row.DueTime, row.LastError = c.now().Add(wait), shown(callErr)
		_, err := store.DelayRevocation(ctx, c.deps.DB.Pool, row, l.LeaseID)
		return false, err
	}
}

// awaitApproval keeps a revocation that a human at the CA has to approve. The first time it is an event.
func (c *Core) awaitApproval(ctx context.Context, row store.Revocation, l lease.Lease, answered issuer.Revocation) error {
	first := row.Status != RevocationAwaiting
	wait, _ := approvalBackoff().Next(l.Attempts)
	row.Status, row.DueTime = RevocationAwaiting, c.now().Add(max(wait, answered.RetryAfter))
	row.LastError = clip(orElse(answered.Detail, "somebody at the CA has to approve the revocation"))
	if request := encodeReference(answered.Request); request != nil {
		row.CARequest = request
	}
	return c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		kept, err := store.DelayRevocation(ctx, tx, row, l.LeaseID)
		if err != nil || !kept || !first {
			return err
		}
		return emit(ctx, tx, auditRevocation(ctx, row, "revocation.awaiting_approval", auditlog.Success), revocationChanged(row))
	})
}

func (c *Core) endRevocation(ctx context.Context, row store.Revocation, l lease.Lease, action string, outcome auditv1.Event_Outcome, more ...outbox.Event) error {
	return c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		ended, err := store.EndRevocation(ctx, tx, row.ID, l.LeaseID, row.Status, row.LastError)
		if err != nil {
			return err
		}
		if !ended {
			return lease.ErrLost
		}
		return emit(ctx, tx, append(more, auditRevocation(ctx, row, action, outcome))...)
	})
}

func (c *Core) callRevoke(ctx context.Context, row store.Revocation) (issuer.Revocation, error) {
	_, in, err := c.issuerOf(ctx, row.IssuerID)
	if err != nil {
		return issuer.Revocation{}, err
	}
	revoker, ok := in.Issuer.(issuer.Revoker)
	if !ok {
		return issuer.Revocation{}, issuer.Permanent("REVOCATION_UNSUPPORTED", "this CA has no revocation that certctl could use")
	}
	request, err := c.revokeRequest(ctx, row)
	if err != nil {
		return issuer.Revocation{}, err
	}
	told, err := reasonFor(in.caps, request.Reason)
	if err != nil {
		return issuer.Revocation{}, err
	}
	wanted := request.Reason
	request.Reason = told
	callCtx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	answered, err := revoker.Revoke(callCtx, request)
	if err == nil && told != wanted && answered.State == issuer.Revoked {
		answered.Detail = fmt.Sprintf("the CA was told %s, as it does not know %s", told, wanted)
	}
	return answered, err
}

// reasonFor gives the reason that a CA is told. To revoke matters more than the word for it, so a reason that the CA does not
// know becomes unspecified; a hold alone is something else than a revocation.
func reasonFor(caps issuer.Capabilities, wanted issuer.Reason) (issuer.Reason, error) {
	switch {
	case len(caps.Reasons) == 0 || slices.Contains(caps.Reasons, wanted):
		return wanted, nil
	case wanted == issuer.CertificateHold:
		return 0, issuer.Permanent("REASON_NOT_SUPPORTED", "this CA cannot put a certificate on hold")
	default:
		return issuer.Unspecified, nil
	}
}

func (c *Core) revokeRequest(ctx context.Context, row store.Revocation) (issuer.RevokeRequest, error) {
	certificate, err := store.GetCertificate(ctx, c.deps.DB.Pool, row.IssuerID, row.SerialNumber)
	if err != nil {
		return issuer.RevokeRequest{}, err
	}
	leaf, err := parseLeaf(certificate)
	if err != nil {
		return issuer.RevokeRequest{}, err
	}
	o, err := store.GetOrder(ctx, c.deps.DB.Pool, certificate.OrderID)
	if err != nil {
		return issuer.RevokeRequest{}, err
	}
	ref, err := decodeReference(referenceText(o.CAReference))
	if err != nil {
		return issuer.RevokeRequest{}, err
	}
	request, err := decodeReference(referenceText(row.CARequest))
	return issuer.RevokeRequest{
		Ref: ref, Certificate: leaf, Reason: issuer.Reason(uint8(row.Reason)), RevokedAt: row.RevocationTime, Request: request,
	}, err
}

func parseLeaf(c store.Certificate) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(c.CertificatePEM))
	if block == nil {
		return nil, errors.New("the stored certificate is no PEM")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read stored certificate: %w", err)
	}
	return leaf, nil
}

func revocationFields(r store.Revocation, err error) []zap.Field {
	return []zap.Field{zap.String("revocation_id", r.ID), logx.ID(logx.KeyIssuer, r.IssuerID), logx.ID(logx.KeyCertificate, r.CertificateID), zap.Error(err)}
}
