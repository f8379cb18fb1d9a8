package core

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// The labelled points of an order's way at which a test may kill the process.
const (
	pointChecked   = "checked"       // nothing is stored
	pointIntent    = "intent stored" // the CA has not been called
	pointCalled    = "CA called"     // its answer is in memory only
	pointStored    = "result stored" // the caller has not heard of it
	pointReconcile = "reconciling"   // the CA is about to be asked what became of an order
)

// SubmitRequest is an order to be placed.
type SubmitRequest struct {
	CSRRequest

	OrderID       string
	CertificateID string
	JobID         string
	AgentID       string
}

// hash binds the order's id to what was asked for.
func (r SubmitRequest) hash() []byte {
	n := r.Names
	parts := []string{r.OrderID, r.CertificateID, r.JobID, r.AgentID, r.IssuerID, r.ProfileID, r.KeyAlgorithm, n.CommonName, string(r.CSR)}
	for _, l := range [][]string{n.DNSNames, n.IPAddresses, n.EmailAddresses, n.URIs} {
		parts = append(parts, hex.EncodeToString(digest(l...)))
	}
	return digest(parts...)
}

// Submit places an order: it stores the intent, calls the CA, and stores the answer. An order that is known answers as it
// stands; the same id with another content is a conflict. A request that breaks the rules is an errs.Invalid and leaves
// nothing behind. When the answer could not be stored, Reconcile finds the order.
func (c *Core) Submit(ctx context.Context, r SubmitRequest) (store.Order, error) {
	// What is remembered of issuer and profile may be stale. The second round reads it anew.
	for range 2 {
		o, ru, csr, err := c.prepare(ctx, r)
		if err != nil {
			return c.knownOrder(ctx, r, err)
		}
		l := uuid.New()
		stored, err := c.storeIntent(ctx, o, ru, l)
		if err != nil {
			return store.Order{}, err
		}
		if stored {
			o.Revision = 1
			return c.call(ctx, o, csr, ru.instance, uuid.NullUUID{UUID: l, Valid: true})
		}
		known, err := c.knownOrder(ctx, r, nil)
		if err == nil || !store.IsNotFound(err) {
			return known, err
		}
		c.known.forget(r.IssuerID, r.ProfileID)
	}
	return store.Order{}, errs.New(errs.Unavailable, "RULES_CHANGING", "issuer %s or profile %s is being changed: try again", r.IssuerID, r.ProfileID)
}

// knownOrder answers for an order that was placed before. When there is none it returns the error that was given, or
// store.ErrNotFound.
func (c *Core) knownOrder(ctx context.Context, r SubmitRequest, otherwise error) (store.Order, error) {
	if otherwise != nil && errs.KindOf(otherwise) != errs.Invalid && errs.KindOf(otherwise) != errs.Unavailable {
		return store.Order{}, otherwise
	}
	o, err := store.GetOrder(ctx, c.deps.DB.Pool, r.OrderID)
	if store.IsNotFound(err) && otherwise != nil {
		return store.Order{}, otherwise
	}
	if err != nil {
		return store.Order{}, err
	}
	if !bytes.Equal(o.RequestSHA256, r.hash()) {
		return store.Order{}, errs.New(errs.Conflict, "ORDER_ID_REUSED", "order %s was placed with another content", o.ID)
	}
	if o.Status == Pending && !o.DeadlineTime.After(c.now()) {
		return c.watchAgain(ctx, o)
	}
	return o, nil
}

// prepare judges a request and makes the intent of it.
func (c *Core) prepare(ctx context.Context, r SubmitRequest) (store.Order, rules, *x509.CertificateRequest, error) {
	ru, err := c.rulesFor(ctx, r.IssuerID, r.ProfileID)
	if err != nil {
		return store.Order{}, rules{}, nil, err
	}
	names, csr, err := ru.judge(r.CSRRequest)
	if err != nil {
		// The rules may have been changed to allow this.
		c.known.forget(r.IssuerID, r.ProfileID)
		if ru, err = c.rulesFor(ctx, r.IssuerID, r.ProfileID); err == nil {
			names, csr, err = ru.judge(r.CSRRequest)
		}
		if err != nil {
			return store.Order{}, rules{}, nil, err
		}
	}
	now := c.now()
	sum := sha256.Sum256(csr.Raw)
	o := store.Order{
		ID: r.OrderID, CertificateID: r.CertificateID, JobID: r.JobID, AgentID: r.AgentID, IssuerID: r.IssuerID, ProfileID: ru.profile.ID,
		Status: Submitting, Names: names.Raw(), ExtendedKeyUsages: ru.profile.ExtendedKeyUsages, Lifetime: ru.profile.MaxValidity,
		CSR: csr.Raw, CSRSHA256: hex.EncodeToString(sum[:]), RequestSHA256: r.hash(), CreateTime: now, SubmitTime: now,
		DeadlineTime: now.Add(c.cfg.OrderDeadline), DueTime: now, Attempts: 1,
	}
	if ru.instance.caps.SerialNumber {
		serial, err := issuer.NewSerialNumber()
		if err != nil {
			return store.Order{}, rules{}, nil, err
		}
		o.SerialNumber = issuer.FormatSerial(serial)
	}
	return o, ru, csr, c.checkpoint(pointChecked)
}

func (c *Core) storeIntent(ctx context.Context, o store.Order, ru rules, l uuid.UUID) (stored bool, err error) {
	err = c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if stored, err = store.InsertOrder(ctx, tx, o, ru.guard(), l, c.cfg.orderLease(ru.instance)); err != nil || !stored {
			return err
		}
		return emit(ctx, tx, auditOrder(ctx, o, "order.submitted", nil))
	})
	if errors.Is(err, store.ErrIssuerGone) {
		return false, nil
	}
	return stored, err
}

// call asks the CA and stores what it answers. The intent is stored, so the caller's leaving stops nothing: a certificate
// that the CA makes now has to be stored.
func (c *Core) call(ctx context.Context, o store.Order, csr *x509.CertificateRequest, in *instance, fence uuid.NullUUID) (store.Order, error) {
	ctx = context.WithoutCancel(ctx)
	if err := c.checkpoint(pointIntent); err != nil {
		return store.Order{}, err
	}
	request, err := submitRequest(o, csr)
	if err != nil {
		return store.Order{}, err
	}
	callCtx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	s, callErr := in.Submit(callCtx, request)
	if err := c.checkpoint(pointCalled); err != nil {
		return store.Order{}, err
	}
	return c.settleSurely(ctx, o, answer{submission: s, err: callErr, instance: in, fence: fence})
}

// errNotStored marks that the answer of a CA is known and the database did not take it.
var errNotStored = errors.New("store answer of the CA")

// settleSurely is settle, repeated while the database does not take the answer: what is in memory now may be the only
// trace of a certificate. Of a CA that offers no way to look an order up, nothing else could bring it back. Repeating is
// harmless, as each try is a compare-and-set under the lease: where the lease is short, because the order may be submitted
// again meanwhile, who comes second finds what the first stored.
func (c *Core) settleSurely(ctx context.Context, o store.Order, a answer) (store.Order, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	backoff := lease.Backoff{Base: 100 * time.Millisecond, Cap: 2 * time.Second}
	for attempt := 1; ; attempt++ {
		settled, err := c.settle(ctx, o, a)
		if !errors.Is(err, errNotStored) {
			return settled, err
		}
		c.log.Warn("the answer of the CA could not be stored; it is tried again", orderFields(o, err)...)
		wait, _ := backoff.Next(attempt)
		select {
		case <-ctx.Done():
			return settled, err
		case <-time.After(wait):
		}
	}
}

func submitRequest(o store.Order, csr *x509.CertificateRequest) (issuer.SubmitRequest, error) {
	names, err := certcheck.ParseNames(o.Names)
	if err != nil {
		return issuer.SubmitRequest{}, fmt.Errorf("read names of order %s: %w", o.ID, err)
	}
	r := issuer.SubmitRequest{
		OrderID: o.ID, CSR: csr, Names: names, Lifetime: o.Lifetime, RequestedAt: o.CreateTime, ExtKeyUsages: extKeyUsages(o.ExtendedKeyUsages),
	}
	if o.SerialNumber != "" {
		if r.SerialNumber, err = issuer.ParseSerial(o.SerialNumber); err != nil {
			return issuer.SubmitRequest{}, fmt.Errorf("read serial number of order %s: %w", o.ID, err)
		}
	}
	return r, nil
}

// answer is what a CA said of an order.
type answer struct {
	submission issuer.Submission
	err        error
	instance   *instance
	fence      uuid.NullUUID // the lease that the answer was asked for under
	polls      int32         // how often the CA has been asked, if it is known
}

// Problems that orders end with or wait for.
const (
	reasonUnavailable = "CA_UNAVAILABLE"
	reasonLost        = "CA_REPLY_LOST"
	reasonNoLookup    = "ORDER_OUTCOME_UNKNOWN"
	reasonMismatch    = "CERTIFICATE_MISMATCH"
	reasonRejected    = "CA_REJECTED"
	reasonNotAllowed  = "NOT_ALLOWED_ANY_MORE"
	reasonDuplicate   = "CERTIFICATE_DUPLICATE"
)

// settle stores an answer: every way out of SUBMITTING, UNKNOWN and PENDING goes through here.
func (c *Core) settle(ctx context.Context, o store.Order, a answer) (store.Order, error) {
	if ref := encodeReference(a.submission.Ref); ref != nil {
		o.CAReference = ref
	}
	o.PollAttempts = max(o.PollAttempts, a.polls)
	if a.err != nil {
		return c.settleError(ctx, o, a)
	}
	switch a.submission.State {
	case issuer.Issued:
		return c.issue(ctx, o, a)
	case issuer.Pending:
		return c.pend(ctx, o, a.fence, a.submission.RetryAfter)
	case issuer.Rejected:
		return c.end(ctx, o, a.fence, Rejected, reasonRejected, a.submission.Detail)
	default:
		return c.lose(ctx, o, a.fence, reasonLost, "the CA answered with a state that is not known")
	}
}

func (c *Core) settleError(ctx context.Context, o store.Order, a answer) (store.Order, error) {
	switch issuer.OutcomeOf(a.err) {
	case issuer.OutcomePermanent:
		p, _ := asPermanent(a.err)
		c.log.Warn("the CA refused an order", orderFields(o, a.err)...)
		if p.Fault == issuer.FaultConfiguration {
			return c.end(ctx, o, a.fence, Failed, p.Reason, p.Message)
		}
		return c.end(ctx, o, a.fence, Rejected, p.Reason, p.Message)
	case issuer.OutcomeRetry:
		return c.postpone(ctx, o, a)
	default:
		if u, ok := issuer.AsUnknownOutcome(a.err); ok {
			if ref := encodeReference(u.Ref); ref != nil {
				o.CAReference = ref
			}
		}
		c.log.Warn("the reply of the CA was lost", orderFields(o, a.err)...)
		return c.lose(ctx, o, a.fence, reasonLost, "the reply of the CA was lost: it is asked what became of the order")
	}
}

func encodeReference(r issuer.Ref) json.RawMessage {
	if len(r) == 0 {
		return nil
	}
	clean := make(issuer.Ref, len(r))
	for name, value := range r {
		clean[strings.ReplaceAll(name, "\x00", "\uFFFD")] = strings.ReplaceAll(value, "\x00", "\uFFFD")
	}
	b, err := json.Marshal(clean)
	if err != nil {
		return nil // a map of strings always encodes
	}
	return b
}

// issue checks what came back and makes it the order's certificate.
func (c *Core) issue(ctx context.Context, o store.Order, a answer) (store.Order, error) {
	chain, err := c.checkIssued(ctx, o, a)
	if err != nil {
		c.log.Warn("the CA issued something else than what was asked for", orderFields(o, err)...)
		return c.end(ctx, o, a.fence, Failed, reasonMismatch, clip(err.Error()))
	}
	certificate := recordOf(o, chain)
	issued := o
	issued.Status, issued.IssueTime = Issued, c.now()
	issued.EndTime = issued.IssueTime
	issued.SerialNumber = certificate.SerialNumber
	issued.ErrorReason, issued.ErrorMessage, issued.NextPollTime, issued.DueTime = "", "", time.Time{}, time.Time{}
	moved := false
	err = c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		moved, err = store.IssueOrder(ctx, tx, issued, store.Move{From: sources(Issued), Fence: a.fence}, certificate)
		if err != nil || !moved {
			return err
		}
		issued.Revision = o.Revision + 1
		return emit(ctx, tx,
			certificateIssued(issued, chain.CertificatePEM(), chain.ChainPEM()),
			orderChanged(issued),
			auditOrder(ctx, issued, "order.issued", map[string]any{
				"fingerprint_sha256": certificate.Fingerprint, "not_after": certificate.NotAfter.UTC().Format(time.RFC3339),
			}))
	})
	if errors.Is(err, store.ErrExists) {
		return c.end(ctx, o, a.fence, Failed, reasonDuplicate, "the CA answered with a certificate that another order has: "+issued.SerialNumber)
	}
	return c.moved(ctx, issued, moved, err)
}

// recordOf is what the journal keeps of an issued certificate.
func recordOf(o store.Order, chain certcheck.Chain) store.Certificate {
	leaf := chain.Leaf
	sum := sha256.Sum256(leaf.Raw)
	return store.Certificate{
		IssuerID: o.IssuerID, SerialNumber: issuer.FormatSerial(leaf.SerialNumber), OrderID: o.ID, CertificateID: o.CertificateID,
		Fingerprint: hex.EncodeToString(sum[:]), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, CertificatePEM: string(chain.CertificatePEM()),
	}
}

// moved answers with the order after a compare-and-set: as it was written or, when somebody else was first, as it is.
func (c *Core) moved(ctx context.Context, o store.Order, moved bool, err error) (store.Order, error) {
	if err != nil {
		return store.Order{}, fmt.Errorf("%w: %w", errNotStored, err)
	}
	if !moved {
		return store.GetOrder(ctx, c.deps.DB.Pool, o.ID)
	}
	return o, c.checkpoint(pointStored)
}

// checkIssued holds an issued certificate against the order.
func (c *Core) checkIssued(ctx context.Context, o store.Order, a answer) (certcheck.Chain, error) {
	names, err := certcheck.ParseNames(o.Names)
	if err != nil {
		return certcheck.Chain{}, fmt.Errorf("read names of order: %w", err)
	}
	csr, err := x509.ParseCertificateRequest(o.CSR)
	if err != nil {
		return certcheck.Chain{}, fmt.Errorf("read CSR of order: %w", err)
	}
	now := c.now()
	want := certcheck.Issued{
		PublicKey: csr.PublicKey, Names: names, Now: now, NotAfter: now.Add(o.Lifetime + tolerance(o.Lifetime)),
		ExtKeyUsages: extKeyUsages(o.ExtendedKeyUsages),
	}
	if o.SerialNumber != "" {
		if want.SerialNumber, err = issuer.ParseSerial(o.SerialNumber); err != nil {
			return certcheck.Chain{}, fmt.Errorf("read serial number of order: %w", err)
		}
	}
	if p, ok := a.instance.Issuer.(issuer.ChainProvider); ok {
		chain, err := p.Chain(ctx)
		if err == nil && len(chain) > 0 {
			want.Roots = chain[len(chain)-1:]
		}
	}
	s := a.submission
	bundle := make([]byte, 0, len(s.CertificatePEM)+len(s.ChainPEM)+1)
	bundle = append(append(append(bundle, s.CertificatePEM...), '\n'), s.ChainPEM...)
	return certcheck.CheckIssued(bundle, want)
}

// tolerance is what a CA that counts in whole days may add to a lifetime.
func tolerance(lifetime time.Duration) time.Duration {
	return min(max(lifetime/50, time.Minute), 24*time.Hour)
}

func extKeyUsage(name string) (x509.ExtKeyUsage, bool) {
	switch name {
	case ServerAuth:
		return x509.ExtKeyUsageServerAuth, true
	case "CLIENT_AUTH":
		return x509.ExtKeyUsageClientAuth, true
	case "CODE_SIGNING":
		return x509.ExtKeyUsageCodeSigning, true
	case "EMAIL_PROTECTION":
		return x509.ExtKeyUsageEmailProtection, true
	case "TIME_STAMPING":
		return x509.ExtKeyUsageTimeStamping, true
	default:
		return 0, false
	}
}

func extKeyUsages(names []string) []x509.ExtKeyUsage {
	var out []x509.ExtKeyUsage
	for _, n := range names {
		if u, ok := extKeyUsage(n); ok {
			out = append(out, u)
		}
	}
	return out
}

// clip makes a foreign text fit to be stored: valid UTF-8 without NUL, which Postgres takes neither in text nor in jsonb,
// and not longer than a screen.
func clip(s string) string {
	const most = 1000
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) <= most {
		return s
	}
	// What is cut in the middle of a character is dropped.
	return strings.ToValidUTF8(s[:most], "") + "…"
}
