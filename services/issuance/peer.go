package issuance

import (
	"context"

	"google.golang.org/grpc"

	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
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

// CancelPoll ends the watch of an order.
func (p poller) CancelPoll(ctx context.Context, orderID string) error {
	_, err := p.polls.CancelPoll(ctx, &asyncpollerv1.CancelPollRequest{OrderId: orderID})
	return err
}
