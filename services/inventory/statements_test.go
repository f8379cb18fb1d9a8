package inventory_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/pkg/testrpc"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/inventory"
)

// statements counts what is sent to the database, transactions' brackets left out.
type statements struct{ n atomic.Int64 }

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if sql := strings.ToLower(q.SQL); !strings.HasPrefix(sql, "begin") && !strings.HasPrefix(sql, "commit") && !strings.HasPrefix(sql, "rollback") {
		s.n.Add(1)
	}
	return ctx
}

func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// counted is a replica whose loops do not run and whose statements are counted.
func (w *world) counted(t testing.TB) (*replica, *statements) {
	t.Helper()
	s := &statements{}
	return w.atRest(t, w.database.OpenTraced(t, "inventory", s)), s
}

// atRest is a replica that answers, and does nothing by itself.
func (w *world) atRest(t testing.TB, db *pg.DB) *replica {
	t.Helper()
	r := &replica{db: db}
	var err error
	r.service, err = inventory.New(quick(), inventory.Deps{
		DB: r.db, Targets: validator{}, Peers: inventory.Peers{Issuance: w.toIssuance, RenewalScheduler: w.toSched, Audit: w.toAudi},
	})
	require.NoError(t, err)
	r.server = testrpc.Serve(t, testrpc.Config{
		Table: r.service.AuthzTable(), Register: r.service.Register,
		Change: func(c *rpc.ServerConfig, _ *rpc.ServerDeps) { c.LongLivedStreams = r.service.LongLivedStreams() },
	})
	r.admin, r.peer, r.anon = r.server.AsRole(t, rpcctx.RoleAdmin), r.server.AsPeer(t, "issuance"), r.server.AsRole(t, rpcctx.RoleNone)
	return r
}

func TestNoQuestionForTheSummaryCountsWhatIsCostlyToCount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	counts := testpg.NewSlow("'certificates' AS what", 500*time.Millisecond)
	r := w.startOn(t, quick(), w.database.OpenTraced(t, "inventory", counts))
	eventually(t, func() bool { return counts.Seen() == 1 }, "the service counts when it starts, although nobody asks")
	ask := func() {
		_, err := inventoryv1.NewStatsServiceClient(r.admin).GetSummary(t.Context(), &inventoryv1.GetSummaryRequest{})
		require.NoError(t, err)
	}
	ask() // waits for that count
	require.LessOrEqual(t, counts.Seen(), 2)
	eventually(t, func() bool { return r.ran("summary") }, "the loop has seen that counting is costly")
	before := counts.Seen()
	for range 50 {
		ask()
	}
	require.Equal(t, before, counts.Seen(), "no question counts")
}

func TestListsAndMailboxesCostTheSameStatementsForManyRows(t *testing.T) {
	t.Parallel()
	r, sent := newWorld(t).counted(t)
	hosts := map[int]*host{1: r.enroll(t, "small"), 20: r.enroll(t, "big")}
	for rows, h := range hosts {
		for i := range rows {
			id := named("s-%d-%d", rows, i)
			r.target(t, id, h.id)
			r.certificate(t, id, id)
			r.issue(t, id, h.id)
		}
	}
	during := func(fn func()) int64 {
		before := sent.n.Load()
		fn()
		return sent.n.Load() - before
	}
	for name, list := range map[string]func() error{
		"certificates": func() error {
			_, err := r.certificates().ListCertificates(t.Context(), &inventoryv1.ListCertificatesRequest{IncludeTotal: true})
			return err
		},
		"certificates by id": func() error {
			a, err := r.certificates().GetCertificates(t.Context(), &inventoryv1.GetCertificatesRequest{Ids: []string{named("s-%d-%d", 1, 0), named("s-%d-%d", 20, 7), "unknown"}})
			require.Len(t, a.GetCertificates(), 2)
			require.NoError(t, err)
			_, err = r.certificates().GetCertificate(t.Context(), &inventoryv1.GetCertificateRequest{Id: named("s-%d-%d", 20, 7)})
			return err
		},
		"agents": func() error {
			_, err := r.registry().ListAgents(t.Context(), &inventoryv1.ListAgentsRequest{IncludeTotal: true})
			return err
		},
		"targets": func() error {
			_, err := r.targets().ListTargets(t.Context(), &inventoryv1.ListTargetsRequest{IncludeTotal: true})
			return err
		},
		"deployments": func() error {
			_, err := inventoryv1.NewDeploymentServiceClient(r.admin).ListDeployments(t.Context(), &inventoryv1.ListDeploymentsRequest{IncludeTotal: true})
			return err
		},
	} {
		require.LessOrEqual(t, during(func() { require.NoError(t, list()) }), int64(2), name)
	}

	cost := map[int]int64{}
	for rows, h := range hosts {
		h.list(t, 1<<40) // the first use of the credential is a change
		cost[rows] = during(func() {
			a, err := h.client().ListAssignments(h.ctx(t.Context()), &agentv1.ListAssignmentsRequest{})
			require.NoError(t, err)
			require.Len(t, a.GetAssignments(), rows)
		})
	}
	require.Equal(t, cost[1], cost[20], "work is put together in batches")

	for rows, h := range hosts {
		cost[rows] = during(func() {
			_, err := r.registry().RetireAgent(t.Context(), &inventoryv1.RetireAgentRequest{Id: h.id, Force: true})
			require.NoError(t, err)
		})
	}
	require.LessOrEqual(t, cost[20]-cost[1], int64(2*19), "two for each deployment that is closed, none for each certificate that is told")
}

func TestALookForWorkThatIsNotThereCostsOneStatement(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	looks := testpg.NewSlow("AS lapsed", 0)
	work := testpg.NewSlow("FROM assignments s WHERE s.status", 0)
	r := w.startOn(t, quick(), w.database.OpenTraced(t, "inventory", multitracer.New(looks, work)))
	eventually(t, func() bool { return looks.Seen() > 5 && r.ran("assignment dispatch") }, "the loop looks")
	require.Zero(t, work.Seen(), "and reads nothing")
}

func TestARevocationCostsTheSameStatementsForManyDeployments(t *testing.T) {
	t.Parallel()
	r, sent := newWorld(t).counted(t)
	for _, targets := range []int{0, 5} {
		id := named("c-revoked-%d", targets)
		var bound, agents []string
		for i := range targets {
			bound, agents = append(bound, named("t-%d", i)), append(agents, r.enroll(t, named("host-%d", i)).id)
			r.target(t, bound[i], agents[i])
		}
		r.certificate(t, id, bound...)
		r.issue(t, id, "")
		for _, agent := range agents {
			r.issue(t, id, agent)
		}
		require.Len(t, r.deployments(t, id), targets)

		before := sent.n.Load()
		answer, err := r.certificates().RevokeCertificate(t.Context(), &inventoryv1.RevokeCertificateRequest{Id: id})
		require.NoError(t, err)
		require.Equal(t, inventoryv1.Revocation_REVOKED, answer.GetRevocation().GetState())
		require.Len(t, answer.GetRevocation().GetVersions(), targets+1)
		require.EqualValues(t, 7, sent.n.Load()-before, "certificate, versions, deployments, work, events and revisions in a transaction; then that the CA knows")
		require.Empty(t, r.deployments(t, id))
	}
}
