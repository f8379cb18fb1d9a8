package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
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

// Sought names issued certificates: all of CertificateIDs that end after a time, and the serial numbers, each of the certificate
// at the same place of Of.
type Sought struct {
	CertificateIDs    []string
	Of, SerialNumbers []string
}

// SerialNumber is what no two certificates have.
type SerialNumber struct{ IssuerID, SerialNumber string }

// Revoked is an issued certificate that is to be revoked, with what tells what its issuer can do.
type Revoked struct {
	IssuerID      string
	SerialNumber  string
	CertificateID string
	NotAfter      time.Time
	IssuerType    string
	ConfigHash    string
	// Stands: it is revoked already, and no CA has refused that.
	Stands bool
}

// Revocable reads what is to be revoked, by issuer and serial number, as all store them, so that two that revoke the same do not
// wait for each other.
func Revocable(ctx context.Context, q Querier, s Sought, after time.Time) ([]Revoked, error) {
	return collect(ctx, q, "read issued certificates", pgx.RowToStructByPos[Revoked], `SELECT c.issuer_id, c.serial_number, c.certificate_id, c.not_after,
 i.type, i.config_hash, EXISTS (SELECT 1 FROM revocations r WHERE r.issuer_id = c.issuer_id AND r.serial_number = c.serial_number
  AND r.status NOT IN ('FAILED', 'UNSUPPORTED')) FROM issued_certificates c JOIN issuers i ON i.id = c.issuer_id
 WHERE c.certificate_id = ANY($1) AND (c.certificate_id = ANY($2) AND c.not_after > $5
  OR (c.certificate_id, c.serial_number) IN (SELECT * FROM unnest($3::text[], $4::text[])))
 ORDER BY c.issuer_id, c.serial_number`, slices.Concat(s.CertificateIDs, s.Of), list(s.CertificateIDs), list(s.Of), list(s.SerialNumbers), after)
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

// Serial is what the revocation is of.
func (r Revocation) Serial() SerialNumber { return SerialNumber{r.IssuerID, r.SerialNumber} }

// InsertRevocations stores revocations, no two of one certificate, in one statement, and gives the ids under which they are
// stored; none of certificates that are revoked already: the first revocation stays, unless the CA refused it and this one is
// newer.
func InsertRevocations(ctx context.Context, q Querier, revocations []Revocation) (map[SerialNumber]string, error) {
	if len(revocations) == 0 {
		return nil, nil
	}
	var c revocationColumnar
	for _, r := range revocations {
		c.add(r)
	}
	type row struct {
		SerialNumber

		ID string
	}
	stored, err := collect(ctx, q, "store revocations", pgx.RowToStructByPos[row], `INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason,
 revocation_time, not_after, status, last_error, due_time, end_time)
 SELECT e.*, CASE WHEN e.due_time IS NULL THEN now() END FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::timestamptz[],
  $7::timestamptz[], $8::text[], $9::text[], $10::timestamptz[])
  AS e (id, issuer_id, serial_number, certificate_id, reason, revocation_time, not_after, status, last_error, due_time)
 ON CONFLICT (issuer_id, serial_number) DO UPDATE SET reason = EXCLUDED.reason, revocation_time = EXCLUDED.revocation_time, status = EXCLUDED.status,
 last_error = '', due_time = EXCLUDED.due_time, end_time = EXCLUDED.end_time, attempts = 0, ca_request = '{}'
 WHERE revocations.status IN ('FAILED', 'UNSUPPORTED') AND EXCLUDED.revocation_time > revocations.revocation_time
 RETURNING issuer_id, serial_number, id`,
		c.ids, c.issuers, c.serials, c.certificates, c.reasons, c.times, c.ends, c.statuses, c.errors, c.due)
	if err != nil {
		return nil, err
	}
	ids := make(map[SerialNumber]string, len(stored))
	for _, r := range stored {
		ids[r.SerialNumber] = r.ID
	}
	return ids, nil
}

// revocationColumnar are the arrays of InsertRevocations.
type revocationColumnar struct {
	ids, issuers, serials, certificates, statuses, errors []string
	reasons                                               []int16
	times, ends                                           []time.Time
	due                                                   []*time.Time
}

func (c *revocationColumnar) add(r Revocation) {
	c.ids, c.issuers, c.serials = append(c.ids, r.ID), append(c.issuers, r.IssuerID), append(c.serials, r.SerialNumber)
	c.certificates, c.reasons, c.times = append(c.certificates, r.CertificateID), append(c.reasons, r.Reason), append(c.times, r.RevocationTime)
	c.ends, c.statuses, c.errors, c.due = append(c.ends, r.NotAfter), append(c.statuses, r.Status), append(c.errors, r.LastError), append(c.due, nullTime(r.DueTime))
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

// RevocationsOf reads the revocations of certificates.
func RevocationsOf(ctx context.Context, q Querier, of []SerialNumber) ([]Revocation, error) {
	if len(of) == 0 {
		return nil, nil
	}
	var issuers, serials []string
	for _, n := range of {
		issuers, serials = append(issuers, n.IssuerID), append(serials, n.SerialNumber)
	}
	return collect(ctx, q, "read revocations", scanRevocation, `SELECT `+revocationColumns+` FROM unnest($1::text[], $2::text[]) AS e (issuer_id, serial_number)
 JOIN revocations r ON r.issuer_id = e.issuer_id AND r.serial_number = e.serial_number ORDER BY r.id`, issuers, serials)
}

// IsRevoked tells whether a certificate is, or is about to be.
func IsRevoked(ctx context.Context, q Querier, issuerID, serial string) (bool, error) {
	var revoked bool
	err := q.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM revocations WHERE issuer_id = $1 AND serial_number = $2)`, issuerID, serial).Scan(&revoked)
	return one("look for revocation", revoked, err)
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
