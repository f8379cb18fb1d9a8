package seed

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/services/audit"
)

// anchorEvery is how many events lie between two checkpoints. A service makes one whenever it has verified what is new.
const anchorEvery = 5000

// record writes the audit record: a whole chain, whose end is what the services have recorded themselves so far.
type record struct {
	m     *model
	chain *audit.Chain
	// kept are the events of services. They get new places.
	kept        []*audit.Event
	checkpoints []audit.Anchor
	spans       []span
	total       int64
}

// span is what audit notes of so many events: between which times they happened.
type span struct{ earliest, latest stamp }

func (d *record) tables() []table {
	const schema = "audit"
	return []table{
		{schema, "events", `sequence, id, time, record_time, actor_type, actor_id, action, resource_type, resource_id, outcome, request_id, data,
 hash, previous_hash`, d.fillEvents},
	}
}

// anchors are the tables that can be written when the events are.
func (d *record) anchors() []table {
	const schema = "audit"
	return []table{
		{schema, "head", `sequence, hash, time, mac, key_ids, macs`, d.fillHead},
		{schema, "checkpoints", `sequence, hash, time, mac`, d.fillCheckpoints},
		{schema, "checkpoint_seals", `sequence, key_id, mac`, d.fillSeals},
		{schema, "spans", `first, last, earliest, latest`, d.fillSpans},
	}
}

// keep reads the events that services have recorded. Theirs are the ids of version 7.
func (d *record) keep(ctx context.Context, conn *pgx.Conn) error {
	found, err := conn.Query(ctx, `SELECT id, time, record_time, actor_type, actor_id, action, resource_type, resource_id, outcome, request_id, data::text
 FROM audit.events WHERE id NOT LIKE 'evt-________-____-8%' ORDER BY sequence`)
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	d.kept, err = pgx.CollectRows(found, func(row pgx.CollectableRow) (*audit.Event, error) {
		e := &audit.Event{}
		var data string
		err := row.Scan(&e.ID, &e.Time, &e.RecordTime, &e.ActorType, &e.ActorID, &e.Action, &e.ResourceType, &e.ResourceID, &e.Outcome, &e.RequestID, &data)
		e.Data = []byte(data)
		return e, err
	})
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	return nil
}

func (d *record) fillEvents(r *rows) {
	for i := range d.m.size.Events {
		e := d.m.event(i)
		if !d.write(r, e, e.RecordTime) {
			return
		}
	}
	for _, e := range d.kept {
		if !d.write(r, e, e.RecordTime) {
			return
		}
	}
	if d.total%anchorEvery != 0 {
		d.checkpoints = append(d.checkpoints, d.chain.Checkpoint())
	}
}

func (d *record) write(r *rows, e *audit.Event, recorded time.Time) bool {
	if !r.next() {
		return false
	}
	d.chain.Add(e, recorded)
	d.span(stampOf(e.Time))
	d.total++
	r.int8(e.Sequence)
	r.text(e.ID)
	r.time(stampOf(e.Time), stampOf(e.RecordTime))
	r.text(e.ActorType, e.ActorID, e.Action, e.ResourceType, e.ResourceID, e.Outcome, e.RequestID, string(e.Data))
	r.bytea(e.Hash)
	r.bytea(e.PreviousHash)
	if d.total%anchorEvery == 0 {
		d.checkpoints = append(d.checkpoints, d.chain.Checkpoint())
	}
	return true
}

func (d *record) fillHead(r *rows) {
	if d.total == 0 || !r.next() {
		return
	}
	head := d.chain.Head()
	var ids, macs [][]byte
	for _, s := range head.Seals {
		ids, macs = append(ids, s.KeyID), append(macs, s.MAC)
	}
	r.int8(head.Sequence)
	r.bytea(head.Hash)
	r.time(stampOf(head.Time))
	r.bytea(head.MAC)
	r.byteas(ids)
	r.byteas(macs)
}

func (d *record) fillCheckpoints(r *rows) {
	for _, a := range d.checkpoints {
		if !r.next() {
			return
		}
		r.int8(a.Sequence)
		r.bytea(a.Hash)
		r.time(stampOf(a.Time))
		r.bytea(a.MAC)
	}
}

func (d *record) fillSeals(r *rows) {
	for _, a := range d.checkpoints {
		for _, s := range a.Seals {
			if !r.next() {
				return
			}
			r.int8(a.Sequence)
			r.bytea(s.KeyID)
			r.bytea(s.MAC)
		}
	}
}

// span counts an event to the last span, or begins one with it.
func (d *record) span(at stamp) {
	if d.total%audit.SpanSize == 0 {
		d.spans = append(d.spans, span{at, at})
	}
	last := &d.spans[len(d.spans)-1]
	last.earliest, last.latest = min(last.earliest, at), max(last.latest, at)
}

// fillSpans writes those that have all their events.
func (d *record) fillSpans(r *rows) {
	for i := range d.total / audit.SpanSize {
		if !r.next() {
			return
		}
		r.int8(i*audit.SpanSize + 1)
		r.int8((i + 1) * audit.SpanSize)
		r.time(d.spans[i].earliest, d.spans[i].latest)
	}
}

// event makes one of the record. Its time goes on evenly, and it is about what was issued then.
func (m *model) event(i int) *audit.Event {
	n := m.size.Events
	draw := m.random(ofEvent, i)
	at := m.now.add(-history + time.Duration(float64(history-time.Hour)*float64(i)/float64(n)))
	e := &audit.Event{
		ID: m.id("evt-", ofEvent, i, at), Time: time.UnixMicro(int64(at)).UTC(), RecordTime: time.UnixMicro(int64(at.add(25 * time.Millisecond))).UTC(),
		ActorType: "SERVICE", Outcome: "SUCCESS", RequestID: m.id("", ofRequest, i/4, at),
	}
	v := m.versions[i*len(m.versions)/n]
	m.tell(e, v, draw.Float64())
	return e
}

// tell gives an event its content, in the words of the service that records it.
func (m *model) tell(e *audit.Event, v issued, share float64) {
	i := int(v.certificate)
	c, j := &m.certificates[i], jobOf(v)
	id, order := m.certificateID(i), m.orderID(v)
	_, notAfter := m.validity(v)
	set := func(actor, action, resource, resourceID, data string) {
		e.ActorID, e.Action, e.ResourceType, e.ResourceID, e.Data = actor, action, resource, resourceID, []byte(data)
	}
	byUser := func() { e.ActorType, e.ActorID = "USER", m.user(i) }
	switch {
	case share < 0.10:
		w := m.words(i)
		set("", "certificate.created", "certificate", id, fmt.Sprintf(`{"dns_names":[%q],"issuer_id":%q,"name":%q,"policy_id":%q,"profile_id":%q,"target_ids":[]}`,
			w.dnsNames[0], issuers[c.issuer].id, w.name, policies[c.policy].id, profiles[c.profile].id))
		byUser()
	case share < 0.24:
		set("inventory", "job.created", "job", m.jobID(j), m.jobData(j, id, 0, "PENDING", ""))
	case share < 0.38:
		set("renewalscheduler", "order.submitted", "order", order, m.orderData(v, "SUBMITTING", ""))
	case share < 0.52:
		set("renewalscheduler", "order.issued", "order", order, m.orderData(v, "ISSUED", `"fingerprint_sha256":"`+m.fingerprint(v)+`",`))
	case share < 0.66:
		set("issuance", "version.stored", "certificate", id, fmt.Sprintf(`{"agent_id":%q,"fingerprint_sha256":%q,"not_after":%q,"order_id":%q,"serial_number":%q,"version":%d}`,
			m.holder(c), m.fingerprint(v), notAfter.rfc3339(), order, m.serial(v), v.number+1))
	case share < 0.80 && c.targets > 0:
		set(m.holder(c), "deployment.served", "deployment", m.deploymentID(i, 0, c.at[0].add(time.Second)),
			fmt.Sprintf(`{"address":"10.0.0.1:443","certificate_id":%q,"fingerprint_sha256":%q,"target_id":%q,"version":%d}`,
				id, m.fingerprint(v), m.targetID(int(c.target)), v.number+1))
		e.ActorType = "AGENT"
	case share < 0.95:
		set("inventory", "job.completed", "job", m.jobID(j), m.jobData(j, id, 1, "COMPLETED", ""))
	case share < 0.97:
		set("renewalscheduler", "job.failed", "job", m.jobID(j), m.jobData(j, id, 5, "FAILED", `"message":"the CA did not answer in time","reason":"CA_UNAVAILABLE",`))
		e.Outcome = "FAILURE"
	case share < 0.99:
		set("", "certificate.renew.requested", "certificate", id, fmt.Sprintf(`{"force":false,"job_id":%q}`, m.jobID(j)))
		byUser()
	default:
		set("", "certificate.updated", "certificate", id, `{"fields":["owner","labels"]}`)
		byUser()
	}
}

// jobData is what the scheduler records of a job; more comes after the certificate.
func (m *model) jobData(j job, certificateID string, attempt int, state, more string) string {
	return fmt.Sprintf(`{"attempt":%d,"certificate_id":%q,%s"requested_by":%q,"state":%q,"type":%q}`, attempt, certificateID, more, m.asker(j), state, j.typ())
}

// orderData is what issuance records of an order; more comes after the hash of the CSR.
func (m *model) orderData(v issued, state, more string) string {
	c, j := &m.certificates[v.certificate], jobOf(v)
	return fmt.Sprintf(`{"certificate_id":%q,"csr_sha256":%q,%s"issuer_id":%q,"job_id":%q,"profile_id":%q,"serial_number":%q,"status":%q}`,
		m.certificateID(int(v.certificate)), m.hex(ofRequest, v.slot(), 32), more, issuers[c.issuer].id, m.jobID(j), profiles[c.profile].id, m.serial(v), state)
}
