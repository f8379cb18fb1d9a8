package core

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/batch"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/testpg"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

// sent counts what goes to the database, beside the begin and end of transactions.
type sent struct{ n atomic.Int64 }

func (s *sent) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	if d.SQL != "begin" && d.SQL != "commit" {
		s.n.Add(1)
	}
	return ctx
}

func (s *sent) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (s *sent) during(fn func()) int64 {
	before := s.n.Load()
	fn()
	return s.n.Load() - before
}

// estate is a core with certificates on targets of agents, each with one of each.
type estate struct {
	*Core
	t    *testing.T
	sent *sent
	db   *pg.DB
}

func newEstate(t *testing.T) *estate {
	t.Helper()
	s := &sent{}
	db := testpg.NewDatabase(t, store.Schema()).OpenTraced(t, "inventory", s)
	st, err := store.New(store.Config{}, db)
	require.NoError(t, err)
	c := New(Config{
		AssignmentLease: time.Minute, DeployMaxAttempts: 3, DeployDeadline: time.Hour, RetryBase: time.Minute, RetryMax: time.Hour,
		FailedRetry: time.Hour, VerifyInterval: time.Hour,
	}, Deps{Store: st, Log: zap.NewNop()})
	return &estate{Core: c, t: t, sent: s, db: db}
}

// site is one certificate with all it needs.
type site struct{ agent, target, certificate, task string }

// sites makes n of them, with a version each.
func (e *estate) sites(n int) []site {
	e.t.Helper()
	out := make([]site, 0, n)
	for i := range n {
		s := site{fmt.Sprintf("agent-%d-%d", n, i), fmt.Sprintf("target-%d-%d", n, i), fmt.Sprintf("cert-%d-%d", n, i), uuid.NewString()}
		for _, sql := range []string{
			`INSERT INTO agents (id, name, instance_id, status) VALUES ($1, $1, $2 || $3, 'ONLINE')`,
			`INSERT INTO mailboxes (agent_id) SELECT $1 WHERE $2 <> $3`,
			`INSERT INTO targets (id, name, agent_id, type) VALUES ($2, $2, $1, 'file' || left($3, 0))`,
			`INSERT INTO certificates (id, name, search_text, issuer_id, profile_id, policy_id, status) VALUES ($3, $1, $2, 'i', 'p', 'p', 'PENDING')`,
			`INSERT INTO certificate_targets (certificate_id, target_id) SELECT $3, $2 WHERE $1 <> ''`,
			`INSERT INTO certificate_versions (certificate_id, version, order_id, agent_id, serial_number, fingerprint_sha256, public_key_sha256, issuer_dn,
			 subject_dn, not_before, not_after, certificate_pem) VALUES ($3, 1, 'ord-' || $3, $1, $2, 'seen-' || $3, '', '', '', now(), now() + interval '1 day', '')`,
		} {
			_, err := e.db.Pool.Exec(e.t.Context(), sql, s.agent, s.target, s.certificate)
			require.NoError(e.t, err)
		}
		out = append(out, s)
	}
	return out
}

func (e *estate) taskCalls(sites []site) []taskCall {
	out := make([]taskCall, 0, len(sites))
	for _, s := range sites {
		out = append(out, taskCall{caller: callerOf(e.t.Context()), payload: []byte{}, request: &inventoryv1.CreateCsrTaskRequest{
			TaskId: s.task, AgentId: s.agent, DeadlineTime: timestamppb.New(time.Now().Add(time.Hour)), Csr: &agentv1.CreateCsr{CertificateId: s.certificate},
		}})
	}
	return out
}

// take leases what there is for the agents, and gives it by agent.
func (e *estate) take(sites []site) map[string]*agentv1.Assignment {
	e.t.Helper()
	calls := make([]listCall, 0, len(sites))
	for _, s := range sites {
		calls = append(calls, listCall{agentID: s.agent, request: &agentv1.ListAssignmentsRequest{}})
	}
	outcomes, err := e.lease(e.t.Context(), calls)
	require.NoError(e.t, err)
	out := map[string]*agentv1.Assignment{}
	for i, o := range outcomes {
		require.NoError(e.t, o.Err)
		require.Len(e.t, o.Value.GetAssignments(), 1)
		out[sites[i].agent] = o.Value.GetAssignments()[0]
	}
	return out
}

func (e *estate) reportCalls(sites []site, work map[string]*agentv1.Assignment, result func(site, *agentv1.ReportAssignmentRequest)) []reportCall {
	out := make([]reportCall, 0, len(sites))
	for _, s := range sites {
		r := &agentv1.ReportAssignmentRequest{AssignmentId: work[s.agent].GetId(), LeaseId: work[s.agent].GetLeaseId()}
		result(s, r)
		out = append(out, reportCall{caller: callerOf(e.t.Context()), agentID: s.agent, request: r})
	}
	return out
}

func csrOf(_ site, r *agentv1.ReportAssignmentRequest) {
	r.Report = &agentv1.ReportAssignmentRequest_Csr{Csr: &agentv1.CsrResult{CsrPem: "CSR"}}
}

func servedOf(s site, r *agentv1.ReportAssignmentRequest) {
	r.Report = &agentv1.ReportAssignmentRequest_Deploy{Deploy: &agentv1.DeployResult{ServedFingerprintSha256: "SEEN-" + s.certificate}}
}

func (e *estate) report(calls []reportCall) {
	e.t.Helper()
	outcomes, err := e.takeReports(e.t.Context(), calls)
	require.NoError(e.t, err)
	for _, o := range outcomes {
		require.NoError(e.t, o.Err)
		require.False(e.t, o.Value.GetStale())
	}
}

func (e *estate) desireAll(sites []site) {
	e.t.Helper()
	require.NoError(e.t, e.store.Tx(e.t.Context(), func(ctx context.Context, tx *store.Tx) error {
		var list []desired
		for _, s := range sites {
			list = append(list, desired{certificateID: s.certificate, targetID: s.target, agentID: s.agent, version: 1})
		}
		return e.desire(ctx, tx, list...)
	}))
}

func (e *estate) events(kind string) (n int) {
	e.t.Helper()
	require.NoError(e.t, e.db.Pool.QueryRow(e.t.Context(), `SELECT count(*) FROM outbox WHERE type = $1`, kind).Scan(&n))
	return n
}

func TestFiftyCertificatesOnTheirWayToTargetsCostTheStatementsOfOne(t *testing.T) {
	t.Parallel()
	e := newEstate(t)
	cost := map[int]map[string]int64{}
	for _, n := range []int{1, 50} {
		sites := e.sites(n)
		var work map[string]*agentv1.Assignment
		cost[n] = map[string]int64{
			"tasks": e.sent.during(func() {
				outcomes, err := e.createTasks(t.Context(), e.taskCalls(sites))
				require.NoError(t, err)
				require.Equal(t, make([]batch.Outcome[struct{}], n), outcomes)
			}),
			"tasks again": e.sent.during(func() {
				_, err := e.createTasks(t.Context(), e.taskCalls(sites))
				require.NoError(t, err)
			}),
			"lists":          e.sent.during(func() { work = e.take(sites) }),
			"CSRs":           e.sent.during(func() { e.report(e.reportCalls(sites, work, csrOf)) }),
			"deployments":    e.sent.during(func() { e.desireAll(sites) }),
			"lists of those": e.sent.during(func() { work = e.take(sites) }),
			"served":         e.sent.during(func() { e.report(e.reportCalls(sites, work, servedOf)) }),
			"anew":           e.sent.during(func() { e.desireAll(sites) }),
		}
		for _, s := range sites {
			d, err := e.store.DeploymentsOf(t.Context(), []string{s.certificate})
			require.NoError(t, err)
			require.Len(t, d, 1)
			require.Equal(t, store.DeploymentPending, d[0].Status)
			require.EqualValues(t, 1, d[0].ServedVersion)
		}
	}
	require.Equal(t, cost[1], cost[50])
	for what, most := range map[string]int64{
		// Tasks, certificates, agents, mailboxes, the work, events, notices; then the first three alone.
		"tasks": 7, "tasks again": 3,
		// Deployments, the work; and for deployments also targets, versions, their start, the revision.
		"lists": 2, "lists of those": 7,
		// The work, its end, events; and for deployments also their locks, versions, rows, the revision.
		"CSRs": 3, "served": 7,
		// Locks, rows, mailboxes, the work, events, notices, the revision; and the end of what was open.
		"deployments": 7, "anew": 8,
	} {
		require.LessOrEqual(t, cost[50][what], most, what)
	}
	require.Equal(t, 51, e.events("task.finished"))
	require.Zero(t, e.events("deployment.changed"), "no job waits for deployments that were not requested")
}

func TestWhatIsWrongWithOneCallCostsNoOther(t *testing.T) {
	t.Parallel()
	e := newEstate(t)
	sites := e.sites(5)
	calls := e.taskCalls(sites)
	calls[1].request.Csr.CertificateId = "cert-none"
	calls[2].request.AgentId = "agent-none"
	calls[3].request.TaskId = "no id"
	outcomes := pg.AllOrEach(calls, func(list []taskCall) ([]batch.Outcome[struct{}], error) { return e.createTasks(t.Context(), list) })
	require.NoError(t, outcomes[0].Err)
	require.Equal(t, "CERTIFICATE_NOT_FOUND", errs.ReasonOf(outcomes[1].Err))
	require.Equal(t, "AGENT_NOT_FOUND", errs.ReasonOf(outcomes[2].Err))
	require.True(t, errs.IsKind(outcomes[3].Err, errs.Invalid), "%v", outcomes[3].Err)
	require.NoError(t, outcomes[4].Err)

	able := []site{sites[0], sites[4]}
	work := e.take(able)
	reports := e.reportCalls(able, work, csrOf)
	reports = append(reports, reports[0], e.reportCalls(able[:1], work, csrOf)[0], e.reportCalls(able[:1], work, servedOf)[0])
	reports[2].agentID = sites[1].agent
	got, err := e.takeReports(t.Context(), reports)
	require.NoError(t, err)
	require.NoError(t, got[0].Err)
	require.NoError(t, got[1].Err)
	require.Equal(t, "ASSIGNMENT_NOT_FOUND", errs.ReasonOf(got[2].Err), "another agent's work")
	require.False(t, got[3].Value.GetStale(), "the same again is no news")
	require.True(t, errs.IsKind(got[4].Err, errs.Invalid), "what does not fit the work")
	require.Equal(t, 2, e.events("task.finished"))
}

func TestAFailureAmongSuccessesIsToldAsOne(t *testing.T) {
	t.Parallel()
	e := newEstate(t)
	sites := e.sites(3)
	e.desireAll(sites)
	reports := e.reportCalls(sites, e.take(sites), servedOf)
	reports[1].request.Report = &agentv1.ReportAssignmentRequest_Failure{Failure: &agentv1.Failure{Problem: &typev1.Problem{Reason: "NO_SPACE"}, Permanent: true}}
	reports[2].request.GetDeploy().ServedFingerprintSha256 = "foreign"
	e.report(reports)
	for i, status := range []string{store.DeploymentServed, store.DeploymentFailed, store.DeploymentPending} {
		d, err := e.store.DeploymentsOf(t.Context(), []string{sites[i].certificate})
		require.NoError(t, err)
		require.Equal(t, status, d[0].Status, sites[i].certificate)
	}
}
