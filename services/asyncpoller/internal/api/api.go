// Package api is asyncpoller's gRPC: it translates, says who may call, and asks the core.
package api

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

// The peers that may call.
const (
	issuance         = "issuance"
	renewalScheduler = "renewalscheduler"
)

// Deps is what the edge works with.
type Deps struct {
	Book core.Book
	Sink eventv1.EventSinkServiceServer
	Now  func() time.Time
	// Kick wakes the dispatch: something became due.
	Kick func()
}

// API serves asyncpoller's gRPC services.
type API struct{ deps Deps }

// New makes the edge.
func New(deps Deps) *API { return &API{deps: deps} }

// Register registers the services.
func (a *API) Register(r grpc.ServiceRegistrar) {
	asyncpollerv1.RegisterPollInternalServiceServer(r, &polls{API: a})
	eventv1.RegisterEventSinkServiceServer(r, &sink{API: a})
	// There is no collection here that anybody lists, so there is none with a revision.
	eventv1.RegisterRevisionServiceServer(r, revision.NewServer(nil))
}

// AuthzTable says who may call what.
func AuthzTable() rpc.AuthzTable {
	peers := rpc.Allow(rpcctx.RolePeer)
	return rpc.AuthzTable{
		asyncpollerv1.PollInternalService_CreatePoll_FullMethodName:    peers,
		asyncpollerv1.PollInternalService_PollNow_FullMethodName:       peers,
		asyncpollerv1.PollInternalService_CancelPoll_FullMethodName:    peers,
		asyncpollerv1.PollInternalService_BatchGetPolls_FullMethodName: peers,
		eventv1.EventSinkService_Deliver_FullMethodName:                peers,
		eventv1.RevisionService_GetRevision_FullMethodName:             peers,
	}
}

func onlyPeers(ctx context.Context, names ...string) error {
	if c := rpcctx.CallerFrom(ctx); c.Type != rpcctx.Service || !slices.Contains(names, c.ID) {
		return errs.New(errs.PermissionDenied, "PEER_NOT_ALLOWED", "only %s may call this method", strings.Join(names, " and "))
	}
	return nil
}

// polls serves PollInternalService.
type polls struct {
	asyncpollerv1.UnimplementedPollInternalServiceServer
	*API
}

// CreatePoll watches an order.
func (s *polls) CreatePoll(ctx context.Context, r *asyncpollerv1.CreatePollRequest) (*asyncpollerv1.CreatePollResponse, error) {
	if err := onlyPeers(ctx, issuance); err != nil {
		return nil, err
	}
	p, err := core.Begin(ctx, s.deps.Book, watchOf(r), s.deps.Now())
	if err != nil {
		return nil, err
	}
	s.deps.Kick()
	return &asyncpollerv1.CreatePollResponse{Poll: message(p)}, nil
}

// PollNow asks the CA about an order at once.
func (s *polls) PollNow(ctx context.Context, r *asyncpollerv1.PollNowRequest) (*asyncpollerv1.PollNowResponse, error) {
	if err := onlyPeers(ctx, issuance); err != nil {
		return nil, err
	}
	p, err := core.Hasten(ctx, s.deps.Book, r.GetOrderId())
	if err != nil {
		return nil, err
	}
	s.deps.Kick()
	return &asyncpollerv1.PollNowResponse{Poll: message(p)}, nil
}

// CancelPoll ends the watch of an order that was given up.
func (s *polls) CancelPoll(ctx context.Context, r *asyncpollerv1.CancelPollRequest) (*asyncpollerv1.CancelPollResponse, error) {
	if err := onlyPeers(ctx, issuance); err != nil {
		return nil, err
	}
	if err := core.Cancel(ctx, s.deps.Book, r.GetOrderId()); err != nil {
		return nil, err
	}
	return &asyncpollerv1.CancelPollResponse{}, nil
}

// BatchGetPolls answers those polls that there are.
func (s *polls) BatchGetPolls(ctx context.Context, r *asyncpollerv1.BatchGetPollsRequest) (*asyncpollerv1.BatchGetPollsResponse, error) {
	if err := onlyPeers(ctx, issuance, renewalScheduler); err != nil {
		return nil, err
	}
	list, err := core.Read(ctx, s.deps.Book, r.GetIncludeHistory(), r.GetOrderIds()...)
	if err != nil {
		return nil, err
	}
	out := &asyncpollerv1.BatchGetPollsResponse{Polls: make([]*asyncpollerv1.Poll, 0, len(list))}
	for _, p := range list {
		out.Polls = append(out.Polls, message(p))
	}
	return out, nil
}
