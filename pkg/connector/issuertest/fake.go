package issuertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
)

// FakeTypeName is the type of Fake in the API.
const FakeTypeName = "fake"

// Forever as Plan.Polls keeps an order pending until Release.
const Forever = -1

// refOrder is the entry of a Ref that holds the fake's own number of an order.
const refOrder = "fake_order"

// FakeConfig of a Fake.
type FakeConfig struct {
	// StatePath is a file that keeps CA and orders, so that another Fake on the same path, in this or another process,
	// at the same time or later, is the same CA. Empty: in memory.
	StatePath string
	// Forgetful makes each Submit a new order, as most commercial CAs do that have no idempotency key. Otherwise the
	// same OrderID is the same order.
	Forgetful bool
	Now       func() time.Time // nil: time.Now
}

// Plan is how a fake treats an order. The zero plan issues at once.
type Plan struct {
	Polls      int           // how many polls answer PENDING first; more than 0 or Forever makes Submit answer PENDING
	RetryAfter time.Duration // what pending answers ask for
	Reject     string        // the order ends REJECTED with this detail

	SubmitErrors []error // answers of the first calls of Submit; nothing is placed
	PollErrors   []error // answers of the first calls of Poll
	FindErrors   []error // answers of the first calls of FindOrder
	LostReplies  int     // so many calls of Submit place the order and answer with an unknown outcome
	HangSubmit   bool    // Submit places the order and hangs until its context ends
	HangPoll     bool    // Poll hangs until its context ends

	// What a CA can do wrong with the certificate:
	WrongKey  bool   // it is for another key
	ExtraName string // it holds one DNS name more
	RootFirst bool   // the bundle begins with the root and ends with the leaf, all in CertificatePEM
}

// Fake is an issuer that behaves as planned. It signs with a real CA of its own and counts what was bought. It is safe
// for concurrent use.
type Fake struct {
	config FakeConfig
	store  *fakeStore

	mu    sync.Mutex // guards all below
	base  Plan
	plans map[string]*Plan
	down  error
}

var (
	_ issuer.Issuer        = (*Fake)(nil)
	_ issuer.Revoker       = (*Fake)(nil)
	_ issuer.Finder        = (*Fake)(nil)
	_ issuer.ChainProvider = (*Fake)(nil)
)

// NewFake makes a fake, or opens that of StatePath.
func NewFake(c FakeConfig) (*Fake, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	store, err := openFakeStore(c.StatePath, c.Now())
	if err != nil {
		return nil, fmt.Errorf("open fake issuer: %w", err)
	}
	return &Fake{config: c, store: store, plans: map[string]*Plan{}}, nil
}

// Type describes f as an issuer type whose every instance is f.
func (f *Fake) Type() issuer.Type {
	return issuer.Type{
		Name:         FakeTypeName,
		Capabilities: issuer.Capabilities{Async: true, Revocation: true, Find: true},
		Validate: func(raw json.RawMessage, _ []string) error {
			return issuer.Decode(raw, &struct{}{})
		},
		New: func(context.Context, issuer.Config, issuer.Deps) (issuer.Issuer, error) { return f, nil },
	}
}

// PlanAll sets the plan of all orders without a plan of their own.
func (f *Fake) PlanAll(p Plan) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.base = p.clone()
}

// PlanOrder sets the plan of one order. An order that is placed already keeps Polls and Reject, the rest takes effect.
func (f *Fake) PlanOrder(orderID string, p Plan) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := p.clone()
	f.plans[orderID] = &c
}

// SetDown makes each call answer with err before anything is done; nil ends that.
func (f *Fake) SetDown(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = err
}

// Release lets the next poll of a pending order end it.
func (f *Fake) Release(orderID string) error {
	return f.store.update(func(s *fakeState) error {
		for _, o := range s.of(orderID) {
			o.PollsLeft = 0
		}
		return nil
	})
}

// Bought tells how many orders were placed under one OrderID and not rejected: 1 is right, 2 costs money.
func (f *Fake) Bought(orderID string) (int, error) {
	n := 0
	err := f.store.view(func(s *fakeState) error {
		for _, o := range s.of(orderID) {
			if o.Plan.Reject == "" {
				n++
			}
		}
		return nil
	})
	return n, err
}

// Submits tells how often Submit was called for an order, Polls how often Poll.
func (f *Fake) Submits(orderID string) (int, error) { return f.store.count(submits, orderID) }

// Polls tells how often Poll was called for an order.
func (f *Fake) Polls(orderID string) (int, error) { return f.store.count(polls, orderID) }

// Orders gives the OrderIDs of all placed orders in the order of their arrival, with repetitions.
func (f *Fake) Orders() ([]string, error) {
	var out []string
	err := f.store.view(func(s *fakeState) error {
		for _, o := range s.Orders {
			out = append(out, o.OrderID)
		}
		return nil
	})
	return out, err
}

// Revoked tells the reason for which an order's certificate was revoked.
func (f *Fake) Revoked(orderID string) (reason issuer.Reason, revoked bool, err error) {
	err = f.store.view(func(s *fakeState) error {
		for _, o := range s.of(orderID) {
			if o.Revoked != nil {
				reason, revoked = *o.Revoked, true
			}
		}
		return nil
	})
	return reason, revoked, err
}

// Submit places an order as planned.
func (f *Fake) Submit(ctx context.Context, r issuer.SubmitRequest) (issuer.Submission, error) {
	if err := f.before(ctx); err != nil {
		return issuer.Submission{}, err
	}
	if r.OrderID == "" || r.CSR == nil {
		return issuer.Submission{}, issuer.Permanent("REQUEST_INCOMPLETE", "an order needs an id and a CSR")
	}
	plan, planned := f.take(r.OrderID, func(p *Plan) *[]error { return &p.SubmitErrors })
	out, err := f.place(ctx, r, plan, planned)
	switch {
	case err != nil:
		return issuer.Submission{}, err
	case f.loseReply(r.OrderID):
		return issuer.Submission{}, issuer.UnknownOutcome(nil, errors.New("connection reset by peer"))
	case plan.HangSubmit:
		<-ctx.Done()
		return issuer.Submission{}, issuer.UnknownOutcome(nil, ctx.Err())
	}
	return out, nil
}

// Poll answers as planned.
func (f *Fake) Poll(ctx context.Context, ref issuer.Ref) (issuer.Submission, error) {
	if err := f.before(ctx); err != nil {
		return issuer.Submission{}, err
	}
	orderID, err := f.notePoll(ref)
	if err != nil {
		return issuer.Submission{}, err
	}
	plan, planned := f.take(orderID, func(p *Plan) *[]error { return &p.PollErrors })
	if planned != nil {
		return issuer.Submission{}, planned
	}
	if plan.HangPoll {
		<-ctx.Done()
		return issuer.Submission{}, issuer.RetryAfter(0, ctx.Err())
	}
	var out issuer.Submission
	err = f.store.update(func(s *fakeState) error {
		o, err := s.byRef(ref)
		if err != nil {
			return err
		}
		out, err = o.answer(ctx, s.ca, f.config.Now)
		return err
	})
	return out, err
}

// FindOrder looks by OrderID and by CSR. Of several, it gives the first.
func (f *Fake) FindOrder(ctx context.Context, r issuer.FindRequest) (issuer.Submission, bool, error) {
	if err := f.before(ctx); err != nil {
		return issuer.Submission{}, false, err
	}
	if _, planned := f.take(r.OrderID, func(p *Plan) *[]error { return &p.FindErrors }); planned != nil {
		return issuer.Submission{}, false, planned
	}
	var out issuer.Submission
	var found bool
	err := f.store.view(func(s *fakeState) error {
		i := slices.IndexFunc(s.Orders, func(o *fakeOrder) bool {
			return o.OrderID == r.OrderID || sha256.Sum256(o.CSR) == r.CSRSHA256
		})
		if found = i >= 0; found {
			out = s.Orders[i].current()
		}
		return nil
	})
	return out, found, err
}

// Revoke notes the reason.
func (f *Fake) Revoke(ctx context.Context, r issuer.RevokeRequest) (issuer.Revocation, error) {
	if err := f.before(ctx); err != nil {
		return issuer.Revocation{}, err
	}
	if !r.Reason.Valid() {
		return issuer.Revocation{}, issuer.Permanent("REASON_NOT_SUPPORTED", "nothing can be revoked for %s", r.Reason)
	}
	err := f.store.update(func(s *fakeState) error {
		o, err := s.byRef(r.Ref)
		if err == nil && o.Revoked == nil {
			o.Revoked = &r.Reason
		}
		return err
	})
	return issuer.Revocation{State: issuer.Revoked}, err
}

// Chain gives the fake's CA.
func (f *Fake) Chain(context.Context) ([]*x509.Certificate, error) { return f.store.ca.Chain(), nil }

// before is what every call does first.
func (f *Fake) before(ctx context.Context) error {
	if err := issuer.NotSent(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.down
}

// take gives the plan of an order and takes the next of its planned errors.
func (f *Fake) take(orderID string, list func(*Plan) *[]error) (Plan, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.plan(orderID)
	errs := list(p)
	var next error
	if len(*errs) > 0 {
		next, *errs = (*errs)[0], (*errs)[1:]
	}
	return p.clone(), next
}

func (f *Fake) loseReply(orderID string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.plan(orderID)
	if p.LostReplies <= 0 {
		return false
	}
	p.LostReplies--
	return true
}

// plan gives each order its own copy, so that what one order uses up is still there for the next.
func (f *Fake) plan(orderID string) *Plan {
	p, ok := f.plans[orderID]
	if !ok {
		c := f.base.clone()
		p = &c
		f.plans[orderID] = p
	}
	return p
}

// place notes the call and accepts the order, unless an error is planned or the order is known.
func (f *Fake) place(ctx context.Context, r issuer.SubmitRequest, plan Plan, planned error) (issuer.Submission, error) {
	var out issuer.Submission
	var refused error
	err := f.store.update(func(s *fakeState) error {
		s.Counts[submits+r.OrderID]++
		refused = planned
		if planned != nil {
			return nil //nolint:nilerr // the call counts although it is refused; the plan's error goes out beside
		}
		if known := s.of(r.OrderID); len(known) > 0 && !f.config.Forgetful {
			out = known[0].current()
			return nil
		}
		out, refused = s.accept(ctx, r, plan, f.config.Now)
		return nil
	})
	return out, errors.Join(err, refused)
}

func (f *Fake) notePoll(ref issuer.Ref) (orderID string, err error) {
	err = f.store.update(func(s *fakeState) error {
		o, err := s.byRef(ref)
		if err != nil {
			return err
		}
		orderID = o.OrderID
		s.Counts[polls+orderID]++
		return nil
	})
	return orderID, err
}

func (p Plan) clone() Plan {
	p.SubmitErrors, p.PollErrors = slices.Clone(p.SubmitErrors), slices.Clone(p.PollErrors)
	p.FindErrors = slices.Clone(p.FindErrors)
	return p
}

// fakeOrder is an order at the fake CA. It keeps of the plan what decides its outcome.
type fakeOrder struct {
	Number       int
	OrderID      string
	CSR          []byte
	Names        certcheck.Names
	Lifetime     time.Duration
	NotAfter     time.Time
	KeyUsage     x509.KeyUsage
	ExtKeyUsages []x509.ExtKeyUsage
	Plan         outcomePlan
	PollsLeft    int
	State        issuer.State
	Certificate  []byte
	Chain        []byte
	Revoked      *issuer.Reason
}

// outcomePlan is the part of Plan that is stored.
type outcomePlan struct {
	RetryAfter time.Duration
	Reject     string
	WrongKey   bool
	ExtraName  string
	RootFirst  bool
}

// current is the answer without moving the order.
func (o *fakeOrder) current() issuer.Submission {
	out := issuer.Submission{State: o.State, Ref: issuer.Ref{refOrder: strconv.Itoa(o.Number)}}
	switch o.State {
	case issuer.Pending:
		out.RetryAfter, out.Detail = o.Plan.RetryAfter, "waiting for approval at the CA"
	case issuer.Rejected:
		out.Detail = o.Plan.Reject
	case issuer.Issued:
		out.CertificatePEM, out.ChainPEM = o.Certificate, o.Chain
	}
	return out
}

// answer moves the order by one poll.
func (o *fakeOrder) answer(ctx context.Context, ca local.CA, now func() time.Time) (issuer.Submission, error) {
	if o.State == issuer.Pending {
		if o.PollsLeft == 0 {
			if err := o.finish(ctx, ca, now); err != nil {
				return issuer.Submission{}, err
			}
		} else if o.PollsLeft > 0 {
			o.PollsLeft--
		}
	}
	return o.current(), nil
}

// finish rejects or issues.
func (o *fakeOrder) finish(ctx context.Context, ca local.CA, now func() time.Time) error {
	if o.Plan.Reject != "" {
		o.State = issuer.Rejected
		return nil
	}
	sub, err := o.sign(ctx, ca, now)
	if err != nil {
		return err
	}
	o.State, o.Certificate, o.Chain = issuer.Issued, sub.CertificatePEM, sub.ChainPEM
	if o.Plan.RootFirst {
		chain := ca.Chain()
		slices.Reverse(chain)
		o.Certificate, o.Chain = append(certcheck.EncodePEM(chain...), o.Certificate...), nil
	}
	return nil
}

// sign takes serial number and time from itself, as a commercial CA does.
func (o *fakeOrder) sign(ctx context.Context, ca local.CA, now func() time.Time) (issuer.Submission, error) {
	signer, err := local.New(local.Config{CA: ca}, issuer.Deps{Now: now})
	if err != nil {
		return issuer.Submission{}, err
	}
	csr, err := x509.ParseCertificateRequest(o.CSR)
	if err != nil {
		return issuer.Submission{}, issuer.Permanent("CSR_REFUSED", "the CSR cannot be read")
	}
	r := issuer.SubmitRequest{
		OrderID: o.OrderID, CSR: csr, Names: o.Names, Lifetime: o.Lifetime, NotAfter: o.NotAfter,
		KeyUsage: o.KeyUsage, ExtKeyUsages: o.ExtKeyUsages,
	}
	if err := o.Plan.spoil(&r); err != nil {
		return issuer.Submission{}, err
	}
	return signer.Submit(ctx, r)
}

func (p outcomePlan) spoil(r *issuer.SubmitRequest) error {
	if p.ExtraName != "" {
		r.Names.DNSNames = append(slices.Clone(r.Names.DNSNames), p.ExtraName)
	}
	if !p.WrongKey {
		return nil
	}
	key, err := newKey(certcheck.ECDSAP256)
	if err != nil {
		return err
	}
	r.CSR, err = newCSR(key, r.Names)
	return err
}

// accept places a new order.
func (s *fakeState) accept(ctx context.Context, r issuer.SubmitRequest, p Plan, now func() time.Time) (issuer.Submission, error) {
	o := &fakeOrder{
		Number: len(s.Orders) + 1, OrderID: r.OrderID, CSR: bytes.Clone(r.CSR.Raw), Names: r.Names,
		Lifetime: r.Lifetime, NotAfter: r.NotAfter, KeyUsage: r.KeyUsage, ExtKeyUsages: r.ExtKeyUsages,
		State: issuer.Pending, PollsLeft: p.Polls,
		Plan: outcomePlan{
			RetryAfter: p.RetryAfter, Reject: p.Reject, WrongKey: p.WrongKey, ExtraName: p.ExtraName, RootFirst: p.RootFirst,
		},
	}
	// A request that cannot be fulfilled is refused at once, not when somebody polls.
	if _, err := o.sign(ctx, s.ca, now); err != nil {
		return issuer.Submission{}, err
	}
	if p.Polls == 0 {
		if err := o.finish(ctx, s.ca, now); err != nil {
			return issuer.Submission{}, err
		}
	}
	s.Orders = append(s.Orders, o)
	return o.current(), nil
}
