package api

import (
	"context"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/errs"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/issuance/internal/core"
)

// asyncPoller is the one peer that may have credentials of CAs.
const asyncPoller = "asyncpoller"

// internal serves IssuanceInternalService.
type internal struct {
	issuancev1.UnimplementedIssuanceInternalServiceServer
	*API
}

func rawNames(n *typev1.Names) certcheck.RawNames {
	return certcheck.RawNames{
		CommonName: n.GetCommonName(), DNSNames: n.GetDnsNames(), IPAddresses: n.GetIpAddresses(),
		EmailAddresses: n.GetEmailAddresses(), URIs: n.GetUris(),
	}
}

// violations gives what an errs.Invalid says as an answer. Other errors come back, and so does one that names no field: an
// answer without violations means "allowed".
func violations(err error) ([]*issuancev1.FieldViolation, error) {
	if err == nil || !errs.IsKind(err, errs.Invalid) {
		return nil, err
	}
	var out []*issuancev1.FieldViolation
	for _, v := range errs.From(err).Violations() {
		out = append(out, &issuancev1.FieldViolation{Field: v.Field, Description: v.Description})
	}
	if len(out) == 0 {
		return nil, err
	}
	return out, nil
}

// CheckCertificateRequest implements issuancev1.IssuanceInternalServiceServer.
func (s *internal) CheckCertificateRequest(ctx context.Context, r *issuancev1.CheckCertificateRequestRequest) (*issuancev1.CheckCertificateRequestResponse, error) {
	allowed, err := s.deps.Core.CheckRequest(ctx, core.Request{
		IssuerID: r.GetIssuerId(), ProfileID: r.GetProfileId(), Names: rawNames(r.GetNames()), KeyAlgorithm: keyAlgorithm(r.GetKeyAlgorithm()),
	})
	found, err := violations(err)
	if err != nil {
		return nil, err
	}
	if len(found) > 0 {
		return &issuancev1.CheckCertificateRequestResponse{Violations: found}, nil
	}
	n := allowed.Names
	return &issuancev1.CheckCertificateRequestResponse{
		Names: &typev1.Names{
			CommonName: n.CommonName, DnsNames: n.DNSNames, IpAddresses: n.IPAddresses, EmailAddresses: n.EmailAddresses, Uris: n.URIs,
		},
		KeyAlgorithm: typev1.KeyAlgorithm(typev1.KeyAlgorithm_value[allowed.KeyAlgorithm]),
	}, nil
}

// BatchGetProfiles implements issuancev1.IssuanceInternalServiceServer.
func (s *internal) BatchGetProfiles(ctx context.Context, r *issuancev1.BatchGetProfilesRequest) (*issuancev1.BatchGetProfilesResponse, error) {
	rows, err := s.deps.Core.GetProfiles(ctx, r.GetIds())
	if err != nil {
		return nil, err
	}
	out := &issuancev1.BatchGetProfilesResponse{}
	for _, p := range rows {
		out.Profiles = append(out.Profiles, profileMessage(p))
	}
	return out, nil
}

// SubmitOrder implements issuancev1.IssuanceInternalServiceServer.
func (s *internal) SubmitOrder(ctx context.Context, r *issuancev1.SubmitOrderRequest) (*issuancev1.SubmitOrderResponse, error) {
	o, err := s.deps.Core.Submit(ctx, core.SubmitRequest{
		OrderID: r.GetOrderId(), CertificateID: r.GetCertificateId(), JobID: r.GetJobId(), AgentID: r.GetAgentId(),
		CSRRequest: core.CSRRequest{CSR: []byte(r.GetCsrPem()), Request: core.Request{
			IssuerID: r.GetIssuerId(), ProfileID: r.GetProfileId(), Names: rawNames(r.GetNames()), KeyAlgorithm: keyAlgorithm(r.GetKeyAlgorithm()),
		}},
	})
	if err != nil {
		return nil, err
	}
	return &issuancev1.SubmitOrderResponse{Order: core.OrderProto(o)}, nil
}

// CheckCsr implements issuancev1.IssuanceInternalServiceServer.
func (s *internal) CheckCsr(ctx context.Context, r *issuancev1.CheckCsrRequest) (*issuancev1.CheckCsrResponse, error) {
	err := s.deps.Core.CheckCSR(ctx, core.CSRRequest{CSR: []byte(r.GetCsrPem()), Request: core.Request{
		IssuerID: r.GetIssuerId(), ProfileID: r.GetProfileId(), Names: rawNames(r.GetNames()), KeyAlgorithm: keyAlgorithm(r.GetKeyAlgorithm()),
	}})
	found, err := violations(err)
	if err != nil {
		return nil, err
	}
	return &issuancev1.CheckCsrResponse{Violations: found}, nil
}

// BatchGetOrders implements issuancev1.IssuanceInternalServiceServer.
func (s *internal) BatchGetOrders(ctx context.Context, r *issuancev1.BatchGetOrdersRequest) (*issuancev1.BatchGetOrdersResponse, error) {
	rows, err := s.deps.Core.GetOrders(ctx, r.GetIds())
	if err != nil {
		return nil, err
	}
	return &issuancev1.BatchGetOrdersResponse{Orders: s.orderMessages(rows)}, nil
}

// RevokeVersions implements issuancev1.IssuanceInternalServiceServer.
func (s *internal) RevokeVersions(ctx context.Context, r *issuancev1.RevokeVersionsRequest) (*issuancev1.RevokeVersionsResponse, error) {
	done, err := s.deps.Core.Revoke(ctx, core.RevokeRequest{
		CertificateID: r.GetCertificateId(), SerialNumbers: r.GetSerialNumbers(),
		Reason: int16(r.GetReason()), RevocationTime: timeOf(r.GetRevocationTime()),
	})
	if err != nil {
		return nil, err
	}
	return &issuancev1.RevokeVersionsResponse{Done: done}, nil
}

// GetIssuerCredentials implements issuancev1.IssuanceInternalServiceServer.
func (s *internal) GetIssuerCredentials(ctx context.Context, r *issuancev1.GetIssuerCredentialsRequest) (*issuancev1.GetIssuerCredentialsResponse, error) {
	if err := onlyPeer(ctx, asyncPoller); err != nil {
		return nil, err
	}
	c, err := s.deps.Core.IssuerCredentials(ctx, r.GetIssuerId(), r.GetConfigHash())
	if err != nil {
		return nil, err
	}
	return &issuancev1.GetIssuerCredentialsResponse{Type: c.Type, ConfigHash: c.ConfigHash, Config: c.Config}, nil
}

// RecordPollResult implements issuancev1.IssuanceInternalServiceServer.
func (s *internal) RecordPollResult(ctx context.Context, r *issuancev1.RecordPollResultRequest) (*issuancev1.RecordPollResultResponse, error) {
	if err := onlyPeer(ctx, asyncPoller); err != nil {
		return nil, err
	}
	outcome, ok := outcomeOf(r.GetOutcome())
	if !ok {
		return nil, errs.Field("outcome", "is needed")
	}
	o, err := s.deps.Core.RecordPoll(ctx, core.PollResult{
		OrderID: r.GetOrderId(), Outcome: outcome, CertificatePEM: r.GetCertificatePem(), CAReference: r.GetCaReference(),
		Reason: r.GetProblem().GetReason(), Message: r.GetProblem().GetMessage(), Attempts: r.GetPollAttempts(), NextPollTime: timeOf(r.GetNextPollTime()),
	})
	if err != nil {
		return nil, err
	}
	return &issuancev1.RecordPollResultResponse{Order: core.OrderProto(o)}, nil
}

func outcomeOf(o issuancev1.RecordPollResultRequest_Outcome) (string, bool) {
	switch o {
	case issuancev1.RecordPollResultRequest_STILL_PENDING:
		return core.Pending, true
	case issuancev1.RecordPollResultRequest_ISSUED:
		return core.Issued, true
	case issuancev1.RecordPollResultRequest_REJECTED:
		return core.Rejected, true
	case issuancev1.RecordPollResultRequest_FAILED:
		return core.Failed, true
	default:
		return "", false
	}
}
