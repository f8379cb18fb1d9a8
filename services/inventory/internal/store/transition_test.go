package store_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

// errUndo rolls a tried transition back.
var errUndo = errors.New("undo")

// mover makes one transition of the row under test.
type mover func(ctx context.Context, t *store.Tx) (bool, error)

func open(t *testing.T) (*store.Store, *pgxpool.Pool) {
	t.Helper()
	d := testpg.NewDatabase(t, store.Schema())
	s, err := store.New(store.Config{}, d.Open(t, "inventory"))
	require.NoError(t, err)
	admin := d.Admin(t)
	for _, sql := range []string{
		`INSERT INTO inventory.agents (id, name, instance_id, status) VALUES ('agent-1', 'a', 'i', 'ONLINE')`,
		`INSERT INTO inventory.mailboxes (agent_id) VALUES ('agent-1')`,
		`INSERT INTO inventory.targets (id, name, agent_id, type) VALUES ('target-1', 't', 'agent-1', 'file')`,
		`INSERT INTO inventory.certificates (id, name, search_text, issuer_id, profile_id, policy_id, status, current_version, not_after, revocation_time)
		 VALUES ('cert-1', 'c', 'c', 'i', 'p', 'p', 'PENDING', 1, now() - interval '1 minute', now())`,
		`INSERT INTO inventory.deployments (id, certificate_id, target_id, agent_id, status, desired_version, due_time, deadline_time)
		 VALUES ('dep-1', 'cert-1', 'target-1', 'agent-1', 'PENDING', 1, now(), now())`,
	} {
		_, err := admin.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	return s, admin
}

// machine is one state machine: where its row is, its states, its transitions and how each is made.
type machine struct {
	table, id   string
	states      []string
	transitions []store.Transition
	movers      map[string]mover
	// allowed lists every allowed pair, written out by hand: "FROM transition".
	allowed []string
	// extra sets columns that go with a state.
	extra string
}

func (m machine) check(t *testing.T, s *store.Store, admin *pgxpool.Pool) {
	t.Helper()
	seen := 0
	for _, state := range m.states {
		_, err := admin.Exec(t.Context(), `UPDATE inventory.`+m.table+` SET status = $1`+m.extra+` WHERE id = $2`, state, m.id)
		require.NoError(t, err)
		for _, tr := range m.transitions {
			move := m.movers[tr.Name]
			require.NotNil(t, move, "transition %s is not tested", tr.Name)
			pair := state + " " + tr.Name
			want := slices.Contains(m.allowed, pair)
			after := state
			err := s.Tx(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				moved, err := move(ctx, tx)
				require.NoError(t, err, pair)
				require.Equal(t, want, moved, pair)
				after, err = statusOf(ctx, tx, m)
				require.NoError(t, err)
				return errUndo
			})
			require.ErrorIs(t, err, errUndo)
			if want {
				require.Equal(t, tr.To, after, pair)
				seen++
			} else {
				require.Equal(t, state, after, pair)
			}
		}
	}
	require.Len(t, m.allowed, seen, "the table names a pair that does not exist")
	_, err := admin.Exec(t.Context(), `UPDATE inventory.`+m.table+` SET status = 'NONSENSE' WHERE id = $1`, m.id)
	require.ErrorContains(t, err, "check", "the table lists its states")
}

func statusOf(ctx context.Context, tx *store.Tx, m machine) (string, error) {
	switch m.table {
	case "certificates":
		c, err := tx.GetCertificate(ctx, m.id)
		return c.Status, err
	case "agents":
		a, err := tx.GetAgent(ctx, m.id)
		return a.Status, err
	default:
		d, err := tx.GetDeployment(ctx, m.id)
		return d.Status, err
	}
}

func TestACertificateMovesOnlyAsTheTableSays(t *testing.T) {
	t.Parallel()
	s, admin := open(t)
	machine{
		table: "certificates", id: "cert-1", transitions: store.CertificateTransitions(),
		states: []string{"PENDING", "ACTIVE", "EXPIRED", "REVOKED", "ARCHIVED"},
		movers: map[string]mover{
			"activate": func(ctx context.Context, tx *store.Tx) (bool, error) {
				n, err := tx.ActivateCertificates(ctx, []store.Version{{CertificateID: "cert-1", Version: 2, NotAfter: time.Now()}})
				return n > 0, err
			},
			"expire": func(ctx context.Context, tx *store.Tx) (bool, error) {
				expired, err := tx.ExpireCertificates(ctx, []string{"cert-1"})
				return len(expired) == 1, err
			},
			"revoke": func(ctx context.Context, tx *store.Tx) (bool, error) {
				_, moved, err := tx.RevokeCertificate(ctx, "cert-1", "SUPERSEDED", time.Now())
				return moved, err
			},
			"archive": func(ctx context.Context, tx *store.Tx) (bool, error) { return tx.ArchiveCertificate(ctx, "cert-1") },
		},
		allowed: []string{
			"PENDING activate", "ACTIVE activate", "EXPIRED activate",
			"ACTIVE expire",
			"PENDING revoke", "ACTIVE revoke", "EXPIRED revoke",
			"PENDING archive", "ACTIVE archive", "EXPIRED archive", "REVOKED archive",
		},
	}.check(t, s, admin)
}

func TestAnAgentMovesOnlyAsTheTableSays(t *testing.T) {
	t.Parallel()
	s, admin := open(t)
	machine{
		table: "agents", id: "agent-1", transitions: store.AgentTransitions(),
		states: []string{"ONLINE", "OFFLINE", "RETIRED"},
		extra:  `, retire_time = CASE WHEN $1 = 'RETIRED' THEN now() END`,
		movers: map[string]mover{
			"online": func(ctx context.Context, tx *store.Tx) (bool, error) {
				epochs, err := tx.OnlineAgents(ctx, []store.Agent{{ID: "agent-1"}})
				return len(epochs) == 1, err
			},
			"offline": func(ctx context.Context, tx *store.Tx) (bool, error) {
				n, err := tx.OfflineAgents(ctx, time.Now(), 10)
				return n == 1, err
			},
			"retire": func(ctx context.Context, tx *store.Tx) (bool, error) { return tx.RetireAgent(ctx, "agent-1") },
		},
		allowed: []string{"ONLINE online", "OFFLINE online", "ONLINE offline", "ONLINE retire", "OFFLINE retire"},
	}.check(t, s, admin)
}

func TestADeploymentMovesOnlyAsTheTableSays(t *testing.T) {
	t.Parallel()
	s, admin := open(t)
	sighting := store.Sighting{Version: 1, Fingerprint: "f", Time: time.Now(), Due: time.Now()}
	setback := store.Setback{Reason: "R", Message: "m", Due: time.Now()}
	machine{
		table: "deployments", id: "dep-1", transitions: store.DeploymentTransitions(),
		states: []string{"PENDING", "DEPLOYING", "SERVED", "DRIFTED", "FAILED"},
		movers: map[string]mover{
			"desire": func(ctx context.Context, tx *store.Tx) (bool, error) {
				moved, err := tx.DesireDeployments(ctx, []store.Desire{{ID: "dep-1", Version: 2, Deadline: time.Now()}})
				return len(moved) == 1, err
			},
			"start": func(ctx context.Context, tx *store.Tx) (bool, error) {
				n, err := tx.StartDeployments(ctx, []string{"dep-1"}, time.Now())
				return n == 1, err
			},
			"serve": func(ctx context.Context, tx *store.Tx) (bool, error) {
				moved, err := tx.ServeDeployments(ctx, []store.Serving{{ID: "dep-1", Sighting: sighting}})
				return len(moved) == 1, err
			},
			"retry": func(ctx context.Context, tx *store.Tx) (bool, error) {
				return tx.RetryDeployment(ctx, "dep-1", setback)
			},
			"fail": func(ctx context.Context, tx *store.Tx) (bool, error) { return tx.FailDeployment(ctx, "dep-1", setback) },
			"drift": func(ctx context.Context, tx *store.Tx) (bool, error) {
				return tx.DriftDeployment(ctx, "dep-1", sighting)
			},
			"confirm": func(ctx context.Context, tx *store.Tx) (bool, error) {
				return tx.ConfirmDeployment(ctx, "dep-1", sighting)
			},
		},
		allowed: []string{
			"PENDING desire", "DEPLOYING desire", "SERVED desire", "DRIFTED desire", "FAILED desire",
			"PENDING start", "DEPLOYING serve", "DEPLOYING retry", "PENDING fail", "DEPLOYING fail",
			"SERVED drift", "DRIFTED drift", "SERVED confirm", "DRIFTED confirm",
		},
	}.check(t, s, admin)
}

func TestNobodySeesAMailboxNumberBeforeALowerOne(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	var second <-chan error
	assignment := func(id string) store.Assignment {
		return store.Assignment{ID: id, AgentID: "agent-1", Kind: store.KindCreateCsr, CertificateID: "cert-1", Payload: []byte{}, DeadlineTime: time.Now().Add(time.Hour)}
	}
	err := s.Tx(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.InsertAssignments(ctx, []store.Assignment{assignment("00000000-0000-7000-8000-000000000001")})
		second = run.Go(func() error {
			return s.Tx(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				_, err := tx.InsertAssignments(ctx, []store.Assignment{assignment("00000000-0000-7000-8000-000000000002")})
				return err
			})
		})
		select {
		case err := <-second:
			require.Fail(t, "the second number was given out before the first was committed", "%v", err)
		case <-time.After(100 * time.Millisecond):
		}
		return err
	})
	require.NoError(t, err)
	require.NoError(t, <-second)
	tops, err := s.OpenMailboxes(t.Context(), []string{"agent-1", "agent-2"})
	require.NoError(t, err)
	require.Equal(t, map[string]store.Mailbox{"agent-1": {AgentID: "agent-1", Number: 2}}, tops)
}

func TestANoticeSurvivesItsPayload(t *testing.T) {
	t.Parallel()
	n := store.Notice{Kind: store.NoticeWork, AgentID: "agent-1", Number: 42}
	got, ok := store.ParseNotice(n.String())
	require.True(t, ok)
	require.Equal(t, n, got)
	for _, bad := range []string{"", "work", "work a b", "work a 1 2"} {
		_, ok := store.ParseNotice(bad)
		require.False(t, ok, bad)
	}
}
