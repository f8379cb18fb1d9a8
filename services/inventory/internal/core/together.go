package core

import (
	"context"
	"slices"
	"time"

	"github.com/certctl/certctl/pkg/batch"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpcctx"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

// How many calls share a transaction at most. An agent may take up to maxAssignments with one.
const (
	listsTogether = 50
	callsTogether = 100
)

// together is what many agents ask and report at the same time. The calls that have come by the time of a transaction share it; each has
// its own answer, and when the transaction fails over one of them, each has its own.
type together struct {
	credentials *batch.Reads[string, store.Credential] // by hash
	tasks       *batch.Writes[taskCall, struct{}]
	lists       *batch.Writes[listCall, *agentv1.ListAssignmentsResponse]
	reports     *batch.Writes[reportCall, *agentv1.ReportAssignmentResponse]
}

// caller is whose call something is: events name it.
type caller struct {
	ctx context.Context //nolint:containedctx // of the call, for what is written about it
}

func callerOf(ctx context.Context) caller { return caller{context.WithoutCancel(ctx)} }

// within has what follows in a transaction be the call's.
func (c caller) within(t *store.Tx) context.Context {
	t.CausedBy(rpcctx.RequestID(c.ctx))
	return c.ctx
}

type taskCall struct {
	caller
	request *inventoryv1.CreateCsrTaskRequest
	payload []byte
}

type listCall struct {
	agentID string
	request *agentv1.ListAssignmentsRequest
}

type reportCall struct {
	caller
	agentID string
	request *agentv1.ReportAssignmentRequest
}

func newTogether(c *Core) *together {
	return &together{
		credentials: batch.NewReads(batch.ReadsConfig{}, func(ctx context.Context, hashes []string) (map[string]store.Credential, error) {
			list := make([][]byte, 0, len(hashes))
			for _, h := range hashes {
				list = append(list, []byte(h))
			}
			return c.store.GetCredentials(ctx, list)
		}),
		tasks: batch.NewWrites(callsTogether, func(ctx context.Context, list []taskCall) []batch.Outcome[struct{}] {
			return pg.AllOrEach(list, func(list []taskCall) ([]batch.Outcome[struct{}], error) { return c.createTasks(ctx, list) })
		}),
		lists: batch.NewWrites(listsTogether, func(ctx context.Context, list []listCall) []batch.Outcome[*agentv1.ListAssignmentsResponse] {
			return pg.AllOrEach(list, func(list []listCall) ([]batch.Outcome[*agentv1.ListAssignmentsResponse], error) {
				return c.lease(ctx, list)
			})
		}),
		reports: batch.NewWrites(callsTogether, func(ctx context.Context, list []reportCall) []batch.Outcome[*agentv1.ReportAssignmentResponse] {
			return pg.AllOrEach(list, func(list []reportCall) ([]batch.Outcome[*agentv1.ReportAssignmentResponse], error) {
				return c.takeReports(ctx, list)
			})
		}),
	}
}

// createTasks puts tasks into mailboxes. What is wrong with one is its outcome.
func (c *Core) createTasks(ctx context.Context, list []taskCall) (out []batch.Outcome[struct{}], err error) {
	var ids, certificates, agents []string
	for _, l := range list {
		ids, certificates, agents = append(ids, l.request.GetTaskId()), append(certificates, l.request.GetCsr().GetCertificateId()), append(agents, l.request.GetAgentId())
	}
	err = c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		out = make([]batch.Outcome[struct{}], len(list))
		known, err := t.GetAssignments(ctx, ids)
		if err != nil {
			return err
		}
		locked, err := t.LockCertificates(ctx, certificates)
		if err != nil {
			return err
		}
		statuses, err := t.AgentStatuses(ctx, agents)
		if err != nil {
			return err
		}
		tasks, rows := byID(known, func(a store.Assignment) string { return a.ID }), byID(locked, func(r store.Certificate) string { return r.ID })
		var work []store.Assignment
		for i, l := range list {
			a := store.Assignment{
				ID: canonical(l.request.GetTaskId()), AgentID: l.request.GetAgentId(), Kind: store.KindCreateCsr, CertificateID: l.request.GetCsr().GetCertificateId(),
				Payload: l.payload, DeadlineTime: l.request.GetDeadlineTime().AsTime(),
			}
			if other, ok := tasks[a.ID]; ok {
				out[i].Err = sameTask(other, l.request)
				continue
			}
			row, found := rows[a.CertificateID]
			if out[i].Err = mayMakeKey(a, row, found, statuses[a.AgentID]); out[i].Err == nil {
				work = append(work, a)
				tasks[a.ID] = a
			}
		}
		added, err := t.InsertAssignments(ctx, work)
		if err != nil {
			return err
		}
		for _, l := range list {
			id := canonical(l.request.GetTaskId())
			if i := slices.Index(added, id); i >= 0 {
				added = slices.Delete(added, i, i+1)
				audit(l.within(t), t, "task.created", resourceTask, id, map[string]any{
					"agent_id": l.request.GetAgentId(), "certificate_id": l.request.GetCsr().GetCertificateId(), "kind": store.KindCreateCsr,
				})
			}
		}
		return nil
	})
	return out, err
}

// mayMakeKey tells why no key is made for a certificate by an agent of a status; empty: there is no such agent.
func mayMakeKey(a store.Assignment, row store.Certificate, found bool, status string) error {
	switch {
	case !found:
		return notFound(resourceCertificate, a.CertificateID)
	case row.Final():
		return wrongState(resourceCertificate, row.ID, row.Status, "no key is made for it")
	case status == "":
		return notFound(resourceAgent, a.AgentID)
	case status == store.AgentRetired:
		return wrongState(resourceAgent, a.AgentID, status, "it takes no work")
	default:
		return nil
	}
}

func byID[T any](rows []T, id func(T) string) map[string]T {
	out := make(map[string]T, len(rows))
	for _, r := range rows {
		out[id(r)] = r
	}
	return out
}

// lease leases the open work of agents and puts together what they need. An agent that asks twice at once gets the same twice.
func (c *Core) lease(ctx context.Context, list []listCall) (out []batch.Outcome[*agentv1.ListAssignmentsResponse], err error) {
	err = c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		out = make([]batch.Outcome[*agentv1.ListAssignmentsResponse], len(list))
		until := time.Now().Add(c.cfg.AssignmentLease)
		leases := make([]store.Lease, 0, len(list))
		for _, l := range list {
			leases = append(leases, store.Lease{AgentID: l.agentID, After: l.request.GetAfterRevision(), Limit: limitOf(l.request)})
		}
		rows, err := t.LeaseAssignments(ctx, leases, until)
		if err != nil {
			return err
		}
		work, err := contentsOf(ctx, t, rows)
		if err != nil {
			return err
		}
		if err := startDeployments(ctx, t, rows, work, until); err != nil {
			return err
		}
		slices.SortFunc(rows, func(a, b store.Assignment) int { return int(a.Mailbox - b.Mailbox) })
		mailboxes := map[string][]store.Assignment{}
		for _, row := range rows {
			mailboxes[row.AgentID] = append(mailboxes[row.AgentID], row)
		}
		for i, l := range leases {
			if out[i].Value, err = c.answerList(ctx, t, l, mailboxes[l.AgentID], work, until); err != nil {
				return pg.OfItem(err)
			}
		}
		return nil
	})
	return out, err
}

func limitOf(r *agentv1.ListAssignmentsRequest) int {
	limit := int(r.GetMaxAssignments())
	if limit == 0 {
		limit = defaultAssignments
	}
	return min(limit, maxAssignments)
}

// answerList answers one agent with its work. When it has asked more than once, with other bounds, the rows may be more than it wants.
func (c *Core) answerList(ctx context.Context, t *store.Tx, l store.Lease, rows []store.Assignment, work contents, until time.Time) (*agentv1.ListAssignmentsResponse, error) {
	out := &agentv1.ListAssignmentsResponse{}
	last := l.After
	for _, row := range rows {
		if row.Mailbox <= l.After {
			continue
		}
		if len(out.Assignments) == l.Limit {
			break
		}
		a, err := assignment(work, row, until)
		if err != nil {
			return nil, err
		}
		out.Assignments = append(out.Assignments, a)
		last = row.Mailbox
	}
	if len(out.GetAssignments()) < l.Limit {
		return out, nil
	}
	open, err := t.CountOpenAfter(ctx, l.AgentID, last)
	out.More = open > 0
	return out, err
}
