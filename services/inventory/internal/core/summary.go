package core

import (
	"context"
	"errors"
	"time"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/tick"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	renewalschedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
	"github.com/certctl/certctl/services/inventory/internal/view"
)

// GetSummary answers counts by status. Every status is named, also those with none. When the scheduler is away it answers
// that, and not counts with those of jobs left out: a dashboard cannot tell "none" from "not known". Counts of many rows are reused
// for a while, here and at the scheduler.
func (c *Core) GetSummary(ctx context.Context) (*inventoryv1.GetSummaryResponse, error) {
	s, at, err := c.summary.Get(ctx)
	if err != nil {
		return nil, err
	}
	jobs, err := c.scheduler.CountJobs(ctx, &renewalschedulerv1.CountJobsRequest{})
	if err != nil {
		return nil, behind("renewalscheduler", err)
	}
	if counted := jobs.GetCountTime(); counted.IsValid() && counted.AsTime().Before(at) {
		at = counted.AsTime()
	}
	return &inventoryv1.GetSummaryResponse{
		Certificates: everyStatus(s.Certificates, inventoryv1.Certificate_Status_name),
		Agents:       everyStatus(s.Agents, inventoryv1.Agent_Status_name),
		Deployments:  everyStatus(s.Deployments, inventoryv1.Deployment_Status_name),
		Jobs:         jobs.GetJobs(), Stuck: s.Stuck + jobs.GetStuck(), CountTime: view.Time(&at),
		CertificatesExpiring_7D: s.Expiring[0], CertificatesExpiring_30D: s.Expiring[1],
	}, nil
}

// SummaryLoop counts for the summary, so that no question waits for that.
func (c *Core) SummaryLoop() tick.Loop {
	return c.summary.Loop("summary", "counts certificates, agents and deployments, so that no question waits for that")
}

// countAll counts for the summary.
func (c *Core) countAll(ctx context.Context) (store.Summary, error) {
	now := time.Now()
	return c.store.Summary(ctx, []time.Time{now.AddDate(0, 0, 7), now.AddDate(0, 0, 30)}, now.Add(-stuckAfter))
}

// everyStatus has each status that there is, also those that nothing has.
func everyStatus(counts map[string]int32, names map[int32]string) map[string]int32 {
	out := make(map[string]int32, len(names))
	for value, name := range names {
		if value != 0 {
			out[name] = counts[name]
		}
	}
	return out
}

// ListDiscoveredCertificates lists what was found.
func (c *Core) ListDiscoveredCertificates(ctx context.Context, r *inventoryv1.ListDiscoveredCertificatesRequest) (*inventoryv1.ListDiscoveredCertificatesResponse, error) {
	statuses, err := enumNames(r.GetStatus(), inventoryv1.DiscoveredCertificate_Status_name)
	if err != nil {
		return nil, err
	}
	p, err := listPage(ctx, c, r, lister[store.DiscoveredCertificate]{
		collection: store.Discovered,
		rows: func(ctx context.Context, s store.Slice) ([]store.DiscoveredCertificate, error) {
			return c.store.ListDiscovered(ctx, statuses, s)
		},
		count: func(ctx context.Context) (int32, error) { return c.store.CountDiscovered(ctx, statuses) },
		cursor: func(f store.DiscoveredCertificate, field string) (page.Value, page.Value) {
			if field == "not_after" {
				return page.TimeValue(f.NotAfter), page.TextValue(f.ID)
			}
			return page.TimeValue(f.LastSeenTime), page.TextValue(f.ID)
		},
	})
	if err != nil {
		return nil, err
	}
	return &inventoryv1.ListDiscoveredCertificatesResponse{
		DiscoveredCertificates: view.Each(p.rows, view.Discovered), NextPageToken: p.next, TotalSize: p.total,
	}, nil
}

// GetDiscoveredCertificate answers one.
func (c *Core) GetDiscoveredCertificate(ctx context.Context, r *inventoryv1.GetDiscoveredCertificateRequest) (*inventoryv1.GetDiscoveredCertificateResponse, error) {
	f, err := c.store.GetDiscovered(ctx, r.GetId())
	if errors.Is(err, store.ErrNotFound) {
		return nil, errs.New(errs.NotFound, "DISCOVERED_CERTIFICATE_NOT_FOUND", "discovered certificate %s not found", r.GetId())
	}
	if err != nil {
		return nil, err
	}
	return &inventoryv1.GetDiscoveredCertificateResponse{DiscoveredCertificate: view.Discovered(f)}, nil
}

// BatchGetCertificates answers certificates with who holds keys for them. One without targets has its caller as key holder.
func (c *Core) BatchGetCertificates(ctx context.Context, r *inventoryv1.BatchGetCertificatesRequest) (*inventoryv1.BatchGetCertificatesResponse, error) {
	rows, err := c.store.GetCertificates(ctx, r.GetIds())
	if err != nil {
		return nil, err
	}
	holders, err := c.store.KeyHolders(ctx, r.GetIds())
	if err != nil {
		return nil, err
	}
	callers, err := c.store.CallerVersions(ctx, r.GetIds())
	if err != nil {
		return nil, err
	}
	byID := map[string][]*inventoryv1.KeyHolder{}
	for _, h := range holders {
		byID[h.CertificateID] = append(byID[h.CertificateID], keyHolder(h))
	}
	caller := map[string]*inventoryv1.KeyHolder{}
	for _, h := range callers {
		caller[h.CertificateID] = keyHolder(h)
	}
	out := &inventoryv1.BatchGetCertificatesResponse{}
	for _, row := range rows {
		record := &inventoryv1.CertificateRecord{Certificate: view.Certificate(row), KeyHolders: byID[row.ID]}
		if len(row.TargetIDs) == 0 {
			own := caller[row.ID]
			if own == nil {
				own = &inventoryv1.KeyHolder{}
			}
			record.KeyHolders = append(record.KeyHolders, own)
		}
		out.Records = append(out.Records, record)
	}
	return out, nil
}

func keyHolder(h store.KeyHolder) *inventoryv1.KeyHolder {
	return &inventoryv1.KeyHolder{
		AgentId: h.AgentID, Version: h.Version, NotAfter: view.Time(h.NotAfter), AgentName: h.AgentName, AgentStatus: h.AgentStatus,
	}
}

// BatchGetDeployments answers the deployments of certificates.
func (c *Core) BatchGetDeployments(ctx context.Context, r *inventoryv1.BatchGetDeploymentsRequest) (*inventoryv1.BatchGetDeploymentsResponse, error) {
	rows, err := c.store.DeploymentsOf(ctx, r.GetCertificateIds())
	if err != nil {
		return nil, err
	}
	return &inventoryv1.BatchGetDeploymentsResponse{Deployments: view.Each(rows, view.Deployment)}, nil
}

// CountReferences counts certificates in care that use an issuer, profile or policy.
func (c *Core) CountReferences(ctx context.Context, r *inventoryv1.CountReferencesRequest) (*inventoryv1.CountReferencesResponse, error) {
	if r.GetIssuerId() == "" && r.GetProfileId() == "" && r.GetPolicyId() == "" {
		return nil, errs.Field("issuer_id", "one of issuer_id, profile_id and policy_id is needed")
	}
	n, err := c.store.CountReferences(ctx, r.GetIssuerId(), r.GetProfileId(), r.GetPolicyId())
	return &inventoryv1.CountReferencesResponse{Certificates: n}, err
}
