package torture_test

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
)

// others stands for inventory, renewalscheduler and audit: it takes every event and writes it down where no process dies.
type others struct {
	inventoryv1.UnimplementedInventoryInternalServiceServer
	eventv1.UnimplementedEventSinkServiceServer

	db *pgxpool.Pool
}

func registerOthers(r grpc.ServiceRegistrar, db *pgxpool.Pool) {
	o := &others{db: db}
	inventoryv1.RegisterInventoryInternalServiceServer(r, o)
	eventv1.RegisterEventSinkServiceServer(r, o)
}

func othersTable() rpc.AuthzTable {
	table := rpc.AuthzTable{eventv1.EventSinkService_Deliver_FullMethodName: rpc.Allow(rpcctx.RolePeer)}
	service := inventoryv1.InventoryInternalService_ServiceDesc
	for _, m := range service.Methods {
		table["/"+service.ServiceName+"/"+m.MethodName] = rpc.Allow(rpcctx.RolePeer)
	}
	return table
}

// CountReferences answers that nobody uses anything.
func (*others) CountReferences(context.Context, *inventoryv1.CountReferencesRequest) (*inventoryv1.CountReferencesResponse, error) {
	return &inventoryv1.CountReferencesResponse{}, nil
}

// Deliver records the events. One that comes twice is there once, as in any receiver.
func (o *others) Deliver(ctx context.Context, r *eventv1.DeliverRequest) (*eventv1.DeliverResponse, error) {
	var ids, kinds, resources, orders []string
	out := &eventv1.DeliverResponse{}
	for _, e := range r.GetEvents() {
		ids, kinds, resources = append(ids, e.GetId()), append(kinds, e.GetType()), append(resources, e.GetResourceId())
		orders = append(orders, orderOf(e))
		out.Results = append(out.Results, &eventv1.EventResult{Outcome: eventv1.EventResult_APPLIED})
	}
	_, err := o.db.Exec(ctx, `INSERT INTO torture.events (event_id, type, resource_id, order_id)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) ON CONFLICT DO NOTHING`, ids, kinds, resources, orders)
	return out, err
}

// orderOf is the order that an issued certificate came of.
func orderOf(e *eventv1.Event) string {
	issued := &issuancev1.CertificateIssued{}
	if e.GetType() == "certificate.issued" && e.GetPayload().UnmarshalTo(issued) == nil {
		return issued.GetOrderId()
	}
	return e.GetResourceId()
}
