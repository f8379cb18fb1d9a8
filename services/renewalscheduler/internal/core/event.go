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

// Events that come many at a time.
const (
	eventVersionStored = "version.stored"
	eventOrderChanged  = "order.changed"
)

// Apply applies facts of a peer, in their order, in the transaction that remembers them.
func (c *Core) Apply(ctx context.Context, tx *store.Tx, events []*eventv1.Event) error {
	for len(events) > 0 {
		n := alike(events)
		var err error
		switch events[0].GetType() {
		case eventVersionStored:
			err = c.versionsStored(ctx, tx, events[:n])
		case eventOrderChanged:
			err = c.ordersChanged(ctx, tx, events[:n])
		default:
			n = 1
			err = c.applyOne(rpcctx.WithRequestID(ctx, events[0].GetRequestId()), tx, events[0])
		}
		if err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

// alike counts the events at the front that have one type.
func alike(events []*eventv1.Event) int {
	n := slices.IndexFunc(events, func(e *eventv1.Event) bool { return e.GetType() != events[0].GetType() })
	if n < 0 {
		return len(events)
	}
	return n
}

func (c *Core) applyOne(ctx context.Context, tx *store.Tx, e *eventv1.Event) error {
	switch e.GetType() {
	case "certificate.created":
		return payload(ctx, tx, e, &inventoryv1.CertificateChanged{}, c.certificateCreated)
	case "certificate.updated":
		return payload(ctx, tx, e, &inventoryv1.CertificateChanged{}, c.certificateUpdated)
	case "certificate.archived", "certificate.revoked":
		return payload(ctx, tx, e, &inventoryv1.CertificateChanged{}, c.certificateClosed)
	case "version.revoked":
		return payload(ctx, tx, e, &inventoryv1.CertificateChanged{}, c.versionRevoked)
	case "certificate.expired":
		return payload(ctx, tx, e, &inventoryv1.CertificateChanged{}, c.certificateExpired)
	case "task.finished":
		return payload(ctx, tx, e, &inventoryv1.TaskFinished{}, c.taskFinished)
	case "deployment.changed":
		return payload(ctx, tx, e, &inventoryv1.DeploymentChanged{}, c.deploymentChanged)
	default:
		return outbox.Reject(fmt.Errorf("event type %q is not for the renewal scheduler", e.GetType()))
	}
}

func decode(e *eventv1.Event, into proto.Message) error {
	if err := e.GetPayload().UnmarshalTo(into); err != nil {
		return outbox.Reject(fmt.Errorf("payload of %s: %w", e.GetType(), err))
	}
	return nil
}

func payload[M proto.Message](ctx context.Context, tx *store.Tx, e *eventv1.Event, into M, apply func(context.Context, *store.Tx, M) error) error {
	if err := decode(e, into); err != nil {
		return err
	}
	if err := apply(ctx, tx, into); err != nil {
		return fmt.Errorf("apply %s of %s: %w", e.GetType(), e.GetResourceId(), err)
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

// versionsStored is the success of keys, and the ground of the next plans. However many there are, plans are read and written
// together.
func (c *Core) versionsStored(ctx context.Context, tx *store.Tx, events []*eventv1.Event) error {
	var stored []*inventoryv1.VersionStored
	var certificates, orders []string
	for _, e := range events {
		m := &inventoryv1.VersionStored{}
		if err := decode(e, m); err != nil {
			return err
		}
		stored = append(stored, m)
		certificates, orders = append(certificates, m.GetCertificateId()), append(orders, m.GetOrderId())
	}
	plans, err := tx.LockPlans(ctx, certificates)
	if err != nil {
		return err
	}
	for _, id := range certificates {
		if !slices.ContainsFunc(plans, func(p *store.Plan) bool { return p.CertificateID == id }) {
			return fmt.Errorf("plan of %s: %w", id, store.ErrNotFound) // "certificate.created" comes first; this one comes again
		}
	}
	if err := tx.SavePlanKeys(ctx, planKeys(stored)); err != nil {
		return err
	}
	for _, p := range plans {
		if p.State != store.PlanEnded {
			p.CertificateStatus = inventoryv1.Certificate_ACTIVE.String()
		}
	}
	if err := c.refreshPlans(ctx, tx, plans); err != nil {
		return err
	}
	waited, err := tx.OrdersWithKey(ctx, orders)
	if err != nil {
		return err
	}
	for i, m := range stored {
		if !slices.Contains(waited, m.GetOrderId()) {
			continue
		}
		if err := c.keyStored(rpcctx.WithRequestID(ctx, events[i].GetRequestId()), tx, m); err != nil {
			return fmt.Errorf("apply %s of %s: %w", events[i].GetType(), events[i].GetResourceId(), err)
		}
	}
	return nil
}

// planKeys gives the newest version for each key.
func planKeys(stored []*inventoryv1.VersionStored) []store.PlanKey {
	newest := make(map[[2]string]store.PlanKey, len(stored))
	for _, m := range stored {
		of := [2]string{m.GetCertificateId(), m.GetAgentId()}
		if known, ok := newest[of]; !ok || known.Version < m.GetVersion() {
			newest[of] = store.PlanKey{CertificateID: of[0], AgentID: of[1], Version: m.GetVersion(), NotBefore: m.GetNotBefore().AsTime(), NotAfter: m.GetNotAfter().AsTime()}
		}
	}
	return slices.Collect(maps.Values(newest))
}

// keyStored ends the wait of a job's key for its version.
func (c *Core) keyStored(ctx context.Context, tx *store.Tx, e *inventoryv1.VersionStored) error {
	k, j, err := c.lockKey(ctx, tx, e.GetCertificateId(), func() (*store.Key, error) { return tx.KeyByOrder(ctx, e.GetOrderId()) })
	if err != nil || j == nil || j.State.Final() || k.State == store.KeyDone {
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

// ordersChanged takes what became of orders. Those that no job waits for are nobody's matter.
func (c *Core) ordersChanged(ctx context.Context, tx *store.Tx, events []*eventv1.Event) error {
	var changed []*issuancev1.OrderChanged
	var orders []string
	for _, e := range events {
		m := &issuancev1.OrderChanged{}
		if err := decode(e, m); err != nil {
			return err
		}
		changed, orders = append(changed, m), append(orders, m.GetOrder().GetId())
	}
	waited, err := tx.OrdersWithKey(ctx, orders)
	if err != nil {
		return err
	}
	for i, m := range changed {
		if !slices.Contains(waited, m.GetOrder().GetId()) {
			continue
		}
		if err := c.orderChanged(rpcctx.WithRequestID(ctx, events[i].GetRequestId()), tx, m); err != nil {
			return fmt.Errorf("apply %s of %s: %w", events[i].GetType(), events[i].GetResourceId(), err)
		}
	}
	return nil
}

// lockKey finds a key and locks its job; both are nil when there is none. The key is read again under the lock.
func (c *Core) lockKey(ctx context.Context, tx *store.Tx, certificateID string, find func() (*store.Key, error)) (*store.Key, *store.Job, error) {
	k, err := find()
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	j, err := c.lockJob(ctx, tx, k.JobID, certificateID)
	if err != nil {
		return nil, nil, err
	}
	k, err = find()
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil, nil // a new try has taken other ids
	}
	return k, j, err
}

// taskFinished takes an agent's CSR, or why there is none.
func (c *Core) taskFinished(ctx context.Context, tx *store.Tx, e *inventoryv1.TaskFinished) error {
	k, j, err := c.lockKey(ctx, tx, e.GetCertificateId(), func() (*store.Key, error) { return tx.KeyByTask(ctx, e.GetTaskId()) })
	if err != nil || j == nil || j.State.Final() || k.State != store.KeyAwaitingCSR || k.CsrPEM != "" {
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
	k, j, err := c.lockKey(ctx, tx, o.GetCertificateId(), func() (*store.Key, error) { return tx.KeyByOrder(ctx, o.GetId()) })
	if err != nil || j == nil || j.State.Final() {
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
