package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/logx"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

const (
	// sweepOverlap is how far before the last comparison the next one begins: CAs list late, and their clocks differ.
	sweepOverlap = 24 * time.Hour
	// sweepGrace keeps orders out that may be on their way into the journal in this moment.
	sweepGrace = 10 * time.Minute
	// maxSweepPages bounds one comparison: a list that is longer is an error, which says so.
	maxSweepPages = 1000
	// pageTimeout is for one page of a CA's list, which may be many calls; pageTries is how often a CA that is busy is asked for it.
	pageTimeout = 2 * time.Minute
	pageTries   = 5
	sweepLease  = 10 * time.Minute
)

// Statuses of an orphan.
const (
	orphanSeen      = "SEEN"
	orphanOpen      = "OPEN"
	orphanAdopted   = "ADOPTED"
	orphanDismissed = "DISMISSED"
)

// Reasons why an order at a CA is an orphan.
const (
	reasonNotInJournal = "NOT_IN_JOURNAL"
	reasonSecondOrder  = "SECOND_ORDER"
	reasonGivenUp      = "GIVEN_UP_HERE"
	// reasonInDoubt is none: it may be an order whose reply was lost.
	reasonInDoubt = "IN_DOUBT"
)

// SweepOrphans compares the lists of the CAs that have one with the journal, and keeps what the journal does not know as
// orphans. It answers how many are new or have changed. Each CA account is compared once.
func (c *Core) SweepOrphans(ctx context.Context) (found int, err error) {
	issuers, err := store.IssuersOfTypes(ctx, c.deps.DB.Pool, c.listingTypes())
	if err != nil {
		return 0, err
	}
	swept := map[string]bool{}
	var failed error
	for _, i := range issuers {
		if !i.Enabled || !i.DeleteTime.IsZero() {
			continue
		}
		n, err := c.sweepIssuer(ctx, i, swept)
		found += n
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("compare the orders of issuer %s: %w", i.ID, err))
		}
	}
	return found, failed
}

func (c *Core) listingTypes() []string {
	var out []string
	for _, t := range c.deps.Types {
		if t.Capabilities.List {
			out = append(out, t.Name)
		}
	}
	return out
}

func (c *Core) sweepIssuer(ctx context.Context, i store.Issuer, swept map[string]bool) (found int, err error) {
	in, err := c.instances.get(ctx, i)
	if err != nil {
		return 0, err
	}
	lister, ok := in.Issuer.(issuer.Lister)
	if !ok || swept[in.account()] {
		return 0, nil
	}
	swept[in.account()] = true
	mine, err := store.BeginSweep(ctx, c.deps.DB.Pool, i.ID, sweepLease)
	if err != nil || !mine {
		return 0, err
	}
	defer func() { err = errors.Join(err, store.EndSweep(context.WithoutCancel(ctx), c.deps.DB.Pool, i.ID)) }()
	return c.compareAll(ctx, i, in, lister)
}

// compareAll compares all that the CA has taken since the last time. The next time begins before the oldest order whose reply
// was lost: until it is found, what looks like it is no orphan.
func (c *Core) compareAll(ctx context.Context, i store.Issuer, in *instance, lister issuer.Lister) (found int, err error) {
	began := c.now()
	if lost, err := store.OldestLost(ctx, c.deps.DB.Pool, in.account()); err != nil {
		return 0, err
	} else if !lost.IsZero() && lost.Before(began) {
		began = lost
	}
	since, err := store.SweepTime(ctx, c.deps.DB.Pool, i.ID)
	if err != nil {
		return 0, err
	}
	if since.IsZero() {
		since = i.CreateTime
	}
	request := issuer.ListRequest{Since: since.Add(-sweepOverlap)}
	for range maxSweepPages {
		listing, err := c.callList(ctx, lister, request)
		if err != nil {
			return found, err
		}
		n, err := c.compare(ctx, i, in, listing.Orders)
		found += n
		if err != nil {
			return found, err
		}
		if listing.Next == "" {
			if _, err := store.SettleKnown(ctx, c.deps.DB.Pool, i.ID); err != nil {
				return found, err
			}
			return found, store.SetSweepTime(ctx, c.deps.DB.Pool, i.ID, began)
		}
		request.Page = listing.Next
	}
	return found, fmt.Errorf("the CA lists more than %d pages of orders since %s", maxSweepPages, request.Since.Format(time.RFC3339))
}

// callList reads one page. A CA, or an account, that is busy is asked again when it wants to be.
func (c *Core) callList(ctx context.Context, l issuer.Lister, r issuer.ListRequest) (issuer.Listing, error) {
	for try := 1; ; try++ {
		listing, err := c.listPage(ctx, l, r)
		wait, again := issuer.RetryDelay(err)
		if err == nil || !again || try >= pageTries || wait > pageTimeout {
			return listing, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return issuer.Listing{}, err
		}
	}
}

func (c *Core) listPage(ctx context.Context, l issuer.Lister, r issuer.ListRequest) (issuer.Listing, error) {
	callCtx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	return l.ListOrders(callCtx, r)
}

// compare holds one page of a CA's list against the journal.
func (c *Core) compare(ctx context.Context, i store.Issuer, in *instance, listed []issuer.ListedOrder) (found int, err error) {
	keys, ids := make([]string, 0, len(listed)), make([]string, 0, len(listed))
	for _, o := range listed {
		keys = append(keys, o.Key)
		if o.OrderID != "" {
			ids = append(ids, o.OrderID)
		}
	}
	known, err := store.KnownOrders(ctx, c.deps.DB.Pool, in.account(), i.ID, keys, ids)
	if err != nil {
		return 0, err
	}
	lost, err := store.LostNames(ctx, c.deps.DB.Pool, in.account())
	if err != nil {
		return 0, err
	}
	journal := newJournalView(known, lost)
	var settled []string
	err = c.deps.DB.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		found = 0
		for _, o := range listed {
			reason, message := journal.judge(o)
			switch {
			case reason == reasonInDoubt:
				continue
			case reason == "":
				settled = append(settled, o.Key)
				continue
			case !o.PlacedAt.IsZero() && o.PlacedAt.After(c.now().Add(-sweepGrace)):
				continue
			}
			isNew, err := c.keepOrphan(ctx, tx, i, in, o, reason, message)
			if err != nil {
				return err
			}
			if isNew {
				found++
			}
		}
		ended, err := store.SettleOrphans(ctx, tx, in.account(), settled)
		if err != nil || found+ended == 0 {
			return err
		}
		return revision.Bump(ctx, tx, collectionOrders)
	})
	return found, err
}

func (c *Core) keepOrphan(ctx context.Context, tx pgx.Tx, i store.Issuer, in *instance, o issuer.ListedOrder, reason, message string) (bool, error) {
	id, err := newID("ord")
	if err != nil {
		return false, err
	}
	row := store.Orphan{
		ID: id, IssuerID: i.ID, Account: in.account(), CAKey: clip(o.Key), CAReference: encodeReference(o.Ref), OrderID: o.OrderID,
		Status: orphanOpen, CAState: string(o.State), CommonName: clip(o.CommonName), SerialNumber: o.SerialNumber, Reason: reason,
		Message: clip(message + withDetail(o.Detail)), PlacedTime: o.PlacedAt, CreateTime: c.now(),
	}
	for _, name := range o.DNSNames {
		row.DNSNames = append(row.DNSNames, clip(name))
	}
	if o.PlacedAt.IsZero() && reason == reasonNotInJournal {
		row.Status = orphanSeen // the CA does not say when: it may be of this moment
	}
	stored, err := store.UpsertOrphan(ctx, tx, row, c.now().Add(-sweepGrace))
	if err != nil || stored == "" || stored == row.ID && row.Status == orphanSeen {
		return false, err
	}
	row.ID = stored
	c.log.Warn("the CA has an order that the journal does not account for", logx.ID(logx.KeyIssuer, i.ID),
		zap.String("ca_key", row.CAKey), zap.String("reason", reason), logx.ID(logx.KeyOrder, o.OrderID))
	return true, emit(ctx, tx, auditlog.Event(ctx, auditlog.Entry{Action: "order.orphan_found", ResourceType: "order", ResourceID: row.ID,
		Outcome: auditlog.Failure, Data: orphanData(row)}))
}

func withDetail(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

func orphanData(o store.Orphan) map[string]any {
	return map[string]any{
		"issuer_id": o.IssuerID, "ca_key": o.CAKey, "ca_state": o.CAState, "common_name": o.CommonName, "serial_number": o.SerialNumber,
		"reason": o.Reason, "placed_for": o.OrderID,
	}
}

// journalView is what the journal knows of a page of a CA's list.
type journalView struct {
	byKey map[string][]store.KnownOrder
	byID  map[string]store.KnownOrder
	lost  map[string]bool // names of orders whose reply was lost
}

func newJournalView(known []store.KnownOrder, lost []string) journalView {
	v := journalView{byKey: map[string][]store.KnownOrder{}, byID: map[string]store.KnownOrder{}, lost: map[string]bool{}}
	for _, name := range lost {
		v.lost[name] = name != ""
	}
	for _, o := range known {
		v.byID[o.ID] = o
		if o.CAKey != "" {
			v.byKey[o.CAKey] = append(v.byKey[o.CAKey], o)
		}
	}
	return v
}

// judge tells why an order at the CA is an orphan; no reason: it is none. What the CA has refused costs nobody anything.
func (v journalView) judge(o issuer.ListedOrder) (reason, message string) {
	if o.State == issuer.Rejected {
		return "", ""
	}
	if known := v.byKey[o.Key]; len(known) > 0 {
		for _, k := range known {
			if k.Status == Issued || !final(k.Status) {
				return "", ""
			}
		}
		k := known[0]
		return reasonGivenUp, fmt.Sprintf("order %s is %s here, and %s at the CA", k.ID, k.Status, o.State)
	}
	k, ok := v.byID[o.OrderID]
	switch {
	case o.OrderID == "" && v.lost[o.CommonName]:
		return reasonInDoubt, "" // the CA does not say whose it is, and it may be one that is being looked for
	case !ok || o.OrderID == "":
		return reasonNotInJournal, "nobody placed this order through certctl, or its record is lost"
	case k.CAKey != "":
		return reasonSecondOrder, fmt.Sprintf("the CA has another order for order %s already", k.ID)
	case final(k.Status):
		return reasonGivenUp, fmt.Sprintf("order %s is %s here, and %s at the CA", k.ID, k.Status, o.State)
	default:
		return reasonInDoubt, "" // its reply is being waited for, or was lost and is being looked for
	}
}

// GetOrphan reads one.
func (c *Core) GetOrphan(ctx context.Context, id string) (store.Orphan, error) {
	o, err := store.GetOrphan(ctx, c.deps.DB.Pool, id)
	if errors.Is(err, store.ErrNotFound) {
		return store.Orphan{}, errs.New(errs.NotFound, "ORDER_NOT_FOUND", "order %s not found", id)
	}
	return o, err
}

// ListOrphans reads one page more one row of those that wait for a decision, and the number of all if asked. They are ordered
// as orders are.
func (c *Core) ListOrphans(ctx context.Context, f store.OrderFilter, total bool) ([]store.Orphan, *int32, error) {
	rows, err := store.ListOrphans(ctx, c.deps.DB.Pool, f)
	if err != nil || !total {
		return rows, nil, err
	}
	n, err := store.CountOrphans(ctx, c.deps.DB.Pool, f)
	return rows, &n, err
}

// CountOrphans counts those that wait for a decision.
func (c *Core) CountOrphans(ctx context.Context) (int32, error) {
	return store.CountOrphans(ctx, c.deps.DB.Pool, store.OrderFilter{})
}

// Adopt takes an orphan into the journal, as a pending order under the same id: it is polled, and what comes is checked and
// recorded as always. It is for the certificate of the order that the CA says it was placed for, with that order's key; or
// for the one that is named, whose last order says which names and profile hold, and then the caller has the key.
func (c *Core) Adopt(ctx context.Context, tx pgx.Tx, id, certificateID string) (store.Order, error) {
	if o, err := store.GetOrder(ctx, tx, id); err == nil {
		if certificateID != "" && o.CertificateID != certificateID {
			return store.Order{}, errs.New(errs.Conflict, "ORPHAN_DECIDED", "order %s was adopted for certificate %s", id, o.CertificateID)
		}
		return o, nil
	} else if !store.IsNotFound(err) {
		return store.Order{}, err
	}
	orphan, err := store.GetOrphan(ctx, tx, id)
	if store.IsNotFound(err) {
		return store.Order{}, errs.New(errs.NotFound, "ORDER_NOT_FOUND", "order %s not found", id)
	}
	if err != nil {
		return store.Order{}, err
	}
	o, err := c.adopted(ctx, tx, orphan, certificateID)
	if err != nil {
		return store.Order{}, err
	}
	decided, err := store.DecideOrphan(ctx, tx, id, orphanAdopted)
	if err != nil {
		return store.Order{}, err
	}
	if !decided {
		return store.Order{}, orphanState(orphan)
	}
	stored, err := store.InsertAdopted(ctx, tx, o)
	if err != nil || !stored {
		return store.Order{}, errors.Join(err, orphanState(orphan))
	}
	o.Revision = 1
	events := []outbox.Event{orderPending(o, c.now()), auditOrder(ctx, o, "order.adopted", orphanData(orphan))}
	if err := emit(ctx, tx, events...); err != nil {
		return store.Order{}, err
	}
	return o, revision.Bump(ctx, tx, collectionOrders)
}

func orphanState(o store.Orphan) error {
	return errs.New(errs.Conflict, "ORPHAN_DECIDED", "orphan %s is %s: it cannot be decided again", o.ID, o.Status).With("status", o.Status)
}

// adopted makes the order that an orphan becomes.
func (c *Core) adopted(ctx context.Context, q store.Querier, orphan store.Orphan, certificateID string) (store.Order, error) {
	like, own, err := c.orderLike(ctx, q, orphan, certificateID)
	if err != nil {
		return store.Order{}, err
	}
	i, err := store.GetIssuer(ctx, q, orphan.IssuerID)
	if err != nil {
		return store.Order{}, err
	}
	known, err := store.KnownOrders(ctx, q, orphan.Account, orphan.IssuerID, []string{orphan.CAKey}, nil)
	if err != nil {
		return store.Order{}, err
	}
	for _, k := range known {
		if k.Status == Issued || !final(k.Status) {
			return store.Order{}, errs.New(errs.Conflict, "ORPHAN_ACCOUNTED_FOR", "order %s is this order of the CA by now", k.ID)
		}
	}
	now := c.now()
	o := store.Order{
		ID: orphan.ID, CertificateID: like.CertificateID, IssuerID: orphan.IssuerID, ProfileID: like.ProfileID, Status: Pending,
		Names: like.Names, ExtendedKeyUsages: like.ExtendedKeyUsages, Lifetime: like.Lifetime, CSR: []byte{}, RequestSHA256: digest(orphan.ID),
		CreateTime: now, SubmitTime: orphan.PlacedTime, NextPollTime: now, CAReference: orphan.CAReference, Account: orphan.Account, CAKey: orphan.CAKey,
	}
	if own {
		o.AgentID, o.CSR, o.CSRSHA256 = like.AgentID, like.CSR, like.CSRSHA256
	}
	patience := cmp.Or(i.PendingDeadline, c.Capabilities(i).PendingDeadline, defaultPendingDeadline)
	o.DeadlineTime = now.Add(patience)
	o.DueTime = c.lookAfter(o.DeadlineTime)
	return o, nil
}

// orderLike finds the order that says what the adopted one is for. own: it is the very order that the CA names.
func (c *Core) orderLike(ctx context.Context, q store.Querier, orphan store.Orphan, certificateID string) (like store.Order, own bool, err error) {
	if orphan.OrderID != "" {
		like, err = store.GetOrder(ctx, q, orphan.OrderID)
		if err == nil && (certificateID == "" || certificateID == like.CertificateID) {
			return like, true, nil
		}
		if err != nil && !store.IsNotFound(err) {
			return store.Order{}, false, err
		}
	}
	if certificateID == "" {
		return store.Order{}, false, errs.Field("certificate_id", "is needed: the CA does not say what this order was placed for")
	}
	like, err = store.LastIssued(ctx, q, certificateID, "", nil)
	if store.IsNotFound(err) {
		return store.Order{}, false, errs.Field("certificate_id", "certctl has not issued anything for %q yet, so it does not know which names it may have", certificateID)
	}
	if err != nil {
		return store.Order{}, false, err
	}
	return like, false, checkOrphanNames(orphan, like)
}

// checkOrphanNames refuses early what the check of the certificate would refuse later.
func checkOrphanNames(orphan store.Orphan, like store.Order) error {
	names, err := certcheck.ParseNames(like.Names)
	if err != nil {
		return fmt.Errorf("read names of order %s: %w", like.ID, err)
	}
	allowed := map[string]bool{names.CommonName: true}
	for _, n := range names.DNSNames {
		allowed[n] = true
	}
	for _, n := range append([]string{orphan.CommonName}, orphan.DNSNames...) {
		if n != "" && !allowed[n] {
			return errs.Field("certificate_id", "certificate %s does not have the name %q of this order", like.CertificateID, n)
		}
	}
	return nil
}

// Dismiss notes that an orphan needs nothing.
func (c *Core) Dismiss(ctx context.Context, tx pgx.Tx, id, why string) (store.Orphan, error) {
	orphan, err := store.GetOrphan(ctx, tx, id)
	if store.IsNotFound(err) {
		return store.Orphan{}, errs.New(errs.NotFound, "ORDER_NOT_FOUND", "there is no orphan %s", id)
	}
	if err != nil || orphan.Status == orphanDismissed {
		return orphan, err
	}
	decided, err := store.DecideOrphan(ctx, tx, id, orphanDismissed)
	if err != nil {
		return store.Orphan{}, err
	}
	if !decided {
		return store.Orphan{}, orphanState(orphan)
	}
	orphan.Status = orphanDismissed
	orphan.Revision++
	data := orphanData(orphan)
	data["why"] = why
	if err := emit(ctx, tx, auditlog.Event(ctx, auditlog.Entry{Action: "order.dismissed", ResourceType: "order", ResourceID: id, Data: data})); err != nil {
		return store.Orphan{}, err
	}
	return orphan, revision.Bump(ctx, tx, collectionOrders)
}
