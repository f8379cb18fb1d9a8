package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Assignment is one row of assignments: a piece of work in an agent's mailbox.
type Assignment struct {
	ID            string
	AgentID       string
	Kind          string
	Status        string
	Mailbox       int64
	CertificateID string
	DeploymentID  string
	Version       int32
	Payload       []byte
	LeaseID       string
	LeaseUntil    *time.Time
	Attempts      int32
	DueTime       time.Time
	DeadlineTime  time.Time
	CreateTime    time.Time
}

const assignmentColumns = `s.id::text AS id, s.agent_id, s.kind, s.status, s.mailbox, s.certificate_id, COALESCE(s.deployment_id, '') AS deployment_id,
 s.version, s.payload, COALESCE(s.lease_id::text, '') AS lease_id, s.lease_until, s.attempts, s.due_time, s.deadline_time, s.create_time`

// GetAssignment reads one.
func (r Reads) GetAssignment(ctx context.Context, id string) (Assignment, error) {
	return one[Assignment](ctx, r.q, "read assignment", `SELECT `+assignmentColumns+` FROM assignments s WHERE s.id = $1::uuid`, id)
}

// GetAssignments reads those that there are of the ids.
func (r Reads) GetAssignments(ctx context.Context, ids []string) ([]Assignment, error) {
	return all[Assignment](ctx, r.q, "read assignments", `SELECT `+assignmentColumns+` FROM assignments s WHERE s.id = ANY($1::uuid[])`, ids)
}

// LockAssignment reads one and keeps others from changing it until the end of the transaction.
func (t *Tx) LockAssignment(ctx context.Context, id string) (Assignment, error) {
	return one[Assignment](ctx, t.q, "lock assignment", `SELECT `+assignmentColumns+` FROM assignments s WHERE s.id = $1::uuid FOR UPDATE`, id)
}

// nextMailbox takes the next number of an agent's mailbox, and holds the mailbox until the commit.
func (t *Tx) nextMailbox(ctx context.Context, agentID string) (int64, error) {
	n, err := value[int64](ctx, t.q, "number mailbox", `UPDATE mailboxes SET revision = revision + 1 WHERE agent_id = $1 RETURNING revision`, agentID)
	if errors.Is(err, ErrNotFound) {
		return 0, fmt.Errorf("number mailbox: agent %s has none", agentID)
	}
	return n, err
}

// nextMailboxes takes the next numbers of agents' mailboxes, as many as each gets, and holds the mailboxes until the commit. It answers the
// last number of each.
func (t *Tx) nextMailboxes(ctx context.Context, places map[string]int64) (map[string]int64, error) {
	agents, numbers := make([]string, 0, len(places)), make([]int64, 0, len(places))
	for agent, n := range places {
		agents, numbers = append(agents, agent), append(numbers, n)
	}
	type mailbox struct {
		AgentID  string
		Revision int64
	}
	rows, err := all[mailbox](ctx, t.q, "number mailboxes", `WITH locked AS MATERIALIZED (
 SELECT m.agent_id, e.n FROM mailboxes m JOIN unnest($1::text[], $2::bigint[]) AS e (agent_id, n) ON e.agent_id = m.agent_id
 ORDER BY m.agent_id FOR UPDATE OF m)
UPDATE mailboxes m SET revision = m.revision + l.n FROM locked l WHERE m.agent_id = l.agent_id RETURNING m.agent_id, m.revision`, agents, numbers)
	if err != nil {
		return nil, err
	}
	last := make(map[string]int64, len(rows))
	for _, m := range rows {
		last[m.AgentID] = m.Revision
	}
	for agent := range places {
		if _, ok := last[agent]; !ok {
			return nil, fmt.Errorf("number mailboxes: agent %s has none", agent)
		}
	}
	return last, nil
}

// InsertAssignments puts work into mailboxes, in its order, and hints the agents. It answers the ids that were not there already.
func (t *Tx) InsertAssignments(ctx context.Context, work []Assignment) ([]string, error) {
	if len(work) == 0 {
		return nil, nil
	}
	places := map[string]int64{}
	for _, s := range work {
		places[s.AgentID]++
	}
	last, err := t.nextMailboxes(ctx, places)
	if err != nil {
		return nil, err
	}
	var ids, agents, kinds, certificates []string
	var deployments []*string
	var mailboxes []int64
	var versions []int32
	var payloads [][]byte
	var deadlines []time.Time
	for _, s := range work {
		places[s.AgentID]--
		var deployment *string
		if s.DeploymentID != "" {
			deployment = &s.DeploymentID
		}
		ids, agents, kinds, certificates = append(ids, s.ID), append(agents, s.AgentID), append(kinds, s.Kind), append(certificates, s.CertificateID)
		deployments, mailboxes = append(deployments, deployment), append(mailboxes, last[s.AgentID]-places[s.AgentID])
		versions, payloads, deadlines = append(versions, s.Version), append(payloads, s.Payload), append(deadlines, s.DeadlineTime)
	}
	added, err := all[struct {
		ID      string
		AgentID string
		Mailbox int64
	}](ctx, t.q, "insert assignments", `INSERT INTO assignments (id, agent_id, kind, status, mailbox, certificate_id, deployment_id, version, payload, due_time, deadline_time)
SELECT e.id, e.agent_id, e.kind, 'OPEN', e.mailbox, e.certificate_id, e.deployment_id, e.version, e.payload, now(), e.deadline_time
 FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::integer[], $8::bytea[], $9::timestamptz[])
  AS e (id, agent_id, kind, mailbox, certificate_id, deployment_id, version, payload, deadline_time)
 ORDER BY e.id ON CONFLICT (id) DO NOTHING RETURNING id::text AS id, agent_id, mailbox`,
		ids, agents, kinds, mailboxes, certificates, deployments, versions, payloads, deadlines)
	if err != nil {
		return nil, err
	}
	out := make([]string, 0, len(added))
	for _, a := range added {
		out = append(out, a.ID)
		t.Notify(Notice{Kind: NoticeWork, AgentID: a.AgentID, Number: a.Mailbox})
	}
	return out, nil
}

// Lease says what LeaseAssignments takes for an agent.
type Lease struct {
	AgentID string
	// After is a number of the mailbox: older work is left out.
	After int64
	Limit int
}

// LeaseAssignments takes agents' open work, that of each in its order. Work under a live lease keeps its lease, made longer: an agent that
// starts again finds what it had. Deployments of the work are locked first, as everywhere. The rows come in no order.
func (t *Tx) LeaseAssignments(ctx context.Context, leases []Lease, until time.Time) ([]Assignment, error) {
	var agents []string
	var after []int64
	var most []int
	for _, l := range leases {
		agents, after, most = append(agents, l.AgentID), append(after, l.After), append(most, l.Limit)
	}
	const wanted = `unnest($1::text[], $2::bigint[], $3::integer[]) AS q (agent_id, after, most) CROSS JOIN LATERAL (
 SELECT c.id, c.deployment_id FROM assignments c WHERE c.agent_id = q.agent_id AND c.mailbox > q.after AND c.status IN ('OPEN', 'LEASED')
 ORDER BY c.mailbox LIMIT q.most) w`
	_, err := t.q.Exec(ctx, `SELECT d.id FROM deployments d WHERE d.id IN (SELECT w.deployment_id FROM `+wanted+`) ORDER BY d.id FOR UPDATE`, agents, after, most)
	if err != nil {
		return nil, wrap("lock deployments of mailboxes", err)
	}
	return all[Assignment](ctx, t.q, "lease assignments", `WITH wanted AS MATERIALIZED (SELECT w.id FROM `+wanted+`), locked AS MATERIALIZED (
 SELECT c.id FROM assignments c WHERE c.id IN (SELECT id FROM wanted) AND c.status IN ('OPEN', 'LEASED') ORDER BY c.id FOR UPDATE)
UPDATE assignments s SET status = 'LEASED',
 lease_id = CASE WHEN s.status = 'LEASED' AND s.lease_until > now() THEN s.lease_id ELSE gen_random_uuid() END,
 attempts = s.attempts + CASE WHEN s.status = 'LEASED' AND s.lease_until > now() THEN 0 ELSE 1 END,
 lease_until = $4
 FROM locked l WHERE s.id = l.id RETURNING `+assignmentColumns, agents, after, most, until)
}

// CountOpenAfter counts an agent's open work after a number.
func (r Reads) CountOpenAfter(ctx context.Context, agentID string, after int64) (int32, error) {
	return value[int32](ctx, r.q, "count open work", `SELECT count(*)::int FROM assignments WHERE agent_id = $1 AND mailbox > $2 AND status IN ('OPEN', 'LEASED')`, agentID, after)
}

// ExtendLease makes a live lease longer. It answers false when the lease is not current.
func (t *Tx) ExtendLease(ctx context.Context, id, leaseID string, until time.Time) (bool, error) {
	return changed(ctx, t.q, "extend lease", `UPDATE assignments SET lease_until = $3 WHERE id = $1::uuid AND status = 'LEASED' AND lease_id = $2::uuid`, id, leaseID, until)
}

// Finish is how work under a lease ends: DONE or FAILED.
type Finish struct{ ID, LeaseID, Status string }

// FinishAssignments ends work under its leases. It answers those whose leases were current.
func (t *Tx) FinishAssignments(ctx context.Context, work []Finish) ([]Finish, error) {
	if len(work) == 0 {
		return nil, nil
	}
	var ids, leases, statuses []string
	for _, f := range work {
		ids, leases, statuses = append(ids, f.ID), append(leases, f.LeaseID), append(statuses, f.Status)
	}
	return all[Finish](ctx, t.q, "finish assignments", `WITH locked AS MATERIALIZED (
 SELECT s.id, e.status FROM assignments s JOIN unnest($1::uuid[], $2::uuid[], $3::text[]) AS e (id, lease_id, status) ON e.id = s.id AND e.lease_id = s.lease_id
 WHERE s.status = 'LEASED' ORDER BY s.id FOR UPDATE OF s)
UPDATE assignments s SET status = l.status, end_time = now() FROM locked l WHERE s.id = l.id RETURNING s.id::text AS id, s.lease_id::text AS lease_id, s.status`, ids, leases, statuses)
}

// EndAssignment ends open work from the server's side, as FAILED or CANCELLED.
func (t *Tx) EndAssignment(ctx context.Context, id, status string) (bool, error) {
	return changed(ctx, t.q, "end assignment", `UPDATE assignments SET status = $2, end_time = now() WHERE id = $1::uuid AND status IN ('OPEN', 'LEASED')`, id, status)
}

// OpenSelection names open work by what it belongs to; empty fields count for nothing.
type OpenSelection struct {
	AgentID       string
	CertificateID string
	DeploymentID  string
	Kind          string
	// DeploymentIDs, if not nil, names several deployments.
	DeploymentIDs []string
}

// CancelOpen ends open work and answers it.
func (t *Tx) CancelOpen(ctx context.Context, o OpenSelection) ([]Assignment, error) {
	w := &where{}
	w.Equal("s.agent_id", o.AgentID)
	w.Equal("s.certificate_id", o.CertificateID)
	w.Equal("s.deployment_id", o.DeploymentID)
	w.Equal("s.kind", o.Kind)
	if o.DeploymentIDs != nil {
		w.Add("s.deployment_id = ANY(?)", o.DeploymentIDs)
	}
	return all[Assignment](ctx, t.q, "cancel open work", `UPDATE assignments s SET status = 'CANCELLED', end_time = now() WHERE s.status IN ('OPEN', 'LEASED') AND `+w.SQL()+` RETURNING `+assignmentColumns, w.Args()...)
}

// OpenFor reads the open work of a deployment.
func (r Reads) OpenFor(ctx context.Context, deploymentID string) (Assignment, error) {
	return one[Assignment](ctx, r.q, "read open work", `SELECT `+assignmentColumns+` FROM assignments s WHERE s.deployment_id = $1 AND s.status IN ('OPEN', 'LEASED')`, deploymentID)
}

// Late says what there is to do for the rescuer of the mailboxes.
type Late struct {
	// Lapsed: LapsedLeases has some; Overdue: Overdue has; Due: ClaimDue has deployments that are not served yet.
	Lapsed, Overdue, Due bool
}

const late = `SELECT EXISTS (SELECT 1 FROM assignments WHERE status = 'LEASED' AND lease_until <= now()) AS lapsed,
 EXISTS (SELECT 1 FROM assignments WHERE status IN ('OPEN', 'LEASED') AND deadline_time <= now() AND kind <> 'DEPLOY') AS overdue,
 EXISTS (SELECT 1 FROM deployments WHERE due_time <= now() AND status IN ('PENDING', 'DEPLOYING', 'FAILED')) AS due`

// Late looks for what LapsedLeases, Overdue and ClaimDue then read.
func (r Reads) Late(ctx context.Context) (Late, error) {
	return one[Late](ctx, r.q, "look for late work", late)
}

// LapsedLeases reads work whose lease has run out.
func (r Reads) LapsedLeases(ctx context.Context, limit int) ([]Assignment, error) {
	return all[Assignment](ctx, r.q, "read lapsed leases", `SELECT `+assignmentColumns+` FROM assignments s WHERE s.status = 'LEASED' AND s.lease_until <= now()
 ORDER BY s.lease_until LIMIT $1`, limit)
}

// ReopenAssignment puts work whose lease has run out back, under a new number, and hints the agent.
func (t *Tx) ReopenAssignment(ctx context.Context, s Assignment) (bool, error) {
	n, err := t.nextMailbox(ctx, s.AgentID)
	if err != nil {
		return false, err
	}
	back, err := changed(ctx, t.q, "reopen assignment", `UPDATE assignments SET status = 'OPEN', lease_id = NULL, lease_until = NULL, mailbox = $3
 WHERE id = $1::uuid AND status = 'LEASED' AND lease_id = $2::uuid AND lease_until <= now()`, s.ID, s.LeaseID, n)
	if back {
		t.Notify(Notice{Kind: NoticeWork, AgentID: s.AgentID, Number: n})
	}
	return back, err
}

// Overdue reads open work whose deadline has passed, deployments left out: those have deadlines of their own.
func (r Reads) Overdue(ctx context.Context, limit int) ([]Assignment, error) {
	return all[Assignment](ctx, r.q, "read overdue work", `SELECT `+assignmentColumns+` FROM assignments s WHERE s.status IN ('OPEN', 'LEASED') AND s.deadline_time <= now()
 AND s.kind <> 'DEPLOY' ORDER BY s.deadline_time LIMIT $1`, limit)
}

// PruneAssignments deletes work that ended before a time.
func (t *Tx) PruneAssignments(ctx context.Context, before time.Time) (int, error) {
	return count(ctx, t.q, "prune assignments", `DELETE FROM assignments WHERE end_time < $1`, before)
}
