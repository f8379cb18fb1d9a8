package serve

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/config"
	"github.com/certctl/certctl/pkg/connector/issuer/catalog"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	renewalschedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/settings"
)

// generation is the old or the new of every secret that may be a list.
type generation struct{ internal, encryption, join, role string }

func newGeneration(word string) generation {
	return generation{
		internal: "the internal secret of " + word, join: "the join token of " + word, role: "the role secret of " + word,
		encryption: base64.StdEncoding.EncodeToString([]byte(fmt.Sprintf("%-32s", "the encryption key of "+word))),
	}
}

// stage are the settings of one step of a rotation.
func stage(list ...generation) []string {
	each := func(of func(generation) string) string {
		items := make([]string, 0, len(list))
		for _, g := range list {
			items = append(items, of(g))
		}
		return strings.Join(items, ",")
	}
	return []string{
		"CERTCTL_INTERNAL_SECRET=" + each(func(g generation) string { return g.internal }),
		"CERTCTL_ENCRYPTION_KEY=" + each(func(g generation) string { return g.encryption }),
		"CERTCTL_AGENT_JOIN_TOKEN=" + each(func(g generation) string { return g.join }),
		"CERTCTL_DATABASE_ROLE_SECRET=" + each(func(g generation) string { return g.role }),
	}
}

// apart is an installation of two replicas of each service, all on their own and with TLS between. Each calls peers of the other
// replica, so that in a rolling restart every call is between two stages of a rotation.
type apart struct {
	t         *testing.T
	server    *testpg.Server
	admin     *pgxpool.Pool
	fake      *issuertest.Fake
	logs      *observer.ObservedLogs
	log       *zap.Logger
	addresses [2]map[string]string
	stops     [2][]func() error
	users     [2]atomic.Pointer[user]
}

// user is what the gateway of a replica reaches; its services are those of the same replica.
type user struct {
	certificates inventoryv1.CertificateServiceClient
	jobs         renewalschedulerv1.JobServiceClient
	issuers      issuancev1.IssuerServiceClient
	events       auditv1.AuditServiceClient
	agents       agentv1.AgentServiceClient
}

func newApart(t *testing.T) *apart {
	t.Helper()
	fake, err := issuertest.NewFake(issuertest.FakeConfig{Forgetful: true})
	require.NoError(t, err)
	core, logs := observer.New(zap.InfoLevel)
	a := &apart{t: t, fake: fake, logs: logs, log: zap.New(core), server: testpg.NewServer(t, testpg.ServerConfig{Password: "p/a@s'w#o?r%d,$1"})}
	a.admin, err = pgxpool.New(t.Context(), a.server.URL())
	require.NoError(t, err)
	t.Cleanup(a.admin.Close)
	for replica := range a.addresses {
		a.addresses[replica] = map[string]string{}
		for _, name := range Services() {
			a.addresses[replica][name] = freeAddress(t)
		}
	}
	t.Cleanup(func() {
		for replica := range a.stops {
			a.stop(replica)
		}
	})
	return a
}

func freeAddress(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, lis.Close())
	return lis.Addr().String()
}

// process prepares one of a replica, whose peers are those of a replica.
func (a *apart) process(replica, peers int, name string, secrets []string) *process {
	a.t.Helper()
	at := a.addresses[peers]
	environ := append([]string{
		"CERTCTL_DATA_DIR=" + a.t.TempDir(), "CERTCTL_ASYNC_POLL_INTERVAL=1s", "CERTCTL_SERVICE_REPLICAS=2",
		"CERTCTL_DATABASE_URL=" + a.server.TCPURL("postgres", "p/a@s'w#o?r%d,$1"),
		"CERTCTL_INVENTORY_ADDR=" + at[nameInventory], "CERTCTL_ISSUANCE_ADDR=" + at[nameIssuance], "CERTCTL_AUDIT_ADDR=" + at[nameAudit],
		"CERTCTL_RENEWALSCHEDULER_ADDR=" + at[nameRenewalScheduler], "CERTCTL_ASYNCPOLLER_ADDR=" + at[nameAsyncPoller],
	}, secrets...)
	if own, ok := a.addresses[replica][name]; ok {
		environ = append(environ, "CERTCTL_GRPC_LISTEN_ADDR="+own)
	}
	var cfg settings.Server
	_, err := config.Load(&cfg, environ, config.Options{})
	require.NoError(a.t, err)
	p, err := newProcess(cfg, name)
	require.NoError(a.t, err)
	p.log, p.issuerTypes = a.log.Named(fmt.Sprintf("%s-%d", name, replica)), append(catalog.Types(), a.fake.Type())
	return p
}

// start starts all services of a replica.
func (a *apart) start(replica int, secrets []string) {
	a.t.Helper()
	for _, name := range Services() {
		p := a.process(replica, 1-replica, name, secrets)
		g := run.NewGroup(context.WithoutCancel(a.t.Context()), run.Config{ShutdownTimeout: serviceShutdown})
		a.stops[replica] = append(a.stops[replica], func() error {
			g.Stop(nil)
			defer p.close()
			return g.Wait()
		})
		require.NoError(a.t, p.startServices(a.t.Context(), g, name))
	}
}

func (a *apart) stop(replica int) {
	a.t.Helper()
	var g errgroup.Group
	for _, stop := range a.stops[replica] {
		g.Go(stop)
	}
	a.stops[replica] = nil
	require.NoError(a.t, g.Wait())
}

// connect gives the gateway of a replica its connections.
func (a *apart) connect(replica int, secrets []string) {
	a.t.Helper()
	p := a.process(replica, replica, nameGateway, secrets)
	a.t.Cleanup(p.close)
	conns, err := p.dialAll(nameGateway, Services()...)
	require.NoError(a.t, err)
	a.users[replica].Store(&user{
		certificates: inventoryv1.NewCertificateServiceClient(conns[nameInventory]), jobs: renewalschedulerv1.NewJobServiceClient(conns[nameRenewalScheduler]),
		issuers: issuancev1.NewIssuerServiceClient(conns[nameIssuance]), events: auditv1.NewAuditServiceClient(conns[nameAudit]),
		agents: agentv1.NewAgentServiceClient(conns[nameInventory]),
	})
}

// roll brings the installation to the next stage: certctl migrate, then one replica after the other, then their gateways.
func (a *apart) roll(secrets []string) {
	a.t.Helper()
	migration := a.process(0, 0, "migrate", secrets)
	defer migration.close()
	require.NoError(a.t, migration.migrate(a.t.Context(), startWait))
	for replica := range a.stops {
		a.stop(replica)
		a.start(replica, secrets)
	}
	for replica := range a.users {
		a.connect(replica, secrets)
	}
}

// ask calls one replica and then the other while they are being restarted; any other refusal is a failure.
func (a *apart) ask(ctx context.Context, do func(context.Context, *user) error) error {
	deadline := time.Now().Add(patience)
	for attempt := 0; ; attempt++ {
		err := do(rpcctx.WithCaller(ctx, rpcctx.Caller{Type: rpcctx.User, ID: "ann", Role: rpcctx.RoleAdmin}), a.users[attempt%2].Load())
		if err == nil || !errs.IsKind(err, errs.Unavailable) || time.Now().After(deadline) {
			return err
		}
		if err := rest(ctx); err != nil {
			return err
		}
	}
}

// rest waits a little before something is asked again.
func rest(ctx context.Context) error {
	pause := time.NewTimer(interval)
	defer pause.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-pause.C:
		return nil
	}
}

// issue has one certificate made, from the wish to the last word.
func (a *apart) issue(ctx context.Context, id, csrPEM string) error {
	err := a.ask(ctx, func(ctx context.Context, u *user) error {
		_, err := u.certificates.CreateCertificate(ctx, &inventoryv1.CreateCertificateRequest{
			RequestId: "create " + id, Certificate: &inventoryv1.Certificate{Id: id, Name: id, CommonName: id + ".example.com",
				DnsNames: []string{id + ".example.com"}, IssuerId: fakeIssuer},
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("create %s: %w", id, err)
	}
	if err := a.job(ctx, id, renewalschedulerv1.Job_AWAITING_CSR); err != nil {
		return err
	}
	err = a.ask(ctx, func(ctx context.Context, u *user) error {
		_, err := u.jobs.SubmitCsr(ctx, &renewalschedulerv1.SubmitCsrRequest{CertificateId: id, CsrPem: csrPEM, RequestId: "csr " + id})
		return err
	})
	if err != nil {
		return fmt.Errorf("submit CSR of %s: %w", id, err)
	}
	return a.job(ctx, id, renewalschedulerv1.Job_COMPLETED)
}

func (a *apart) job(ctx context.Context, id string, want renewalschedulerv1.Job_Status) error {
	deadline := time.Now().Add(patience)
	for {
		var jobs []*renewalschedulerv1.Job
		err := a.ask(ctx, func(ctx context.Context, u *user) error {
			answer, err := u.jobs.ListJobs(ctx, &renewalschedulerv1.ListJobsRequest{CertificateId: id})
			jobs = answer.GetJobs()
			return err
		})
		switch {
		case err != nil:
			return fmt.Errorf("list jobs of %s: %w", id, err)
		case len(jobs) > 1:
			return fmt.Errorf("%s has %d jobs", id, len(jobs))
		case len(jobs) == 1 && jobs[0].GetStatus() == want:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("job of %s is not %s: %v", id, want, jobs)
		}
		if err := rest(ctx); err != nil {
			return err
		}
	}
}

// enroll has an agent come in with a join token.
func (a *apart) enroll(name, token string) error {
	return a.ask(a.t.Context(), func(ctx context.Context, u *user) error {
		_, err := u.agents.Enroll(rpcctx.WithCaller(ctx, rpcctx.AnonymousCaller()), &agentv1.EnrollRequest{
			JoinToken: token, Name: name, InstanceId: uuid.NewString(), Host: &agentv1.HostInfo{Hostname: name},
		})
		return err
	})
}

// turnPages reads the record page by page, with one token from each replica in turn; given a token, it goes on from there.
func (a *apart) turnPages(token string) (next string) {
	a.t.Helper()
	for replica := range a.users {
		u := a.users[replica].Load()
		ctx := rpcctx.WithCaller(a.t.Context(), rpcctx.Caller{Type: rpcctx.User, ID: "ann", Role: rpcctx.RoleAdmin})
		answer, err := u.events.ListEvents(ctx, &auditv1.ListEventsRequest{PageSize: 1, PageToken: token, OrderBy: "sequence asc"})
		require.NoError(a.t, err)
		token = answer.GetNextPageToken()
	}
	return token
}

func (a *apart) intact() {
	a.t.Helper()
	for replica := range a.users {
		ctx := rpcctx.WithCaller(a.t.Context(), rpcctx.Caller{Type: rpcctx.User, ID: "ann", Role: rpcctx.RoleAdmin})
		verdict, err := a.users[replica].Load().events.VerifyEvents(ctx, &auditv1.VerifyEventsRequest{})
		require.NoError(a.t, err)
		require.True(a.t, verdict.GetValid(), "%v", verdict.GetFirstInvalidEvent())
		require.Positive(a.t, verdict.GetEventsChecked())
	}
}

// sayIt waits until both replicas of audit and of issuance have said that a secret may go, as an operator does.
func (a *apart) sayIt() {
	a.t.Helper()
	for _, word := range []string{"every anchor of the audit chain is sealed", "every secret at rest is under the first key"} {
		require.Eventually(a.t, func() bool {
			return a.logs.Filter(func(e observer.LoggedEntry) bool { return strings.HasPrefix(e.Message, word) }).Len() >= 2
		}, patience, interval, "waited for: %s", word)
	}
}

func (a *apart) keysAtRest() map[string]bool {
	a.t.Helper()
	rows, err := a.admin.Query(a.t.Context(), "SELECT sealed FROM issuance.issuer_secrets")
	require.NoError(a.t, err)
	sealed, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	require.NoError(a.t, err)
	require.NotEmpty(a.t, sealed)
	keys := map[string]bool{}
	for _, s := range sealed {
		keys[secretbox.KeyOf(s)] = true
	}
	return keys
}

// load issues certificates one after the other, by several workers, until it is told to end.
type load struct {
	done   atomic.Int64
	ending atomic.Bool
	failed chan error
	ids    []string
	mu     sync.Mutex
	group  sync.WaitGroup
}

func (a *apart) load(workers int) *load {
	l := &load{failed: make(chan error, workers)}
	for worker := range workers {
		l.group.Go(func() {
			for n := 0; !l.ending.Load(); n++ {
				id := fmt.Sprintf("web-%d-%04d", worker, n)
				if err := a.issue(a.t.Context(), id, csr(a.t, id)); err != nil {
					l.failed <- err
					return
				}
				l.mu.Lock()
				l.ids = append(l.ids, id)
				l.mu.Unlock()
				l.done.Add(1)
			}
		})
	}
	return l
}

// progress waits until more certificates were made.
func (l *load) progress(t *testing.T) {
	t.Helper()
	from := l.done.Load()
	require.Eventually(t, func() bool { return l.done.Load() >= from+5 || len(l.failed) > 0 }, patience, interval)
	l.check(t)
}

func (l *load) check(t *testing.T) {
	t.Helper()
	select {
	case err := <-l.failed:
		require.NoError(t, err)
	default:
	}
}

// TestEverySecretIsReplacedWhileWorkGoesOn rolls two replicas of all services through old → old,new → new,old → new for all
// secrets at once.
func TestEverySecretIsReplacedWhileWorkGoesOn(t *testing.T) {
	t.Parallel()
	before, after := newGeneration("before"), newGeneration("after")
	a := newApart(t)
	a.roll(stage(before))
	require.NoError(t, a.ask(t.Context(), func(ctx context.Context, u *user) error {
		_, err := u.issuers.CreateIssuer(ctx, &issuancev1.CreateIssuerRequest{
			Issuer: &issuancev1.Issuer{Id: fakeIssuer, Name: "fake", Type: issuertest.FakeTypeName, Enabled: new(true)}, RequestId: "the issuer",
		})
		return err
	}))
	l := a.load(3)
	l.progress(t)
	token := a.turnPages("")
	require.NoError(t, a.enroll("agent-0", before.join))
	require.Equal(t, "JOIN_TOKEN_NOT_VALID", errs.ReasonOf(a.enroll("agent-x", after.join)))

	for n, list := range [][]generation{{before, after}, {after, before}} {
		a.logs.TakeAll()
		a.roll(stage(list...))
		l.progress(t)
		token = a.turnPages(token)
		require.NoError(t, a.enroll(fmt.Sprintf("agent-old-%d", n), before.join))
		require.NoError(t, a.enroll(fmt.Sprintf("agent-new-%d", n), after.join))
		a.intact()
		a.sayIt()
	}
	require.Len(t, a.keysAtRest(), 1)

	a.roll(stage(after))
	l.progress(t)
	a.turnPages(token)
	require.NoError(t, a.enroll("agent-9", after.join))
	require.Equal(t, "JOIN_TOKEN_NOT_VALID", errs.ReasonOf(a.enroll("agent-x", before.join)))
	l.ending.Store(true)
	l.group.Wait()
	l.check(t)
	a.intact()
	for _, id := range l.ids {
		var orders []string
		require.NoError(t, a.admin.QueryRow(t.Context(), "SELECT array_agg(id) FROM issuance.orders WHERE certificate_id = $1", id).Scan(&orders))
		require.Len(t, orders, 1)
		bought, err := a.fake.Bought(orders[0])
		require.NoError(t, err)
		require.Equal(t, 1, bought)
	}
	t.Logf("%d certificates were made", len(l.ids))
}
