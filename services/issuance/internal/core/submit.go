package core

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// The labelled points of an order's way at which a test may kill the process.
const (
	pointChecked   = "checked"       // nothing is stored
	pointIntent    = "intent stored" // the CA has not been called
	pointCalled    = "CA called"     // its answer is in memory only
	pointStored    = "result stored" // the caller has not heard of it
	pointReconcile = "reconciling"   // the CA is about to be asked what became of an order
	pointFound     = "CA searched"   // what it said of an order whose reply was lost is in memory only
	pointPolled    = "poll received" // what asyncpoller heard from the CA is in memory only
)

// Checkpoints gives all of them.
func Checkpoints() []string {
	return []string{pointChecked, pointIntent, pointCalled, pointStored, pointReconcile, pointFound, pointPolled}
}

// chainTimeout bounds the question for a CA's own certificates, which connectors remember: a CA that hangs must not hold up
// what others have delivered.
const chainTimeout = 5 * time.Second

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
		o, stored, err := c.place(ctx, o, csr, ru)
		if err != nil || stored {
			return o, err
		}
		known, err := c.knownOrder(ctx, r, nil)
		if err == nil || !store.IsNotFound(err) {
			return known, err
		}
		c.known.forget(r.IssuerID, r.ProfileID)
	}
	return store.Order{}, errs.New(errs.Unavailable, "RULES_CHANGING", "issuer %s or profile %s is being changed: try again", r.IssuerID, r.ProfileID)
}

// place stores the intent and calls the CA. A CA that answers later and has enough callers already is left to the
// reconciler, which is told: then the order answers as CREATED. stored is false when the intent was not stored.
func (c *Core) place(ctx context.Context, o store.Order, csr *x509.CertificateRequest, ru rules) (placed store.Order, stored bool, err error) {
	l := uuid.NullUUID{UUID: uuid.New(), Valid: true}
	if ru.instance.caps.Async {
		if c.turns.take(o.IssuerID) {
			defer c.turns.giveBack(o.IssuerID)
		} else {
			l = uuid.NullUUID{}
			o.Status, o.SubmitTime, o.Attempts = Created, time.Time{}, 0
		}
	}
	stored, err = c.storeIntent(ctx, o, ru, l)
	if err != nil || !stored {
		return store.Order{}, false, err
	}
	o.Revision = 1
	if !l.Valid {
		c.orderKick.Kick()
		return o, true, nil
	}
	placed, err = c.call(ctx, o, checkedCSR{CertificateRequest: csr, signed: true}, ru.instance, l)
	return placed, true, err
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
		DeadlineTime: now.Add(c.cfg.OrderDeadline), DueTime: now, Attempts: 1, Account: ru.instance.account(),
	}
	if o.PreviousOrderID, err = c.previousOrder(ctx, o, ru.instance); err != nil {
		return store.Order{}, rules{}, nil, err
	}
	if ru.instance.caps.SerialNumber {
		serial, err := issuer.NewSerialNumber()
		if err != nil {
			return store.Order{}, rules{}, nil, err
		}
		o.SerialNumber = issuer.FormatSerial(serial)
	}
	return o, ru, csr, c.checkpoint(pointChecked, o.ID)
}

// previousOrder finds the order that a new one renews at the CA: the last one of the same certificate and holder of the key,
// at the same issuer, whose certificate is not revoked. (Should the issuer be at another account by now, the CA does not know
// the old order, and its connector makes a new one.)
func (c *Core) previousOrder(ctx context.Context, o store.Order, in *instance) (string, error) {
	if !in.caps.Reissue {
		return "", nil
	}
	last, err := store.LastIssued(ctx, c.deps.DB.Pool, o.CertificateID, o.IssuerID, &o.AgentID)
	if store.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	revoked, err := store.IsRevoked(ctx, c.deps.DB.Pool, last.IssuerID, last.SerialNumber)
	if err != nil || revoked {
		return "", err
	}
	return last.ID, nil
}

func (c *Core) storeIntent(ctx context.Context, o store.Order, ru rules, l uuid.NullUUID) (stored bool, err error) {
	action := "order.submitted"
	if !l.Valid {
		action = "order.created"
	}
	stored, err = c.journal.insert(ctx, intent{
		Intent: store.Intent{Order: o, Guard: ru.guard(), Lease: l, LeaseFor: c.cfg.orderLease(ru.instance)},
		events: []outbox.Event{auditOrder(ctx, o, action, nil)},
	})
	if errors.Is(err, store.ErrIssuerGone) {
		return false, nil
	}
	return stored, err
}

// checkedCSR is the CSR of an order; signed: its own signature has been checked since it was read.
type checkedCSR struct {
	*x509.CertificateRequest

	signed bool
}

// call asks the CA and stores what it answers. The intent is stored, so the caller's leaving stops nothing: a certificate
// that the CA makes now has to be stored.
func (c *Core) call(ctx context.Context, o store.Order, csr checkedCSR, in *instance, fence uuid.NullUUID) (store.Order, error) {
	ctx = context.WithoutCancel(ctx)
	if err := c.checkpoint(pointIntent, o.ID); err != nil {
		return store.Order{}, err
	}
	callCtx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout) // the lease is longer, whatever it is that takes time
	defer cancel()
	order, err := c.submitRequest(callCtx, o, csr)
	if err != nil {
		return store.Order{}, err
	}
	s, callErr := in.Submit(callCtx, order)
	if err := c.checkpoint(pointCalled, o.ID); err != nil {
		return store.Order{}, err
	}
	return c.settleSurely(ctx, o, answer{submission: s, err: callErr, instance: in, fence: fence, key: csr.PublicKey})
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

func (c *Core) submitRequest(ctx context.Context, o store.Order, csr checkedCSR) (issuer.SubmitRequest, error) {
	names, err := certcheck.ParseNames(o.Names)
	if err != nil {
		return issuer.SubmitRequest{}, fmt.Errorf("read names of order %s: %w", o.ID, err)
	}
	r := issuer.SubmitRequest{
		OrderID: o.ID, CSR: csr.CertificateRequest, CSRSigned: csr.signed, Names: names, Lifetime: o.Lifetime, RequestedAt: o.CreateTime, ExtKeyUsages: extKeyUsages(o.ExtendedKeyUsages),
	}
	if o.SerialNumber != "" {
		if r.SerialNumber, err = issuer.ParseSerial(o.SerialNumber); err != nil {
			return issuer.SubmitRequest{}, fmt.Errorf("read serial number of order %s: %w", o.ID, err)
		}
	}
	r.Previous, r.PreviousCertificate, err = c.previousOf(ctx, o)
	return r, err
}

// previousOf reads what the CA needs to know of the order that this one renews; nil if there is none.
func (c *Core) previousOf(ctx context.Context, o store.Order) (issuer.Ref, *x509.Certificate, error) {
	if o.PreviousOrderID == "" {
		return nil, nil, nil
	}
	previous, err := store.GetOrder(ctx, c.deps.DB.Pool, o.PreviousOrderID)
	if err != nil {
		return nil, nil, fmt.Errorf("read order %s, which order %s renews: %w", o.PreviousOrderID, o.ID, err)
	}
	ref, err := decodeReference(referenceText(previous.CAReference))
	if err != nil {
		return nil, nil, err
	}
	certificate, err := store.GetCertificateOfOrder(ctx, c.deps.DB.Pool, previous.ID)
	if err != nil {
		return nil, nil, err
	}
	leaf, err := parseLeaf(certificate)
	return ref, leaf, err
}

// answer is what a CA said of an order.
type answer struct {
	submission issuer.Submission
	err        error
	instance   *instance
	fence      uuid.NullUUID    // the lease that the answer was asked for under
	polls      int32            // how often the CA has been asked, if it is known
	key        crypto.PublicKey // that of the order's CSR, if it has been read
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
		o.CAKey = orElse(a.instance.orderKey(a.submission.Ref), o.CAKey)
	}
	o.PollAttempts = max(o.PollAttempts, a.polls)
	if a.err != nil {
		return c.settleError(ctx, o, a)
	}
	switch a.submission.State {
	case issuer.Issued:
		return c.issue(ctx, o, a)
	case issuer.Pending:
		return c.pend(ctx, o, a)
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
				o.CAKey = orElse(a.instance.orderKey(u.Ref), o.CAKey)
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
	before := issued
	issued.Revision++
	moved, err := c.journal.issue(ctx, result{
		Issue: store.Issue{Order: before, Fence: a.fence, Certificate: certificate},
		events: []outbox.Event{
			certificateIssued(issued, chain.CertificatePEM(), chain.ChainPEM()),
			orderChanged(issued),
			auditOrder(ctx, issued, "order.issued", map[string]any{
				"fingerprint_sha256": certificate.Fingerprint, "not_after": certificate.NotAfter.UTC().Format(time.RFC3339),
			}),
		},
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
	return o, c.checkpoint(pointStored, o.ID)
}

// checkIssued holds an issued certificate against the order.
func (c *Core) checkIssued(ctx context.Context, o store.Order, a answer) (certcheck.Chain, error) {
	names, err := certcheck.ParseNames(o.Names)
	if err != nil {
		return certcheck.Chain{}, fmt.Errorf("read names of order: %w", err)
	}
	s := a.submission
	bundle := make([]byte, 0, len(s.CertificatePEM)+len(s.ChainPEM)+1)
	bundle = append(append(append(bundle, s.CertificatePEM...), '\n'), s.ChainPEM...)
	key := a.key
	if key == nil {
		if key, err = keyOf(o, bundle); err != nil {
			return certcheck.Chain{}, err
		}
	}
	now := c.now()
	want := certcheck.Issued{
		PublicKey: key, Names: names, Now: now, NotAfter: now.Add(o.Lifetime + tolerance(o.Lifetime)),
		ExtKeyUsages: extKeyUsages(o.ExtendedKeyUsages),
	}
	if o.SerialNumber != "" {
		if want.SerialNumber, err = issuer.ParseSerial(o.SerialNumber); err != nil {
			return certcheck.Chain{}, fmt.Errorf("read serial number of order: %w", err)
		}
	}
	if s.Made != nil {
		return *s.Made, certcheck.CheckMade(*s.Made, want)
	}
	want.Roots = anchors(ctx, a.instance)
	return certcheck.CheckIssued(bundle, want)
}

// anchors gives the root of a CA that tells its own certificates.
func anchors(ctx context.Context, in *instance) []*x509.Certificate {
	p, ok := in.Issuer.(issuer.ChainProvider)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, chainTimeout)
	defer cancel()
	chain, err := p.Chain(ctx)
	if err != nil || len(chain) == 0 {
		return nil
	}
	return chain[len(chain)-1:]
}

// keyOf gives the key that a certificate has to be for. An order that was adopted without its CSR has none: then it is that
// of the one certificate in the bundle that is no CA's.
func keyOf(o store.Order, bundle []byte) (crypto.PublicKey, error) {
	if len(o.CSR) > 0 {
		csr, err := x509.ParseCertificateRequest(o.CSR)
		if err != nil {
			return nil, fmt.Errorf("read CSR of order: %w", err)
		}
		return csr.PublicKey, nil
	}
	certs, err := certcheck.ParseBundle(bundle)
	if err != nil {
		return nil, err
	}
	certs = slices.DeleteFunc(certs, func(c *x509.Certificate) bool { return c.IsCA })
	if len(certs) != 1 {
		return nil, &certcheck.Mismatch{What: "bundle", Detail: fmt.Sprintf("holds %d certificates that are no CA's, and the order has no CSR to choose by", len(certs))}
	}
	return certs[0].PublicKey, nil
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
