package core

import (
	"context"
	"time"

	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

// Opening is an agent's stream that has begun.
type Opening struct {
	Credential string
	// Address is where the agent calls from; empty: not known.
	Address string
	Hello   *agentv1.Hello
}

// Opened is what became of an Opening: a number among the agent's streams, or why there is none.
type Opened struct {
	AgentID, CredentialID string
	Epoch                 int64
	Err                   error
}

// Open notes new streams and their hosts and numbers them, in the same number of statements for one and for many. The answers are in the
// order of the openings.
func (c *Core) Open(ctx context.Context, openings []Opening) []Opened {
	out := make([]Opened, len(openings))
	credentials, err := c.credentials(ctx, openings)
	rows := make([]store.Agent, 0, len(openings))
	for i, o := range openings {
		out[i].Err = err
		if err != nil {
			continue
		}
		k, ok := credentials[string(hashSecret(o.Credential))]
		if !ok {
			out[i].Err = errCredential()
			continue
		}
		out[i].AgentID, out[i].CredentialID = k.AgentID, k.ID
		if out[i].Err = c.usable(ctx, k); out[i].Err == nil {
			rows = append(rows, hostRow(k.AgentID, o))
		}
	}
	epochs, err := c.online(ctx, rows)
	for i := range out {
		if out[i].Err != nil {
			continue
		}
		epoch, ok := epochs[out[i].AgentID]
		switch {
		case err != nil && len(openings) == 1:
			out[i].Err = err
		case err != nil: // what one agent says of its host must not keep the others away
			out[i] = c.Open(ctx, openings[i:i+1])[0]
		case !ok:
			out[i].Err = errAgentRetired(out[i].AgentID)
		}
		if err == nil {
			out[i].Epoch = epoch
		}
	}
	return out
}

// credentials reads those of the openings, by their hashes.
func (c *Core) credentials(ctx context.Context, openings []Opening) (map[string]store.Credential, error) {
	hashes := make([][]byte, 0, len(openings))
	for _, o := range openings {
		hashes = append(hashes, hashSecret(o.Credential))
	}
	return c.store.GetCredentials(ctx, hashes)
}

// usable tells whether a credential holds, and notes its first use.
func (c *Core) usable(ctx context.Context, k store.Credential) error {
	if err := valid(k); err != nil || k.Status != store.CredentialUnused {
		return err
	}
	return c.firstUse(ctx, k)
}

func hostRow(agentID string, o Opening) store.Agent {
	h := o.Hello.GetHost()
	return store.Agent{
		ID: agentID, Hostname: h.GetHostname(), OS: h.GetOs(), Architecture: h.GetArchitecture(), Version: h.GetVersion(),
		Capabilities: h.GetCapabilities(), IPAddress: o.Address,
	}
}

// online notes the hosts of agents that have opened streams. It answers the number of each stream, by agent; retired ones have none.
func (c *Core) online(ctx context.Context, rows []store.Agent) (epochs map[string]int64, err error) {
	if len(rows) == 0 {
		return nil, nil
	}
	err = c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		if epochs, err = t.OnlineAgents(ctx, rows); err != nil || len(epochs) == 0 {
			return err
		}
		t.Changed(store.Agents)
		for id, epoch := range epochs {
			t.Notify(store.Notice{Kind: store.NoticeStream, AgentID: id, Number: epoch})
		}
		return nil
	})
	return epochs, err
}

// Held is a stream that is open.
type Held struct{ AgentID, CredentialID string }

// Checked is what is true for the agent of a stream.
type Checked struct {
	// Err is why the credential no longer holds.
	Err error
	// Rotate tells that the credential is old enough to be replaced.
	Rotate bool
	// Mailbox is what is open for the agent.
	Mailbox store.Mailbox
}

// Check looks at the credentials and mailboxes of streams, in two statements for all of them. The answers are in their order.
func (c *Core) Check(ctx context.Context, streams []Held) ([]Checked, error) {
	credentials, agents := make([]string, 0, len(streams)), make([]string, 0, len(streams))
	for _, s := range streams {
		credentials, agents = append(credentials, s.CredentialID), append(agents, s.AgentID)
	}
	found, err := c.store.GetCredentialsByID(ctx, credentials)
	if err != nil {
		return nil, err
	}
	work, err := c.store.OpenMailboxes(ctx, agents)
	if err != nil {
		return nil, err
	}
	out := make([]Checked, len(streams))
	for i, s := range streams {
		k, ok := found[s.CredentialID]
		if !ok {
			out[i].Err = errCredential()
			continue
		}
		out[i] = Checked{Err: valid(k), Rotate: time.Since(k.CreateTime) > c.cfg.CredentialLifetime, Mailbox: work[s.AgentID]}
	}
	return out, nil
}

// OpenWork gives the mailboxes of agents, as Check does; agents without open work are left out.
func (c *Core) OpenWork(ctx context.Context, agentIDs []string) (map[string]store.Mailbox, error) {
	return c.store.OpenMailboxes(ctx, agentIDs)
}
