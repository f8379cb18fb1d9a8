package seed

import (
	"cmp"
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
)

// stamp is a time in microseconds of Unix time, as Postgres keeps them; 0 is none.
type stamp int64

func stampOf(t time.Time) stamp { return stamp(t.UnixMicro()) }

func (s stamp) add(d time.Duration) stamp { return s + stamp(d.Microseconds()) }

func (s stamp) sub(o stamp) time.Duration { return time.Duration(s-o) * time.Microsecond }

func (s stamp) rfc3339() string { return time.UnixMicro(int64(s)).UTC().Format(time.RFC3339) }

// day is the unit of lifetimes.
const day = 24 * time.Hour

// history is how far the oldest rows lie back.
const history = 730 * day

// backdate is how long before its order a certificate of the local issuer begins.
const backdate = time.Minute

// kind keeps the draws of one sort of row from those of another.
type kind uint64

const (
	ofCertificate kind = iota + 1
	ofName
	ofVersion
	ofOrder
	ofJob
	ofTask
	ofKey
	ofFingerprint
	ofSerial
	ofAgent
	ofCredential
	ofTarget
	ofDeployment
	ofRevocation
	ofEvent
	ofDiscovered
	ofRequest
	ofPlace
	ofUser
)

// certificate is what all rows about one certificate are made from.
type certificate struct {
	create  stamp
	status  status
	profile int8
	policy  int8
	issuer  int8
	// versions is how many there are, 0 to 2; at are when they were issued.
	versions int8
	at       [2]stamp
	revoked  stamp
	// target is the first of the targets, of which all are on one agent.
	target  int32
	targets int8
}

type status int8

const (
	active status = iota
	pending
	expired
	revoked
	archived
)

func (s status) String() string {
	return [...]string{"ACTIVE", "PENDING", "EXPIRED", "REVOKED", "ARCHIVED"}[s]
}

// deployed tells whether the certificate is in use: its targets have deployments.
func (c *certificate) deployed() bool {
	return c.targets > 0 && c.versions > 0 && (c.status == active || c.status == expired)
}

// issued names one version: certificate and number, which begins with 0 here.
type issued struct {
	certificate int32
	number      int8
	at          stamp
}

// slot numbers versions for the draws.
func (v issued) slot() int { return int(v.certificate)*2 + int(v.number) }

// model is the whole data set, before it is written out. Every row is drawn from the seed and its own place, so that tables can be
// written at the same time, in any order.
type model struct {
	size   Size
	seed   uint64
	now    stamp
	sample sample
	// policyRevisions are those of policies.
	policyRevisions [len(policies)]int

	certificates []certificate
	// versions are in the order in which they were issued, as a service would have written them.
	versions []issued
	jobs     []job
}

// draw gives random numbers that belong to one row.
func (m *model) draw(k kind, index int) *rand.PCG {
	return rand.NewPCG(m.seed^uint64(k)<<56, uint64(index))
}

func (m *model) random(k kind, index int) *rand.Rand {
	return rand.New(m.draw(k, index)) //nolint:gosec // a data set that can be made again, no secret
}

// id is a UUID like version 7, which begins with the time, but of version 8 (RFC 9562, section 5.8): an id that no service makes.
func (m *model) id(prefix string, k kind, index int, at stamp) string {
	id := m.uuid(k, index, at)
	return prefix + id.String()
}

func (m *model) uuid(k kind, index int, at stamp) uuid.UUID {
	var id uuid.UUID
	p := m.draw(k, index)
	a, b, ms := p.Uint64(), p.Uint64(), uint64(at)/1000
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	for i := range 8 {
		id[8+i] = byte(b >> (8 * i))
	}
	id[6], id[7] = 0x80|byte(a>>8)&0x0f, byte(a)
	id[8] = 0x80 | id[8]&0x3f
	return id
}

// hex gives n random bytes, which begin with a digit from 1 on.
func (m *model) hex(k kind, index, n int) string {
	raw := m.bytes(k, index, n)
	raw[0] |= 0x10
	return hex.EncodeToString(raw)
}

func (m *model) bytes(k kind, index, n int) []byte {
	p := m.draw(k, index)
	raw := make([]byte, 0, 64)
	for len(raw) < n {
		x := p.Uint64()
		raw = append(raw, byte(x), byte(x>>8), byte(x>>16), byte(x>>24), byte(x>>32), byte(x>>40), byte(x>>48), byte(x>>56))
	}
	return raw[:n]
}

func (m *model) certificateID(i int) string {
	return m.id("cert-", ofCertificate, i, m.certificates[i].create)
}

func (m *model) orderID(v issued) string     { return m.id("ord-", ofOrder, v.slot(), v.at) }
func (m *model) serial(v issued) string      { return m.hex(ofSerial, v.slot(), 16) }
func (m *model) fingerprint(v issued) string { return m.hex(ofFingerprint, v.slot(), 32) }

// version gives one by certificate and number.
func (m *model) version(i, number int) issued {
	return issued{certificate: int32(i), number: int8(number), at: m.certificates[i].at[number]}
}

// current is the newest version.
func (m *model) current(i int) issued { return m.version(i, int(m.certificates[i].versions)-1) }

// validity is from when to when a version is valid.
func (m *model) validity(v issued) (notBefore, notAfter stamp) {
	whole := v.at - v.at%1_000_000
	return whole.add(-backdate), whole.add(m.certificates[v.certificate].lifetime())
}

func (c *certificate) lifetime() time.Duration { return profiles[c.profile].lifetime }

// holder is the agent that has the key; empty when the caller has it.
func (m *model) holder(c *certificate) string {
	if c.targets == 0 {
		return ""
	}
	return m.agentID(m.agentOf(int(c.target)))
}

// build draws the certificates, versions and jobs.
func (m *model) build() {
	n := m.size.Certificates
	m.certificates = make([]certificate, n)
	for i := range m.certificates {
		m.certificates[i] = m.draft(i)
	}
	m.versions = make([]issued, 0, n+n/5)
	for i := range m.certificates {
		for number := range int(m.certificates[i].versions) {
			m.versions = append(m.versions, m.version(i, number))
		}
	}
	slices.SortFunc(m.versions, func(a, b issued) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.slot(), b.slot())) })
	m.jobs = m.draftJobs()
}

// spreadOver tells whether place i of n is one of k that lie evenly among them.
func spreadOver(i, n, k int) bool { return (i+1)*k/n != i*k/n }

// draft draws one certificate. They are created one after the other over the whole history.
func (m *model) draft(i int) certificate {
	r := m.random(ofCertificate, i)
	n := m.size.Certificates
	step := (history - time.Hour) / time.Duration(n)
	c := certificate{create: m.now.add(-history + step*time.Duration(i) + time.Duration(r.Int64N(int64(step/2)+1)))}
	c.profile, c.policy, c.issuer = profileOf(r.Float64()), policyOf(r.Float64()), issuerOf(r.Float64())
	c.status = statusOf(r.Float64())
	if spreadOver(i, n, m.size.Revoked) {
		c.status, c.issuer = revoked, localIssuer // which lists it in its CRL
	}
	if c.status == expired && m.now.sub(c.create) < c.lifetime()+2*day {
		c.status = active // it is not old enough
	}
	if c.status == expired {
		c.policy = manualPolicy // any other would have had it renewed
	}
	m.issue(r, &c)
	m.bind(r, &c)
	return c
}

// issue decides when the versions of a certificate were issued. The history before them is not there: a certificate of two years
// would have a dozen versions.
func (m *model) issue(r *rand.Rand, c *certificate) {
	if c.status == pending {
		return
	}
	first, last := c.create.add(2*time.Second), m.now.add(-time.Minute)
	switch c.status {
	case expired:
		last = m.now.add(-c.lifetime() - day)
	case active, revoked:
		// Its renewal is a tenth of the way off, a day at the least.
		after := policies[c.policy].after(c.lifetime())
		first = max(first, m.now.add(-after+max(after/10, day)))
	case archived, pending:
	}
	at := first + stamp(r.Int64N(int64(max(last-first, 1))))
	c.versions, c.at[0] = 1, at
	if earlier := at.add(-policies[c.policy].after(c.lifetime())); c.status == active && earlier > c.create.add(time.Minute) && r.Float64() < renewedShare {
		c.versions, c.at = 2, [2]stamp{earlier, at}
	}
	if c.status == revoked {
		c.revoked = at.add(time.Hour) + stamp(r.Int64N(max(m.now.sub(at).Microseconds(), 1)))
		c.revoked = min(c.revoked, m.now.add(-30*time.Second))
	}
}

// renewedShare are the certificates with the version before the current one, of those that can have it.
const renewedShare = 0.14

// bind chooses the targets, all on one agent: so the certificate has one key.
func (m *model) bind(r *rand.Rand, c *certificate) {
	const most = 3
	share := r.Float64()
	c.target = int32(r.IntN(m.size.targets()))
	switch {
	case share < 0.12: // the caller has the key
	case share < 0.82:
		c.targets = 1
	case share < 0.95:
		c.targets = 2
	default:
		c.targets = most
	}
	if per := m.size.targetsPerAgent(); int(c.targets) > per-int(c.target)%per {
		c.targets = min(c.targets, 1)
	}
}
