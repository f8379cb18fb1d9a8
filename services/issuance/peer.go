package issuance

import (
	"context"

	"google.golang.org/grpc"

	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
)

// references asks inventory.
type references struct {
	inventory inventoryv1.InventoryInternalServiceClient
}

func newReferences(conn grpc.ClientConnInterface) references {
	return references{inventory: inventoryv1.NewInventoryInternalServiceClient(conn)}
}

// CountIssuer counts the certificates that use an issuer.
func (r references) CountIssuer(ctx context.Context, id string) (int, error) {
	got, err := r.inventory.CountReferences(ctx, &inventoryv1.CountReferencesRequest{IssuerId: id})
	return int(got.GetCertificates()), err
}

// CountProfile counts the certificates that use a profile.
func (r references) CountProfile(ctx context.Context, id string) (int, error) {
	got, err := r.inventory.CountReferences(ctx, &inventoryv1.CountReferencesRequest{ProfileId: id})
	return int(got.GetCertificates()), err
}

// poller asks asyncpoller.
type poller struct {
	polls asyncpollerv1.PollInternalServiceClient
}

func newPoller(conn grpc.ClientConnInterface) poller {
	return poller{polls: asyncpollerv1.NewPollInternalServiceClient(conn)}
}

// PollNow makes an order due at once.
func (p poller) PollNow(ctx context.Context, orderID string) error {
	_, err := p.polls.PollNow(ctx, &asyncpollerv1.PollNowRequest{OrderId: orderID})
	return err
}

// Polls gives the last questions to the CA about an order.
func (p poller) Polls(ctx context.Context, orderID string) ([]*issuancev1.OrderPoll, error) {
	got, err := p.polls.BatchGetPolls(ctx, &asyncpollerv1.BatchGetPollsRequest{OrderIds: []string{orderID}, IncludeHistory: true})
	if err != nil {
		return nil, err
	}
	var out []*issuancev1.OrderPoll
	for _, poll := range got.GetPolls() {
		for _, a := range poll.GetHistory() {
			out = append(out, &issuancev1.OrderPoll{
				Time: a.GetPollTime(), Duration: a.GetDuration(), Result: a.GetResult().String(), Reason: a.GetReason(), Message: a.GetMessage(),
				NextPollTime: a.GetNextPollTime(),
			})
		}
	}
	return out, nil
}

// CancelPoll ends the watch of an order.
func (p poller) CancelPoll(ctx context.Context, orderID string) error {
	_, err := p.polls.CancelPoll(ctx, &asyncpollerv1.CancelPollRequest{OrderId: orderID})
	return err
}
