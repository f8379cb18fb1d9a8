package client

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/field"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

func listOrders() method {
	return bind(issuancev1.NewOrderServiceClient, issuancev1.OrderServiceClient.ListOrders)
}

// listOrphans is listOrders for what CAs have and the journal does not know.
func listOrphans() method {
	m := listOrders()
	m.request = func() proto.Message { return &issuancev1.ListOrdersRequest{Orphan: true} }
	return m
}

func (a *app) orders() *cobra.Command {
	client, ids, orphans := issuancev1.NewOrderServiceClient, a.ids(listOrders(), "status"), a.ids(listOrphans(), "names.common_name")
	return group("orders", "Orders: the journal of what was asked of CAs", []string{"order"},
		a.listOrders(),
		a.verb(verb{
			method: bind(client, issuancev1.OrderServiceClient.GetOrder), of: ids, show: orderInFull,
			command: cobra.Command{Use: "get ID", Aliases: []string{"show"}, Short: "Show one order with all its fields, what it waits for, and the last polls"},
		}),
		a.watchOrder(ids),
		a.verb(verb{
			method: bind(client, issuancev1.OrderServiceClient.PollOrder), of: ids, follow: followPoll, show: polled,
			command: cobra.Command{Use: "poll ID", Short: "Ask the CA now what became of it"},
		}),
		a.verb(verb{
			method: bind(client, issuancev1.OrderServiceClient.CancelOrder), of: ids, question: "Give order %s up?", show: cancelled,
			command: cobra.Command{
				Use: "cancel ID", Short: "Give an order up, at the CA too where the CA can do that",
				Long: "Give an order up that is pending, or whose reply was lost. The CA is told where it can be (see the capabilities of the\n" +
					"issuer). What the CA issues all the same is put on record, or found as an orphan.",
			},
		}),
		a.verb(verb{
			method: bind(client, issuancev1.OrderServiceClient.AdoptOrder), of: orphans,
			command: cobra.Command{
				Use: "adopt ID", Short: "Take an orphan into the journal: it is polled and checked as any other order",
				Long: "Take an order that the CA has, and the journal does not know, into the journal. It becomes an order of the certificate that\n" +
					"the CA says it was placed for, or of the one that is named, whose names have to cover it.",
				Example: "  certctl orders list --orphan\n  certctl orders adopt ord-… --certificate web",
			},
			fields: []field.Field{{Path: "certificate_id", Flag: "certificate", Help: "certificate that it is for", Complete: a.flagIDs(listCertificates(), "name")}},
		}),
		a.dismiss(client, orphans))
}

func (a *app) listOrders() *cobra.Command {
	return a.list(listing{
		method: listOrders(),
		command: cobra.Command{
			Short:   "List orders",
			Example: "  certctl orders list --status PENDING,UNKNOWN --min-age 1d\n  certctl orders list --orphan",
		},
		filters: []field.Field{
			{Path: "status", Help: "only of these states"},
			{Path: "certificate_id", Flag: "certificate", Help: "only of this certificate", Complete: a.flagIDs(listCertificates(), "name")},
			{Path: "issuer_id", Flag: "issuer", Help: "only of this issuer", Complete: a.flagIDs(listIssuers(), "name")},
			{Path: "job_id", Flag: "job", Help: "only of this job", Complete: a.flagIDs(listJobs(), "type")},
			{Path: "created_before", Help: "only those made before, such as -1h"},
			{Path: "created_after", Help: "only those made after"},
			{Path: "min_age", Help: "only those made at least so long ago, such as 6h or 2d"},
			{Path: "orphan", Help: "those that a CA has and the journal does not know, and nothing else"},
		},
		columns: func(req proto.Message) []show.Column {
			if r, ok := req.(*issuancev1.ListOrdersRequest); ok && r.GetOrphan() {
				return orphanColumns()
			}
			return columnsOf(&issuancev1.Order{})
		},
	})
}

func (a *app) dismiss(client func(grpc.ClientConnInterface) issuancev1.OrderServiceClient, orphans cobra.CompletionFunc) *cobra.Command {
	c := a.verb(verb{
		method: bind(client, issuancev1.OrderServiceClient.DismissOrder), of: orphans, question: "Dismiss order %s? It is not shown again.",
		command: cobra.Command{Use: "dismiss ID --reason TEXT", Short: "Say that an orphan is somebody else's and needs nothing"},
		fields:  []field.Field{{Path: "reason", Help: "why, for the record"}},
		show:    dismissed,
	})
	required(c, "reason")
	return c
}

// dismissed says that an orphan was dismissed: as an order it would look as it did before.
func dismissed(s *session, id string, answer proto.Message) error {
	if s.format != show.Table {
		return s.print(answer)
	}
	_, err := fmt.Fprintf(s.out(), "order %s dismissed\n", show.Clean(id))
	return err
}

// polled shows an order that is to be polled, and says what to expect: the answer of the CA comes after this.
func polled(s *session, id string, answer proto.Message) error {
	if err := s.print(answer); err != nil {
		return err
	}
	o, ok := answer.(*issuancev1.Order)
	switch {
	case !ok || s.state != "": // what the CA said was waited for
	case o.GetStatus() == issuancev1.Order_PENDING:
		s.note("the CA is being asked; see its answer with: certctl orders get %s", id)
	case !orderEnded(o):
		s.note("there is nothing to poll: the order waits for %s", waitsShortly(o))
	default:
		s.note("there is nothing to poll: the order has ended")
	}
	return nil
}

// cancelled shows an order that was given up, and says how that went at the CA.
func cancelled(s *session, _ string, answer proto.Message) error {
	if err := s.print(answer); err != nil {
		return err
	}
	if o, ok := answer.(*issuancev1.Order); ok && o.GetLastError().GetMessage() != "" {
		s.note("%s", o.GetLastError().GetMessage())
	}
	return nil
}

// orderInFull shows an order with what it waits for and what the CA said.
func orderInFull(s *session, _ string, answer proto.Message) error {
	o, ok := answer.(*issuancev1.Order)
	if !ok || s.format != show.Table {
		return s.describe(answer)
	}
	fields, _ := proto.Clone(o).(*issuancev1.Order)
	fields.Polls = nil
	if err := s.describe(fields); err != nil {
		return err
	}
	if waits := s.waitsAtLength(o); len(waits) > 0 {
		if _, err := fmt.Fprintf(s.out(), "\n%s\n", cleanLines(strings.Join(waits, "\n"))); err != nil {
			return err
		}
	}
	if len(o.GetPolls()) == 0 {
		return nil
	}
	rows := make([]proto.Message, 0, len(o.GetPolls()))
	for _, p := range o.GetPolls() {
		rows = append(rows, p)
	}
	if _, err := fmt.Fprintln(s.out()); err != nil {
		return err
	}
	return s.printer().Rows(o, rows, columnsOf(&issuancev1.OrderPoll{}))
}

// followPoll waits until the CA has been asked.
func followPoll(ctx context.Context, s *session, answer proto.Message) (proto.Message, error) {
	before, ok := answer.(*issuancev1.Order)
	if !ok {
		return nil, fmt.Errorf("follow %T", answer)
	}
	if before.GetStatus() != issuancev1.Order_PENDING {
		return before, nil
	}
	var now *issuancev1.Order
	err := s.until(ctx, func(ctx context.Context) (done bool, err error) {
		s.pending("the CA is being asked", "see: certctl orders get "+before.GetId())
		now, err = s.order(ctx, before.GetId())
		return now.GetPollAttempts() > before.GetPollAttempts() || now.GetStatus() != before.GetStatus(), err
	})
	return now, err
}

func (s *session) order(ctx context.Context, id string) (*issuancev1.Order, error) {
	resp, err := issuancev1.NewOrderServiceClient(s.conn).GetOrder(ctx, &issuancev1.GetOrderRequest{Id: id})
	return resp.GetOrder(), err
}
