// Package api is the gRPC edge of the renewal scheduler: it translates, asks the core, and translates back.
package api

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/reuse"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/tick"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	renewalschedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/core"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
)

// Deps are what the edge works with.
type Deps struct {
	Core      *core.Core
	Store     *store.Store
	Codec     *page.Codec
	Sink      eventv1.EventSinkServiceServer
	Revisions RevisionReader
	// Now is the clock of the core.
	Now func() time.Time
}

// RevisionReader answers the revision of a collection.
type RevisionReader interface {
	GetRevision(ctx context.Context, r *eventv1.GetRevisionRequest) (*eventv1.GetRevisionResponse, error)
}

// Server serves all gRPC services of the renewal scheduler.
type Server struct {
	core          *core.Core
	store         *store.Store
	codec         *page.Codec
	sink          eventv1.EventSinkServiceServer
	revisions     RevisionReader
	now           func() time.Time
	jobSorting    *page.Sorting
	policySorting *page.Sorting
	counts        *reuse.Value[store.JobCounts]
}

// New makes a server.
func New(deps Deps) (*Server, error) {
	s := &Server{core: deps.Core, store: deps.Store, codec: deps.Codec, sink: deps.Sink, revisions: deps.Revisions, now: deps.Now}
	s.counts = reuse.New(reuse.Config{}, func(ctx context.Context) (store.JobCounts, error) {
		return s.store.CountJobs(ctx, s.now().Add(-StuckAfter))
	})
	var err error
	if s.jobSorting, err = jobSorting(); err != nil {
		return nil, fmt.Errorf("order of jobs: %w", err)
	}
	if s.policySorting, err = policySorting(); err != nil {
		return nil, fmt.Errorf("order of policies: %w", err)
	}
	return s, nil
}

// Register registers the services.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	renewalschedulerv1.RegisterJobServiceServer(r, &jobServer{Server: s})
	renewalschedulerv1.RegisterPolicyServiceServer(r, &policyServer{Server: s})
	renewalschedulerv1.RegisterSchedulerInternalServiceServer(r, &internalServer{Server: s})
	eventv1.RegisterEventSinkServiceServer(r, s.sink)
	eventv1.RegisterRevisionServiceServer(r, &revisionServer{reader: s.revisions})
}

type revisionServer struct {
	eventv1.UnimplementedRevisionServiceServer
	reader RevisionReader
}

// GetRevision answers the revision of a collection.
func (s *revisionServer) GetRevision(ctx context.Context, r *eventv1.GetRevisionRequest) (*eventv1.GetRevisionResponse, error) {
	return s.reader.GetRevision(ctx, r)
}

// AuthzTable says who may call what.
func AuthzTable() rpc.AuthzTable {
	everyone := rpc.Allow(rpcctx.RoleAdmin, rpcctx.RoleOperator, rpcctx.RoleViewer, rpcctx.RoleAuditor)
	operators := rpc.Allow(rpcctx.RoleAdmin, rpcctx.RoleOperator)
	admins := rpc.Allow(rpcctx.RoleAdmin)
	peers := rpc.Allow(rpcctx.RolePeer)
	const v1 = "/certctl.renewalscheduler.v1."
	return rpc.AuthzTable{
		v1 + "JobService/ListJobs":                       everyone,
		v1 + "JobService/GetJob":                         everyone,
		v1 + "JobService/ExplainCertificate":             everyone,
		v1 + "JobService/CancelJob":                      operators,
		v1 + "JobService/RetryJob":                       operators,
		v1 + "JobService/ApproveJob":                     operators,
		v1 + "JobService/RejectJob":                      operators,
		v1 + "JobService/RenewCertificate":               operators,
		v1 + "JobService/SubmitCsr":                      operators,
		v1 + "JobService/DeployCertificate":              operators,
		v1 + "PolicyService/ListPolicies":                everyone,
		v1 + "PolicyService/GetPolicy":                   everyone,
		v1 + "PolicyService/CreatePolicy":                admins,
		v1 + "PolicyService/UpdatePolicy":                admins,
		v1 + "PolicyService/DeletePolicy":                admins,
		v1 + "SchedulerInternalService/BatchGetPolicies": peers,
		v1 + "SchedulerInternalService/CountJobs":        peers,
		"/certctl.event.v1.EventSinkService/Deliver":     peers,
		"/certctl.event.v1.RevisionService/GetRevision":  peers,
	}
}

// listRequest is any list request.
type listRequest interface {
	proto.Message
	GetPageSize() int32
	GetPageToken() string
	GetOrderBy() string
	GetIncludeTotal() bool
}

// page reads what a list request says about its page.
func (s *Server) page(sorting *page.Sorting, collection string, req listRequest) (store.List, page.Scope, error) {
	var list store.List
	var err error
	if list.Size, err = page.Size(req.GetPageSize()); err != nil {
		return list, page.Scope{}, err
	}
	if list.Order, err = sorting.Parse(req.GetOrderBy()); err != nil {
		return list, page.Scope{}, err
	}
	scope := page.Scope{Collection: collection, Filters: page.FiltersOf(req), Order: list.Order.String()}
	list.Total = req.GetIncludeTotal()
	list.After, err = s.codec.Decode(req.GetPageToken(), scope)
	return list, scope, err
}

func size(l store.List, total int) *int32 {
	if !l.Total {
		return nil
	}
	n := int32(total)
	return &n
}

func protoName(s string) protoreflect.Name { return protoreflect.Name(s) }

type internalServer struct {
	renewalschedulerv1.UnimplementedSchedulerInternalServiceServer
	*Server
}

// BatchGetPolicies answers policies; unknown ids are left out.
func (s *internalServer) BatchGetPolicies(ctx context.Context, req *renewalschedulerv1.BatchGetPoliciesRequest) (*renewalschedulerv1.BatchGetPoliciesResponse, error) {
	policies, err := s.store.PoliciesByID(ctx, req.GetIds())
	if err != nil {
		return nil, err
	}
	res := &renewalschedulerv1.BatchGetPoliciesResponse{}
	for _, p := range policies {
		res.Policies = append(res.Policies, &renewalschedulerv1.PolicySummary{Id: p.ID, Name: p.Name})
	}
	return res, nil
}

// StuckAfter is how long a row may be overdue before it counts as stuck.
const StuckAfter = time.Hour

// CountLoop counts jobs, so that no question waits for that.
func (s *Server) CountLoop() tick.Loop {
	return s.counts.Loop("job count", "counts jobs, so that no question waits for that")
}

// CountJobs counts jobs by status; a status that no job has is 0. Counts of many jobs are reused for a while.
func (s *internalServer) CountJobs(ctx context.Context, _ *renewalschedulerv1.CountJobsRequest) (*renewalschedulerv1.CountJobsResponse, error) {
	counts, at, err := s.counts.Get(ctx)
	if err != nil {
		return nil, err
	}
	res := &renewalschedulerv1.CountJobsResponse{Jobs: map[string]int32{}, Stuck: int32(counts.Stuck), CountTime: timestamppb.New(at)}
	for value, state := range renewalschedulerv1.Job_Status_name {
		if value != int32(renewalschedulerv1.Job_STATUS_UNSPECIFIED) {
			res.Jobs[state] = int32(counts.ByState[state])
		}
	}
	return res, nil
}
