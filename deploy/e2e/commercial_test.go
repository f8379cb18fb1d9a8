package e2e_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/targettest"
	"github.com/certctl/certctl/pkg/testpg"
)

var shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// commercialDocument is docs/commercial-cas.md, between two texts of it.
func commercialDocument(t *testing.T, from, to string) (blocks []string) {
	t.Helper()
	_, text, ok := strings.Cut(read(t, filepath.Join(root, "docs", "commercial-cas.md")), from)
	require.True(t, ok, "%q is not in the document", from)
	text, _, ok = strings.Cut(text, to)
	require.True(t, ok, "%q is not in the document", to)
	for _, m := range shellBlock.FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}

// commands are the lines of shell code, those that end with a backslash as one with the next.
func commands(code string) []string {
	return strings.Split(strings.TrimSpace(strings.ReplaceAll(code, "\\\n", "")), "\n")
}

// clone is a directory that looks like the one in which certctl was cloned and built. Ports that the documents have may be
// taken on this machine: the simulator is moved to others.
type clone struct {
	dir, control string
	env          []string
}

func newClone(t *testing.T, listen string) *clone {
	t.Helper()
	c := &clone{dir: testpg.Dir(t), control: targettest.FreeAddress(t)}
	c.env = append(environment("CERTCTL_LISTEN_ADDR="+listen), "PWD="+c.dir)
	require.NoError(t, os.Mkdir(filepath.Join(c.dir, "bin"), 0o755))
	wrapper := "#!/bin/sh\n[ \"$1\" = ca-simulator ] && set -- \"$@\" --listen " + targettest.FreeAddress(t) + " --control " + c.control + "\n" +
		"exec " + binaries.certctl + " \"$@\"\n"
	require.NoError(t, os.WriteFile(filepath.Join(c.dir, "bin", "certctl"), []byte(wrapper), 0o755))
	// What `make run` does once it has built.
	require.Contains(t, read(t, filepath.Join(root, "Makefile")), "\nrun: build ## Start certctl on a Postgres of its own, in ./.certctl\n\t@$(BIN)/certctl serve\n")
	require.NoError(t, os.WriteFile(filepath.Join(c.dir, "Makefile"), []byte("run:\n\t@bin/certctl serve\n"), 0o644))
	return c
}

// runs gives what a command printed, which may have failed.
func (c *clone) runs(t *testing.T, code string) (out string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", code)
	cmd.Dir, cmd.Env = c.dir, c.env
	b, err := cmd.CombinedOutput()
	t.Logf("$ %s\n%s", code, b)
	return string(b), err
}

// stays starts a command that is left in its terminal.
func (c *clone) stays(t *testing.T, in *installation, code string) {
	t.Helper()
	in.add(t, &process{name: code, path: "/usr/bin/env", args: []string{"-C", c.dir, "bash", "-c", "exec " + code}, env: c.env})
}

func TestFiveCommandsOfTheDocumentsLeadToADigiCertOrder(t *testing.T) {
	t.Parallel()
	var five []string
	for _, block := range commercialDocument(t, "\n## A DigiCert order in five commands\n", "\n**A slow one.**") {
		five = append(five, commands(block)...)
	}
	require.Len(t, five, 5)
	address := targettest.FreeAddress(t)
	c := newClone(t, address)
	data := filepath.Join(c.dir, ".certctl")
	in := &installation{dir: data, url: "https://" + address, processes: map[string]*process{}, server: []string{five[0]}, caFile: filepath.Join(data, "ca.crt")}
	c.stays(t, in, five[0])
	c.stays(t, in, five[1])
	in.ready(t)
	in.onlineAgent(t)
	s := &simulator{process: in.processes[five[1]], dir: filepath.Join(c.dir, ".certctl-ca-simulator"), control: c.control}
	s.ready(t, in)

	for i, want := range []string{"digicert  DigiCert  digicert  yes      OK", "shop  shop  file", "target shop serves version 1"} {
		out, err := c.runs(t, five[2+i])
		require.NoError(t, err)
		require.Contains(t, out, want)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(c.dir, "shop.pem"), filepath.Join(c.dir, "shop.key"))
	require.NoError(t, err)
	require.NoError(t, pair.Leaf.VerifyHostname("shop.example.com"))
	require.Equal(t, "CA Simulator Intermediate", pair.Leaf.Issuer.CommonName)
	orders := s.orders(t, "shop.example.com")
	require.Len(t, orders, 1)
	require.Equal(t, 1, orders[0].Certificates)

	slow := commercialDocument(t, "\n**A slow one.**", "\n## How an order lives\n")
	require.Len(t, slow, 1)
	out, err := c.runs(t, strings.ReplaceAll(slow[0], "127.0.0.1:9701", c.control))
	require.NoError(t, err)
	require.Contains(t, out, "not finished after 10s; job ")
	require.Contains(t, out, "the CA has it, and answers later: it is ")
	in.wait(t, "the slow certificate", func() bool { return in.look(t, "/api/v1/certificates/slow").str("status") == "ACTIVE" })
	require.Len(t, s.orders(t, "slow.example.com"), 1)
	s.content(t)
}

// commercial is an installation with a simulator beside it. Its database is in reach, so that a test need not wait for an
// hour that has been planned.
type commercial struct {
	*installation
	*simulator

	agent, database string
}

func startCommercial(t *testing.T, settings ...string) *commercial {
	t.Helper()
	db := testpg.NewServer(t, testpg.ServerConfig{Settings: map[string]string{"synchronous_commit": "on"}})
	in := startOne(t, append(settings, "CERTCTL_DATABASE_URL="+db.URL(), "CERTCTL_ORPHAN_SEARCH_INTERVAL=2s")...)
	return &commercial{installation: in, simulator: in.simulates(t), agent: in.onlineAgent(t), database: db.URL()}
}

// wants has a certificate kept in files of the agent's host.
func (c *commercial) wants(t *testing.T, id, issuer string) {
	t.Helper()
	s, err := c.site(id)
	require.NoError(t, err)
	c.must(t, http.MethodPost, "/api/v1/targets", targetFor(id, c.agent, s))
	certificate := certificateFor(id)
	certificate["issuer_id"] = issuer
	c.must(t, http.MethodPost, "/api/v1/certificates", certificate)
}

// order waits until the order of a certificate has a status, and gives it with its polls.
func (c *commercial) order(t *testing.T, certificate, status string) (order object) {
	t.Helper()
	c.wait(t, "the order of "+certificate+" to be "+status, func() bool {
		orders := c.look(t, "/api/v1/orders?page_size=1&certificate_id="+certificate).list("orders")
		if len(orders) == 0 || orders[0].str("status") != status {
			return false
		}
		order = c.look(t, "/api/v1/orders/"+orders[0].str("id"))
		return order.str("status") == status
	})
	return order
}

// hasOneOrder sees that an intent has bought one certificate.
func (c *commercial) hasOneOrder(t *testing.T, id string) {
	t.Helper()
	orders := c.orders(t, id+".example.com")
	require.Len(t, orders, 1, "%v", orders)
	require.Equal(t, 1, orders[0].Certificates)
	journal := c.must(t, http.MethodGet, "/api/v1/orders?certificate_id="+id, nil).list("orders")
	require.Len(t, journal, 1)
	require.Equal(t, "ISSUED", journal[0].str("status"))
}

func TestEachCommercialCAIssuesThroughTheWholeProduct(t *testing.T) {
	t.Parallel()
	c := startCommercial(t, "CERTCTL_DIGICERT_POLL_MAX_WAIT_SECONDS=2")
	for _, ca := range []string{"digicert", "sectigo", "globalsign", "entrust-gateway", "entrust-ecs"} {
		t.Run(ca, func(t *testing.T) {
			c.issuer(t, c.installation, ca, ca)
			c.wants(t, "at-"+ca, ca)
			c.inPlace(t, "at-"+ca, 1)
			files, err := c.site("at-" + ca)
			require.NoError(t, err)
			pair, err := tls.LoadX509KeyPair(files.fullchain, files.key)
			require.NoError(t, err)
			require.GreaterOrEqual(t, len(pair.Certificate), 2, "the chain is missing")
			above, err := x509.ParseCertificate(pair.Certificate[1])
			require.NoError(t, err)
			require.NoError(t, pair.Leaf.CheckSignatureFrom(above))
			require.Equal(t, "CA Simulator Intermediate", above.Subject.CommonName)
			all := c.orders(t, "")
			mine := 0
			for _, o := range all {
				if o.CA == ca {
					mine += o.Certificates
				}
			}
			require.Equal(t, 1, mine, "%v", all)
		})
	}
	c.issuer(t, c.installation, "digicert-with-approval", "digicert", "--set-json", "skip_approval=false")
	t.Run("an order that waits for a human is issued as the same order, and revoked when a human agrees", c.slowOrder)
	t.Run("orders that the journal does not know are adopted or dismissed", c.orphans)
	c.content(t)
	c.recordHolds(t)
}

// slowOrder is an order that its CA keeps pending for longer than the wait budget.
func (c *commercial) slowOrder(t *testing.T) {
	c.wants(t, "slow", "digicert-with-approval")
	order := c.order(t, "slow", "PENDING")
	c.wait(t, "the job to say that the CA has not decided", func() bool {
		jobs := c.look(t, "/api/v1/jobs?certificate_id=slow").list("jobs")
		if len(jobs) != 1 {
			return false
		}
		problem, _ := jobs[0]["error"].(map[string]any)
		return jobs[0].str("status") == "AWAITING_CA" && problem["reason"] == "CA_STILL_PENDING"
	})
	var late object
	c.wait(t, "the poll that says so", func() bool { // asyncpoller keeps it after it has told issuance
		late = c.look(t, "/api/v1/orders/"+order.str("id"))
		polls := late.list("polls")
		return len(polls) > 0 && polls[0].str("reason") == "CA_STILL_PENDING"
	})
	require.Equal(t, "PENDING", late.str("status"))
	require.Equal(t, "PENDING", late.list("polls")[0].str("result"))
	next, err := time.Parse(time.RFC3339, late.str("next_poll_time"))
	require.NoError(t, err)
	require.Greater(t, time.Until(next), 10*time.Minute, "after the wait budget the CA is asked more rarely")
	require.Len(t, c.must(t, http.MethodGet, "/api/v1/orders?status=PENDING&min_age=1s", nil).list("orders"), 1)
	require.Empty(t, c.must(t, http.MethodGet, "/api/v1/orders?status=PENDING&min_age=3600s", nil).list("orders"))
	require.Contains(t, c.certctl(t, "orders", "list", "--status", "PENDING"), "CA_STILL_PENDING")

	c.tell(t, http.MethodPost, "/orders/"+order.str("id")+"/approve", "")
	require.Contains(t, c.certctl(t, "orders", "poll", order.str("id"), "--wait"), "ISSUED")
	c.inPlace(t, "slow", 1)
	c.hasOneOrder(t, "slow")
	require.Equal(t, order.str("id"), c.order(t, "slow", "ISSUED").str("id"))

	c.must(t, http.MethodPost, "/api/v1/certificates/slow/revoke", object{"reason": "SUPERSEDED"})
	c.revoked(t, "slow", "AWAITING_APPROVAL")
	require.Empty(t, c.orders(t, "slow.example.com")[0].Revoked, "revoked before a human agreed")
	require.Contains(t, c.certctl(t, "certificates", "versions", "slow"), "waits for the approval of an administrator")
	c.tell(t, http.MethodPost, "/orders/"+order.str("id")+"/approve", "")
	query(t, c.database, `UPDATE issuance.revocations SET due_time = now() WHERE status = 'AWAITING_APPROVAL'`)
	c.revoked(t, "slow", "REVOKED")
	require.Len(t, c.orders(t, "slow.example.com")[0].Revoked, 1)
}

func (c *commercial) revoked(t *testing.T, certificate, state string) {
	t.Helper()
	c.wait(t, "the revocation of "+certificate+" to be "+state, func() bool {
		versions := c.look(t, "/api/v1/certificates/"+certificate+"/versions").list("versions")
		return len(versions) == 1 && versions[0].str("revocation_state") == state
	})
}

// orphans are ordered by hand, an hour ago by the CA's clock: what is younger may be on its way into the journal.
func (c *commercial) orphans(t *testing.T) {
	c.tell(t, http.MethodPost, "/clock", `{"offset":"-1h"}`)
	c.byHand(t, "at-digicert.example.com")
	c.byHand(t, "nobody.example.com")
	found := map[string]object{}
	c.wait(t, "two orphans", func() bool {
		for _, o := range c.look(t, "/api/v1/orders?orphan=true").list("orders") {
			names, _ := o["names"].(map[string]any)
			commonName, _ := names["common_name"].(string)
			found[commonName] = o
		}
		return len(found) >= 2
	})
	require.Len(t, found, 2, "orders of the journal are taken for orphans")
	ours, theirs := found["at-digicert.example.com"].str("id"), found["nobody.example.com"].str("id")
	require.Contains(t, c.certctl(t, "orders", "list", "--orphan"), "NOT_IN_JOURNAL")

	status, problem, err := c.try(t.Context(), http.MethodPost, "/api/v1/orders/"+ours+"/adopt", object{})
	require.NoError(t, err)
	require.Equal(t, http.StatusBadRequest, status, "%v", problem)
	status, problem, err = c.try(t.Context(), http.MethodPost, "/api/v1/orders/"+theirs+"/adopt", object{"certificate_id": "at-digicert"})
	require.NoError(t, err)
	require.Equal(t, http.StatusBadRequest, status, "a certificate got an order with a name that it does not have: %v", problem)

	for range 2 { // a repeat changes nothing
		adopted := c.must(t, http.MethodPost, "/api/v1/orders/"+ours+"/adopt", object{"certificate_id": "at-digicert"})
		require.Equal(t, ours, adopted.str("id"))
		require.Equal(t, "at-digicert", adopted.str("certificate_id"))
		c.must(t, http.MethodPost, "/api/v1/orders/"+theirs+"/dismiss", object{"reason": "ordered for the shop"})
	}
	c.wait(t, "the adopted order to be issued", func() bool { return c.look(t, "/api/v1/orders/"+ours).str("status") == "ISSUED" })
	c.wait(t, "its version", func() bool { return len(c.look(t, "/api/v1/certificates/at-digicert/versions").list("versions")) == 2 })
	status, problem, err = c.try(t.Context(), http.MethodPost, "/api/v1/orders/"+theirs+"/adopt", object{"certificate_id": "at-digicert"})
	require.NoError(t, err)
	require.Contains(t, []int{http.StatusConflict, http.StatusBadRequest}, status, "%v", problem)

	before := c.searches(t)
	c.wait(t, "two more comparisons", func() bool { return c.searches(t) >= before+2 })
	require.Empty(t, c.must(t, http.MethodGet, "/api/v1/orders?orphan=true", nil).list("orders"), "what was decided is an orphan again")
	for _, action := range []string{"order.orphan_found", "order.adopted", "order.dismissed"} {
		c.wait(t, action+" on the record", func() bool { return len(c.look(t, "/api/v1/audit?action="+action).list("events")) > 0 })
	}
	c.tell(t, http.MethodPost, "/clock", `{"offset":"0s"}`)
}

// searches counts the comparisons of the CAs' lists with the journal.
func (c *commercial) searches(t *testing.T) (runs float64) {
	t.Helper()
	var find func(v any)
	find = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if v["name"] == "orphan search" {
				runs, _ = v["runs"].(float64)
			}
			for _, each := range v {
				find(each)
			}
		case []any:
			for _, each := range v {
				find(each)
			}
		}
	}
	find(map[string]any(c.look(t, "/ready")))
	return runs
}

func TestKillingCertctlAndTheCAWhileAnOrderIsPendingLeavesOneOrder(t *testing.T) {
	t.Parallel()
	c := startCommercial(t)
	c.issuer(t, c.installation, "digicert", "digicert")
	c.tell(t, http.MethodPut, "/scenario", "approval: manual\n")
	server, ca := c.processes["certctl"], c.processes["simulator"]

	c.wants(t, "pending", "digicert")
	order := c.order(t, "pending", "PENDING").str("id")
	server.kill(t)
	ca.kill(t)
	ca.start(t)
	c.simulator.ready(t, c.installation)
	c.tell(t, http.MethodPost, "/orders/"+order+"/approve", "")
	server.start(t)
	c.installation.ready(t)
	c.inPlace(t, "pending", 1)
	require.Equal(t, order, c.order(t, "pending", "ISSUED").str("id"))
	c.hasOneOrder(t, "pending")

	// The CA has taken the order when certctl dies, and nobody has heard of it.
	c.tell(t, http.MethodPut, "/scenario", `{"faults":[{"ca":"digicert","operation":"submit","fault":"delay_after","delay":"20s","times":1}]}`)
	c.wants(t, "unheard", "digicert")
	c.wait(t, "the order at the CA", func() bool { return len(c.orders(t, "unheard.example.com")) == 1 })
	require.Equal(t, "SUBMITTING", c.order(t, "unheard", "SUBMITTING").str("status"))
	server.kill(t)
	query(t, c.database, `UPDATE issuance.orders SET due_time = now(), lease_until = now() - interval '1 second' WHERE status = 'SUBMITTING'`)
	server.start(t)
	c.installation.ready(t)
	c.inPlace(t, "unheard", 1)
	c.hasOneOrder(t, "unheard")
	c.content(t)
	c.recordHolds(t)
}

func TestApartAKilledPollerAndJournalGoOnWithTheSameOrder(t *testing.T) {
	t.Parallel()
	in := startSix(t)
	c := &commercial{installation: in, simulator: in.simulates(t), agent: in.onlineAgent(t)}
	c.issuer(t, in, "digicert", "digicert")
	c.tell(t, http.MethodPut, "/scenario", "approval: manual\n")
	c.wants(t, "apart", "digicert")
	order := c.order(t, "apart", "PENDING").str("id")
	for _, victim := range []string{"asyncpoller", "issuance"} {
		in.processes[victim].kill(t)
	}
	c.tell(t, http.MethodPost, "/orders/"+order+"/approve", "")
	for _, victim := range []string{"asyncpoller", "issuance"} {
		in.processes[victim].start(t)
	}
	in.ready(t)
	c.inPlace(t, "apart", 1)
	require.Equal(t, order, c.order(t, "apart", "ISSUED").str("id"))
	c.hasOneOrder(t, "apart")
	c.content(t)
}
