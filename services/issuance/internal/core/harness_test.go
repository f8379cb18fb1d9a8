package core

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/local"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/issuance/internal/store"
)

// errKilled is what a checkpoint returns that kills the process.
var errKilled = errors.New("killed at a checkpoint")

// peers are the other services.
type peers struct {
	mu           sync.Mutex
	certificates int
	polled       []string
	cancelled    []string
	pollErr      error
}

func (p *peers) CountIssuer(context.Context, string) (int, error)  { return p.certificates, nil }
func (p *peers) CountProfile(context.Context, string) (int, error) { return p.certificates, nil }

func (p *peers) PollNow(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.polled = append(p.polled, id)
	return p.pollErr
}

func (p *peers) Polls(context.Context, string) ([]*issuancev1.OrderPoll, error) {
	return []*issuancev1.OrderPoll{{Result: "PENDING", Message: "waiting for approval at the CA"}}, nil
}

func (p *peers) CancelPoll(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancelled = append(p.cancelled, id)
	return nil
}

// clock is a clock that tests turn.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) turn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

// world is one database with a fake CA and any number of replicas on it.
type world struct {
	*Core

	t      *testing.T
	db     *testpg.Database
	box    *secretbox.Box
	fake   *issuertest.Fake
	types  issuer.Types
	peers  *peers
	clock  *clock
	logs   *observer.ObservedLogs
	logger *zap.Logger
}

const (
	fakeIssuer    = "iss-fake"
	openProfile   = "prof-open"
	narrowProfile = "prof-narrow"
)

func newWorld(t *testing.T) *world {
	t.Helper()
	fake, err := issuertest.NewFake(issuertest.FakeConfig{Forgetful: true})
	require.NoError(t, err)
	box, err := secretbox.NewBox(secretbox.GenerateKey())
	require.NoError(t, err)
	zc, logs := observer.New(zap.DebugLevel)
	w := &world{
		t: t, db: testpg.NewDatabase(t, store.Schema()), box: box,
		fake: fake, types: issuer.Types{local.Type(), fake.Type(), blindType(fake)}, peers: &peers{}, clock: &clock{}, logs: logs, logger: zap.New(zc),
	}
	w.Core = w.replica()
	require.NoError(t, w.Bootstrap(w.ctx()))
	w.createIssuer(NewIssuer{ID: fakeIssuer, Name: "Fake", Type: issuertest.FakeTypeName, Enabled: true})
	w.createProfile(store.Profile{ID: openProfile, Name: "Open", AllowWildcards: true, MaxValidity: time.Hour})
	return w
}

// ctx is that of a call by the scheduler.
func (w *world) ctx() context.Context {
	return rpcctx.WithCaller(w.t.Context(), rpcctx.ServiceCaller("renewalscheduler"))
}

// replica is another process on the same database.
func (w *world) replica() *Core {
	w.t.Helper()
	c, err := New(Config{ReconcileDelay: time.Millisecond, CallTimeout: 5 * time.Second, BootstrapLocalIssuer: true}, Deps{
		DB: w.db.Open(w.t, "issuance"), Log: w.logger, Box: w.box, Types: w.types, References: w.peers, Poller: w.peers, Now: w.clock.now,
	})
	require.NoError(w.t, err)
	return c
}

func (w *world) tx(f func(ctx context.Context, tx pgx.Tx) error) error {
	return w.deps.DB.Tx(w.ctx(), f)
}

func (w *world) createIssuer(in NewIssuer) (i store.Issuer) {
	w.t.Helper()
	draft, err := w.DraftIssuer(w.ctx(), in)
	require.NoError(w.t, err)
	require.NoError(w.t, w.tx(func(ctx context.Context, tx pgx.Tx) (err error) {
		i, err = w.CreateIssuer(ctx, tx, draft)
		return err
	}))
	return i
}

func (w *world) createProfile(p store.Profile) {
	w.t.Helper()
	require.NoError(w.t, w.tx(func(ctx context.Context, tx pgx.Tx) error {
		_, err := w.CreateProfile(ctx, tx, p)
		return err
	}))
}

func (w *world) order(id string) store.Order {
	w.t.Helper()
	o, err := w.GetOrder(w.ctx(), id)
	require.NoError(w.t, err)
	return o
}

// expireLeases lets all leases run out and all rows be due.
func (w *world) expireLeases() {
	w.t.Helper()
	for _, table := range []string{"orders", "revocations"} {
		_, err := w.deps.DB.Pool.Exec(w.ctx(), "UPDATE "+table+" SET lease_until = now() - interval '1 second' WHERE lease_until IS NOT NULL")
		require.NoError(w.t, err)
		_, err = w.deps.DB.Pool.Exec(w.ctx(), "UPDATE "+table+" SET due_time = now() - interval '1 second' WHERE due_time IS NOT NULL")
		require.NoError(w.t, err)
	}
}

// reconcile runs the journal's lease loop of a replica once over all orders.
func (w *world) reconcile(c *Core) {
	w.t.Helper()
	w.expireLeases()
	table, err := store.OrderLeases()
	require.NoError(w.t, err)
	w.sweep(c.deps.DB, table, c.Reconcile)
}

func (w *world) retryRevocations() {
	w.t.Helper()
	w.expireLeases()
	table, err := store.RevocationLeases()
	require.NoError(w.t, err)
	w.sweep(w.deps.DB, table, w.RetryRevocation)
}

func (w *world) sweep(db *pg.DB, table *lease.Table, handle lease.Handler) {
	w.t.Helper()
	leases, err := table.Claim(w.ctx(), db.Pool, 100, time.Minute)
	require.NoError(w.t, err)
	for _, l := range leases {
		if err := handle(w.ctx(), l); err != nil && !errors.Is(err, errKilled) {
			require.NoError(w.t, err)
		}
	}
}

// events reads the outbox.
func (w *world) events(kind, resourceID string) []*eventv1.Event {
	w.t.Helper()
	rows, err := w.deps.DB.Pool.Query(w.ctx(), `SELECT payload FROM outbox WHERE type = $1 AND resource_id = $2 ORDER BY id`, kind, resourceID)
	require.NoError(w.t, err)
	payloads, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	require.NoError(w.t, err)
	var out []*eventv1.Event
	for _, b := range payloads {
		e := &eventv1.Event{}
		require.NoError(w.t, proto.Unmarshal(b, e))
		out = append(out, e)
	}
	return out
}

// certificates counts what the journal has for an order.
func (w *world) certificates(orderID string) int {
	w.t.Helper()
	var n int
	require.NoError(w.t, w.deps.DB.Pool.QueryRow(w.ctx(), `SELECT count(*) FROM issued_certificates WHERE order_id = $1`, orderID).Scan(&n))
	return n
}

func (w *world) leaf(orderID string) *x509.Certificate {
	w.t.Helper()
	c, err := store.GetCertificateOfOrder(w.ctx(), w.deps.DB.Pool, orderID)
	require.NoError(w.t, err)
	block, _ := pem.Decode([]byte(c.CertificatePEM))
	require.NotNil(w.t, block)
	leaf, err := x509.ParseCertificate(block.Bytes)
	require.NoError(w.t, err)
	return leaf
}

// request is an order for one name with a new P-256 key.
func request(t testing.TB, issuerID string, names ...string) SubmitRequest {
	t.Helper()
	if len(names) == 0 {
		names = []string{"www.example.com"}
	}
	raw := certcheck.RawNames{CommonName: names[0], DNSNames: names}
	return requestFor(t, issuerID, raw, issuertest.NewKey(t, certcheck.ECDSAP256))
}

func requestFor(t testing.TB, issuerID string, raw certcheck.RawNames, key crypto.Signer) SubmitRequest {
	t.Helper()
	return SubmitRequest{
		OrderID: "ord-" + uuid.NewString(), CertificateID: "cert-" + uuid.NewString(), JobID: "job-1", AgentID: "agent-1",
		CSRRequest: CSRRequest{CSR: csrPEM(t, key, raw), Request: Request{IssuerID: issuerID, ProfileID: openProfile, Names: raw}},
	}
}

func csrPEM(t testing.TB, key crypto.Signer, raw certcheck.RawNames) []byte {
	t.Helper()
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: raw.CommonName}, DNSNames: raw.DNSNames, EmailAddresses: raw.EmailAddresses}
	for _, ip := range raw.IPAddresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// blind is a CA without any way to look an order up, to choose a serial number or to revoke.
type blind struct{ fake *issuertest.Fake }

func (b blind) Submit(ctx context.Context, r issuer.SubmitRequest) (issuer.Submission, error) {
	return b.fake.Submit(ctx, r)
}

func (b blind) Poll(ctx context.Context, ref issuer.Ref) (issuer.Submission, error) {
	return b.fake.Poll(ctx, ref)
}

func blindType(f *issuertest.Fake) issuer.Type {
	t := f.Type()
	t.Name, t.SecretFields = "blind", []string{"token"}
	t.Capabilities = issuer.Capabilities{Async: true}
	var expired atomic.Bool // a token "once" is good for one connector
	t.New = func(_ context.Context, c issuer.Config, _ issuer.Deps) (issuer.Issuer, error) {
		token := c.Secrets["token"].Reveal()
		if token == "wrong" || token == "once" && expired.Swap(true) {
			return nil, issuer.Misconfigured("TOKEN_REFUSED", "the token is refused")
		}
		return blind{f}, nil
	}
	return t
}

// profileEdit is a profile as an update sees it.
type profileEdit = store.Profile

func narrow() store.Profile { return narrowFor(time.Hour) }

func narrowFor(validity time.Duration) store.Profile {
	return store.Profile{
		ID: narrowProfile, Name: "Narrow", AllowedSANPatterns: []string{"**.example.com", "10.0.0.0/8"},
		AllowedKeyAlgorithms: []string{"ECDSA_P256"}, MaxValidity: validity,
	}
}

func (w *world) updateProfile(id string, change func(*profileEdit)) {
	w.t.Helper()
	require.NoError(w.t, w.tx(func(ctx context.Context, tx pgx.Tx) error {
		_, err := w.UpdateProfile(ctx, tx, id, 0, func(p *store.Profile) error {
			change(p)
			return nil
		})
		return err
	}))
}

func (w *world) updateIssuer(id string, e IssuerEdit) (i store.Issuer) {
	w.t.Helper()
	require.NoError(w.t, w.tx(func(ctx context.Context, tx pgx.Tx) (err error) {
		i, err = w.UpdateIssuer(ctx, tx, id, 0, e)
		return err
	}))
	return i
}

// statements counts what a pool sends, beside the begin and end of transactions.
type statements struct {
	mu   sync.Mutex
	seen []string
}

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	if d.SQL != "begin" && d.SQL != "commit" {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seen = append(s.seen, d.SQL)
	}
	return ctx
}

func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// countStatements gives what is sent from now on.
func (w *world) countStatements() func() []string {
	w.t.Helper()
	s := &statements{}
	w.deps.DB = w.db.OpenTraced(w.t, "issuance", s)
	return func() []string {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.seen
	}
}
