package core

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// keepGivenUp makes an orphan of an order that ends here although the CA has it, in the transaction that ends it: nobody polls
// it any more, and what the CA issues all the same has to be seen. It ends when the CA has confirmed that the order is
// cancelled there, or when it refuses the order itself (SweepOrphans).
func (c *Core) keepGivenUp(ctx context.Context, tx pgx.Tx, o store.Order) error {
	if o.Account == "" || referenceText(o.CAReference) == "" || o.Status != Cancelled && o.Status != Failed {
		return nil
	}
	id, err := newID("ord")
	if err != nil {
		return err
	}
	row := store.Orphan{
		ID: id, IssuerID: o.IssuerID, Account: o.Account, CAKey: givenUpKey(o), CAReference: o.CAReference, OrderID: o.ID, Status: orphanOpen,
		CAState: Pending, CommonName: o.Names.CommonName, DNSNames: o.Names.DNSNames, Reason: reasonGivenUp,
		Message: fmt.Sprintf("order %s is %s here, and the CA has it", o.ID, o.Status), PlacedTime: o.SubmitTime, CreateTime: c.now(),
	}
	if o.ErrorReason == reasonMismatch || o.ErrorReason == reasonDuplicate {
		row.CAState = Issued
	}
	stored, err := store.UpsertOrphan(ctx, tx, row, c.now())
	if err != nil || stored == "" {
		return err
	}
	row.ID = stored
	return emit(ctx, tx, auditlog.Event(ctx, auditlog.Entry{Action: "order.orphan_found", ResourceType: "order", ResourceID: row.ID,
		Outcome: auditlog.Failure, Data: orphanData(row)}))
}

// givenUpKey tells the order from others of the account, also where the CA has no list.
func givenUpKey(o store.Order) string { return orElse(o.CAKey, "order "+o.ID) }

// settleGivenUp ends the orphan of an order that the CA has no more, or whose certificate is on record.
func settleGivenUp(ctx context.Context, tx pgx.Tx, o store.Order) error {
	_, err := store.SettleOrphans(ctx, tx, o.Account, []string{givenUpKey(o)})
	return err
}
