package api

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
)

func watchOf(r *asyncpollerv1.CreatePollRequest) core.Watch {
	return core.Watch{
		OrderID: r.GetOrderId(), IssuerID: r.GetIssuerId(), CAReference: r.GetCaReference(),
		DueTime: timeOf(r.GetDueTime()), DeadlineTime: timeOf(r.GetDeadlineTime()),
	}
}

func message(p core.Poll) *asyncpollerv1.Poll {
	out := &asyncpollerv1.Poll{
		OrderId: p.OrderID, IssuerId: p.IssuerID, State: asyncpollerv1.Poll_State(asyncpollerv1.Poll_State_value[p.State]),
		Attempts: int32(p.Attempts), LastAnswer: p.LastAnswer, Hastened: p.Hastened,
		DueTime: timestamppb.New(p.DueTime), DeadlineTime: timestamppb.New(p.DeadlineTime), CreateTime: timestamppb.New(p.CreateTime),
	}
	for _, e := range p.History {
		out.History = append(out.History, answer(e))
	}
	return out
}

func answer(e core.Entry) *asyncpollerv1.PollAnswer {
	out := &asyncpollerv1.PollAnswer{
		Attempt: int32(e.Attempt), PollTime: timestamppb.New(e.Time), Duration: durationpb.New(e.Duration),
		Result: asyncpollerv1.PollAnswer_Result(asyncpollerv1.PollAnswer_Result_value[e.Result]), Reason: e.Reason, Message: e.Message,
	}
	if !e.NextTime.IsZero() {
		out.NextPollTime = timestamppb.New(e.NextTime)
	}
	return out
}

// timeOf reads an unset time as the zero time.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
