package seed

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

// renewalCheck is who asks for renewals that are due.
const renewalCheck = "system:renewal-check"

// jobKind says what became of a job.
type jobKind int8

const (
	jobDone      jobKind = iota // it brought a version
	jobCancelled                // a first one, by a person
	jobFailed                   // another try brought the version
	jobDeploy                   // somebody had a version deployed once more
)

// job is one, about a certificate's version.
type job struct {
	at   stamp // when it was created
	of   issued
	kind jobKind
	// index is its own among jobs.
	index int
}

// jobLead is how long before its version a job is created.
const jobLead = 3 * time.Second

func (m *model) jobID(j job) string { return m.id("job-", ofJob, j.index, j.at) }

// jobOf is the one that brought a version.
func jobOf(v issued) job { return job{at: v.at.add(-jobLead), of: v, kind: jobDone, index: v.slot()} }

// draftJobs gives a job to each version and to each certificate that has none, and further ones up to the size, all final.
func (m *model) draftJobs() []job {
	jobs := make([]job, 0, max(m.size.Jobs, len(m.versions)+m.size.Certificates/20))
	for _, v := range m.versions {
		jobs = append(jobs, jobOf(v))
	}
	n := m.size.Certificates
	for i := range m.certificates {
		if c := &m.certificates[i]; c.versions == 0 {
			jobs = append(jobs, job{at: c.create.add(time.Second), of: issued{certificate: int32(i)}, kind: jobCancelled, index: 2*n + i})
		}
	}
	more := max(m.size.Jobs-len(jobs), 0)
	for k := range more {
		v := m.versions[k*len(m.versions)/more]
		j := job{at: v.at.add(-time.Hour), of: v, kind: jobFailed, index: 4*n + k}
		if c := &m.certificates[v.certificate]; c.targets > 0 && k%2 == 0 {
			j.kind, j.at = jobDeploy, min(v.at.add(time.Hour), m.now.add(-time.Minute))
		}
		jobs = append(jobs, j)
	}
	slices.SortFunc(jobs, func(a, b job) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.index, b.index)) })
	return jobs
}

func (j job) typ() string {
	switch {
	case j.kind == jobDeploy:
		return "DEPLOY"
	case j.of.number > 0:
		return "RENEW"
	default:
		return "ISSUE"
	}
}

func (j job) state() string {
	return [...]string{"COMPLETED", "CANCELLED", "FAILED", "COMPLETED"}[j.kind]
}

func (m *model) asker(j job) string {
	if j.typ() == "RENEW" {
		return renewalCheck
	}
	return m.user(int(j.of.certificate))
}

func (m *model) scheduler() []table {
	const schema = "renewalscheduler"
	return []table{
		{schema, "plans", `id, state, policy_id, policy_revision, certificate_status, requested_by, renew_at, not_after, rule, failures,
 retry_time, subject, create_time, update_time, due_time`, m.fillPlans},
		{schema, "plan_keys", `certificate_id, agent_id, version, not_before, not_after`, m.fillPlanKeys},
		{schema, "jobs", `id, type, state, certificate_id, target_id, attempt, max_attempts, error_reason, error_message, requested_by, askers,
 create_time, start_time, end_time, deadline_time, revision`, m.fillJobs},
		{schema, "job_keys", `job_id, agent_id, state, task_id, csr_pem, order_id, version, error_reason, error_message, permanent, order_request`, m.fillJobKeys},
	}
}

func (m *model) fillPlans(r *rows) {
	for i := range m.certificates {
		if !r.next() {
			return
		}
		m.plan(r, i)
	}
}

// plan follows the scheduler: a final certificate's has ended, one that waits for a person is idle, the others are scheduled.
func (m *model) plan(r *rows, i int) {
	c := &m.certificates[i]
	p, w, updated := policies[c.policy], m.words(i), c.create.add(2*time.Second)
	var renewAt, notAfter, due, retry stamp
	state, rule, failures := "IDLE", "", 0
	if c.versions > 0 {
		var notBefore stamp
		v := m.current(i)
		notBefore, notAfter = m.validity(v)
		updated = max(v.at.add(400*time.Millisecond), c.revoked)
		rule = p.rule(c.lifetime())
		// Certificates of the same time are spread over a tenth of what is left by then.
		left := c.lifetime() - p.after(c.lifetime())
		renewAt = notBefore.add(p.after(c.lifetime()) + time.Duration(m.draw(ofPlace, i).Uint64()%uint64(left/10)))
		renewAt -= renewAt % 1_000_000
	}
	switch {
	case c.status == revoked || c.status == archived:
		state, renewAt = "ENDED", 0
	case c.status == pending:
		failures, retry = 1, c.create.add(15*time.Minute)
	case !p.automatic:
		renewAt = 0
	default:
		state, due = "SCHEDULED", renewAt
	}
	r.text(m.certificateID(i), state, p.id)
	r.int4(m.policyRevisions[c.policy])
	r.text(c.status.String(), m.user(i))
	r.time(renewAt, notAfter)
	r.text(rule)
	r.int4(failures)
	r.time(retry)
	r.text(subject(c, w))
	r.time(c.create.add(100*time.Millisecond), updated, due)
}

// subject is the scheduler's hash of what is wanted: the same names, issuer, profile and key algorithm have the same.
func subject(c *certificate, w wording) string {
	b := make([]byte, 0, 256)
	put := func(values ...string) {
		for _, v := range values {
			b = fmt.Appendf(b, "%d:%s,", len(v), v)
		}
		b = append(b, '\n')
	}
	put(w.commonName, issuers[c.issuer].id, profiles[c.profile].id, keyAlgorithm)
	put(slices.Sorted(slices.Values(w.dnsNames))...)
	b = append(b, "\n\n\n"...) // no addresses, mail addresses and URIs
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (m *model) fillPlanKeys(r *rows) {
	for i := range m.certificates {
		c := &m.certificates[i]
		if c.versions == 0 {
			continue
		}
		if !r.next() {
			return
		}
		r.text(m.certificateID(i), m.holder(c))
		r.int4(int(c.versions))
		r.time(m.validity(m.current(i)))
	}
}

func (m *model) fillJobs(r *rows) {
	for _, j := range m.jobs {
		if !r.next() {
			return
		}
		i := int(j.of.certificate)
		target, reason, message := "", "", ""
		attempt, start, end, deadline := 1, j.at.add(100*time.Millisecond), j.at.add(jobLead+500*time.Millisecond), j.at.add(day)
		switch j.kind {
		case jobDeploy:
			target = m.targetID(int(m.certificates[i].target))
		case jobCancelled:
			attempt, start, end, reason, message = 0, 0, j.at.add(10*time.Minute), "CANCELLED", "cancelled by "+m.asker(j)
		case jobFailed:
			attempt, end, reason, message = 5, j.at.add(50*time.Minute), "CA_UNAVAILABLE", "the CA did not answer in time"
		case jobDone:
		}
		r.text(m.jobID(j), j.typ(), j.state(), m.certificateID(i), target)
		r.int4(attempt, 5)
		r.text(reason, message, m.asker(j))
		r.array([]string{m.asker(j)})
		r.time(j.at, start, end, deadline)
		r.int4(6)
	}
}

func (m *model) fillJobKeys(r *rows) {
	for _, j := range m.jobs {
		if j.kind != jobDone && j.kind != jobFailed {
			continue
		}
		if !r.next() {
			return
		}
		i := int(j.of.certificate)
		c := &m.certificates[i]
		r.text(m.jobID(j), m.holder(c))
		state, order, version, reason, message := "DONE", m.orderID(j.of), int(j.of.number)+1, "", ""
		if j.kind == jobFailed {
			state, order, version = "FAILED", m.id("ord-", ofOrder, j.index, j.at), 0
			reason, message = "CA_UNAVAILABLE", "the CA did not answer in time"
		}
		r.text(state)
		if c.targets == 0 {
			r.null()
		} else {
			r.uuid(m.uuid(ofTask, j.index, j.at))
		}
		r.text(m.sample.csr, order)
		r.int4(version)
		r.text(reason, message)
		r.bool(false)
		r.bytea(orderRequest(c, m.words(i)))
	}
}

// orderRequest is what an order is placed for, as the scheduler keeps it.
func orderRequest(c *certificate, w wording) []byte {
	b, err := proto.Marshal(&issuancev1.SubmitOrderRequest{
		IssuerId: issuers[c.issuer].id, ProfileId: profiles[c.profile].id, KeyAlgorithm: typev1.KeyAlgorithm_ECDSA_P256,
		Names: &typev1.Names{CommonName: w.commonName, DnsNames: w.dnsNames},
	})
	if err != nil {
		panic(err) // only text that is not UTF-8 cannot be encoded
	}
	return b
}
