package store

import (
	"context"
	"encoding/json"
	"time"

	"github.com/certctl/certctl/pkg/search"
)

// Target is one row of targets.
type Target struct {
	ID                 string
	Name               string
	AgentID            string
	Type               string
	Config             json.RawMessage
	EndpointAddress    string
	EndpointServerName string
	EndpointStarttls   string
	CreateTime         time.Time
	UpdateTime         time.Time
	Revision           int32
}

const targetColumns = `t.id, t.name, t.agent_id, t.type, t.config, t.endpoint_address, t.endpoint_server_name, t.endpoint_starttls,
 t.create_time, t.update_time, t.revision`

// GetTarget reads one.
func (r Reads) GetTarget(ctx context.Context, id string) (Target, error) {
	return one[Target](ctx, r.q, "read target", `SELECT `+targetColumns+` FROM targets t WHERE t.id = $1`, id)
}

// GetTargets reads those that there are of the ids.
func (r Reads) GetTargets(ctx context.Context, ids []string) ([]Target, error) {
	return all[Target](ctx, r.q, "read targets", `SELECT `+targetColumns+` FROM targets t WHERE t.id = ANY($1)`, ids)
}

// LockTarget reads one and keeps others from changing it until the end of the transaction.
func (t *Tx) LockTarget(ctx context.Context, id string) (Target, error) {
	return one[Target](ctx, t.q, "lock target", `SELECT `+targetColumns+` FROM targets t WHERE t.id = $1 FOR UPDATE`, id)
}

// TargetAgent is where a target is.
type TargetAgent struct {
	ID          string
	AgentID     string
	AgentStatus string
}

// GetTargetAgents reads where the targets are that there are of the ids. They cannot be deleted until the end of a transaction.
func (t *Tx) GetTargetAgents(ctx context.Context, ids []string) ([]TargetAgent, error) {
	return all[TargetAgent](ctx, t.q, "read targets", `SELECT t.id, t.agent_id, a.status AS agent_status FROM targets t JOIN agents a ON a.id = t.agent_id
 WHERE t.id = ANY($1) ORDER BY t.agent_id, t.id FOR KEY SHARE OF t`, list(ids))
}

// InsertTarget stores a new target.
func (t *Tx) InsertTarget(ctx context.Context, v Target) (Target, error) {
	_, err := t.q.Exec(ctx, `INSERT INTO targets (id, name, agent_id, type, config, endpoint_address, endpoint_server_name, endpoint_starttls)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`, v.ID, v.Name, v.AgentID, v.Type, v.Config, v.EndpointAddress, v.EndpointServerName, v.EndpointStarttls)
	if err != nil {
		return Target{}, wrap("insert target", err)
	}
	return t.GetTarget(ctx, v.ID)
}

// UpdateTarget writes what a user may change. The caller holds the row's lock.
func (t *Tx) UpdateTarget(ctx context.Context, v Target) (Target, error) {
	_, err := t.q.Exec(ctx, `UPDATE targets SET name = $2, config = $3, endpoint_address = $4, endpoint_server_name = $5, endpoint_starttls = $6,
 update_time = now(), revision = revision + 1 WHERE id = $1`, v.ID, v.Name, v.Config, v.EndpointAddress, v.EndpointServerName, v.EndpointStarttls)
	if err != nil {
		return Target{}, wrap("update target", err)
	}
	return t.GetTarget(ctx, v.ID)
}

// CountBindings counts the certificates in care that are bound to a target.
func (r Reads) CountBindings(ctx context.Context, targetID string) (int32, error) {
	return value[int32](ctx, r.q, "count bindings", `SELECT count(*)::int FROM certificate_targets b JOIN certificates c ON c.id = b.certificate_id
 WHERE b.target_id = $1 AND c.status NOT IN ('REVOKED', 'ARCHIVED')`, targetID)
}

// DropBindings takes a target off all certificates.
func (t *Tx) DropBindings(ctx context.Context, targetID string) error {
	if _, err := t.q.Exec(ctx, `DELETE FROM certificate_targets WHERE target_id = $1`, targetID); err != nil {
		return wrap("drop bindings", err)
	}
	return nil
}

// DeleteTarget removes a target.
func (t *Tx) DeleteTarget(ctx context.Context, id string) error {
	if _, err := t.q.Exec(ctx, `DELETE FROM targets WHERE id = $1`, id); err != nil {
		return wrap("delete target", err)
	}
	return nil
}

// TargetFilter is what targets may be looked for by.
type TargetFilter struct {
	AgentID string
	Type    string
	Name    string
}

func (f TargetFilter) where() *where {
	w := &where{}
	w.Equal("t.agent_id", f.AgentID)
	w.Equal("t.type", f.Type)
	w.contains("lower(t.name)", f.Name)
	return w
}

func targetTable() search.Table {
	return search.Table{Columns: targetColumns, From: "targets t", Leads: map[string][]string{"t.create_time": {"t.agent_id", "t.type"}}}
}

// ListTargets reads one page.
func (r Reads) ListTargets(ctx context.Context, f TargetFilter, s Slice) ([]Target, error) {
	w := f.where()
	return find[Target](ctx, r.q, "list targets", w.search(targetTable(), s))
}

// CountTargets counts what the filter finds.
func (r Reads) CountTargets(ctx context.Context, f TargetFilter) (int32, error) {
	w := f.where()
	return value[int32](ctx, r.q, "count targets", `SELECT count(*)::int FROM targets t WHERE `+w.SQL(), w.Args()...)
}
