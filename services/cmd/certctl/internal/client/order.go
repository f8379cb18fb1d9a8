package client

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

// notFindable is the reason of an order that only a human can look up.
const notFindable = "ORDER_OUTCOME_UNKNOWN"

func orderEnded(o *issuancev1.Order) bool {
	switch o.GetStatus() {
	case issuancev1.Order_ISSUED, issuancev1.Order_REJECTED, issuancev1.Order_FAILED, issuancev1.Order_CANCELLED:
		return true
	default:
		return false
	}
}

func orderColumns() []show.Column {
	return []show.Column{
		{Header: "ID", Path: "id"}, {Header: "STATUS", Path: "status"}, {Header: "CERTIFICATE", Path: "certificate_id"}, {Header: "ISSUER", Path: "issuer_id"},
		{Header: "AGE", Text: orderAge}, {Header: "NEXT POLL", Path: "next_poll_time"}, {Header: "WAITS FOR", Text: waitsShortly},
		{Header: "ERROR", Path: "last_error.reason"},
	}
}

// orphanColumns are those of orders that a CA has and the journal does not know: their state is the CA's.
func orphanColumns() []show.Column {
	return []show.Column{
		{Header: "ID", Path: "id"}, {Header: "ISSUER", Path: "issuer_id"}, {Header: "AT THE CA", Path: "status"}, {Header: "NAME", Text: orderName},
		{Header: "AGE", Text: orderAge}, {Header: "SERIAL", Path: "serial_number"}, {Header: "WHY", Path: "last_error.reason"},
	}
}

func pollColumns() []show.Column {
	return []show.Column{
		{Header: "TIME", Path: "time", Exact: true}, {Header: "TOOK", Text: took}, {Header: "RESULT", Path: "result"},
		{Header: "ASKED AGAIN", Path: "next_poll_time", Exact: true}, {Header: "REASON", Path: "reason"}, {Header: "MESSAGE", Path: "message"},
	}
}

func orderName(m proto.Message) string {
	o, _ := m.(*issuancev1.Order)
	if n := o.GetNames(); n.GetCommonName() != "" || len(n.GetDnsNames()) == 0 {
		return n.GetCommonName()
	}
	return o.GetNames().GetDnsNames()[0]
}

func orderAge(m proto.Message) string {
	o, ok := m.(*issuancev1.Order)
	if !ok || o.GetAge() == nil {
		return ""
	}
	return show.Rough(o.GetAge().AsDuration())
}

func took(m proto.Message) string {
	p, ok := m.(*issuancev1.OrderPoll)
	if !ok || p.GetDuration() == nil {
		return ""
	}
	return p.GetDuration().AsDuration().Round(time.Millisecond).String()
}

// waitsShortly is what an order waits for, as a cell of a table; empty for one that has ended.
func waitsShortly(m proto.Message) string {
	o, ok := m.(*issuancev1.Order)
	switch {
	case !ok:
		return ""
	case o.GetOrphan():
		return "a decision"
	}
	switch o.GetStatus() {
	case issuancev1.Order_CREATED:
		if o.GetLastError().GetReason() != "" {
			return "the CA to be back"
		}
		return "its turn"
	case issuancev1.Order_SUBMITTING:
		return "the CA's reply"
	case issuancev1.Order_PENDING:
		return "the CA"
	case issuancev1.Order_UNKNOWN:
		if o.GetLastError().GetReason() == notFindable {
			return "a human"
		}
		return "a look-up at the CA"
	default:
		return ""
	}
}

// waitsAtLength says the same in sentences, with what can be done; empty for one that has ended.
func (s *session) waitsAtLength(o *issuancev1.Order) []string {
	id := o.GetId()
	if o.GetOrphan() {
		return []string{
			"the CA has this order, and the journal does not know it",
			"take it in with: certctl orders adopt " + id + " --certificate CERTIFICATE",
			"or say that it needs nothing with: certctl orders dismiss " + id + " --reason TEXT",
		}
	}
	switch o.GetStatus() {
	case issuancev1.Order_CREATED:
		return []string{"the CA has nothing yet: it is called again by itself" + s.timed(", until", o.GetDeadlineTime())}
	case issuancev1.Order_SUBMITTING:
		return []string{"the CA is being called"}
	case issuancev1.Order_PENDING:
		return []string{
			"the CA has it, and answers later: " + s.askedAgain(o.GetNextPollTime()),
			"the order has failed if it is still pending" + s.timed("", o.GetDeadlineTime()),
			"ask the CA now with: certctl orders poll " + id + " --wait",
		}
	case issuancev1.Order_UNKNOWN:
		if o.GetLastError().GetReason() == notFindable {
			return []string{
				"somebody has to see at the CA what became of it; until then nothing is ordered again",
				"then give it up here with: certctl orders cancel " + id,
			}
		}
		return []string{"the reply of the CA was lost: the order is looked up there before anything else happens"}
	default:
		return nil
	}
}

// askedAgain says when the next poll is. One that is due is on its way.
func (s *session) askedAgain(t *timestamppb.Timestamp) string {
	if t == nil || !t.AsTime().After(s.cfg.Now()) {
		return "it is being asked now"
	}
	return s.timed("it is asked again", t)
}

// timed is a time with words before it; empty when there is none.
func (s *session) timed(words string, t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return words + strings.TrimPrefix(s.when(t), ",")
}

// watchOrder follows an order, and tells each change on standard error.
func (a *app) watchOrder(ids cobra.CompletionFunc) *cobra.Command {
	c := &cobra.Command{
		Use: "watch ID", Short: "Follow an order to its end, and fail if nothing was issued", ValidArgsFunction: ids,
		Long: "Follow an order to its end: each change is told on standard error, and the order is shown when it has ended.",
	}
	w := timeoutFlag(c, watchTimeout)
	return a.leaf(c, cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		order, err := w.follow(ctx, s, func(ctx context.Context) (proto.Message, error) {
			o, err := s.waitOrder(ctx, args[0])
			if o == nil {
				return nil, err
			}
			return o, err
		})
		if o, ok := order.(*issuancev1.Order); ok && o != nil {
			if printed := s.print(o); printed != nil {
				return printed
			}
		}
		return err
	})
}

// waitOrder follows an order to its end; an end that is not ISSUED is an error.
func (s *session) waitOrder(ctx context.Context, id string) (o *issuancev1.Order, err error) {
	err = s.until(ctx, func(ctx context.Context) (done bool, err error) {
		if o, err = s.order(ctx, id); err != nil {
			return false, err
		}
		s.pending(orderState(o), "go on waiting with: certctl orders watch "+id)
		return orderEnded(o) || o.GetOrphan(), nil
	})
	switch {
	case err != nil:
		return nil, err
	case o.GetOrphan():
		return o, &Failure{Message: "order " + id + " is an orphan: nothing happens until somebody decides", Hint: "see: certctl orders get " + id, Code: exitError}
	case o.GetStatus() != issuancev1.Order_ISSUED:
		return o, &Failure{Message: orderState(o), Hint: "see: certctl orders get " + id, Code: exitError}
	}
	return o, nil
}

// orderState is one line of progress. Its times are exact, so that it changes only when something has happened.
func orderState(o *issuancev1.Order) string {
	line := fmt.Sprintf("order %s is %s", o.GetId(), o.GetStatus())
	if waits := waitsShortly(o); waits != "" {
		line += ", and waits for " + waits
	}
	if p := o.GetLastError(); p != nil {
		line += ": " + problem(p)
	}
	if t := o.GetNextPollTime(); t != nil {
		line += "; asked again at " + t.AsTime().UTC().Format(time.RFC3339)
	}
	return line
}
