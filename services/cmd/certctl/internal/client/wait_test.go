package client_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/errs"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

// steps answers one after the other, and the last for ever.
func steps[T any](all ...T) func() T {
	i := -1
	return func() T {
		i = min(i+1, len(all)-1)
		return all[i]
	}
}

func job(status schedulerv1.Job_Status, keys ...*schedulerv1.JobKey) *schedulerv1.Job {
	return &schedulerv1.Job{Id: "job-1", Type: schedulerv1.Job_ISSUE, Status: status, CertificateId: "cert-a", Keys: keys, RequestedBy: "ci", MaxAttempts: 5}
}

func key(agent string, status schedulerv1.JobKey_Status, version int32) *schedulerv1.JobKey {
	return &schedulerv1.JobKey{AgentId: agent, Status: status, Version: version}
}

func deployment(status inventoryv1.Deployment_Status, version int32) *inventoryv1.Deployment {
	return &inventoryv1.Deployment{Id: "dep-1", CertificateId: "cert-a", TargetId: "target-web", AgentId: "agent-1", Status: status, DesiredVersion: version}
}

// lifecycle is a gateway on which a certificate is created and goes through jobs and deployments.
func lifecycle(t *testing.T, jobs []*schedulerv1.Job, deployments []*inventoryv1.Deployment) *gateway {
	t.Helper()
	g := newGateway(t)
	cert := &inventoryv1.Certificate{Id: "cert-a", Name: "web", TargetIds: []string{"target-web"}}
	answer(g, inventoryv1.CertificateService_CreateCertificate_FullMethodName, &inventoryv1.CreateCertificateRequest{}, &inventoryv1.CreateCertificateResponse{Certificate: cert})
	answer(g, inventoryv1.CertificateService_GetCertificate_FullMethodName, &inventoryv1.GetCertificateRequest{}, &inventoryv1.GetCertificateResponse{Certificate: certificate("cert-a")})
	answer(g, schedulerv1.JobService_RenewCertificate_FullMethodName, &schedulerv1.RenewCertificateRequest{}, &schedulerv1.RenewCertificateResponse{Job: jobs[0]})
	lists := steps(nil, jobs[:1])
	on(g, schedulerv1.JobService_ListJobs_FullMethodName, func(*schedulerv1.ListJobsRequest) (*schedulerv1.ListJobsResponse, error) {
		return &schedulerv1.ListJobsResponse{Jobs: lists()}, nil
	})
	nextJob := steps(jobs...)
	on(g, schedulerv1.JobService_GetJob_FullMethodName, func(*schedulerv1.GetJobRequest) (*schedulerv1.GetJobResponse, error) {
		return &schedulerv1.GetJobResponse{Job: nextJob()}, nil
	})
	if len(deployments) > 0 {
		next := steps(deployments...)
		on(g, inventoryv1.DeploymentService_ListDeployments_FullMethodName, func(*inventoryv1.ListDeploymentsRequest) (*inventoryv1.ListDeploymentsResponse, error) {
			return &inventoryv1.ListDeploymentsResponse{Deployments: []*inventoryv1.Deployment{next()}}, nil
		})
	}
	return g
}

func TestCreateWaitsUntilTheCertificateIsServed(t *testing.T) {
	t.Parallel()
	retried := deployment(inventoryv1.Deployment_PENDING, 3)
	retried.Attempt, retried.Error = 1, &typev1.Problem{Reason: "RELOAD_FAILED", Message: "nginx did not reload"}
	g := lifecycle(t,
		[]*schedulerv1.Job{
			job(schedulerv1.Job_PENDING),
			job(schedulerv1.Job_AWAITING_CSR, key("agent-1", schedulerv1.JobKey_AWAITING_CSR, 0)),
			job(schedulerv1.Job_COMPLETED, key("agent-1", schedulerv1.JobKey_DONE, 3)),
		},
		[]*inventoryv1.Deployment{
			deployment(inventoryv1.Deployment_SERVED, 2), retried, deployment(inventoryv1.Deployment_DEPLOYING, 3), deployment(inventoryv1.Deployment_SERVED, 3),
		})

	r := g.ok(t, "certificates", "create", "--name", "web", "--dns", "www.example.com", "--issuer", "iss-local", "--target", "target-web", "--wait", "-o", "name")

	require.Equal(t, "cert-a\n", r.out)
	golden(t, `
	certificate cert-a is created
	the job is being opened
	job job-1 (ISSUE) is PENDING
	job job-1 (ISSUE) is AWAITING_CSR: a key is made by agent-1
	job job-1 (ISSUE) is COMPLETED
	target target-web is SERVED
	target target-web is PENDING (attempt 1: nginx did not reload (RELOAD_FAILED))
	target target-web is DEPLOYING
	target target-web serves version 3
	`, r.err)
}

func TestAnOrderThatIsPendingForLongIsToldAndNoAttempt(t *testing.T) {
	t.Parallel()
	waits := job(schedulerv1.Job_AWAITING_CA)
	waits.OrderId, waits.Error = "ord-1", &typev1.Problem{Reason: "CA_STILL_PENDING", Message: "still pending at the CA"}
	g := lifecycle(t, []*schedulerv1.Job{waits, job(schedulerv1.Job_COMPLETED)}, nil)

	require.Equal(t, "job job-1 (ISSUE) is AWAITING_CA: the CA has ord-1; still pending at the CA (CA_STILL_PENDING)\njob job-1 (ISSUE) is COMPLETED\n",
		g.ok(t, "jobs", "watch", "job-1").err)
}

func TestAJobThatFailsEndsTheWaitWithItsError(t *testing.T) {
	t.Parallel()
	failed := job(schedulerv1.Job_FAILED)
	failed.Error = &typev1.Problem{Reason: "CA_REJECTED", Message: "the CA said no"}
	g := lifecycle(t, []*schedulerv1.Job{job(schedulerv1.Job_RUNNING), failed}, nil)

	r := g.run(t, "certificates", "renew", "cert-a", "--wait")

	require.Equal(t, 1, r.code)
	require.Empty(t, r.out)
	require.EqualError(t, r.failure, "job job-1 (ISSUE) is FAILED: the CA said no (CA_REJECTED)\n"+
		"see what is in the way: certctl certificates explain cert-a\nthen start it again: certctl jobs retry job-1")
}

func TestADeploymentThatFailsEndsTheWaitWithItsError(t *testing.T) {
	t.Parallel()
	failed := deployment(inventoryv1.Deployment_FAILED, 3)
	failed.Error = &typev1.Problem{Reason: "NOT_SERVED", Message: "the endpoint serves another certificate"}
	g := lifecycle(t, []*schedulerv1.Job{job(schedulerv1.Job_COMPLETED, key("agent-1", schedulerv1.JobKey_DONE, 3))},
		[]*inventoryv1.Deployment{deployment(inventoryv1.Deployment_FAILED, 2), failed})

	r := g.run(t, "certificates", "renew", "cert-a", "--wait")

	require.Equal(t, 1, r.code)
	require.EqualError(t, r.failure, "version 3 was issued and is not served by target target-web: the endpoint serves another certificate (NOT_SERVED)\n"+
		"see: certctl deployments get dep-1\nthen try again: certctl certificates deploy cert-a --target target-web --wait")
}

func TestAWaitThatTakesTooLongSaysHowToGoOn(t *testing.T) {
	t.Parallel()
	g := lifecycle(t, []*schedulerv1.Job{job(schedulerv1.Job_AWAITING_APPROVAL)}, nil)

	for _, args := range [][]string{{"certificates", "renew", "cert-a", "--wait"}, {"jobs", "watch", "job-1"}} {
		r := g.run(t, append(args, "--timeout", "1s")...)
		require.Equal(t, 4, r.code)
		require.EqualError(t, r.failure, "not finished after 1s; job job-1 (ISSUE) is AWAITING_APPROVAL: somebody other than ci approves it with: certctl jobs approve job-1\n"+
			"go on waiting with: certctl jobs watch job-1")
	}
}

func TestACertificateWithoutAnAgentDoesNotWaitForever(t *testing.T) {
	t.Parallel()
	g := lifecycle(t, []*schedulerv1.Job{job(schedulerv1.Job_AWAITING_CSR, key("", schedulerv1.JobKey_AWAITING_CSR, 0))}, nil)

	r := g.run(t, "certificates", "create", "--name", "web", "--wait", "--timeout", "1m")

	require.Equal(t, 1, r.code)
	require.ErrorContains(t, r.failure, "the job waits for a CSR")
	require.ErrorContains(t, r.failure, "certctl certificates csr cert-a -f request.pem --wait")
}

func TestAWaitOutlastsARestartOfTheServer(t *testing.T) {
	t.Parallel()
	g := lifecycle(t, []*schedulerv1.Job{job(schedulerv1.Job_RUNNING)}, nil)
	asked := 0
	on(g, schedulerv1.JobService_GetJob_FullMethodName, func(*schedulerv1.GetJobRequest) (*schedulerv1.GetJobResponse, error) {
		asked++
		switch {
		case asked == 1:
			return &schedulerv1.GetJobResponse{Job: job(schedulerv1.Job_RUNNING)}, nil
		case asked < 5:
			return nil, errs.New(errs.Unavailable, "AWAY", "renewalscheduler does not answer")
		default:
			return &schedulerv1.GetJobResponse{Job: job(schedulerv1.Job_COMPLETED)}, nil
		}
	})

	r := g.ok(t, "jobs", "watch", "job-1")

	golden(t, `
	job job-1 (ISSUE) is RUNNING
	the server does not answer; trying again
	job job-1 (ISSUE) is COMPLETED
	`, r.err)
	golden(t, `
	ID     TYPE   STATUS     CERTIFICATE  ATTEMPT  BY  CREATED  ERROR
	job-1  ISSUE  COMPLETED  cert-a       -        ci  -        -
	`, r.out)
}

func TestWatchShowsAJobThatFailedAndFails(t *testing.T) {
	t.Parallel()
	g := lifecycle(t, []*schedulerv1.Job{job(schedulerv1.Job_CANCELLED)}, nil)

	r := g.run(t, "jobs", "watch", "job-1", "-o", "json")

	require.Equal(t, 1, r.code)
	require.JSONEq(t, `"CANCELLED"`, jsonField(t, r.out, "status"))
	require.ErrorContains(t, r.failure, "job job-1 (ISSUE) is CANCELLED")
}

func TestWatchOfAJobThatDoesNotExistFailsAtOnce(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	on(g, schedulerv1.JobService_GetJob_FullMethodName, func(*schedulerv1.GetJobRequest) (*schedulerv1.GetJobResponse, error) {
		return nil, errs.New(errs.NotFound, "JOB_NOT_FOUND", "job job-1 not found")
	})
	require.Equal(t, 3, g.run(t, "jobs", "watch", "job-1").code)
}

func TestDeployWaitsForAllItsJobs(t *testing.T) {
	t.Parallel()
	g := lifecycle(t, []*schedulerv1.Job{job(schedulerv1.Job_RUNNING), job(schedulerv1.Job_COMPLETED)}, nil)
	answer(g, schedulerv1.JobService_DeployCertificate_FullMethodName, &schedulerv1.DeployCertificateRequest{},
		&schedulerv1.DeployCertificateResponse{Jobs: []*schedulerv1.Job{job(schedulerv1.Job_PENDING), job(schedulerv1.Job_PENDING)}})

	r := g.ok(t, "certificates", "deploy", "cert-a", "--target", "target-web", "--wait", "-o", "name")

	require.Equal(t, "job-1\njob-1\n", r.out)
	require.Equal(t, []string{"target-web"}, requests[*schedulerv1.DeployCertificateRequest](g, schedulerv1.JobService_DeployCertificate_FullMethodName)[0].GetTargetIds())
}

func TestAnInterruptEndsAWait(t *testing.T) {
	t.Parallel()
	g := lifecycle(t, []*schedulerv1.Job{job(schedulerv1.Job_RUNNING)}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	on(g, schedulerv1.JobService_GetJob_FullMethodName, func(*schedulerv1.GetJobRequest) (*schedulerv1.GetJobResponse, error) {
		if asked++; asked == 3 {
			cancel()
		}
		return &schedulerv1.GetJobResponse{Job: job(schedulerv1.Job_RUNNING)}, nil
	})
	begin := time.Now()
	r := program{environ: []string{"CERTCTL_DATA_DIR=" + g.dir}}.runContext(ctx, "jobs", "watch", "job-1")
	require.EqualError(t, r.failure, "interrupted")
	require.Equal(t, 1, r.code)
	require.Less(t, time.Since(begin), time.Minute)
}
