package seed

import (
	"fmt"
	"time"
)

// keyAlgorithm is that of all certificates.
const keyAlgorithm = "ECDSA_P256"

// targetsPerAgent are as many as a host has servers.
const targetsPerAgent = 10

func (s Size) targets() int         { return s.Agents * targetsPerAgent }
func (s Size) targetsPerAgent() int { return targetsPerAgent }

func (m *model) agentOf(target int) int { return target / targetsPerAgent }

// Agents came before the certificates, one after the other in a month.
func (m *model) agentTime(i int) stamp {
	return m.now.add(-history - 30*day + 30*day/time.Duration(m.size.Agents)*time.Duration(i))
}

func (m *model) agentID(i int) string { return m.id("agent-", ofAgent, i, m.agentTime(i)) }
func (m *model) targetID(i int) string {
	return m.id("target-", ofTarget, i, m.agentTime(m.agentOf(i)).add(time.Duration(1+i%targetsPerAgent)*time.Minute))
}

func (m *model) inventory() []table {
	const schema = "inventory"
	return []table{
		{schema, "certificates", `id, name, common_name, dns_names, search_text, issuer_id, profile_id, policy_id, key_algorithm, owner, team,
 environment, labels, status, current_version, serial_number, fingerprint_sha256, not_before, not_after, revocation_time, revocation_reason,
 create_time, update_time, revision`, m.fillCertificates},
		{schema, "certificate_versions", `certificate_id, version, order_id, agent_id, serial_number, fingerprint_sha256, public_key_sha256,
 issuer_dn, subject_dn, not_before, not_after, key_algorithm, certificate_pem, chain_pem, revocation_time, revocation_reason, revocation_state,
 create_time`, m.fillVersions},
		{schema, "deployments", `id, certificate_id, target_id, agent_id, status, desired_version, deployed_version, served_version,
 served_fingerprint, verify_time, verified_address, attempt, due_time, error_reason, error_message, create_time, update_time, revision`, m.fillDeployments},
		{schema, "discovered_certificates", `id, fingerprint_sha256, common_name, dns_names, issuer_dn, subject_dn, serial_number, not_before,
 not_after, status, first_seen_time, last_seen_time`, m.fillDiscovered},
		{schema, "certificate_targets", `certificate_id, target_id`, m.fillBindings},
		{schema, "targets", `id, name, agent_id, type, config, endpoint_address, endpoint_server_name, create_time, update_time`, m.fillTargets},
		{schema: schema, name: "assignments"},
	}
}

// hosts are the tables of agents, where an agent of the installation itself stays: their indexes are kept up.
func (m *model) hosts() []table {
	const schema = "inventory"
	return []table{
		{schema, "agents", `id, name, instance_id, hostname, os, architecture, version, ip_address, labels, capabilities, status, last_seen_time,
 create_time, update_time, revision`, m.fillAgents},
		{schema, "mailboxes", `agent_id, revision`, m.fillMailboxes},
		{schema, "agent_credentials", `id, agent_id, hash, status, create_time, use_time`, m.fillCredentials},
	}
}

func (m *model) fillCertificates(r *rows) {
	for i := range m.certificates {
		if !r.next() {
			return
		}
		c, w := &m.certificates[i], m.words(i)
		r.text(m.certificateID(i), w.name, w.commonName)
		r.array(w.dnsNames)
		r.text(w.searchText(), issuers[c.issuer].id, profiles[c.profile].id, policies[c.policy].id, keyAlgorithm, w.owner, w.team, w.environment)
		r.jsonb(w.label)
		r.text(c.status.String())
		r.int4(int(c.versions))
		updated := c.create
		if c.versions == 0 {
			r.text("", "")
			r.time(0, 0)
		} else {
			v := m.current(i)
			notBefore, notAfter := m.validity(v)
			r.text(m.serial(v), m.fingerprint(v))
			r.time(notBefore, notAfter)
			updated = v.at.add(300 * time.Millisecond)
		}
		r.time(c.revoked)
		r.text(reasonOf(c))
		if c.status != active && c.versions > 0 {
			updated = max(updated, c.revoked) + 1
		}
		r.time(c.create, updated)
		r.int4(1 + int(c.versions) + int(c.status)%2)
	}
}

func reasonOf(c *certificate) string {
	if c.status != revoked {
		return ""
	}
	return "SUPERSEDED"
}

func (m *model) fillVersions(r *rows) {
	for _, v := range m.versions {
		if !r.next() {
			return
		}
		i := int(v.certificate)
		c := &m.certificates[i]
		notBefore, notAfter := m.validity(v)
		subject := ""
		if w := m.words(i); w.commonName != "" {
			subject = "CN=" + w.commonName
		}
		r.text(m.certificateID(i))
		r.int4(int(v.number) + 1)
		r.text(m.orderID(v), m.holder(c), m.serial(v), m.fingerprint(v), m.hex(ofKey, v.slot(), 32), issuerDN, subject)
		r.time(notBefore, notAfter)
		r.text(keyAlgorithm, m.sample.certificate, m.sample.chain)
		r.time(c.revoked)
		state := ""
		if c.status == revoked {
			state = "DONE"
		}
		r.text(reasonOf(c), state)
		r.time(v.at.add(200 * time.Millisecond))
	}
}

func (m *model) fillBindings(r *rows) {
	for i := range m.certificates {
		c := &m.certificates[i]
		for k := range int(c.targets) {
			if !r.next() {
				return
			}
			r.text(m.certificateID(i), m.targetID(int(c.target)+k))
		}
	}
}

// fillDeployments writes them in the order in which they were made: with the first version of a certificate.
func (m *model) fillDeployments(r *rows) {
	for _, v := range m.versions {
		c := &m.certificates[v.certificate]
		if v.number > 0 || !c.deployed() {
			continue
		}
		for k := range int(c.targets) {
			if !r.next() {
				return
			}
			m.deployment(r, v, k)
		}
	}
}

// deploymentsPer keeps the draws of one certificate's deployments apart.
const deploymentsPer = 4

func (m *model) deployment(r *rows, first issued, k int) {
	i := int(first.certificate)
	c, index, now := &m.certificates[i], i*deploymentsPer+k, m.current(i)
	draw := m.random(ofDeployment, index)
	create, version := first.at.add(time.Second), int(c.versions)
	r.text(m.deploymentID(i, k, create), m.certificateID(i), m.targetID(int(c.target)+k), m.holder(c))
	verified := m.now.add(-time.Duration(draw.Int64N(int64(6 * time.Hour))))
	served, fingerprint, state, reason, message := version, m.fingerprint(now), "SERVED", "", ""
	switch share := draw.Float64(); {
	case share < 0.005:
		state, served, fingerprint = "DRIFTED", 0, m.hex(ofFingerprint, 2*m.size.Certificates+index, 32)
	case share < 0.01:
		state, served, reason, message = "FAILED", version-1, "COMMAND_FAILED", "the command that reloads the server ended with status 1"
	}
	r.text(state)
	r.int4(version, version, served)
	r.text(fingerprint)
	r.time(max(verified, create))
	r.text(fmt.Sprintf("10.%d.%d.%d:443", index>>16&255, index>>8&255, index&255))
	r.int4(0)
	r.time(m.now.add(idle + time.Duration(draw.Int64N(int64(idle)))))
	r.text(reason, message)
	r.time(create, max(verified, now.at.add(2*time.Second)))
	r.int4(2 + 3*version)
}

func (m *model) deploymentID(i, k int, create stamp) string {
	return m.id("dep-", ofDeployment, i*deploymentsPer+k, create)
}

func (m *model) fillDiscovered(r *rows) {
	n := m.size.Discovered
	for i := range n {
		if !r.next() {
			return
		}
		draw := m.random(ofDiscovered, i)
		seen := m.now.add(-history + history/time.Duration(n)*time.Duration(i))
		state, fingerprint, serial := "UNMANAGED", m.hex(ofFingerprint, 8*m.size.Certificates+i, 32), m.hex(ofSerial, 8*m.size.Certificates+i, 16)
		notBefore := seen.add(-time.Duration(draw.Int64N(int64(90 * day))))
		notAfter := m.now.add(-60*day + time.Duration(draw.Int64N(int64(400*day))))
		host := fmt.Sprintf("%s-%06d.%s.example.net", skewed(draw, apps), i, environmentOf(draw))
		switch share := draw.Float64(); {
		case share < 0.1:
			state = "DISMISSED"
		case share < 0.3 && i < len(m.versions): // one of ours, each found once
			v := m.versions[i]
			state, fingerprint, serial = "MANAGED", m.fingerprint(v), m.serial(v)
			notBefore, notAfter = m.validity(v)
			host = m.words(int(v.certificate)).dnsNames[0]
		}
		r.text(m.id("disc-", ofDiscovered, i, seen), fingerprint, host)
		r.array([]string{host})
		r.text(issuerDN, "CN="+host, serial)
		r.time(notBefore, max(notAfter, notBefore.add(day)))
		r.text(state)
		r.time(seen, max(seen, m.now.add(-time.Duration(draw.Int64N(int64(14*day))))))
	}
}

func (m *model) fillTargets(r *rows) {
	for i := range m.size.targets() {
		if !r.next() {
			return
		}
		agent := m.agentOf(i)
		create := m.agentTime(agent).add(time.Hour)
		app := skewed(m.random(ofTarget, i), apps)
		dir := fmt.Sprintf("/etc/tls/%s-%d/", app, i%targetsPerAgent)
		kind := "file"
		if i%4 == 0 {
			kind = "nginx"
		}
		r.text(m.targetID(i), fmt.Sprintf("%s on node-%05d/%d", app, agent, i%targetsPerAgent), m.agentID(agent), kind)
		r.jsonb(`{"fullchain_path": "` + dir + `fullchain.pem", "key_path": "` + dir + `key.pem"}`)
		r.text(fmt.Sprintf("10.%d.%d.%d:443", i>>16&255, i>>8&255, i&255), app+".example.com")
		r.time(create, create)
	}
}

func (m *model) fillAgents(r *rows) {
	for i := range m.size.Agents {
		if !r.next() {
			return
		}
		draw := m.random(ofAgent, i)
		host, create := fmt.Sprintf("node-%05d.example.com", i), m.agentTime(i)
		r.text(m.agentID(i), fmt.Sprintf("node-%05d", i), m.hex(ofPlace, i, 13), host, "linux", "amd64", "1.0.0",
			fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255))
		r.jsonb(fmt.Sprintf(`{"region": %q, "team": %q}`, skewed(draw, regions), skewed(draw, teams)))
		r.array([]string{"file", "nginx"})
		seen := m.now.add(-time.Hour - time.Duration(draw.Int64N(int64(2*time.Hour))))
		r.text("OFFLINE")
		r.time(seen, create, seen)
		r.int4(3)
	}
}

func (m *model) fillMailboxes(r *rows) {
	for i := range m.size.Agents {
		if !r.next() {
			return
		}
		r.text(m.agentID(i))
		r.int8(int64(3 * m.size.Certificates / m.size.Agents))
	}
}

// fillCredentials writes hashes of credentials that nobody has.
func (m *model) fillCredentials(r *rows) {
	for i := range m.size.Agents {
		if !r.next() {
			return
		}
		create := m.agentTime(i)
		r.uuid(m.uuid(ofCredential, i, create))
		r.text(m.agentID(i))
		r.bytea(m.bytes(ofCredential, i, 32))
		r.text("ACTIVE")
		r.time(create, create.add(time.Second))
	}
}
