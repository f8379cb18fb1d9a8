package store

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/search"
)

// Certificate is one row of certificates with the targets that are bound to it.
type Certificate struct {
	ID                string
	Name              string
	CommonName        string
	DNSNames          []string
	IPAddresses       []string
	EmailAddresses    []string
	URIs              []string
	IssuerID          string
	ProfileID         string
	PolicyID          string
	KeyAlgorithm      string
	Owner             string
	Team              string
	Environment       string
	Labels            Labels
	Status            string
	CurrentVersion    int32
	SerialNumber      string
	FingerprintSHA256 string
	NotBefore         *time.Time
	NotAfter          *time.Time
	RevocationTime    *time.Time
	RevocationReason  string
	CreateTime        time.Time
	UpdateTime        time.Time
	Revision          int32
	TargetIDs         []string
}

const certificateColumns = `c.id, c.name, c.common_name, c.dns_names, c.ip_addresses, c.email_addresses, c.uris, c.issuer_id,
 c.profile_id, c.policy_id, c.key_algorithm, c.owner, c.team, c.environment, c.labels, c.status, c.current_version,
 c.serial_number, c.fingerprint_sha256, c.not_before, c.not_after, c.revocation_time, c.revocation_reason, c.create_time,
 c.update_time, c.revision,
 ARRAY(SELECT b.target_id FROM certificate_targets b WHERE b.certificate_id = c.id ORDER BY b.target_id) AS target_ids`

// readCertificate reads certificateColumns.
func readCertificate(r *pg.Columns) Certificate {
	return Certificate{
		ID: r.Text(), Name: r.Text(), CommonName: r.Text(), DNSNames: r.Texts(), IPAddresses: r.Texts(), EmailAddresses: r.Texts(), URIs: r.Texts(),
		IssuerID: r.Text(), ProfileID: r.Text(), PolicyID: r.Text(), KeyAlgorithm: r.Text(), Owner: r.Text(), Team: r.Text(), Environment: r.Text(),
		Labels: readLabels(r), Status: r.Text(), CurrentVersion: r.Int32(), SerialNumber: r.Text(), FingerprintSHA256: r.Text(),
		NotBefore: r.Moment(), NotAfter: r.Moment(), RevocationTime: r.Moment(), RevocationReason: r.Text(), CreateTime: r.Time(),
		UpdateTime: r.Time(), Revision: r.Int32(), TargetIDs: r.Texts(),
	}
}

// searchText is what the filter "name" looks in.
func (c Certificate) searchText() string {
	parts := slices.Concat([]string{c.Name, c.CommonName}, c.DNSNames, c.IPAddresses, c.EmailAddresses, c.URIs)
	return strings.ToLower(strings.Join(parts, "\n"))
}

// Final tells whether nothing more is done for the certificate.
func (c Certificate) Final() bool {
	return c.Status == CertificateRevoked || c.Status == CertificateArchived
}

// GetCertificate reads one.
func (r Reads) GetCertificate(ctx context.Context, id string) (Certificate, error) {
	return one[Certificate](ctx, r.q, "read certificate", `SELECT `+certificateColumns+` FROM certificates c WHERE c.id = $1`, id)
}

// GetCertificates reads those that there are of the ids. They are in a subquery so that Postgres plans the statement once: an array
// that it can see looks better to it by its length than one that it cannot, and it would plan anew for each.
func (r Reads) GetCertificates(ctx context.Context, ids []string) ([]Certificate, error) {
	return allBy(ctx, r.q, "read certificates", pg.RowTo(readCertificate), `SELECT `+certificateColumns+` FROM certificates c WHERE c.id = ANY((SELECT $1::text[])::text[]) ORDER BY c.id`, ids)
}

// Certificate reads one outside of transactions, in one statement with all that are asked for at the time.
func (s *Store) Certificate(ctx context.Context, id string) (Certificate, error) {
	c, ok, err := s.certificates.Get(ctx, id)
	if err == nil && !ok {
		return c, ErrNotFound
	}
	return c, err
}

func (r Reads) certificatesByID(ctx context.Context, ids []string) (map[string]Certificate, error) {
	rows, err := r.GetCertificates(ctx, ids)
	if err != nil {
		return nil, err
	}
	byID := make(map[string]Certificate, len(rows))
	for _, c := range rows {
		byID[c.ID] = c
	}
	return byID, nil
}

// LockCertificate reads one and keeps others from changing it until the end of the transaction.
func (t *Tx) LockCertificate(ctx context.Context, id string) (Certificate, error) {
	return one[Certificate](ctx, t.q, "lock certificate", `SELECT `+certificateColumns+` FROM certificates c WHERE c.id = $1 FOR UPDATE OF c`, id)
}

// InsertCertificate stores a new PENDING certificate and its bindings.
func (t *Tx) InsertCertificate(ctx context.Context, c Certificate) (Certificate, error) {
	_, err := t.q.Exec(ctx, `INSERT INTO certificates (id, name, common_name, dns_names, ip_addresses, email_addresses, uris, search_text,
 issuer_id, profile_id, policy_id, key_algorithm, owner, team, environment, labels, status)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 'PENDING')`,
		c.ID, c.Name, c.CommonName, list(c.DNSNames), list(c.IPAddresses), list(c.EmailAddresses), list(c.URIs), c.searchText(),
		c.IssuerID, c.ProfileID, c.PolicyID, c.KeyAlgorithm, c.Owner, c.Team, c.Environment, pairs(c.Labels))
	if err != nil {
		return Certificate{}, wrap("insert certificate", err)
	}
	if err := t.Bind(ctx, c.ID, c.TargetIDs); err != nil {
		return Certificate{}, err
	}
	return t.GetCertificate(ctx, c.ID)
}

// UpdateCertificate writes what a user may change. The caller holds the row's lock.
func (t *Tx) UpdateCertificate(ctx context.Context, c Certificate) error {
	_, err := t.q.Exec(ctx, `UPDATE certificates SET name = $2, common_name = $3, dns_names = $4, ip_addresses = $5, email_addresses = $6,
 uris = $7, search_text = $8, issuer_id = $9, profile_id = $10, policy_id = $11, key_algorithm = $12, owner = $13, team = $14,
 environment = $15, labels = $16, update_time = now(), revision = revision + 1 WHERE id = $1`,
		c.ID, c.Name, c.CommonName, list(c.DNSNames), list(c.IPAddresses), list(c.EmailAddresses), list(c.URIs), c.searchText(),
		c.IssuerID, c.ProfileID, c.PolicyID, c.KeyAlgorithm, c.Owner, c.Team, c.Environment, pairs(c.Labels))
	if err != nil {
		return wrap("update certificate", err)
	}
	return nil
}

// Bind binds targets to a certificate.
func (t *Tx) Bind(ctx context.Context, certificateID string, targetIDs []string) error {
	if len(targetIDs) == 0 {
		return nil
	}
	_, err := t.q.Exec(ctx, `INSERT INTO certificate_targets (certificate_id, target_id) SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING`, certificateID, targetIDs)
	if err != nil {
		return wrap("bind targets", err)
	}
	return nil
}

// Unbind takes targets off a certificate.
func (t *Tx) Unbind(ctx context.Context, certificateID string, targetIDs []string) error {
	_, err := t.q.Exec(ctx, `DELETE FROM certificate_targets WHERE certificate_id = $1 AND target_id = ANY($2)`, certificateID, targetIDs)
	if err != nil {
		return wrap("unbind targets", err)
	}
	return nil
}

// ExpireCertificates ends active certificates whose time is over, and answers which.
func (t *Tx) ExpireCertificates(ctx context.Context, ids []string) ([]string, error) {
	tr := certificateExpire()
	return column[string](ctx, t.q, "expire certificates", `UPDATE certificates SET status = $3, update_time = now(), revision = revision + 1
 WHERE id = ANY($1) AND status = ANY($2) AND not_after <= now() RETURNING id`, ids, tr.From, tr.To)
}

// RevokeCertificate revokes for good, locks the certificate and answers it; false when its state does not allow it.
func (t *Tx) RevokeCertificate(ctx context.Context, id, reason string, at time.Time) (Certificate, bool, error) {
	tr := certificateRevoke()
	rows, err := all[Certificate](ctx, t.q, "revoke certificate", `UPDATE certificates c SET status = $3, revocation_time = $4, revocation_reason = $5,
 update_time = now(), revision = revision + 1 WHERE c.id = $1 AND c.status = ANY($2) RETURNING `+certificateColumns, id, tr.From, tr.To, at, reason)
	if err != nil || len(rows) == 0 {
		return Certificate{}, false, err
	}
	return rows[0], true, nil
}

// ArchiveCertificate takes a certificate out of care.
func (t *Tx) ArchiveCertificate(ctx context.Context, id string) (bool, error) {
	tr := certificateArchive()
	return changed(ctx, t.q, "archive certificate", `UPDATE certificates SET status = $3, update_time = now(), revision = revision + 1
 WHERE id = $1 AND status = ANY($2)`, id, tr.From, tr.To)
}

// ClaimExpired locks up to limit active certificates whose time is over.
func (t *Tx) ClaimExpired(ctx context.Context, limit int) ([]string, error) {
	return column[string](ctx, t.q, "claim expired certificates", `SELECT c.id FROM certificates c WHERE c.status = 'ACTIVE' AND `+certificateEnd+` <= now()
 ORDER BY `+certificateEnd+`, c.id LIMIT $1 FOR UPDATE SKIP LOCKED`, limit)
}

// CertificateFilter is what certificates may be looked for by; empty fields count for nothing.
type CertificateFilter struct {
	Statuses          []string
	IssuerID          string
	ProfileID         string
	PolicyID          string
	TargetID          string
	AgentID           string
	Owner             string
	Team              string
	Environment       string
	Name              string
	SerialNumber      string
	FingerprintSHA256 string
	ExpiresBefore     *time.Time
	ExpiresAfter      *time.Time
	Labels            map[string]string
}

func (f CertificateFilter) where() *where {
	w := &where{}
	w.Among("c.status", f.Statuses)
	w.Equal("c.issuer_id", f.IssuerID)
	w.Equal("c.profile_id", f.ProfileID)
	w.Equal("c.policy_id", f.PolicyID)
	w.Equal("c.owner", f.Owner)
	w.Equal("c.team", f.Team)
	w.Equal("c.environment", f.Environment)
	w.contains("c.search_text", f.Name)
	w.labels("c.labels", f.Labels)
	if f.TargetID != "" {
		w.Few("c.id IN (SELECT b.certificate_id FROM certificate_targets b WHERE b.target_id = ?)", f.TargetID)
	}
	if f.AgentID != "" {
		w.Few("c.id IN (SELECT b.certificate_id FROM certificate_targets b JOIN targets t ON t.id = b.target_id WHERE t.agent_id = ?)", f.AgentID)
	}
	// Any version counts: who finds an old certificate somewhere wants to know whose it was.
	if f.SerialNumber != "" {
		w.Few("c.id IN (SELECT v.certificate_id FROM certificate_versions v WHERE v.serial_number = ?)", f.SerialNumber)
	}
	if f.FingerprintSHA256 != "" {
		w.Few("c.id IN (SELECT v.certificate_id FROM certificate_versions v WHERE v.fingerprint_sha256 = ?)", f.FingerprintSHA256)
	}
	// The expression is that of the index; a certificate without an end expires at infinity, which is after everything, so
	// it has to be left out by name.
	if f.ExpiresBefore != nil {
		w.Bound("c.not_after", certificateEnd+" < ?", *f.ExpiresBefore)
	}
	if f.ExpiresAfter != nil {
		w.Bound("c.not_after", certificateEnd+" > ? AND "+certificateEnd+" < 'infinity'", *f.ExpiresAfter)
	}
	return w
}

// certificateEnd is the expression of the indexes by the end, in which a certificate without one sorts last.
const certificateEnd = "COALESCE(c.not_after, 'infinity'::timestamptz)"

func certificateTable() search.Table {
	owned := []string{"c.status", "c.not_after"}
	return search.Table{Columns: certificateColumns, From: "certificates c", Leads: map[string][]string{
		"c.create_time": {"c.owner", "c.team", "c.issuer_id", "c.policy_id", "c.profile_id", "c.environment", "c.status"},
		"c.update_time": {"c.status"}, "c.not_after": {"c.status"},
	}, Covered: map[string][]string{
		"c.owner": owned, "c.team": owned, "c.environment": owned,
		"c.create_time": owned[1:], "c.update_time": owned[1:], "c.name": owned[1:], "c.status": owned[1:],
	}}
}

// ListCertificates reads one page.
func (r Reads) ListCertificates(ctx context.Context, f CertificateFilter, s Slice) ([]Certificate, error) {
	return findBy(ctx, r.q, "list certificates", f.where().search(certificateTable(), s), pg.RowTo(readCertificate))
}

// CountCertificates counts what the filter finds.
func (r Reads) CountCertificates(ctx context.Context, f CertificateFilter) (int32, error) {
	w := f.where()
	return value[int32](ctx, r.q, "count certificates", `SELECT count(*)::int FROM certificates c WHERE `+w.SQL(), w.Args()...)
}

// CountReferences counts certificates that are in care and use any of the named issuer, profile and policy; empty names count for nothing.
func (r Reads) CountReferences(ctx context.Context, issuerID, profileID, policyID string) (int32, error) {
	w := CertificateFilter{IssuerID: issuerID, ProfileID: profileID, PolicyID: policyID}.where()
	return value[int32](ctx, r.q, "count references", `SELECT count(*)::int FROM certificates c WHERE c.status <> 'ARCHIVED' AND `+w.SQL(), w.Args()...)
}

// KeyHolder is an agent that serves a certificate, with the newest version for its key.
type KeyHolder struct {
	CertificateID string
	AgentID       string
	AgentName     string
	AgentStatus   string
	Version       int32
	NotAfter      *time.Time
}

// KeyHolders reads who holds keys for the certificates: agents of their targets; retired ones hold none.
func (r Reads) KeyHolders(ctx context.Context, certificateIDs []string) ([]KeyHolder, error) {
	// The ids are in a subquery so that Postgres plans the statement once: it would plan anew for an array whose length it can see.
	return all[KeyHolder](ctx, r.q, "read key holders", `SELECT h.certificate_id, h.agent_id, a.name AS agent_name, a.status AS agent_status,
 COALESCE(v.version, 0) AS version, v.not_after
FROM (SELECT DISTINCT b.certificate_id, t.agent_id FROM certificate_targets b JOIN targets t ON t.id = b.target_id
 WHERE b.certificate_id = ANY((SELECT $1::text[])::text[])) h
JOIN agents a ON a.id = h.agent_id AND a.status <> 'RETIRED'
LEFT JOIN LATERAL (SELECT v.version, v.not_after FROM certificate_versions v WHERE v.certificate_id = h.certificate_id AND v.agent_id = h.agent_id
 AND v.revocation_time IS NULL ORDER BY v.version DESC LIMIT 1) v ON true
ORDER BY h.certificate_id, h.agent_id`, certificateIDs)
}

// CallerVersions reads the newest version whose key the caller keeps, for each certificate that has one.
func (r Reads) CallerVersions(ctx context.Context, certificateIDs []string) ([]KeyHolder, error) {
	return all[KeyHolder](ctx, r.q, "read callers' versions", `SELECT DISTINCT ON (v.certificate_id) v.certificate_id, ''::text AS agent_id, ''::text AS agent_name,
 ''::text AS agent_status, v.version, v.not_after FROM certificate_versions v
WHERE v.certificate_id = ANY($1) AND v.agent_id = '' AND v.revocation_time IS NULL ORDER BY v.certificate_id, v.version DESC`, certificateIDs)
}

// Version is one row of certificate_versions.
type Version struct {
	CertificateID     string
	Version           int32
	OrderID           string
	AgentID           string
	SerialNumber      string
	FingerprintSHA256 string
	PublicKeySHA256   string
	IssuerDN          string
	SubjectDN         string
	NotBefore         time.Time
	NotAfter          time.Time
	KeyAlgorithm      string
	CertificatePEM    string
	ChainPEM          string
	RevocationTime    *time.Time
	RevocationReason  string
	RevocationState   string
	CreateTime        time.Time
	RevocationError   string
}

const versionColumns = `v.certificate_id, v.version, v.order_id, v.agent_id, v.serial_number, v.fingerprint_sha256, v.public_key_sha256,
 v.issuer_dn, v.subject_dn, v.not_before, v.not_after, v.key_algorithm, v.certificate_pem, v.chain_pem, v.revocation_time,
 v.revocation_reason, v.revocation_state, v.create_time, v.revocation_error`

func versionTable() search.Table {
	return search.Table{Columns: versionColumns, From: "certificate_versions v", ID: "version", Leads: map[string][]string{"v.version": {"v.certificate_id"}}}
}

// GetVersion reads one.
func (r Reads) GetVersion(ctx context.Context, certificateID string, version int32) (Version, error) {
	return one[Version](ctx, r.q, "read version", `SELECT `+versionColumns+` FROM certificate_versions v WHERE v.certificate_id = $1 AND v.version = $2`, certificateID, version)
}

// VersionKey names a version.
type VersionKey struct {
	CertificateID string
	Version       int32
}

// GetVersions reads those that there are of the versions.
func (r Reads) GetVersions(ctx context.Context, keys []VersionKey) ([]Version, error) {
	ids, numbers := make([]string, 0, len(keys)), make([]int32, 0, len(keys))
	for _, k := range keys {
		ids, numbers = append(ids, k.CertificateID), append(numbers, k.Version)
	}
	return all[Version](ctx, r.q, "read versions", `SELECT `+versionColumns+` FROM certificate_versions v
 WHERE (v.certificate_id, v.version) IN (SELECT * FROM unnest($1::text[], $2::integer[]))`, ids, numbers)
}

// Fingerprint is one that was seen where a certificate belongs.
type Fingerprint struct{ CertificateID, SHA256 string }

// VersionsByFingerprint reads the numbers of the certificates' versions with these fingerprints; foreign ones are left out.
func (r Reads) VersionsByFingerprint(ctx context.Context, seen []Fingerprint) (map[Fingerprint]int32, error) {
	if len(seen) == 0 {
		return nil, nil
	}
	var certificates, fingerprints []string
	for _, f := range seen {
		certificates, fingerprints = append(certificates, f.CertificateID), append(fingerprints, f.SHA256)
	}
	rows, err := all[struct {
		CertificateID     string
		FingerprintSHA256 string
		Version           int32
	}](ctx, r.q, "recognise versions", `SELECT v.certificate_id, v.fingerprint_sha256, v.version FROM certificate_versions v
 JOIN unnest($1::text[], $2::text[]) AS e (certificate_id, fingerprint) ON e.fingerprint = v.fingerprint_sha256 AND e.certificate_id = v.certificate_id`,
		certificates, fingerprints)
	known := make(map[Fingerprint]int32, len(rows))
	for _, v := range rows {
		of := Fingerprint{v.CertificateID, v.FingerprintSHA256}
		known[of] = max(known[of], v.Version)
	}
	return known, err
}

// VersionFor reads the newest version that is not revoked for a holder's key.
func (r Reads) VersionFor(ctx context.Context, certificateID, agentID string) (Version, error) {
	return one[Version](ctx, r.q, "read holder's version", `SELECT `+versionColumns+` FROM certificate_versions v
 WHERE v.certificate_id = $1 AND v.agent_id = $2 AND v.revocation_time IS NULL ORDER BY v.version DESC LIMIT 1`, certificateID, agentID)
}

// ListVersions reads one page of a certificate's versions.
func (r Reads) ListVersions(ctx context.Context, certificateID string, s Slice) ([]Version, error) {
	w := &where{}
	w.Equal("v.certificate_id", certificateID)
	return find[Version](ctx, r.q, "list versions", w.search(versionTable(), s))
}

// CountVersions counts a certificate's versions.
func (r Reads) CountVersions(ctx context.Context, certificateID string) (int32, error) {
	return value[int32](ctx, r.q, "count versions", `SELECT count(*)::int FROM certificate_versions WHERE certificate_id = $1`, certificateID)
}

// RevokeVersions notes the revocation of one version, or with 0 of all that have not expired, where none is noted yet, and
// answers those: the first reason stays.
func (t *Tx) RevokeVersions(ctx context.Context, certificateID string, version int32, reason string, at time.Time) ([]Version, error) {
	return all[Version](ctx, t.q, "revoke versions", `UPDATE certificate_versions v SET revocation_time = $4, revocation_reason = $3, revocation_state = 'PENDING'
 WHERE v.certificate_id = $1 AND v.revocation_time IS NULL AND (v.version = $2 OR ($2 = 0 AND v.not_after > now())) RETURNING `+versionColumns,
		certificateID, version, reason, at)
}

// HoldRevocations notes why the CA has not revoked versions yet, or at all.
func (t *Tx) HoldRevocations(ctx context.Context, certificateID string, serials []string, state, why string) (int, error) {
	return count(ctx, t.q, "note state of revocations", `UPDATE certificate_versions SET revocation_state = $3, revocation_error = $4
 WHERE certificate_id = $1 AND revocation_state IN ('PENDING', 'AWAITING_APPROVAL') AND serial_number = ANY($2)`, certificateID, list(serials), state, why)
}

// RetryRevocations takes up the revocations that the CA refused, of one version or with 0 of all, and answers those.
func (t *Tx) RetryRevocations(ctx context.Context, certificateID string, version int32, reason string, at time.Time) ([]Version, error) {
	return all[Version](ctx, t.q, "retry revocations", `UPDATE certificate_versions v SET revocation_time = $4, revocation_reason = $3,
 revocation_state = 'PENDING', revocation_error = '' WHERE v.certificate_id = $1 AND v.revocation_state = 'FAILED' AND (v.version = $2 OR $2 = 0)
 RETURNING `+versionColumns, certificateID, version, reason, at)
}

// RevokedVersions reads a certificate's revoked versions.
func (r Reads) RevokedVersions(ctx context.Context, certificateID string) ([]Version, error) {
	return all[Version](ctx, r.q, "read revoked versions", `SELECT `+versionColumns+` FROM certificate_versions v
 WHERE v.certificate_id = $1 AND v.revocation_time IS NOT NULL ORDER BY v.version`, certificateID)
}

// Finished are revocations of a certificate that the CA knows of; without serial numbers, all of the certificate's.
type Finished struct {
	CertificateID string
	SerialNumbers []string
}

// finishRevocations: $1 and $2 name serial numbers and their certificates, an empty one all of its certificate.
const finishRevocations = `UPDATE certificate_versions v SET revocation_state = 'DONE', revocation_error = '' FROM unnest($1::text[], $2::text[]) AS e (certificate_id, serial_number)`

const finishedRevocations = ` WHERE v.certificate_id = e.certificate_id AND v.revocation_state IN ('PENDING', 'AWAITING_APPROVAL', 'FAILED') AND e.serial_number IN (v.serial_number, '')`

// FinishRevocations notes that the CA knows of revocations.
func (t *Tx) FinishRevocations(ctx context.Context, finished ...Finished) error {
	certificates, serials := finishedArrays(finished)
	_, err := count(ctx, t.q, "finish revocations", finishRevocations+finishedRevocations, certificates, serials)
	return err
}

// FinishRevocationsSoon notes the same by itself, for an event that will note it again in case it is lost: it is seen by all at once, and
// does not wait until it is on disk.
func (r Reads) FinishRevocationsSoon(ctx context.Context, finished Finished) error {
	certificates, serials := finishedArrays([]Finished{finished})
	_, err := count(ctx, r.q, "finish revocations", finishRevocations+`, set_config('synchronous_commit', 'off', true)`+finishedRevocations, certificates, serials)
	return err
}

func finishedArrays(finished []Finished) (certificates, serials []string) {
	for _, f := range finished {
		if len(f.SerialNumbers) == 0 {
			f.SerialNumbers = []string{""}
		}
		for _, serial := range f.SerialNumbers {
			certificates, serials = append(certificates, f.CertificateID), append(serials, serial)
		}
	}
	return certificates, serials
}

var _ querier = (pgx.Tx)(nil)
