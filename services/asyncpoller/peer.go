package asyncpoller

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

// recordTimeout bounds one call to issuance.
const recordTimeout = 10 * time.Second

// journal is issuance.
type journal struct {
	issuance issuancev1.IssuanceInternalServiceClient
}

func newJournal(conn grpc.ClientConnInterface) journal {
	return journal{issuance: issuancev1.NewIssuanceInternalServiceClient(conn)}
}

// Credentials implements core.Source.
func (j journal) Credentials(ctx context.Context, issuerID, knownHash string) (core.Credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	got, err := j.issuance.GetIssuerCredentials(ctx, &issuancev1.GetIssuerCredentialsRequest{IssuerId: issuerID, ConfigHash: knownHash})
	if err != nil {
		return core.Credentials{}, err
	}
	return core.Credentials{Type: got.GetType(), ConfigHash: got.GetConfigHash(), Config: got.GetConfig()}, nil
}

// Record implements core.Journal.
func (j journal) Record(ctx context.Context, r core.Result) (ended bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	got, err := j.issuance.RecordPollResult(ctx, request(r))
	if err != nil {
		return false, err
	}
	switch got.GetOrder().GetStatus() {
	case issuancev1.Order_ISSUED, issuancev1.Order_REJECTED, issuancev1.Order_FAILED, issuancev1.Order_CANCELLED:
		return true, nil
	default:
		return false, nil
	}
}

func request(r core.Result) *issuancev1.RecordPollResultRequest {
	out := &issuancev1.RecordPollResultRequest{
		OrderId: r.OrderID, Outcome: outcomeOf(r.Outcome), CertificatePem: r.CertificatePEM, CaReference: r.CAReference,
		PollAttempts: int32(r.Attempts),
	}
	if r.Reason != "" || r.Message != "" {
		out.Problem = &typev1.Problem{Reason: r.Reason, Message: r.Message}
	}
	if !r.NextPollTime.IsZero() {
		out.NextPollTime = timestamppb.New(r.NextPollTime)
	}
	return out
}

func outcomeOf(o core.Outcome) issuancev1.RecordPollResultRequest_Outcome {
	switch o {
	case core.StillPending:
		return issuancev1.RecordPollResultRequest_STILL_PENDING
	case core.Issued:
		return issuancev1.RecordPollResultRequest_ISSUED
	case core.Rejected:
		return issuancev1.RecordPollResultRequest_REJECTED
	case core.Failed:
		return issuancev1.RecordPollResultRequest_FAILED
	default:
		return issuancev1.RecordPollResultRequest_OUTCOME_UNSPECIFIED
	}
}
