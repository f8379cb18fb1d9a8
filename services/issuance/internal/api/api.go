// Package api serves issuance's gRPC services: it translates between messages and package core, and says who may call.
package api

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/issuance/internal/core"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// Deps are what the handlers work with.
type Deps struct {
	Core  *core.Core
	Pages *page.Codec
	Sink  eventv1.EventSinkServiceServer
	// Revisions serves the revisions of the collections.
	Revisions eventv1.RevisionServiceServer
}

// API is all of issuance's gRPC services.
type API struct{ deps Deps }

// New makes the handlers.
func New(deps Deps) (*API, error) {
	if deps.Core == nil || deps.Pages == nil || deps.Sink == nil || deps.Revisions == nil {
		return nil, errors.New("issuance api: core, page tokens, sink and revisions are needed")
	}
	return &API{deps: deps}, nil
}

// Register adds the services to a server.
func (a *API) Register(r grpc.ServiceRegistrar) {
	issuancev1.RegisterIssuerServiceServer(r, &issuers{API: a})
	issuancev1.RegisterProfileServiceServer(r, &profiles{API: a})
	issuancev1.RegisterOrderServiceServer(r, &orders{API: a})
	issuancev1.RegisterCrlServiceServer(r, &crls{API: a})
	issuancev1.RegisterIssuanceInternalServiceServer(r, &internal{API: a})
	eventv1.RegisterEventSinkServiceServer(r, a.deps.Sink)
	eventv1.RegisterRevisionServiceServer(r, a.deps.Revisions)
}

// AuthzTable says who may call what.
func AuthzTable() rpc.AuthzTable {
	readers := rpc.Allow(rpcctx.RoleAdmin, rpcctx.RoleOperator, rpcctx.RoleViewer, rpcctx.RoleAuditor, rpcctx.RolePeer)
	operators := rpc.Allow(rpcctx.RoleAdmin, rpcctx.RoleOperator)
	admins := rpc.Allow(rpcctx.RoleAdmin)
	peers := rpc.Allow(rpcctx.RolePeer)
	everybody := rpc.Allow(append(rpcctx.Roles(), rpcctx.RoleNone)...)
	return rpc.AuthzTable{
		issuancev1.IssuerService_ListIssuers_FullMethodName:  readers,
		issuancev1.IssuerService_GetIssuer_FullMethodName:    readers,
		issuancev1.IssuerService_CreateIssuer_FullMethodName: admins,
		issuancev1.IssuerService_UpdateIssuer_FullMethodName: admins,
		issuancev1.IssuerService_DeleteIssuer_FullMethodName: admins,
		issuancev1.IssuerService_TestIssuer_FullMethodName:   operators,

		issuancev1.ProfileService_ListProfiles_FullMethodName:  readers,
		issuancev1.ProfileService_GetProfile_FullMethodName:    readers,
		issuancev1.ProfileService_CreateProfile_FullMethodName: admins,
		issuancev1.ProfileService_UpdateProfile_FullMethodName: admins,
		issuancev1.ProfileService_DeleteProfile_FullMethodName: admins,

		issuancev1.OrderService_ListOrders_FullMethodName:   readers,
		issuancev1.OrderService_GetOrder_FullMethodName:     readers,
		issuancev1.OrderService_PollOrder_FullMethodName:    operators,
		issuancev1.OrderService_CancelOrder_FullMethodName:  operators,
		issuancev1.OrderService_AdoptOrder_FullMethodName:   operators,
		issuancev1.OrderService_DismissOrder_FullMethodName: operators,

		issuancev1.CrlService_GetCrl_FullMethodName:           everybody,
		issuancev1.CrlService_ReadCrl_FullMethodName:          everybody,
		issuancev1.CrlService_GetCaCertificate_FullMethodName: everybody,

		issuancev1.IssuanceInternalService_CheckCertificateRequest_FullMethodName: peers,
		issuancev1.IssuanceInternalService_BatchGetProfiles_FullMethodName:        peers,
		issuancev1.IssuanceInternalService_SubmitOrder_FullMethodName:             peers,
		issuancev1.IssuanceInternalService_CheckCsr_FullMethodName:                peers,
		issuancev1.IssuanceInternalService_BatchGetOrders_FullMethodName:          peers,
		issuancev1.IssuanceInternalService_RevokeVersions_FullMethodName:          peers,
		issuancev1.IssuanceInternalService_GetIssuerCredentials_FullMethodName:    peers,
		issuancev1.IssuanceInternalService_RecordPollResult_FullMethodName:        peers,

		eventv1.EventSinkService_Deliver_FullMethodName:    peers,
		eventv1.RevisionService_GetRevision_FullMethodName: readers, // the gateway asks in the name of its caller
	}
}

// onlyPeer refuses peers other than the named one.
func onlyPeer(ctx context.Context, name string) error {
	if c := rpcctx.CallerFrom(ctx); c.Type != rpcctx.Service || c.ID != name {
		return errs.New(errs.PermissionDenied, "PEER_NOT_ALLOWED", "only %s may call this method", name)
	}
	return nil
}

// listing is a list request, as far as all are alike.
type listing interface {
	proto.Message
	GetPageSize() int32
	GetPageToken() string
	GetOrderBy() string
}

// pageOf reads size, order and place of a list request.
func (a *API) pageOf(collection string, sorting *page.Sorting, r listing) (store.Page, page.Scope, error) {
	size, err := page.Size(r.GetPageSize())
	if err != nil {
		return store.Page{}, page.Scope{}, err
	}
	order, err := sorting.Parse(r.GetOrderBy())
	if err != nil {
		return store.Page{}, page.Scope{}, err
	}
	scope := page.Scope{Collection: collection, Filters: page.FiltersOf(r), Order: order.String()}
	after, err := a.deps.Pages.Decode(r.GetPageToken(), scope)
	return store.Page{Order: order, After: after, Size: size}, scope, err
}

// cut makes the page and the token of the next one. key gives the order's value of a row, and the row's id.
func cut[T any](a *API, rows []T, p store.Page, scope page.Scope, key func(T) (page.Value, string)) ([]T, string) {
	rows, more := page.Cut(rows, p.Size)
	if !more {
		return rows, ""
	}
	value, id := key(rows[len(rows)-1])
	return rows, a.deps.Pages.Encode(scope, p.Order.Cursor(value, page.TextValue(id)))
}

// timeOf gives an unset time as the zero time.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
