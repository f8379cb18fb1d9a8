package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/rpcctx"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// fact is an event of a peer, decoded.
type fact struct {
	event         *eventv1.Event
	certificateID string
	// plan is what there is to be for the certificate; nil: this event makes none.
	plan  *store.Plan
	apply func(ctx context.Context, tx *store.Tx) error
	// order names the order that the event is about; empty: it is about none.
	order string
}

// Apply applies facts of a peer, in their order, in the transaction that remembers them. What they are about is locked and read together.
func (c *Core) Apply(ctx context.Context, tx *store.Tx, events []*eventv1.Event) error {
	facts := make([]fact, 0, len(events))
	var orders []string
	for _, e := range events {
		f, err := c.fact(e)
		if err != nil {
			return err
		}
		facts = append(facts, f)
		if f.order != "" {
			orders = append(orders, f.order)
		}
	}
	facts, err := concerning(ctx, tx, facts, orders)
	if err != nil || len(facts) == 0 {
		return err
	}
	if err := hold(ctx, tx, facts); err != nil {
		return err
	}
	for _, f := range facts {
		if err := f.apply(rpcctx.WithRequestID(ctx, f.event.GetRequestId()), tx); err != nil {
			return fmt.Errorf("apply %s of %s: %w", f.event.GetType(), f.event.GetResourceId(), err)
		}
	}
	return nil
}

// concerning leaves out what became of orders that no job waits for: that is nobody's matter.
func concerning(ctx context.Context, tx *store.Tx, facts []fact, orders []string) ([]fact, error) {
	if len(orders) == 0 {
		return facts, nil
	}
	waited, err := tx.OrdersWithKey(ctx, orders)
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool, len(waited))
	for _, id := range waited {
		known[id] = true
	}
	return slices.DeleteFunc(facts, func(f fact) bool { return f.order != "" && !known[f.order] }), nil
}

// hold locks the certificates that facts are about.
func hold(ctx context.Context, tx *store.Tx, facts []fact) error {
	var certificates []string
	plans := map[string]*store.Plan{}
	for _, f := range facts {
		certificates = append(certificates, f.certificateID)
		if f.plan != nil && plans[f.certificateID] == nil {
			plans[f.certificateID] = f.plan
		}
	}
	if err := tx.EnsurePlans(ctx, slices.Collect(maps.Values(plans))); err != nil {
		return err
	}
	return tx.Hold(ctx, certificates...)
}

// fact reads an event.
func (c *Core) fact(e *eventv1.Event) (fact, error) {
	switch e.GetType() {
	case "certificate.created":
		return c.certificateFact(e, c.certificateCreated)
	case "certificate.updated":
		return c.certificateFact(e, c.certificateUpdated)
	case "certificate.archived", "certificate.revoked":
		return c.certificateFact(e, c.certificateClosed)
	case "version.revoked":
		return c.certificateFact(e, c.versionRevoked)
	case "certificate.expired":
		return c.certificateFact(e, c.certificateExpired)
	case "version.stored":
		return factOf(e, &inventoryv1.VersionStored{}, (*inventoryv1.VersionStored).GetCertificateId, c.versionStored)
	case "order.changed":
		m := &issuancev1.OrderChanged{}
		f, err := factOf(e, m, func(m *issuancev1.OrderChanged) string { return m.GetOrder().GetCertificateId() }, c.orderChanged)
		f.order = m.GetOrder().GetId()
		return f, err
	case "task.finished":
		return factOf(e, &inventoryv1.TaskFinished{}, (*inventoryv1.TaskFinished).GetCertificateId, c.taskFinished)
	case "deployment.changed":
		return factOf(e, &inventoryv1.DeploymentChanged{}, func(m *inventoryv1.DeploymentChanged) string { return m.GetDeployment().GetCertificateId() }, c.deploymentChanged)
	default:
		return fact{}, outbox.Reject(fmt.Errorf("event type %q is not for the renewal scheduler", e.GetType()))
	}
}

func factOf[M proto.Message](e *eventv1.Event, m M, certificateID func(M) string, apply func(context.Context, *store.Tx, M) error) (fact, error) {
	if err := decode(e, m); err != nil {
		return fact{}, err
	}
	return fact{event: e, certificateID: certificateID(m), apply: func(ctx context.Context, tx *store.Tx) error { return apply(ctx, tx, m) }}, nil
}

// certificateFact is an event about a certificate as a whole, which has a plan from then on.
func (c *Core) certificateFact(e *eventv1.Event, apply func(context.Context, *store.Tx, *inventoryv1.CertificateChanged) error) (fact, error) {
	m := &inventoryv1.CertificateChanged{}
	f, err := factOf(e, m, func(m *inventoryv1.CertificateChanged) string { return m.GetCertificate().GetId() }, apply)
	f.plan = c.newPlan(m.GetCertificate(), cmp.Or(m.GetActor().GetId(), system))
	return f, err
}

func decode(e *eventv1.Event, into proto.Message) error {
	if err := e.GetPayload().UnmarshalTo(into); err != nil {
		return outbox.Reject(fmt.Errorf("payload of %s: %w", e.GetType(), err))
	}
	return nil
}

// onBehalf makes audit events of what follows name who caused it.
func onBehalf(ctx context.Context, a *typev1.Actor) context.Context {
	kinds := map[typev1.Actor_Type]rpcctx.CallerType{
		typev1.Actor_USER: rpcctx.User, typev1.Actor_AGENT: rpcctx.Agent, typev1.Actor_SERVICE: rpcctx.Service, typev1.Actor_ANONYMOUS: rpcctx.Anonymous,
	}
	kind, ok := kinds[a.GetType()]
	if !ok {
		return ctx
	}
	return rpcctx.WithOnBehalfOf(ctx, rpcctx.Caller{Type: kind, ID: a.GetId()})
}

// certificateCreated opens the ISSUE job. Its keys are those that the certificate has when the job starts.
func (c *Core) certificateCreated(ctx context.Context, tx *store.Tx, e *inventoryv1.CertificateChanged) error {
	cert := e.GetCertificate()
	by := cmp.Or(e.GetActor().GetId(), system)
	p, err := c.ensurePlan(ctx, tx, cert, by)
	if err != nil {
		return err
	}
	if closed(p.CertificateStatus) || p.State == store.PlanEnded {
		return nil
	}
	changed := wish(p, cert, by)
	if err := c.refreshPlan(ctx, tx, p); err != nil {
		return err
	}
	policy, err := policyOf(ctx, tx, p.PolicyID)
	if err != nil {
		return err
	}
	_, err = c.openJob(onBehalf(ctx, e.GetActor()), tx, opening{
		kind: store.Issue, certificateID: cert.GetId(), requestedBy: by, policy: policy,
	})
	if errors.Is(err, store.ErrOpen) {
		// Somebody was quicker than this event, with a CSR perhaps, which stays. Who created the certificate has asked for it
		// all the same.
		return c.followOpen(ctx, tx, change{certificateID: cert.GetId(), by: by, subject: changed, asked: true})
	}
	return err
}

// certificateUpdated follows the policy, has keys made for agents that have none, and has issued what is wanted now.
func (c *Core) certificateUpdated(ctx context.Context, tx *store.Tx, e *inventoryv1.CertificateChanged) error {
	cert := e.GetCertificate()
	by := cmp.Or(e.GetActor().GetId(), system)
	p, err := c.ensurePlan(ctx, tx, cert, by)
	if err != nil || p.State == store.PlanEnded {
		return err
	}
	p.PolicyID, p.CertificateStatus = cert.GetPolicyId(), cert.GetStatus().String()
	changed := wish(p, cert, by)
	if changed {
		p.Reissue = "its names, issuer, profile or key algorithm were changed by " + by
	}
	if err := c.refreshPlan(ctx, tx, p); err != nil || closed(p.CertificateStatus) {
		return err
	}
	ctx = onBehalf(ctx, e.GetActor())
	err = c.followOpen(ctx, tx, change{certificateID: cert.GetId(), by: by, subject: changed, agents: e.GetAgentsWithoutVersion()})
	switch {
	case !errors.Is(err, store.ErrNotFound):
		return err
	case changed:
		return c.reissue(ctx, tx, p, by)
	case len(e.GetAgentsWithoutVersion()) > 0:
		return c.issueForAgents(ctx, tx, p, e)
	default:
		return nil
	}
}

// issueForAgents opens a job for the keys of those agents only; while a reissue is outstanding, for all.
func (c *Core) issueForAgents(ctx context.Context, tx *store.Tx, p *store.Plan, e *inventoryv1.CertificateChanged) error {
	by := cmp.Or(e.GetActor().GetId(), system)
	if p.Reissue != "" {
		return c.reissue(ctx, tx, p, by)
	}
	policy, err := policyOf(ctx, tx, p.PolicyID)
	if err != nil {
		return err
	}
	_, err = c.openJob(ctx, tx, opening{
		kind: store.Issue, certificateID: p.CertificateID, requestedBy: by, policy: policy, agents: e.GetAgentsWithoutVersion(),
	})
	return err
}

// certificateClosed ends all work on a revoked or archived certificate.
func (c *Core) certificateClosed(ctx context.Context, tx *store.Tx, e *inventoryv1.CertificateChanged) error {
	cert := e.GetCertificate()
	status := cert.GetStatus().String()
	if !closed(status) {
		return nil // only a version was revoked
	}
	p, err := c.ensurePlan(ctx, tx, cert, cmp.Or(e.GetActor().GetId(), system))
	if err != nil {
		return err
	}
	p.CertificateStatus = status
	if err := c.refreshPlan(ctx, tx, p); err != nil {
		return err
	}
	jobs, err := tx.OpenJobs(ctx, cert.GetId())
	if err != nil || len(jobs) == 0 {
		return err
	}
	for _, j := range jobs {
		err := c.end(onBehalf(ctx, e.GetActor()), tx, j, ending{transition: c.cancel(), action: "job.cancelled", byPerson: true,
			problem: store.Problem{Reason: "CERTIFICATE_" + status, Message: "the certificate was " + status}})
		if err != nil {
			return err
		}
	}
	tx.Changed(store.Jobs)
	return nil
}

// certificateExpired notes the status; the plan goes on, since an expired certificate can be renewed.
func (c *Core) certificateExpired(ctx context.Context, tx *store.Tx, e *inventoryv1.CertificateChanged) error {
	p, err := c.ensurePlan(ctx, tx, e.GetCertificate(), cmp.Or(e.GetActor().GetId(), system))
	if err != nil || p.State == store.PlanEnded {
		return err
	}
	p.CertificateStatus = e.GetCertificate().GetStatus().String()
	return c.refreshPlan(ctx, tx, p)
}

// versionStored is the success of a key, and the ground of the next plan.
func (c *Core) versionStored(ctx context.Context, tx *store.Tx, e *inventoryv1.VersionStored) error {
	p, err := tx.LockPlan(ctx, e.GetCertificateId())
	if err != nil {
		return fmt.Errorf("lock plan: %w", err) // "certificate.created" comes first; this one comes again
	}
	tx.SavePlanKeys(store.PlanKey{
		CertificateID: p.CertificateID, AgentID: e.GetAgentId(), Version: e.GetVersion(), NotBefore: e.GetNotBefore().AsTime(), NotAfter: e.GetNotAfter().AsTime(),
	})
	if p.State != store.PlanEnded {
		p.CertificateStatus = inventoryv1.Certificate_ACTIVE.String()
	}
	if err := c.refreshPlan(ctx, tx, p); err != nil {
		return err
	}
	return c.keyStored(ctx, tx, e)
}

// keyStored ends the wait of a job's key for its version.
func (c *Core) keyStored(ctx context.Context, tx *store.Tx, e *inventoryv1.VersionStored) error {
	k, j, err := c.lockKey(ctx, tx, e.GetCertificateId(), func(k *store.Key) bool { return k.OrderID == e.GetOrderId() && k.OrderID != "" })
	if err != nil || j == nil || k.State == store.KeyDone {
		return err
	}
	k.State, k.Version, k.Error, k.Permanent = store.KeyDone, e.GetVersion(), store.Problem{}, false
	if err := tx.SaveKey(ctx, k); err != nil {
		return err
	}
	if err := c.settle(ctx, tx, j); err != nil {
		return err
	}
	tx.Changed(store.Jobs)
	return nil
}

// lockKey finds a key of an open job, locked; both are nil when there is none.
func (c *Core) lockKey(ctx context.Context, tx *store.Tx, certificateID string, is func(*store.Key) bool) (*store.Key, *store.Job, error) {
	jobs, err := tx.OpenJobs(ctx, certificateID)
	if err != nil {
		return nil, nil, err
	}
	for _, j := range jobs {
		keys, err := tx.Keys(ctx, j.ID)
		if err != nil {
			return nil, nil, err
		}
		if i := slices.IndexFunc(keys, is); i >= 0 {
			return keys[i], j, nil
		}
	}
	return nil, nil, nil
}

// taskFinished takes an agent's CSR, or why there is none.
func (c *Core) taskFinished(ctx context.Context, tx *store.Tx, e *inventoryv1.TaskFinished) error {
	k, j, err := c.lockKey(ctx, tx, e.GetCertificateId(), func(k *store.Key) bool { return k.TaskID == e.GetTaskId() && k.TaskID != "" })
	if err != nil || j == nil || k.State != store.KeyAwaitingCSR || k.CsrPEM != "" {
		return err
	}
	if gone, err := c.forgetRetired(ctx, tx, k, e); err != nil {
		return err
	} else if gone {
		tx.Changed(store.Jobs)
		return c.settle(ctx, tx, j)
	}
	if e.GetCsrPem() == "" {
		p := store.Problem{Reason: cmp.Or(e.GetProblem().GetReason(), "CSR_FAILED"), Message: e.GetProblem().GetMessage()}
		err = c.failKey(ctx, tx, j, k, failure{problem: p, permanent: e.GetPermanent()})
	} else {
		k.CsrPEM = e.GetCsrPem()
		if err = tx.SaveKey(ctx, k); err == nil {
			err = c.settle(ctx, tx, j)
		}
	}
	if err != nil {
		return err
	}
	tx.Changed(store.Jobs)
	return nil
}

// orderChanged takes what became of an order.
func (c *Core) orderChanged(ctx context.Context, tx *store.Tx, e *issuancev1.OrderChanged) error {
	o := e.GetOrder()
	k, j, err := c.lockKey(ctx, tx, o.GetCertificateId(), func(k *store.Key) bool { return k.OrderID == o.GetId() && k.OrderID != "" })
	if err != nil || j == nil {
		return err
	}
	before := j.Revision
	if o.GetStatus() == issuancev1.Order_PENDING && o.GetLastError().GetReason() == "" && j.State == store.AwaitingCA && j.Error.Reason != "" {
		j.Error = store.Problem{} // what the order waited for is over
		if err := tx.SaveJob(ctx, j); err != nil {
			return err
		}
	}
	if err := c.applyOrder(ctx, tx, j, k, o); err != nil || j.Revision == before {
		return err
	}
	tx.Changed(store.Jobs)
	return nil
}

// deploymentChanged moves the DEPLOY job that asked for it, and opens one for an endpoint that serves something else.
func (c *Core) deploymentChanged(ctx context.Context, tx *store.Tx, e *inventoryv1.DeploymentChanged) error {
	d := e.GetDeployment()
	p, err := tx.LockPlan(ctx, d.GetCertificateId())
	if err != nil {
		return err
	}
	j, err := tx.OpenDeployJob(ctx, d.GetCertificateId(), d.GetTargetId())
	switch {
	case errors.Is(err, store.ErrNotFound):
		return c.correctDrift(ctx, tx, p, d)
	case err != nil:
		return err
	case j.ID != e.GetRequestKey() || j.State != store.Running:
		return nil
	}
	if j, err = tx.LockJob(ctx, j.ID); err != nil {
		return err
	}
	before := j.Revision
	if err := c.applyDeployment(ctx, tx, j, d); err != nil || j.Revision == before {
		return err
	}
	tx.Changed(store.Jobs)
	return nil
}

func (c *Core) correctDrift(ctx context.Context, tx *store.Tx, p *store.Plan, d *inventoryv1.Deployment) error {
	if d.GetStatus() != inventoryv1.Deployment_DRIFTED || closed(p.CertificateStatus) {
		return nil
	}
	policy, err := policyOf(ctx, tx, p.PolicyID)
	if err != nil || !policy.Automatic {
		return err
	}
	_, err = c.openDeployJob(ctx, tx, opening{
		kind: store.Deploy, certificateID: p.CertificateID, targetID: d.GetTargetId(), requestedBy: Drift, policy: policy,
	})
	return err
}
