package store

import (
	"context"
	"time"
)

// LockCertificates reads those that there are of the ids and keeps others from changing them until the end of the transaction.
// They are locked in the order of their ids, so that two that lock many do not wait for each other.
func (t *Tx) LockCertificates(ctx context.Context, ids []string) ([]Certificate, error) {
	return all[Certificate](ctx, t.q, "lock certificates", `SELECT `+certificateColumns+` FROM certificates c WHERE c.id = ANY($1) ORDER BY c.id FOR UPDATE OF c`, ids)
}

// Newest is the highest version number of a certificate.
type Newest struct {
	CertificateID string
	Version       int32
}

// NewestVersions reads the highest version number of each of the certificates that has one.
func (r Reads) NewestVersions(ctx context.Context, certificateIDs []string) ([]Newest, error) {
	return all[Newest](ctx, r.q, "read newest versions", `SELECT certificate_id, max(version) AS version FROM certificate_versions
 WHERE certificate_id = ANY($1) GROUP BY certificate_id`, certificateIDs)
}

// OrdersWithVersion tells which of the orders have a version.
func (r Reads) OrdersWithVersion(ctx context.Context, orderIDs []string) ([]string, error) {
	return column[string](ctx, r.q, "look for versions of orders", `SELECT order_id FROM certificate_versions WHERE order_id = ANY($1)`, orderIDs)
}

// InsertVersions stores what was issued, by orders that have no version yet.
func (t *Tx) InsertVersions(ctx context.Context, versions []Version) error {
	var c versionColumnar
	for _, v := range versions {
		c.add(v)
	}
	_, err := t.q.Exec(ctx, `INSERT INTO certificate_versions (certificate_id, version, order_id, agent_id, serial_number,
 fingerprint_sha256, public_key_sha256, issuer_dn, subject_dn, not_before, not_after, key_algorithm, certificate_pem, chain_pem,
 revocation_time, revocation_reason, revocation_state)
SELECT * FROM unnest($1::text[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
 $10::timestamptz[], $11::timestamptz[], $12::text[], $13::text[], $14::text[], $15::timestamptz[], $16::text[], $17::text[])`,
		c.certificates, c.versions, c.orders, c.agents, c.serials, c.fingerprints, c.keys, c.issuers, c.subjects, c.begins, c.ends, c.algorithms,
		c.leaves, c.chains, c.revoked, c.reasons, c.states)
	if err != nil {
		return wrap("insert versions", err)
	}
	return nil
}

// versionColumnar are the arrays of InsertVersions.
type versionColumnar struct {
	certificates, orders, agents, serials, fingerprints, keys, issuers, subjects, algorithms, leaves, chains, reasons, states []string
	versions                                                                                                                  []int32
	begins, ends                                                                                                              []time.Time
	revoked                                                                                                                   []*time.Time
}

func (c *versionColumnar) add(v Version) {
	c.certificates, c.versions, c.orders = append(c.certificates, v.CertificateID), append(c.versions, v.Version), append(c.orders, v.OrderID)
	c.agents, c.serials, c.fingerprints = append(c.agents, v.AgentID), append(c.serials, v.SerialNumber), append(c.fingerprints, v.FingerprintSHA256)
	c.keys, c.issuers, c.subjects = append(c.keys, v.PublicKeySHA256), append(c.issuers, v.IssuerDN), append(c.subjects, v.SubjectDN)
	c.begins, c.ends, c.algorithms = append(c.begins, v.NotBefore), append(c.ends, v.NotAfter), append(c.algorithms, v.KeyAlgorithm)
	c.leaves, c.chains = append(c.leaves, v.CertificatePEM), append(c.chains, v.ChainPEM)
	c.revoked, c.reasons, c.states = append(c.revoked, v.RevocationTime), append(c.reasons, v.RevocationReason), append(c.states, v.RevocationState)
}

// ActivateCertificates makes the versions, one for each certificate, the current ones. Certificates that are final stay as they are.
// It answers how many it changed.
func (t *Tx) ActivateCertificates(ctx context.Context, versions []Version) (int, error) {
	var c versionColumnar
	for _, v := range versions {
		c.add(v)
	}
	tr := certificateActivate()
	return count(ctx, t.q, "activate certificates", `UPDATE certificates c SET status = $2, current_version = v.version, serial_number = v.serial_number,
 fingerprint_sha256 = v.fingerprint, not_before = v.not_before, not_after = v.not_after, update_time = now(), revision = c.revision + 1
 FROM unnest($3::text[], $4::integer[], $5::text[], $6::text[], $7::timestamptz[], $8::timestamptz[])
  AS v (certificate_id, version, serial_number, fingerprint, not_before, not_after)
 WHERE c.id = v.certificate_id AND c.status = ANY($1)`,
		tr.From, tr.To, c.certificates, c.versions, c.serials, c.fingerprints, c.begins, c.ends)
}
