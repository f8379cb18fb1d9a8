package core

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// validFacts are of an active certificate on one agent, 10 days old, of 90, that nobody works on.
func validFacts() *facts {
	now := someStart()
	from, to := now.Add(-10*24*time.Hour), now.Add(80*24*time.Hour)
	f := &facts{
		now: now,
		rec: &inventoryv1.CertificateRecord{
			Certificate: &inventoryv1.Certificate{
				Id: "cert-1", Status: inventoryv1.Certificate_ACTIVE, IssuerId: "iss-1", ProfileId: "prof-1", PolicyId: "pol-1", CurrentVersion: 1,
				NotBefore: timestamppb.New(from), NotAfter: timestamppb.New(to),
			},
			KeyHolders: []*inventoryv1.KeyHolder{{AgentId: "agent-1", AgentName: "web1", AgentStatus: "ONLINE"}},
		},
		policy:   &store.Policy{ID: "pol-1", Automatic: true},
		planKeys: []store.PlanKey{{CertificateID: "cert-1", AgentID: "agent-1", Version: 1, NotBefore: from, NotAfter: to}},
		plan:     &store.Plan{CertificateID: "cert-1", CertificateStatus: "ACTIVE"},
	}
	schedule(f.plan, f.policy, f.planKeys, false)
	return f
}

func withJob(f *facts, kind store.JobType, state store.JobState) {
	f.open = &store.Job{ID: "job-1", Type: kind, State: state, CertificateID: "cert-1", Attempt: 1, MaxAttempts: 5, Askers: []string{"anna"},
		DueTime: f.now.Add(time.Minute), DeadlineTime: f.now.Add(time.Hour)}
	schedule(f.plan, f.policy, f.planKeys, true)
}

func unissued(f *facts) {
	c := f.rec.GetCertificate()
	c.Status, c.CurrentVersion, c.NotAfter, c.NotBefore, f.planKeys = inventoryv1.Certificate_PENDING, 0, nil, nil, nil
	schedule(f.plan, f.policy, nil, false)
}

func TestEveryStateIsExplained(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		change   func(f *facts)
		summary  string
		next     string
		blocker  string // reason
		owner    string
		decision string // subject
	}{
		{"pending without targets", func(f *facts) {
			unissued(f)
			f.rec.KeyHolders = nil
			withJob(f, store.Issue, store.AwaitingCSR)
			f.openKeys = []*store.Key{{State: store.KeyAwaitingCSR}}
		}, "waits for a CSR", "expires unless the CSR comes", "CSR_REQUIRED", "keeps the key", "key"},
		{"not heard of yet", func(f *facts) { unissued(f); f.plan = nil }, "job opens now", "a job opens", "", "", "key"},
		{"awaiting approval", func(f *facts) {
			unissued(f)
			withJob(f, store.Issue, store.AwaitingApproval)
			f.open.ApprovalSubject = "x"
		}, "waits for approval", "unless it is approved", "APPROVAL_REQUIRED", "an approver other than anna", "approval"},
		{"awaiting CSR with agent offline", func(f *facts) {
			f.rec.KeyHolders[0].AgentStatus = "OFFLINE"
			withJob(f, store.Renew, store.AwaitingCSR)
			f.openKeys = []*store.Key{{AgentID: "agent-1", State: store.KeyAwaitingCSR, TaskID: "t"}}
		}, "being renewed by job job-1", "expires unless the CSR comes", "AGENT_OFFLINE", "agent agent-1", "renew_time"},
		{"awaiting CSR with agent online", func(f *facts) {
			withJob(f, store.Renew, store.AwaitingCSR)
			f.openKeys = []*store.Key{{AgentID: "agent-1", State: store.KeyAwaitingCSR, TaskID: "t"}}
		}, "waits for a CSR", "expires unless", "AWAITING_CSR", "agent agent-1", "renew_time"},
		{"awaiting CA", func(f *facts) {
			withJob(f, store.Renew, store.AwaitingCA)
			f.openKeys = []*store.Key{{AgentID: "agent-1", State: store.KeyAwaitingCA, OrderID: "ord-1"}}
		}, "CA iss-1 has the order", "looked at again", "AWAITING_CA", "CA iss-1", "renew_time"},
		{"issued and being stored", func(f *facts) {
			withJob(f, store.Renew, store.AwaitingCA)
			f.openKeys = []*store.Key{{AgentID: "agent-1", State: store.KeyIssued, OrderID: "ord-1"}}
		}, "version is being stored", "version is stored", "", "", "renew_time"},
		{"just opened", func(f *facts) { withJob(f, store.Renew, store.Pending) }, "it starts now", "the job starts", "", "", "renew_time"},
		{"failed and waiting for its next try", func(f *facts) {
			withJob(f, store.Renew, store.Pending)
			f.open.Error = store.Problem{Reason: "ORDER_FAILED", Message: "no"}
			f.openKeys = []*store.Key{{AgentID: "agent-1", State: store.KeyFailed, OrderID: "ord-1"}}
		}, "1 of 5 were made", "tried again", "ORDER_FAILED", "CA iss-1", "renew_time"},
		{"failed job, waiting for a fresh one", func(f *facts) {
			f.plan.Failures, f.plan.RetryTime = 2, f.now.Add(60*24*time.Hour)
			f.last = &store.Job{ID: "job-0", State: store.Failed, Error: store.Problem{Reason: "ORDER_REJECTED", Message: "no"}}
			schedule(f.plan, f.policy, f.planKeys, false)
		}, "did not succeed", "a renewal job opens", "ORDER_REJECTED", "CA iss-1", "retry"},
		{"first issue let go", func(f *facts) {
			unissued(f)
			f.last = &store.Job{ID: "job-0", State: store.Expired, Askers: []string{"anna"}, Error: store.Problem{Reason: "APPROVAL_TIMEOUT", Message: "nobody"}}
		}, "Nothing was issued yet, and nothing is tried", "retry the last job", "APPROVAL_TIMEOUT", "an approver other than anna", "key"},
		{"first issue tried again", func(f *facts) {
			f.plan.Reopen, f.plan.Failures, f.plan.RetryTime = true, 1, f.now.Add(time.Hour)
			unissued(f)
			f.last = &store.Job{ID: "job-0", State: store.Expired, Error: store.Problem{Reason: "CSR_TIMEOUT", Message: "no CSR came in time from agent agent-1"}}
		}, "a fresh job opens at", "an issue job opens", "CSR_TIMEOUT", "agent agent-1", "retry"},
		{"active and not due", func(*facts) {}, "due for renewal at", "a renewal job opens", "", "", "renew_time"},
		{"active and due", func(f *facts) { f.now = f.plan.RenewAt }, "opens with the next check", "a renewal job opens", "", "", "renew_time"},
		{"frozen", func(f *facts) {
			f.policy.FreezeWindows = []store.FreezeWindow{{Start: f.now.Add(40 * 24 * time.Hour), End: f.now.Add(56 * 24 * time.Hour), Reason: "sales"}}
			schedule(f.plan, f.policy, f.planKeys, false)
			f.now = f.now.Add(54 * 24 * time.Hour)
		}, "a freeze window puts its renewal off", "a renewal job opens", "FREEZE_WINDOW", "policy pol-1", "freeze"},
		{"automatic off", func(f *facts) {
			f.policy.Automatic = false
			schedule(f.plan, f.policy, f.planKeys, false)
		}, "only by request", "nothing happens by itself", "", "", "automatic"},
		{"automatic off and late", func(f *facts) {
			f.policy.Automatic = false
			schedule(f.plan, f.policy, f.planKeys, false)
			f.now = f.now.Add(70 * 24 * time.Hour)
		}, "only by request", "nothing happens by itself", "NOT_AUTOMATIC", "who owns the certificate", "automatic"},
		{"expired", func(f *facts) {
			f.now = f.now.Add(100 * 24 * time.Hour)
			f.rec.GetCertificate().Status = inventoryv1.Certificate_EXPIRED
		}, "has expired at", "a renewal job opens", "", "", "renew_time"},
		{"revoked", func(f *facts) {
			f.rec.GetCertificate().Status, f.rec.GetCertificate().RevocationReason = inventoryv1.Certificate_REVOKED, "KEY_COMPROMISE"
		}, "is revoked (KEY_COMPROMISE)", "nothing", "", "", ""},
		{"archived", func(f *facts) { f.rec.GetCertificate().Status = inventoryv1.Certificate_ARCHIVED }, "is archived", "nothing", "", "", ""},
		{"drifted", func(f *facts) {
			f.deployments = []*inventoryv1.Deployment{{TargetId: "target-1", AgentId: "agent-1", Status: inventoryv1.Deployment_DRIFTED, DesiredVersion: 2, ServedVersion: 1}}
		}, "On target target-1 the deployment is DRIFTED", "a renewal job opens", "DEPLOYMENT_DRIFTED", "agent agent-1", "deployment target-1"},
		{"failed deployment", func(f *facts) {
			f.deployments = []*inventoryv1.Deployment{{TargetId: "target-1", AgentId: "agent-1", Status: inventoryv1.Deployment_FAILED,
				Error: &typev1.Problem{Reason: "RELOAD_FAILED", Message: "nginx: no"}}}
		}, "FAILED", "a renewal job opens", "DEPLOYMENT_FAILED", "agent agent-1", "deployment target-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := validFacts()
			c.change(f)

			r := f.explain()

			require.Contains(t, r.GetSummary(), c.summary)
			require.Contains(t, r.GetNext().GetAction(), c.next)
			require.Equal(t, c.blocker, r.GetBlocker().GetReason())
			require.Contains(t, r.GetBlocker().GetOwner(), c.owner)
			require.Equal(t, f.rec.GetCertificate().GetStatus().String(), r.GetStatus())
			subjects := []string{""}
			for _, d := range r.GetDecisions() {
				require.NotEmpty(t, d.GetOutcome())
				require.NotEmpty(t, d.GetRule())
				subjects = append(subjects, d.GetSubject())
			}
			require.Contains(t, subjects, c.decision)
		})
	}
}
