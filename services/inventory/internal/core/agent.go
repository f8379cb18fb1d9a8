package core

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"time"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/secretbox"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
	"github.com/certctl/certctl/services/inventory/internal/view"
)

const (
	secretSize       = 32
	reenrollmentOpen = time.Hour
	minTokenTTL      = time.Minute
	maxTokenTTL      = 30 * 24 * time.Hour
	defaultTokenTTL  = time.Hour
	// standingToken is the id of the token that comes from settings.
	standingToken = "standing"
)

// newSecret makes a bearer secret of 32 random bytes, base64url, and its hash.
func newSecret() (secret string, hash []byte) {
	b := make([]byte, secretSize)
	_, _ = rand.Read(b) // never fails, by its contract
	secret = base64.RawURLEncoding.EncodeToString(b)
	return secret, hashSecret(secret)
}

func hashSecret(secret string) []byte {
	h := sha256.Sum256([]byte(secret))
	return h[:]
}

// ListAgents lists agents.
func (c *Core) ListAgents(ctx context.Context, r *inventoryv1.ListAgentsRequest) (*inventoryv1.ListAgentsResponse, error) {
	statuses, err := enumNames(r.GetStatus(), inventoryv1.Agent_Status_name)
	if err != nil {
		return nil, err
	}
	f := store.AgentFilter{Statuses: statuses, Name: r.GetName(), Labels: r.GetLabel()}
	p, err := listPage(ctx, c, r, lister[store.Agent]{
		collection: store.Agents,
		rows:       func(ctx context.Context, s store.Slice) ([]store.Agent, error) { return c.store.ListAgents(ctx, f, s) },
		count:      func(ctx context.Context) (int32, error) { return c.store.CountAgents(ctx, f) },
		cursor: func(a store.Agent, field string) (page.Value, page.Value) {
			if field == "name" {
				return page.TextValue(a.Name), page.TextValue(a.ID)
			}
			return page.TimeValue(a.CreateTime), page.TextValue(a.ID)
		},
	})
	if err != nil {
		return nil, err
	}
	return &inventoryv1.ListAgentsResponse{Agents: view.Each(p.rows, view.Agent), NextPageToken: p.next, TotalSize: p.total}, nil
}

// GetAgent answers one.
func (c *Core) GetAgent(ctx context.Context, r *inventoryv1.GetAgentRequest) (*inventoryv1.GetAgentResponse, error) {
	a, err := c.store.GetAgent(ctx, r.GetId())
	if a, err = found(a, err, resourceAgent, r.GetId()); err != nil {
		return nil, err
	}
	return &inventoryv1.GetAgentResponse{Agent: view.Agent(a)}, nil
}

// RetireAgent ends an agent for good. A repeat answers the retired agent.
func (c *Core) RetireAgent(ctx context.Context, r *inventoryv1.RetireAgentRequest) (*inventoryv1.RetireAgentResponse, error) {
	expected, err := mutation.Revision(ctx, r.GetIfRevision())
	if err != nil {
		return nil, err
	}
	return store.Mutate(ctx, c.store, store.Mutation[*inventoryv1.RetireAgentResponse]{
		Request: r,
		Empty:   func() *inventoryv1.RetireAgentResponse { return &inventoryv1.RetireAgentResponse{} },
		Apply: func(ctx context.Context, t *store.Tx) (*inventoryv1.RetireAgentResponse, error) {
			a, err := c.retire(ctx, t, r, expected)
			if err != nil {
				return nil, err
			}
			return &inventoryv1.RetireAgentResponse{Agent: view.Agent(a)}, nil
		},
	})
}

func (c *Core) retire(ctx context.Context, t *store.Tx, r *inventoryv1.RetireAgentRequest, expected int32) (store.Agent, error) {
	a, err := t.GetAgent(ctx, r.GetId())
	if a, err = found(a, err, resourceAgent, r.GetId()); err != nil {
		return a, err
	}
	if expected != 0 && a.Revision != expected {
		return a, mutation.Mismatch("agent "+a.ID, expected, a.Revision)
	}
	targets, err := t.CountTargetsOf(ctx, a.ID)
	if err != nil {
		return a, err
	}
	certificates, err := t.CertificatesOf(ctx, a.ID)
	if err != nil {
		return a, err
	}
	if targets > 0 && !r.GetForce() && a.Status != store.AgentRetired {
		return a, errs.New(errs.Conflict, "AGENT_HAS_TARGETS",
			"agent %s has %d targets, which serve %d certificates: take the certificates off them and delete them first, or use force", a.ID, targets, len(certificates)).
			With("state", a.Status).With("targets", strconv.Itoa(int(targets))).With("certificates", strconv.Itoa(len(certificates)))
	}
	// Deployments are locked before the agent, as everywhere; its certificates are told last.
	if err := c.closeDeployments(ctx, t, store.DeploymentSelection{AgentID: a.ID}, "the agent was retired"); err != nil {
		return a, err
	}
	moved, err := t.RetireAgent(ctx, a.ID)
	if err != nil || !moved {
		return a, err
	}
	if err := c.endAgent(ctx, t, a.ID, certificates); err != nil {
		return a, err
	}
	audit(ctx, t, "agent.retired", resourceAgent, a.ID, map[string]any{"name": a.Name, "targets": targets, "certificates": len(certificates)})
	t.Changed(store.Agents)
	t.Notify(store.Notice{Kind: store.NoticeRetired, AgentID: a.ID})
	return t.GetAgent(ctx, a.ID)
}

// endAgent takes an agent's credentials and work away, and tells whose certificates have lost a key holder.
func (c *Core) endAgent(ctx context.Context, t *store.Tx, agentID string, certificates []string) error {
	if err := t.RevokeCredentials(ctx, agentID); err != nil {
		return err
	}
	tasks, err := t.CancelOpen(ctx, store.OpenSelection{AgentID: agentID})
	if err != nil {
		return err
	}
	for _, task := range tasks {
		if task.Kind == store.KindCreateCsr {
			c.taskFinished(ctx, t, task, "", &typev1.Problem{Reason: "AGENT_RETIRED", Message: "the agent was retired"}, true)
		}
	}
	rows, err := t.GetCertificates(ctx, certificates)
	if err != nil {
		return err
	}
	return c.certificatesChanged(ctx, t, "certificate.updated", rows...)
}

// AllowReenrollment lets the agent's name be enrolled again, once, within the hour.
func (c *Core) AllowReenrollment(ctx context.Context, r *inventoryv1.AllowReenrollmentRequest) (*inventoryv1.AllowReenrollmentResponse, error) {
	return store.Mutate(ctx, c.store, store.Mutation[*inventoryv1.AllowReenrollmentResponse]{
		Request: r,
		Empty:   func() *inventoryv1.AllowReenrollmentResponse { return &inventoryv1.AllowReenrollmentResponse{} },
		Apply: func(ctx context.Context, t *store.Tx) (*inventoryv1.AllowReenrollmentResponse, error) {
			a, err := t.LockAgent(ctx, r.GetId())
			if a, err = found(a, err, resourceAgent, r.GetId()); err != nil {
				return nil, err
			}
			if a.Status == store.AgentRetired {
				return nil, wrongState(resourceAgent, a.ID, a.Status, "its name is free already")
			}
			if err := t.AllowReenrollment(ctx, a.ID, time.Now().Add(reenrollmentOpen)); err != nil {
				return nil, err
			}
			audit(ctx, t, "agent.reenrollment.allowed", resourceAgent, a.ID, map[string]any{"name": a.Name})
			t.Changed(store.Agents)
			a, err = t.GetAgent(ctx, a.ID)
			return &inventoryv1.AllowReenrollmentResponse{Agent: view.Agent(a)}, err
		},
	})
}

// CreateJoinToken makes a token. Its secret is in this answer only, so a repeat with the same key is not answered from the
// store: an idempotency key makes it fail instead of making a second token.
func (c *Core) CreateJoinToken(ctx context.Context, r *inventoryv1.CreateJoinTokenRequest) (*inventoryv1.CreateJoinTokenResponse, error) {
	ttl := defaultTokenTTL
	if r.GetTtl() != nil {
		ttl = r.GetTtl().AsDuration()
	}
	if ttl < minTokenTTL || ttl > maxTokenTTL {
		return nil, errs.Field("ttl", "must be between %s and %s", minTokenTTL, maxTokenTTL)
	}
	secret := ""
	answer, err := store.Mutate(ctx, c.store, store.Mutation[*inventoryv1.CreateJoinTokenResponse]{
		Request: r,
		Empty:   func() *inventoryv1.CreateJoinTokenResponse { return &inventoryv1.CreateJoinTokenResponse{} },
		Apply: func(ctx context.Context, t *store.Tx) (*inventoryv1.CreateJoinTokenResponse, error) {
			id, err := newID("join")
			if err != nil {
				return nil, err
			}
			var hash []byte
			secret, hash = newSecret()
			j, err := t.InsertJoinToken(ctx, store.JoinToken{
				ID: id, MaxUses: max(r.GetMaxUses(), 1), ExpireTime: time.Now().Add(ttl), AllowReenrollment: r.GetAllowReenrollment(),
				CreatedBy: rpcctx.Actor(ctx).ID,
			}, hash)
			if err != nil {
				return nil, err
			}
			audit(ctx, t, "join_token.created", resourceJoinToken, id, map[string]any{
				"max_uses": j.MaxUses, "expire_time": j.ExpireTime.UTC().Format(time.RFC3339), "allow_reenrollment": j.AllowReenrollment,
			})
			return &inventoryv1.CreateJoinTokenResponse{JoinToken: view.JoinToken(j)}, nil
		},
	})
	if err != nil {
		return nil, err
	}
	if secret == "" {
		return nil, errs.New(errs.Conflict, "JOIN_TOKEN_SHOWN", "join token %s was made by this request before, and a secret is shown once; delete it and make another", answer.GetJoinToken().GetId()).
			With("id", answer.GetJoinToken().GetId())
	}
	answer.JoinToken.Token = secret
	return answer, nil
}

// ListJoinTokens lists tokens without their secrets.
func (c *Core) ListJoinTokens(ctx context.Context, r *inventoryv1.ListJoinTokensRequest) (*inventoryv1.ListJoinTokensResponse, error) {
	p, err := listPage(ctx, c, r, lister[store.JoinToken]{
		collection: "join-tokens",
		rows:       c.store.ListJoinTokens,
		cursor: func(j store.JoinToken, _ string) (page.Value, page.Value) {
			return page.TimeValue(j.CreateTime), page.TextValue(j.ID)
		},
	})
	if err != nil {
		return nil, err
	}
	return &inventoryv1.ListJoinTokensResponse{JoinTokens: view.Each(p.rows, view.JoinToken), NextPageToken: p.next}, nil
}

// DeleteJoinToken ends a token.
func (c *Core) DeleteJoinToken(ctx context.Context, r *inventoryv1.DeleteJoinTokenRequest) (*inventoryv1.DeleteJoinTokenResponse, error) {
	return store.Mutate(ctx, c.store, store.Mutation[*inventoryv1.DeleteJoinTokenResponse]{
		Request: r,
		Empty:   func() *inventoryv1.DeleteJoinTokenResponse { return &inventoryv1.DeleteJoinTokenResponse{} },
		Apply: func(ctx context.Context, t *store.Tx) (*inventoryv1.DeleteJoinTokenResponse, error) {
			there, err := t.DeleteJoinToken(ctx, r.GetId())
			if err != nil {
				return nil, err
			}
			if !there {
				return nil, notFound("join token", r.GetId())
			}
			audit(ctx, t, "join_token.deleted", resourceJoinToken, r.GetId(), nil)
			return &inventoryv1.DeleteJoinTokenResponse{}, nil
		},
	})
}

func errJoinToken() error {
	return errs.New(errs.Unauthenticated, "JOIN_TOKEN_NOT_VALID", "the join token is unknown, expired or used up")
}

// joinToken finds the token of a secret. The standing one has no bounds of its own and may not take names over.
func (c *Core) joinToken(ctx context.Context, t *store.Tx, secret string) (store.JoinToken, error) {
	if secretbox.NewSecret(secret).In(c.cfg.AgentJoinTokens) {
		return store.JoinToken{ID: standingToken}, nil
	}
	j, err := t.GetJoinToken(ctx, hashSecret(secret))
	if errors.Is(err, store.ErrNotFound) || err == nil && !j.ExpireTime.After(time.Now()) {
		return j, errJoinToken()
	}
	return j, err
}

// use counts one use of a token.
func (c *Core) use(ctx context.Context, t *store.Tx, j store.JoinToken) error {
	if j.ID == standingToken {
		return nil
	}
	used, err := t.UseJoinToken(ctx, j.ID)
	if err == nil && !used {
		return errJoinToken()
	}
	return err
}

// Enroll trades a join token for a credential.
func (c *Core) Enroll(ctx context.Context, r *agentv1.EnrollRequest) (*agentv1.EnrollResponse, error) {
	var v errs.Violations
	checkName(&v, r.GetName())
	checkLabels(&v, r.GetLabels())
	if err := v.Err(); err != nil {
		return nil, err
	}
	var out *agentv1.EnrollResponse
	err := c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		j, err := c.joinToken(ctx, t, r.GetJoinToken())
		if err != nil {
			return err
		}
		a, err := t.LockAgentByName(ctx, r.GetName())
		switch {
		case errors.Is(err, store.ErrNotFound):
			out, err = c.enrollNew(ctx, t, r, j)
		case err == nil:
			out, err = c.enrollAgain(ctx, t, r, j, a)
		}
		return err
	})
	if store.IsUnique(err, "agents_name_taken") {
		return nil, nameTaken(r.GetName())
	}
	return out, err
}

func nameTaken(name string) error {
	return errs.New(errs.AlreadyExists, "AGENT_NAME_TAKEN",
		"an agent named %q exists: if its host has lost the credential, an operator can allow its re-enrolment, or retire it", name).With("name", name)
}

func agentRow(id string, r *agentv1.EnrollRequest) store.Agent {
	h := r.GetHost()
	return store.Agent{
		ID: id, Name: r.GetName(), InstanceID: r.GetInstanceId(), Hostname: h.GetHostname(), OS: h.GetOs(), Architecture: h.GetArchitecture(),
		Version: h.GetVersion(), Labels: r.GetLabels(), Capabilities: h.GetCapabilities(),
	}
}

func (c *Core) enrollNew(ctx context.Context, t *store.Tx, r *agentv1.EnrollRequest, j store.JoinToken) (*agentv1.EnrollResponse, error) {
	if err := c.use(ctx, t, j); err != nil {
		return nil, err
	}
	id, err := newID("agent")
	if err != nil {
		return nil, err
	}
	if err := t.InsertAgent(ctx, agentRow(id, r)); err != nil {
		return nil, err
	}
	audit(asAgent(ctx, id), t, "agent.enrolled", resourceAgent, id, map[string]any{"name": r.GetName(), "join_token_id": j.ID})
	t.Changed(store.Agents)
	return c.giveCredential(ctx, t, id, j.ID)
}

// enrollAgain decides about a name that exists. Nobody gets a second credential beside one in use: either the answer of the
// last enrolment was lost, or somebody's word lets the name be taken over, and then what was given out before is revoked.
func (c *Core) enrollAgain(ctx context.Context, t *store.Tx, r *agentv1.EnrollRequest, j store.JoinToken, a store.Agent) (*agentv1.EnrollResponse, error) {
	lost, err := c.answerLost(ctx, t, r, j, a)
	if err != nil {
		return nil, err
	}
	if lost {
		if err := t.RevokeUnused(ctx, a.ID); err != nil {
			return nil, err
		}
		audit(asAgent(ctx, a.ID), t, "agent.enrolled", resourceAgent, a.ID, map[string]any{"name": a.Name, "join_token_id": j.ID, "answer_lost": true})
		return c.giveCredential(ctx, t, a.ID, j.ID)
	}
	allowed := a.ReenrollUntil != nil && a.ReenrollUntil.After(time.Now())
	if !allowed && !j.AllowReenrollment {
		return nil, nameTaken(a.Name)
	}
	if err := c.use(ctx, t, j); err != nil {
		return nil, err
	}
	if err := t.RevokeCredentials(ctx, a.ID); err != nil {
		return nil, err
	}
	if err := t.ReenrollAgent(ctx, agentRow(a.ID, r)); err != nil {
		return nil, err
	}
	audit(asAgent(ctx, a.ID), t, "agent.enrolled", resourceAgent, a.ID, map[string]any{"name": a.Name, "join_token_id": j.ID, "again": true})
	t.Changed(store.Agents)
	t.Notify(store.Notice{Kind: store.NoticeCredential, AgentID: a.ID})
	return c.giveCredential(ctx, t, a.ID, j.ID)
}

// answerLost tells whether this is the same enrolment once more: same installation, same token, and what it was given has
// never been seen, nor is there a credential in use.
func (c *Core) answerLost(ctx context.Context, t *store.Tx, r *agentv1.EnrollRequest, j store.JoinToken, a store.Agent) (bool, error) {
	if a.InstanceID != r.GetInstanceId() {
		return false, nil
	}
	used, err := t.CountUsedCredentials(ctx, a.ID)
	if err != nil || used > 0 {
		return false, err
	}
	unused, err := t.UnusedCredentials(ctx, a.ID)
	if err != nil {
		return false, err
	}
	for _, k := range unused {
		if k.JoinTokenID == j.ID {
			return true, nil
		}
	}
	return false, nil
}

func (c *Core) giveCredential(ctx context.Context, t *store.Tx, agentID, joinTokenID string) (*agentv1.EnrollResponse, error) {
	secret, err := c.addCredential(ctx, t, agentID, joinTokenID)
	if err != nil {
		return nil, err
	}
	return &agentv1.EnrollResponse{AgentId: agentID, Credential: secret}, nil
}

func (c *Core) addCredential(ctx context.Context, t *store.Tx, agentID, joinTokenID string) (string, error) {
	id, err := newID("")
	if err != nil {
		return "", err
	}
	secret, hash := newSecret()
	return secret, t.InsertCredential(ctx, store.Credential{ID: id, AgentID: agentID, JoinTokenID: joinTokenID}, hash)
}

// RotateCredential gives an agent a new credential. The one in use stays valid until the new one is used.
func (c *Core) RotateCredential(ctx context.Context, agentID string) (*agentv1.RotateCredentialResponse, error) {
	out := &agentv1.RotateCredentialResponse{}
	err := c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		a, err := t.LockAgent(ctx, agentID)
		if err != nil {
			return err
		}
		if a.Status == store.AgentRetired {
			return errAgentRetired(agentID)
		}
		if err := t.RevokeUnused(ctx, agentID); err != nil {
			return err
		}
		out.Credential, err = c.addCredential(ctx, t, agentID, "")
		audit(ctx, t, "agent.credential.rotated", resourceAgent, agentID, nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func errAgentRetired(id string) error {
	return errs.New(errs.PermissionDenied, "AGENT_RETIRED", "agent %s is retired", id)
}

func errCredential() error {
	return errs.New(errs.Unauthenticated, "CREDENTIAL_NOT_VALID", "the agent's credential is not valid")
}

// Authenticate finds whose credential a secret is, and notes its first use. A retired agent is told so.
func (c *Core) Authenticate(ctx context.Context, secret string) (store.Credential, error) {
	k, ok, err := c.together.credentials.Get(ctx, string(hashSecret(secret)))
	if err != nil {
		return k, err
	}
	if !ok {
		return k, errCredential()
	}
	if err := valid(k); err != nil {
		return k, err
	}
	if k.Status == store.CredentialUnused {
		err = c.firstUse(ctx, k)
	}
	return k, err
}

func valid(k store.Credential) error {
	switch {
	case k.AgentStatus == store.AgentRetired:
		return errAgentRetired(k.AgentID)
	case k.Status == store.CredentialRevoked:
		return errCredential()
	default:
		return nil
	}
}

func (c *Core) firstUse(ctx context.Context, k store.Credential) error {
	return c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		// The agent's row is locked first, as enrolment and rotation do.
		if _, err := t.LockAgent(ctx, k.AgentID); err != nil {
			return err
		}
		current, err := t.GetCredentialByID(ctx, k.ID)
		if err != nil {
			return err
		}
		if err := valid(current); err != nil {
			return err
		}
		first, err := t.ActivateCredential(ctx, current)
		if first {
			t.Notify(store.Notice{Kind: store.NoticeCredential, AgentID: k.AgentID})
		}
		return err
	})
}

// asAgent is the context of what an agent does.
func asAgent(ctx context.Context, id string) context.Context {
	return rpcctx.WithCaller(ctx, rpcctx.Caller{Type: rpcctx.Agent, ID: id, Role: rpcctx.RoleAgent})
}
