package store

import (
	"context"
	"time"

	"github.com/certctl/certctl/pkg/search"
)

// States of a credential.
const (
	CredentialUnused  = "UNUSED"
	CredentialActive  = "ACTIVE"
	CredentialRevoked = "REVOKED"
)

// Credential is one row of agent_credentials.
type Credential struct {
	ID          string
	AgentID     string
	Status      string
	JoinTokenID string
	CreateTime  time.Time
	AgentStatus string
}

const credentialColumns = `k.id::text AS id, k.agent_id, k.status, k.join_token_id, k.create_time, a.status AS agent_status` //nolint:gosec // names of columns

// GetCredential reads a credential by the hash of its secret.
func (r Reads) GetCredential(ctx context.Context, hash []byte) (Credential, error) {
	return one[Credential](ctx, r.q, "read credential", `SELECT `+credentialColumns+` FROM agent_credentials k JOIN agents a ON a.id = k.agent_id WHERE k.hash = $1`, hash)
}

// GetCredentialByID reads a credential by its id.
func (r Reads) GetCredentialByID(ctx context.Context, id string) (Credential, error) {
	return one[Credential](ctx, r.q, "read credential", `SELECT `+credentialColumns+` FROM agent_credentials k JOIN agents a ON a.id = k.agent_id WHERE k.id = $1::uuid`, id)
}

// UnusedCredentials reads an agent's credentials that were given out and not seen yet.
func (r Reads) UnusedCredentials(ctx context.Context, agentID string) ([]Credential, error) {
	return all[Credential](ctx, r.q, "read unused credentials", `SELECT `+credentialColumns+` FROM agent_credentials k JOIN agents a ON a.id = k.agent_id
 WHERE k.agent_id = $1 AND k.status = 'UNUSED' ORDER BY k.create_time`, agentID)
}

// CountUsedCredentials counts an agent's credentials that are or were in use.
func (r Reads) CountUsedCredentials(ctx context.Context, agentID string) (int32, error) {
	return value[int32](ctx, r.q, "count used credentials", `SELECT count(*)::int FROM agent_credentials WHERE agent_id = $1 AND status = 'ACTIVE'`, agentID)
}

// InsertCredential stores the hash of a new credential.
func (t *Tx) InsertCredential(ctx context.Context, c Credential, hash []byte) error {
	_, err := t.q.Exec(ctx, `INSERT INTO agent_credentials (id, agent_id, hash, status, join_token_id) VALUES ($1::uuid, $2, $3, 'UNUSED', $4)`,
		c.ID, c.AgentID, hash, c.JoinTokenID)
	if err != nil {
		return wrap("insert credential", err)
	}
	return nil
}

// ActivateCredential notes the first use of a credential; the agent's others end with it. It answers false when it was used before.
func (t *Tx) ActivateCredential(ctx context.Context, c Credential) (bool, error) {
	first, err := changed(ctx, t.q, "activate credential", `UPDATE agent_credentials SET status = 'ACTIVE', use_time = now() WHERE id = $1::uuid AND status = 'UNUSED'`, c.ID)
	if err != nil || !first {
		return false, err
	}
	_, err = t.q.Exec(ctx, `UPDATE agent_credentials SET status = 'REVOKED', revoke_time = now() WHERE agent_id = $1 AND id <> $2::uuid AND status <> 'REVOKED'`, c.AgentID, c.ID)
	if err != nil {
		return false, wrap("revoke other credentials", err)
	}
	return true, nil
}

// RevokeUnused ends an agent's credentials that were not seen yet.
func (t *Tx) RevokeUnused(ctx context.Context, agentID string) error {
	_, err := t.q.Exec(ctx, `UPDATE agent_credentials SET status = 'REVOKED', revoke_time = now() WHERE agent_id = $1 AND status = 'UNUSED'`, agentID)
	if err != nil {
		return wrap("revoke unused credentials", err)
	}
	return nil
}

// RevokeCredentials ends all credentials of an agent.
func (t *Tx) RevokeCredentials(ctx context.Context, agentID string) error {
	_, err := t.q.Exec(ctx, `UPDATE agent_credentials SET status = 'REVOKED', revoke_time = now() WHERE agent_id = $1 AND status <> 'REVOKED'`, agentID)
	if err != nil {
		return wrap("revoke credentials", err)
	}
	return nil
}

// JoinToken is one row of join_tokens.
type JoinToken struct {
	ID                string
	MaxUses           int32
	Uses              int32
	ExpireTime        time.Time
	AllowReenrollment bool
	CreateTime        time.Time
	CreatedBy         string
}

const joinTokenColumns = `j.id, j.max_uses, j.uses, j.expire_time, j.allow_reenrollment, j.create_time, j.created_by` //nolint:gosec // names of columns

// GetJoinToken reads a token by the hash of its secret.
func (r Reads) GetJoinToken(ctx context.Context, hash []byte) (JoinToken, error) {
	return one[JoinToken](ctx, r.q, "read join token", `SELECT `+joinTokenColumns+` FROM join_tokens j WHERE j.hash = $1`, hash)
}

// InsertJoinToken stores the hash of a new token.
func (t *Tx) InsertJoinToken(ctx context.Context, j JoinToken, hash []byte) (JoinToken, error) {
	return one[JoinToken](ctx, t.q, "insert join token", `INSERT INTO join_tokens AS j (id, hash, max_uses, expire_time, allow_reenrollment, created_by)
VALUES ($1, $2, $3, $4, $5, $6) RETURNING `+joinTokenColumns, j.ID, hash, j.MaxUses, j.ExpireTime, j.AllowReenrollment, j.CreatedBy)
}

// UseJoinToken counts one use. It answers false when the token has none left or is over.
func (t *Tx) UseJoinToken(ctx context.Context, id string) (bool, error) {
	return changed(ctx, t.q, "use join token", `UPDATE join_tokens SET uses = uses + 1 WHERE id = $1 AND uses < max_uses AND expire_time > now()`, id)
}

// DeleteJoinToken ends a token.
func (t *Tx) DeleteJoinToken(ctx context.Context, id string) (bool, error) {
	return changed(ctx, t.q, "delete join token", `DELETE FROM join_tokens WHERE id = $1`, id)
}

func joinTokenTable() search.Table {
	return search.Table{Columns: joinTokenColumns, From: "join_tokens j"}
}

// ListJoinTokens reads one page.
func (r Reads) ListJoinTokens(ctx context.Context, s Slice) ([]JoinToken, error) {
	w := &where{}
	return find[JoinToken](ctx, r.q, "list join tokens", w.search(joinTokenTable(), s))
}

// PruneCredentials deletes join tokens that have been over for a day, and credentials that have been revoked for a month.
func (t *Tx) PruneCredentials(ctx context.Context) (int, error) {
	tokens, err := count(ctx, t.q, "prune join tokens", `DELETE FROM join_tokens WHERE expire_time < now() - interval '1 day'`)
	if err != nil {
		return 0, err
	}
	credentials, err := count(ctx, t.q, "prune credentials", `DELETE FROM agent_credentials WHERE status = 'REVOKED' AND revoke_time < now() - interval '30 days'`)
	return tokens + credentials, err
}
