package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/search"
)

// Order is one row of the journal.
type Order struct {
	ID            string
	CertificateID string
	JobID         string
	AgentID       string
	IssuerID      string
	ProfileID     string
	Status        string
	Names         certcheck.RawNames
	// ExtendedKeyUsages and Lifetime are what the profile said when the order was made.
	ExtendedKeyUsages []string
	Lifetime          time.Duration
	CSR               []byte // DER
	CSRSHA256         string // lower-case hex
	RequestSHA256     []byte
	SerialNumber      string
	CAReference       json.RawMessage
	PollAttempts      int32
	NextPollTime      time.Time
	ErrorReason       string
	ErrorMessage      string
	CreateTime        time.Time
	SubmitTime        time.Time
	IssueTime         time.Time
	EndTime           time.Time
	DeadlineTime      time.Time
	DueTime           time.Time
	Attempts          int32
	Revision          int32
	// Account is that of the CA, a hash; CAKey is how the CA's list calls the order.
	Account         string
	CAKey           string
	PreviousOrderID string
}

const orderColumns = `o.id, o.certificate_id, o.job_id, o.agent_id, o.issuer_id, o.profile_id, o.status, o.common_name, o.dns_names,
 o.ip_addresses, o.email_addresses, o.uris, o.extended_key_usages, o.lifetime_seconds, o.csr, o.csr_sha256, o.request_sha256,
 o.serial_number, o.ca_reference, o.poll_attempts, o.next_poll_time, o.error_reason, o.error_message, o.create_time, o.submit_time,
 o.issue_time, o.end_time, o.deadline_time, o.due_time, o.attempts, o.revision, o.account, o.ca_key, o.previous_order_id`

func scanOrder(row pgx.CollectableRow) (Order, error) {
	var o Order
	var nextPoll, submitted, issued, ended, due *time.Time
	var lifetime int64
	var reference []byte
	n := &o.Names
	err := row.Scan(&o.ID, &o.CertificateID, &o.JobID, &o.AgentID, &o.IssuerID, &o.ProfileID, &o.Status, &n.CommonName, &n.DNSNames,
		&n.IPAddresses, &n.EmailAddresses, &n.URIs, &o.ExtendedKeyUsages, &lifetime, &o.CSR, &o.CSRSHA256, &o.RequestSHA256,
		&o.SerialNumber, &reference, &o.PollAttempts, &nextPoll, &o.ErrorReason, &o.ErrorMessage, &o.CreateTime, &submitted,
		&issued, &ended, &o.DeadlineTime, &due, &o.Attempts, &o.Revision, &o.Account, &o.CAKey, &o.PreviousOrderID)
	o.CAReference, o.Lifetime = reference, time.Duration(lifetime)*time.Second
	o.NextPollTime, o.SubmitTime, o.IssueTime, o.EndTime, o.DueTime = timeOf(nextPoll), timeOf(submitted), timeOf(issued), timeOf(ended), timeOf(due)
	return o, err
}

// Guard is what must still be so when an intent is stored: the issuer is there, enabled and configured as the caller
// knows it, and the profile is the one that the request was judged by.
type Guard struct {
	ConfigHash      string
	ProfileRevision int32
}

// Intent is an order that is about to be placed.
type Intent struct {
	Order Order
	Guard Guard
	// Lease is that of whoever is about to call the CA, for LeaseFor; without one the order is due at once.
	Lease    uuid.NullUUID
	LeaseFor time.Duration
}

// InsertOrders stores intents, no two of one id, and answers the ids of those that it stored: the others' ids are taken, or
// their guards do not hold. The statement is the lock: of two that insert the same id, one does. It raises the collection's
// revision too. ErrIssuerGone says that the issuer of one was being deleted, and that the transaction is lost.
func InsertOrders(ctx context.Context, q Querier, intents []Intent) ([]string, error) {
	var c intentColumns
	for _, i := range intents {
		c.add(i)
	}
	stored, err := collect(ctx, q, "store orders", pgx.RowTo[string], `WITH stored AS (INSERT INTO orders (id, certificate_id, job_id, agent_id, issuer_id,
 profile_id, status, common_name, dns_names, ip_addresses, email_addresses, uris, extended_key_usages, lifetime_seconds, csr, csr_sha256,
 request_sha256, serial_number, create_time, submit_time, deadline_time, due_time, attempts, lease_id, lease_until, account, previous_order_id)
SELECT e.id, e.certificate_id, e.job_id, e.agent_id, i.id, p.id, e.status, e.common_name, e.dns_names::text[], e.ip_addresses::text[],
 e.email_addresses::text[], e.uris::text[], e.usages::text[], e.lifetime, e.csr, e.csr_sha256, e.request_sha256, e.serial_number, e.create_time,
 e.submit_time, e.deadline_time, CASE WHEN e.lease_id IS NULL THEN now() ELSE now() + e.lease_for END, e.attempts, e.lease_id,
 CASE WHEN e.lease_id IS NOT NULL THEN now() + e.lease_for END, e.account, e.previous_order_id
 FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[],
  $12::text[], $13::text[], $14::bigint[], $15::bytea[], $16::text[], $17::bytea[], $18::text[], $19::timestamptz[], $20::timestamptz[],
  $21::timestamptz[], $22::integer[], $23::uuid[], $24::interval[], $25::text[], $26::text[], $27::text[], $28::integer[])
  AS e (id, certificate_id, job_id, agent_id, issuer_id, profile_id, status, common_name, dns_names, ip_addresses, email_addresses, uris, usages,
  lifetime, csr, csr_sha256, request_sha256, serial_number, create_time, submit_time, deadline_time, attempts, lease_id, lease_for, account,
  previous_order_id, config_hash, profile_revision)
 JOIN issuers i ON i.id = e.issuer_id AND i.enabled AND i.delete_time IS NULL AND i.config_hash = e.config_hash
 JOIN profiles p ON p.id = e.profile_id AND p.revision = e.profile_revision
 ON CONFLICT (id) DO NOTHING RETURNING id),
 raised AS (`+raiseOrders+` WHERE EXISTS (SELECT FROM stored) `+raiseConflict+`)
SELECT id FROM stored`,
		c.ids, c.certificates, c.jobs, c.agents, c.issuers, c.profiles, c.statuses, c.commonNames, c.dnsNames, c.ipAddresses, c.emails, c.uris, c.usages,
		c.lifetimes, c.csrs, c.csrSums, c.requestSums, c.serials, c.created, c.submitted, c.deadlines, c.attempts, c.leases, c.leaseFor, c.accounts,
		c.previous, c.configHashes, c.profileRevisions)
	if hasCode(err, codeForeignKeyViolation) {
		return nil, ErrIssuerGone
	}
	return stored, err
}

// The statement that raises the revision of the collection of orders, with room for a condition in its middle.
const (
	raiseOrders   = `INSERT INTO collection_revisions AS r (collection, shard, revision) SELECT 'orders', pg_backend_pid() % 64, 1`
	raiseConflict = `ON CONFLICT (collection, shard) DO UPDATE SET revision = r.revision + 1`
)

// intentColumns are the arrays of InsertOrders.
type intentColumns struct {
	ids, certificates, jobs, agents, issuers, profiles, statuses, commonNames, csrSums, serials, accounts, previous, configHashes []string
	// Lists as Postgres writes them: an array of arrays would have to be even.
	dnsNames, ipAddresses, emails, uris, usages []string
	lifetimes                                   []int64
	csrs, requestSums                           [][]byte
	created, deadlines                          []time.Time
	submitted                                   []*time.Time
	attempts, profileRevisions                  []int32
	leases                                      []uuid.NullUUID
	leaseFor                                    []time.Duration
}

func (c *intentColumns) add(i Intent) {
	o, n := i.Order, i.Order.Names
	c.ids, c.certificates, c.jobs, c.agents = append(c.ids, o.ID), append(c.certificates, o.CertificateID), append(c.jobs, o.JobID), append(c.agents, o.AgentID)
	c.issuers, c.profiles, c.statuses = append(c.issuers, o.IssuerID), append(c.profiles, o.ProfileID), append(c.statuses, o.Status)
	c.commonNames, c.dnsNames = append(c.commonNames, n.CommonName), append(c.dnsNames, literal(n.DNSNames))
	c.ipAddresses, c.emails = append(c.ipAddresses, literal(n.IPAddresses)), append(c.emails, literal(n.EmailAddresses))
	c.uris, c.usages = append(c.uris, literal(n.URIs)), append(c.usages, literal(o.ExtendedKeyUsages))
	c.lifetimes, c.csrs, c.csrSums = append(c.lifetimes, seconds(o.Lifetime)), append(c.csrs, o.CSR), append(c.csrSums, o.CSRSHA256)
	c.requestSums, c.serials = append(c.requestSums, o.RequestSHA256), append(c.serials, o.SerialNumber)
	c.created, c.submitted, c.deadlines = append(c.created, o.CreateTime), append(c.submitted, nullTime(o.SubmitTime)), append(c.deadlines, o.DeadlineTime)
	c.attempts, c.leases, c.leaseFor = append(c.attempts, o.Attempts), append(c.leases, i.Lease), append(c.leaseFor, i.LeaseFor)
	c.accounts, c.previous = append(c.accounts, o.Account), append(c.previous, o.PreviousOrderID)
	c.configHashes, c.profileRevisions = append(c.configHashes, i.Guard.ConfigHash), append(c.profileRevisions, i.Guard.ProfileRevision)
}

// arrayQuoting escapes what a quoted element of an array may not have as it is (PostgreSQL manual, section 8.15.6).
var arrayQuoting = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// literal writes a list as Postgres writes an array of text.
func literal(list []string) string {
	quoted := make([]string, 0, len(list))
	for _, s := range list {
		quoted = append(quoted, `"`+arrayQuoting.Replace(s)+`"`)
	}
	return "{" + strings.Join(quoted, ",") + "}"
}

// InsertAdopted stores an order that the CA has already: it is pending, due, and nobody asked for it here. False: the id
// is taken.
func InsertAdopted(ctx context.Context, q Querier, o Order) (bool, error) {
	n := o.Names
	rows, err := changed(ctx, q, "store adopted order", `INSERT INTO orders (id, certificate_id, agent_id, issuer_id, profile_id, status,
 common_name, dns_names, ip_addresses, email_addresses, uris, extended_key_usages, lifetime_seconds, csr, csr_sha256,
 request_sha256, create_time, submit_time, deadline_time, due_time, next_poll_time, ca_reference, account, ca_key)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24) ON CONFLICT (id) DO NOTHING`,
		o.ID, o.CertificateID, o.AgentID, o.IssuerID, o.ProfileID, o.Status,
		n.CommonName, list(n.DNSNames), list(n.IPAddresses), list(n.EmailAddresses), list(n.URIs), list(o.ExtendedKeyUsages),
		seconds(o.Lifetime), o.CSR, o.CSRSHA256, o.RequestSHA256, o.CreateTime, nullTime(o.SubmitTime), o.DeadlineTime, nullTime(o.DueTime),
		nullTime(o.NextPollTime), reference(o.CAReference), o.Account, o.CAKey)
	return rows == 1, err
}

// LastIssued reads the newest order of a certificate that brought one, by issuer and holder of the key. An empty issuer or
// a nil agent is any.
func LastIssued(ctx context.Context, q Querier, certificateID, issuerID string, agentID *string) (Order, error) {
	rows, err := q.Query(ctx, `SELECT `+orderColumns+` FROM orders o WHERE o.certificate_id = $1 AND o.status = 'ISSUED'
 AND ($2 = '' OR o.issuer_id = $2) AND ($3::text IS NULL OR o.agent_id = $3) ORDER BY o.issue_time DESC LIMIT 1`, certificateID, issuerID, agentID)
	if err != nil {
		return Order{}, fmt.Errorf("read last order of certificate: %w", err)
	}
	o, err := pgx.CollectExactlyOneRow(rows, scanOrder)
	return one("read last order of certificate", o, err)
}

// GetOrder reads one.
func GetOrder(ctx context.Context, q Querier, id string) (Order, error) {
	rows, err := q.Query(ctx, `SELECT `+orderColumns+` FROM orders o WHERE o.id = $1`, id)
	if err != nil {
		return Order{}, fmt.Errorf("read order: %w", err)
	}
	o, err := pgx.CollectExactlyOneRow(rows, scanOrder)
	return one("read order", o, err)
}

// GetOrders reads those that exist.
func GetOrders(ctx context.Context, q Querier, ids []string) ([]Order, error) {
	return collect(ctx, q, "read orders", scanOrder, `SELECT `+orderColumns+` FROM orders o WHERE o.id = ANY($1) ORDER BY o.id`, ids)
}

// OrderFilter says what to list.
type OrderFilter struct {
	Statuses      []string
	CertificateID string
	IssuerID      string
	JobID         string
	CreatedBefore time.Time
	CreatedAfter  time.Time
	Page          Page
}

func (f OrderFilter) filter() search.Filter {
	var w search.Filter
	w.Among("o.status", f.Statuses)
	w.Equal("o.certificate_id", f.CertificateID)
	w.Equal("o.issuer_id", f.IssuerID)
	if f.JobID != "" {
		w.Few("o.job_id = ? AND o.job_id <> ''", f.JobID) // as the partial index says
	}
	if !f.CreatedBefore.IsZero() {
		w.Bound("o.create_time", "o.create_time < ?", f.CreatedBefore)
	}
	if !f.CreatedAfter.IsZero() {
		w.Bound("o.create_time", "o.create_time > ?", f.CreatedAfter)
	}
	return w
}

// ListOrders reads one page more one row.
func ListOrders(ctx context.Context, q Querier, f OrderFilter) ([]Order, error) {
	rows, err := search.Find(ctx, q, search.Search{
		Table: search.Table{
			Columns: orderColumns, From: "orders o", Few: []string{"o.certificate_id"},
			Leads: map[string][]string{"o.create_time": {"o.certificate_id", "o.issuer_id", "o.status"}},
		},
		Filter: f.filter(), Order: f.Page.Order, After: f.Page.After, Limit: f.Page.Size + 1,
	}, scanOrder)
	if err != nil {
		return nil, fmt.Errorf("list orders: %w", err)
	}
	return rows, nil
}

// CountOrders counts what the filter finds.
func CountOrders(ctx context.Context, q Querier, f OrderFilter) (int32, error) {
	w := f.filter()
	var n int32
	err := q.QueryRow(ctx, `SELECT count(*) FROM orders o WHERE `+w.SQL(), w.Args()...).Scan(&n)
	return one("count orders", n, err)
}

// Move is a change of one order by compare-and-set.
type Move struct {
	// From are the states that the change may start from.
	From []string
	// Fence, if it is valid, is the lease that has to be held.
	Fence uuid.NullUUID
	// KeepLease leaves the lease as it is, for a change that begins work instead of ending it.
	KeepLease bool
}

// MoveOrder writes o as it is to be, if the stored row still has the revision of o and one of the states. It is false when
// it does not. o.Revision is the revision before; the stored row gets the next.
func MoveOrder(ctx context.Context, q Querier, o Order, m Move) (bool, error) {
	n, err := changed(ctx, q, "change order", `UPDATE orders SET status = $5, ca_reference = $6, poll_attempts = $7, next_poll_time = $8,
 error_reason = $9, error_message = $10, end_time = $11, deadline_time = $12, due_time = $13, submit_time = $14,
 lease_id = CASE WHEN $15 THEN lease_id END, lease_until = CASE WHEN $15 THEN lease_until END, ca_key = $16, revision = revision + 1
 WHERE id = $1 AND revision = $2 AND status = ANY($3) AND ($4::uuid IS NULL OR lease_id = $4)`,
		o.ID, o.Revision, m.From, m.Fence, o.Status, reference(o.CAReference), o.PollAttempts, nullTime(o.NextPollTime),
		o.ErrorReason, o.ErrorMessage, nullTime(o.EndTime), o.DeadlineTime, nullTime(o.DueTime), nullTime(o.SubmitTime), m.KeepLease, o.CAKey)
	return n == 1, err
}

// HastenOrder makes an order that waits for the reconciler due now.
func HastenOrder(ctx context.Context, q Querier, id string) error {
	_, err := changed(ctx, q, "hasten order", `UPDATE orders SET due_time = now() WHERE id = $1 AND status IN ('CREATED', 'UNKNOWN')
 AND due_time > now() AND (lease_until IS NULL OR lease_until <= now())`, id)
	return err
}

// NoteProblem writes what is to be said of an order that has ended.
func NoteProblem(ctx context.Context, q Querier, id string, revision int32, reason, message string) (bool, error) {
	n, err := changed(ctx, q, "note problem of order", `UPDATE orders SET error_reason = $3, error_message = $4, revision = revision + 1
 WHERE id = $1 AND revision = $2 AND end_time IS NOT NULL`, id, revision, reason, message)
	return n == 1, err
}

// Certificate is an issued certificate.
type Certificate struct {
	IssuerID       string
	SerialNumber   string
	OrderID        string
	CertificateID  string
	Fingerprint    string
	NotBefore      time.Time
	NotAfter       time.Time
	CertificatePEM string
}

// Issue is an order whose certificate is there.
type Issue struct {
	// Order is as it is to be, with the revision before.
	Order Order
	// Fence, if it is valid, is the lease that has to be held.
	Fence       uuid.NullUUID
	Certificate Certificate
}

// IssueOrders moves orders, no two of one id, from one of the states to their issued state and stores their certificates, in
// one statement with the collection's revision. It answers the ids of those whose compare-and-set held. ErrExists says that
// one of the certificates is another order's, and that the transaction is lost.
func IssueOrders(ctx context.Context, q Querier, from []string, issues []Issue) ([]string, error) {
	var c issueColumns
	for _, i := range issues {
		c.add(i)
	}
	issued, err := collect(ctx, q, "store issued certificates", pgx.RowTo[string], `WITH moved AS (
 UPDATE orders o SET status = e.status, ca_reference = e.ca_reference, poll_attempts = e.poll_attempts, next_poll_time = NULL, error_reason = '',
 error_message = '', serial_number = e.serial_number, issue_time = e.issue_time, end_time = e.issue_time, due_time = NULL, lease_id = NULL,
 lease_until = NULL, ca_key = e.ca_key, revision = o.revision + 1
 FROM unnest($2::text[], $3::integer[], $4::uuid[], $5::text[], $6::jsonb[], $7::integer[], $8::text[], $9::timestamptz[], $10::text[], $11::text[],
  $12::timestamptz[], $13::timestamptz[], $14::text[]) AS e (id, revision, fence, status, ca_reference, poll_attempts, serial_number, issue_time, ca_key,
  fingerprint, not_before, not_after, pem)
 WHERE o.id = e.id AND o.revision = e.revision AND o.status = ANY($1) AND (e.fence IS NULL OR o.lease_id = e.fence)
 RETURNING o.id, o.issuer_id, o.certificate_id, e.serial_number, e.fingerprint, e.not_before, e.not_after, e.pem),
 stored AS (
 INSERT INTO issued_certificates (issuer_id, serial_number, order_id, certificate_id, fingerprint_sha256, not_before, not_after, certificate_pem)
 SELECT issuer_id, serial_number, id, certificate_id, fingerprint, not_before, not_after, pem FROM moved),
 raised AS (`+raiseOrders+` WHERE EXISTS (SELECT FROM moved) `+raiseConflict+`)
SELECT id FROM moved`,
		from, c.ids, c.revisions, c.fences, c.statuses, c.references, c.polls, c.serials, c.issued, c.keys, c.fingerprints, c.begins, c.ends, c.pems)
	if isUniqueViolation(err) {
		return nil, ErrExists
	}
	return issued, err
}

// issueColumns are the arrays of IssueOrders.
type issueColumns struct {
	ids, statuses, serials, keys, fingerprints, pems []string
	revisions, polls                                 []int32
	fences                                           []uuid.NullUUID
	references                                       []json.RawMessage
	issued, begins, ends                             []time.Time
}

func (c *issueColumns) add(i Issue) {
	o := i.Order
	c.ids, c.statuses, c.revisions, c.fences = append(c.ids, o.ID), append(c.statuses, o.Status), append(c.revisions, o.Revision), append(c.fences, i.Fence)
	c.references, c.polls, c.keys = append(c.references, reference(o.CAReference)), append(c.polls, o.PollAttempts), append(c.keys, o.CAKey)
	c.issued = append(c.issued, o.IssueTime)
	c.serials, c.fingerprints = append(c.serials, i.Certificate.SerialNumber), append(c.fingerprints, i.Certificate.Fingerprint)
	c.begins, c.ends = append(c.begins, i.Certificate.NotBefore), append(c.ends, i.Certificate.NotAfter)
	c.pems = append(c.pems, i.Certificate.CertificatePEM)
}

// InsertCertificate stores a certificate without moving its order; false when it, or another of the order, is stored.
func InsertCertificate(ctx context.Context, q Querier, c Certificate) (bool, error) {
	n, err := changed(ctx, q, "store certificate", `INSERT INTO issued_certificates (issuer_id, serial_number, order_id, certificate_id,
 fingerprint_sha256, not_before, not_after, certificate_pem) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`,
		c.IssuerID, c.SerialNumber, c.OrderID, c.CertificateID, c.Fingerprint, c.NotBefore, c.NotAfter, c.CertificatePEM)
	return n == 1, err
}

func reference(r json.RawMessage) json.RawMessage {
	if len(r) == 0 {
		return json.RawMessage(`{}`)
	}
	return r
}

// CountStuck counts the rows that are not final and that nobody has worked on for an hour after their time. It must be 0.
func CountStuck(ctx context.Context, q Querier) (int, error) {
	var n int
	err := q.QueryRow(ctx, `SELECT (SELECT count(*) FROM orders WHERE due_time < now() - interval '1 hour' AND due_time IS NOT NULL)
 + (SELECT count(*) FROM revocations WHERE due_time < now() - interval '1 hour' AND due_time IS NOT NULL)`).Scan(&n)
	return one("count stuck rows", n, err)
}

// OrderLeases is the journal as a table of due rows.
func OrderLeases() (*lease.Table, error) {
	return lease.New(lease.Config{Table: "orders", State: "status", Group: "issuer_id", Due: []string{"CREATED", "SUBMITTING", "PENDING", "UNKNOWN"}})
}

// RevocationLeases is the table of revocations as due rows.
func RevocationLeases() (*lease.Table, error) {
	return lease.New(lease.Config{Table: "revocations", State: "status", Group: "issuer_id", Due: []string{"PENDING", "AWAITING_APPROVAL"}})
}

// IsNotFound tells whether err is ErrNotFound.
func IsNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
