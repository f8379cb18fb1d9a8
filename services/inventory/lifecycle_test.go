package inventory_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/tick"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

func versionStored() *inventoryv1.VersionStored           { return &inventoryv1.VersionStored{} }
func taskFinished() *inventoryv1.TaskFinished             { return &inventoryv1.TaskFinished{} }
func deploymentChanged() *inventoryv1.DeploymentChanged   { return &inventoryv1.DeploymentChanged{} }
func certificateChanged() *inventoryv1.CertificateChanged { return &inventoryv1.CertificateChanged{} }

func TestACertificateGoesFromWishToServed(t *testing.T) {
	t.Parallel()
	w, r := one(t)
	h := r.enroll(t, "web-1")
	l := h.connect(t)
	r.target(t, "t-web", h.id)
	r.certificate(t, "c-web", "t-web")
	require.Equal(t, inventoryv1.Certificate_PENDING, r.get(t, "c-web").GetStatus())
	eventually(t, func() bool {
		created := told(t, w.scheduler, "certificate.created", certificateChanged)
		return len(created) == 1 && slices.Equal(created[0].GetAgentsWithoutVersion(), []string{h.id}) && created[0].GetActor().GetId() == "admin"
	}, "the scheduler hears of the certificate")

	task := csrTask(h.id, "c-web")
	for range 2 { // a repeat makes no second task
		_, err := r.internal().CreateCsrTask(t.Context(), task)
		require.NoError(t, err)
	}
	require.Equal(t, int64(1), l.hint(t))
	work := h.list(t, 0)
	require.Len(t, work, 1)
	require.Equal(t, task.GetTaskId(), work[0].GetId())
	require.Equal(t, "c-web", work[0].GetCreateCsr().GetCertificateId())
	require.Empty(t, h.list(t, work[0].GetRevision()), "what was seen is not listed again")

	result := &agentv1.ReportAssignmentRequest{AssignmentId: work[0].GetId(), LeaseId: work[0].GetLeaseId(), Report: &agentv1.ReportAssignmentRequest_Csr{
		Csr: &agentv1.CsrResult{CsrPem: "the csr", PublicKeySha256: strings.Repeat("a", 64)},
	}}
	for range 2 { // a repeated report is taken and changes nothing
		require.False(t, h.report(t, result).GetStale())
	}
	eventually(t, func() bool { return len(told(t, w.scheduler, "task.finished", taskFinished)) > 0 }, "the scheduler hears of the CSR")

	issued := newLeaf(t, "c-web", h.id, 24*time.Hour)
	for range 2 { // the same order told twice, by two events
		require.Equal(t, eventv1.EventResult_APPLIED, r.deliver(t, "certificate.issued", issued.issued))
	}
	c := r.get(t, "c-web")
	require.Equal(t, inventoryv1.Certificate_ACTIVE, c.GetStatus())
	require.Equal(t, int32(1), c.GetCurrentVersion())
	require.Equal(t, issued.serial, c.GetSerialNumber())
	require.Equal(t, issued.fingerprint, c.GetFingerprintSha256())

	l.hint(t)
	deploy := h.work(t, isDeploy)
	require.Equal(t, issued.key, deploy.GetDeploy().GetPublicKeySha256())
	require.Equal(t, issued.issued.GetCertificatePem(), deploy.GetDeploy().GetCertificatePem())
	require.JSONEq(t, `{"fullchain_path":"/etc/ssl/t-web.pem","key_path":"/etc/ssl/t-web.key"}`, deploy.GetDeploy().GetTarget().GetConfig())
	require.Equal(t, inventoryv1.Deployment_DEPLOYING, r.deployments(t, "c-web")[0].GetStatus())
	h.report(t, servedReport(deploy, issued.fingerprint))
	d := r.reaches(t, "c-web", inventoryv1.Deployment_SERVED)
	require.Equal(t, []int32{1, 1, 1}, []int32{d.GetDesiredVersion(), d.GetDeployedVersion(), d.GetServedVersion()})
	require.Equal(t, "127.0.0.1:443", d.GetVerifiedAddress())

	eventually(t, func() bool { return len(w.audit.audited(t, d.GetId())) == 1 }, "audit hears of the deployment")
	eventually(t, func() bool { return len(told(t, w.scheduler, "version.stored", versionStored)) == 1 }, "the scheduler hears of the version")
	require.Len(t, told(t, w.scheduler, "task.finished", taskFinished), 1)
	require.Empty(t, told(t, w.scheduler, "deployment.changed", deploymentChanged), "no job waits for a deployment that was not requested")
	require.Equal(t, []string{"certificate.created", "version.stored"}, w.audit.audited(t, "c-web"))
	require.Equal(t, []string{"task.created", "task.finished"}, w.audit.audited(t, task.GetTaskId()))
}

func TestAHintComesWithinMilliseconds(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := r.enroll(t, "fast")
	l := h.connect(t)
	r.certificate(t, "c-fast")
	best := time.Hour
	for range 20 {
		_, err := r.internal().CreateCsrTask(t.Context(), csrTask(h.id, "c-fast"))
		require.NoError(t, err)
		committed := time.Now()
		l.hint(t)
		best = min(best, time.Since(committed))
	}
	require.Less(t, best, 10*time.Millisecond)
}

func TestTwoAgentsHaveTwoVersionsAndEachItsOwnDeployment(t *testing.T) {
	t.Parallel()
	w, r := one(t)
	a, b := r.enroll(t, "a"), r.enroll(t, "b")
	r.target(t, "t-a", a.id)
	r.target(t, "t-b", b.id)
	r.target(t, "t-b2", b.id)
	r.certificate(t, "c-two", "t-a", "t-b")
	la := r.issue(t, "c-two", a.id)
	lb := r.issue(t, "c-two", b.id)

	require.Equal(t, la.key, a.work(t, isDeploy).GetDeploy().GetPublicKeySha256())
	require.Equal(t, lb.key, b.work(t, isDeploy).GetDeploy().GetPublicKeySha256())
	desired := map[string]int32{}
	for _, d := range r.deployments(t, "c-two") {
		desired[d.GetTargetId()] = d.GetDesiredVersion()
	}
	require.Equal(t, map[string]int32{"t-a": 1, "t-b": 2}, desired)
	require.Equal(t, int32(2), r.get(t, "c-two").GetCurrentVersion())

	records, err := r.internal().BatchGetCertificates(t.Context(), &inventoryv1.BatchGetCertificatesRequest{Ids: []string{"c-two", "unknown"}})
	require.NoError(t, err)
	require.Len(t, records.GetRecords(), 1)
	versions := map[string]int32{}
	for _, k := range records.GetRecords()[0].GetKeyHolders() {
		versions[k.GetAgentId()] = k.GetVersion()
	}
	require.Equal(t, map[string]int32{a.id: 1, b.id: 2}, versions)

	// A target more on an agent that has a key is only a deployment.
	_, err = r.certificates().UpdateCertificate(t.Context(), update("c-two", &inventoryv1.Certificate{TargetIds: []string{"t-a", "t-b", "t-b2"}}, "target_ids"))
	require.NoError(t, err)
	require.Len(t, r.deployments(t, "c-two"), 3)
	eventually(t, func() bool { return len(told(t, w.scheduler, "certificate.updated", certificateChanged)) == 1 }, "the scheduler hears of the change")
	require.Empty(t, told(t, w.scheduler, "certificate.updated", certificateChanged)[0].GetAgentsWithoutVersion())

	// A target less closes its deployment.
	_, err = r.certificates().UpdateCertificate(t.Context(), update("c-two", &inventoryv1.Certificate{TargetIds: []string{"t-a"}}, "target_ids"))
	require.NoError(t, err)
	require.Len(t, r.deployments(t, "c-two"), 1)
	require.Empty(t, b.list(t, 0), "closed deployments leave the mailbox")
	eventually(t, func() bool {
		closed := 0
		for _, e := range told(t, w.scheduler, "deployment.changed", deploymentChanged) {
			if e.GetDeployment().GetError().GetReason() == "DEPLOYMENT_CLOSED" {
				require.Nil(t, e.GetDeployment().GetNextAttemptTime(), "nobody tries again")
				closed++
			}
		}
		return closed == 2
	}, "the scheduler hears of the end")
}

func TestALeaseThatRunsOutComesBackAndItsOldReportIsStale(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := quick()
	cfg.AssignmentLease = 50 * time.Millisecond
	r := w.start(t, cfg)
	h := r.enroll(t, "slow")
	l := h.connect(t)
	r.target(t, "t-slow", h.id)
	r.certificate(t, "c-slow", "t-slow")
	issued := r.issue(t, "c-slow", h.id)
	first := h.work(t, isDeploy)
	eventually(t, func() bool { return l.hint(t) > first.GetRevision() }, "the work is hinted again")
	second := h.work(t, func(a *agentv1.Assignment) bool { return a.GetLeaseId() != first.GetLeaseId() })
	require.Equal(t, first.GetId(), second.GetId())
	require.Greater(t, second.GetAttempt(), first.GetAttempt())
	require.True(t, h.report(t, servedReport(first, issued.fingerprint)).GetStale())
	eventually(t, func() bool {
		for _, a := range h.list(t, 0) {
			return !h.report(t, servedReport(a, issued.fingerprint)).GetStale()
		}
		return false
	}, "a report under the live lease is taken")
	r.reaches(t, "c-slow", inventoryv1.Deployment_SERVED)
}

func TestProgressKeepsALease(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := r.enroll(t, "busy")
	r.certificate(t, "c-busy")
	_, err := r.internal().CreateCsrTask(t.Context(), csrTask(h.id, "c-busy"))
	require.NoError(t, err)
	a := h.list(t, 0)[0]
	progress := &agentv1.ReportAssignmentRequest{AssignmentId: a.GetId(), LeaseId: a.GetLeaseId(), Report: &agentv1.ReportAssignmentRequest_Progress{Progress: &agentv1.Progress{Step: "key"}}}
	answer := h.report(t, progress)
	require.False(t, answer.GetStale())
	require.True(t, answer.GetLeaseEndTime().AsTime().After(a.GetLeaseEndTime().AsTime()))
	require.Equal(t, a.GetLeaseId(), h.list(t, 0)[0].GetLeaseId(), "an agent that starts again finds its lease")

	other := r.enroll(t, "other")
	_, err = other.client().ReportAssignment(other.ctx(t.Context()), progress)
	requireReason(t, err, errs.NotFound, "ASSIGNMENT_NOT_FOUND")
}

func TestAFailedDeploymentIsTriedAgainAndGivenUpInTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := quick()
	cfg.DeployMaxAttempts = 3
	r := w.start(t, cfg)
	h := r.enroll(t, "broken")
	r.target(t, "t-broken", h.id)
	r.certificate(t, "c-broken", "t-broken")
	issued := r.issue(t, "c-broken", h.id)
	seen := map[string]bool{}
	for try := range 3 {
		a := h.work(t, isDeploy)
		require.False(t, seen[a.GetId()], "each try is new work")
		seen[a.GetId()] = true
		if try == 0 {
			// Done, says the agent, but what is served is something else: that is a failure.
			h.report(t, servedReport(a, strings.Repeat("0", 64)))
			continue
		}
		h.report(t, failureReport(a, &agentv1.Failure{Step: "reload", Problem: &typev1.Problem{Reason: "RELOAD_FAILED", Message: "no"}, RolledBack: true}))
	}
	d := r.reaches(t, "c-broken", inventoryv1.Deployment_FAILED)
	require.Equal(t, "RELOAD_FAILED", d.GetError().GetReason())
	require.Equal(t, "reload: no", d.GetError().GetMessage())
	require.True(t, d.GetNextAttemptTime().AsTime().After(time.Now().Add(30*time.Minute)))
	eventually(t, func() bool { return slices.Contains(w.audit.audited(t, d.GetId()), "deployment.failed") }, "the failure is in the record")

	// Somebody asks for it: it starts again.
	_, err := r.internal().RequestDeployment(t.Context(), &inventoryv1.RequestDeploymentRequest{CertificateId: "c-broken", TargetId: "t-broken", RequestKey: "job-1"})
	require.NoError(t, err)
	a := h.work(t, isDeploy)
	require.True(t, a.GetDeploy().GetForce())
	again, err := r.internal().RequestDeployment(t.Context(), &inventoryv1.RequestDeploymentRequest{CertificateId: "c-broken", TargetId: "t-broken", RequestKey: "job-1"})
	require.NoError(t, err)
	require.Equal(t, inventoryv1.Deployment_DEPLOYING, again.GetDeployment().GetStatus(), "a repeat does not start it over")
	h.report(t, servedReport(a, issued.fingerprint))
	r.reaches(t, "c-broken", inventoryv1.Deployment_SERVED)
	eventually(t, func() bool {
		changes := told(t, w.scheduler, "deployment.changed", deploymentChanged)
		if len(changes) == 0 {
			return false
		}
		last := changes[len(changes)-1]
		return last.GetRequestKey() == "job-1" && last.GetDeployment().GetStatus() == inventoryv1.Deployment_SERVED
	}, "the job's key comes back")
}

func TestAPermanentFailureIsNotTriedAgainSoon(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := r.enroll(t, "perm")
	r.target(t, "t-perm", h.id)
	r.certificate(t, "c-perm", "t-perm")
	r.issue(t, "c-perm", h.id)
	h.report(t, failureReport(h.work(t, isDeploy), &agentv1.Failure{Permanent: true, Problem: &typev1.Problem{Reason: "COMMAND_NOT_ALLOWED"}}))
	require.Equal(t, inventoryv1.Deployment_FAILED, r.deployments(t, "c-perm")[0].GetStatus())
}

func TestWhatIsServedIsVerifiedAgainAndDriftIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := quick()
	cfg.VerifyInterval = 300 * time.Millisecond
	r := w.start(t, cfg)
	h := r.enroll(t, "drift")
	r.target(t, "t-drift", h.id)
	r.certificate(t, "c-drift", "t-drift")
	issued := r.issue(t, "c-drift", h.id)
	h.report(t, servedReport(h.work(t, isDeploy), issued.fingerprint))
	// look answers verifications until one was in time: the next one replaces a verification that nobody has answered.
	look := func(answer func(*agentv1.Assignment) *agentv1.ReportAssignmentRequest) *inventoryv1.Deployment {
		eventually(t, func() bool { return !h.report(t, answer(h.work(t, isVerify))).GetStale() }, "a verification is answered in time")
		return r.deployments(t, "c-drift")[0]
	}

	d := look(func(a *agentv1.Assignment) *agentv1.ReportAssignmentRequest {
		return servedReport(a, strings.Repeat("f", 64))
	})
	require.Equal(t, inventoryv1.Deployment_DRIFTED, d.GetStatus())
	require.Equal(t, []int32{1, 1, 0}, []int32{d.GetDesiredVersion(), d.GetDeployedVersion(), d.GetServedVersion()})
	eventually(t, func() bool { return slices.Contains(w.audit.audited(t, d.GetId()), "deployment.drifted") }, "drift is in the record")

	d = look(func(a *agentv1.Assignment) *agentv1.ReportAssignmentRequest {
		require.Equal(t, issued.fingerprint, a.GetVerify().GetFingerprintSha256())
		require.NotEmpty(t, a.GetVerify().GetDnsNames(), "without a name the endpoint's default server would answer")
		return servedReport(a, issued.fingerprint)
	})
	require.Equal(t, inventoryv1.Deployment_SERVED, d.GetStatus())

	d = look(func(a *agentv1.Assignment) *agentv1.ReportAssignmentRequest {
		return failureReport(a, &agentv1.Failure{Problem: &typev1.Problem{Reason: "ENDPOINT_UNREACHABLE"}})
	})
	require.Equal(t, inventoryv1.Deployment_SERVED, d.GetStatus(), "that it could not be looked at is no drift")
	require.Equal(t, "ENDPOINT_UNREACHABLE", d.GetError().GetReason())
}

func TestACSRTaskPastItsDeadlineFails(t *testing.T) {
	t.Parallel()
	w, r := one(t)
	h := r.enroll(t, "late")
	r.certificate(t, "c-late")
	task := csrTask(h.id, "c-late")
	task.DeadlineTime.Seconds -= 7200
	_, err := r.internal().CreateCsrTask(t.Context(), task)
	require.NoError(t, err)
	eventually(t, func() bool {
		f := told(t, w.scheduler, "task.finished", taskFinished)
		return len(f) == 1 && f[0].GetProblem().GetReason() == "DEADLINE_EXCEEDED" && !f[0].GetPermanent()
	}, "the scheduler hears of it")
	require.Empty(t, h.list(t, 0))
}

func TestACancelledTaskIsNotDone(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := r.enroll(t, "cancel")
	r.certificate(t, "c-cancel")
	task := csrTask(h.id, "c-cancel")
	_, err := r.internal().CreateCsrTask(t.Context(), task)
	require.NoError(t, err)
	a := h.list(t, 0)[0]
	for range 2 {
		_, err = r.internal().CancelTask(t.Context(), &inventoryv1.CancelTaskRequest{TaskId: task.GetTaskId()})
		require.NoError(t, err)
	}
	require.Empty(t, h.list(t, 0))
	require.True(t, h.report(t, failureReport(a, &agentv1.Failure{})).GetStale())
}

func TestARevokedCertificateIsNeverActiveAgain(t *testing.T) {
	t.Parallel()
	w, r := one(t)
	h := r.enroll(t, "rev")
	r.target(t, "t-rev", h.id)
	r.certificate(t, "c-rev", "t-rev")
	issued := r.issue(t, "c-rev", h.id)
	w.issuance.revokeErr = errs.New(errs.Unavailable, "CA_AWAY", "away")

	revoke := &inventoryv1.RevokeCertificateRequest{Id: "c-rev", Reason: typev1.RevocationReason_KEY_COMPROMISE}
	answer, err := r.certificates().RevokeCertificate(t.Context(), revoke)
	require.NoError(t, err, "that the CA is away is no error")
	require.Equal(t, inventoryv1.Revocation_PENDING, answer.GetRevocation().GetState())
	require.Equal(t, issued.serial, answer.GetRevocation().GetVersions()[0].GetSerialNumber())
	first := answer.GetRevocation().GetRevocationTime().AsTime()
	require.Empty(t, r.deployments(t, "c-rev"))
	require.Empty(t, h.list(t, 0))
	for _, p := range []*peer{w.issuance, w.scheduler} {
		eventually(t, func() bool { return len(told(t, p, "certificate.revoked", certificateChanged)) == 1 }, "peers hear of it")
	}

	require.Equal(t, eventv1.EventResult_APPLIED, r.deliver(t, "revocation.done", &issuancev1.RevocationDone{CertificateId: "c-rev", SerialNumbers: []string{issued.serial}}))
	revoke.Reason = typev1.RevocationReason_SUPERSEDED
	answer, err = r.certificates().RevokeCertificate(t.Context(), revoke)
	require.NoError(t, err)
	require.Equal(t, inventoryv1.Revocation_REVOKED, answer.GetRevocation().GetState())
	require.Equal(t, "KEY_COMPROMISE", answer.GetRevocation().GetReason(), "the first reason stays")
	require.Equal(t, first, answer.GetRevocation().GetRevocationTime().AsTime(), "and so does the time, to the digit")

	// A certificate that the CA had already signed.
	r.issue(t, "c-rev", h.id)
	c := r.get(t, "c-rev")
	require.Equal(t, inventoryv1.Certificate_REVOKED, c.GetStatus())
	require.Equal(t, int32(1), c.GetCurrentVersion())
	eventually(t, func() bool { return len(told(t, w.issuance, "version.revoked", certificateChanged)) == 1 }, "the late version is revoked")
	require.Empty(t, r.deployments(t, "c-rev"))
	_, err = r.certificates().DeleteCertificate(t.Context(), &inventoryv1.DeleteCertificateRequest{Id: "c-rev"})
	require.NoError(t, err)
	r.issue(t, "c-rev", h.id)
	eventually(t, func() bool { return len(told(t, w.issuance, "version.revoked", certificateChanged)) == 2 }, "also when it was archived after that")
}

func TestARevokedCertificateCannotBeChanged(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := r.enroll(t, "rev")
	r.certificate(t, "c-rev")
	_, err := r.certificates().RevokeCertificate(t.Context(), &inventoryv1.RevokeCertificateRequest{Id: "c-rev"})
	require.NoError(t, err)
	_, err = r.certificates().UpdateCertificate(t.Context(), update("c-rev", &inventoryv1.Certificate{Owner: "x"}, "owner"))
	requireReason(t, err, errs.Conflict, "CERTIFICATE_WRONG_STATE")
	require.Equal(t, "REVOKED", errs.MetaOf(err)["state"])
	_, err = r.internal().CreateCsrTask(t.Context(), csrTask(h.id, "c-rev"))
	requireReason(t, err, errs.Conflict, "CERTIFICATE_WRONG_STATE")
}

func TestOneVersionCanBeRevoked(t *testing.T) {
	t.Parallel()
	w, r := one(t)
	r.certificate(t, "c-one")
	first := r.issue(t, "c-one", "")
	r.issue(t, "c-one", "")
	answer, err := r.certificates().RevokeCertificate(t.Context(), &inventoryv1.RevokeCertificateRequest{Id: "c-one", Version: 1})
	require.NoError(t, err)
	require.Equal(t, inventoryv1.Revocation_REVOKED, answer.GetRevocation().GetState())
	require.Equal(t, []string{first.serial}, w.issuance.revoked[0].GetSerialNumbers())
	again, err := r.certificates().RevokeCertificate(t.Context(), &inventoryv1.RevokeCertificateRequest{Id: "c-one", Version: 1})
	require.NoError(t, err)
	require.Equal(t, answer.GetRevocation().GetRevocationTime().AsTime(), again.GetRevocation().GetRevocationTime().AsTime())
	for _, p := range []*peer{w.issuance, w.scheduler} {
		eventually(t, func() bool {
			e := told(t, p, "version.revoked", certificateChanged)
			return len(e) == 1 && e[0].GetRevokedVersions()[0].GetVersion() == 1 && e[0].GetActor().GetId() == "admin"
		}, "the CA hears of it, and the scheduler, which replaces what was in use")
	}
	require.Equal(t, inventoryv1.Certificate_ACTIVE, r.get(t, "c-one").GetStatus())
	_, err = r.certificates().RevokeCertificate(t.Context(), &inventoryv1.RevokeCertificateRequest{Id: "c-one", Version: 9})
	requireReason(t, err, errs.NotFound, "VERSION_NOT_FOUND")
}

func TestArchivingEndsAllWork(t *testing.T) {
	t.Parallel()
	w, r := one(t)
	h := r.enroll(t, "arch")
	r.target(t, "t-arch", h.id)
	r.certificate(t, "c-arch", "t-arch")
	r.issue(t, "c-arch", h.id)
	_, err := r.internal().CreateCsrTask(t.Context(), csrTask(h.id, "c-arch"))
	require.NoError(t, err)
	for range 2 {
		answer, err := r.certificates().DeleteCertificate(t.Context(), &inventoryv1.DeleteCertificateRequest{Id: "c-arch"})
		require.NoError(t, err)
		require.Equal(t, inventoryv1.Certificate_ARCHIVED, answer.GetCertificate().GetStatus())
	}
	require.Empty(t, h.list(t, 0))
	require.Empty(t, r.deployments(t, "c-arch"))
	eventually(t, func() bool { return len(told(t, w.scheduler, "certificate.archived", certificateChanged)) == 1 }, "told once")
	require.Equal(t, eventv1.EventResult_APPLIED, r.deliver(t, "certificate.issued", newLeaf(t, "c-arch", h.id, time.Hour).issued))
	require.Equal(t, inventoryv1.Certificate_ARCHIVED, r.get(t, "c-arch").GetStatus())
	_, err = r.targets().DeleteTarget(t.Context(), &inventoryv1.DeleteTargetRequest{Id: "t-arch"})
	require.NoError(t, err, "an archived certificate holds no target")
}

func TestAnEventThatCannotBeAppliedIsRejected(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	r.certificate(t, "c-bad")
	bad := newLeaf(t, "c-bad", "", time.Hour)
	bad.issued.CertificatePem = "not PEM"
	require.Equal(t, eventv1.EventResult_REJECTED, r.deliver(t, "certificate.issued", bad.issued))
	require.Equal(t, eventv1.EventResult_REJECTED, r.deliver(t, "certificate.issued", newLeaf(t, "c-unknown", "", time.Hour).issued))
	require.Equal(t, eventv1.EventResult_REJECTED, r.deliver(t, "something.else", bad.issued))
	require.Equal(t, int32(0), r.get(t, "c-bad").GetCurrentVersion())
}

func TestACertificateExpiresAndCanBeRenewed(t *testing.T) {
	t.Parallel()
	w, r := one(t)
	r.certificate(t, "c-exp")
	short := newLeaf(t, "c-exp", "", 2*time.Second)
	require.Equal(t, eventv1.EventResult_APPLIED, r.deliver(t, "certificate.issued", short.issued))
	eventually(t, func() bool { return r.get(t, "c-exp").GetStatus() == inventoryv1.Certificate_EXPIRED }, "it expires")
	eventually(t, func() bool { return len(told(t, w.scheduler, "certificate.expired", certificateChanged)) == 1 }, "told once")
	r.issue(t, "c-exp", "")
	require.Equal(t, inventoryv1.Certificate_ACTIVE, r.get(t, "c-exp").GetStatus())
}

func TestAChangedTargetIsDeployedAgain(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	h := r.enroll(t, "re")
	r.target(t, "t-re", h.id)
	r.certificate(t, "c-re", "t-re")
	issued := r.issue(t, "c-re", h.id)
	h.report(t, servedReport(h.work(t, isDeploy), issued.fingerprint))
	_, err := r.targets().UpdateTarget(t.Context(), &inventoryv1.UpdateTargetRequest{
		Target: &inventoryv1.Target{Id: "t-re", Endpoint: &typev1.Endpoint{Address: "localhost:8443"}}, UpdateMask: mask("endpoint.address"),
	})
	require.NoError(t, err)
	a := h.work(t, isDeploy)
	require.True(t, a.GetDeploy().GetForce())
	require.Equal(t, "localhost:8443", a.GetDeploy().GetTarget().GetEndpoint().GetAddress())
	_, err = r.targets().DeleteTarget(t.Context(), &inventoryv1.DeleteTargetRequest{Id: "t-re"})
	requireReason(t, err, errs.Conflict, "TARGET_IN_USE")
}

func TestEveryLoopRunsOnceAtBoot(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	for _, want := range []string{"agent health", "short-lived expiry", "network scan", "endpoint health", "cloud discovery", "credential expiry", "summary"} {
		eventually(t, func() bool { return r.ran(want) }, want)
	}
}

// ran tells whether a loop has run, without errors.
func (r *replica) ran(loop string) bool {
	return slices.ContainsFunc(r.service.Loops(), func(s tick.State) bool { return s.Name == loop && s.Runs > 0 && s.Errors == 0 })
}

func TestTheSummaryCountsBySQL(t *testing.T) {
	t.Parallel()
	_, r := one(t)
	r.enroll(t, "sum")
	r.certificate(t, "c-sum-1")
	r.certificate(t, "c-sum-2")
	r.issue(t, "c-sum-2", "")
	var s *inventoryv1.GetSummaryResponse
	eventually(t, func() bool {
		var err error
		s, err = inventoryv1.NewStatsServiceClient(r.admin).GetSummary(context.WithoutCancel(t.Context()), &inventoryv1.GetSummaryRequest{})
		require.NoError(t, err)
		return s.GetCertificates()["ACTIVE"] == 1
	}, "at once, unless counting took long in the beginning")
	require.Equal(t, map[string]int32{"PENDING": 1, "ACTIVE": 1, "EXPIRED": 0, "REVOKED": 0, "ARCHIVED": 0}, s.GetCertificates())
	require.Equal(t, map[string]int32{"ONLINE": 0, "OFFLINE": 1, "RETIRED": 0}, s.GetAgents())
	require.Equal(t, int32(1), s.GetCertificatesExpiring_7D())
	require.Equal(t, map[string]int32{"COMPLETED": 7}, s.GetJobs())
	require.Equal(t, int32(2), s.GetStuck(), "those of the scheduler count too")
}

func TestASummaryWithoutTheSchedulerSaysWhoIsAway(t *testing.T) {
	t.Parallel()
	w, r := one(t)
	w.scheduler.mu.Lock()
	w.scheduler.countErr = errs.New(errs.Unavailable, "AWAY", "away")
	w.scheduler.mu.Unlock()
	_, err := inventoryv1.NewStatsServiceClient(r.admin).GetSummary(t.Context(), &inventoryv1.GetSummaryRequest{})
	requireReason(t, err, errs.Unavailable, "SERVICE_UNAVAILABLE")
	require.Equal(t, "renewalscheduler", errs.MetaOf(err)["service"])
}
