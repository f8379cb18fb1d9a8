// Package faulttest takes an issuer through the faults of the CA simulator as issuance and asyncpoller would: it submits,
// reconciles what was lost, polls, and holds the certificate against the order. Whatever goes wrong, at the end one
// certificate was bought for one order, and no error has shown a secret.
package faulttest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

// CA is a connector under test.
type CA struct {
	// Name is the simulator's.
	Name string
	// New makes an issuer at a simulator. It has to give up a call after a second, and to make as many as it likes.
	New func(t testing.TB, sim *casimulator.Simulator, at casimulator.Addresses) issuer.Issuer
	// Poll are the operations that a poll consists of; Before those that a submission asks before it orders.
	Poll, Before []string
	// List is the operation that lost orders are looked up by.
	List string
	// Lifetime of the certificates; that of issuertest if zero.
	Lifetime time.Duration
	// Secrets must be seen nowhere.
	Secrets func(casimulator.CredentialSet) []string
	// Ahead and Behind are how orders end at a CA whose clock is a day off: "issued", "mismatch", or "refused" when the CA
	// does not take them.
	Ahead, Behind Ending
	// WrongSerial is how an order ends whose certificate the CA says to have another serial number; Issued if empty.
	// MissingIntermediate is how one ends whose certificate comes without its issuer; Mismatch if empty.
	WrongSerial, MissingIntermediate Ending
	// Forgotten is how an order ends that the first operation of Poll does not find any more; Rejected if empty.
	Forgotten Ending
}

// Ending is how an order ends.
type Ending string

// The endings.
const (
	Issued   Ending = "issued"   // and the certificate is right
	Mismatch Ending = "mismatch" // and the certificate is another than was asked for
	Rejected Ending = "rejected" // by the CA, after it was taken
	Refused  Ending = "refused"  // it was never taken
	Waiting  Ending = "waiting"  // still pending when the test gives up
)

// scene is one order under faults.
type scene struct {
	name   string
	faults []casimulator.Fault
	clock  time.Duration
	want   Ending
	bought int // 1 if zero
	// rare says that the faults need not happen: not every connector presents a client certificate.
	rare bool
}

// atOnce is how many orders are under way: they mostly wait.
const atOnce = 16

// Run tests all faults. The orders are placed side by side, each at a simulator of its own.
func Run(t *testing.T, ca CA) {
	t.Helper()
	all := scenes(ca)
	results := make([]error, len(all))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for n, s := range all {
		run := stage(t, ca, s)
		g.Go(func() error {
			results[n] = run()
			return nil
		})
	}
	require.NoError(t, g.Wait())
	for n, s := range all {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, results[n])
		})
	}
}

func scenes(ca CA) []scene {
	all := submissions()
	for _, operation := range slices.Concat(ca.Poll, ca.Before) {
		for _, f := range transient() {
			f.Operation, f.Times = operation, 1
			all = append(all, scene{name: fmt.Sprintf("%s of %s", f.name, operation), faults: []casimulator.Fault{f.Fault, later()}, want: Issued})
		}
	}
	all = append(all, refusedPolls(ca)...)
	forgotten, wrongSerial, missing := cmp.Or(ca.Forgotten, Rejected), cmp.Or(ca.WrongSerial, Issued), cmp.Or(ca.MissingIntermediate, Mismatch)
	for offset, want := range map[time.Duration]Ending{24 * time.Hour: ca.Ahead, -24 * time.Hour: ca.Behind} {
		name := fmt.Sprintf("clock of the CA is off by %s", offset)
		all = append(all,
			scene{name: name, clock: offset, want: want},
			scene{name: name + " and the reply is lost", clock: offset, want: want, faults: []casimulator.Fault{
				later(), {Operation: "submit", Kind: casimulator.DropAfter, Times: 1},
			}})
	}
	return append(all,
		scene{name: "order is forgotten", want: forgotten, faults: []casimulator.Fault{later(), {Operation: ca.Poll[0], Kind: casimulator.Forgotten}}},
		scene{name: "order is rejected", want: Rejected, faults: []casimulator.Fault{{Kind: casimulator.Reject, Reason: "not today"}}},
		scene{name: "reply is lost and the list is late", want: Issued, faults: []casimulator.Fault{
			{Operation: "submit", Kind: casimulator.DropAfter, Times: 1}, {Operation: ca.List, Kind: casimulator.Forgotten, Delay: 500 * time.Millisecond},
		}},
		scene{name: "reply is lost and the list fails", want: Issued, faults: []casimulator.Fault{
			{Operation: "submit", Kind: casimulator.DropAfter, Times: 1}, {Operation: ca.List, Kind: casimulator.ServerError, Times: 3},
			{Operation: ca.List, Kind: casimulator.RateLimit, Times: 3},
		}},
		scene{name: "order waits", want: Issued, faults: []casimulator.Fault{later()}},
		scene{name: "order waits for a human", want: Issued, faults: []casimulator.Fault{{Kind: casimulator.NeedsApproval, Operation: "submit", Delay: 200 * time.Millisecond}}},
		scene{name: "order waits for a human for ever", want: Waiting, faults: []casimulator.Fault{{Kind: casimulator.NeedsApproval, Operation: "submit"}}},
		scene{name: "certificate is for another key", want: Mismatch, faults: []casimulator.Fault{{Kind: casimulator.WrongKey}}},
		scene{name: "certificate has other names", want: Mismatch, faults: []casimulator.Fault{{Kind: casimulator.WrongName}}},
		scene{name: "certificate is not valid yet", want: Mismatch, faults: []casimulator.Fault{{Kind: casimulator.NotYetValid}}},
		scene{name: "reply is lost and the certificate has other names", want: Mismatch, faults: []casimulator.Fault{
			{Kind: casimulator.WrongName}, {Operation: "submit", Kind: casimulator.DropAfter, Times: 1},
		}},
		scene{name: "serial number is another", want: wrongSerial, faults: []casimulator.Fault{later(), {Kind: casimulator.WrongSerial}}},
		scene{name: "intermediate is missing", want: missing, faults: []casimulator.Fault{{Kind: casimulator.MissingIntermediate}}},
		scene{name: "root comes first", want: Issued, faults: []casimulator.Fault{{Kind: casimulator.RootFirst}}},
		scene{name: "two orders are made of one", want: Issued, bought: 2, faults: []casimulator.Fault{{Kind: casimulator.DuplicateOrder, Times: 1}}},
		scene{name: "two orders are made of one and the reply is lost", want: Issued, bought: 2, faults: []casimulator.Fault{
			{Kind: casimulator.DuplicateOrder, Times: 1}, {Operation: "submit", Kind: casimulator.DropAfter, Times: 1},
		}},
		scene{name: "client certificate is refused once", want: Issued, rare: true, faults: []casimulator.Fault{{Kind: casimulator.MTLSRefused, Times: 1}}},
		scene{name: "everything fails now and then", want: Issued, faults: []casimulator.Fault{
			{Kind: casimulator.DropAfter, Probability: 0.2, Times: 3}, {Kind: casimulator.ServerErrorAfter, Probability: 0.2, Times: 3},
			{Kind: casimulator.RateLimit, Probability: 0.2, Times: 3}, {Kind: casimulator.MalformedJSON, Probability: 0.2, Times: 3},
			{Kind: casimulator.DropBefore, Probability: 0.2, Times: 3},
		}},
	)
}

// refusedPolls are refusals of polls, in the CA's own form, that pass: they say nothing of the order, which is paid for. (422 is
// how GlobalSign says that it has refused a certificate.)
func refusedPolls(ca CA) []scene {
	var all []scene
	for _, operation := range ca.Poll {
		for _, status := range []int{400, 409} {
			f := casimulator.Fault{Kind: casimulator.ClientError, Operation: operation, Status: status, Times: 2}
			all = append(all, scene{name: fmt.Sprintf("client_error %d of %s", status, operation), faults: []casimulator.Fault{f, later()}, want: Issued})
		}
	}
	return all
}

// later lets an order wait for a moment, so that it is polled: some CAs issue at once.
func later() casimulator.Fault {
	return casimulator.Fault{Kind: casimulator.IssueAfter, Operation: "submit", Delay: 200 * time.Millisecond}
}

// named is a fault with what it is called in the name of a test.
type named struct {
	name string
	casimulator.Fault
}

// transient are the faults that pass.
func transient() []named {
	fault := func(kind casimulator.Kind, change ...func(*casimulator.Fault)) named {
		n := named{name: string(kind), Fault: casimulator.Fault{Kind: kind}}
		for _, c := range change {
			c(&n.Fault)
		}
		return n
	}
	status := func(code int) func(*casimulator.Fault) { return func(f *casimulator.Fault) { f.Status = code } }
	all := []named{
		fault(casimulator.Delay, func(f *casimulator.Fault) { f.Delay = 20 * time.Millisecond }),
		fault(casimulator.Hang), fault(casimulator.RateLimit),
		fault(casimulator.RateLimit, func(f *casimulator.Fault) { f.RetryAfter = 7 * time.Second }),
		fault(casimulator.RateLimit, func(f *casimulator.Fault) { f.RetryAfter, f.RetryAfterDate = 7*time.Second, true }),
		fault(casimulator.ServerError), fault(casimulator.ServerError, status(502)), fault(casimulator.ServerError, status(504)),
		fault(casimulator.ServerError, status(503), func(f *casimulator.Fault) { f.RetryAfter = 7 * time.Second }),
		fault(casimulator.ServerErrorAfter), fault(casimulator.HTMLPage), fault(casimulator.HTMLPage, status(200)), fault(casimulator.HTMLPageAfter),
		fault(casimulator.DropBefore), fault(casimulator.DropAfter), fault(casimulator.ReplyTwice), fault(casimulator.DoubledReply),
		fault(casimulator.SlowBytes, func(f *casimulator.Fault) { f.Delay = 3 * time.Second }),
		fault(casimulator.OversizedBody), fault(casimulator.MalformedJSON),
	}
	for n := range all {
		if code := all[n].Status; code != 0 {
			all[n].name += fmt.Sprintf(" %d", code)
		}
		if all[n].RetryAfter != 0 {
			all[n].name += " with Retry-After"
		}
		if all[n].RetryAfterDate {
			all[n].name += " as a date"
		}
	}
	return all
}

// submissions are the faults that hit the order itself, with a CA whose clock is right and with one that is a day off.
func submissions() []scene {
	var all []scene
	for _, f := range transient() {
		f.Operation, f.Times = "submit", 1
		all = append(all, scene{name: f.name + " of submit", faults: []casimulator.Fault{f.Fault}, want: Issued})
	}
	for _, f := range transient() {
		f.Operation, f.Times = "submit", 1
		all = append(all, scene{name: f.name + " of submit, and the order waits", faults: []casimulator.Fault{f.Fault, later()}, want: Issued})
	}
	return all
}

// stage makes simulator, issuer and order; what it gives places the order and tells what is wrong.
func stage(t *testing.T, ca CA, s scene) func() error {
	t.Helper()
	sim, at := Start(t, casimulator.Scenario{Clock: s.clock})
	for n := range s.faults {
		s.faults[n].CA = ca.Name
	}
	sim.Set(s.faults...)
	d := driver{ctx: account.Urgent(t.Context()), issuer: ca.New(t, sim, at), secrets: ca.Secrets(sim.Credentials())}
	r := request(t, ca)
	return func() error {
		got := d.place(r)
		return errors.Join(d.wrong, d.compare(s, d.judge(r, got), sim), s.happened(sim))
	}
}

// happened holds against the simulator that what was to go wrong went wrong: a test without its fault tests nothing. Replies are
// kept for requests that change something only, and nothing more happens to an order that was never taken.
func (s scene) happened(sim *casimulator.Simulator) error {
	for _, f := range s.faults {
		if s.rare || s.want == Refused || f.Probability > 0 || f.Kind == casimulator.ReplyTwice && f.Operation != "submit" {
			continue
		}
		if sim.Happened(f.Kind) == 0 {
			return fmt.Errorf("the fault %s of %s did not happen", f.Kind, cmp.Or(f.Operation, "anything"))
		}
	}
	return nil
}

// compare holds the ending and the books of the CA against what is wanted.
func (d *driver) compare(s scene, ending Ending, sim *casimulator.Simulator) error {
	bought := 0
	for _, o := range sim.Orders() {
		bought += o.Billed
	}
	if ending == Rejected && bought == 0 {
		ending = Refused
	}
	want := max(s.bought, 1)
	if s.want == Refused {
		want = 0
	}
	heard := strings.Join(d.said, "\n")
	switch violations := sim.Violations(); {
	case ending != s.want:
		return fmt.Errorf("the order is %s, wanted is %s:\n%s", ending, s.want, heard)
	case bought != want:
		return fmt.Errorf("%d certificates were bought, wanted is %d:\n%s", bought, want, heard)
	case len(violations) > 0:
		return fmt.Errorf("the connector does not keep to the API: %v", violations)
	}
	return nil
}

// Start makes a simulator that listens until the test ends.
func Start(t testing.TB, s casimulator.Scenario) (*casimulator.Simulator, casimulator.Addresses) {
	t.Helper()
	sim, err := casimulator.New(casimulator.Config{Dir: t.TempDir(), Scenario: s})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	at, err := sim.Start(ctx, casimulator.Listen{Address: "127.0.0.1:0", ControlAddress: "127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(func() {
		stop()
		_ = sim.Wait() // its end is that of the test
		require.NoError(t, sim.Close())
	})
	return sim, at
}

func request(t *testing.T, ca CA) issuer.SubmitRequest {
	t.Helper()
	r := issuertest.NewRequest(t, "ord-fault", issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, "www.example.com", "example.com"))
	if ca.Lifetime != 0 {
		r.Lifetime = ca.Lifetime
	}
	return r
}

// driver does with an issuer what issuance and asyncpoller do, without their waiting.
type driver struct {
	ctx     context.Context //nolint:containedctx // that of the test
	issuer  issuer.Issuer
	secrets []string
	said    []string
	wrong   error
}

const (
	patience = 20 * time.Second
	pause    = 50 * time.Millisecond
	// enough is how long an order is watched that will not end.
	enough = 2 * time.Second
)

// outcome is the last that is known of an order.
type outcome struct {
	submission issuer.Submission
	err        error // permanent
}

// place sees an order through to its end.
func (d *driver) place(r issuer.SubmitRequest) outcome {
	begin := time.Now()
	var pending time.Time // since when the CA says so
	step := d.submit(r)
	for {
		sub, next, err := step()
		d.hear(sub, err)
		switch {
		case err != nil && issuer.OutcomeOf(err) == issuer.OutcomePermanent && !isConfiguration(err):
			return outcome{err: err}
		case err == nil && sub.State != issuer.Pending, time.Since(begin) > patience:
			return outcome{submission: sub}
		case err == nil && sub.Ref != nil && pending.IsZero():
			pending = time.Now()
		case err == nil && sub.Ref != nil && time.Since(pending) > enough:
			return outcome{submission: sub}
		}
		step = next
		<-time.After(pause)
	}
}

// isConfiguration tells whether somebody has to mend the settings, after which the same call is made again.
func isConfiguration(err error) bool {
	p, ok := issuer.AsPermanent(err)
	return ok && p.Fault == issuer.FaultConfiguration
}

// stepFunc makes one call; next is what to do after it.
type stepFunc func() (sub issuer.Submission, next stepFunc, err error)

func (d *driver) call(f func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeout(d.ctx, 5*time.Second)
	defer cancel()
	_ = f(ctx) // the caller has the error
}

func (d *driver) submit(r issuer.SubmitRequest) stepFunc {
	return func() (sub issuer.Submission, next stepFunc, err error) {
		d.call(func(ctx context.Context) error { sub, err = d.issuer.Submit(ctx, r); return err })
		switch {
		case err == nil:
			return sub, d.poll(sub.Ref), nil
		case issuer.OutcomeOf(err) == issuer.OutcomeUnknown:
			return sub, d.find(r, err), err
		}
		return sub, d.submit(r), err
	}
}

func (d *driver) poll(ref issuer.Ref) stepFunc {
	return func() (sub issuer.Submission, next stepFunc, err error) {
		d.call(func(ctx context.Context) error { sub, err = d.issuer.Poll(ctx, ref); return err })
		if err != nil || sub.Ref == nil {
			return sub, d.poll(ref), err
		}
		return sub, d.poll(sub.Ref), nil
	}
}

func (d *driver) find(r issuer.SubmitRequest, lost error) stepFunc {
	find := issuer.FindRequest{
		OrderID: r.OrderID, CSRSHA256: sha256.Sum256(r.CSR.Raw), Names: r.Names, SerialNumber: r.SerialNumber, PublicKey: r.CSR.PublicKey,
		Since: r.RequestedAt.Add(-time.Second), LastSubmitted: r.RequestedAt, Previous: r.Previous,
	}
	if u, ok := issuer.AsUnknownOutcome(lost); ok {
		find.Ref = u.Ref
	}
	return func() (sub issuer.Submission, next stepFunc, err error) {
		finder, ok := d.issuer.(issuer.Finder)
		if !ok {
			return sub, d.find(r, lost), issuer.Permanent("NO_LOOKUP", "nobody can tell what became of the order")
		}
		var found bool
		d.call(func(ctx context.Context) error { sub, found, err = finder.FindOrder(ctx, find); return err })
		switch {
		case err != nil:
			return sub, d.find(r, lost), err
		case found:
			return sub, d.poll(sub.Ref), nil
		}
		return issuer.Submission{State: issuer.Pending, Detail: "not there"}, d.submit(r), nil
	}
}

// hear notes what was said, none of which may be a secret.
func (d *driver) hear(sub issuer.Submission, err error) {
	text := fmt.Sprintf("%s %s %v %v", sub.State, sub.Detail, sub.Ref, err)
	var all []string
	for e := err; e != nil; e = errors.Unwrap(e) {
		all = append(all, fmt.Sprintf("%+v", e))
	}
	for _, secret := range d.secrets {
		if strings.Contains(text, secret) || strings.Contains(strings.Join(all, "\n"), secret) {
			d.wrong = errors.Join(d.wrong, fmt.Errorf("a secret was shown: %s", text))
		}
	}
	if len(text) > 4096 {
		d.wrong = errors.Join(d.wrong, fmt.Errorf("an error has %d bytes", len(text)))
	}
	if !slices.Contains(d.said, text) {
		d.said = append(d.said, text)
	}
}

// judge holds what came back against the order.
func (d *driver) judge(r issuer.SubmitRequest, o outcome) Ending {
	switch {
	case o.err != nil || o.submission.State == issuer.Rejected:
		return Rejected
	case o.submission.State != issuer.Issued:
		return Waiting
	}
	want := certcheck.Issued{
		PublicKey: r.CSR.PublicKey, Names: r.Names, Now: time.Now(), NotAfter: r.RequestedAt.Add(r.Lifetime + time.Minute), ExtKeyUsages: r.ExtKeyUsages,
	}
	if _, err := certcheck.CheckIssued(slices.Concat(o.submission.CertificatePEM, []byte("\n"), o.submission.ChainPEM), want); err != nil {
		return Mismatch
	}
	return Issued
}
