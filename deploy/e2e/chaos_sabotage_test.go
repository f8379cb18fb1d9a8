package e2e_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// story is a made-up record, in which everything is as it should be: two certificates, of which the first was renewed and then updated twice, by a
// client that had to ask twice; the second was revoked.
func story() *evidence {
	e := &evidence{
		Certificates: map[string]certificateRow{
			"a": {ID: "a", Status: "ACTIVE", Owner: "owner-3", Serial: "s2", Fingerprint: "f2", Version: 2},
			"b": {ID: "b", Status: "REVOKED", Serial: "s3", Fingerprint: "f3", Version: 1},
		},
		Targets:     map[string]bool{"target-a": true, "target-b": true},
		Versions:    []versionRow{{"a", 1, "o1", "s1", "f1"}, {"a", 2, "o2", "s2", "f2"}, {"b", 1, "o3", "s3", "f3"}},
		Jobs:        []jobRow{{"j1", "ISSUE", "COMPLETED", "a"}, {"j2", "RENEW", "COMPLETED", "a"}, {"j3", "ISSUE", "COMPLETED", "b"}},
		Orders:      []orderRow{{"o1", "j1", "a", "ISSUED", "s1"}, {"o2", "j2", "a", "ISSUED", "s2"}, {"o3", "j3", "b", "ISSUED", "s3"}},
		Issued:      []issuedRow{{"s1", "o1", "a", "f1"}, {"s2", "o2", "a", "f2"}, {"s3", "o3", "b", "f3"}},
		Served:      map[string]string{"a": "f2", "b": "f3"},
		Misfits:     map[string]string{},
		Deployments: []deploymentRow{{"a", "SERVED", 2, 2}},
		Events: map[string]int{"target.created target-a": 1, "target.created target-b": 1, "certificate.created a": 1, "certificate.created b": 1,
			"version.stored a": 2, "version.stored b": 1, "certificate.renew.requested a": 1, "certificate.updated a": 2, "certificate.revoked b": 1,
			"job.created j1": 1, "job.created j2": 1, "job.created j3": 1, "job.completed j1": 1, "job.completed j2": 1, "job.completed j3": 1},
		Chain:       object{"valid": true},
		Restless:    map[string]int{},
		Enrolled:    1,
		Agents:      1,
		Connections: map[string]int{"audit": 2},
		Quotas:      map[string]int{"audit": 2},
	}
	e.Views = map[string]map[string]certificateRow{"gateway 1": maps.Clone(e.Certificates)}
	e.asked(http.MethodPost, "/api/v1/targets", "target a", object{"id": "target-a"}, 201, object{"id": "target-a"})
	e.asked(http.MethodPost, "/api/v1/targets", "target b", object{"id": "target-b"}, 201, object{"id": "target-b"})
	e.asked(http.MethodPost, "/api/v1/certificates", "certificate a", object{"id": "a"}, 0, nil)
	e.asked(http.MethodPost, "/api/v1/certificates", "certificate a", object{"id": "a"}, 201, object{"id": "a"})
	e.asked(http.MethodPost, "/api/v1/certificates", "certificate b", object{"id": "b"}, 201, object{"id": "b"})
	e.asked(http.MethodPost, "/api/v1/certificates/a/renew", "renew a 1", nil, 0, nil)
	e.asked(http.MethodPost, "/api/v1/certificates/a/renew", "renew a 1", nil, 200, object{"id": "j2"})
	e.asked(http.MethodPatch, "/api/v1/certificates/a", "update a 2", object{"owner": "owner-2"}, 200, object{"id": "a"})
	e.showed("tag-2", "owner-2")
	e.asked(http.MethodPatch, "/api/v1/certificates/a", "update a 3", object{"owner": "owner-3"}, 200, object{"id": "a"})
	e.showed("tag-3", "owner-3")
	e.showed("tag-3", "")
	e.asked(http.MethodPost, "/api/v1/certificates/b/revoke", "revoke b 1", object{"reason": "SUPERSEDED"}, 200, object{})
	return e
}

// asked adds an exchange to the record, after all others.
func (e *evidence) asked(method, path, key string, body object, status int, answer object) {
	at := time.Unix(int64(10*len(e.Exchanges)), 0)
	x := exchange{Client: "client", Method: method, Path: path, Key: key, Body: body, Start: at, End: at.Add(time.Second), Status: status, Answer: answer}
	if status == 0 {
		x.Error = "no answer"
	}
	e.Exchanges = append(e.Exchanges, x)
}

// showed adds what a list showed; no owner: 304.
func (e *evidence) showed(tag, owner string) {
	const path = "/api/v1/certificates?name=a"
	if owner == "" {
		e.asked(http.MethodGet, path, "", nil, http.StatusNotModified, object{})
	} else {
		e.asked(http.MethodGet, path, "", nil, http.StatusOK, object{"certificates": []any{map[string]any{"owner": owner}}})
	}
	e.Exchanges[len(e.Exchanges)-1].Tag = tag
}

// forget removes the exchanges of a key.
func (e *evidence) forget(key string) {
	e.Exchanges = slices.DeleteFunc(e.Exchanges, func(x exchange) bool { return x.Key == key })
}

// sabotages are what could have gone wrong in the story, by the rule that has to notice. Others may notice, too.
func sabotages() map[string]map[string]func(*evidence) {
	return map[string]map[string]func(*evidence){
		"every acknowledged write is there": {
			"a target is lost":      func(e *evidence) { delete(e.Targets, "target-a") },
			"a certificate is lost": func(e *evidence) { delete(e.Certificates, "b") },
			"an update is lost":     func(e *evidence) { e.owner("owner-2") },
			"all updates are lost":  func(e *evidence) { e.owner("") },
			"a job is lost":         func(e *evidence) { e.Jobs = slices.Delete(e.Jobs, 1, 2) },
			"a job has failed":      func(e *evidence) { e.Jobs[1].State = "FAILED" },
			"a revocation is lost":  func(e *evidence) { e.status("b", "ACTIVE") },
		},
		"nothing is there that nobody asked for": {
			"a certificate": func(e *evidence) { e.forget("certificate a") },
			"a target":      func(e *evidence) { e.forget("target a") },
			"a revocation":  func(e *evidence) { e.forget("revoke b 1") },
		},
		"a repeated request gets the same answer": {
			"two jobs for one key": func(e *evidence) {
				e.asked(http.MethodPost, "/api/v1/certificates/a/renew", "renew a 1", nil, 200, object{"id": "j4"})
			},
		},
		"an acknowledged write is seen by who asks afterwards": {
			"an old list":                          func(e *evidence) { e.showed("tag-4", "owner-2") },
			"a list from before it all":            func(e *evidence) { e.showed("tag-5", "nobody") },
			"not modified, but it is":              func(e *evidence) { e.showed("tag-2", "") },
			"not modified since nobody knows when": func(e *evidence) { e.showed("tag-6", "") },
			"an update seen before it was asked for": func(e *evidence) {
				e.asked(http.MethodPatch, "/api/v1/certificates/a", "update a 4", object{"owner": "owner-4"}, 200, object{"id": "a"})
				e.owner("owner-4")
				last := len(e.Exchanges) - 1
				e.Exchanges[last].Start = time.Unix(1e6, 0)
				e.showed("tag-7", "owner-4")
			},
		},
		"gateways show what the database has": {
			"another status":        func(e *evidence) { e.Views["gateway 1"]["a"] = certificateRow{ID: "a", Status: "PENDING"} },
			"a certificate too few": func(e *evidence) { delete(e.Views["gateway 1"], "a") },
		},
		"one certificate per intent": {
			"two jobs for one renewal": func(e *evidence) { e.Jobs = append(e.Jobs, jobRow{"j4", "RENEW", "COMPLETED", "a"}) },
			"due and not renewed":      func(e *evidence) { e.Due = map[string]int{"a": 1} },
			"two first jobs":           func(e *evidence) { e.Jobs = append(e.Jobs, jobRow{"j4", "ISSUE", "COMPLETED", "b"}) },
			"two orders for one job":   func(e *evidence) { e.Orders = append(e.Orders, orderRow{"o4", "j2", "a", "ISSUED", "s4"}) },
			"an order without a job":   func(e *evidence) { e.Orders = append(e.Orders, orderRow{"o4", "", "a", "ISSUED", "s4"}) },
			"no order":                 func(e *evidence) { e.Orders = e.Orders[1:] },
			"signed twice":             func(e *evidence) { e.Issued = append(e.Issued, issuedRow{"s4", "o2", "a", "f4"}) },
			"one serial number twice":  func(e *evidence) { e.Issued[0].Serial, e.Versions[0].Serial, e.Orders[0].Serial = "s2", "s2", "s2" },
			"stored twice":             func(e *evidence) { e.Versions = append(e.Versions, versionRow{"a", 3, "o2", "s2", "f2"}) },
			"signed and not stored":    func(e *evidence) { e.Versions = e.Versions[1:] },
			"not the newest version":   func(e *evidence) { e.Certificates["a"] = certificateRow{ID: "a", Status: "ACTIVE", Version: 1} },
		},
		"the key on disk is the certificate's": {
			"another key": func(e *evidence) { e.Misfits["a"] = "private key does not match public key" },
		},
		"every target serves its newest version": {
			"an old version":         func(e *evidence) { e.Deployments[0].Served = 1 },
			"an old file":            func(e *evidence) { e.Served["a"] = "f1" },
			"another's file":         func(e *evidence) { e.Served["b"] = "f1" },
			"no file":                func(e *evidence) { delete(e.Served, "a") },
			"no deployment":          func(e *evidence) { e.Deployments = nil },
			"a failed deployment":    func(e *evidence) { e.Deployments[0].Status = "FAILED" },
			"two of one certificate": func(e *evidence) { e.Deployments = append(e.Deployments, e.Deployments[0]) },
		},
		"nothing is stuck": {
			"an open job": func(e *evidence) { e.Restless["open jobs"] = 1 },
		},
		"the audit log is whole": {
			"a broken chain":           func(e *evidence) { e.Chain = object{"valid": false} },
			"an update without a word": func(e *evidence) { e.Events["certificate.updated a"] = 1 },
			"an update told twice":     func(e *evidence) { e.Events["certificate.updated a"] = 3 },
			"a certificate told twice": func(e *evidence) { e.Events["certificate.created a"] = 2 },
			"a silent revocation":      func(e *evidence) { delete(e.Events, "certificate.revoked b") },
			"a silent renewal":         func(e *evidence) { delete(e.Events, "certificate.renew.requested a") },
			"a silent version":         func(e *evidence) { e.Events["version.stored a"] = 1 },
			"a job told twice":         func(e *evidence) { e.Events["job.completed j1"] = 2 },
			"a silent target":          func(e *evidence) { delete(e.Events, "target.created target-b") },
		},
		"no service had more connections than its quota": {
			"one too many": func(e *evidence) { e.Connections["audit"] = 3 },
		},
		"agents enrol once": {
			"twice": func(e *evidence) { e.Enrolled = 2 },
		},
		"processes end only when they are ended": {
			"a panic": func(e *evidence) { e.Collapses = []string{"panic:"} },
		},
	}
}

func (e *evidence) owner(owner string) {
	c := e.Certificates["a"]
	c.Owner = owner
	e.Certificates["a"] = c
}

func (e *evidence) status(id, status string) {
	c := e.Certificates[id]
	c.Status = status
	e.Certificates[id] = c
}

func TestTheCheckerOfFaultsUnderLoadNoticesEachSabotage(t *testing.T) {
	t.Parallel()
	require.Empty(t, story().judge(), "what is as it should be")
	var names []string
	for _, r := range rules() {
		names = append(names, r.name)
	}
	require.ElementsMatch(t, names, slices.Collect(maps.Keys(sabotages())), "each rule can fail")
	for rule, all := range sabotages() {
		for name, sabotage := range all {
			t.Run(rule+": "+name, func(t *testing.T) {
				t.Parallel()
				e := story()
				sabotage(e)
				broken := e.judge()
				require.True(t, slices.ContainsFunc(broken, func(s string) bool { return strings.HasPrefix(s, rule+": ") }), "nobody noticed; what was: %q", broken)
			})
		}
	}
}

func TestAScriptOfFaultsFollowsFromItsSeed(t *testing.T) {
	t.Parallel()
	v := victims{replicas: []string{"audit 1", "gateway 2"}, wires: []string{"audit", "gateways to audit"}, agents: []string{"host-1"}, disk: true, clock: true}
	read := func(seed uint64) (script []string) {
		s := newScript(seed, time.Hour, v)
		for range 200 {
			script = append(script, fmt.Sprint(s.next()))
		}
		return script
	}
	first := read(1)
	require.Equal(t, first, read(1), "it can be played again")
	require.NotEqual(t, first, read(2))
	all := strings.Join(first[:len(newScript(1, time.Hour, v).kinds())], " ")
	for _, k := range newScript(1, time.Hour, v).kinds() {
		require.Contains(t, all, string(k), "each kind comes once before any comes twice")
	}
}
