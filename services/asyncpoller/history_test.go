package asyncpoller_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/errs"
	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
)

func (s *site) history(id string) []*asyncpollerv1.PollAnswer {
	s.t.Helper()
	got, err := s.client().BatchGetPolls(s.t.Context(), &asyncpollerv1.BatchGetPollsRequest{OrderIds: []string{id}, IncludeHistory: true})
	require.NoError(s.t, err)
	require.Len(s.t, got.GetPolls(), 1)
	return got.GetPolls()[0].GetHistory()
}

func TestTheHistoryTellsHowEachPollWent(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.watch("ord-1", "iss-a", issuertest.Plan{Polls: 1, PollErrors: []error{
		issuer.RetryAfter(90*time.Second, nil), issuer.Misconfigured("API_KEY_INVALID", "the CA refuses the key"),
	}})
	began := s.clock()
	for n := int32(1); n <= 3; n++ {
		s.waiting("ord-1", n)
		s.turn(2 * time.Minute)
	}
	s.state("ord-1", asyncpollerv1.Poll_DONE, 4)
	got := s.history("ord-1")
	require.Len(t, got, 4)
	for i, want := range []struct {
		result          asyncpollerv1.PollAnswer_Result
		reason, message string
	}{
		{asyncpollerv1.PollAnswer_ISSUED, "", ""},
		{asyncpollerv1.PollAnswer_PENDING, "", "waiting for approval at the CA"},
		{asyncpollerv1.PollAnswer_ERROR, "API_KEY_INVALID", "the CA refuses the key"},
		{asyncpollerv1.PollAnswer_ERROR, "CA_UNAVAILABLE", "the CA could not be asked"},
	} {
		a := got[i]
		require.Equal(t, want.result, a.GetResult(), i)
		require.Equal(t, want.reason, a.GetReason())
		require.Equal(t, want.message, a.GetMessage())
		require.EqualValues(t, 4-i, a.GetAttempt(), "the newest first")
		require.WithinDuration(t, began.Add(time.Duration(3-i)*2*time.Minute), a.GetPollTime().AsTime(), 30*time.Second)
		require.Less(t, a.GetDuration().AsDuration(), time.Minute)
		require.Equal(t, want.result == asyncpollerv1.PollAnswer_ISSUED, a.GetNextPollTime() == nil)
	}
	require.WithinDuration(t, got[3].GetPollTime().AsTime().Add(90*time.Second), got[3].GetNextPollTime().AsTime(), 10*time.Second)
	require.Empty(t, s.poll("ord-1").GetHistory(), "nobody asked for it")
}

func TestTheHistoriesOfManyOrdersAreNotGivenAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	request := &asyncpollerv1.BatchGetPollsRequest{IncludeHistory: true}
	for n := range 51 {
		request.OrderIds = append(request.OrderIds, fmt.Sprint("ord-", n))
	}
	_, err := s.client().BatchGetPolls(t.Context(), request)
	require.True(t, errs.IsKind(err, errs.Invalid), "%v", err)
	request.IncludeHistory = false
	_, err = s.client().BatchGetPolls(t.Context(), request)
	require.NoError(t, err)
}
