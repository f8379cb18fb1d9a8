package core

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/certctl/certctl/pkg/batch"
	"github.com/certctl/certctl/pkg/pg"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

// reports are the reports that share a transaction, and what they are about.
type reports struct {
	*Core
	t           *store.Tx
	calls       []reportCall
	out         []batch.Outcome[*agentv1.ReportAssignmentResponse]
	rows        map[string]store.Assignment
	deployments map[string]store.Deployment
	versions    map[store.Fingerprint]int32
}

// takeReports takes progress and results of work. However many there are, what they are about is read, locked and ended together; only what
// an agent has failed in or seen wrong is written for itself.
func (c *Core) takeReports(ctx context.Context, list []reportCall) (out []batch.Outcome[*agentv1.ReportAssignmentResponse], err error) {
	err = c.store.Tx(ctx, func(ctx context.Context, t *store.Tx) error {
		r := &reports{Core: c, t: t, calls: list, out: make([]batch.Outcome[*agentv1.ReportAssignmentResponse], len(list))}
		out = r.out
		if err := r.read(ctx); err != nil {
			return err
		}
		finished, err := r.finish(ctx)
		if err != nil {
			return err
		}
		return r.follow(ctx, finished)
	})
	return out, err
}

// read reads the work and locks its deployments. What is not the agent's, or cannot be said of the work, is refused.
func (r *reports) read(ctx context.Context) error {
	var ids, deployments []string
	for _, call := range r.calls {
		ids = append(ids, call.request.GetAssignmentId())
	}
	rows, err := r.t.GetAssignments(ctx, ids)
	if err != nil {
		return err
	}
	r.rows = byID(rows, func(a store.Assignment) string { return a.ID })
	for i, call := range r.calls {
		r.out[i].Value = &agentv1.ReportAssignmentResponse{}
		row, ok := r.rows[canonical(call.request.GetAssignmentId())]
		switch {
		case !ok || row.AgentID != call.agentID:
			// Another agent's work is not there: who guesses an id learns nothing.
			r.out[i].Err = notFound("assignment", call.request.GetAssignmentId())
		case call.request.GetProgress() == nil:
			r.out[i].Err = checkReport(row, call.request)
		}
		if r.out[i].Err == nil && row.DeploymentID != "" {
			deployments = append(deployments, row.DeploymentID)
		}
	}
	if len(deployments) == 0 {
		return nil
	}
	locked, err := r.t.LockDeploymentsByID(ctx, deployments)
	r.deployments = byID(locked, func(d store.Deployment) string { return d.ID })
	return err
}

// row is the work of a call, and its deployment.
func (r *reports) row(i int) (store.Assignment, store.Deployment) {
	row := r.rows[canonical(r.calls[i].request.GetAssignmentId())]
	return row, r.deployments[row.DeploymentID]
}

// finish ends the work that results are about and tells which calls have ended theirs. The deployments are locked before the assignments, as
// everywhere.
func (r *reports) finish(ctx context.Context) ([]int, error) {
	var work []store.Finish
	for i, call := range r.calls {
		row, d := r.row(i)
		switch {
		case r.out[i].Err != nil || call.request.GetProgress() != nil:
		case row.DeploymentID != "" && d.ID == "":
			r.out[i].Value.Stale = true
		default:
			work = append(work, store.Finish{ID: row.ID, LeaseID: call.request.GetLeaseId(), Status: statusOf(call.request)})
		}
	}
	ended, err := r.t.FinishAssignments(ctx, work)
	if err != nil {
		return nil, err
	}
	var finished []int
	for i, call := range r.calls {
		row, _ := r.row(i)
		if r.out[i].Err != nil || call.request.GetProgress() != nil || r.out[i].Value.GetStale() {
			continue
		}
		lease := canonical(call.request.GetLeaseId())
		if at := slices.Index(ended, store.Finish{ID: row.ID, LeaseID: lease, Status: statusOf(call.request)}); at >= 0 {
			ended = slices.Delete(ended, at, at+1)
			finished = append(finished, i)
			row.Status, row.LeaseID = statusOf(call.request), lease
			r.rows[row.ID] = row
			continue
		}
		// The same report again is no news; one under another lease comes too late.
		r.out[i].Value.Stale = row.LeaseID != lease || row.Status != store.AssignmentDone && row.Status != store.AssignmentFailed
	}
	return finished, nil
}

func statusOf(r *agentv1.ReportAssignmentRequest) string {
	if r.GetFailure() != nil {
		return store.AssignmentFailed
	}
	return store.AssignmentDone
}

// follow does what follows from reports.
func (r *reports) follow(ctx context.Context, finished []int) error {
	if err := r.recognise(ctx, finished); err != nil {
		return err
	}
	var serving []store.Serving
	of := map[string]int{}
	for _, i := range finished {
		row, d := r.row(i)
		request := r.calls[i].request
		within := r.calls[i].within(r.t)
		var err error
		switch {
		case row.Kind == store.KindCreateCsr:
			r.csrResult(within, r.t, row, request)
		case row.Kind == store.KindVerify:
			err = r.verifyResult(within, r.t, d, request)
		case request.GetFailure() == nil && r.sight(d, request.GetDeploy()).Version == row.Version:
			serving = append(serving, store.Serving{ID: d.ID, Sighting: r.sight(d, request.GetDeploy())})
			of[d.ID] = i
		default:
			err = r.deployResult(within, r.t, d, request)
		}
		if err != nil {
			return pg.OfItem(err)
		}
	}
	moved, err := r.t.ServeDeployments(ctx, serving)
	if err != nil {
		return err
	}
	for _, d := range moved {
		r.served(r.calls[of[d.ID]].within(r.t), r.t, d)
	}
	return r.progress(ctx)
}

// recognise finds the versions that successful deployments have seen served.
func (r *reports) recognise(ctx context.Context, finished []int) (err error) {
	var seen []store.Fingerprint
	for _, i := range finished {
		row, d := r.row(i)
		if f := r.calls[i].request.GetDeploy().GetServedFingerprintSha256(); f != "" && row.Kind == store.KindDeploy {
			seen = append(seen, store.Fingerprint{CertificateID: d.CertificateID, SHA256: strings.ToLower(f)})
		}
	}
	r.versions, err = r.t.VersionsByFingerprint(ctx, seen)
	return err
}

func (r *reports) sight(d store.Deployment, result *agentv1.DeployResult) store.Sighting {
	s := r.seen(result)
	s.Version = r.versions[store.Fingerprint{CertificateID: d.CertificateID, SHA256: s.Fingerprint}]
	return s
}

// progress makes leases longer.
func (r *reports) progress(ctx context.Context) error {
	until := time.Now().Add(r.cfg.AssignmentLease)
	for i, call := range r.calls {
		if r.out[i].Err != nil || call.request.GetProgress() == nil {
			continue
		}
		row, d := r.row(i)
		if err := r.prolong(ctx, r.t, row, d, call.request, until, r.out[i].Value); err != nil {
			return pg.OfItem(err)
		}
	}
	return nil
}
