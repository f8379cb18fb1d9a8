package torture_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/services/asyncpoller"
	"github.com/certctl/certctl/services/issuance"
)

// ending is how the orders of a script end.
type ending string

const (
	endsIssued   ending = "ISSUED"
	endsRejected ending = "REJECTED" // by the CA
	endsMismatch ending = "FAILED"   // the CA made another certificate than was asked for
)

// death is that of a process: the n-th time that an order comes to a point.
type death struct {
	service, point string
	nth            int
}

// wireFault is a call between services that fails: the n-th that is about an order. After it was made, or before.
type wireFault struct {
	method string // the last part of the full name
	nth    int
	reply  bool // only the reply is lost
}

// statement is one that the database refuses, once.
type statement struct {
	relation, operation string
	nth                 int
	code                string
}

// script is all that a seed lets happen to one certificate.
type script struct {
	seed       uint64
	ca         string
	issuer     string
	commonName string
	orders     []string // the second renews the first
	faults     []casimulator.Fault
	deaths     []death
	wire       []wireFault
	statements []statement
	doubt      bool // the watch is made due although nothing is wrong with it
	human      bool // a human approves after all else has come to rest
	again      int  // so often the order is submitted once more while it is known
	ends       ending
	doubled    int // orders that the CA made beside those that were placed

	mu    sync.Mutex
	began time.Time
	seen  map[string]int
	trace []string
}

// newScript makes what a seed stands for.
func newScript(seed uint64) *script {
	r := rand.New(rand.NewPCG(seed, 0x746f7274757265))
	cas := casimulator.CAs()
	ca := cas[seed%uint64(len(cas))]
	s := &script{
		seed: seed, ca: ca, issuer: issuerID(ca, r.IntN(issuersPerCA)), commonName: fmt.Sprintf("s%d.example.com", seed),
		orders: []string{fmt.Sprintf("ord-%d-1", seed)}, ends: endsIssued, seen: map[string]int{}, doubt: chance(r, 10), again: r.IntN(3),
	}
	s.drawPace(r)
	s.drawCertificate(r)
	s.drawSubmission(r)
	for range r.IntN(3) {
		s.add(passing(r, pick(r, "status", "collect", "chain")))
	}
	if chance(r, 50) {
		for range 1 + r.IntN(3) {
			s.deaths = append(s.deaths, drawDeath(r))
		}
	}
	for range r.IntN(4) / 2 {
		s.wire = append(s.wire, wireFault{method: pick(r, wireMethods()...), nth: 1 + r.IntN(2), reply: chance(r, 60)})
	}
	if chance(r, 25) {
		s.statements = append(s.statements, drawStatement(r))
	}
	return s
}

func chance(r *rand.Rand, percent int) bool { return r.IntN(100) < percent }

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

func (s *script) add(f casimulator.Fault) {
	f.CA, f.CommonName = s.ca, s.commonName
	s.faults = append(s.faults, f)
}

// drawPace says how long the CA takes, and for what.
func (s *script) drawPace(r *rand.Rand) {
	n := r.IntN(100)
	if connectorOf(s.ca).late && 92 <= n && n < 94 {
		n = 0
	}
	switch {
	case n < 30:
	case n < 65:
		s.add(casimulator.Fault{Kind: casimulator.IssueAfter, Delay: ms(50 + r.IntN(300))})
	case n < 75:
		s.add(casimulator.Fault{Kind: casimulator.IssueAfter, Delay: ms(300 + r.IntN(700))})
	case n < 92:
		s.add(casimulator.Fault{Kind: casimulator.NeedsApproval, Delay: ms(50 + r.IntN(500))})
	case n < 94:
		s.human = true
		s.add(casimulator.Fault{Kind: casimulator.NeedsApproval, Times: 1})
	default:
		s.ends = endsRejected
		s.add(casimulator.Fault{Kind: casimulator.Reject, Delay: ms(r.IntN(300)), Reason: "the script says so"})
	}
}

// drawCertificate says what is odd about the certificate, and whether it is renewed.
func (s *script) drawCertificate(r *rand.Rand) {
	if s.ends != endsIssued || s.human {
		return
	}
	switch n := r.IntN(100); {
	case n < 3:
		s.ends = endsMismatch
		wrong := []casimulator.Kind{casimulator.WrongName, casimulator.NotYetValid}
		if !connectorOf(s.ca).late { // where nothing but its key leads to an order, one whose reply is lost as well is lost
			wrong = append(wrong, casimulator.WrongKey)
		}
		s.add(casimulator.Fault{Kind: pick(r, wrong...)})
	case n < 8:
		s.add(casimulator.Fault{Kind: casimulator.RootFirst})
	case n < 10:
		s.doubled = 1
		s.add(casimulator.Fault{Kind: casimulator.DuplicateOrder, Operation: "submit", Times: 1})
	case n < 25:
		s.orders = append(s.orders, fmt.Sprintf("ord-%d-2", s.seed))
	}
}

// drawSubmission says what happens to the order on its way.
func (s *script) drawSubmission(r *rand.Rand) {
	for range len(s.orders) {
		if chance(r, 35) {
			continue
		}
		s.add(passing(r, pick(r, "submit", "submit", "submit", "reissue", "renew")))
	}
	if chance(r, 20) {
		s.add(passing(r, "submit"))
	}
}

// passing is a fault that happens once.
func passing(r *rand.Rand, operation string) casimulator.Fault {
	f := casimulator.Fault{Operation: operation, Times: 1}
	switch n := r.IntN(100); {
	case n < 25:
		f.Kind = casimulator.DropAfter
	case n < 38:
		f.Kind = casimulator.DropBefore
	case n < 48:
		f.Kind, f.Status = casimulator.ServerErrorAfter, pick(r, 500, 502, 504)
	case n < 55:
		f.Kind, f.Status = casimulator.ServerError, pick(r, 500, 503, 504)
	case n < 62:
		f.Kind = casimulator.DoubledReply
	case n < 68:
		f.Kind = casimulator.ReplyTwice
	case n < 74:
		f.Kind, f.Status = casimulator.HTMLPageAfter, pick(r, 200, 404, 502)
	case n < 78:
		f.Kind, f.Status = casimulator.HTMLPage, pick(r, 200, 404, 502)
	case n < 85:
		f.Kind = casimulator.MalformedJSON
	case n < 88:
		f.Kind, f.RetryAfter, f.RetryAfterDate = casimulator.RateLimit, time.Second, chance(r, 50)
	case n < 90:
		f.Kind, f.Status, f.RetryAfter = casimulator.ServerError, 503, time.Second
	case n < 93:
		f.Kind, f.Delay = casimulator.DelayAfter, timeout*time.Second+ms(200)
	case n < 94:
		f.Kind, f.Delay = casimulator.SlowBytes, ms(200)
	case n < 98:
		f.Kind = casimulator.Hang
	default:
		f.Kind, f.Bytes = casimulator.OversizedBody, 12<<20
	}
	return f
}

// wireMethods are the calls that fail. Delivery fails rarely, as it is of many orders at once, and rests after some failures
// in a row.
func wireMethods() []string {
	often := []string{"SubmitOrder", "RecordPollResult"}
	return slices.Concat(often, often, often, []string{"Deliver"})
}

// points are all labelled ones.
func points() []death {
	var out []death
	for _, p := range issuance.Checkpoints() {
		out = append(out, death{service: nameIssuance, point: p})
	}
	for _, p := range asyncpoller.Checkpoints() {
		out = append(out, death{service: nameAsyncPoller, point: p})
	}
	return out
}

func drawDeath(r *rand.Rand) death {
	d := pick(r, points()...)
	d.nth = 1 + r.IntN(2)
	return d
}

func drawStatement(r *rand.Rand) statement {
	s := pick(r,
		statement{relation: "orders", operation: "UPDATE"}, statement{relation: "orders", operation: "UPDATE"},
		statement{relation: "issued_certificates", operation: "INSERT"},
		statement{relation: "polls", operation: "INSERT"}, statement{relation: "polls", operation: "UPDATE"},
	)
	s.nth, s.code = 1, pick(r, "XX000", "57014", "53200")
	if s.operation == "UPDATE" {
		s.nth = 1 + r.IntN(3)
	}
	return s
}

// note adds a line to the trace.
func (s *script) note(format string, a ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trace = append(s.trace, fmt.Sprintf("%8s  %s", time.Since(s.began).Round(time.Millisecond), fmt.Sprintf(format, a...)))
}

// count tells how often something has happened, this time included.
func (s *script) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[what]++
	return s.seen[what]
}

func (s *script) counted(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[what]
}

// dies tells whether the process dies when an order is at a point.
func (s *script) dies(service, point, orderID string) bool {
	n := s.count(service + "/" + point + "/" + orderID)
	all := s.count(service + "/" + point)
	for _, d := range s.deaths {
		if d.service == service && d.point == point && d.nth == all {
			s.note("%s dies at %q, %s, number %d", service, point, orderID, n)
			return true
		}
	}
	return false
}

// breaks tells whether a call between services fails.
func (s *script) breaks(method string) (fault wireFault, ok bool) {
	n := s.count("call " + method)
	for _, f := range s.wire {
		if f.method == method && f.nth == n {
			s.note("call %s fails; only its reply: %t", method, f.reply)
			return f, true
		}
	}
	return wireFault{}, false
}

// String is the script as it is printed for a seed that failed.
func (s *script) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %s, issuer %s, %s, orders %v, ends %s, human %t, doubt %t, again %d, doubled %d\n",
		s.seed, s.ca, s.issuer, s.commonName, s.orders, s.ends, s.human, s.doubt, s.again, s.doubled)
	for _, f := range s.faults {
		fmt.Fprintf(&b, "  CA: %s of %q, times %d, delay %s, status %d\n", f.Kind, f.Operation, f.Times, f.Delay, f.Status)
	}
	for _, d := range s.deaths {
		fmt.Fprintf(&b, "  death of %s at %q, number %d\n", d.service, d.point, d.nth)
	}
	for _, f := range s.wire {
		fmt.Fprintf(&b, "  call %s number %d fails, only its reply: %t\n", f.method, f.nth, f.reply)
	}
	for _, f := range s.statements {
		fmt.Fprintf(&b, "  %s of %s number %d fails with %s\n", f.operation, f.relation, f.nth, f.code)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b.WriteString(strings.Join(s.trace, "\n"))
	return b.String()
}

// errDied drops the work of a process that died: as with a lost lease, nothing is written any more, and the row is left as
// it is until its lease runs out.
var errDied = fmt.Errorf("the process died: %w", lease.ErrLost)
