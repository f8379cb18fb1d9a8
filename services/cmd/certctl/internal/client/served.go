package client

import (
	"context"
	"fmt"
	"slices"
	"strings"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
)

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
