package store

import (
	"context"
	"time"

	"github.com/certctl/certctl/pkg/search"
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
	Labels        Labels
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

// AgentStatuses reads the statuses of those agents that there are, by id.
func (r Reads) AgentStatuses(ctx context.Context, ids []string) (map[string]string, error) {
	rows, err := all[struct{ ID, Status string }](ctx, r.q, "read statuses of agents", `SELECT a.id, a.status FROM agents a WHERE a.id = ANY($1)`, ids)
	statuses := make(map[string]string, len(rows))
	for _, a := range rows {
		statuses[a.ID] = a.Status
	}
	return statuses, err
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

// OfflineAgents notes of agents, at most limit, that nothing was heard of them since a time. It answers how many there were. Those that are
// being changed are left to the next time.
func (t *Tx) OfflineAgents(ctx context.Context, silentSince time.Time, limit int) (int, error) {
	tr := agentOffline()
	return count(ctx, t.q, "set agents offline", `UPDATE agents a SET status = $2, update_time = now(), revision = a.revision + 1
FROM (SELECT id FROM agents WHERE status = ANY($1) AND (last_seen_time IS NULL OR last_seen_time < $3) ORDER BY id LIMIT $4 FOR NO KEY UPDATE SKIP LOCKED) AS s
 WHERE a.id = s.id`, tr.From, tr.To, silentSince, limit)
}

// RetireAgent ends an agent for good.
func (t *Tx) RetireAgent(ctx context.Context, id string) (bool, error) {
	tr := agentRetire()
	return changed(ctx, t.q, "retire agent", `UPDATE agents SET status = $3, retire_time = now(), reenroll_until = NULL, update_time = now(),
 revision = revision + 1 WHERE id = $1 AND status = ANY($2)`, id, tr.From, tr.To)
}

// Seen is when an agent was last heard.
type Seen struct {
	AgentID string
	Time    time.Time
}

// NoteSeen writes the liveness of many agents in one statement, and brings those back that were taken for offline. It answers how many.
// Rows are locked in the order of their ids, as by all that change many agents.
func (t *Tx) NoteSeen(ctx context.Context, seen []Seen) (int, error) {
	ids, times := make([]string, 0, len(seen)), make([]time.Time, 0, len(seen))
	for _, s := range seen {
		ids, times = append(ids, s.AgentID), append(times, s.Time)
	}
	tr := agentOnline()
	return count(ctx, t.q, "note liveness", `WITH locked AS MATERIALIZED (SELECT id FROM agents WHERE id = ANY($1) AND status = ANY($3) ORDER BY id FOR NO KEY UPDATE)
UPDATE agents a SET last_seen_time = GREATEST(a.last_seen_time, s.at), status = $4
 FROM locked l JOIN unnest($1::text[], $2::timestamptz[]) AS s (id, at) ON s.id = l.id WHERE a.id = l.id`, ids, times, tr.From, tr.To)
}

// AgentFilter is what agents may be looked for by.
type AgentFilter struct {
	Statuses []string
	Name     string
	Labels   map[string]string
}

func (f AgentFilter) where() *where {
	w := &where{}
	w.Among("a.status", f.Statuses)
	w.contains("lower(a.name)", f.Name)
	w.labels("a.labels", f.Labels)
	return w
}

func agentTable() search.Table {
	return search.Table{Columns: agentColumns, From: "agents a", Leads: map[string][]string{"a.create_time": {"a.status"}}}
}

// ListAgents reads one page.
func (r Reads) ListAgents(ctx context.Context, f AgentFilter, s Slice) ([]Agent, error) {
	w := f.where()
	return find[Agent](ctx, r.q, "list agents", w.search(agentTable(), s))
}

// CountAgents counts what the filter finds.
func (r Reads) CountAgents(ctx context.Context, f AgentFilter) (int32, error) {
	w := f.where()
	return value[int32](ctx, r.q, "count agents", `SELECT count(*)::int FROM agents a WHERE `+w.SQL(), w.Args()...)
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
