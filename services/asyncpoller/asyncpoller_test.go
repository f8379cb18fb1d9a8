package asyncpoller_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpcctx"
	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/asyncpoller"
)

func TestAPendingOrderIsPolledUntilItIsIssued(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	pending := event(t, "order.pending", "ord-1", s.place("ord-1", "iss-a", issuertest.Plan{Polls: 3}))
	require.Equal(t, []eventv1.EventResult_Outcome{eventv1.EventResult_APPLIED}, s.deliver(pending))

	for n := 1; n <= 3; n++ {
		r := s.heard("ord-1", n)
		require.Equal(t, issuancev1.RecordPollResultRequest_STILL_PENDING, r.GetOutcome())
		require.EqualValues(t, n, r.GetPollAttempts())
		p := s.waiting("ord-1", int32(n))
		require.Equal(t, "waiting for approval at the CA", p.GetLastAnswer())
		require.WithinDuration(t, r.GetNextPollTime().AsTime(), p.GetDueTime().AsTime(), time.Millisecond, "issuance knows the next time")
		require.LessOrEqual(t, time.Until(p.GetDueTime().AsTime()), time.Duration(n)*10*time.Second)
		s.turn(10 * time.Second)
	}
	require.Equal(t, issuancev1.RecordPollResultRequest_ISSUED, s.heard("ord-1", 4).GetOutcome())
	s.state("ord-1", asyncpollerv1.Poll_DONE, 4)
	require.Equal(t, 4, s.polls("ord-1"))
	require.Equal(t, 1, s.order("ord-1").applied)

	require.Equal(t, []eventv1.EventResult_Outcome{eventv1.EventResult_APPLIED}, s.deliver(pending), "the same event again")
	require.Equal(t, asyncpollerv1.Poll_DONE, s.poll("ord-1").GetState())
}

func TestARejectedOrderEndsWithTheReasonOfTheCA(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.watch("ord-1", "iss-a", issuertest.Plan{Polls: 1, Reject: "the domain is not yours"})
	s.waiting("ord-1", 1)
	s.turn(time.Minute)
	r := s.heard("ord-1", 2)
	require.Equal(t, issuancev1.RecordPollResultRequest_REJECTED, r.GetOutcome())
	require.Equal(t, "the domain is not yours", r.GetProblem().GetMessage())
	s.state("ord-1", asyncpollerv1.Poll_DONE, 2)
}

func TestAnOrderSurvivesACAThatIsAwayLosesRepliesOrIsMisconfigured(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.watch("ord-1", "iss-a", issuertest.Plan{Polls: 1, PollErrors: []error{
		issuer.RetryAfter(90*time.Second, errors.New("429")), issuer.UnknownOutcome(nil, errors.New("connection reset")),
		errors.New("something else"), issuer.Misconfigured("API_KEY_INVALID", "the CA refuses the key"),
	}})
	for n, reason := range []string{"CA_UNAVAILABLE", "CA_UNAVAILABLE", "CA_UNAVAILABLE", "API_KEY_INVALID"} {
		r := s.heard("ord-1", n+1)
		require.Equal(t, issuancev1.RecordPollResultRequest_STILL_PENDING, r.GetOutcome())
		require.Equal(t, reason, r.GetProblem().GetReason())
		require.NotContains(t, r.GetProblem().GetMessage(), "reset", "errors of libraries are not shown")
		p := s.waiting("ord-1", int32(n+1))
		if n == 0 {
			require.WithinDuration(t, s.clock().Add(90*time.Second), p.GetDueTime().AsTime(), 10*time.Second, "the wish of the CA")
		}
		s.turn(2 * time.Minute)
	}
	s.heard("ord-1", 5)
	s.waiting("ord-1", 5)
	s.turn(2 * time.Minute)
	require.Equal(t, issuancev1.RecordPollResultRequest_ISSUED, s.heard("ord-1", 6).GetOutcome())
	bought, err := s.cas["iss-a"].Bought("ord-1")
	require.NoError(t, err)
	require.Equal(t, 1, bought)
}

func TestAnOrderThatTheCADoesNotAnswerForIsGivenUpOnlyWhenItDoesNotForADay(t *testing.T) {
	t.Parallel()
	for reason, want := range map[string]string{issuer.ReasonOrderNotFound: issuer.ReasonOrderNotFound, "CA_REFUSED": "ORDER_GIVEN_UP"} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			refusedForADay(t, reason, want)
		})
	}
}

func refusedForADay(t *testing.T, reason, want string) {
	t.Helper()
	s := newSite(t)
	unknown := issuer.Permanent(reason, "the CA has no such order")
	// Twice it says so, once it has it after all, and then it says so for good.
	plan := issuertest.Plan{Polls: issuertest.Forever, PollErrors: []error{unknown, unknown, nil}}
	for range 50 {
		plan.PollErrors = append(plan.PollErrors, unknown)
	}
	s.watch("ord-1", "iss-a", plan)
	for n := 1; n <= 3; n++ {
		r := s.heard("ord-1", n)
		require.Equal(t, issuancev1.RecordPollResultRequest_STILL_PENDING, r.GetOutcome())
		if n != 3 {
			require.Equal(t, reason, r.GetProblem().GetReason())
		}
		s.turn(2 * time.Hour)
	}
	began := s.clock()
	for n := 4; ; n++ {
		r := s.heard("ord-1", n)
		if r.GetOutcome() == issuancev1.RecordPollResultRequest_FAILED {
			require.Equal(t, want, r.GetProblem().GetReason())
			require.Contains(t, r.GetProblem().GetMessage(), "the CA has no such order")
			s.state("ord-1", asyncpollerv1.Poll_DONE, int32(n))
			require.GreaterOrEqual(t, s.clock().Sub(began), 24*time.Hour)
			break
		}
		require.Less(t, n, 50)
		s.turn(2 * time.Hour)
	}
}

func TestTheRetryAfterOfTheCAWins(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.watch("ord-1", "iss-a", issuertest.Plan{RetryAfter: 7 * time.Hour})
	s.heard("ord-1", 1)
	require.WithinDuration(t, s.clock().Add(7*time.Hour), s.waiting("ord-1", 1).GetDueTime().AsTime(), 10*time.Second)

	late := s.place("ord-2", "iss-a", issuertest.Plan{RetryAfter: 7 * time.Hour})
	late.DeadlineTime = timestamppb.New(s.clock().Add(time.Hour))
	_, err := s.client().CreatePoll(t.Context(), late)
	require.NoError(t, err)
	s.heard("ord-2", 1)
	require.WithinDuration(t, late.GetDeadlineTime().AsTime(), s.waiting("ord-2", 1).GetDueTime().AsTime(), time.Millisecond, "but not beyond the deadline")
}

func TestAtTheEndOfTheBudgetTheOrderIsStillPendingAndAtItsDeadlineItFails(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.watch("ord-1", "iss-a", issuertest.Plan{})
	require.Empty(t, s.heard("ord-1", 1).GetProblem().GetReason())
	s.waiting("ord-1", 1)
	s.turn(10 * time.Minute)
	r := s.heard("ord-1", 2)
	require.Equal(t, issuancev1.RecordPollResultRequest_STILL_PENDING, r.GetOutcome())
	require.Equal(t, "CA_STILL_PENDING", r.GetProblem().GetReason())
	wait := s.waiting("ord-1", 2).GetDueTime().AsTime().Sub(s.clock())
	require.Greater(t, wait, 14*time.Minute)
	require.Less(t, wait, 61*time.Minute)

	s.turn(72 * time.Hour)
	r = s.heard("ord-1", 3)
	require.Equal(t, issuancev1.RecordPollResultRequest_FAILED, r.GetOutcome())
	require.Equal(t, "ORDER_DEADLINE", r.GetProblem().GetReason())
	require.Contains(t, r.GetProblem().GetMessage(), "still pending at the CA at the deadline")
	s.state("ord-1", asyncpollerv1.Poll_DONE, 3)
}

func TestACertificateThatIsReadyAtTheDeadlineIsNotLost(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.watch("ord-1", "iss-a", issuertest.Plan{RetryAfter: 100 * time.Hour})
	s.heard("ord-1", 1)
	s.waiting("ord-1", 1)
	require.NoError(t, s.cas["iss-a"].Release("ord-1"))
	s.turn(200 * time.Hour)
	require.Equal(t, issuancev1.RecordPollResultRequest_ISSUED, s.heard("ord-1", 2).GetOutcome())
}

func TestAnOrderHasFailedAtItsDeadlineAndIsWatchedAgainWhenIssuanceGivesItALaterOne(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *asyncpoller.Config) { c.MaxWaits = map[string]time.Duration{"type-of-iss-a": time.Hour} })
	watch := s.place("ord-1", "iss-a", issuertest.Plan{})
	watch.DeadlineTime = timestamppb.New(s.clock().Add(time.Hour))
	_, err := s.client().CreatePoll(t.Context(), watch)
	require.NoError(t, err)
	s.waiting("ord-1", 1)
	s.turn(time.Hour)
	r := s.heard("ord-1", 2)
	require.Equal(t, issuancev1.RecordPollResultRequest_FAILED, r.GetOutcome(), "its own deadline counts, not how long somebody waits for it")
	require.Equal(t, "ORDER_DEADLINE", r.GetProblem().GetReason())
	s.state("ord-1", asyncpollerv1.Poll_DONE, 2)

	again, err := s.client().CreatePoll(t.Context(), watch)
	require.NoError(t, err)
	require.Equal(t, asyncpollerv1.Poll_DONE, again.GetPoll().GetState(), "the same request is the same watch")
	_, err = s.client().PollNow(t.Context(), &asyncpollerv1.PollNowRequest{OrderId: "ord-1"})
	require.True(t, errs.IsKind(err, errs.Conflict), "%v", err)

	s.do(func() { s.orders["ord-1"].status = issuancev1.Order_PENDING })
	require.NoError(t, s.cas["iss-a"].Release("ord-1"))
	watch.DueTime, watch.DeadlineTime = nil, timestamppb.New(s.clock().Add(time.Hour))
	_, err = s.client().CreatePoll(t.Context(), watch)
	require.NoError(t, err)
	require.Equal(t, issuancev1.RecordPollResultRequest_ISSUED, s.heard("ord-1", 3).GetOutcome())
	s.state("ord-1", asyncpollerv1.Poll_DONE, 3)
}

func TestPollNowAsksAtOnce(t *testing.T) {
	t.Parallel()
	// Only the kick can bring it in time.
	s := newSite(t, func(c *asyncpoller.Config) { c.PollInterval = time.Hour })
	s.watch("ord-1", "iss-a", issuertest.Plan{RetryAfter: 10 * time.Hour})
	s.heard("ord-1", 1)
	s.waiting("ord-1", 1)
	require.NoError(t, s.cas["iss-a"].Release("ord-1"))
	_, err := s.client().PollNow(t.Context(), &asyncpollerv1.PollNowRequest{OrderId: "ord-1"})
	require.NoError(t, err)
	require.Equal(t, issuancev1.RecordPollResultRequest_ISSUED, s.heard("ord-1", 2).GetOutcome())
	s.state("ord-1", asyncpollerv1.Poll_DONE, 2)

	_, err = s.client().PollNow(t.Context(), &asyncpollerv1.PollNowRequest{OrderId: "ord-1"})
	require.True(t, errs.IsKind(err, errs.Conflict), "%v", err)
	_, err = s.client().PollNow(t.Context(), &asyncpollerv1.PollNowRequest{OrderId: "ord-9"})
	require.True(t, errs.IsKind(err, errs.NotFound), "%v", err)
}

func TestACancelledWatchIsNotPolledAndALateAnswerIsDropped(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.watch("ord-1", "iss-a", issuertest.Plan{RetryAfter: time.Hour})
	s.waiting("ord-1", 1)
	s.watch("ord-2", "iss-a", issuertest.Plan{HangPoll: true})
	s.state("ord-2", asyncpollerv1.Poll_LEASED, 1)
	for _, id := range []string{"ord-1", "ord-2", "ord-2", "ord-9"} {
		_, err := s.client().CancelPoll(t.Context(), &asyncpollerv1.CancelPollRequest{OrderId: id})
		require.NoError(t, err, "safe to repeat")
	}
	s.turn(2 * time.Hour)
	s.replica.stop()
	for _, id := range []string{"ord-1", "ord-2"} {
		require.Equal(t, asyncpollerv1.Poll_ABANDONED, s.poll(id).GetState())
		require.Equal(t, 1, s.polls(id))
	}
	require.Empty(t, s.order("ord-2").calls)
}

func TestAnOrderThatEndsByAnotherWayIsNotWatched(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	want := map[issuancev1.Order_Status]asyncpollerv1.Poll_State{
		issuancev1.Order_ISSUED: asyncpollerv1.Poll_DONE, issuancev1.Order_FAILED: asyncpollerv1.Poll_DONE,
		issuancev1.Order_CANCELLED: asyncpollerv1.Poll_ABANDONED, issuancev1.Order_PENDING: asyncpollerv1.Poll_WAITING,
	}
	for status, state := range want {
		id := "ord-" + strings.ToLower(status.String())
		s.watch(id, "iss-a", issuertest.Plan{RetryAfter: time.Hour})
		s.waiting(id, 1)
		changed := &issuancev1.OrderChanged{Order: &issuancev1.Order{Id: id, Status: status}}
		require.Equal(t, []eventv1.EventResult_Outcome{eventv1.EventResult_APPLIED}, s.deliver(event(t, "order.changed", id, changed)))
		require.Equal(t, state, s.poll(id).GetState())
	}
}

func TestAPollOfAnOrderThatEndedMeanwhileEnds(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.watch("ord-1", "iss-a", issuertest.Plan{})
	s.waiting("ord-1", 1)
	s.do(func() { s.orders["ord-1"].status = issuancev1.Order_CANCELLED })
	s.watch("ord-2", "iss-a", issuertest.Plan{})
	s.waiting("ord-2", 1)
	s.do(func() { delete(s.orders, "ord-2") })
	s.turn(time.Minute)
	s.state("ord-1", asyncpollerv1.Poll_DONE, 2)
	s.state("ord-2", asyncpollerv1.Poll_ABANDONED, 2)
}

func TestEventsThatCannotBeAppliedAreRejected(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	good := s.place("ord-1", "iss-a", issuertest.Plan{})
	noDeadline, badReference := s.place("ord-2", "iss-a", issuertest.Plan{}), s.place("ord-3", "iss-a", issuertest.Plan{})
	noDeadline.DeadlineTime = nil
	badReference.CaReference = "[1]"
	got := s.deliver(
		event(t, "order.pending", "ord-2", noDeadline), event(t, "order.pending", "ord-3", badReference),
		event(t, "order.pending", "ord-4", &issuancev1.OrderChanged{}), event(t, "order.unheard", "ord-5", good), event(t, "order.pending", "ord-1", good))
	const rejected = eventv1.EventResult_REJECTED
	require.Equal(t, []eventv1.EventResult_Outcome{rejected, rejected, rejected, rejected, eventv1.EventResult_APPLIED}, got)
	s.heard("ord-1", 1)
	require.Nil(t, s.poll("ord-2"))
}

func TestOnlyIssuanceMayHaveCAsCalled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	watch := s.place("ord-1", "iss-a", issuertest.Plan{})
	scheduler := s.replica.server.AsPeer(t, "renewalscheduler")
	polls := asyncpollerv1.NewPollInternalServiceClient(scheduler)
	_, err := polls.CreatePoll(t.Context(), watch)
	require.True(t, errs.IsKind(err, errs.PermissionDenied), "%v", err)
	_, err = polls.PollNow(t.Context(), &asyncpollerv1.PollNowRequest{OrderId: "ord-1"})
	require.True(t, errs.IsKind(err, errs.PermissionDenied), "%v", err)
	_, err = polls.CancelPoll(t.Context(), &asyncpollerv1.CancelPollRequest{OrderId: "ord-1"})
	require.True(t, errs.IsKind(err, errs.PermissionDenied), "%v", err)
	_, err = eventv1.NewEventSinkServiceClient(scheduler).Deliver(t.Context(), &eventv1.DeliverRequest{Events: []*eventv1.Event{event(t, "order.pending", "ord-1", watch)}})
	require.True(t, errs.IsKind(err, errs.PermissionDenied), "%v", err)
	_, err = polls.BatchGetPolls(t.Context(), &asyncpollerv1.BatchGetPollsRequest{OrderIds: []string{"ord-1"}})
	require.NoError(t, err)
	admin := asyncpollerv1.NewPollInternalServiceClient(s.replica.server.AsRole(t, rpcctx.RoleAdmin))
	_, err = admin.BatchGetPolls(t.Context(), &asyncpollerv1.BatchGetPollsRequest{OrderIds: []string{"ord-1"}})
	require.True(t, errs.IsKind(err, errs.PermissionDenied), "%v", err)
}

func TestAHangingIssuerDelaysNoOther(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *asyncpoller.Config) { c.Slots, c.SlotsPerIssuer, c.CallTimeout = 8, 4, time.Hour })
	for n := range 20 {
		s.watch(fmt.Sprintf("ord-hangs-%02d", n), "iss-a", issuertest.Plan{HangPoll: true})
	}
	hanging := func() int {
		n := 0
		for i := range 20 {
			n += s.polls(fmt.Sprintf("ord-hangs-%02d", i))
		}
		return n
	}
	s.eventually("the hanging CA takes all that it gets", func() bool { return hanging() == 4 })
	// The other CA's orders are due later than all of those, and more than there are slots.
	for n := range 20 {
		s.watch(fmt.Sprintf("ord-%02d", n), "iss-b", issuertest.Plan{RetryAfter: time.Hour})
	}
	for n := range 20 {
		s.heard(fmt.Sprintf("ord-%02d", n), 1)
	}
	require.Equal(t, 4, hanging(), "the hanging CA has no more than its share")
}

func TestAnIssuerWithManyDueOrdersIsWorkedThroughWithoutWaitingForTheInterval(t *testing.T) {
	t.Parallel()
	s := newWorld(t)
	s.replica = s.start(func(c *asyncpoller.Config) { c.PollInterval, c.Slots, c.SlotsPerIssuer = time.Hour, 8, 2 })
	s.replica.stop() // the orders become due while nobody looks
	for n := range 40 {
		s.watch(fmt.Sprintf("ord-%02d", n), "iss-a", issuertest.Plan{RetryAfter: time.Hour})
	}
	s.replica = s.start(func(c *asyncpoller.Config) { c.PollInterval, c.Slots, c.SlotsPerIssuer = time.Hour, 8, 2 })
	for n := range 40 {
		s.heard(fmt.Sprintf("ord-%02d", n), 1)
	}
}

func TestTwoReplicasNeverPollOneOrderUnderOneLease(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	other := s.start()
	const orders, rounds = 60, 3
	id := func(n int) string { return fmt.Sprintf("ord-%02d", n) }
	for n := range orders {
		s.watch(id(n), []string{"iss-a", "iss-b"}[n%2], issuertest.Plan{RetryAfter: time.Hour})
	}
	for round := 1; round <= rounds; round++ {
		for n := range orders {
			s.waiting(id(n), int32(round))
		}
		s.turn(time.Hour + time.Minute)
	}
	for n := range orders {
		s.waiting(id(n), rounds+1)
	}
	s.replica.stop()
	other.stop()
	for n := range orders {
		o := s.order(id(n))
		require.Equal(t, int(s.poll(id(n)).GetAttempts()), s.polls(id(n)), "one poll for each lease")
		require.Len(t, o.calls, s.polls(id(n)))
		for i, c := range o.calls {
			require.EqualValues(t, i+1, c.GetPollAttempts())
		}
	}
}

func TestAResultThatIssuanceTookWhileTheReplyWasLostIsAppliedOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	lost := 0
	s.do(func() {
		s.hear = func(r *issuancev1.RecordPollResultRequest) error {
			if r.GetOutcome() == issuancev1.RecordPollResultRequest_ISSUED && lost == 0 {
				lost++
				return errs.New(errs.Unavailable, "LOST", "the reply was lost")
			}
			return nil
		}
	})
	request := s.place("ord-1", "iss-a", issuertest.Plan{})
	require.NoError(t, s.cas["iss-a"].Release("ord-1"))
	_, err := s.client().CreatePoll(t.Context(), request)
	require.NoError(t, err)
	s.heard("ord-1", 1)
	s.turn(time.Minute)
	s.heard("ord-1", 2)
	s.state("ord-1", asyncpollerv1.Poll_DONE, 2)
	require.Equal(t, 1, s.order("ord-1").applied)
}

func TestWhileIssuanceIsAwayNothingIsLost(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.do(func() { s.down = errs.New(errs.Unavailable, "DOWN", "away") })
	s.watch("ord-1", "iss-a", issuertest.Plan{})
	require.NoError(t, s.cas["iss-a"].Release("ord-1"))
	s.eventually("attempts", func() bool { s.turnIfWaiting("ord-1", 5*time.Second); return s.polls("ord-1") >= 3 })
	require.Empty(t, s.order("ord-1").calls)
	s.do(func() { s.down = nil })
	s.eventually("issued", func() bool {
		s.turnIfWaiting("ord-1", 5*time.Second)
		return s.order("ord-1").status == issuancev1.Order_ISSUED
	})
	s.state("ord-1", asyncpollerv1.Poll_DONE, 1)
}

func TestAStoppedPollerGivesItsPollsBack(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *asyncpoller.Config) { c.CallTimeout = time.Hour })
	s.watch("ord-1", "iss-a", issuertest.Plan{HangPoll: true})
	s.state("ord-1", asyncpollerv1.Poll_LEASED, 1)
	s.replica.stop()
	p := s.poll("ord-1")
	require.Equal(t, asyncpollerv1.Poll_WAITING, p.GetState())
	require.Zero(t, p.GetAttempts(), "the end of the process is no attempt")
	require.Empty(t, s.order("ord-1").calls, "and says nothing about the CA")
}

func TestCredentialsAreFetchedOnceAndAgainWhenTheyChange(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.cas["iss-a"]
	all := func(round int32) {
		for n := range 5 {
			s.waiting(fmt.Sprintf("ord-%d", n), round)
		}
	}
	for n := range 5 {
		s.watch(fmt.Sprintf("ord-%d", n), "iss-a", issuertest.Plan{RetryAfter: time.Hour})
	}
	all(1)
	require.Len(t, a.builds(), 1)
	s.do(func() { require.Equal(t, 1, s.asked) })
	require.JSONEq(t, `{"url":"https://ca.example"}`, string(a.builds()[0].Settings), "secrets are apart")
	require.Equal(t, "key 0", a.builds()[0].Secrets["api_key"].Reveal())

	s.turn(2 * time.Hour)
	all(2)
	require.Len(t, a.builds(), 1, "the same configuration is the same connector")
	s.do(func() { a.revision, a.settings = 1, map[string]any{"url": "https://ca.example", "api_key": "key 1"} })
	s.turn(2 * time.Hour)
	all(3)
	require.Len(t, a.builds(), 2)
	require.Equal(t, "key 1", a.builds()[1].Secrets["api_key"].Reveal())
	for _, entry := range s.logs.All() {
		require.NotContains(t, fmt.Sprint(entry.Message, entry.ContextMap()), "key 0")
	}
}

func TestAnIssuerThatCannotBeUsedLeavesItsOrdersPending(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.cas["iss-a"].refuse = issuer.Misconfigured("CLIENT_CERTIFICATE_EXPIRED", "the client certificate has expired")
	s.watch("ord-1", "iss-a", issuertest.Plan{})
	r := s.heard("ord-1", 1)
	require.Equal(t, issuancev1.RecordPollResultRequest_STILL_PENDING, r.GetOutcome())
	require.Equal(t, "CLIENT_CERTIFICATE_EXPIRED", r.GetProblem().GetReason())
	require.True(t, s.logged("an issuer whose orders are watched does not work"))
	s.do(func() { s.cas["iss-b"].err = errs.New(errs.PermissionDenied, "ISSUER_NOT_POLLED", "never polled") })
	s.watch("ord-2", "iss-b", issuertest.Plan{})
	require.Equal(t, "ISSUER_NOT_USABLE", s.heard("ord-2", 1).GetProblem().GetReason())
}

func TestEachLoopRunsAndSaysWhatItIs(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var names []string
	for _, l := range s.replica.service.Loops() {
		names = append(names, l.Name)
		require.NotEmpty(t, l.Description)
	}
	require.Equal(t, []string{"poll dispatch", "poll prune", "inbox prune"}, names)
	s.eventually("all ran", func() bool {
		for _, l := range s.replica.service.Loops() {
			if l.Runs == 0 || l.Errors > 0 {
				return false
			}
		}
		return true
	})
}
