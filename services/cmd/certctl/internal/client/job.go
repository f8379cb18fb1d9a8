package client

import (
	"context"
	"fmt"
	"strings"

	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

// waitJob follows a job to its end; an end that is not COMPLETED is an error. Each state is shown to stop, which may end the wait.
func (s *session) waitJob(ctx context.Context, id string, stop func(*schedulerv1.Job) error) (*schedulerv1.Job, error) {
	jobs := schedulerv1.NewJobServiceClient(s.conn)
	var job *schedulerv1.Job
	err := s.until(ctx, func(ctx context.Context) (bool, error) {
		resp, err := jobs.GetJob(ctx, &schedulerv1.GetJobRequest{Id: id})
		if err != nil {
			return false, err
		}
		job = resp.GetJob()
		s.pending(jobState(job), "go on waiting with: certctl jobs watch "+id)
		return ended(job), stop(job)
	})
	if err != nil {
		return nil, err
	}
	if job.GetStatus() != schedulerv1.Job_COMPLETED {
		return job, jobFailure(job)
	}
	return job, nil
}

func ended(j *schedulerv1.Job) bool {
	switch j.GetStatus() {
	case schedulerv1.Job_COMPLETED, schedulerv1.Job_FAILED, schedulerv1.Job_CANCELLED, schedulerv1.Job_EXPIRED:
		return true
	default:
		return false
	}
}

func (s *session) job(ctx context.Context, id string) (*schedulerv1.Job, error) {
	resp, err := schedulerv1.NewJobServiceClient(s.conn).GetJob(ctx, &schedulerv1.GetJobRequest{Id: id})
	return resp.GetJob(), err
}

// jobState is one line of progress.
func jobState(j *schedulerv1.Job) string {
	line := fmt.Sprintf("job %s (%s) is %s", j.GetId(), j.GetType(), j.GetStatus())
	if why := waitsFor(j); why != "" {
		line += ": " + why
	}
	switch p := j.GetError(); {
	case p == nil || ended(j):
	case j.GetStatus() == schedulerv1.Job_AWAITING_CA: // it is the same order all the time, and no attempt failed
		line += "; " + problem(p)
	default:
		line += fmt.Sprintf("; attempt %d of %d: %s", j.GetAttempt(), j.GetMaxAttempts(), problem(p))
	}
	return line
}

func waitsFor(j *schedulerv1.Job) string {
	switch j.GetStatus() {
	case schedulerv1.Job_AWAITING_APPROVAL:
		return fmt.Sprintf("somebody other than %s approves it with: certctl jobs approve %s", j.GetRequestedBy(), j.GetId())
	case schedulerv1.Job_AWAITING_CSR:
		if holders := keyHolders(j, schedulerv1.JobKey_AWAITING_CSR); len(holders) > 0 {
			return "a key is made by " + strings.Join(holders, " and ")
		}
		return "somebody who keeps the key sends a CSR with: certctl certificates csr " + j.GetCertificateId() + " -f request.pem"
	case schedulerv1.Job_AWAITING_CA:
		if j.GetOrderId() != "" {
			return "the CA has " + j.GetOrderId()
		}
	default:
	}
	return ""
}

func keyHolders(j *schedulerv1.Job, status schedulerv1.JobKey_Status) []string {
	var holders []string
	for _, k := range j.GetKeys() {
		if k.GetStatus() == status && k.GetAgentId() != "" {
			holders = append(holders, k.GetAgentId())
		}
	}
	return holders
}

func problem(p *typev1.Problem) string {
	if p.GetReason() == "" {
		return p.GetMessage()
	}
	return p.GetMessage() + " (" + p.GetReason() + ")"
}

func jobFailure(j *schedulerv1.Job) error {
	message := fmt.Sprintf("job %s (%s) is %s", j.GetId(), j.GetType(), j.GetStatus())
	if j.GetError() != nil {
		message += ": " + problem(j.GetError())
	}
	hint := "see what is in the way: certctl certificates explain " + j.GetCertificateId()
	if j.GetStatus() == schedulerv1.Job_FAILED {
		hint += "\nthen start it again: certctl jobs retry " + j.GetId()
	}
	return &Failure{Message: message, Hint: hint, Code: exitError}
}
