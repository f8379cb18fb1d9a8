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

// InsertAssignment puts work into a mailbox and hints the agent. It answers false when the id is there already.
func (t *Tx) InsertAssignment(ctx context.Context, s Assignment) (bool, error) {
	n, err := t.nextMailbox(ctx, s.AgentID)
	if err != nil {
		return false, err
	}
	var deployment *string
	if s.DeploymentID != "" {
		deployment = &s.DeploymentID
	}
	added, err := changed(ctx, t.q, "insert assignment", `INSERT INTO assignments (id, agent_id, kind, status, mailbox, certificate_id, deployment_id, version, payload, due_time, deadline_time)
VALUES ($1::uuid, $2, $3, 'OPEN', $4, $5, $6, $7, $8, now(), $9) ON CONFLICT (id) DO NOTHING`,
		s.ID, s.AgentID, s.Kind, n, s.CertificateID, deployment, s.Version, s.Payload, s.DeadlineTime)
	if added {
		t.Notify(Notice{Kind: NoticeWork, AgentID: s.AgentID, Number: n})
	}
	return added, err
}

// Lease says what LeaseAssignments takes.
type Lease struct {
	AgentID string
	// After is a number of the mailbox: older work is left out.
	After int64
	Limit int
	Until time.Time
}

// LeaseAssignments takes an agent's open work in its order. Work under a live lease keeps its lease, made longer: an agent that
// starts again finds what it had. Deployments of the work are locked first, as everywhere.
func (t *Tx) LeaseAssignments(ctx context.Context, l Lease) ([]Assignment, error) {
	_, err := t.q.Exec(ctx, `SELECT d.id FROM deployments d WHERE d.id IN (SELECT s.deployment_id FROM assignments s
 WHERE s.agent_id = $1 AND s.mailbox > $2 AND s.status IN ('OPEN', 'LEASED') ORDER BY s.mailbox LIMIT $3) ORDER BY d.id FOR UPDATE`, l.AgentID, l.After, l.Limit)
	if err != nil {
		return nil, wrap("lock deployments of mailbox", err)
	}
	rows, err := all[Assignment](ctx, t.q, "lease assignments", `UPDATE assignments s SET status = 'LEASED',
 lease_id = CASE WHEN s.status = 'LEASED' AND s.lease_until > now() THEN s.lease_id ELSE gen_random_uuid() END,
 attempts = s.attempts + CASE WHEN s.status = 'LEASED' AND s.lease_until > now() THEN 0 ELSE 1 END,
 lease_until = $4
WHERE s.id IN (SELECT c.id FROM assignments c WHERE c.agent_id = $1 AND c.mailbox > $2 AND c.status IN ('OPEN', 'LEASED')
 ORDER BY c.mailbox LIMIT $3 FOR UPDATE)
RETURNING `+assignmentColumns, l.AgentID, l.After, l.Limit, l.Until)
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// CountOpenAfter counts an agent's open work after a number.
func (r Reads) CountOpenAfter(ctx context.Context, agentID string, after int64) (int32, error) {
	return value[int32](ctx, r.q, "count open work", `SELECT count(*)::int FROM assignments WHERE agent_id = $1 AND mailbox > $2 AND status IN ('OPEN', 'LEASED')`, agentID, after)
}

// ExtendLease makes a live lease longer. It answers false when the lease is not current.
func (t *Tx) ExtendLease(ctx context.Context, id, leaseID string, until time.Time) (bool, error) {
	return changed(ctx, t.q, "extend lease", `UPDATE assignments SET lease_until = $3 WHERE id = $1::uuid AND status = 'LEASED' AND lease_id = $2::uuid`, id, leaseID, until)
}

// FinishAssignment ends work under its lease, as DONE or FAILED. It answers false when the lease is not current.
func (t *Tx) FinishAssignment(ctx context.Context, id, leaseID, status string) (bool, error) {
	return changed(ctx, t.q, "finish assignment", `UPDATE assignments SET status = $3, end_time = now() WHERE id = $1::uuid AND status = 'LEASED' AND lease_id = $2::uuid`, id, leaseID, status)
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
}

// CancelOpen ends open work and answers it.
func (t *Tx) CancelOpen(ctx context.Context, o OpenSelection) ([]Assignment, error) {
	w := &where{}
	w.Equal("s.agent_id", o.AgentID)
	w.Equal("s.certificate_id", o.CertificateID)
	w.Equal("s.deployment_id", o.DeploymentID)
	w.Equal("s.kind", o.Kind)
	return all[Assignment](ctx, t.q, "cancel open work", `UPDATE assignments s SET status = 'CANCELLED', end_time = now() WHERE s.status IN ('OPEN', 'LEASED') AND `+w.SQL()+` RETURNING `+assignmentColumns, w.Args()...)
}

// OpenFor reads the open work of a deployment.
func (r Reads) OpenFor(ctx context.Context, deploymentID string) (Assignment, error) {
	return one[Assignment](ctx, r.q, "read open work", `SELECT `+assignmentColumns+` FROM assignments s WHERE s.deployment_id = $1 AND s.status IN ('OPEN', 'LEASED')`, deploymentID)
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
