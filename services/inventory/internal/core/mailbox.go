package core

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/google/uuid"

	"github.com/certctl/certctl/pkg/errs"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
	"github.com/certctl/certctl/services/inventory/internal/view"
)

const (
	defaultAssignments = 100
	// maxAssignments keeps an answer with full chains well below the limit of a message.
	maxAssignments = 200
	// maxLeases is how often an agent may take the same work and vanish with it.
	maxLeases = 10
	// maxMessage bounds the texts that agents report.
	maxMessage = 2000
)

// CreateCsrTask puts a key-and-CSR task into an agent's mailbox, once per task id.
func (c *Core) CreateCsrTask(ctx context.Context, r *inventoryv1.CreateCsrTaskRequest) (*inventoryv1.CreateCsrTaskResponse, error) {
	payload, err := proto.Marshal(r.GetCsr())
	if err != nil {
		return nil, err
	}
	if _, err := c.together.tasks.Do(ctx, taskCall{caller: callerOf(ctx), request: r, payload: payload}); err != nil {
		return nil, err
	}
	return &inventoryv1.CreateCsrTaskResponse{}, nil
}

func sameTask(other store.Assignment, r *inventoryv1.CreateCsrTaskRequest) error {
	if other.AgentID != r.GetAgentId() || other.CertificateID != r.GetCsr().GetCertificateId() || other.Kind != store.KindCreateCsr {
		return errs.New(errs.AlreadyExists, "TASK_EXISTS", "task %s exists for other work", r.GetTaskId())
	}
	return nil
}

// CancelTask takes an open task back.
func (c *Core) CancelTask(ctx context.Context, r *inventoryv1.CancelTaskRequest) (*inventoryv1.CancelTaskResponse, error) {
	err := c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		task, err := t.LockAssignment(ctx, r.GetTaskId())
		if errors.Is(err, store.ErrNotFound) || err == nil && task.Kind != store.KindCreateCsr {
			return notFound(resourceTask, r.GetTaskId())
		}
		if err != nil {
			return err
		}
		ended, err := t.EndAssignment(ctx, task.ID, store.AssignmentCancelled)
		if err != nil || !ended {
			return err
		}
		audit(ctx, t, "task.finished", resourceTask, task.ID, map[string]any{
			"agent_id": task.AgentID, "certificate_id": task.CertificateID, "outcome": store.AssignmentCancelled,
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &inventoryv1.CancelTaskResponse{}, nil
}

// taskFinished tells the scheduler how a CSR task ended.
func (c *Core) taskFinished(ctx context.Context, t *store.Tx, task store.Assignment, csr string, problem *typev1.Problem, permanent bool) {
	tell(t, toScheduler, "task.finished", resourceCertificate, task.CertificateID, &inventoryv1.TaskFinished{
		TaskId: task.ID, AgentId: task.AgentID, CertificateId: task.CertificateID, CsrPem: csr, Problem: problem, Permanent: permanent,
	})
	data := map[string]any{"agent_id": task.AgentID, "certificate_id": task.CertificateID, "outcome": "DONE"}
	if problem != nil {
		data["outcome"], data["reason"], data["message"] = "FAILED", problem.GetReason(), problem.GetMessage()
	}
	audit(ctx, t, "task.finished", resourceTask, task.ID, data)
}

// ListAssignments leases an agent's open work and puts together what it needs.
func (c *Core) ListAssignments(ctx context.Context, agentID string, r *agentv1.ListAssignmentsRequest) (*agentv1.ListAssignmentsResponse, error) {
	return c.together.lists.Do(ctx, listCall{agentID: agentID, request: r})
}

// contents are what assignments are about.
type contents struct {
	deployments map[string]store.Deployment
	targets     map[string]store.Target
	versions    map[store.VersionKey]store.Version
}

// contentsOf reads what the assignments are about, in three statements for all of them.
func contentsOf(ctx context.Context, t *store.Tx, rows []store.Assignment) (contents, error) {
	out := contents{deployments: map[string]store.Deployment{}, targets: map[string]store.Target{}, versions: map[store.VersionKey]store.Version{}}
	var deploymentIDs, targetIDs []string
	var versionKeys []store.VersionKey
	for _, row := range rows {
		if row.DeploymentID != "" {
			deploymentIDs = append(deploymentIDs, row.DeploymentID)
			versionKeys = append(versionKeys, store.VersionKey{CertificateID: row.CertificateID, Version: row.Version})
		}
	}
	if len(deploymentIDs) == 0 {
		return out, nil
	}
	deployments, err := t.GetDeployments(ctx, deploymentIDs)
	if err != nil {
		return out, err
	}
	for _, d := range deployments {
		out.deployments[d.ID] = d
		targetIDs = append(targetIDs, d.TargetID)
	}
	targets, err := t.GetTargets(ctx, targetIDs)
	if err != nil {
		return out, err
	}
	for _, target := range targets {
		out.targets[target.ID] = target
	}
	versions, err := t.GetVersions(ctx, versionKeys)
	if err != nil {
		return out, err
	}
	for _, v := range versions {
		out.versions[store.VersionKey{CertificateID: v.CertificateID, Version: v.Version}] = v
	}
	return out, nil
}

// of gives what one assignment is about. All of it is there: a deployment's end cancels its work.
func (w contents) of(row store.Assignment) (store.Deployment, store.Target, store.Version, error) {
	d, ok := w.deployments[row.DeploymentID]
	target, known := w.targets[d.TargetID]
	v, issued := w.versions[store.VersionKey{CertificateID: row.CertificateID, Version: row.Version}]
	if !ok || !known || !issued {
		return d, target, v, fmt.Errorf("assignment %s is about what is not there", row.ID)
	}
	return d, target, v, nil
}

// startDeployments notes for all leased deployments that the agent has them.
func startDeployments(ctx context.Context, t *store.Tx, rows []store.Assignment, work contents, until time.Time) error {
	var fresh, begun []string
	for _, row := range rows {
		switch {
		case row.Kind != store.KindDeploy:
		case work.deployments[row.DeploymentID].Status == store.DeploymentPending:
			fresh = append(fresh, row.DeploymentID)
		default:
			begun = append(begun, row.DeploymentID)
		}
	}
	started, err := t.StartDeployments(ctx, fresh, until)
	if err != nil {
		return err
	}
	if started > 0 {
		t.Changed(store.Deployments)
	}
	return t.KeepDeployments(ctx, begun, until)
}

// assignment puts together what an agent needs for one piece of work.
func assignment(work contents, row store.Assignment, until time.Time) (*agentv1.Assignment, error) {
	out := &agentv1.Assignment{
		Id: row.ID, Revision: row.Mailbox, LeaseId: row.LeaseID, LeaseEndTime: timestamppb.New(until), Attempt: row.Attempts,
	}
	if row.Kind == store.KindCreateCsr {
		csr := &agentv1.CreateCsr{}
		if err := proto.Unmarshal(row.Payload, csr); err != nil {
			return nil, err
		}
		out.Work = &agentv1.Assignment_CreateCsr{CreateCsr: csr}
		return out, nil
	}
	d, target, v, err := work.of(row)
	if err != nil {
		return nil, err
	}
	if row.Kind == store.KindVerify {
		out.Work = &agentv1.Assignment_Verify{Verify: &agentv1.Verify{
			DeploymentId: d.ID, Target: view.AgentTarget(target), FingerprintSha256: v.FingerprintSHA256,
			DnsNames: dnsNames(v.CertificatePEM),
		}}
		return out, nil
	}
	out.Work = &agentv1.Assignment_Deploy{Deploy: &agentv1.Deploy{
		DeploymentId: d.ID, CertificateId: d.CertificateID, Version: v.Version, Target: view.AgentTarget(target), CertificatePem: v.CertificatePEM,
		ChainPem: v.ChainPEM, PublicKeySha256: v.PublicKeySHA256, FingerprintSha256: v.FingerprintSHA256, Force: d.Force,
	}}
	return out, nil
}

// ReportAssignment takes progress or the result of work. Reports under a lease that is no longer current change nothing.
func (c *Core) ReportAssignment(ctx context.Context, agentID string, r *agentv1.ReportAssignmentRequest) (*agentv1.ReportAssignmentResponse, error) {
	if _, err := uuid.Parse(r.GetAssignmentId()); err != nil {
		return nil, notFound("assignment", r.GetAssignmentId())
	}
	if _, err := uuid.Parse(r.GetLeaseId()); err != nil {
		return nil, errs.Field("lease_id", "is not a lease")
	}
	return c.together.reports.Do(ctx, reportCall{caller: callerOf(ctx), agentID: agentID, request: r})
}

// canonical is an id as it is stored: UUIDs may be written in several ways.
func canonical(id string) string {
	u, err := uuid.Parse(id)
	if err != nil {
		return id
	}
	return u.String()
}

// prolong makes the lease of work longer; its deployment is locked.
func (c *Core) prolong(ctx context.Context, t *store.Tx, row store.Assignment, d store.Deployment, r *agentv1.ReportAssignmentRequest, until time.Time, out *agentv1.ReportAssignmentResponse) error {
	if row.Kind == store.KindDeploy && d.ID == "" {
		out.Stale = true
		return nil
	}
	if row.Kind == store.KindDeploy && d.Status == store.DeploymentDeploying {
		if err := t.PostponeDeployment(ctx, d.ID, until); err != nil {
			return err
		}
	}
	live, err := t.ExtendLease(ctx, row.ID, r.GetLeaseId(), until)
	if err != nil {
		return err
	}
	out.Stale = !live
	if live {
		out.LeaseEndTime = timestamppb.New(until)
	}
	return nil
}

// checkReport refuses a report that is not about the kind of work.
func checkReport(row store.Assignment, r *agentv1.ReportAssignmentRequest) error {
	switch {
	case r.GetFailure() != nil:
		return nil
	case row.Kind == store.KindCreateCsr && r.GetCsr() == nil:
		return errs.Field("csr", "is what is reported for a CSR task")
	case row.Kind != store.KindCreateCsr && r.GetDeploy() == nil:
		return errs.Field("deploy", "is what is reported for a deployment or a verification")
	}
	return nil
}

func (c *Core) csrResult(ctx context.Context, t *store.Tx, row store.Assignment, r *agentv1.ReportAssignmentRequest) {
	if f := r.GetFailure(); f != nil {
		c.taskFinished(ctx, t, row, "", problemOf(f), f.GetPermanent())
		return
	}
	c.taskFinished(ctx, t, row, r.GetCsr().GetCsrPem(), nil, false)
}

// deployResult takes a try that failed, or after which something else is served.
func (c *Core) deployResult(ctx context.Context, t *store.Tx, d store.Deployment, r *agentv1.ReportAssignmentRequest) error {
	if f := r.GetFailure(); f != nil {
		p := problemOf(f)
		s := store.Setback{Reason: p.GetReason(), Message: p.GetMessage(), ServedFingerprint: strings.ToLower(f.GetServedFingerprintSha256())}
		if err := c.recognise(ctx, t, d.CertificateID, s.ServedFingerprint, &s.ServedVersion); err != nil {
			return err
		}
		return c.failed(ctx, t, d, s, f.GetPermanent())
	}
	s, err := c.sighting(ctx, t, d, r.GetDeploy())
	if err != nil {
		return err
	}
	return c.failed(ctx, t, d, store.Setback{
		Reason: "NOT_SERVED", Message: "the agent has put the certificate in place, but something else is served",
		ServedFingerprint: s.Fingerprint, ServedVersion: s.Version,
	}, false)
}

func (c *Core) verifyResult(ctx context.Context, t *store.Tx, d store.Deployment, r *agentv1.ReportAssignmentRequest) error {
	f := r.GetFailure()
	if f == nil {
		s, err := c.sighting(ctx, t, d, r.GetDeploy())
		if err != nil {
			return err
		}
		return c.verified(ctx, t, d, s)
	}
	if f.GetServedFingerprintSha256() != "" {
		s, err := c.sighting(ctx, t, d, &agentv1.DeployResult{ServedFingerprintSha256: f.GetServedFingerprintSha256()})
		if err != nil {
			return err
		}
		return c.verified(ctx, t, d, s)
	}
	p := problemOf(f)
	// That an endpoint cannot be looked at does not say that it serves something else.
	if err := t.NoteProblem(ctx, d.ID, store.Setback{Reason: p.GetReason(), Message: p.GetMessage(), Due: c.nextVerify()}); err != nil {
		return err
	}
	return c.deploymentChanged(ctx, t, d.ID)
}

func (c *Core) sighting(ctx context.Context, t *store.Tx, d store.Deployment, r *agentv1.DeployResult) (store.Sighting, error) {
	s := c.seen(r)
	return s, c.recognise(ctx, t, d.CertificateID, s.Fingerprint, &s.Version)
}

// seen is what an agent has seen; what version that is is not known yet.
func (c *Core) seen(r *agentv1.DeployResult) store.Sighting {
	now := time.Now().UTC()
	s := store.Sighting{Fingerprint: strings.ToLower(r.GetServedFingerprintSha256()), Address: r.GetVerifiedAddress(), Time: now, Due: c.nextVerify()}
	// An agent's clock may be wrong; what it saw it did not see in the future.
	if at := r.GetVerifyTime(); at != nil && at.AsTime().Before(now) {
		s.Time = at.AsTime()
	}
	return s
}

func (c *Core) recognise(ctx context.Context, t *store.Tx, certificateID, fingerprint string, version *int32) error {
	if fingerprint == "" {
		return nil
	}
	of := store.Fingerprint{CertificateID: certificateID, SHA256: fingerprint}
	known, err := t.VersionsByFingerprint(ctx, []store.Fingerprint{of})
	*version = known[of]
	return err
}

func problemOf(f *agentv1.Failure) *typev1.Problem {
	p := &typev1.Problem{Reason: f.GetProblem().GetReason(), Message: f.GetProblem().GetMessage()}
	if p.GetReason() == "" {
		p.Reason = "AGENT_FAILURE"
	}
	if f.GetStep() != "" {
		p.Message = f.GetStep() + ": " + p.GetMessage()
	}
	p.Reason, p.Message = bounded(p.GetReason()), bounded(p.GetMessage())
	return p
}

// bounded makes an agent's text fit to be stored.
func bounded(s string) string {
	s = strings.ReplaceAll(s, "\x00", "")
	if len(s) > maxMessage {
		s = s[:maxMessage]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// dnsNames reads the names of a certificate that was checked when it was stored.
func dnsNames(certificatePEM string) []string {
	block, _ := pem.Decode([]byte(certificatePEM))
	if block == nil {
		return nil
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return leaf.DNSNames
}
