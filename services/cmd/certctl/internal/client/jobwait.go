package client

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
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

// jobState is one line of progress.
func jobState(j *schedulerv1.Job) string {
	line := fmt.Sprintf("job %s (%s) is %s", j.GetId(), j.GetType(), j.GetStatus())
	if why := waitsFor(j); why != "" {
		line += ": " + why
	}
	if p := j.GetError(); p != nil && !ended(j) {
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

// waitServed waits until each target whose agent got a key by the job serves the version of it.
func (s *session) waitServed(ctx context.Context, job *schedulerv1.Job) error {
	wanted := make(map[string]int32)
	for _, k := range job.GetKeys() {
		if k.GetAgentId() != "" {
			wanted[k.GetAgentId()] = k.GetVersion()
		}
	}
	cert, err := s.certificate(ctx, job.GetCertificateId())
	if err != nil {
		return err
	}
	if len(wanted) == 0 || len(cert.GetTargetIds()) == 0 {
		return nil
	}
	return s.until(ctx, func(ctx context.Context) (bool, error) {
		all, err := s.deploymentsOf(ctx, cert.GetId())
		if err != nil {
			return false, err
		}
		all = slices.DeleteFunc(all, func(d *inventoryv1.Deployment) bool {
			_, ours := wanted[d.GetAgentId()]
			return !ours || !slices.Contains(cert.GetTargetIds(), d.GetTargetId())
		})
		return s.served(all, wanted)
	})
}

func (s *session) certificate(ctx context.Context, id string) (*inventoryv1.Certificate, error) {
	var cert *inventoryv1.Certificate
	err := s.until(ctx, func(ctx context.Context) (bool, error) {
		resp, err := inventoryv1.NewCertificateServiceClient(s.conn).GetCertificate(ctx, &inventoryv1.GetCertificateRequest{Id: id})
		cert = resp.GetCertificate()
		return err == nil, err
	})
	return cert, err
}

func (s *session) deploymentsOf(ctx context.Context, certificateID string) ([]*inventoryv1.Deployment, error) {
	list := bind(inventoryv1.NewDeploymentServiceClient, inventoryv1.DeploymentServiceClient.ListDeployments)
	whole, err := s.pages(ctx, list, &inventoryv1.ListDeploymentsRequest{CertificateId: certificateID}, paging{all: true})
	if err != nil {
		return nil, err
	}
	resp, ok := whole.(*inventoryv1.ListDeploymentsResponse)
	if !ok {
		return nil, fmt.Errorf("list deployments: got %T", whole)
	}
	return resp.GetDeployments(), nil
}

// served tells whether all deployments serve what is wanted. One that was given up ends the wait, with all the others that are
// not there yet named by it.
func (s *session) served(all []*inventoryv1.Deployment, wanted map[string]int32) (bool, error) {
	var open []string
	for _, d := range all {
		current := d.GetDesiredVersion() >= wanted[d.GetAgentId()]
		switch {
		case current && d.GetStatus() == inventoryv1.Deployment_SERVED:
		case current && d.GetStatus() == inventoryv1.Deployment_FAILED:
			return false, deploymentFailure(d)
		default:
			open = append(open, deploymentState(d))
		}
	}
	if len(all) > 0 && len(open) == 0 {
		s.note("%s", servedLine(all))
		return true, nil
	}
	if len(open) == 0 {
		open = []string{"deployments are not open yet"}
	}
	s.pending(strings.Join(open, "; "), "see: certctl deployments list")
	return false, nil
}

func servedLine(all []*inventoryv1.Deployment) string {
	parts := make([]string, 0, len(all))
	for _, d := range all {
		parts = append(parts, fmt.Sprintf("target %s serves version %d", d.GetTargetId(), d.GetDesiredVersion()))
	}
	return strings.Join(parts, "; ")
}

func deploymentState(d *inventoryv1.Deployment) string {
	line := fmt.Sprintf("target %s is %s", d.GetTargetId(), d.GetStatus())
	if d.GetError() != nil {
		line += fmt.Sprintf(" (attempt %d: %s)", d.GetAttempt(), problem(d.GetError()))
	}
	return line
}

func deploymentFailure(d *inventoryv1.Deployment) error {
	message := fmt.Sprintf("version %d was issued and is not served by target %s: ", d.GetDesiredVersion(), d.GetTargetId())
	if d.GetError() != nil {
		message += problem(d.GetError())
	} else {
		message += "the deployment failed"
	}
	return &Failure{
		Message: message,
		Hint: "see: certctl deployments get " + d.GetId() +
			"\nthen try again: certctl certificates deploy " + d.GetCertificateId() + " --target " + d.GetTargetId() + " --wait",
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

func (s *session) job(ctx context.Context, id string) (*schedulerv1.Job, error) {
	resp, err := schedulerv1.NewJobServiceClient(s.conn).GetJob(ctx, &schedulerv1.GetJobRequest{Id: id})
	return resp.GetJob(), err
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
