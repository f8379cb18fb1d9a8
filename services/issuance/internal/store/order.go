package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/lease"
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

// InsertOrder stores an intent: under the lease of whoever is about to call the CA or, without one, due at once. It is
// false, and nothing is stored, when the id is taken or the guard does not hold. The statement is the lock: of two that
// insert the same id, one does. It raises the collection's revision too. ErrIssuerGone says the same of an issuer that was
// being deleted, and that the transaction is lost.
func InsertOrder(ctx context.Context, q Querier, o Order, g Guard, l uuid.NullUUID, leaseFor time.Duration) (bool, error) {
	n := o.Names
	rows, err := changed(ctx, q, "store order", `WITH stored AS (INSERT INTO orders (id, certificate_id, job_id, agent_id, issuer_id, profile_id, status,
 common_name, dns_names, ip_addresses, email_addresses, uris, extended_key_usages, lifetime_seconds, csr, csr_sha256,
 request_sha256, serial_number, create_time, submit_time, deadline_time, due_time, attempts, lease_id, lease_until,
 account, previous_order_id)
SELECT $1, $2, $3, $4, i.id, p.id, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $27, $20,
 CASE WHEN $21::uuid IS NULL THEN now() ELSE now() + $22::interval END, $28, $21, CASE WHEN $21::uuid IS NOT NULL THEN now() + $22::interval END,
 $25, $26
 FROM issuers i, profiles p
 WHERE i.id = $5 AND i.enabled AND i.delete_time IS NULL AND i.config_hash = $23 AND p.id = $6 AND p.revision = $24
 ON CONFLICT (id) DO NOTHING RETURNING id)
INSERT INTO collection_revisions AS r (collection, shard, revision) SELECT 'orders', pg_backend_pid() % 64, 1 FROM stored
 ON CONFLICT (collection, shard) DO UPDATE SET revision = r.revision + 1`,
		o.ID, o.CertificateID, o.JobID, o.AgentID, o.IssuerID, o.ProfileID, o.Status,
		n.CommonName, list(n.DNSNames), list(n.IPAddresses), list(n.EmailAddresses), list(n.URIs), list(o.ExtendedKeyUsages),
		seconds(o.Lifetime), o.CSR, o.CSRSHA256, o.RequestSHA256, o.SerialNumber, o.CreateTime, o.DeadlineTime, l, leaseFor,
		g.ConfigHash, g.ProfileRevision, o.Account, o.PreviousOrderID, nullTime(o.SubmitTime), o.Attempts)
	if hasCode(err, codeForeignKeyViolation) {
		return false, ErrIssuerGone
	}
	return rows == 1, err
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

func (f OrderFilter) where() *where {
	w := newWhere()
	w.add(len(f.Statuses) > 0, `o.status = ANY($%d)`, f.Statuses)
	w.add(f.CertificateID != "", `o.certificate_id = $%d`, f.CertificateID)
	w.add(f.IssuerID != "", `o.issuer_id = $%d`, f.IssuerID)
	if f.JobID != "" {
		w.conditions = append(w.conditions, `o.job_id <> ''`) // lets the partial index serve a generic plan
		w.add(true, `o.job_id = $%d`, f.JobID)
	}
	w.add(!f.CreatedBefore.IsZero(), `o.create_time < $%d`, f.CreatedBefore)
	w.add(!f.CreatedAfter.IsZero(), `o.create_time > $%d`, f.CreatedAfter)
	return w
}

// ListOrders reads one page more one row.
func ListOrders(ctx context.Context, q Querier, f OrderFilter) ([]Order, error) {
	sql, args, err := listOrdersSQL(f)
	if err != nil {
		return nil, err
	}
	return collect(ctx, q, "list orders", scanOrder, sql, args...)
}

func listOrdersSQL(f OrderFilter) (string, []any, error) {
	return f.where().page(`SELECT `+orderColumns+` FROM orders o`, f.Page)
}

// CountOrders counts what the filter finds.
func CountOrders(ctx context.Context, q Querier, f OrderFilter) (int32, error) {
	return f.where().count(ctx, q, "orders o")
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

// IssueOrder moves an order to its issued state and stores the certificate, in one statement with the collection's
// revision. It is false when the compare-and-set did not hold. ErrExists says that the certificate is another order's.
func IssueOrder(ctx context.Context, q Querier, o Order, m Move, c Certificate) (bool, error) {
	n, err := changed(ctx, q, "store issued certificate", `WITH moved AS (
 UPDATE orders SET status = $5, ca_reference = $6, poll_attempts = $7, next_poll_time = NULL, error_reason = '', error_message = '',
 serial_number = $8, issue_time = $9, end_time = $9, due_time = NULL, lease_id = NULL, lease_until = NULL, ca_key = $14, revision = revision + 1
 WHERE id = $1 AND revision = $2 AND status = ANY($3) AND ($4::uuid IS NULL OR lease_id = $4) RETURNING id, issuer_id, certificate_id),
 raised AS (
 INSERT INTO collection_revisions AS r (collection, shard, revision) SELECT 'orders', pg_backend_pid() % 64, 1 FROM moved
 ON CONFLICT (collection, shard) DO UPDATE SET revision = r.revision + 1)
INSERT INTO issued_certificates (issuer_id, serial_number, order_id, certificate_id, fingerprint_sha256, not_before, not_after, certificate_pem)
 SELECT issuer_id, $8, id, certificate_id, $10, $11, $12, $13 FROM moved`,
		o.ID, o.Revision, m.From, m.Fence, o.Status, reference(o.CAReference), o.PollAttempts, c.SerialNumber, o.IssueTime,
		c.Fingerprint, c.NotBefore, c.NotAfter, c.CertificatePEM, o.CAKey)
	if isUniqueViolation(err) {
		return false, ErrExists
	}
	return n == 1, err
}

// InsertCertificate stores a certificate without moving its order; false when it, or another of the order, is stored.
func InsertCertificate(ctx context.Context, q Querier, c Certificate) (bool, error) {
	n, err := changed(ctx, q, "store certificate", `INSERT INTO issued_certificates (issuer_id, serial_number, order_id, certificate_id,
 fingerprint_sha256, not_before, not_after, certificate_pem) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`,
		c.IssuerID, c.SerialNumber, c.OrderID, c.CertificateID, c.Fingerprint, c.NotBefore, c.NotAfter, c.CertificatePEM)
	return n == 1, err
}

func reference(r json.RawMessage) []byte {
	if len(r) == 0 {
		return []byte(`{}`)
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
