package e2e_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// evidence is all that the checker judges by: what clients were told, and what is there after everything has come to rest.
type evidence struct {
	Exchanges []exchange

	Certificates map[string]certificateRow            // as the database has them, by id
	Views        map[string]map[string]certificateRow // the same through the API, by gateway
	Targets      map[string]bool
	Versions     []versionRow
	Jobs         []jobRow
	Orders       []orderRow
	Issued       []issuedRow
	Served       map[string]string // the fingerprint of what is in a certificate's files
	Misfits      map[string]string // files that are not there, or whose key is not that of the certificate
	Deployments  []deploymentRow
	Events       map[string]int // by action and id of the resource
	Chain        object         // what the verification of the audit log says
	Restless     map[string]int // what is not at rest, by kind
	Due          map[string]int // how often a certificate came due by itself
	Enrolled     int            // agents
	Agents       int            // that there are
	Connections  map[string]int // the most that each service had
	Quotas       map[string]int // the most that it may have
	Collapses    []string       // processes that ended by themselves, and panics
}

type certificateRow struct {
	ID, Status, Owner, Serial, Fingerprint string
	Version                                int
}

type versionRow struct {
	Certificate                string
	Version                    int
	Order, Serial, Fingerprint string
}

type jobRow struct{ ID, Type, State, Certificate string }

type orderRow struct{ ID, Job, Certificate, Status, Serial string }

type issuedRow struct{ Serial, Order, Certificate, Fingerprint string }

type deploymentRow struct {
	Certificate, Status string
	Desired, Served     int
}

// rule is something that must hold; it says where it does not.
type rule struct {
	name   string
	broken func(*evidence) []string
}

func rules() []rule {
	return []rule{
		{"every acknowledged write is there", lostWrites},
		{"nothing is there that nobody asked for", uninvited},
		{"a repeated request gets the same answer", differentAnswers},
		{"an acknowledged write is seen by who asks afterwards", staleReads},
		{"gateways show what the database has", differentViews},
		{"one certificate per intent", doubles},
		{"the key on disk is the certificate's", misfits},
		{"every target serves its newest version", oldVersions},
		{"nothing is stuck", restless},
		{"the audit log is whole", incompleteLog},
		{"no service had more connections than its quota", overQuota},
		{"agents enrol once", doubleAgents},
		{"processes end only when they are ended", collapses},
	}
}

// judge gives all that does not hold.
func (e *evidence) judge() (broken []string) {
	for _, r := range rules() {
		for _, what := range r.broken(e) {
			broken = append(broken, r.name+": "+what)
		}
	}
	return broken
}

// history is what was wanted of one certificate.
type history struct {
	created                   *intent
	updates, renewals, revoke []*intent
}

// wanted gives the histories of all certificates, and the targets.
func (e *evidence) wanted() (certificates map[string]*history, targets map[string]*intent) {
	certificates, targets = map[string]*history{}, map[string]*intent{}
	of := func(id string) *history {
		if certificates[id] == nil {
			certificates[id] = &history{}
		}
		return certificates[id]
	}
	for _, in := range intents(e.Exchanges) {
		collection, id, verb := resource(in.Path)
		switch {
		case collection == "targets":
			targets[in.Body.str("id")] = in
		case in.Method == http.MethodPost && id == "":
			of(in.Body.str("id")).created = in
		case in.Method == http.MethodPatch:
			of(id).updates = append(of(id).updates, in)
		case verb == "renew":
			of(id).renewals = append(of(id).renewals, in)
		case verb == "revoke":
			of(id).revoke = append(of(id).revoke, in)
		}
	}
	return certificates, targets
}

func acked(all []*intent) (n int) {
	for _, in := range all {
		if in.acked {
			n++
		}
	}
	return n
}

// owners that a certificate may have: that of the last acknowledged update, or of one after it of which nobody knows.
func owners(updates []*intent) []string {
	may := []string{""}
	for _, u := range updates {
		if u.acked {
			may = nil
		}
		may = append(may, u.Body.str("owner"))
	}
	return may
}

func lostWrites(e *evidence) (broken []string) {
	certificates, targets := e.wanted()
	for id, in := range targets {
		if in.acked && !e.Targets[id] {
			broken = append(broken, "no target "+id+": "+in.String())
		}
	}
	jobs := map[string]jobRow{}
	for _, j := range e.Jobs {
		jobs[j.ID] = j
	}
	for id, h := range certificates {
		c, is := e.Certificates[id]
		if !is && (h.created == nil || h.created.acked) {
			broken = append(broken, "no certificate "+id)
			continue
		}
		if may := owners(h.updates); is && !slices.Contains(may, c.Owner) {
			broken = append(broken, fmt.Sprintf("the owner of %s is %q, and should be one of %q", id, c.Owner, may))
		}
		if acked(h.revoke) > 0 && c.Status != "REVOKED" {
			broken = append(broken, fmt.Sprintf("%s was revoked, and is %s", id, c.Status))
		}
		for _, in := range h.renewals {
			j := jobs[in.Answer.str("id")]
			if in.acked && (j.Certificate != id || j.Type != "RENEW" || j.State != "COMPLETED") {
				broken = append(broken, fmt.Sprintf("the job of %s is %v", in, j))
			}
		}
	}
	return broken
}

func uninvited(e *evidence) (broken []string) {
	certificates, targets := e.wanted()
	for id, c := range e.Certificates {
		h := certificates[id]
		switch {
		case h == nil || h.created == nil:
			broken = append(broken, "certificate "+id)
		case c.Status != "ACTIVE" && len(h.revoke) == 0:
			broken = append(broken, fmt.Sprintf("%s is %s", id, c.Status))
		}
	}
	for id := range e.Targets {
		if targets[id] == nil {
			broken = append(broken, "target "+id)
		}
	}
	return broken
}

func differentAnswers(e *evidence) (broken []string) {
	for _, in := range intents(e.Exchanges) {
		for _, a := range in.answers {
			if a.Answer.str("id") != in.Answer.str("id") {
				broken = append(broken, fmt.Sprintf("%s: %q and %q", in, in.Answer.str("id"), a.Answer.str("id")))
			}
		}
	}
	return broken
}

// staleReads looks at each reading of one certificate in a list: it must show the last update that was acknowledged before the reading began, or
// a later one. An answer of 304 shows what the tag stood for.
func staleReads(e *evidence) (broken []string) {
	certificates, _ := e.wanted()
	shown := map[string]string{} // owner, by path and tag
	for _, r := range e.Exchanges {
		id, of := strings.CutPrefix(r.Path, "/api/v1/certificates?name=")
		if !of || r.Error != "" || r.Status != http.StatusOK && r.Status != http.StatusNotModified {
			continue
		}
		if r.Status == http.StatusOK {
			list := r.Answer.list("certificates")
			if len(list) != 1 {
				broken = append(broken, fmt.Sprintf("%d certificates in %s", len(list), &r))
				continue
			}
			shown[r.Path+r.Tag] = list[0].str("owner")
		}
		owner, known := shown[r.Path+r.Tag]
		var may []string
		if h := certificates[id]; h != nil {
			may = visible(h.updates, &r)
		}
		if !known || !slices.Contains(may, owner) {
			broken = append(broken, fmt.Sprintf("%s shows the owner %q, and should one of %q", &r, owner, may))
		}
	}
	return broken
}

// visible gives the owners that a reading may show.
func visible(updates []*intent, r *exchange) []string {
	may := []string{""}
	for _, u := range updates {
		if u.acked && u.End.Before(r.Start) {
			may = nil
		}
		if u.first.Before(r.End) {
			may = append(may, u.Body.str("owner"))
		}
	}
	return may
}

func differentViews(e *evidence) (broken []string) {
	for gateway, view := range e.Views {
		if !maps.Equal(view, e.Certificates) {
			broken = append(broken, fmt.Sprintf("%s shows %d certificates, of %d; the first that differs: %s", gateway, len(view), len(e.Certificates), differs(view, e.Certificates)))
		}
	}
	return broken
}

func differs(a, b map[string]certificateRow) string {
	for id, c := range b {
		if a[id] != c {
			return fmt.Sprintf("%v is %v", a[id], c)
		}
	}
	return ""
}

// doubles follows each intent to its job, its order, its certificate and its version, and finds those that belong to none.
func doubles(e *evidence) (broken []string) {
	certificates, _ := e.wanted()
	jobs := tally(e.Jobs, func(j jobRow) string { return j.Type + " " + j.Certificate })
	for id, h := range certificates {
		if _, is := e.Certificates[id]; is && jobs["ISSUE "+id] != 1 {
			broken = append(broken, fmt.Sprintf("%d jobs for the first certificate of %s", jobs["ISSUE "+id], id))
		}
		if n, due := jobs["RENEW "+id], e.Due[id]; n < acked(h.renewals)+due || n > len(h.renewals)+due {
			broken = append(broken, fmt.Sprintf("%d renewals of %s were asked for, %d of them acknowledged, it came due %d times, and there are %d", len(h.renewals), id,
				acked(h.renewals), due, n))
		}
	}
	orders := tally(e.Orders, func(o orderRow) string { return o.Job })
	for _, j := range e.Jobs {
		if (j.Type == "ISSUE" || j.Type == "RENEW") && orders[j.ID] != 1 {
			broken = append(broken, fmt.Sprintf("%d orders for %v", orders[j.ID], j))
		}
		delete(orders, j.ID)
	}
	if len(orders) > 0 {
		broken = append(broken, fmt.Sprintf("orders without a job: %v", orders))
	}
	return append(broken, unmatched(e)...)
}

// unmatched compares orders, what the CA has signed, and versions.
func unmatched(e *evidence) (broken []string) {
	issued := tally(e.Issued, func(c issuedRow) string {
		return strings.Join([]string{c.Order, c.Certificate, c.Serial, c.Fingerprint}, " ")
	})
	stored := tally(e.Versions, func(v versionRow) string {
		return strings.Join([]string{v.Order, v.Certificate, v.Serial, v.Fingerprint}, " ")
	})
	if !maps.Equal(issued, stored) {
		broken = append(broken, fmt.Sprintf("certificates that were signed are not the versions: %v", apart(issued, stored)))
	}
	ordered := tally(e.Orders, func(o orderRow) string { return o.ID + " " + o.Serial })
	signed := tally(e.Issued, func(c issuedRow) string { return c.Order + " " + c.Serial })
	if !maps.Equal(ordered, signed) {
		broken = append(broken, fmt.Sprintf("certificates that were signed are not those that were ordered: %v", apart(ordered, signed)))
	}
	for serial, n := range tally(e.Issued, func(c issuedRow) string { return c.Serial }) {
		if n > 1 {
			broken = append(broken, fmt.Sprintf("%d certificates have the serial number %s", n, serial))
		}
	}
	newest := map[string]int{}
	versions := tally(e.Versions, func(v versionRow) string { return v.Certificate })
	for _, v := range e.Versions {
		newest[v.Certificate] = max(newest[v.Certificate], v.Version)
	}
	for id, c := range e.Certificates {
		if c.Version != newest[id] || c.Version != versions[id] {
			broken = append(broken, fmt.Sprintf("the current version of %s is %d, the newest %d, and there are %d", id, c.Version, newest[id], versions[id]))
		}
	}
	return broken
}

func tally[T any](rows []T, key func(T) string) map[string]int {
	n := map[string]int{}
	for _, r := range rows {
		n[key(r)]++
	}
	return n
}

// apart gives what is not as often in the one as in the other, shortened.
func apart(a, b map[string]int) (list []string) {
	for _, k := range slices.Sorted(maps.Keys(a)) {
		if a[k] != b[k] {
			list = append(list, fmt.Sprintf("%s: %d and %d", k, a[k], b[k]))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(b)) {
		if a[k] == 0 {
			list = append(list, fmt.Sprintf("%s: 0 and %d", k, b[k]))
		}
	}
	return list[:min(len(list), 10)]
}

func misfits(e *evidence) (broken []string) {
	for _, id := range slices.Sorted(maps.Keys(e.Misfits)) {
		broken = append(broken, id+": "+e.Misfits[id])
	}
	return broken
}

// oldVersions looks at what is served. A certificate that is revoked is not deployed any more: what was served then stays.
func oldVersions(e *evidence) (broken []string) {
	served := map[string]int{}
	for _, d := range e.Deployments {
		if c := e.Certificates[d.Certificate]; d.Status != "SERVED" || d.Served != c.Version || d.Desired != c.Version {
			broken = append(broken, fmt.Sprintf("deployment %v of %v", d, c))
		}
		served[d.Certificate]++
	}
	for id, c := range e.Certificates {
		may := []string{c.Fingerprint}
		switch {
		case c.Status == "REVOKED":
			may = e.everServed(id)
		case served[id] != 1:
			broken = append(broken, fmt.Sprintf("%d deployments of %s", served[id], id))
		}
		if !slices.Contains(may, e.Served[id]) {
			broken = append(broken, fmt.Sprintf("the files of %s hold %q, and not one of %q", id, e.Served[id], may))
		}
	}
	return broken
}

// everServed gives what the files of a certificate may have held at any time: nothing, or one of its versions.
func (e *evidence) everServed(id string) []string {
	may := []string{""}
	for _, v := range e.Versions {
		if v.Certificate == id {
			may = append(may, v.Fingerprint)
		}
	}
	return may
}

func restless(e *evidence) (broken []string) {
	for _, what := range slices.Sorted(maps.Keys(e.Restless)) {
		if n := e.Restless[what]; n > 0 {
			broken = append(broken, strconv.Itoa(n)+" "+what)
		}
	}
	return broken
}

// incompleteLog compares what was done with what is on the record: each once.
func incompleteLog(e *evidence) (broken []string) {
	if e.Chain["valid"] != true {
		broken = append(broken, fmt.Sprint(e.Chain))
	}
	certificates, targets := e.wanted()
	events := func(action, id string, least, most int) {
		if n := e.Events[action+" "+id]; n < least || n > most {
			broken = append(broken, fmt.Sprintf("%d times %s %s, and not %d to %d times", n, action, id, least, most))
		}
	}
	for id := range e.Targets {
		if targets[id] != nil {
			events("target.created", id, 1, 1)
		}
	}
	for id, c := range e.Certificates {
		h := certificates[id]
		if h == nil {
			continue
		}
		events("certificate.created", id, 1, 1)
		events("version.stored", id, c.Version, c.Version)
		events("certificate.updated", id, acked(h.updates), len(h.updates))
		events("certificate.renew.requested", id, acked(h.renewals), len(h.renewals))
		events("certificate.revoked", id, min(1, acked(h.revoke)), min(1, len(h.revoke)))
	}
	for _, j := range e.Jobs {
		events("job.created", j.ID, 1, 1)
		events("job.completed", j.ID, 1, 1)
	}
	return broken
}

func overQuota(e *evidence) (broken []string) {
	for service, quota := range e.Quotas {
		if e.Connections[service] > quota {
			broken = append(broken, fmt.Sprintf("%s had %d of %d", service, e.Connections[service], quota))
		}
	}
	return broken
}

func doubleAgents(e *evidence) []string {
	if e.Enrolled != e.Agents {
		return []string{fmt.Sprintf("%d enrolled, and there are %d", e.Enrolled, e.Agents)}
	}
	return nil
}

func collapses(e *evidence) []string { return e.Collapses }
