package seed

import (
	"crypto/sha256"
	"fmt"
	"time"
)

func (m *model) issuance() []table {
	const schema = "issuance"
	return []table{
		{schema, "orders", `id, certificate_id, job_id, agent_id, issuer_id, profile_id, status, common_name, dns_names, ip_addresses,
 email_addresses, uris, extended_key_usages, lifetime_seconds, csr, csr_sha256, request_sha256, serial_number, ca_reference, error_reason,
 error_message, create_time, submit_time, issue_time, end_time, deadline_time, attempts, revision, ca_key`, m.fillOrders},
		{schema, "issued_certificates", `issuer_id, serial_number, order_id, certificate_id, fingerprint_sha256, not_before, not_after, certificate_pem`, m.fillIssued},
		{schema, "revocations", `id, issuer_id, serial_number, certificate_id, reason, revocation_time, not_after, status, create_time, end_time, crl_number`, m.fillRevocations},
		{schema: schema, name: "crls"}, {schema: schema, name: "crl_parts"},
	}
}

// fillOrders writes one for each version, and one that failed for each job that failed.
func (m *model) fillOrders(r *rows) {
	for _, j := range m.jobs {
		switch j.kind {
		case jobDone, jobFailed:
			if !r.next() {
				return
			}
			m.order(r, j)
		case jobCancelled, jobDeploy: // without an order
		}
	}
}

func (m *model) order(r *rows, j job) {
	i := int(j.of.certificate)
	c, w := &m.certificates[i], m.words(i)
	id, status, serial, create := m.orderID(j.of), "ISSUED", m.serial(j.of), j.of.at.add(-40*time.Millisecond)
	issue, end, reason, message := j.of.at, j.of.at, "", ""
	if j.kind == jobFailed {
		id, status, serial, create = m.id("ord-", ofOrder, j.index, j.at), "FAILED", "", j.at.add(time.Second)
		issue, end, reason, message = 0, j.at.add(50*time.Minute), "CA_UNAVAILABLE", "the CA did not answer in time"
	}
	r.text(id, m.certificateID(i), m.jobID(j), m.holder(c), issuers[c.issuer].id, profiles[c.profile].id, status, w.commonName)
	r.array(w.dnsNames)
	r.array(nil)
	r.array(nil)
	r.array(nil)
	r.array([]string{"SERVER_AUTH"})
	r.int8(int64(c.lifetime() / time.Second))
	r.bytea(m.sample.csrDER)
	r.text(m.hex(ofRequest, j.index, 32))
	sum := sha256.Sum256([]byte(id))
	r.bytea(sum[:])
	r.text(serial)
	reference, key := `{"serial_number": "`+serial+`"}`, ""
	if c.issuer != localIssuer {
		key = fmt.Sprint(100_000_000 + j.index)
		reference = `{"order_id": "` + key + `"}`
	}
	r.jsonb(reference)
	r.text(reason, message)
	r.time(create, create, issue, end, create.add(day))
	r.int4(1, 2)
	r.text(key)
}

func (m *model) fillIssued(r *rows) {
	for _, v := range m.versions {
		if !r.next() {
			return
		}
		i := int(v.certificate)
		r.text(issuers[m.certificates[i].issuer].id, m.serial(v), m.orderID(v), m.certificateID(i), m.fingerprint(v))
		r.time(m.validity(v))
		r.text(m.sample.certificate)
	}
}

// fillRevocations has the first CRL list all. There is none yet, as only the services have the CA's key: they make it when they start.
func (m *model) fillRevocations(r *rows) {
	for _, v := range m.versions {
		c := &m.certificates[v.certificate]
		if c.status != revoked {
			continue
		}
		if !r.next() {
			return
		}
		_, notAfter := m.validity(v)
		r.text(m.id("rev-", ofRevocation, v.slot(), c.revoked), issuers[c.issuer].id, m.serial(v), m.certificateID(int(v.certificate)))
		const superseded = 4 // RFC 5280, section 5.3.1
		r.int2(superseded)
		r.time(c.revoked, notAfter)
		r.text("DONE")
		done := c.revoked.add(50 * time.Millisecond)
		r.time(done, done)
		r.int8(1)
	}
}
