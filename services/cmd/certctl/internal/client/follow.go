package client

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
)

// waitIssued follows a job, and then the deployments of the versions that it made.
func (s *session) waitIssued(ctx context.Context, id string) error {
	job, err := s.waitJob(ctx, id, withoutKey)
	if err != nil {
		return err
	}
	return s.waitServed(ctx, job)
}

// goOn never ends a wait.
func goOn(*schedulerv1.Job) error { return nil }

// withoutKey ends the wait for a job that no agent can go on with: only the one who waits could.
func withoutKey(j *schedulerv1.Job) error {
	if j.GetStatus() != schedulerv1.Job_AWAITING_CSR || len(j.GetKeys()) == 0 || len(keyHolders(j, schedulerv1.JobKey_AWAITING_CSR)) > 0 {
		return nil
	}
	return &Failure{
		Message: "certificate " + j.GetCertificateId() + " has no target whose agent could make its key: the job waits for a CSR",
		Hint: "make a key and a CSR with the same names, then: certctl certificates csr " + j.GetCertificateId() + " -f request.pem --wait\n" +
			"or give it a target with: certctl certificates update " + j.GetCertificateId() + " --target TARGET",
		Code: exitError,
	}
}

// followCreated waits for a new certificate to be issued and served. Its job is opened by an event, so it may not be there yet.
func followCreated(ctx context.Context, s *session, answer proto.Message) (proto.Message, error) {
	cert, ok := answer.(*inventoryv1.Certificate)
	if !ok {
		return nil, fmt.Errorf("follow %T", answer)
	}
	s.note("certificate %s is created", cert.GetId())
	job, err := s.firstJob(ctx, cert.GetId())
	if err != nil {
		return nil, err
	}
	if err := s.waitIssued(ctx, job.GetId()); err != nil {
		return nil, err
	}
	return s.certificate(ctx, cert.GetId())
}

func (s *session) firstJob(ctx context.Context, certificateID string) (*schedulerv1.Job, error) {
	jobs := schedulerv1.NewJobServiceClient(s.conn)
	var job *schedulerv1.Job
	err := s.until(ctx, func(ctx context.Context) (bool, error) {
		s.pending("the job is being opened", "see: certctl jobs list --certificate "+certificateID)
		resp, err := jobs.ListJobs(ctx, &schedulerv1.ListJobsRequest{CertificateId: certificateID, PageSize: 1})
		if err != nil || len(resp.GetJobs()) == 0 {
			return false, err
		}
		job = resp.GetJobs()[0]
		return true, nil
	})
	return job, err
}

// followJob waits for the job that was answered, and for what it made to be served; then it shows the job.
func followJob(ctx context.Context, s *session, answer proto.Message) (proto.Message, error) {
	job, ok := answer.(*schedulerv1.Job)
	if !ok {
		return nil, fmt.Errorf("follow %T", answer)
	}
	if err := s.waitIssued(ctx, job.GetId()); err != nil {
		return nil, err
	}
	return s.job(ctx, job.GetId())
}

// followJobs waits for several jobs.
func followJobs(ctx context.Context, s *session, answer proto.Message) (proto.Message, error) {
	resp, ok := answer.(*schedulerv1.DeployCertificateResponse)
	if !ok {
		return nil, fmt.Errorf("follow %T", answer)
	}
	ended := &schedulerv1.DeployCertificateResponse{}
	for _, j := range resp.GetJobs() {
		job, err := s.waitJob(ctx, j.GetId(), goOn)
		if err != nil {
			return nil, err
		}
		ended.Jobs = append(ended.Jobs, job)
	}
	return ended, nil
}
