package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	renewalschedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// Explanation is why a certificate is as it is. The jobs are not yet in the response.
type Explanation struct {
	Response *renewalschedulerv1.ExplainCertificateResponse
	OpenJob  *store.Job
	LastJob  *store.Job
}

// facts are all that an explanation is made of.
type facts struct {
	now         time.Time
	rec         *inventoryv1.CertificateRecord
	policy      *store.Policy
	plan        *store.Plan // nil: not heard of yet
	planKeys    []store.PlanKey
	open        *store.Job // nil: none
	openKeys    []*store.Key
	last        *store.Job // nil: none
	deployments []*inventoryv1.Deployment
}

// ExplainCertificate gathers the facts of a certificate and explains them.
func (c *Core) ExplainCertificate(ctx context.Context, id string) (*Explanation, error) {
	rec, err := c.knownRecord(ctx, id)
	if err != nil {
		return nil, err
	}
	f := facts{now: c.now(), rec: rec}
	deployments, err := c.inventory.BatchGetDeployments(ctx, &inventoryv1.BatchGetDeploymentsRequest{CertificateIds: []string{id}})
	if err != nil {
		return nil, fmt.Errorf("read deployments: %w", err)
	}
	f.deployments = deployments.GetDeployments()
	if err := c.gather(ctx, id, &f); err != nil {
		return nil, err
	}
	return &Explanation{Response: f.explain(), OpenJob: f.open, LastJob: f.last}, nil
}

func (c *Core) gather(ctx context.Context, id string, f *facts) (err error) {
	if f.policy, err = policyOf(ctx, c.store, f.rec.GetCertificate().GetPolicyId()); err != nil {
		return err
	}
	if f.plan, err = optional(c.store.Plan(ctx, id)); err != nil {
		return err
	}
	if f.planKeys, err = c.store.PlanKeys(ctx, id); err != nil {
		return err
	}
	if f.last, err = optional(c.store.LastJob(ctx, id)); err != nil {
		return err
	}
	if f.open, err = optional(c.store.OpenJob(ctx, id)); err != nil || f.open == nil {
		return err
	}
	f.openKeys, err = c.store.Keys(ctx, f.open.ID)
	return err
}

func optional[T any](v *T, err error) (*T, error) {
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil //nolint:nilnil // there is none
	}
	return v, err
}

// explain is a pure function over the facts.
func (f *facts) explain() *renewalschedulerv1.ExplainCertificateResponse {
	cert := f.rec.GetCertificate()
	r := &renewalschedulerv1.ExplainCertificateResponse{CertificateId: cert.GetId(), Status: cert.GetStatus().String()}
	f.decide(r)
	switch {
	case closed(r.Status):
		f.explainClosed(r)
	case f.open != nil:
		f.explainOpen(r)
	default:
		f.explainIdle(r)
	}
	f.explainDeployments(r)
	return r
}

// decide lists what was decided and by which rule.
func (f *facts) decide(r *renewalschedulerv1.ExplainCertificateResponse) {
	cert := f.rec.GetCertificate()
	if closed(r.Status) {
		return
	}
	holders := holdersOf(f.rec)
	switch {
	case f.abandoned():
		decision(r, "key", "the caller keeps the key", "the agents of all its targets are retired")
	case slices.Equal(holders, []string{""}):
		decision(r, "key", "the caller keeps the key", "the certificate has no targets")
	default:
		decision(r, "key", "made by "+agents(holders), "the agents of its targets make a key each")
	}
	if first, v, ok := earliest(f.policy, cert.GetId(), f.planKeys, time.Time{}); ok {
		if f.policy.Automatic {
			decision(r, "renew_time", timeText(first.Time), first.Rule)
		} else {
			decision(r, "automatic", "not renewed by itself", "policy "+f.policy.ID+" is not automatic; it would be due at "+timeText(first.Time))
		}
		if first.Frozen != nil {
			f.decideFreeze(r, first, v)
		}
	}
	if f.plan != nil && f.plan.Reissue != "" {
		decision(r, "reissue", "issued anew without waiting for its renewal", f.plan.Reissue)
	}
	if f.plan != nil && f.plan.Failures > 0 {
		decision(r, "retry", fmt.Sprintf("%d jobs in a row ended without success", f.plan.Failures),
			"the pause doubles from "+words(firstDelay)+" to "+words(maxDelay)+" and never takes more than a quarter of what is left")
	}
	if f.open != nil && f.open.ApprovalSubject != "" {
		outcome := "somebody else than " + strings.Join(f.open.Askers, ", ") + " must approve"
		if f.open.ApprovedBy != "" {
			outcome = "approved by " + f.open.ApprovedBy
		}
		decision(r, "approval", outcome, "profile "+cert.GetProfileId()+" requires approval")
	}
}

func (f *facts) decideFreeze(r *renewalschedulerv1.ExplainCertificateResponse, first renewal, v validity) {
	w := first.Frozen
	window := "freeze window of policy " + f.policy.ID + " from " + timeText(w.Start) + " to " + timeText(w.End)
	if w.Reason != "" {
		window += " (" + w.Reason + ")"
	}
	if first.Forced {
		decision(r, "freeze", "not kept to the end, since the certificate ends at "+timeText(v.notAfter), window)
		return
	}
	decision(r, "freeze", "put off until "+timeText(first.Time), window)
}

func decision(r *renewalschedulerv1.ExplainCertificateResponse, subject, outcome, rule string) {
	r.Decisions = append(r.Decisions, &renewalschedulerv1.Decision{Subject: subject, Outcome: outcome, Rule: rule})
}

func step(action string, at time.Time) *renewalschedulerv1.NextStep {
	n := &renewalschedulerv1.NextStep{Action: action}
	if !at.IsZero() {
		n.Time = timestamppb.New(at)
	}
	return n
}

func blocker(reason, message, owner string) *renewalschedulerv1.Blocker {
	return &renewalschedulerv1.Blocker{Reason: reason, Message: message, Owner: owner}
}

func agents(ids []string) string {
	if len(ids) == 1 {
		return "agent " + ids[0]
	}
	return "agents " + strings.Join(ids, ", ")
}

func (f *facts) explainClosed(r *renewalschedulerv1.ExplainCertificateResponse) {
	cert := f.rec.GetCertificate()
	r.Summary = "The certificate is archived: it is no longer renewed or deployed."
	if cert.GetStatus() == inventoryv1.Certificate_REVOKED {
		r.Summary = "The certificate is revoked"
		if cert.GetRevocationTime() != nil {
			r.Summary += " since " + timeText(cert.GetRevocationTime().AsTime())
		}
		if reason := cert.GetRevocationReason(); reason != "" {
			r.Summary += " (" + reason + ")"
		}
		r.Summary += ": this is final. Create a new certificate to replace it."
	}
	r.Next = step("nothing", time.Time{})
}

// explainOpen speaks of the open job, which decides what happens next.
func (f *facts) explainOpen(r *renewalschedulerv1.ExplainCertificateResponse) {
	j := f.open
	what := "issued for the first time"
	if j.Type == store.Renew {
		what = "renewed"
	}
	intro := fmt.Sprintf("The certificate is being %s by job %s: ", what, j.ID)
	switch j.State {
	case store.AwaitingApproval:
		r.Summary = intro + "it waits for approval."
		r.Next = step("the job expires unless it is approved", j.DeadlineTime)
		r.Blocker = blocker("APPROVAL_REQUIRED", "profile "+f.rec.GetCertificate().GetProfileId()+" requires approval",
			"an approver other than "+strings.Join(j.Askers, ", "))
	case store.AwaitingCSR:
		r.Summary = intro + "it waits for a CSR."
		r.Next = step("the job expires unless the CSR comes", j.DeadlineTime)
		r.Blocker = f.csrBlocker()
	case store.AwaitingCA:
		f.explainCA(r, intro)
	case store.Pending:
		r.Summary = intro + "it starts now."
		r.Next = step("the job starts", j.DueTime)
		if j.Error.Reason != "" {
			r.Summary = fmt.Sprintf("%sit waits for its next try, %d of %d were made.", intro, j.Attempt, j.MaxAttempts)
			r.Next = step("the job is tried again", j.DueTime)
			r.Blocker = blocker(j.Error.Reason, j.Error.Message, f.ownerOf(j.Error))
		}
	default:
		r.Summary = intro + "it runs."
		r.Next = step("the job ends", j.DeadlineTime)
	}
	f.noteExpiry(r)
}

func (f *facts) explainCA(r *renewalschedulerv1.ExplainCertificateResponse, intro string) {
	issuer := f.rec.GetCertificate().GetIssuerId()
	r.Summary = intro + "CA " + issuer + " has the order and answers later."
	r.Next = step("the order is looked at again", f.open.DueTime)
	r.Blocker = blocker("AWAITING_CA", "the CA has not decided on "+f.orders(), "CA "+issuer)
	if f.open.Error.Reason != "" {
		r.Blocker = blocker(f.open.Error.Reason, f.open.Error.Message, "CA "+issuer)
	}
	if !slices.ContainsFunc(f.openKeys, func(k *store.Key) bool { return k.State == store.KeyAwaitingCA }) {
		r.Summary = intro + "the CA has issued, the version is being stored."
		r.Next, r.Blocker = step("the version is stored", time.Time{}), nil
	}
}

func (f *facts) orders() string {
	var ids []string
	for _, k := range f.openKeys {
		if k.State == store.KeyAwaitingCA {
			ids = append(ids, k.OrderID)
		}
	}
	return "order " + strings.Join(ids, ", order ")
}

// csrBlocker names who owes a CSR; an agent that is away comes first.
func (f *facts) csrBlocker() *renewalschedulerv1.Blocker {
	var waiting *renewalschedulerv1.Blocker
	for _, k := range f.openKeys {
		if k.State != store.KeyAwaitingCSR || k.CsrPEM != "" {
			continue
		}
		if k.AgentID == "" && f.abandoned() {
			waiting = blocker(agentRetired, "the agents of all its targets are retired: bind a target on another agent, or post a CSR to /api/v1/certificates/"+
				f.open.CertificateID+"/csr", "who owns the certificate")
			continue
		}
		if k.AgentID == "" {
			waiting = blocker("CSR_REQUIRED", "post a CSR to /api/v1/certificates/"+f.open.CertificateID+"/csr", "who keeps the key of the certificate")
			continue
		}
		if name, status := f.agent(k.AgentID); status != inventoryv1.Agent_ONLINE.String() {
			return blocker("AGENT_"+status, fmt.Sprintf("agent %s is %s and has not made its key", name, status), "agent "+k.AgentID)
		}
		if waiting == nil {
			waiting = blocker("AWAITING_CSR", "the agent makes its key", "agent "+k.AgentID)
		}
	}
	return waiting
}

// abandoned tells that a certificate has targets and nobody who makes keys for them.
func (f *facts) abandoned() bool {
	return len(f.rec.GetCertificate().GetTargetIds()) > 0 && len(activeHolders(f.rec)) == 0
}

func (f *facts) agent(id string) (name, status string) {
	for _, h := range f.rec.GetKeyHolders() {
		if h.GetAgentId() == id {
			return h.GetAgentName(), h.GetAgentStatus()
		}
	}
	return id, "UNKNOWN"
}

// ownerOf guesses who can mend a job's problem.
func (f *facts) ownerOf(p store.Problem) string {
	for _, k := range f.openKeys {
		if k.State == store.KeyFailed && k.AgentID != "" && k.OrderID == "" {
			return "agent " + k.AgentID
		}
		if k.State == store.KeyFailed && k.OrderID != "" {
			return "CA " + f.rec.GetCertificate().GetIssuerId()
		}
	}
	if strings.HasPrefix(p.Reason, "PROFILE_") {
		return "profile " + f.rec.GetCertificate().GetProfileId()
	}
	return "the operators of certctl"
}

// explainIdle speaks of a certificate on which nobody works.
func (f *facts) explainIdle(r *renewalschedulerv1.ExplainCertificateResponse) {
	cert := f.rec.GetCertificate()
	if f.plan != nil && !f.plan.RenewAt.IsZero() {
		r.RenewTime = timestamppb.New(f.plan.RenewAt)
	}
	switch {
	case f.plan == nil:
		r.Summary = "The certificate is known since a moment; its job opens now."
		r.Next = step("a job opens", time.Time{})
	case cert.GetCurrentVersion() == 0:
		f.explainUnissued(r)
	case f.plan.State == store.PlanRetrying:
		r.Summary = "The last renewal did not succeed; a fresh job opens at " + timeText(f.plan.RenewAt) + "."
		r.Next = step("a renewal job opens", f.plan.RenewAt)
		f.blameLast(r)
	case !f.policy.Automatic:
		r.Summary = "The certificate is valid, and policy " + f.policy.ID + " renews it only by request."
		r.Next = step("nothing happens by itself; post to /api/v1/certificates/"+cert.GetId()+"/renew", time.Time{})
		f.blockIfLate(r)
	case f.plan.FrozenUntil.After(f.now) && frozenAt(f.policy, f.now) != nil:
		r.Summary = "The certificate is valid; a freeze window puts its renewal off until " + timeText(f.plan.RenewAt) + "."
		r.Next = step("a renewal job opens", f.plan.RenewAt)
		if w := frozenAt(f.policy, f.now); w != nil {
			r.Blocker = blocker("FREEZE_WINDOW", "no scheduled renewal starts before "+timeText(w.End), "policy "+f.policy.ID)
		}
	case f.plan.RenewAt.After(f.now):
		r.Summary = "The certificate is valid and due for renewal at " + timeText(f.plan.RenewAt) + "."
		r.Next = step("a renewal job opens", f.plan.RenewAt)
	default:
		r.Summary = "The certificate is due; its renewal job opens with the next check."
		r.Next = step("a renewal job opens", f.now)
	}
	f.noteExpiry(r)
}

func (f *facts) explainUnissued(r *renewalschedulerv1.ExplainCertificateResponse) {
	r.Summary = "Nothing was issued yet"
	if f.plan.RenewAt.IsZero() {
		r.Summary += ", and nothing is tried by itself."
		r.Next = step("nothing happens by itself; retry the last job, or post to /api/v1/certificates/"+f.plan.CertificateID+"/renew", time.Time{})
	} else {
		r.Summary += "; a fresh job opens at " + timeText(f.plan.RenewAt) + "."
		r.Next = step("an issue job opens", f.plan.RenewAt)
	}
	f.blameLast(r)
}

// blameLast makes the last job's problem the blocker.
func (f *facts) blameLast(r *renewalschedulerv1.ExplainCertificateResponse) {
	if f.last == nil || f.last.State == store.Completed || f.last.Error.Reason == "" {
		return
	}
	owner := "the operators of certctl"
	switch {
	case f.last.Error.Reason == "APPROVAL_TIMEOUT" || f.last.Error.Reason == rejected:
		owner = "an approver other than " + strings.Join(f.last.Askers, ", ")
	case strings.HasPrefix(f.last.Error.Message, "agent ") || strings.Contains(f.last.Error.Message, "from agent "):
		owner = agents(holdersOf(f.rec))
	case strings.HasPrefix(f.last.Error.Reason, "ORDER_"):
		owner = "CA " + f.rec.GetCertificate().GetIssuerId()
	}
	r.Blocker = blocker(f.last.Error.Reason, "job "+f.last.ID+" is "+string(f.last.State)+": "+f.last.Error.Message, owner)
}

// blockIfLate says that a certificate which is renewed only by request needs one.
func (f *facts) blockIfLate(r *renewalschedulerv1.ExplainCertificateResponse) {
	first, _, ok := earliest(f.policy, f.rec.GetCertificate().GetId(), f.planKeys, time.Time{})
	if ok && !first.Time.After(f.now) {
		r.Blocker = blocker("NOT_AUTOMATIC", "it has been due since "+timeText(first.Time), "who owns the certificate")
	}
}

// noteExpiry says first what users see first.
func (f *facts) noteExpiry(r *renewalschedulerv1.ExplainCertificateResponse) {
	cert := f.rec.GetCertificate()
	if cert.GetCurrentVersion() == 0 || cert.GetNotAfter() == nil {
		return
	}
	if end := cert.GetNotAfter().AsTime(); !end.After(f.now) {
		r.Summary = "The certificate has expired at " + timeText(end) + ". " + strings.Replace(r.Summary, "The certificate is valid, and p", "P", 1)
	}
}

// explainDeployments adds where another version is served than should be.
func (f *facts) explainDeployments(r *renewalschedulerv1.ExplainCertificateResponse) {
	for _, d := range f.deployments {
		if closed(r.Status) {
			return
		}
		decision(r, "deployment "+d.GetTargetId(), fmt.Sprintf("%s: version %d is served, %d is wanted", d.GetStatus(), d.GetServedVersion(), d.GetDesiredVersion()),
			"the newest version of "+agents([]string{d.GetAgentId()}))
		bad := d.GetStatus() == inventoryv1.Deployment_DRIFTED || d.GetStatus() == inventoryv1.Deployment_FAILED
		if !bad || r.GetBlocker() != nil {
			continue
		}
		message := d.GetError().GetMessage()
		if message == "" {
			message = fmt.Sprintf("version %d is served, %d is wanted", d.GetServedVersion(), d.GetDesiredVersion())
		}
		r.Blocker = blocker("DEPLOYMENT_"+d.GetStatus().String(), "target "+d.GetTargetId()+": "+message, "agent "+d.GetAgentId())
		r.Summary += " On target " + d.GetTargetId() + " the deployment is " + d.GetStatus().String() + "."
	}
}
