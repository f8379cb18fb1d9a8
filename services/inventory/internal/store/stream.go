package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// hashedCredential is a credential with the hash of its secret.
type hashedCredential struct {
	Credential
	Hash []byte
}

// GetCredentials reads credentials by the hashes of their secrets; those that are not there are left out.
func (r Reads) GetCredentials(ctx context.Context, hashes [][]byte) (map[string]Credential, error) {
	rows, err := all[hashedCredential](ctx, r.q, "read credentials", `SELECT k.hash, `+credentialColumns+`
 FROM agent_credentials k JOIN agents a ON a.id = k.agent_id WHERE k.hash = ANY((SELECT $1::bytea[])::bytea[])`, hashes)
	found := make(map[string]Credential, len(rows))
	for _, k := range rows {
		found[string(k.Hash)] = k.Credential
	}
	return found, err
}

// GetCredentialsByID reads credentials by their ids; those that are not there are left out.
func (r Reads) GetCredentialsByID(ctx context.Context, ids []string) (map[string]Credential, error) {
	rows, err := all[Credential](ctx, r.q, "read credentials by id", `SELECT `+credentialColumns+`
 FROM agent_credentials k JOIN agents a ON a.id = k.agent_id WHERE k.id = ANY($1::uuid[])`, ids)
	found := make(map[string]Credential, len(rows))
	for _, k := range rows {
		found[k.ID] = k
	}
	return found, err
}

// Mailbox is what is open in an agent's mailbox.
type Mailbox struct {
	AgentID string
	// Number is the highest of all open work, Unfetched that of work which was not fetched within staleAfter; 0: none.
	Number, Unfetched int64
}

// staleAfter is how long an agent that is connected may take to fetch work before it is hinted again.
const staleAfter = 30 * time.Second

// OpenMailboxes reads the mailboxes of agents; those without open work are left out.
func (r Reads) OpenMailboxes(ctx context.Context, agentIDs []string) (map[string]Mailbox, error) {
	rows, err := all[Mailbox](ctx, r.q, "read mailboxes", `SELECT agent_id, max(mailbox) AS number,
 COALESCE(max(mailbox) FILTER (WHERE status = 'OPEN' AND create_time < now() - $2::interval), 0) AS unfetched
FROM assignments WHERE agent_id = ANY($1) AND status IN ('OPEN', 'LEASED') GROUP BY agent_id`, agentIDs, staleAfter)
	found := make(map[string]Mailbox, len(rows))
	for _, m := range rows {
		found[m.AgentID] = m
	}
	return found, err
}

// onlineHost is an Agent as OnlineAgents passes it.
type onlineHost struct {
	ID           string   `json:"id"`
	Hostname     string   `json:"hostname"`
	OS           string   `json:"os"`
	Architecture string   `json:"architecture"`
	Version      string   `json:"version"`
	Capabilities []string `json:"capabilities"`
	IPAddress    string   `json:"ip_address"`
}

// OnlineAgents notes the hosts of new streams and numbers the streams; of an agent that is there twice, one host counts. It answers the
// numbers by agent; retired agents have none. Rows are locked in the order of their ids, as by all that change many agents.
func (t *Tx) OnlineAgents(ctx context.Context, agents []Agent) (map[string]int64, error) {
	hosts := make(map[string]onlineHost, len(agents))
	for _, a := range agents {
		hosts[a.ID] = onlineHost{
			ID: a.ID, Hostname: a.Hostname, OS: a.OS, Architecture: a.Architecture, Version: a.Version, Capabilities: list(a.Capabilities), IPAddress: a.IPAddress,
		}
	}
	ids, records := make([]string, 0, len(hosts)), make([]onlineHost, 0, len(hosts))
	for id, h := range hosts {
		ids, records = append(ids, id), append(records, h)
	}
	document, err := json.Marshal(records)
	if err != nil {
		return nil, fmt.Errorf("set agents online: %w", err)
	}
	type numbered struct {
		ID    string
		Epoch int64
	}
	tr := agentOnline()
	rows, err := all[numbered](ctx, t.q, "set agents online", `WITH locked AS MATERIALIZED (
 SELECT id FROM agents WHERE id = ANY($1) AND status = ANY($3) ORDER BY id FOR NO KEY UPDATE)
UPDATE agents a SET status = $4, hostname = s.hostname, os = s.os, architecture = s.architecture, version = s.version, capabilities = s.capabilities,
 ip_address = s.ip_address, last_seen_time = now(), update_time = now(), revision = a.revision + 1
FROM locked l JOIN jsonb_to_recordset($2::jsonb) AS s (id text, hostname text, os text, architecture text, version text, capabilities text[], ip_address text)
 ON s.id = l.id WHERE a.id = l.id RETURNING a.id, nextval('stream_epochs') AS epoch`, ids, string(document), tr.From, tr.To)
	epochs := make(map[string]int64, len(rows))
	for _, n := range rows {
		epochs[n.ID] = n.Epoch
	}
	return epochs, err
}
