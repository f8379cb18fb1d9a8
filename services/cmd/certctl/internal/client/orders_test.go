package client_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certctl/certctl/pkg/errs"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
)

func order(id string, status issuancev1.Order_Status, change ...func(*issuancev1.Order)) *issuancev1.Order {
	o := &issuancev1.Order{Id: id, CertificateId: "web", IssuerId: "digicert", Status: status, Age: durationpb.New(26 * time.Hour)}
	for _, f := range change {
		f(o)
	}
	return o
}

func trouble(reason, message string) func(*issuancev1.Order) {
	return func(o *issuancev1.Order) { o.LastError = &typev1.Problem{Reason: reason, Message: message} }
}

func polledLast(attempts int32, next time.Duration) func(*issuancev1.Order) {
	return func(o *issuancev1.Order) { o.PollAttempts, o.NextPollTime = attempts, at(next) }
}

func orphan(o *issuancev1.Order) {
	o.Orphan, o.CertificateId, o.SerialNumber = true, "", "0abc"
	o.Names = &typev1.Names{DnsNames: []string{"www.example.com", "example.com"}}
	o.LastError = &typev1.Problem{Reason: "NOT_IN_JOURNAL", Message: "nobody placed this order through certctl, or its record is lost"}
}

func listed(g *gateway, orders ...*issuancev1.Order) {
	answer(g, issuancev1.OrderService_ListOrders_FullMethodName, &issuancev1.ListOrdersRequest{}, &issuancev1.ListOrdersResponse{Orders: orders})
}

// stands answers what an order is, one after the other.
func stands(g *gateway, orders ...*issuancev1.Order) {
	next := steps(orders...)
	on(g, issuancev1.OrderService_GetOrder_FullMethodName, func(*issuancev1.GetOrderRequest) (*issuancev1.GetOrderResponse, error) {
		return &issuancev1.GetOrderResponse{Order: next()}, nil
	})
}

func TestOrdersShowTheirAgeAndWhatTheyWaitFor(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	listed(g,
		order("ord-1", issuancev1.Order_CREATED),
		order("ord-2", issuancev1.Order_CREATED, trouble("CA_UNAVAILABLE", "")),
		order("ord-3", issuancev1.Order_SUBMITTING),
		order("ord-4", issuancev1.Order_PENDING, polledLast(7, 12*time.Minute), trouble("CA_STILL_PENDING", "")),
		order("ord-5", issuancev1.Order_UNKNOWN, trouble("CA_REPLY_LOST", "")),
		order("ord-6", issuancev1.Order_UNKNOWN, trouble("ORDER_OUTCOME_UNKNOWN", "")),
		order("ord-7", issuancev1.Order_FAILED, trouble("CERTIFICATE_MISMATCH", "")))

	golden(t, `
	ID     STATUS      CERTIFICATE  ISSUER    AGE  NEXT POLL  WAITS FOR            ERROR
	ord-1  CREATED     web          digicert  26h  -          its turn             -
	ord-2  CREATED     web          digicert  26h  -          the CA to be back    CA_UNAVAILABLE
	ord-3  SUBMITTING  web          digicert  26h  -          the CA's reply       -
	ord-4  PENDING     web          digicert  26h  in 12m     the CA               CA_STILL_PENDING
	ord-5  UNKNOWN     web          digicert  26h  -          a look-up at the CA  CA_REPLY_LOST
	ord-6  UNKNOWN     web          digicert  26h  -          a human              ORDER_OUTCOME_UNKNOWN
	ord-7  FAILED      web          digicert  26h  -          -                    CERTIFICATE_MISMATCH
	`, g.ok(t, "orders", "list", "--status", "pending,UNKNOWN", "--min-age", "1d").out)

	want := &issuancev1.ListOrdersRequest{
		Status: []issuancev1.Order_Status{issuancev1.Order_PENDING, issuancev1.Order_UNKNOWN}, MinAge: durationpb.New(day),
	}
	got := requests[*issuancev1.ListOrdersRequest](g, issuancev1.OrderService_ListOrders_FullMethodName)[0]
	require.True(t, proto.Equal(want, got), "got %v", got)
}

func TestOrphansAreListedByWhatTheCAKnows(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	listed(g, order("ord-1", issuancev1.Order_ISSUED, orphan))

	golden(t, `
	ID     ISSUER    AT THE CA  NAME             AGE  SERIAL  WHY
	ord-1  digicert  ISSUED     www.example.com  26h  0abc    NOT_IN_JOURNAL
	`, g.ok(t, "orders", "list", "--orphan").out)
	require.True(t, requests[*issuancev1.ListOrdersRequest](g, issuancev1.OrderService_ListOrders_FullMethodName)[0].GetOrphan())

	require.Equal(t, []string{"ord-1"}, proposals(t, g, "orders", "adopt", ""))
	require.True(t, requests[*issuancev1.ListOrdersRequest](g, issuancev1.OrderService_ListOrders_FullMethodName)[1].GetOrphan())
}

func TestAnOrderIsShownWithItsPolls(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	full := order("ord-1", issuancev1.Order_PENDING, polledLast(2, 12*time.Minute), func(o *issuancev1.Order) {
		o.DeadlineTime = at(29 * day)
		o.Polls = []*issuancev1.OrderPoll{
			{Time: at(-time.Minute), Duration: durationpb.New(1234567 * time.Microsecond), Result: "ERROR", Reason: "CA_UNAVAILABLE", Message: "the CA could\nnot be asked", NextPollTime: at(12 * time.Minute)},
			{Time: at(-time.Hour), Duration: durationpb.New(30 * time.Millisecond), Result: "PENDING", NextPollTime: at(-time.Minute)},
		}
	})
	stands(g, full)

	golden(t, `
	id:              ord-1
	certificate_id:  web
	issuer_id:       digicert
	status:          PENDING
	poll_attempts:   2
	next_poll_time:  2026-03-01T12:12:00Z (in 12m)
	deadline_time:   2026-03-30T12:00:00Z (in 29d)
	age:             1d2h0m0s

	the CA has it, and answers later: it is asked again in 12m (2026-03-01T12:12:00Z)
	the order has failed if it is still pending in 29d (2026-03-30T12:00:00Z)
	ask the CA now with: certctl orders poll ord-1 --wait

	TIME                  TOOK    RESULT   ASKED AGAIN           REASON          MESSAGE
	2026-03-01T11:59:00Z  1.235s  ERROR    2026-03-01T12:12:00Z  CA_UNAVAILABLE  the CA could not be asked
	2026-03-01T11:00:00Z  30ms    PENDING  2026-03-01T11:59:00Z  -               -
	`, g.ok(t, "orders", "get", "ord-1").out)
	require.Contains(t, jsonField(t, g.ok(t, "orders", "show", "ord-1", "-o", "json").out, "polls"), "CA_UNAVAILABLE")
}

func TestAnOrderThatNeedsSomebodySaysWhatToDo(t *testing.T) {
	t.Parallel()
	for want, o := range map[string]*issuancev1.Order{
		"then give it up here with: certctl orders cancel ord-1\n":                                  order("ord-1", issuancev1.Order_UNKNOWN, trouble("ORDER_OUTCOME_UNKNOWN", "")),
		"looked up there before anything else happens\n":                                            order("ord-1", issuancev1.Order_UNKNOWN, trouble("CA_REPLY_LOST", "")),
		"or say that it needs nothing with: certctl orders dismiss ord-1 --reason TEXT\n":           order("ord-1", issuancev1.Order_PENDING, orphan),
		"the CA has nothing yet: it is called again by itself, until in 60m (2026-03-01T13:00:00Z)": order("ord-1", issuancev1.Order_CREATED, func(o *issuancev1.Order) { o.DeadlineTime = at(time.Hour) }),
	} {
		g := newGateway(t)
		stands(g, o)
		require.Contains(t, g.ok(t, "orders", "get", "ord-1").out, want)
	}
}

func TestAPollIsWaitedForUntilTheCAHasAnswered(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	before := order("ord-1", issuancev1.Order_PENDING, polledLast(7, time.Hour))
	answer(g, issuancev1.OrderService_PollOrder_FullMethodName, &issuancev1.PollOrderRequest{}, &issuancev1.PollOrderResponse{Order: before})

	require.Equal(t, "the CA is being asked; see its answer with: certctl orders get ord-1\n", g.ok(t, "orders", "poll", "ord-1").err)

	stands(g, before, before, order("ord-1", issuancev1.Order_PENDING, polledLast(8, 15*time.Minute)))
	r := g.ok(t, "orders", "poll", "ord-1", "--wait")
	require.Equal(t, "the CA is being asked\n", r.err)
	require.Contains(t, r.out, "in 15m")

	stands(g, before)
	require.Equal(t, 4, g.run(t, "orders", "poll", "ord-1", "--wait", "--timeout", "1s").code)
}

func TestAPollOfAnOrderThatIsNotPendingSaysThatThereIsNothingToAsk(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	for want, o := range map[string]*issuancev1.Order{
		"there is nothing to poll: the order waits for a look-up at the CA\n": order("ord-1", issuancev1.Order_UNKNOWN),
		"there is nothing to poll: the order has ended\n":                     order("ord-1", issuancev1.Order_ISSUED),
	} {
		answer(g, issuancev1.OrderService_PollOrder_FullMethodName, &issuancev1.PollOrderRequest{}, &issuancev1.PollOrderResponse{Order: o})
		require.Equal(t, want, g.ok(t, "orders", "poll", "ord-1", "--wait").err)
	}
}

func TestWatchFollowsAnOrderToItsEnd(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	pending := order("ord-1", issuancev1.Order_PENDING, polledLast(1, 5*time.Second))
	stands(g, pending, pending,
		order("ord-1", issuancev1.Order_PENDING, polledLast(2, time.Hour), trouble("CA_STILL_PENDING", "still pending at the CA")), order("ord-1", issuancev1.Order_ISSUED))

	r := g.ok(t, "orders", "watch", "ord-1", "-o", "name")

	require.Equal(t, "ord-1\n", r.out)
	golden(t, `
	order ord-1 is PENDING, and waits for the CA; asked again at 2026-03-01T12:00:05Z
	order ord-1 is PENDING, and waits for the CA: still pending at the CA (CA_STILL_PENDING); asked again at 2026-03-01T13:00:00Z
	order ord-1 is ISSUED
	`, r.err)
}

func TestWatchFailsWhenNothingWasIssued(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	stands(g, order("ord-1", issuancev1.Order_REJECTED, trouble("CA_REJECTED", "the CA said no")))
	r := g.run(t, "orders", "watch", "ord-1")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.out, "REJECTED")
	require.EqualError(t, r.failure, "order ord-1 is REJECTED: the CA said no (CA_REJECTED)\nsee: certctl orders get ord-1")

	stands(g, order("ord-2", issuancev1.Order_PENDING, orphan))
	r = g.run(t, "orders", "watch", "ord-2")
	require.Equal(t, 1, r.code)
	require.ErrorContains(t, r.failure, "order ord-2 is an orphan")

	stands(g, order("ord-3", issuancev1.Order_PENDING))
	r = g.run(t, "orders", "watch", "ord-3", "--timeout", "1s")
	require.Equal(t, 4, r.code)
	require.ErrorContains(t, r.failure, "go on waiting with: certctl orders watch ord-3")
}

func TestAnOrphanIsAdoptedForACertificate(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, issuancev1.OrderService_AdoptOrder_FullMethodName, &issuancev1.AdoptOrderRequest{}, &issuancev1.AdoptOrderResponse{Order: order("ord-1", issuancev1.Order_PENDING)})

	require.Contains(t, g.ok(t, "orders", "adopt", "ord-1", "--certificate", "web").out, "PENDING")

	sent := requests[*issuancev1.AdoptOrderRequest](g, issuancev1.OrderService_AdoptOrder_FullMethodName)[0]
	require.Equal(t, "web", sent.GetCertificateId())
	require.NotEmpty(t, sent.GetRequestId())

	on(g, issuancev1.OrderService_AdoptOrder_FullMethodName, func(*issuancev1.AdoptOrderRequest) (*issuancev1.AdoptOrderResponse, error) {
		return nil, errs.Field("certificate_id", "is needed: the CA does not say what this order was placed for")
	})
	r := g.run(t, "orders", "adopt", "ord-1")
	require.EqualError(t, r.failure, "the server refused the request:\n  certificate_id: is needed: the CA does not say what this order was placed for")
}

func TestAnOrphanIsDismissedWithAReason(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, issuancev1.OrderService_DismissOrder_FullMethodName, &issuancev1.DismissOrderRequest{}, &issuancev1.DismissOrderResponse{Order: order("ord-1", issuancev1.Order_ISSUED, orphan)})

	r := g.run(t, "orders", "dismiss", "ord-1")
	require.Equal(t, 2, r.code)
	require.ErrorContains(t, r.failure, `required flag(s) "reason" not set`)

	require.Equal(t, "order ord-1 dismissed\n", g.ok(t, "orders", "dismiss", "ord-1", "--reason", "the shop's own").out)
	require.Equal(t, "the shop's own", requests[*issuancev1.DismissOrderRequest](g, issuancev1.OrderService_DismissOrder_FullMethodName)[0].GetReason())
}

func TestACancelledOrderSaysHowThatWentAtTheCA(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, issuancev1.OrderService_CancelOrder_FullMethodName, &issuancev1.CancelOrderRequest{}, &issuancev1.CancelOrderResponse{
		Order: order("ord-1", issuancev1.Order_CANCELLED, trouble("CANCELLED_HERE_ONLY", "the order is given up here, and still at the CA: it takes no cancellation")),
	})

	r := g.ok(t, "orders", "cancel", "ord-1")

	require.Contains(t, r.out, "CANCELLED_HERE_ONLY")
	require.Equal(t, "the order is given up here, and still at the CA: it takes no cancellation\n", r.err)
}
