package issuertest_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

func TestFakeIssuesAfterThePlannedPolls(t *testing.T) {
	t.Parallel()
	f := newFake(t, issuertest.FakeConfig{})
	f.PlanOrder("ord-1", issuertest.Plan{Polls: 2, RetryAfter: time.Minute})
	sub := submit(t, f, request(t, "ord-1"))
	require.Equal(t, issuer.Pending, sub.State)
	require.Equal(t, time.Minute, sub.RetryAfter)
	require.Equal(t, []issuer.State{issuer.Pending, issuer.Pending, issuer.Issued, issuer.Issued}, poll(t, f, sub.Ref, 4))
	requireCounts(t, f, "ord-1", 1, 1, 4)
}

func TestFakeStaysPendingUntilItIsReleased(t *testing.T) {
	t.Parallel()
	f := newFake(t, issuertest.FakeConfig{})
	f.PlanAll(issuertest.Plan{Polls: issuertest.Forever})
	sub := submit(t, f, request(t, "ord-1"))
	require.Equal(t, []issuer.State{issuer.Pending, issuer.Pending}, poll(t, f, sub.Ref, 2))
	require.NoError(t, f.Release("ord-1"))
	require.Equal(t, []issuer.State{issuer.Issued}, poll(t, f, sub.Ref, 1))
}

func TestFakeRejects(t *testing.T) {
	t.Parallel()
	f := newFake(t, issuertest.FakeConfig{})
	f.PlanAll(issuertest.Plan{Polls: 1, Reject: "domain is on the block list"})
	sub := submit(t, f, request(t, "ord-1"))
	require.Equal(t, []issuer.State{issuer.Pending, issuer.Rejected, issuer.Rejected}, poll(t, f, sub.Ref, 3))
	requireCounts(t, f, "ord-1", 0, 1, 3)
}

func TestFakeLosesTheReplyOfAPlacedOrder(t *testing.T) {
	t.Parallel()
	for _, plan := range []issuertest.Plan{{LostReplies: 1}, {HangSubmit: true}} {
		f := newFake(t, issuertest.FakeConfig{Forgetful: true})
		f.PlanOrder("ord-1", plan)
		r := request(t, "ord-1")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		_, err := f.Submit(ctx, r)
		cancel()
		require.Equal(t, issuer.OutcomeUnknown, issuer.OutcomeOf(err))
		_, ok := issuer.AsUnknownOutcome(err)
		require.True(t, ok)

		found, ok, err := f.FindOrder(t.Context(), issuer.FindRequest{CSRSHA256: sha256.Sum256(r.CSR.Raw)})
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, issuer.Issued, found.State)
		requireCounts(t, f, "ord-1", 1, 1, 0)

		f.PlanOrder("ord-1", issuertest.Plan{})
		_, err = f.Submit(t.Context(), r)
		require.NoError(t, err)
		requireCounts(t, f, "ord-1", 2, 2, 0)
	}
}

func TestFakeAnswersPlannedErrorsFirst(t *testing.T) {
	t.Parallel()
	f := newFake(t, issuertest.FakeConfig{})
	busy, broken := issuer.RetryAfter(time.Hour, errors.New("busy")), errors.New("broken")
	f.PlanAll(issuertest.Plan{Polls: 1, SubmitErrors: []error{busy}, PollErrors: []error{broken}, FindErrors: []error{broken}})
	for _, id := range []string{"ord-1", "ord-2"} {
		_, err := f.Submit(t.Context(), request(t, id))
		require.ErrorIs(t, err, busy)
		requireCounts(t, f, id, 0, 1, 0)
		sub := submit(t, f, request(t, id))
		_, err = f.Poll(t.Context(), sub.Ref)
		require.ErrorIs(t, err, broken)
		require.Equal(t, []issuer.State{issuer.Pending, issuer.Issued}, poll(t, f, sub.Ref, 2))
		_, _, err = f.FindOrder(t.Context(), issuer.FindRequest{OrderID: id})
		require.ErrorIs(t, err, broken)
	}
	f.SetDown(busy)
	_, err := f.Submit(t.Context(), request(t, "ord-3"))
	require.ErrorIs(t, err, busy)
	requireCounts(t, f, "ord-3", 0, 0, 0)
	f.SetDown(nil)
	f.PlanOrder("ord-3", issuertest.Plan{})
	submit(t, f, request(t, "ord-3"))
}

func TestFakePollHangsUntilItsContextEnds(t *testing.T) {
	t.Parallel()
	f := newFake(t, issuertest.FakeConfig{})
	f.PlanAll(issuertest.Plan{Polls: 1, HangPoll: true})
	sub := submit(t, f, request(t, "ord-1"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := f.Poll(ctx, sub.Ref)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err))
}

func TestFakeCanDoWrong(t *testing.T) {
	t.Parallel()
	for what, plan := range map[string]issuertest.Plan{
		"public key": {WrongKey: true},
		"names":      {ExtraName: "extra.example.net"},
	} {
		f, r := newFake(t, issuertest.FakeConfig{}), request(t, "ord-1")
		f.PlanAll(plan)
		sub := submit(t, f, r)
		_, err := certcheck.CheckIssued(slices.Concat(sub.CertificatePEM, sub.ChainPEM), certcheck.Issued{
			PublicKey: r.CSR.PublicKey, Names: r.Names, Now: time.Now(),
		})
		var m *certcheck.Mismatch
		require.ErrorAs(t, err, &m)
		require.Equal(t, what, m.What)
	}
}

func TestFakeOnDiskIsTheSameCAForAnotherProcess(t *testing.T) {
	t.Parallel()
	config := issuertest.FakeConfig{StatePath: filepath.Join(t.TempDir(), "ca.json")}
	first := newFake(t, config)
	first.PlanAll(issuertest.Plan{Polls: 1})
	r := request(t, "ord-1")
	sub := submit(t, first, r)

	second := newFake(t, config)
	require.Equal(t, []issuer.State{issuer.Pending, issuer.Issued}, poll(t, second, sub.Ref, 2))
	require.Equal(t, sub.Ref, submit(t, second, r).Ref)
	requireCounts(t, first, "ord-1", 1, 2, 2)
	a, err := first.Chain(t.Context())
	require.NoError(t, err)
	b, err := second.Chain(t.Context())
	require.NoError(t, err)
	require.Equal(t, a[0].Raw, b[0].Raw)
	_, err = second.Revoke(t.Context(), issuer.RevokeRequest{Ref: sub.Ref, Reason: issuer.Superseded})
	require.NoError(t, err)
	reason, revoked, err := first.Revoked("ord-1")
	require.NoError(t, err)
	require.True(t, revoked)
	require.Equal(t, issuer.Superseded, reason)
}

func TestTwoFakesOnOneFileLoseNothing(t *testing.T) {
	t.Parallel()
	config := issuertest.FakeConfig{StatePath: filepath.Join(t.TempDir(), "ca.json")}
	fakes := []*issuertest.Fake{newFake(t, config), newFake(t, config)}
	r := request(t, "ord-1")
	var g errgroup.Group
	for n := range 20 {
		g.Go(func() error {
			_, err := fakes[n%2].Submit(t.Context(), r)
			return err
		})
	}
	require.NoError(t, g.Wait())
	requireCounts(t, fakes[0], "ord-1", 1, 20, 0)
}

func newFake(t testing.TB, c issuertest.FakeConfig) *issuertest.Fake {
	t.Helper()
	f, err := issuertest.NewFake(c)
	require.NoError(t, err)
	return f
}

func request(t testing.TB, orderID string) issuer.SubmitRequest {
	t.Helper()
	return issuertest.NewRequest(t, orderID, issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, "www.example.com"))
}

func submit(t testing.TB, i issuer.Issuer, r issuer.SubmitRequest) issuer.Submission {
	t.Helper()
	sub, err := i.Submit(t.Context(), r)
	require.NoError(t, err)
	return sub
}

func poll(t testing.TB, i issuer.Issuer, ref issuer.Ref, times int) []issuer.State {
	t.Helper()
	out := make([]issuer.State, 0, times)
	for range times {
		sub, err := i.Poll(t.Context(), ref)
		require.NoError(t, err)
		out = append(out, sub.State)
	}
	return out
}

func requireCounts(t testing.TB, f *issuertest.Fake, orderID string, bought, submits, polls int) {
	t.Helper()
	b, err := f.Bought(orderID)
	require.NoError(t, err)
	s, err := f.Submits(orderID)
	require.NoError(t, err)
	p, err := f.Polls(orderID)
	require.NoError(t, err)
	require.Equal(t, []int{bought, submits, polls}, []int{b, s, p}, "bought, submits, polls")
}
