package renewalscheduler_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/pkg/tick"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/renewalscheduler"
)

func (s *site) approve(who, job string) (*schedulerv1.Job, error) {
	r, err := s.as(who).ApproveJob(s.t.Context(), &schedulerv1.ApproveJobRequest{Id: job, Comment: "fine"})
	return r.GetJob(), err
}

// refused checks that somebody may not approve what they asked for.
func (s *site) refused(who, job string) {
	s.t.Helper()
	_, err := s.approve(who, job)
	require.Equal(s.t, errs.PermissionDenied, errs.KindOf(err), "%s approves: %v", who, err)
	require.Equal(s.t, "OWN_REQUEST", errs.ReasonOf(err))
}

// untouched checks that nothing was made without approval.
func (s *site) untouched(tasks, orders int) {
	s.t.Helper()
	gotTasks, gotOrders := s.counts()
	require.Equal(s.t, []int{tasks, orders}, []int{gotTasks, gotOrders})
}

func TestEveryPathWaitsForApprovalBySomebodyElse(t *testing.T) {
	t.Parallel()
	s := newSite(t)

	// First issue.
	id := s.create(wanted{id: "cert-four-eyes", profile: "prof-approval", agents: []string{"agent-1"}})
	j := s.job(id, awaitingApproval)
	require.Equal(t, "an approver other than anna", s.explain(id).GetBlocker().GetOwner())
	s.untouched(0, 0)
	s.refused("anna", j.GetId())
	_, err := s.approve("bob", j.GetId())
	require.NoError(t, err)
	j = s.job(id, completed)
	require.Equal(t, "bob", j.GetApprovedBy())
	again, err := s.approve("bob", j.GetId())
	require.NoError(t, err, "safe to repeat")
	require.Equal(t, completed, again.GetStatus())
	_, err = s.approve("carl", j.GetId())
	require.Equal(t, errs.Conflict, errs.KindOf(err))
	s.untouched(1, 1)

	// Scheduled renewal: anybody but the clock may approve.
	s.until(s.renewTime(id))
	j = s.job(id, awaitingApproval, s.nth(2))
	s.untouched(1, 1)
	_, err = s.as("bob").RejectJob(t.Context(), &schedulerv1.RejectJobRequest{Id: j.GetId(), Comment: "not now"})
	require.NoError(t, err)
	j = s.job(id, cancelled, s.nth(2))
	require.Equal(t, "REJECTED", j.GetError().GetReason())
	require.Contains(t, j.GetError().GetMessage(), "not now")

	// Retry: neither who asked first nor who asks now.
	r, err := s.as("bob").RetryJob(t.Context(), &schedulerv1.RetryJobRequest{Id: j.GetId()})
	require.NoError(t, err)
	require.NotEqual(t, j.GetId(), r.GetJob().GetId())
	j = s.job(id, awaitingApproval, s.nth(3))
	s.refused("bob", j.GetId())
	_, err = s.as("bob").CancelJob(t.Context(), &schedulerv1.CancelJobRequest{Id: j.GetId()})
	require.NoError(t, err)
	_, err = s.as("carl").RetryJob(t.Context(), &schedulerv1.RetryJobRequest{Id: j.GetId()})
	require.NoError(t, err)
	j = s.job(id, awaitingApproval, s.nth(4))
	s.refused("bob", j.GetId())
	s.refused("carl", j.GetId())
	s.untouched(1, 1)
	_, err = s.approve("anna", j.GetId())
	require.NoError(t, err)
	s.job(id, completed, s.nth(4))

	// Manual renewal.
	_, err = s.as("carl").RenewCertificate(t.Context(), &schedulerv1.RenewCertificateRequest{CertificateId: id, Force: true})
	require.NoError(t, err)
	j = s.job(id, awaitingApproval, s.nth(5))
	s.refused("carl", j.GetId())
	s.untouched(2, 2)
}

func TestACSRThatIsPostedWaitsForApprovalToo(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := s.create(wanted{id: "cert-csr", profile: "prof-approval"})
	j := s.job(id, awaitingApproval)
	_, err := s.as("bob").SubmitCsr(t.Context(), &schedulerv1.SubmitCsrRequest{CertificateId: id, CsrPem: "CSR"})
	require.NoError(t, err)
	s.refused("anna", j.GetId())
	s.refused("bob", j.GetId())
	s.untouched(0, 0)
	_, err = s.approve("carl", j.GetId())
	require.NoError(t, err)
	s.job(id, completed)

	other := s.create(wanted{id: "cert-csr-2", profile: "prof-approval"})
	j = s.job(other, awaitingApproval)
	_, err = s.approve("bob", j.GetId())
	require.NoError(t, err)
	s.job(other, awaitingCSR)
	_, err = s.as("bob").SubmitCsr(t.Context(), &schedulerv1.SubmitCsrRequest{CertificateId: other, CsrPem: "CSR of the approver"})
	require.Equal(t, "OWN_APPROVAL", errs.ReasonOf(err))
}

func TestAnApprovalThatTimesOutIsNeverExecuted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.profiles["prof-approval"].ApprovalTimeout = durationpb.New(time.Hour)
	id := s.create(wanted{id: "cert-late", profile: "prof-approval", agents: []string{"agent-1"}})
	j := s.job(id, awaitingApproval)
	require.WithinDuration(t, s.clock().Add(time.Hour), j.GetDeadlineTime().AsTime(), time.Minute)
	s.until(j.GetDeadlineTime().AsTime())
	j = s.job(id, expired)
	require.Equal(t, "APPROVAL_TIMEOUT", j.GetError().GetReason())
	_, err := s.approve("bob", j.GetId())
	require.Equal(t, errs.Conflict, errs.KindOf(err))
	require.Equal(t, "EXPIRED", errs.MetaOf(err)["state"])
	s.advance(40 * day)
	runs := s.replica.service.Loops()[1].Runs
	require.True(t, eventually(t, func() bool { return s.replica.service.Loops()[1].Runs > runs+5 }))
	require.Len(t, s.jobs(id), 1, "a first issue that nobody approved is not asked for again by itself")

	_, err = s.as("carl").RetryJob(t.Context(), &schedulerv1.RetryJobRequest{Id: j.GetId()})
	require.NoError(t, err)
	j = s.job(id, awaitingApproval, s.nth(2))
	s.refused("anna", j.GetId())
	s.untouched(0, 0)
}

func TestWithoutItsProfileAJobWaits(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.down["BatchGetProfiles"] = errs.New(errs.Unavailable, "AWAY", "issuance is away")
	id := s.create(wanted{id: "cert-closed", profile: "prof-approval", agents: []string{"agent-1"}})
	s.job(id, pending, func(j *schedulerv1.Job) bool { return j.GetError().GetReason() == "AWAY" })
	s.do(func() { s.down = map[string]error{}; s.profiles = map[string]*issuancev1.Profile{} })
	s.advance(time.Hour)
	s.job(id, pending, func(j *schedulerv1.Job) bool { return j.GetError().GetReason() == "PROFILE_NOT_FOUND" })
	require.Equal(t, "profile prof-approval", s.explain(id).GetBlocker().GetOwner())
	s.untouched(0, 0)
	s.do(func() { s.profiles["prof-approval"] = &issuancev1.Profile{Id: "prof-approval", RequiresApproval: true} })
	require.True(t, eventually(t, func() bool {
		s.advance(time.Second)
		return s.jobs(id)[0].GetStatus() == awaitingApproval
	}))
	s.untouched(0, 0)
}

func TestAnApprovalOfOtherNamesIsVoid(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := s.create(wanted{id: "cert-swap", profile: "prof-approval", agents: []string{"agent-1"}})
	j := s.job(id, awaitingApproval)
	s.do(func() { s.certs[id].GetCertificate().DnsNames = []string{"bank.example.com"} })
	_, err := s.approve("bob", j.GetId())
	require.NoError(t, err)
	// Until inventory has told who made the change, nobody can be asked: it might be who made it.
	s.job(id, pending, func(j *schedulerv1.Job) bool { return j.GetError().GetReason() == "CHANGE_NOT_TOLD" })
	s.change(id, "mallory", named("bank.example.com"))
	again := s.job(id, awaitingApproval)
	require.Empty(t, again.GetApprovedBy())
	s.untouched(0, 0)
	s.refused("mallory", j.GetId())
	_, err = s.approve("bob", j.GetId())
	require.NoError(t, err)
	s.job(id, completed)
}

func TestAProfileThatBeginsToAskForApprovalHoldsWorkUnderWay(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.agentAnswer = func(string) (string, *typev1.Problem, bool) { return "", nil, false }
	id := s.create(wanted{id: "cert-under-way", agents: []string{"agent-1"}})
	s.job(id, awaitingCSR)
	require.True(t, eventually(t, func() bool { tasks, _ := s.counts(); return tasks == 1 }))
	s.do(func() {
		s.profiles["prof-default"].RequiresApproval = true
		for task := range s.tasks {
			s.emit("task.finished", "certificate", id, &inventoryv1.TaskFinished{TaskId: task, AgentId: "agent-1", CertificateId: id, CsrPem: "CSR"})
		}
	})
	j := s.job(id, awaitingApproval)
	s.untouched(1, 0)
	_, err := s.approve("bob", j.GetId())
	require.NoError(t, err)
	s.job(id, completed)
	s.untouched(1, 1)
}

func TestRenewingSaysWhatIsInTheWay(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	_, err := s.as("anna").RenewCertificate(t.Context(), &schedulerv1.RenewCertificateRequest{CertificateId: "cert-none"})
	require.Equal(t, "CERTIFICATE_NOT_FOUND", errs.ReasonOf(err))

	id := s.create(wanted{id: "cert-renew", agents: []string{"agent-1"}})
	s.job(id, completed)
	at := s.renewTime(id)
	_, err = s.as("anna").RenewCertificate(t.Context(), &schedulerv1.RenewCertificateRequest{CertificateId: id})
	require.Equal(t, errs.Conflict, errs.KindOf(err))
	require.Equal(t, "NOT_DUE", errs.ReasonOf(err))
	require.Equal(t, at.Format(time.RFC3339), errs.MetaOf(err)["renew_time"])

	s.do(func() { s.agentAnswer = func(string) (string, *typev1.Problem, bool) { return "", nil, false } })
	req := &schedulerv1.RenewCertificateRequest{CertificateId: id, Force: true, RequestId: "key-1"}
	r, err := s.as("anna").RenewCertificate(t.Context(), req)
	require.NoError(t, err)
	again, err := s.as("anna").RenewCertificate(t.Context(), req)
	require.NoError(t, err, "the same key answers the same")
	require.Equal(t, r.GetJob().GetId(), again.GetJob().GetId())
	_, err = s.as("bob").RenewCertificate(t.Context(), &schedulerv1.RenewCertificateRequest{CertificateId: id, Force: true})
	require.Equal(t, "JOB_OPEN", errs.ReasonOf(err))
	require.Equal(t, r.GetJob().GetId(), errs.MetaOf(err)["job_id"])
	_, err = s.as("bob").SubmitCsr(t.Context(), &schedulerv1.SubmitCsrRequest{CertificateId: id, CsrPem: "x"})
	require.Equal(t, "JOB_OPEN", errs.ReasonOf(err))

	j := s.job(id, awaitingCSR)
	require.True(t, eventually(t, func() bool { tasks, _ := s.counts(); return tasks == 2 }))
	for range 2 {
		c, err := s.as("bob").CancelJob(t.Context(), &schedulerv1.CancelJobRequest{Id: j.GetId()})
		require.NoError(t, err, "safe to repeat")
		require.Equal(t, cancelled, c.GetJob().GetStatus())
	}
	require.True(t, eventually(t, func() bool {
		n := 0
		s.do(func() { n = len(s.cancelled) })
		return n == 1
	}))
	require.True(t, eventually(t, func() bool { return len(s.actions(j.GetId())) == 2 }), "%v", s.actions(j.GetId()))
	require.Contains(t, s.actions(id), "certificate.renew.requested")
	s.do(func() {
		for _, a := range s.audit {
			if a.GetAction() == "job.cancelled" {
				require.Equal(t, "bob", a.GetActor().GetId())
				require.Equal(t, "anna", a.GetData().GetFields()["requested_by"].GetStringValue())
			}
		}
	})
	done := s.jobs(id)[1]
	_, err = s.as("bob").CancelJob(t.Context(), &schedulerv1.CancelJobRequest{Id: done.GetId()})
	require.Equal(t, "COMPLETED", errs.MetaOf(err)["state"])
	_, err = s.as("bob").RetryJob(t.Context(), &schedulerv1.RetryJobRequest{Id: done.GetId()})
	require.Equal(t, errs.Conflict, errs.KindOf(err))
	_, err = s.as("bob").GetJob(t.Context(), &schedulerv1.GetJobRequest{Id: "job-none"})
	require.Equal(t, "JOB_NOT_FOUND", errs.ReasonOf(err))
}

func TestAnExpiredCertificateCanBeRenewedByHand(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	_, err := s.policies().CreatePolicy(t.Context(), &schedulerv1.CreatePolicyRequest{Policy: &schedulerv1.Policy{Id: "pol-hand", Name: "By hand", Automatic: proto.Bool(false)}})
	require.NoError(t, err)
	id := s.create(wanted{id: "cert-old", policy: "pol-hand", agents: []string{"agent-1"}})
	s.job(id, completed)
	s.advance(91 * day)
	s.do(func() { s.certs[id].GetCertificate().Status = inventoryv1.Certificate_EXPIRED })
	s.tell("certificate.expired", id, "")
	require.True(t, eventually(t, func() bool { return s.explain(id).GetStatus() == "EXPIRED" }))
	e := s.explain(id)
	require.Nil(t, e.GetRenewTime())
	require.Equal(t, "NOT_AUTOMATIC", e.GetBlocker().GetReason())
	require.Len(t, s.jobs(id), 1)
	_, err = s.as("anna").RenewCertificate(t.Context(), &schedulerv1.RenewCertificateRequest{CertificateId: id})
	require.NoError(t, err)
	s.job(id, completed, s.nth(2))
}

func TestDeploymentJobsEndWithWhatIsServed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := s.create(wanted{id: "cert-deploy", agents: []string{"agent-1", "agent-2"}})
	s.job(id, completed)
	_, err := s.as("anna").DeployCertificate(t.Context(), &schedulerv1.DeployCertificateRequest{CertificateId: id, TargetIds: []string{"target-agent-1", "target-x"}})
	require.Equal(t, "target_ids[1]", errs.From(err).Violations()[0].Field)

	r, err := s.as("anna").DeployCertificate(t.Context(), &schedulerv1.DeployCertificateRequest{CertificateId: id})
	require.NoError(t, err)
	require.Len(t, r.GetJobs(), 2)
	again, err := s.as("bob").DeployCertificate(t.Context(), &schedulerv1.DeployCertificateRequest{CertificateId: id, TargetIds: []string{"target-agent-1"}})
	require.NoError(t, err)
	require.Equal(t, r.GetJobs()[0].GetId(), again.GetJobs()[0].GetId(), "the open job is found")
	is := func(job string, status schedulerv1.Job_Status) bool {
		return eventually(t, func() bool { return s.get(job).GetStatus() == status })
	}
	for _, j := range r.GetJobs() {
		require.True(t, is(j.GetId(), running))
		require.True(t, eventually(t, func() bool { ok := false; s.do(func() { ok = s.requests[j.GetId()] != "" }); return ok }))
	}
	s.deployed(r.GetJobs()[0].GetId(), inventoryv1.Deployment_SERVED, nil)
	require.True(t, is(r.GetJobs()[0].GetId(), completed))
	problem := func(d *inventoryv1.Deployment) {
		d.Error = &typev1.Problem{Reason: "RELOAD_FAILED", Message: "nginx"}
		d.NextAttemptTime = timestamppb.New(s.now.Add(time.Minute))
	}
	s.deployed(r.GetJobs()[1].GetId(), inventoryv1.Deployment_PENDING, problem)
	require.True(t, eventually(t, func() bool { return s.get(r.GetJobs()[1].GetId()).GetError().GetReason() == "RELOAD_FAILED" }))
	require.Equal(t, running, s.get(r.GetJobs()[1].GetId()).GetStatus(), "inventory tries again")
	s.deployed(r.GetJobs()[1].GetId(), inventoryv1.Deployment_FAILED, problem)
	require.True(t, is(r.GetJobs()[1].GetId(), failed), "inventory has given up, but for a slow retry of its own")
	require.Equal(t, "RELOAD_FAILED", s.get(r.GetJobs()[1].GetId()).GetError().GetReason())
	require.Equal(t, "DEPLOYMENT_FAILED", s.explain(id).GetBlocker().GetReason())

	s.deployed(r.GetJobs()[0].GetId(), inventoryv1.Deployment_DRIFTED, nil)
	require.True(t, eventually(t, func() bool {
		j := s.jobs(id)[0]
		return j.GetType() == schedulerv1.Job_DEPLOY && j.GetRequestedBy() == "system:drift" && j.GetTargetId() == "target-agent-1"
	}))
}

func TestPoliciesAreCreatedChangedAndDeleted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.policies()
	def, err := p.GetPolicy(t.Context(), &schedulerv1.GetPolicyRequest{Id: "pol-default"})
	require.NoError(t, err)
	require.True(t, def.GetPolicy().GetAutomatic())

	bad := func(field string, change func(*schedulerv1.Policy)) {
		in := &schedulerv1.Policy{Id: "pol-bad", Name: "Bad"}
		change(in)
		_, err := p.CreatePolicy(t.Context(), &schedulerv1.CreatePolicyRequest{Policy: in})
		require.Equal(t, errs.Invalid, errs.KindOf(err), field)
		require.Contains(t, errs.From(err).Violations()[0].Field, field)
	}
	bad("id", func(p *schedulerv1.Policy) { p.Id = "Pol_1" })
	bad("name", func(p *schedulerv1.Policy) { p.Name = " " })
	bad("renew_at_fraction", func(p *schedulerv1.Policy) { p.RenewAtFraction = proto.Float64(1) })
	bad("renew_before", func(p *schedulerv1.Policy) { p.RenewBefore = durationpb.New(time.Second) })
	bad("renew_before", func(p *schedulerv1.Policy) {
		p.RenewBefore, p.RenewAtFraction = durationpb.New(time.Hour), proto.Float64(0.5)
	})
	bad("alert_days[0]", func(p *schedulerv1.Policy) { p.AlertDays = []int32{-1} })
	bad("freeze_windows[0].end_time", func(p *schedulerv1.Policy) {
		p.FreezeWindows = []*schedulerv1.FreezeWindow{{StartTime: timestamppb.Now(), EndTime: timestamppb.New(time.Unix(0, 0))}}
	})

	in := &schedulerv1.Policy{Id: "pol-half", Name: "Half", RenewAtFraction: proto.Float64(0.5), AlertDays: []int32{7}}
	r, err := p.CreatePolicy(t.Context(), &schedulerv1.CreatePolicyRequest{Policy: in})
	require.NoError(t, err)
	require.Equal(t, int32(5), r.GetPolicy().GetMaxAttempts())
	_, err = p.CreatePolicy(t.Context(), &schedulerv1.CreatePolicyRequest{Policy: in})
	require.Equal(t, errs.AlreadyExists, errs.KindOf(err))

	id := s.create(wanted{id: "cert-policy", policy: "pol-half", agents: []string{"agent-1"}})
	s.job(id, completed)
	before := s.renewTime(id)
	u, err := p.UpdatePolicy(t.Context(), &schedulerv1.UpdatePolicyRequest{
		Policy: &schedulerv1.Policy{Id: "pol-half", RenewBefore: durationpb.New(20 * day)}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"renew_before"}}, IfRevision: 1,
	})
	require.NoError(t, err)
	require.Nil(t, u.GetPolicy().RenewAtFraction)
	require.Equal(t, "Half", u.GetPolicy().GetName())
	require.True(t, eventually(t, func() bool { return s.explain(id).GetRenewTime().AsTime().After(before.Add(20 * day)) }), "plans follow the policy")
	_, err = p.UpdatePolicy(t.Context(), &schedulerv1.UpdatePolicyRequest{Policy: &schedulerv1.Policy{Id: "pol-half", Name: "x"}, IfRevision: 1})
	require.Equal(t, errs.PreconditionFailed, errs.KindOf(err))
	_, err = p.UpdatePolicy(t.Context(), &schedulerv1.UpdatePolicyRequest{Policy: &schedulerv1.Policy{Id: "pol-half"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"nonsense"}}})
	require.Equal(t, errs.Invalid, errs.KindOf(err))

	_, err = p.DeletePolicy(t.Context(), &schedulerv1.DeletePolicyRequest{Id: "pol-half"})
	require.Equal(t, "POLICY_IN_USE", errs.ReasonOf(err))
	s.do(func() { s.references = 3 })
	_, err = p.DeletePolicy(t.Context(), &schedulerv1.DeletePolicyRequest{Id: "pol-default"})
	require.Equal(t, "POLICY_IN_USE", errs.ReasonOf(err))
	s.do(func() { s.references = 0 })
	_, err = p.DeletePolicy(t.Context(), &schedulerv1.DeletePolicyRequest{Id: "pol-default"})
	require.NoError(t, err)
	_, err = p.DeletePolicy(t.Context(), &schedulerv1.DeletePolicyRequest{Id: "pol-default"})
	require.Equal(t, errs.NotFound, errs.KindOf(err))

	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: secretbox.NewSecret(s.db.URL()), Schemas: []pg.Schema{renewalscheduler.Schema()}}))
	_, err = p.GetPolicy(t.Context(), &schedulerv1.GetPolicyRequest{Id: "pol-default"})
	require.Equal(t, errs.NotFound, errs.KindOf(err), "never made again")
}

func TestAFreezeWindowHoldsTheScheduleAndNotPeople(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	now := s.clock()
	_, err := s.policies().CreatePolicy(t.Context(), &schedulerv1.CreatePolicyRequest{Policy: &schedulerv1.Policy{Id: "pol-frozen", Name: "Frozen",
		FreezeWindows: []*schedulerv1.FreezeWindow{{StartTime: timestamppb.New(now.Add(59 * day)), EndTime: timestamppb.New(now.Add(70 * day)), Reason: "sales"}}}})
	require.NoError(t, err)
	id := s.create(wanted{id: "cert-frozen", policy: "pol-frozen", agents: []string{"agent-1"}})
	s.job(id, completed)
	at := s.renewTime(id)
	require.WithinRange(t, at, now.Add(70*day), now.Add(73*day))
	s.until(now.Add(65 * day))
	e := s.explain(id)
	require.Equal(t, "FREEZE_WINDOW", e.GetBlocker().GetReason())
	require.Equal(t, "policy pol-frozen", e.GetBlocker().GetOwner())
	require.Len(t, s.jobs(id), 1)
	_, err = s.as("anna").RenewCertificate(t.Context(), &schedulerv1.RenewCertificateRequest{CertificateId: id})
	require.NoError(t, err, "it is due, and people may")
	s.job(id, completed, s.nth(2))
}

func TestJobsAreListedByPageAndFilter(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for i := range 7 {
		id := s.create(wanted{id: fmt.Sprintf("cert-%d", i), agents: []string{fmt.Sprintf("agent-%d", i%2)}})
		s.job(id, completed)
		s.advance(time.Second)
	}
	c := s.as("reader")
	var seen []string
	token := ""
	for {
		r, err := c.ListJobs(t.Context(), &schedulerv1.ListJobsRequest{PageSize: 3, PageToken: token, IncludeTotal: true, OrderBy: "create_time"})
		require.NoError(t, err)
		require.Equal(t, int32(7), r.GetTotalSize())
		for _, j := range r.GetJobs() {
			seen = append(seen, j.GetCertificateId())
		}
		if token = r.GetNextPageToken(); token == "" {
			break
		}
	}
	require.Equal(t, []string{"cert-0", "cert-1", "cert-2", "cert-3", "cert-4", "cert-5", "cert-6"}, seen)
	r, err := c.ListJobs(t.Context(), &schedulerv1.ListJobsRequest{AgentId: "agent-1", PageSize: 2, OrderBy: "deadline_time desc"})
	require.NoError(t, err)
	require.Len(t, r.GetJobs(), 2)
	_, err = c.ListJobs(t.Context(), &schedulerv1.ListJobsRequest{AgentId: "agent-0", PageSize: 2, OrderBy: "deadline_time desc", PageToken: r.GetNextPageToken()})
	require.Equal(t, errs.Invalid, errs.KindOf(err), "a token of another list")
	for _, req := range []*schedulerv1.ListJobsRequest{{PageSize: -1}, {OrderBy: "color"}, {PageToken: "x"}, {Status: []schedulerv1.Job_Status{99}}} {
		_, err := c.ListJobs(t.Context(), req)
		require.Equal(t, errs.Invalid, errs.KindOf(err), "%v", req)
	}
	r, err = c.ListJobs(t.Context(), &schedulerv1.ListJobsRequest{Status: []schedulerv1.Job_Status{failed}})
	require.NoError(t, err)
	require.Empty(t, r.GetJobs())

	internal := schedulerv1.NewSchedulerInternalServiceClient(s.replica.server.AsPeer(t, "inventory"))
	var counts *schedulerv1.CountJobsResponse
	require.True(t, eventually(t, func() bool {
		counts, err = internal.CountJobs(t.Context(), &schedulerv1.CountJobsRequest{})
		require.NoError(t, err)
		return counts.GetJobs()["COMPLETED"] == 7
	}), "at once, unless counting took long in the beginning")
	require.Contains(t, counts.GetJobs(), "AWAITING_APPROVAL", "also a state that no job is in")
	require.NotContains(t, counts.GetJobs(), "STATUS_UNSPECIFIED")
	require.Zero(t, counts.GetStuck())
	policies, err := internal.BatchGetPolicies(t.Context(), &schedulerv1.BatchGetPoliciesRequest{Ids: []string{"pol-default", "pol-none"}})
	require.NoError(t, err)
	require.Len(t, policies.GetPolicies(), 1)
}

func TestNoQuestionCountsJobsThatAreCostlyToCount(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	counts := testpg.NewSlow("FROM jobs GROUP BY state", 500*time.Millisecond)
	r := s.startOn(s.db.OpenTraced(t, "renewalscheduler", counts))
	internal := schedulerv1.NewSchedulerInternalServiceClient(r.server.AsPeer(t, "inventory"))
	require.True(t, eventually(t, func() bool {
		return slices.ContainsFunc(r.service.Loops(), func(l tick.State) bool { return l.Name == "job count" && l.Runs > 0 })
	}), "the service counts when it starts, although nobody asks")
	before := counts.Seen()
	require.Positive(t, before)
	for range 50 {
		_, err := internal.CountJobs(t.Context(), &schedulerv1.CountJobsRequest{})
		require.NoError(t, err)
	}
	require.Equal(t, before, counts.Seen(), "no question counts")
}
