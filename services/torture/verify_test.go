package torture_test

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/connector/casimulator"
)

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// entry is an order as the journal has it.
type entry struct {
	ID, Certificate, Issuer, Status, CommonName, Key, Reason, Serial string
	Due, Stuck                                                       bool
}

// stray is an orphan that was found.
type stray struct{ Issuer, Key, Order, CommonName, Reason string }

// watchRow is a row of asyncpoller.
type watchRow struct {
	Order, State string
	Attempts     int
	Due, Stuck   bool
}

// facts are all that there is to be judged.
type facts struct {
	journal    []entry
	watches    []watchRow
	events     map[string]int // certificate.issued, by order
	outbox     int
	orphans    []stray
	sold       []casimulator.Order
	violations []casimulator.Violation
}

// collect reads the facts.
func collect(ctx context.Context, q querier, sim *casimulator.Simulator) (facts, error) {
	f := facts{events: map[string]int{}, sold: sim.Orders(), violations: sim.Violations()}
	var err error
	if f.journal, err = read[entry](ctx, q, `SELECT id, certificate_id, issuer_id, status, common_name, ca_key, error_reason, serial_number,
due_time IS NOT NULL, COALESCE(due_time < now() - interval '1 hour', false) FROM issuance.orders ORDER BY create_time`); err != nil {
		return f, err
	}
	if f.watches, err = read[watchRow](ctx, q, `SELECT order_id, state, attempts, state IN ('WAITING', 'LEASED') AND due_time IS NOT NULL,
state IN ('WAITING', 'LEASED') AND due_time < now() - interval '1 hour' FROM asyncpoller.polls`); err != nil {
		return f, err
	}
	if f.orphans, err = read[stray](ctx, q, `SELECT issuer_id, ca_key, order_id, common_name, reason FROM issuance.orphans WHERE status = 'OPEN'`); err != nil {
		return f, err
	}
	type told struct {
		Order string
		N     int
	}
	events, err := read[told](ctx, q, `SELECT order_id, count(*)::int FROM torture.events WHERE type = 'certificate.issued' GROUP BY order_id`)
	if err != nil {
		return f, err
	}
	for _, e := range events {
		f.events[e.Order] = e.N
	}
	left, err := read[told](ctx, q, `SELECT '', count(*)::int FROM issuance.outbox`)
	if err != nil {
		return f, err
	}
	f.outbox = left[0].N
	return f, nil
}

func read[T any](ctx context.Context, q querier, sql string) ([]T, error) {
	rows, err := q.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[T])
}

// expectation is what a script says of one common name.
type expectation struct {
	orders  []string
	ends    ending // empty: any, as long as journal and CA agree
	doubled int
}

// The invariants. Each violation begins with the name of its own.
const (
	invariantOnce     = "one certificate per intent"
	invariantJournal  = "orders at the CA are those in the journal"
	invariantEnd      = "the order ended as the CA decided"
	invariantFinal    = "every row is final"
	invariantEvent    = "one event per issued certificate"
	invariantStuck    = "nothing is stuck"
	invariantOrphans  = "no orphans"
	invariantProtocol = "the CA's protocol is kept"
)

// judge holds facts against what was expected, by common name. It gives what is wrong, by common name; empty: of all.
func judge(f facts, want map[string]expectation) map[string][]string {
	j := judgement{facts: f, wrong: map[string][]string{}, journal: map[string][]entry{}, sold: map[string][]casimulator.Order{}, byID: map[string]entry{}}
	for _, e := range f.journal {
		j.journal[e.CommonName] = append(j.journal[e.CommonName], e)
		j.byID[e.ID] = e
	}
	for _, o := range f.sold {
		j.sold[o.CommonName] = append(j.sold[o.CommonName], o)
	}
	for name, w := range want {
		j.ends(name, w)
		j.once(name, w)
		j.match(name, w)
	}
	for name, orders := range j.sold {
		if _, ok := want[name]; !ok {
			j.add(name, invariantJournal, "the CA has %d orders that nobody asked for", len(orders))
		}
	}
	j.rows()
	j.strays(want)
	for _, v := range f.violations {
		j.add("", invariantProtocol, "%s %s %s: %s", v.CA, v.Method, v.Path, v.Message)
	}
	return j.wrong
}

type judgement struct {
	facts
	wrong   map[string][]string
	journal map[string][]entry
	byID    map[string]entry
	sold    map[string][]casimulator.Order
}

func (j *judgement) add(name, invariant, format string, a ...any) {
	j.wrong[name] = append(j.wrong[name], invariant+": "+fmt.Sprintf(format, a...))
}

func (j *judgement) ends(name string, w expectation) {
	for _, id := range w.orders {
		e, ok := j.byID[id]
		switch {
		case !ok:
			j.add(name, invariantFinal, "order %s is not in the journal", id)
		case w.ends == endsRejected && e.Status == "FAILED": // some CAs say so by an error
		case w.ends != "" && e.Status != string(w.ends):
			j.add(name, invariantEnd, "order %s is %s (%s), not %s", id, e.Status, e.Reason, w.ends)
		case e.Status != string(endsIssued) && e.Reason == "":
			j.add(name, invariantEnd, "order %s is %s without a reason", id, e.Status)
		}
	}
}

// once counts certificates: one for each order that was issued, and for each whose certificate was wrong.
func (j *judgement) once(name string, w expectation) {
	due := w.doubled
	serials := map[string]bool{}
	for _, e := range j.journal[name] {
		if e.Status == "ISSUED" || e.Reason == "CERTIFICATE_MISMATCH" {
			due++
		}
		if e.Status == "ISSUED" {
			serials[canonicalSerial(e.Serial)] = true
		}
	}
	made := 0
	for _, o := range j.sold[name] {
		made += o.Certificates
		for _, serial := range o.Serials {
			delete(serials, canonicalSerial(serial))
		}
	}
	if made != due {
		j.add(name, invariantOnce, "the CA made %d certificates, the journal accounts for %d", made, due)
	}
	for serial := range serials {
		j.add(name, invariantOnce, "the journal has certificate %s, the CA does not", serial)
	}
}

func canonicalSerial(s string) string { return strings.TrimLeft(strings.ToLower(s), "0") }

// match holds the orders of the CA against those of the journal, by the CA's key.
func (j *judgement) match(name string, w expectation) {
	keys := map[string]bool{}
	for _, e := range j.journal[name] {
		if e.Key != "" {
			keys[canonicalSerial(e.Key)] = true
		} else if e.Status == "ISSUED" {
			j.add(name, invariantJournal, "order %s is issued and has no key of the CA", e.ID)
		}
	}
	unknown := 0
	for _, o := range j.sold[name] {
		if !claim(keys, o) && o.State != casimulator.Rejected {
			unknown++
		}
	}
	if unknown != w.doubled {
		j.add(name, invariantJournal, "the journal does not know %d orders of the CA; %d were expected", unknown, w.doubled)
	}
	for key, unclaimed := range keys {
		if unclaimed {
			j.add(name, invariantJournal, "the journal has order %s, the CA does not", key)
		}
	}
}

// claim tells whether the journal knows an order, and marks its keys.
func claim(keys map[string]bool, o casimulator.Order) (known bool) {
	for _, key := range append([]string{o.ID}, o.Serials...) {
		if _, ok := keys[canonicalSerial(key)]; ok {
			keys[canonicalSerial(key)], known = false, true
		}
	}
	return known
}

func (j *judgement) rows() {
	for _, e := range j.facts.journal {
		if e.Due {
			j.add(e.CommonName, invariantFinal, "order %s is %s (%s)", e.ID, e.Status, e.Reason)
		}
		if e.Stuck {
			j.add(e.CommonName, invariantStuck, "order %s is overdue", e.ID)
		}
		want := 0
		if e.Status == "ISSUED" {
			want = 1
		}
		if n := j.events[e.ID]; n != want {
			j.add(e.CommonName, invariantEvent, "order %s is %s and was told of %d times", e.ID, e.Status, n)
		}
	}
	for _, w := range j.watches {
		name := j.byID[w.Order].CommonName
		if w.Due {
			j.add(name, invariantFinal, "the watch of order %s is %s", w.Order, w.State)
		}
		if w.Stuck {
			j.add(name, invariantStuck, "the watch of order %s is overdue", w.Order)
		}
	}
	if j.outbox > 0 {
		j.add("", invariantEvent, "%d events are not delivered", j.outbox)
	}
}

// strays are the orders that the journal does not account for. Those that it gave up and the CA did not have to be found, and
// those that the CA made by itself.
func (j *judgement) strays(want map[string]expectation) {
	found := map[string]int{}
	for _, o := range j.orphans {
		found[j.nameOf(o)]++
	}
	for name, w := range want {
		n := w.doubled
		for _, e := range j.journal[name] {
			if e.Reason == "CERTIFICATE_MISMATCH" {
				n++
			}
		}
		if found[name] != n {
			j.add(name, invariantOrphans, "the search found %d orphans, not %d: %v", found[name], n, j.orphansOf(name))
		}
		delete(found, name)
	}
	for name, n := range found {
		j.add(name, invariantOrphans, "the search found %d orphans that nobody asked for", n)
	}
}

// nameOf finds the common name that an orphan was ordered for, by the truth: a certificate may have another.
func (j *judgement) nameOf(o stray) string {
	for _, sold := range j.facts.sold {
		for _, key := range append([]string{sold.ID}, sold.Serials...) {
			if canonicalSerial(key) == canonicalSerial(o.Key) {
				return sold.CommonName
			}
		}
	}
	return o.CommonName
}

func (j *judgement) orphansOf(name string) []stray {
	return slices.DeleteFunc(slices.Clone(j.orphans), func(o stray) bool { return j.nameOf(o) != name })
}
