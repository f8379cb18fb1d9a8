package faulttest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

// Calls is a connector whose single calls are under test: what each fault makes of a submission, a search and a revocation.
// Run sees whole orders through.
type Calls struct {
	// CA is its name in package casimulator.
	CA string
	// New makes an issuer of a simulator that was started, whose calls end after timeout seconds. It has nothing to wait for
	// before an order that is not listed is not there.
	New func(t testing.TB, sim *casimulator.Simulator, at casimulator.Addresses, timeout int) issuer.Issuer
	// Lifetime of the certificates that are asked for, and the most that the CA may add to it.
	Lifetime  time.Duration
	WholeDays bool
}

// Seconds after which calls end: the short time is for faults that are waited out.
const shortTimeout, longTimeout = 1, 20

// trouble is a fault that passes, and what a connector has to make of it when it changes something.
type trouble struct {
	name  string
	fault casimulator.Fault
	want  []issuer.Outcome // of an error
	slow  bool
	// harmless says that no error is right as well. inBody is trouble with the body of the answer, which is harmless where
	// an answer has none.
	harmless, inBody bool
}

func troubles() []trouble {
	unknown, retry := []issuer.Outcome{issuer.OutcomeUnknown}, []issuer.Outcome{issuer.OutcomeRetry}
	either := slices.Concat(unknown, retry)
	return []trouble{
		{name: "connection cut before", fault: casimulator.Fault{Kind: casimulator.DropBefore}, want: unknown},
		{name: "connection cut after", fault: casimulator.Fault{Kind: casimulator.DropAfter}, want: unknown},
		{name: "500", fault: casimulator.Fault{Kind: casimulator.ServerError}, want: unknown},
		{name: "502", fault: casimulator.Fault{Kind: casimulator.ServerError, Status: 502}, want: unknown},
		{name: "503 with Retry-After", fault: casimulator.Fault{Kind: casimulator.ServerError, Status: 503, RetryAfter: time.Minute}, want: unknown},
		{name: "504 after", fault: casimulator.Fault{Kind: casimulator.ServerErrorAfter, Status: 504}, want: unknown},
		{name: "429", fault: casimulator.Fault{Kind: casimulator.RateLimit}, want: retry},
		{name: "429 with seconds", fault: casimulator.Fault{Kind: casimulator.RateLimit, RetryAfter: time.Minute}, want: retry},
		{name: "429 with a date", fault: casimulator.Fault{Kind: casimulator.RateLimit, RetryAfter: time.Minute, RetryAfterDate: true}, want: retry},
		{name: "HTML with 200", fault: casimulator.Fault{Kind: casimulator.HTMLPage, Status: 200}, want: unknown},
		{name: "HTML with 404", fault: casimulator.Fault{Kind: casimulator.HTMLPage, Status: 404}, want: unknown},
		{name: "HTML with 502", fault: casimulator.Fault{Kind: casimulator.HTMLPage}, want: unknown},
		{name: "HTML with 200 after", fault: casimulator.Fault{Kind: casimulator.HTMLPageAfter, Status: 200}, want: unknown},
		{name: "body too long", fault: casimulator.Fault{Kind: casimulator.OversizedBody, Bytes: 12 << 20}, want: unknown, inBody: true},
		{name: "JSON cut", fault: casimulator.Fault{Kind: casimulator.MalformedJSON}, want: unknown, inBody: true},
		{name: "reply twice", fault: casimulator.Fault{Kind: casimulator.ReplyTwice}, want: either, harmless: true},
		{name: "reply doubled", fault: casimulator.Fault{Kind: casimulator.DoubledReply}, want: either, harmless: true},
		{name: "slow bytes", fault: casimulator.Fault{Kind: casimulator.SlowBytes, Delay: time.Minute}, want: either, slow: true, inBody: true},
		{name: "late before", fault: casimulator.Fault{Kind: casimulator.Hang}, want: either, slow: true},
		{name: "late after", fault: casimulator.Fault{Kind: casimulator.DelayAfter, Delay: time.Minute}, want: either, slow: true},
	}
}

// RunCalls holds the outcome of calls against each fault that passes.
func RunCalls(t *testing.T, s Calls) {
	t.Helper()
	for _, tr := range troubles() {
		t.Run("submit: "+tr.name, func(t *testing.T) { t.Parallel(); s.submit(t, tr) })
		t.Run("find: "+tr.name, func(t *testing.T) { t.Parallel(); s.find(t, tr) })
		t.Run("revoke: "+tr.name, func(t *testing.T) { t.Parallel(); s.revoke(t, tr) })
	}
}

// simulated is a connector with its CA. Its context marks calls as urgent: they do not wait for what the guard of the account
// has made of the fault.
type simulated struct {
	s   Calls
	sim *casimulator.Simulator
	i   issuer.Issuer
	ctx context.Context //nolint:containedctx // of one test
}

func (s Calls) start(t testing.TB, slow bool) simulated {
	t.Helper()
	sim, at := Start(t, casimulator.Scenario{})
	timeout := longTimeout
	if slow {
		timeout = shortTimeout
	}
	return simulated{s: s, sim: sim, i: s.New(t, sim, at, timeout), ctx: account.Urgent(t.Context())}
}

func (c simulated) set(kind casimulator.Fault, operation string) {
	kind.CA, kind.Operation, kind.Times = c.s.CA, operation, 1
	c.sim.Set(kind)
}

func (c simulated) request(t testing.TB) issuer.SubmitRequest {
	t.Helper()
	r := issuertest.NewRequest(t, "ord-fault", issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, "fault.example.com", "www.fault.example.com"))
	r.Lifetime = c.s.Lifetime
	return r
}

// place submits until the order is there, as a caller does that reconciles before it submits again.
func (c simulated) place(t testing.TB, r issuer.SubmitRequest) issuer.Submission {
	t.Helper()
	for range 10 {
		sub, err := c.i.Submit(c.ctx, r)
		if err == nil {
			return sub
		}
		require.NotEqual(t, issuer.OutcomePermanent, issuer.OutcomeOf(err), "%v", err)
		if issuer.OutcomeOf(err) == issuer.OutcomeRetry {
			continue
		}
		if sub, ok := c.lookUp(t, r); ok {
			return sub
		}
	}
	require.Fail(t, "the order could not be placed")
	return issuer.Submission{}
}

func (c simulated) lookUp(t testing.TB, r issuer.SubmitRequest) (issuer.Submission, bool) {
	t.Helper()
	finder, ok := c.i.(issuer.Finder)
	require.True(t, ok)
	for range 10 {
		sub, there, err := finder.FindOrder(c.ctx, found(r))
		if err == nil {
			return sub, there
		}
		require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%v", err)
	}
	require.Fail(t, "it could not be told whether the order is there")
	return issuer.Submission{}, false
}

// finish polls until the order has ended; each error has to be one that passes.
func (c simulated) finish(t testing.TB, sub issuer.Submission) issuer.Submission {
	t.Helper()
	for n := 0; sub.State == issuer.Pending; n++ {
		require.Less(t, n, 20, "still pending")
		next, err := c.i.Poll(c.ctx, sub.Ref)
		if err != nil {
			require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%v", err)
			continue
		}
		sub = next
	}
	return sub
}

func (c simulated) check(r issuer.SubmitRequest, sub issuer.Submission) (certcheck.Chain, error) {
	want := certcheck.Issued{PublicKey: r.CSR.PublicKey, Names: r.Names, Now: time.Now(), NotAfter: r.RequestedAt.Add(r.Lifetime + time.Minute)}
	if c.s.WholeDays {
		want.NotAfter = want.NotAfter.Add(24 * time.Hour)
	}
	return certcheck.CheckIssued(slices.Concat(sub.CertificatePEM, sub.ChainPEM), want)
}

// requireOne holds what the CA has against what there has to be.
func (c simulated) requireOne(t testing.TB, r issuer.SubmitRequest, sub issuer.Submission) {
	t.Helper()
	require.Equal(t, issuer.Issued, sub.State, sub.Detail)
	chain, err := c.check(r, sub)
	require.NoError(t, err)
	orders := c.sim.Orders()
	require.Len(t, orders, 1, "one order for one intent")
	require.Equal(t, 1, orders[0].Certificates)
	require.Contains(t, orders[0].Serials, fmt.Sprintf("%032X", chain.Leaf.SerialNumber))
	require.Empty(t, c.sim.Violations())
}

func (s Calls) submit(t *testing.T, tr trouble) {
	c := s.start(t, tr.slow)
	r := c.request(t)
	c.set(tr.fault, "submit")
	_, err := c.i.Submit(c.ctx, r)
	require.Equal(t, 1, c.sim.Happened(tr.fault.Kind), "the fault happened")
	if !tr.harmless {
		require.Error(t, err)
	}
	if err != nil {
		require.Contains(t, tr.want, issuer.OutcomeOf(err), "%v", err)
		requireShort(t, err)
		if tr.fault.RetryAfter > 0 && issuer.OutcomeOf(err) == issuer.OutcomeRetry {
			after, ok := issuer.RetryDelay(err)
			require.True(t, ok)
			require.InDelta(t, tr.fault.RetryAfter.Seconds(), after.Seconds(), 2)
		}
	}
	placed := len(c.sim.Orders())
	require.LessOrEqual(t, placed, 1)
	if err == nil {
		require.Equal(t, 1, placed)
	}
	sub, there := c.lookUp(t, r)
	require.Equal(t, placed == 1, there, "what is there is found, and nothing else")
	if !there {
		sub = c.place(t, r)
	}
	c.requireOne(t, r, c.finish(t, sub))
}

// requireShort holds an error to a few words: no pages, no bodies.
func requireShort(t testing.TB, err error) {
	t.Helper()
	require.Less(t, len(err.Error()), 700)
	require.NotContains(t, err.Error(), "<")
}

func (s Calls) find(t *testing.T, tr trouble) {
	c := s.start(t, tr.slow)
	finder, ok := c.i.(issuer.Finder)
	if !ok {
		t.Skip("does not find orders")
	}
	r := c.request(t)
	c.place(t, r)
	c.set(tr.fault, "list")
	sub, there, err := finder.FindOrder(c.ctx, found(r))
	if tr.fault.Kind != casimulator.ReplyTwice { // questions are not repeated
		require.Equal(t, 1, c.sim.Happened(tr.fault.Kind), "the fault happened")
	}
	cut := tr.fault.Kind == casimulator.DropBefore || tr.fault.Kind == casimulator.DropAfter
	if !tr.harmless && !cut { // net/http asks again over another connection when one that it kept is cut
		require.Error(t, err)
	}
	if err != nil {
		require.Equal(t, issuer.OutcomeRetry, issuer.OutcomeOf(err), "%v", err)
		sub, there = c.lookUp(t, r)
	}
	require.True(t, there, "nobody is told that an order is not there which is")
	c.requireOne(t, r, c.finish(t, sub))
}

func (s Calls) revoke(t *testing.T, tr trouble) {
	c := s.start(t, tr.slow)
	revoker, ok := c.i.(issuer.Revoker)
	if !ok {
		t.Skip("does not revoke")
	}
	r := c.request(t)
	sub := c.finish(t, c.place(t, r))
	chain, err := c.check(r, sub)
	require.NoError(t, err)
	c.set(tr.fault, "revoke")
	revoke := issuer.RevokeRequest{Ref: sub.Ref, Certificate: chain.Leaf, Reason: issuer.Superseded, RevokedAt: time.Now()}
	for n := range 5 {
		revocation, err := revoker.Revoke(c.ctx, revoke)
		require.Equal(t, 1, c.sim.Happened(tr.fault.Kind), "the fault happened")
		if n == 0 && !tr.harmless && !tr.inBody { // most CAs answer revocations without a body
			require.Error(t, err)
		}
		if err == nil {
			require.Equal(t, issuer.Revoked, revocation.State)
			require.Len(t, c.sim.Orders()[0].Revoked, 1)
			return
		}
		require.Contains(t, tr.want, issuer.OutcomeOf(err), "%v", err)
	}
	require.Fail(t, "not revoked")
}

// found describes an order that was submitted so long ago that the CA shows it.
func found(r issuer.SubmitRequest) issuer.FindRequest {
	return issuer.FindRequest{
		OrderID: r.OrderID, CSRSHA256: sha256.Sum256(r.CSR.Raw), Names: r.Names, SerialNumber: r.SerialNumber,
		Since: r.RequestedAt.Add(-time.Hour), PublicKey: r.CSR.PublicKey, Previous: r.Previous,
	}
}
