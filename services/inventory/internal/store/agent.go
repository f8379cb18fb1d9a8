package store

import (
	"context"
	"time"
)

// Agent is one row of agents.
type Agent struct {
	ID            string
	Name          string
	InstanceID    string
	Hostname      string
	OS            string
	Architecture  string
	Version       string
	IPAddress     string
	Labels        map[string]string
	Capabilities  []string
	Status        string
	LastSeenTime  *time.Time
	ReenrollUntil *time.Time
	CreateTime    time.Time
	UpdateTime    time.Time
	RetireTime    *time.Time
	Revision      int32
}

const agentColumns = `a.id, a.name, a.instance_id, a.hostname, a.os, a.architecture, a.version, a.ip_address, a.labels, a.capabilities,
 a.status, a.last_seen_time, a.reenroll_until, a.create_time, a.update_time, a.retire_time, a.revision`

// GetAgent reads one.
func (r Reads) GetAgent(ctx context.Context, id string) (Agent, error) {
	return one[Agent](ctx, r.q, "read agent", `SELECT `+agentColumns+` FROM agents a WHERE a.id = $1`, id)
}

// LockAgent reads one and keeps others from changing it until the end of the transaction.
func (t *Tx) LockAgent(ctx context.Context, id string) (Agent, error) {
	return one[Agent](ctx, t.q, "lock agent", `SELECT `+agentColumns+` FROM agents a WHERE a.id = $1 FOR UPDATE`, id)
}

// LockAgentByName is LockAgent for the agent that has the name and is not retired.
func (t *Tx) LockAgentByName(ctx context.Context, name string) (Agent, error) {
	return one[Agent](ctx, t.q, "lock agent by name", `SELECT `+agentColumns+` FROM agents a WHERE a.name = $1 AND a.status <> 'RETIRED' FOR UPDATE`, name)
}

// InsertAgent stores a new agent with its mailbox. It is OFFLINE until its first stream.
func (t *Tx) InsertAgent(ctx context.Context, a Agent) error {
	_, err := t.q.Exec(ctx, `INSERT INTO agents (id, name, instance_id, hostname, os, architecture, version, labels, capabilities, status)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'OFFLINE')`,
		a.ID, a.Name, a.InstanceID, a.Hostname, a.OS, a.Architecture, a.Version, pairs(a.Labels), list(a.Capabilities))
	if err != nil {
		return wrap("insert agent", err)
	}
	if _, err := t.q.Exec(ctx, `INSERT INTO mailboxes (agent_id) VALUES ($1)`, a.ID); err != nil {
		return wrap("insert mailbox", err)
	}
	return nil
}

// ReenrollAgent gives an agent's name to another installation, or to the same one again; the permission is used up.
func (t *Tx) ReenrollAgent(ctx context.Context, a Agent) error {
	_, err := t.q.Exec(ctx, `UPDATE agents SET instance_id = $2, hostname = $3, os = $4, architecture = $5, version = $6, labels = $7,
 capabilities = $8, reenroll_until = NULL, update_time = now(), revision = revision + 1 WHERE id = $1`,
		a.ID, a.InstanceID, a.Hostname, a.OS, a.Architecture, a.Version, pairs(a.Labels), list(a.Capabilities))
	if err != nil {
		return wrap("re-enrol agent", err)
	}
	return nil
}

// AllowReenrollment lets the agent's name be enrolled again until a time.
func (t *Tx) AllowReenrollment(ctx context.Context, id string, until time.Time) error {
	_, err := t.q.Exec(ctx, `UPDATE agents SET reenroll_until = $2, update_time = now(), revision = revision + 1 WHERE id = $1`, id, until)
	if err != nil {
		return wrap("allow re-enrolment", err)
	}
	return nil
}

// OnlineAgent notes the host of a new stream. It answers false for a retired agent.
func (t *Tx) OnlineAgent(ctx context.Context, a Agent) (bool, error) {
	tr := agentOnline()
	return changed(ctx, t.q, "set agent online", `UPDATE agents SET status = $3, hostname = $4, os = $5, architecture = $6, version = $7,
 capabilities = $8, ip_address = $9, last_seen_time = now(), update_time = now(), revision = revision + 1 WHERE id = $1 AND status = ANY($2)`,
		a.ID, tr.From, tr.To, a.Hostname, a.OS, a.Architecture, a.Version, list(a.Capabilities), a.IPAddress)
}

// OfflineAgent notes that nothing was heard since a time. It answers false when it was, or is not online.
func (t *Tx) OfflineAgent(ctx context.Context, id string, silentSince time.Time) (bool, error) {
	tr := agentOffline()
	return changed(ctx, t.q, "set agent offline", `UPDATE agents SET status = $3, update_time = now(), revision = revision + 1
 WHERE id = $1 AND status = ANY($2) AND (last_seen_time IS NULL OR last_seen_time < $4)`, id, tr.From, tr.To, silentSince)
}

// RetireAgent ends an agent for good.
func (t *Tx) RetireAgent(ctx context.Context, id string) (bool, error) {
	tr := agentRetire()
	return changed(ctx, t.q, "retire agent", `UPDATE agents SET status = $3, retire_time = now(), reenroll_until = NULL, update_time = now(),
 revision = revision + 1 WHERE id = $1 AND status = ANY($2)`, id, tr.From, tr.To)
}

// SilentAgents reads agents that are online and were last heard before a time.
func (r Reads) SilentAgents(ctx context.Context, since time.Time, limit int) ([]string, error) {
	return column[string](ctx, r.q, "read silent agents", `SELECT id FROM agents WHERE status = 'ONLINE' AND (last_seen_time IS NULL OR last_seen_time < $1) ORDER BY id LIMIT $2`, since, limit)
}

// Seen is when an agent was last heard.
type Seen struct {
	AgentID string
	Time    time.Time
}

// NoteSeen writes the liveness of many agents in one statement, and brings those back that were taken for offline. It answers how many.
func (t *Tx) NoteSeen(ctx context.Context, seen []Seen) (int, error) {
	ids, times := make([]string, 0, len(seen)), make([]time.Time, 0, len(seen))
	for _, s := range seen {
		ids, times = append(ids, s.AgentID), append(times, s.Time)
	}
	tr := agentOnline()
	return count(ctx, t.q, "note liveness", `UPDATE agents a SET last_seen_time = GREATEST(a.last_seen_time, s.at), status = $4
 FROM unnest($1::text[], $2::timestamptz[]) AS s (id, at) WHERE a.id = s.id AND a.status = ANY($3)`, ids, times, tr.From, tr.To)
}

// NextEpoch numbers a new stream.
func (r Reads) NextEpoch(ctx context.Context) (int64, error) {
	return value[int64](ctx, r.q, "number stream", `SELECT nextval('stream_epochs')`)
}

// AgentFilter is what agents may be looked for by.
type AgentFilter struct {
	Statuses []string
	Name     string
	Labels   map[string]string
}

func (f AgentFilter) where() *where {
	w := &where{}
	w.among("a.status", f.Statuses)
	w.contains("lower(a.name)", f.Name)
	w.labels("a.labels", f.Labels)
	return w
}

// ListAgents reads one page.
func (r Reads) ListAgents(ctx context.Context, f AgentFilter, s Slice) ([]Agent, error) {
	w := f.where()
	end, err := w.page(s)
	if err != nil {
		return nil, err
	}
	return all[Agent](ctx, r.q, "list agents", `SELECT `+agentColumns+` FROM agents a`+end, w.args...)
}

// CountAgents counts what the filter finds.
func (r Reads) CountAgents(ctx context.Context, f AgentFilter) (int32, error) {
	w := f.where()
	return value[int32](ctx, r.q, "count agents", `SELECT count(*)::int FROM agents a WHERE `+w.sql(), w.args...)
}

// CountTargetsOf counts an agent's targets.
func (r Reads) CountTargetsOf(ctx context.Context, agentID string) (int32, error) {
	return value[int32](ctx, r.q, "count targets of agent", `SELECT count(*)::int FROM targets WHERE agent_id = $1`, agentID)
}

// CertificatesOf reads the certificates that are bound to an agent's targets and not final.
func (r Reads) CertificatesOf(ctx context.Context, agentID string) ([]string, error) {
	return column[string](ctx, r.q, "read certificates of agent", `SELECT DISTINCT b.certificate_id FROM certificate_targets b JOIN targets t ON t.id = b.target_id
 JOIN certificates c ON c.id = b.certificate_id WHERE t.agent_id = $1 AND c.status NOT IN ('REVOKED', 'ARCHIVED') ORDER BY b.certificate_id`, agentID)
}
