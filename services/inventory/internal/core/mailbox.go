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
	err = c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		other, err := t.GetAssignment(ctx, r.GetTaskId())
		if err == nil {
			return sameTask(other, r)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		row, err := t.LockCertificate(ctx, r.GetCsr().GetCertificateId())
		if row, err = found(row, err, resourceCertificate, r.GetCsr().GetCertificateId()); err != nil {
			return err
		}
		if row.Final() {
			return wrongState(resourceCertificate, row.ID, row.Status, "no key is made for it")
		}
		agent, err := t.GetAgent(ctx, r.GetAgentId())
		if agent, err = found(agent, err, resourceAgent, r.GetAgentId()); err != nil {
			return err
		}
		if agent.Status == store.AgentRetired {
			return wrongState(resourceAgent, agent.ID, agent.Status, "it takes no work")
		}
		added, err := t.InsertAssignment(ctx, store.Assignment{
			ID: r.GetTaskId(), AgentID: agent.ID, Kind: store.KindCreateCsr, CertificateID: row.ID, Payload: payload, DeadlineTime: r.GetDeadlineTime().AsTime(),
		})
		if err != nil || !added {
			return err
		}
		audit(ctx, t, "task.created", resourceTask, r.GetTaskId(), map[string]any{"agent_id": agent.ID, "certificate_id": row.ID, "kind": store.KindCreateCsr})
		return nil
	})
	if err != nil {
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
	limit := int(r.GetMaxAssignments())
	if limit == 0 {
		limit = defaultAssignments
	}
	limit = min(limit, maxAssignments)
	out := &agentv1.ListAssignmentsResponse{}
	err := c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		out.Reset()
		until := time.Now().Add(c.cfg.AssignmentLease)
		rows, err := t.LeaseAssignments(ctx, store.Lease{AgentID: agentID, After: r.GetAfterRevision(), Limit: limit, Until: until})
		if err != nil {
			return err
		}
		work, err := contentsOf(ctx, t, rows)
		if err != nil {
			return err
		}
		if err := startDeployments(ctx, t, rows, until); err != nil {
			return err
		}
		last := r.GetAfterRevision()
		for _, row := range sortByMailbox(rows) {
			a, err := assignment(work, row, until)
			if err != nil {
				return err
			}
			out.Assignments = append(out.Assignments, a)
			last = row.Mailbox
		}
		if len(rows) == limit {
			open, err := t.CountOpenAfter(ctx, agentID, last)
			out.More = open > 0
			return err
		}
		return nil
	})
	return out, err
}

func sortByMailbox(rows []store.Assignment) []store.Assignment {
	for i := 1; i < len(rows); i++ {
		for j := i; j > 0 && rows[j].Mailbox < rows[j-1].Mailbox; j-- {
			rows[j], rows[j-1] = rows[j-1], rows[j]
		}
	}
	return rows
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
func startDeployments(ctx context.Context, t *store.Tx, rows []store.Assignment, until time.Time) error {
	var ids []string
	for _, row := range rows {
		if row.Kind == store.KindDeploy {
			ids = append(ids, row.DeploymentID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	started, err := t.StartDeployments(ctx, ids, until)
	if started > 0 {
		t.Changed(store.Deployments)
	}
	return err
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
	out := &agentv1.ReportAssignmentResponse{}
	err := c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		out.Reset()
		row, err := t.GetAssignment(ctx, r.GetAssignmentId())
		// Another agent's work is not there: who guesses an id learns nothing.
		if errors.Is(err, store.ErrNotFound) || err == nil && row.AgentID != agentID {
			return notFound("assignment", r.GetAssignmentId())
		}
		if err != nil {
			return err
		}
		if r.GetProgress() != nil {
			return c.progress(ctx, t, row, r, out)
		}
		return c.result(ctx, t, row, r, out)
	})
	return out, err
}

func (c *Core) progress(ctx context.Context, t *store.Tx, row store.Assignment, r *agentv1.ReportAssignmentRequest, out *agentv1.ReportAssignmentResponse) error {
	until := time.Now().Add(c.cfg.AssignmentLease)
	if row.DeploymentID != "" && row.Kind == store.KindDeploy {
		d, err := t.LockDeployment(ctx, row.DeploymentID)
		if errors.Is(err, store.ErrNotFound) {
			out.Stale = true
			return nil
		}
		if err != nil {
			return err
		}
		if d.Status == store.DeploymentDeploying {
			if err := t.PostponeDeployment(ctx, d.ID, until); err != nil {
				return err
			}
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

// result ends work. The deployment is locked before the assignment, as everywhere.
func (c *Core) result(ctx context.Context, t *store.Tx, row store.Assignment, r *agentv1.ReportAssignmentRequest, out *agentv1.ReportAssignmentResponse) error {
	if err := checkReport(row, r); err != nil {
		return err
	}
	var d store.Deployment
	if row.DeploymentID != "" {
		var err error
		d, err = t.LockDeployment(ctx, row.DeploymentID)
		if errors.Is(err, store.ErrNotFound) {
			out.Stale = true
			return nil
		}
		if err != nil {
			return err
		}
	}
	status := store.AssignmentDone
	if r.GetFailure() != nil {
		status = store.AssignmentFailed
	}
	finished, err := t.FinishAssignment(ctx, row.ID, r.GetLeaseId(), status)
	if err != nil {
		return err
	}
	if !finished {
		// The same report again is no news; one under another lease comes too late.
		out.Stale = row.LeaseID != r.GetLeaseId() || row.Status != store.AssignmentDone && row.Status != store.AssignmentFailed
		return nil
	}
	switch row.Kind {
	case store.KindCreateCsr:
		c.csrResult(ctx, t, row, r)
		return nil
	case store.KindVerify:
		return c.verifyResult(ctx, t, d, r)
	default:
		return c.deployResult(ctx, t, d, row, r)
	}
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

func (c *Core) deployResult(ctx context.Context, t *store.Tx, d store.Deployment, row store.Assignment, r *agentv1.ReportAssignmentRequest) error {
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
	if s.Version != row.Version {
		return c.failed(ctx, t, d, store.Setback{
			Reason: "NOT_SERVED", Message: "the agent has put the certificate in place, but something else is served",
			ServedFingerprint: s.Fingerprint, ServedVersion: s.Version,
		}, false)
	}
	return c.served(ctx, t, d, s)
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
	now := time.Now().UTC()
	s := store.Sighting{Fingerprint: strings.ToLower(r.GetServedFingerprintSha256()), Address: r.GetVerifiedAddress(), Time: now, Due: c.nextVerify()}
	// An agent's clock may be wrong; what it saw it did not see in the future.
	if at := r.GetVerifyTime(); at != nil && at.AsTime().Before(now) {
		s.Time = at.AsTime()
	}
	return s, c.recognise(ctx, t, d.CertificateID, s.Fingerprint, &s.Version)
}

func (c *Core) recognise(ctx context.Context, t *store.Tx, certificateID, fingerprint string, version *int32) error {
	if fingerprint == "" {
		return nil
	}
	v, err := t.VersionByFingerprint(ctx, certificateID, fingerprint)
	*version = v
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
