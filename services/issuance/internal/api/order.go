package api

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/page"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/issuance/internal/core"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// orders serves OrderService.
type orders struct {
	issuancev1.UnimplementedOrderServiceServer
	*API
}

// ListOrders implements issuancev1.OrderServiceServer.
func (s *orders) ListOrders(ctx context.Context, r *issuancev1.ListOrdersRequest) (*issuancev1.ListOrdersResponse, error) {
	p, scope, err := s.pageOf("orders", s.deps.Core.OrderSorting(), r)
	if err != nil {
		return nil, err
	}
	f := store.OrderFilter{
		CertificateID: r.GetCertificateId(), IssuerID: r.GetIssuerId(), JobID: r.GetJobId(),
		CreatedBefore: timeOf(r.GetCreatedBefore()), CreatedAfter: timeOf(r.GetCreatedAfter()), Page: p,
	}
	if f.Statuses, err = statuses(r.GetStatus()); err != nil {
		return nil, err
	}
	if r.GetMinAge() != nil {
		before := s.deps.Core.Now().Add(-r.GetMinAge().AsDuration())
		if f.CreatedBefore.IsZero() || before.Before(f.CreatedBefore) {
			f.CreatedBefore = before
		}
	}
	if r.GetOrphan() {
		return s.listOrphans(ctx, f, scope, r.GetIncludeTotal())
	}
	rows, total, err := s.deps.Core.ListOrders(ctx, f, r.GetIncludeTotal())
	if err != nil {
		return nil, err
	}
	rows, token := cut(s.API, rows, p, scope, func(o store.Order) (page.Value, string) { return page.TimeValue(o.CreateTime), o.ID })
	return &issuancev1.ListOrdersResponse{Orders: s.orderMessages(rows), NextPageToken: token, TotalSize: total}, nil
}

func (s *orders) listOrphans(ctx context.Context, f store.OrderFilter, scope page.Scope, total bool) (*issuancev1.ListOrdersResponse, error) {
	rows, n, err := s.deps.Core.ListOrphans(ctx, f, total)
	if err != nil {
		return nil, err
	}
	rows, token := cut(s.API, rows, f.Page, scope, func(o store.Orphan) (page.Value, string) { return page.TimeValue(o.CreateTime), o.ID })
	out := &issuancev1.ListOrdersResponse{NextPageToken: token, TotalSize: n}
	for _, o := range rows {
		out.Orders = append(out.Orders, s.deps.Core.OrphanProto(o))
	}
	return out, nil
}

func statuses(in []issuancev1.Order_Status) ([]string, error) {
	var out []string
	var v errs.Violations
	for i, s := range in {
		name, ok := issuancev1.Order_Status_name[int32(s)]
		if !ok || s == issuancev1.Order_STATUS_UNSPECIFIED {
			v.Add(fmt.Sprintf("status[%d]", i), "is no status of an order")
		}
		out = append(out, name)
	}
	return out, v.Err()
}

func (a *API) orderMessages(rows []store.Order) []*issuancev1.Order {
	out := make([]*issuancev1.Order, 0, len(rows))
	for _, o := range rows {
		out = append(out, a.orderMessage(o))
	}
	return out
}

// orderMessage writes an order as the API shows it: with its age.
func (a *API) orderMessage(o store.Order) *issuancev1.Order {
	m := core.OrderProto(o)
	m.Age = a.deps.Core.Age(o)
	return m
}

// GetOrder implements issuancev1.OrderServiceServer.
func (s *orders) GetOrder(ctx context.Context, r *issuancev1.GetOrderRequest) (*issuancev1.GetOrderResponse, error) {
	o, err := s.deps.Core.GetOrder(ctx, r.GetId())
	if errs.IsKind(err, errs.NotFound) {
		orphan, err := s.deps.Core.GetOrphan(ctx, r.GetId())
		if err != nil {
			return nil, err
		}
		return &issuancev1.GetOrderResponse{Order: s.deps.Core.OrphanProto(orphan)}, nil
	}
	if err != nil {
		return nil, err
	}
	m := s.orderMessage(o)
	m.Polls = s.deps.Core.OrderPolls(ctx, o)
	return &issuancev1.GetOrderResponse{Order: m}, nil
}

// PollOrder implements issuancev1.OrderServiceServer.
func (s *orders) PollOrder(ctx context.Context, r *issuancev1.PollOrderRequest) (*issuancev1.PollOrderResponse, error) {
	o, err := s.deps.Core.Poll(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	return &issuancev1.PollOrderResponse{Order: s.orderMessage(o)}, nil
}

// AdoptOrder implements issuancev1.OrderServiceServer.
func (s *orders) AdoptOrder(ctx context.Context, r *issuancev1.AdoptOrderRequest) (*issuancev1.AdoptOrderResponse, error) {
	return mutation.Do(ctx, s.deps.Core.DB(), mutation.Change[*issuancev1.AdoptOrderResponse]{
		Request: r,
		Empty:   func() *issuancev1.AdoptOrderResponse { return &issuancev1.AdoptOrderResponse{} },
		Apply: func(ctx context.Context, tx pgx.Tx) (*issuancev1.AdoptOrderResponse, error) {
			o, err := s.deps.Core.Adopt(ctx, tx, r.GetId(), r.GetCertificateId())
			if err != nil {
				return nil, err
			}
			return &issuancev1.AdoptOrderResponse{Order: s.orderMessage(o)}, nil
		},
	})
}

// DismissOrder implements issuancev1.OrderServiceServer.
func (s *orders) DismissOrder(ctx context.Context, r *issuancev1.DismissOrderRequest) (*issuancev1.DismissOrderResponse, error) {
	return mutation.Do(ctx, s.deps.Core.DB(), mutation.Change[*issuancev1.DismissOrderResponse]{
		Request: r,
		Empty:   func() *issuancev1.DismissOrderResponse { return &issuancev1.DismissOrderResponse{} },
		Apply: func(ctx context.Context, tx pgx.Tx) (*issuancev1.DismissOrderResponse, error) {
			o, err := s.deps.Core.Dismiss(ctx, tx, r.GetId(), r.GetReason())
			if err != nil {
				return nil, err
			}
			return &issuancev1.DismissOrderResponse{Order: s.deps.Core.OrphanProto(o)}, nil
		},
	})
}

// CancelOrder implements issuancev1.OrderServiceServer.
func (s *orders) CancelOrder(ctx context.Context, r *issuancev1.CancelOrderRequest) (*issuancev1.CancelOrderResponse, error) {
	o, err := s.deps.Core.Cancel(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	return &issuancev1.CancelOrderResponse{Order: s.orderMessage(o)}, nil
}

// crls serves CrlService.
type crls struct {
	issuancev1.UnimplementedCrlServiceServer
	*API
}

// GetCrl implements issuancev1.CrlServiceServer.
func (s *crls) GetCrl(ctx context.Context, r *issuancev1.GetCrlRequest) (*httpbody.HttpBody, error) {
	_, der, err := s.deps.Core.CRL(ctx, r.GetIssuerId())
	if err != nil {
		return nil, err
	}
	// RFC 2585, section 4.2.
	return &httpbody.HttpBody{ContentType: "application/pkix-crl", Data: der}, nil
}

// ReadCrl implements issuancev1.CrlServiceServer.
func (s *crls) ReadCrl(ctx context.Context, r *issuancev1.ReadCrlRequest) (*issuancev1.ReadCrlResponse, error) {
	list, der, err := s.deps.Core.ReadCRL(ctx, r.GetIssuerId(), r.GetNumber(), r.GetOffset())
	if err != nil {
		return nil, err
	}
	size, _ := list.Bytes()
	return &issuancev1.ReadCrlResponse{Number: list.Number, Size: size, NextUpdate: timestamppb.New(list.NextUpdate), Data: der}, nil
}

// GetCaCertificate implements issuancev1.CrlServiceServer.
func (s *crls) GetCaCertificate(ctx context.Context, r *issuancev1.GetCaCertificateRequest) (*httpbody.HttpBody, error) {
	pem, err := s.deps.Core.CACertificates(ctx, r.GetIssuerId())
	if err != nil {
		return nil, err
	}
	// RFC 8555, section 9.1.
	return &httpbody.HttpBody{ContentType: "application/pem-certificate-chain", Data: pem}, nil
}
