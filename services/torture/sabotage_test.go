package torture_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/digicert"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

// forgetful is a connector that finds nothing again, so that a lost order is placed once more.
type forgetful struct{ *digicert.Issuer }

// FindOrder implements issuer.Finder, wrongly.
func (forgetful) FindOrder(context.Context, issuer.FindRequest) (issuer.Submission, bool, error) {
	return issuer.Submission{}, false, nil
}

// TestAConnectorThatDoesNotFindWhatItPlacedIsCaught shows that a second certificate is seen.
func TestAConnectorThatDoesNotFindWhatItPlacedIsCaught(t *testing.T) {
	t.Parallel()
	w := newWorld(t, casimulator.Scenario{})
	s := &script{
		ca: casimulator.DigiCert, issuer: issuerID(casimulator.DigiCert, 0), commonName: "twice.example.com", orders: []string{"ord-twice"},
		ends: endsIssued, seen: map[string]int{},
	}
	s.add(casimulator.Fault{Operation: "submit", Kind: casimulator.DropAfter, Times: 1})
	p := newPlayOf(t, w, []*script{s})
	p.sim.Play(casimulator.Scenario{Unlimited: true, Faults: s.faults})
	for i, typ := range p.types {
		if typ.Name == digicert.TypeName {
			p.types[i].New = func(ctx context.Context, c issuer.Config, d issuer.Deps) (issuer.Issuer, error) {
				in, err := digicert.New(c, d)
				return forgetful{in}, err
			}
		}
	}
	p.nodes = append(p.nodes, p.replica())
	p.run(t.Context())
	p.settle()

	requireCaught(t, p.judged(), s.commonName, invariantOnce, invariantJournal, invariantOrphans)
}

func (p *play) judged() map[string][]string {
	p.t.Helper()
	f, err := collect(p.t.Context(), p.admin, p.sim)
	require.NoError(p.t, err)
	return judge(f, p.expectations())
}

func requireCaught(t testing.TB, wrong map[string][]string, name string, invariants ...string) {
	t.Helper()
	for _, invariant := range invariants {
		require.Contains(t, strings.Join(wrong[name], "\n"), invariant, "%v", wrong)
	}
}

// sabotage is something that must not be, done to the order ord-0 by SQL.
type sabotage struct {
	name string
	sql  string
	want []string
	of   string // the common name that it is told of; that of the order if empty, "-" for none
}

func sabotages() []sabotage {
	return []sabotage{
		{name: "an event is told twice", want: []string{invariantEvent},
			sql: `INSERT INTO torture.events VALUES (gen_random_uuid(), 'certificate.issued', 'cert', 'ord-0')`},
		{name: "an event is lost", want: []string{invariantEvent}, sql: `DELETE FROM torture.events WHERE order_id = 'ord-0'`},
		{name: "an event is not delivered", want: []string{invariantEvent}, of: "-",
			sql: `INSERT INTO issuance.outbox (event_id, destination, type, resource_type, resource_id, payload) VALUES (gen_random_uuid(), 'audit', 't', 't', 't', '')`},
		{name: "an order is open", want: []string{invariantFinal, invariantEnd, invariantOnce},
			sql: `UPDATE issuance.orders SET status = 'UNKNOWN', due_time = now(), end_time = NULL WHERE id = 'ord-0'`},
		{name: "an order is overdue", want: []string{invariantStuck},
			sql: `UPDATE issuance.orders SET status = 'UNKNOWN', due_time = now() - interval '2 hours', end_time = NULL WHERE id = 'ord-0'`},
		{name: "a watch is open", want: []string{invariantFinal},
			sql: `UPDATE asyncpoller.polls SET state = 'WAITING', end_time = NULL WHERE order_id = 'ord-0'`},
		{name: "a watch is overdue", want: []string{invariantStuck},
			sql: `UPDATE asyncpoller.polls SET state = 'WAITING', end_time = NULL, due_time = now() - interval '2 hours' WHERE order_id = 'ord-0'`},
		{name: "the CA's key is lost", want: []string{invariantJournal}, sql: `UPDATE issuance.orders SET ca_key = '' WHERE id = 'ord-0'`},
		{name: "the CA's key is another", want: []string{invariantJournal}, sql: `UPDATE issuance.orders SET ca_key = '4711' WHERE id = 'ord-0'`},
		{name: "an order is not in the journal", want: []string{invariantFinal, invariantJournal, invariantOnce}, sql: `WITH gone AS (
DELETE FROM issuance.issued_certificates WHERE order_id = 'ord-0') UPDATE issuance.orders SET id = 'ord-x', common_name = 'x' WHERE id = 'ord-0'`},
		{name: "an issued order is said to have failed", want: []string{invariantEnd, invariantOnce, invariantEvent},
			sql: `UPDATE issuance.orders SET status = 'FAILED', error_reason = 'X' WHERE id = 'ord-0'`},
		{name: "an order failed without a reason", want: []string{invariantEnd}, sql: `UPDATE issuance.orders SET status = 'FAILED' WHERE id = 'ord-0'`},
		{name: "the certificate is another", want: []string{invariantOnce}, sql: `UPDATE issuance.orders SET serial_number = 'ab12' WHERE id = 'ord-0'`},
		{name: "there is an orphan", want: []string{invariantOrphans}, of: "stray.example.com",
			sql: `INSERT INTO issuance.orphans (id, issuer_id, account, ca_key, ca_reference, ca_state, common_name, dns_names, reason, message, create_time, status)
SELECT 'ord-9', id, 'a', 'k', '{}', 'ISSUED', 'stray.example.com', '{}', 'NOT_IN_JOURNAL', '', now(), 'OPEN' FROM issuance.issuers LIMIT 1`},
	}
}

// TestEachInvariantCanFail shows that what must not be is seen, whatever it is.
func TestEachInvariantCanFail(t *testing.T) {
	t.Parallel()
	const name = "good.example.com"
	w := newWorld(t, casimulator.Scenario{})
	s := &script{
		ca: casimulator.DigiCert, issuer: issuerID(casimulator.DigiCert, 0), commonName: name, orders: []string{"ord-0"}, ends: endsIssued,
		seen: map[string]int{},
	}
	p := newPlayOf(t, w, []*script{s})
	p.sim.Play(casimulator.Scenario{Unlimited: true, Latency: ms(50)})
	p.nodes = append(p.nodes, p.replica())
	p.run(t.Context())
	p.settle()
	require.Empty(t, p.judged(), "nothing is wrong yet")

	for _, each := range sabotages() {
		wrong := p.judgedAfter(each.sql)
		of := each.of
		switch of {
		case "":
			of = name
		case "-":
			of = ""
		}
		require.NotEmpty(t, wrong[of], each.name)
		requireCaught(t, wrong, of, each.want...)
	}
	require.Empty(t, p.judged(), "all of it was taken back")

	p.orderBeside(t)
	requireCaught(t, p.judged(), "beside.example.com", invariantJournal)
	p.offend(t)
	requireCaught(t, p.judged(), "", invariantProtocol)
	p.poll("a reference", 1)
	p.poll("a reference", 1)
	require.NotEmpty(t, p.twice, "two polls at a time")
}

// judgedAfter judges in a transaction that is taken back.
func (p *play) judgedAfter(sql string) map[string][]string {
	p.t.Helper()
	tx, err := p.admin.Begin(p.t.Context())
	require.NoError(p.t, err)
	defer func() { require.NoError(p.t, tx.Rollback(context.WithoutCancel(p.t.Context()))) }()
	tag, err := tx.Exec(p.t.Context(), sql)
	require.NoError(p.t, err, sql)
	require.Positive(p.t, tag.RowsAffected(), sql)
	f, err := collect(p.t.Context(), tx, p.sim)
	require.NoError(p.t, err)
	return judge(f, p.expectations())
}

// orderBeside places an order past the journal.
func (p *play) orderBeside(t testing.TB) {
	t.Helper()
	c := connectorOf(casimulator.DigiCert)
	raw, err := json.Marshal(c.config(p.sim, p.at))
	require.NoError(t, err)
	public, secrets, err := c.typ.SplitSecrets(raw)
	require.NoError(t, err)
	in, err := c.typ.New(t.Context(), issuer.Config{Settings: public, Secrets: secrets}, issuer.Deps{})
	require.NoError(t, err)
	r := issuertest.NewRequest(t, "ord-beside", issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, "beside.example.com"))
	r.Lifetime = 90 * 24 * time.Hour
	_, err = in.Submit(t.Context(), r)
	require.NoError(t, err)
}

// offend calls the CA as it is not to be called.
func (p *play) offend(t testing.TB) {
	t.Helper()
	raw, err := os.ReadFile(p.sim.CAFile())
	require.NoError(t, err)
	block, _ := pem.Decode(raw)
	require.NotNil(t, block)
	ca, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.at.URL(casimulator.DigiCert)+"/services/v2/user/me", nil)
	require.NoError(t, err)
	resp, err := client.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	client.CloseIdleConnections()
}
