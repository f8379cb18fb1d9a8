package api

import (
	"context"
	"fmt"

	"google.golang.org/genproto/googleapis/api/httpbody"

	"github.com/certctl/certctl/pkg/errs"
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
	rows, total, err := s.deps.Core.ListOrders(ctx, f, r.GetIncludeTotal())
	if err != nil {
		return nil, err
	}
	rows, token := cut(s.API, rows, p, scope, func(o store.Order) (page.Value, string) { return page.TimeValue(o.CreateTime), o.ID })
	return &issuancev1.ListOrdersResponse{Orders: orderMessages(rows), NextPageToken: token, TotalSize: total}, nil
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

func orderMessages(rows []store.Order) []*issuancev1.Order {
	out := make([]*issuancev1.Order, 0, len(rows))
	for _, o := range rows {
		out = append(out, core.OrderProto(o))
	}
	return out
}

// GetOrder implements issuancev1.OrderServiceServer.
func (s *orders) GetOrder(ctx context.Context, r *issuancev1.GetOrderRequest) (*issuancev1.GetOrderResponse, error) {
	o, err := s.deps.Core.GetOrder(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	return &issuancev1.GetOrderResponse{Order: core.OrderProto(o)}, nil
}

// PollOrder implements issuancev1.OrderServiceServer.
func (s *orders) PollOrder(ctx context.Context, r *issuancev1.PollOrderRequest) (*issuancev1.PollOrderResponse, error) {
	o, err := s.deps.Core.Poll(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	return &issuancev1.PollOrderResponse{Order: core.OrderProto(o)}, nil
}

// CancelOrder implements issuancev1.OrderServiceServer.
func (s *orders) CancelOrder(ctx context.Context, r *issuancev1.CancelOrderRequest) (*issuancev1.CancelOrderResponse, error) {
	o, err := s.deps.Core.Cancel(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	return &issuancev1.CancelOrderResponse{Order: core.OrderProto(o)}, nil
}

// crls serves CrlService.
type crls struct {
	issuancev1.UnimplementedCrlServiceServer
	*API
}

// GetCrl implements issuancev1.CrlServiceServer.
func (s *crls) GetCrl(ctx context.Context, r *issuancev1.GetCrlRequest) (*httpbody.HttpBody, error) {
	crl, err := s.deps.Core.CRL(ctx, r.GetIssuerId())
	if err != nil {
		return nil, err
	}
	// RFC 2585, section 4.2.
	return &httpbody.HttpBody{ContentType: "application/pkix-crl", Data: crl.DER}, nil
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
