package renewalscheduler_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpcctx"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/renewalscheduler"
)

const (
	awaitingApproval = schedulerv1.Job_AWAITING_APPROVAL
	awaitingCSR      = schedulerv1.Job_AWAITING_CSR
	awaitingCA       = schedulerv1.Job_AWAITING_CA
	pending          = schedulerv1.Job_PENDING
	running          = schedulerv1.Job_RUNNING
	completed        = schedulerv1.Job_COMPLETED
	failed           = schedulerv1.Job_FAILED
	cancelled        = schedulerv1.Job_CANCELLED
	expired          = schedulerv1.Job_EXPIRED
)

func TestACertificateIsIssuedAndRenewsByItself(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := s.create(wanted{id: "cert-a", agents: []string{"agent-1"}})

	issue := s.job(id, completed)

	require.Equal(t, schedulerv1.Job_ISSUE, issue.GetType())
	require.Equal(t, "anna", issue.GetRequestedBy())
	require.Equal(t, "agent-1", issue.GetAgentId())
	require.Equal(t, int32(1), issue.GetAttempt())
	require.Equal(t, int32(1), issue.GetKeys()[0].GetVersion())
	require.NotEmpty(t, issue.GetOrderId())
	require.NotNil(t, issue.GetStartTime())
	require.NotNil(t, issue.GetEndTime())

	start := s.clock()
	at := s.renewTime(id)
	require.WithinRange(t, at, start.Add(60*day-time.Minute), start.Add(63*day))
	s.until(at.Add(-time.Minute))
	require.Len(t, s.jobs(id), 1)
	s.until(at)
	renew := s.job(id, completed, s.nth(2))

	require.Equal(t, schedulerv1.Job_RENEW, renew.GetType())
	require.Equal(t, "system:renewal-check", renew.GetRequestedBy())
	tasks, orders := s.counts()
	require.Equal(t, 2, tasks, "each time a new key")
	require.Equal(t, 2, orders)
	require.True(t, eventually(t, func() bool { return slices.Equal(s.actions(renew.GetId()), []string{"job.created", "job.completed"}) }))
	require.True(t, s.renewTime(id).After(at.Add(59*day)))
}

func TestACertificateOfTenMinutesRenewsInTime(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.lifetime = 10 * time.Minute
	id := s.create(wanted{id: "cert-short", agents: []string{"agent-1"}})
	s.job(id, completed)
	for n := 2; n < 5; n++ {
		before := s.clock()
		at := s.renewTime(id)
		require.WithinRange(t, at, before.Add(400*time.Second-time.Second), before.Add(421*time.Second))
		s.until(at)
		s.job(id, completed, s.nth(n))
	}
}

func TestEachAgentMakesAKeyOfItsOwn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := s.create(wanted{id: "cert-two", agents: []string{"agent-1", "agent-2"}})
	j := s.job(id, completed)
	require.Len(t, j.GetKeys(), 2)
	require.NotEqual(t, j.GetKeys()[0].GetOrderId(), j.GetKeys()[1].GetOrderId())
	require.NotEqual(t, j.GetKeys()[0].GetVersion(), j.GetKeys()[1].GetVersion())
	tasks, orders := s.counts()
	require.Equal(t, []int{2, 2}, []int{tasks, orders})
	s.do(func() {
		for _, o := range s.orders {
			require.Equal(t, "CSR of "+o.GetAgentId(), o.GetCsrPem())
		}
	})
}

func TestAnAgentThatComesLaterGetsAJobForItsKeyOnly(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := s.create(wanted{id: "cert-later", agents: []string{"agent-1"}})
	s.job(id, completed)
	s.do(func() {
		s.agents["agent-2"] = "ONLINE"
		s.certs[id].KeyHolders = append(s.certs[id].KeyHolders, &inventoryv1.KeyHolder{AgentId: "agent-2"})
		s.emit("certificate.updated", "certificate", id, &inventoryv1.CertificateChanged{
			Certificate: s.certs[id].GetCertificate(), AgentsWithoutVersion: []string{"agent-2"}, Actor: &typev1.Actor{Type: typev1.Actor_USER, Id: "bob"},
		})
	})
	j := s.job(id, completed, s.nth(2))
	require.Len(t, j.GetKeys(), 1)
	require.Equal(t, "agent-2", j.GetAgentId())
	require.Equal(t, "bob", j.GetRequestedBy())
}

func TestACallerWhoKeepsTheKeyPostsACSR(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := s.create(wanted{id: "cert-own"})
	waiting := s.job(id, awaitingCSR)
	require.Equal(t, "CSR_REQUIRED", s.explain(id).GetBlocker().GetReason())

	s.do(func() {
		s.csrProblems = []*issuancev1.FieldViolation{{Field: "dns_names", Description: "has other names"}}
	})
	_, err := s.as("anna").SubmitCsr(t.Context(), &schedulerv1.SubmitCsrRequest{CertificateId: id, CsrPem: "bad"})
	require.Equal(t, errs.Invalid, errs.KindOf(err))
	require.Equal(t, "csr_pem", errs.From(err).Violations()[0].Field)
	require.Contains(t, errs.From(err).Violations()[0].Description, "has other names")
	s.do(func() { s.csrProblems = nil })

	r, err := s.as("anna").SubmitCsr(t.Context(), &schedulerv1.SubmitCsrRequest{CertificateId: id, CsrPem: "good"})
	require.NoError(t, err)
	require.Equal(t, waiting.GetId(), r.GetJob().GetId(), "attached to the job that waits")
	s.job(id, completed)

	r, err = s.as("anna").SubmitCsr(t.Context(), &schedulerv1.SubmitCsrRequest{CertificateId: id, CsrPem: "next"})
	require.NoError(t, err)
	require.Equal(t, schedulerv1.Job_RENEW, r.GetJob().GetType(), "opens a job when none waits")
	s.job(id, completed, s.nth(2))
	tasks, orders := s.counts()
	require.Equal(t, []int{0, 2}, []int{tasks, orders})
}

func TestAnAgentThatStaysAwayExpiresTheJobAndIsNamed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.agentAnswer = func(string) (string, *typev1.Problem, bool) { return "", nil, false }
	id := s.create(wanted{id: "cert-away", agents: []string{"agent-1"}})
	j := s.job(id, awaitingCSR)
	require.True(t, eventually(t, func() bool { tasks, _ := s.counts(); return tasks == 1 }))
	s.do(func() { s.agents["agent-1"] = "OFFLINE" })
	e := s.explain(id)
	require.Equal(t, "AGENT_OFFLINE", e.GetBlocker().GetReason())
	require.Equal(t, "agent agent-1", e.GetBlocker().GetOwner())

	s.until(j.GetDeadlineTime().AsTime())
	require.True(t, eventually(t, func() bool { return s.get(j.GetId()).GetStatus() == expired }))
	j = s.get(j.GetId())
	require.Equal(t, "CSR_TIMEOUT", j.GetError().GetReason())
	require.Contains(t, j.GetError().GetMessage(), "agent agent-1")
	require.True(t, eventually(t, func() bool {
		all := false
		s.do(func() { all = len(s.cancelled) == 1 })
		return all
	}), "the open task was taken back")

	s.do(func() {
		s.agents["agent-1"] = "ONLINE"
		s.agentAnswer = func(a string) (string, *typev1.Problem, bool) { return "CSR of " + a, nil, false }
	})
	s.until(s.renewTime(id))
	s.job(id, completed, s.nth(2))
}

func TestFailuresAreTriedAgainWithPausesAndEndInAJobThatSaysWhy(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := s.create(wanted{id: "cert-fail", agents: []string{"agent-1"}})
	s.job(id, completed)
	end := s.clock().Add(s.lifetime)
	s.do(func() {
		s.orderAnswer = func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_FAILED }
	})
	s.until(s.renewTime(id))
	for attempt := int32(1); attempt < 5; attempt++ {
		j := s.job(id, pending, s.nth(2), func(j *schedulerv1.Job) bool { return j.GetAttempt() == attempt })
		require.Equal(t, "ORDER_FAILED", j.GetError().GetReason())
		require.WithinRange(t, j.GetNextAttemptTime().AsTime(), s.clock().Add(7*time.Second), s.clock().Add(15*time.Second<<(attempt-1)))
		require.Equal(t, "ORDER_FAILED", s.explain(id).GetBlocker().GetReason())
		s.until(j.GetNextAttemptTime().AsTime())
	}
	j := s.job(id, failed, s.nth(2))
	require.Equal(t, int32(5), j.GetAttempt())
	require.Equal(t, "ORDER_FAILED", j.GetError().GetReason())
	_, orders := s.counts()
	require.Equal(t, 6, orders)

	again := s.renewTime(id)
	require.True(t, again.After(s.clock()) && again.Before(end), "a fresh job before the end")
	s.until(again)
	s.do(func() {
		s.orderAnswer = func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_REJECTED }
	})
	require.True(t, eventually(t, func() bool { // while the old answer still counts the job waits for its next try
		if j := s.jobs(id)[0]; j.GetStatus() == pending {
			s.until(j.GetNextAttemptTime().AsTime())
		}
		return len(s.jobs(id)) >= 3 && s.jobs(id)[0].GetStatus() == failed
	}))
	require.Equal(t, "ORDER_REJECTED", s.jobs(id)[0].GetError().GetReason())

	s.do(func() {
		s.now = end.Add(time.Hour)
		s.certs[id].GetCertificate().Status = inventoryv1.Certificate_EXPIRED
		s.orderAnswer = func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_ISSUED }
	})
	s.tell("certificate.expired", id, "")
	s.job(id, completed, func(j *schedulerv1.Job) bool { return j.GetType() == schedulerv1.Job_RENEW })
}

func TestAnAgentsErrorIsPermanentOrNot(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.agentAnswer = func(a string) (string, *typev1.Problem, bool) {
		return "", &typev1.Problem{Reason: "DISK_FULL", Message: "no space"}, a == "agent-dead"
	}
	id := s.create(wanted{id: "cert-dead", agents: []string{"agent-dead"}})
	j := s.job(id, failed)
	require.Equal(t, "DISK_FULL", j.GetError().GetReason())
	require.Contains(t, j.GetError().GetMessage(), "agent-dead")

	other := s.create(wanted{id: "cert-sick", agents: []string{"agent-sick"}})
	waiting := s.job(other, pending, func(j *schedulerv1.Job) bool { return j.GetAttempt() == 1 })
	s.do(func() {
		s.agentAnswer = func(a string) (string, *typev1.Problem, bool) { return "CSR of " + a, nil, false }
	})
	s.until(waiting.GetNextAttemptTime().AsTime())
	require.Equal(t, int32(2), s.job(other, completed).GetAttempt())
}

func TestAPendingOrderIsWaitedForAndNeverBoughtTwice(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.orderAnswer = func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_PENDING }
	id := s.create(wanted{id: "cert-slow", agents: []string{"agent-1"}})
	j := s.job(id, awaitingCA)
	s.until(j.GetDeadlineTime().AsTime())
	late := s.job(id, awaitingCA, func(j *schedulerv1.Job) bool { return j.GetError().GetReason() == "CA_STILL_PENDING" })
	require.Equal(t, "CA_STILL_PENDING", s.explain(id).GetBlocker().GetReason())
	require.Equal(t, "CA iss-local", s.explain(id).GetBlocker().GetOwner())
	s.do(func() { s.decideOrder(late.GetOrderId(), issuancev1.Order_ISSUED) })
	require.Equal(t, j.GetOrderId(), s.job(id, completed).GetOrderId())
	_, orders := s.counts()
	require.Equal(t, 1, orders)
}

func TestAJobShowsWhatItsOrderWaitsForAndUntilWhenItDoes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.orderAnswer = func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_PENDING }
	s.orderTrouble = &typev1.Problem{Reason: "CA_STILL_PENDING", Message: "still pending at the CA: waiting for approval"}
	id := s.create(wanted{id: "cert-pending", agents: []string{"agent-1"}})
	shown := func(j *schedulerv1.Job) bool {
		return j.GetError().GetMessage() == "still pending at the CA: waiting for approval"
	}
	j := s.job(id, awaitingCA, shown)
	s.until(j.GetDeadlineTime().AsTime().Add(-time.Hour)) // many looks later
	s.job(id, awaitingCA, shown)
	s.do(func() {
		s.orderTrouble = nil
		s.decideOrder(j.GetOrderId(), issuancev1.Order_ISSUED)
	})
	require.Nil(t, s.job(id, completed).GetError())
}

func TestWhatTheCATookIsNotBoughtAgainWithoutAHuman(t *testing.T) {
	t.Parallel()
	for _, reason := range []string{"CERTIFICATE_MISMATCH", "ORDER_DEADLINE", "ORDER_NOT_FOUND"} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.orderAnswer = func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_FAILED }
			s.orderTrouble = &typev1.Problem{Reason: reason, Message: "names: other.example.com was not asked for"}
			id := s.create(wanted{id: "cert-wrong", agents: []string{"agent-1"}})
			j := s.job(id, failed)
			require.Equal(t, reason, j.GetError().GetReason())
			require.Equal(t, int32(1), j.GetAttempt())
			for range 10 {
				s.advance(6 * time.Hour)
			}
			_, orders := s.counts()
			require.Equal(t, 1, orders, "also after days")
		})
	}
}

func TestALostReplyToAnOrderMakesNoSecondOrder(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.loseReplies = 3
	s.orderAnswer = func(*issuancev1.SubmitOrderRequest) issuancev1.Order_Status { return issuancev1.Order_PENDING }
	id := s.create(wanted{id: "cert-lost", agents: []string{"agent-1"}})
	require.True(t, eventually(t, func() bool {
		lost := 0
		s.do(func() { lost, s.now = s.loseReplies, s.now.Add(time.Second) })
		return lost == 0
	}))
	j := s.job(id, awaitingCA)
	s.do(func() { s.decideOrder(j.GetOrderId(), issuancev1.Order_ISSUED) })
	s.job(id, completed)
	_, orders := s.counts()
	require.Equal(t, 1, orders)
}

func TestAPeerThatIsAwayDelaysWorkAndCostsNoAttempt(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.down["CreateCsrTask"] = errs.New(errs.Unavailable, "AWAY", "inventory is away")
	id := s.create(wanted{id: "cert-outage", agents: []string{"agent-1"}})
	s.job(id, awaitingCSR, func(j *schedulerv1.Job) bool { return j.GetError().GetReason() == "AWAY" })
	s.do(func() { delete(s.down, "CreateCsrTask") })
	require.True(t, eventually(t, func() bool {
		s.advance(time.Second)
		return s.jobs(id)[0].GetStatus() == completed
	}))
	require.Equal(t, int32(1), s.jobs(id)[0].GetAttempt())
}

func TestTwoReplicasMakeNothingTwice(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start()
	s.loseReplies = 5
	const certificates = 40
	for i := range certificates {
		s.create(wanted{id: fmt.Sprintf("cert-%02d", i), agents: []string{"agent-1"}})
	}
	done := func(n int) func() bool {
		return func() bool {
			s.advance(time.Second)
			r, err := s.as("reader").ListJobs(t.Context(), &schedulerv1.ListJobsRequest{PageSize: 1000, Status: []schedulerv1.Job_Status{completed}})
			require.NoError(t, err)
			return len(r.GetJobs()) == n
		}
	}
	require.True(t, eventually(t, done(certificates)))
	s.advance(64 * day)
	require.True(t, eventually(t, done(2*certificates)))
	tasks, orders := s.counts()
	require.Equal(t, 2*certificates, tasks)
	require.Equal(t, 2*certificates, orders)
}

func TestAKilledProcessLosesNothingAndBuysNothingTwice(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"BatchGetCertificates", "BatchGetProfiles", "CreateCsrTask", "SubmitOrder"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			gate := make(chan struct{})
			s.hold[method] = gate
			id := s.create(wanted{id: "cert-kill", agents: []string{"agent-1"}})
			require.True(t, eventually(t, func() bool { return len(s.jobs(id)) == 1 }))
			s.replica.stop()
			// A kill -9 would have left the lease behind too.
			_, err := s.db.Admin(t).Exec(t.Context(), `UPDATE renewalscheduler.jobs SET lease_id = gen_random_uuid(), lease_until = $1 WHERE end_time IS NULL`,
				s.clock().Add(90*time.Second))
			require.NoError(t, err)
			s.do(func() { delete(s.hold, method) })
			close(gate)
			s.start()
			require.True(t, eventually(t, func() bool {
				s.advance(2 * time.Second) // past a lease that was left behind
				return s.jobs(id)[0].GetStatus() == completed
			}), "%v", s.jobs(id))
			tasks, orders := s.counts()
			require.Equal(t, []int{1, 1}, []int{tasks, orders})
		})
	}
}

func TestARevokedOrArchivedCertificateEndsItsJobs(t *testing.T) {
	t.Parallel()
	for kind, status := range map[string]inventoryv1.Certificate_Status{
		"certificate.revoked": inventoryv1.Certificate_REVOKED, "certificate.archived": inventoryv1.Certificate_ARCHIVED,
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.agentAnswer = func(string) (string, *typev1.Problem, bool) { return "", nil, false }
			id := s.create(wanted{id: "cert-over", agents: []string{"agent-1"}})
			s.job(id, awaitingCSR)
			s.close(id, status, kind)
			j := s.job(id, cancelled)
			require.Equal(t, "CERTIFICATE_"+status.String(), j.GetError().GetReason())
			require.Contains(t, s.explain(id).GetSummary(), map[bool]string{true: "revoked", false: "archived"}[kind == "certificate.revoked"])

			_, err := s.as("anna").RenewCertificate(t.Context(), &schedulerv1.RenewCertificateRequest{CertificateId: id, Force: true})
			require.Equal(t, errs.Conflict, errs.KindOf(err))
			require.Equal(t, status.String(), errs.MetaOf(err)["state"])
			_, err = s.as("anna").RetryJob(t.Context(), &schedulerv1.RetryJobRequest{Id: j.GetId()})
			require.Equal(t, errs.Conflict, errs.KindOf(err))
			_, err = s.as("anna").SubmitCsr(t.Context(), &schedulerv1.SubmitCsrRequest{CertificateId: id, CsrPem: "x"})
			require.Equal(t, errs.Conflict, errs.KindOf(err))
			s.advance(400 * day)
			require.True(t, eventually(t, func() bool { return s.replica.service.Loops()[1].Runs > 20 }))
			require.Len(t, s.jobs(id), 1)
		})
	}
}

func TestEveryLoopRunsAndIdleOnesSaySo(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *renewalscheduler.Config) { c.JobProcessorInterval = time.Second })
	names := map[string]bool{}
	require.True(t, eventually(t, func() bool {
		ran := true
		for _, l := range s.replica.service.Loops() {
			names[l.Name] = true
			ran = ran && l.Runs > 0
		}
		return ran
	}))
	for _, name := range []string{"renewal check", "job processor", "job retry", "job timeout reaper", "notification process", "notification retry", "digest"} {
		require.True(t, names[name], name)
	}
	for _, l := range s.replica.service.Loops() {
		require.Empty(t, l.LastError, l.Name)
		if l.Name == "digest" || l.Name == "notification retry" || l.Name == "notification process" {
			require.Contains(t, l.Note, "nothing to do")
		}
	}
}

func TestEveryMethodHasARule(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	server := grpc.NewServer()
	s.replica.service.Register(server)
	require.NoError(t, s.replica.service.AuthzTable().CheckComplete(server))

	viewer := schedulerv1.NewJobServiceClient(s.replica.server.AsRole(t, rpcctx.RoleViewer))
	_, err := viewer.RenewCertificate(t.Context(), &schedulerv1.RenewCertificateRequest{CertificateId: "cert-x"})
	require.Equal(t, errs.PermissionDenied, errs.KindOf(err))
	_, err = viewer.ListJobs(t.Context(), &schedulerv1.ListJobsRequest{})
	require.NoError(t, err)
	_, err = schedulerv1.NewPolicyServiceClient(s.replica.server.AsRole(t, rpcctx.RoleOperator)).DeletePolicy(t.Context(), &schedulerv1.DeletePolicyRequest{Id: "pol-default"})
	require.Equal(t, errs.PermissionDenied, errs.KindOf(err))
	_, err = schedulerv1.NewSchedulerInternalServiceClient(s.replica.server.AsRole(t, rpcctx.RoleAdmin)).CountJobs(t.Context(), &schedulerv1.CountJobsRequest{})
	require.Equal(t, errs.PermissionDenied, errs.KindOf(err))
}

func TestConcurrencyBoundsTheCallsInFlight(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *renewalscheduler.Config) { c.RenewalConcurrency = 3 })
	gate := make(chan struct{})
	s.hold["CreateCsrTask"] = gate
	for i := range 12 {
		s.create(wanted{id: fmt.Sprintf("cert-%02d", i), agents: []string{"agent-1"}})
	}
	waiting := func() int {
		r, err := s.as("reader").ListJobs(t.Context(), &schedulerv1.ListJobsRequest{PageSize: 1000, Status: []schedulerv1.Job_Status{awaitingCSR}})
		require.NoError(t, err)
		return len(r.GetJobs())
	}
	require.True(t, eventually(t, func() bool { return waiting() == 3 }))
	require.True(t, eventually(t, func() bool { return len(s.jobsOf(t.Context())) == 12 }))
	require.Equal(t, 3, waiting(), "the fourth waits for a slot")
	s.do(func() { delete(s.hold, "CreateCsrTask") })
	close(gate)
	require.True(t, eventually(t, func() bool {
		n := 0
		for _, j := range s.jobsOf(t.Context()) {
			if j.GetStatus() == completed {
				n++
			}
		}
		return n == 12
	}))
}

func (s *site) jobsOf(ctx context.Context) []*schedulerv1.Job {
	r, err := s.as("reader").ListJobs(ctx, &schedulerv1.ListJobsRequest{PageSize: 1000})
	require.NoError(s.t, err)
	return r.GetJobs()
}
