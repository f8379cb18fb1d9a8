package torture_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/asyncpoller"
	"github.com/certctl/certctl/services/issuance"
)

// schemas are those of the services under test.
func schemas() []pg.Schema { return []pg.Schema{issuance.Schema(), asyncpoller.Schema()} }

// world is a database, the CAs, and an issuer for each of them. What runs on it is for the test to start.
type world struct {
	t     testing.TB
	url   string
	admin *pgxpool.Pool
	dir   string // the CAs'
	sim   *casimulator.Simulator
	at    casimulator.Addresses
	key   secretbox.Key
	// rawKey is key as a child gets it.
	rawKey []byte
}

// newWorld makes one on the server that the tests share.
func newWorld(t testing.TB, s casimulator.Scenario) *world {
	t.Helper()
	return newWorldOn(t, testpg.NewDatabase(t, schemas()...).URL(), s)
}

// newWorldOn makes one on a database that has the schemas.
func newWorldOn(t testing.TB, url string, s casimulator.Scenario) *world {
	t.Helper()
	w := &world{t: t, url: url, dir: t.TempDir(), rawKey: make([]byte, 32)}
	_, _ = rand.Read(w.rawKey) // never fails
	var err error
	w.key, err = secretbox.NewKey(w.rawKey)
	require.NoError(t, err)
	w.startCAs("127.0.0.1:0", casimulator.Scenario{Unlimited: true})
	pc, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	pc.MaxConns = 12
	w.admin, err = pgxpool.NewWithConfig(t.Context(), pc)
	require.NoError(t, err)
	t.Cleanup(w.admin.Close)
	_, err = w.admin.Exec(t.Context(), tortureSchema)
	require.NoError(t, err)
	w.createIssuers()
	s.Unlimited = true
	w.sim.Play(s)
	return w
}

// startCAs opens the CAs in the directory of the world.
func (w *world) startCAs(address string, s casimulator.Scenario) {
	w.t.Helper()
	sim, err := casimulator.New(casimulator.Config{Dir: w.dir, Scenario: s})
	require.NoError(w.t, err)
	w.at, err = sim.Start(context.WithoutCancel(w.t.Context()), casimulator.Listen{Address: address})
	require.NoError(w.t, err)
	w.sim = sim
	w.t.Cleanup(func() { _ = sim.Close() }) // a test may have closed it
}

// node starts the services.
func (w *world) node(change ...func(*nodeConfig)) *node {
	w.t.Helper()
	cfg := nodeConfig{databaseURL: w.url, boxKey: w.key, types: types(), events: w.admin}
	for _, c := range change {
		c(&cfg)
	}
	n, err := startNode(context.WithoutCancel(w.t.Context()), cfg)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = n.stop() }) // a test may have stopped it
	return n
}

// createIssuers makes the issuers by the API, so that their secrets are sealed as in production.
func (w *world) createIssuers() {
	w.t.Helper()
	n := w.node()
	client := issuancev1.NewIssuerServiceClient(n.gateway)
	ctx := rpcctx.WithCaller(w.t.Context(), rpcctx.Caller{Type: rpcctx.User, ID: "ada", Role: rpcctx.RoleAdmin})
	for _, c := range connectors() {
		config, err := structpb.NewStruct(c.config(w.sim, w.at))
		require.NoError(w.t, err)
		for i := range issuersPerCA {
			id := issuerID(c.ca, i)
			_, err = client.CreateIssuer(ctx, &issuancev1.CreateIssuerRequest{
				Issuer: &issuancev1.Issuer{Id: id, Name: id, Type: c.typ.Name, Config: config, Enabled: new(true)},
			})
			require.NoError(w.t, err, c.ca)
		}
	}
	require.NoError(w.t, n.stop())
}

func issuerID(ca string, n int) string { return fmt.Sprintf("iss-%s-%d", ca, n) }

// exec runs a statement as the superuser.
func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	_, err := w.admin.Exec(w.t.Context(), sql, args...)
	require.NoError(w.t, err, sql)
}

// newIntent makes a key and asks for a certificate for it.
func newIntent(orderID, certificateID, issuer, commonName string) (*issuancev1.SubmitOrderRequest, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	names := []string{commonName, "www." + commonName}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: commonName}, DNSNames: names}, key)
	if err != nil {
		return nil, err
	}
	return &issuancev1.SubmitOrderRequest{
		OrderId: orderID, CertificateId: certificateID, JobId: "job-" + orderID, IssuerId: issuer, ProfileId: "prof-default",
		Names:  &typev1.Names{CommonName: commonName, DnsNames: names},
		CsrPem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
	}, nil
}

// tortureSchema holds what is recorded, what is asked for, and the statements that fail. A sequence counts the statements,
// as it is the one thing that a transaction which is rolled back does not take back.
const tortureSchema = `
CREATE SCHEMA torture;
CREATE TABLE torture.events (event_id uuid PRIMARY KEY, type text NOT NULL, resource_id text NOT NULL, order_id text NOT NULL);
CREATE INDEX ON torture.events (order_id);
CREATE TABLE torture.intents (order_id text PRIMARY KEY, request bytea NOT NULL);
CREATE TABLE torture.broken (order_id text, relation text, operation text, nth bigint NOT NULL, code text NOT NULL, counter text NOT NULL,
	PRIMARY KEY (order_id, relation, operation));

CREATE FUNCTION torture.fail_once(id text, relation_name text, operation_name text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE b torture.broken;
BEGIN
	SELECT * INTO b FROM torture.broken WHERE order_id = id AND relation = relation_name AND operation = operation_name;
	IF FOUND AND nextval(b.counter::regclass) = b.nth THEN
		RAISE EXCEPTION 'this statement fails once' USING ERRCODE = b.code;
	END IF;
END $$;
CREATE FUNCTION torture.of_id() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN PERFORM torture.fail_once(NEW.id, TG_TABLE_NAME, TG_OP); RETURN NEW; END $$;
CREATE FUNCTION torture.of_order_id() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN PERFORM torture.fail_once(NEW.order_id, TG_TABLE_NAME, TG_OP); RETURN NEW; END $$;
CREATE TRIGGER torture BEFORE UPDATE ON issuance.orders FOR EACH ROW
	WHEN (OLD.revision IS DISTINCT FROM NEW.revision) EXECUTE FUNCTION torture.of_id();
CREATE TRIGGER torture BEFORE INSERT ON issuance.issued_certificates FOR EACH ROW EXECUTE FUNCTION torture.of_order_id();
CREATE TRIGGER torture_insert BEFORE INSERT ON asyncpoller.polls FOR EACH ROW EXECUTE FUNCTION torture.of_order_id();
CREATE TRIGGER torture_update BEFORE UPDATE ON asyncpoller.polls FOR EACH ROW
	WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION torture.of_order_id();
`
