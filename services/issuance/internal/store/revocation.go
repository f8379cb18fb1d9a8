package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Revocation is a revoked certificate.
type Revocation struct {
	ID             string
	IssuerID       string
	SerialNumber   string
	CertificateID  string
	Reason         int16
	RevocationTime time.Time
	NotAfter       time.Time
	Status         string
	LastError      string
	DueTime        time.Time
	CRLNumber      *int64
	CARequest      json.RawMessage // how the CA calls the request for approval
}

const revocationColumns = `r.id, r.issuer_id, r.serial_number, r.certificate_id, r.reason, r.revocation_time, r.not_after, r.status,
 r.last_error, r.due_time, r.crl_number, r.ca_request`

func scanRevocation(row pgx.CollectableRow) (Revocation, error) {
	var r Revocation
	var due *time.Time
	var request []byte
	err := row.Scan(&r.ID, &r.IssuerID, &r.SerialNumber, &r.CertificateID, &r.Reason, &r.RevocationTime, &r.NotAfter, &r.Status,
		&r.LastError, &due, &r.CRLNumber, &request)
	r.DueTime, r.CARequest = timeOf(due), request
	return r, err
}

const certificateColumns = `c.issuer_id, c.serial_number, c.order_id, c.certificate_id, c.fingerprint_sha256, c.not_before, c.not_after, c.certificate_pem`

func scanCertificate(row pgx.CollectableRow) (Certificate, error) {
	return pgx.RowToStructByPos[Certificate](row)
}

// IssuedCertificates reads what was issued for a certificate: the named serial numbers, or, without any, all that end
// after the time.
func IssuedCertificates(ctx context.Context, q Querier, certificateID string, serials []string, after time.Time) ([]Certificate, error) {
	return collect(ctx, q, "read issued certificates", scanCertificate, `SELECT `+certificateColumns+` FROM issued_certificates c
 WHERE c.certificate_id = $1 AND (c.serial_number = ANY($2) OR (cardinality($2::text[]) = 0 AND c.not_after > $3))
 ORDER BY c.issuer_id, c.serial_number`, certificateID, list(serials), after)
}

// GetCertificate reads one.
func GetCertificate(ctx context.Context, q Querier, issuerID, serial string) (Certificate, error) {
	rows, err := q.Query(ctx, `SELECT `+certificateColumns+` FROM issued_certificates c WHERE c.issuer_id = $1 AND c.serial_number = $2`, issuerID, serial)
	if err != nil {
		return Certificate{}, fmt.Errorf("read issued certificate: %w", err)
	}
	c, err := pgx.CollectExactlyOneRow(rows, scanCertificate)
	return one("read issued certificate", c, err)
}

// GetCertificateOfOrder reads what an order brought.
func GetCertificateOfOrder(ctx context.Context, q Querier, orderID string) (Certificate, error) {
	rows, err := q.Query(ctx, `SELECT `+certificateColumns+` FROM issued_certificates c WHERE c.order_id = $1`, orderID)
	if err != nil {
		return Certificate{}, fmt.Errorf("read issued certificate: %w", err)
	}
	c, err := pgx.CollectExactlyOneRow(rows, scanCertificate)
	return one("read issued certificate", c, err)
}

// AnyCertificate reads one that an issuer issued, to see which CA it was.
func AnyCertificate(ctx context.Context, q Querier, issuerID string) (Certificate, error) {
	rows, err := q.Query(ctx, `SELECT `+certificateColumns+` FROM issued_certificates c WHERE c.issuer_id = $1
 ORDER BY c.issuer_id, c.serial_number LIMIT 1`, issuerID)
	if err != nil {
		return Certificate{}, fmt.Errorf("read issued certificate: %w", err)
	}
	c, err := pgx.CollectExactlyOneRow(rows, scanCertificate)
	return one("read issued certificate", c, err)
}

// InsertRevocation stores a revocation and gives the id under which it is stored; none when the certificate is revoked
// already: the first one stays, unless the CA refused it and this one is newer.
func InsertRevocation(ctx context.Context, q Querier, r Revocation) (id string, err error) {
	err = q.QueryRow(ctx, `INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason,
 revocation_time, not_after, status, last_error, due_time, end_time)
 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, CASE WHEN $10::timestamptz IS NULL THEN now() END)
 ON CONFLICT (issuer_id, serial_number) DO UPDATE SET reason = EXCLUDED.reason, revocation_time = EXCLUDED.revocation_time, status = EXCLUDED.status,
 last_error = '', due_time = EXCLUDED.due_time, end_time = EXCLUDED.end_time, attempts = 0, ca_request = '{}'
 WHERE revocations.status IN ('FAILED', 'UNSUPPORTED') AND EXCLUDED.revocation_time > revocations.revocation_time RETURNING id`,
		r.ID, r.IssuerID, r.SerialNumber, r.CertificateID, r.Reason,
		r.RevocationTime, r.NotAfter, r.Status, r.LastError, nullTime(r.DueTime)).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return one("store revocation", id, err)
}

// GetRevocation reads one by its id.
func GetRevocation(ctx context.Context, q Querier, id string) (Revocation, error) {
	rows, err := q.Query(ctx, `SELECT `+revocationColumns+` FROM revocations r WHERE r.id = $1`, id)
	if err != nil {
		return Revocation{}, fmt.Errorf("read revocation: %w", err)
	}
	r, err := pgx.CollectExactlyOneRow(rows, scanRevocation)
	return one("read revocation", r, err)
}

// GetRevocationOf reads the revocation of a certificate.
func GetRevocationOf(ctx context.Context, q Querier, issuerID, serial string) (Revocation, error) {
	rows, err := q.Query(ctx, `SELECT `+revocationColumns+` FROM revocations r WHERE r.issuer_id = $1 AND r.serial_number = $2`, issuerID, serial)
	if err != nil {
		return Revocation{}, fmt.Errorf("read revocation: %w", err)
	}
	r, err := pgx.CollectExactlyOneRow(rows, scanRevocation)
	return one("read revocation", r, err)
}

// IsRevoked tells whether a certificate is, or is about to be.
func IsRevoked(ctx context.Context, q Querier, issuerID, serial string) (bool, error) {
	var revoked bool
	err := q.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM revocations WHERE issuer_id = $1 AND serial_number = $2)`, issuerID, serial).Scan(&revoked)
	return one("look for revocation", revoked, err)
}

// GetRevocations reads the revocations of certificates of one managed certificate.
func GetRevocations(ctx context.Context, q Querier, certificateID string) ([]Revocation, error) {
	return collect(ctx, q, "read revocations", scanRevocation, `SELECT `+revocationColumns+` FROM revocations r
 WHERE r.certificate_id = $1 ORDER BY r.id`, certificateID)
}

// LeaseRevocation takes the lease of one revocation that is not final, for work right now; false when another has it.
func LeaseRevocation(ctx context.Context, q Querier, id string, l uuid.UUID, leaseFor time.Duration) (bool, error) {
	n, err := changed(ctx, q, "lease revocation", `UPDATE revocations SET lease_id = $2, lease_until = now() + $3::interval,
 attempts = attempts + 1 WHERE id = $1 AND status IN ('PENDING', 'AWAITING_APPROVAL') AND (lease_until IS NULL OR lease_until <= now())`, id, l, leaseFor)
	return n == 1, err
}

// EndRevocation moves a pending revocation to a final state under its lease.
func EndRevocation(ctx context.Context, q Querier, id string, l uuid.UUID, status, lastError string) (bool, error) {
	n, err := changed(ctx, q, "end revocation", `UPDATE revocations SET status = $3, last_error = $4, end_time = now(), due_time = NULL,
 lease_id = NULL, lease_until = NULL WHERE id = $1 AND lease_id = $2 AND status IN ('PENDING', 'AWAITING_APPROVAL')`, id, l, status, lastError)
	return n == 1, err
}

// DelayRevocation gives a revocation that is not final back for later, with what it waits for.
func DelayRevocation(ctx context.Context, q Querier, r Revocation, l uuid.UUID) (bool, error) {
	n, err := changed(ctx, q, "delay revocation", `UPDATE revocations SET status = $3, due_time = $4, last_error = $5, ca_request = $6,
 lease_id = NULL, lease_until = NULL WHERE id = $1 AND lease_id = $2 AND status IN ('PENDING', 'AWAITING_APPROVAL')`,
		r.ID, l, r.Status, r.DueTime, r.LastError, reference(r.CARequest))
	return n == 1, err
}

// RevocationsForCRL reads what the next CRL lists: all that have not ended before the time, and all that no CRL has listed
// yet (RFC 5280, section 3.3: an entry stays until one CRL beyond the certificate's end).
func RevocationsForCRL(ctx context.Context, q Querier, issuerID string, endedAfter time.Time) ([]Revocation, error) {
	return collect(ctx, q, "read revocations for CRL", scanRevocation, `SELECT `+revocationColumns+` FROM revocations r
 WHERE r.issuer_id = $1 AND (r.not_after > $2 OR r.crl_number IS NULL) ORDER BY r.serial_number`, issuerID, endedAfter)
}

// CRL is a certificate revocation list.
type CRL struct {
	IssuerID   string
	Number     int64
	DER        []byte
	Entries    int
	ThisUpdate time.Time
	NextUpdate time.Time
}

// LatestCRL is the newest CRL of an issuer, and whether revocations wait for the next one.
func LatestCRL(ctx context.Context, q Querier, issuerID string) (c CRL, unlisted bool, err error) {
	c.IssuerID = issuerID
	err = q.QueryRow(ctx, `SELECT c.number, c.der, c.entries, c.this_update, c.next_update,
 EXISTS (SELECT 1 FROM revocations r WHERE r.issuer_id = c.issuer_id AND r.crl_number IS NULL)
 FROM crls c WHERE c.issuer_id = $1 ORDER BY c.number DESC LIMIT 1`, issuerID).
		Scan(&c.Number, &c.DER, &c.Entries, &c.ThisUpdate, &c.NextUpdate, &unlisted)
	c, err = one("read CRL", c, err)
	return c, unlisted, err
}

// InsertCRL stores a CRL, notes its number in the revocations that it is the first to list, and drops old ones. It is
// false when another replica has stored that number.
func InsertCRL(ctx context.Context, q Querier, c CRL, listed []string) (bool, error) {
	n, err := changed(ctx, q, "store CRL", `INSERT INTO crls (issuer_id, number, der, entries, this_update, next_update)
 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (issuer_id, number) DO NOTHING`, c.IssuerID, c.Number, c.DER, c.Entries, c.ThisUpdate, c.NextUpdate)
	if err != nil || n == 0 {
		return false, err
	}
	if _, err := changed(ctx, q, "note CRL number", `UPDATE revocations SET crl_number = $2 WHERE crl_number IS NULL AND id = ANY($1)`,
		list(listed), c.Number); err != nil {
		return false, err
	}
	const kept = 10
	_, err = changed(ctx, q, "drop old CRLs", `DELETE FROM crls WHERE issuer_id = $1 AND number <= $2`, c.IssuerID, c.Number-kept)
	return err == nil, err
}
