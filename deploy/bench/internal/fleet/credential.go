package fleet

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/secretbox"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

// secretSize is the size of a credential as the server makes it, bytes.
const secretSize = 32

// Seed writes n agents with mailboxes and credentials into the database, as if they had enrolled and been seen, and gives the
// credentials. The URL is the superuser's. Agents of an earlier call stay.
func Seed(ctx context.Context, databaseURL string, n int) ([]Credential, error) {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return nil, fmt.Errorf("seed agents: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	credentials := make([]Credential, n)
	var agents, mailboxes, secrets [][]any
	run := rand.Text()[:8]
	for i := range credentials {
		id := fmt.Sprintf("agent-bench-%s-%06d", run, i)
		secret, hash := newSecret()
		credentials[i] = Credential{AgentID: id, Secret: secret}
		agents = append(agents, []any{id, fmt.Sprintf("bench-%s-%06d", run, i), uuid.NewString(), "OFFLINE"})
		mailboxes = append(mailboxes, []any{id})
		secrets = append(secrets, []any{uuid.New(), id, hash, "ACTIVE"})
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, t := range []struct {
			table   string
			columns []string
			rows    [][]any
		}{
			{"agents", []string{"id", "name", "instance_id", "status"}, agents},
			{"mailboxes", []string{"agent_id"}, mailboxes},
			{"agent_credentials", []string{"id", "agent_id", "hash", "status"}, secrets},
		} {
			if _, err := tx.CopyFrom(ctx, pgx.Identifier{"inventory", t.table}, t.columns, pgx.CopyFromRows(t.rows)); err != nil {
				return fmt.Errorf("copy %s: %w", t.table, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("seed agents: %w", err)
	}
	if _, err := conn.Exec(ctx, "ANALYZE inventory.agents, inventory.mailboxes, inventory.agent_credentials"); err != nil {
		return nil, fmt.Errorf("seed agents: %w", err)
	}
	return credentials, nil
}

func newSecret() (secretbox.Secret, []byte) {
	b := make([]byte, secretSize)
	_, _ = rand.Read(b) // never fails, by its contract
	text := base64.RawURLEncoding.EncodeToString(b)
	hash := sha256.Sum256([]byte(text))
	return secretbox.NewSecret(text), hash[:]
}

// enrolments is how many enrolments are under way at once.
const enrolments = 16

// Enroll enrols n agents through the gateway with a join token, and gives their credentials. Config.Credentials counts for nothing.
func Enroll(ctx context.Context, cfg Config, token secretbox.Secret, n int) ([]Credential, error) {
	f, err := newFleet(cfg)
	if err != nil {
		return nil, err
	}
	conn, err := f.dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	client := agentv1.NewAgentServiceClient(conn)
	credentials := make([]Credential, n)
	run := rand.Text()[:8]
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(enrolments)
	for i := range credentials {
		g.Go(func() error {
			a, err := client.Enroll(ctx, &agentv1.EnrollRequest{
				JoinToken: token.Reveal(), Name: fmt.Sprintf("bench-%s-%06d", run, i), InstanceId: uuid.NewString(), Host: host(),
			})
			if err != nil {
				return fmt.Errorf("enrol agent %d of %d: %w", i+1, n, explain(err))
			}
			credentials[i] = Credential{AgentID: a.GetAgentId(), Secret: secretbox.NewSecret(a.GetCredential())}
			return nil
		})
	}
	return credentials, g.Wait()
}
