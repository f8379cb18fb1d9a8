package serve

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/config"
	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer/catalog"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	renewalschedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/settings"
)

const (
	fakeIssuer = "iss-fake"
	patience   = 60 * time.Second
	interval   = 20 * time.Millisecond
)

// site is an installation whose CA is a fake that counts what was bought: one database, and any number of replicas of
// all five services on it.
type site struct {
	t    *testing.T
	db   *testpg.Database
	cfg  settings.Server
	fake *issuertest.Fake
	// admin reads and turns what no service shows.
	admin *pgxpool.Pool
}

// newSite makes an installation without replicas. Its CA makes a new order of each submission, as most do.
func newSite(t *testing.T) *site {
	t.Helper()
	fake, err := issuertest.NewFake(issuertest.FakeConfig{Forgetful: true})
	require.NoError(t, err)
	s := &site{t: t, db: testpg.NewDatabase(t, Schemas()...), fake: fake}
	_, err = config.Load(&s.cfg, []string{"CERTCTL_DATA_DIR=" + t.TempDir(), "CERTCTL_ASYNC_POLL_INTERVAL=1s",
		"CERTCTL_INTERNAL_SECRET=a secret of services in tests"}, config.Options{})
	require.NoError(t, err)
	s.admin = s.db.Admin(t)
	return s
}

// replica is one process with all five services.
type replica struct {
	*site

	p *process

	certificates inventoryv1.CertificateServiceClient
	jobs         renewalschedulerv1.JobServiceClient
	orders       issuancev1.OrderServiceClient
	issuers      issuancev1.IssuerServiceClient
	events       auditv1.AuditServiceClient
	polls        asyncpollerv1.PollInternalServiceClient
}

// start starts a replica, which ends with the test.
func (s *site) start() *replica {
	s.t.Helper()
	p, err := newProcess(s.cfg, "")
	require.NoError(s.t, err)
	p.log = zaptest.NewLogger(s.t, zaptest.Level(zap.WarnLevel))
	p.memory, p.databaseURL = rpc.NewMemoryNetwork(), secretbox.NewSecret(s.db.URL())
	p.issuerTypes = append(catalog.Types(), s.fake.Type())
	g := run.NewGroup(context.WithoutCancel(s.t.Context()), run.Config{ShutdownTimeout: serviceShutdown})
	s.t.Cleanup(func() {
		g.Stop(nil)
		err := g.Wait()
		p.close()
		require.NoError(s.t, err)
	})
	require.NoError(s.t, p.startServices(s.t.Context(), g, Services()...))
	r := &replica{site: s, p: p}
	r.certificates = inventoryv1.NewCertificateServiceClient(r.dial(nameGateway, nameInventory))
	r.jobs = renewalschedulerv1.NewJobServiceClient(r.dial(nameGateway, nameRenewalScheduler))
	r.orders = issuancev1.NewOrderServiceClient(r.dial(nameGateway, nameIssuance))
	r.issuers = issuancev1.NewIssuerServiceClient(r.dial(nameGateway, nameIssuance))
	r.events = auditv1.NewAuditServiceClient(r.dial(nameGateway, nameAudit))
	r.polls = asyncpollerv1.NewPollInternalServiceClient(r.dial(nameIssuance, nameAsyncPoller))
	return r
}

func (r *replica) dial(self, peer string) *grpc.ClientConn {
	r.t.Helper()
	conn, err := r.p.dial(self, peer)
	require.NoError(r.t, err)
	return conn
}

// as is the context of a user's call.
func (s *site) as() context.Context {
	return rpcctx.WithCaller(s.t.Context(), rpcctx.Caller{Type: rpcctx.User, ID: "ann", Role: rpcctx.RoleAdmin})
}

func (s *site) eventually(what string, condition func() bool) {
	s.t.Helper()
	require.Eventually(s.t, condition, patience, interval, "waited for: %s", what)
}

func (r *replica) createIssuer() {
	r.t.Helper()
	_, err := r.issuers.CreateIssuer(r.as(), &issuancev1.CreateIssuerRequest{
		Issuer: &issuancev1.Issuer{Id: fakeIssuer, Name: "fake", Type: issuertest.FakeTypeName, Enabled: new(true)},
	})
	require.NoError(r.t, err)
}

// create asks for a certificate whose key the caller keeps. Repeated, it is the same certificate.
func (r *replica) create(id string) error {
	_, err := r.certificates.CreateCertificate(r.as(), &inventoryv1.CreateCertificateRequest{
		RequestId: "create " + id,
		Certificate: &inventoryv1.Certificate{Id: id, Name: id, CommonName: id + ".example.com", DnsNames: []string{id + ".example.com"},
			IssuerId: fakeIssuer},
	})
	return err
}

// csr makes a key that only the caller of certctl has, and the request for it.
func csr(t *testing.T, id string) string {
	t.Helper()
	r := issuertest.NewCSR(t, issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, id+".example.com"))
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.Raw}))
}

// submit posts the CSR. Repeated, it answers the same job.
func (r *replica) submit(id, csrPEM string) (*renewalschedulerv1.Job, error) {
	answer, err := r.jobs.SubmitCsr(r.as(), &renewalschedulerv1.SubmitCsrRequest{CertificateId: id, CsrPem: csrPEM, RequestId: "csr " + id})
	return answer.GetJob(), err
}

// ask has a certificate wanted and its CSR posted.
func (r *replica) ask(id string) (jobID string) {
	r.t.Helper()
	require.NoError(r.t, r.create(id))
	r.onlyJob(id, renewalschedulerv1.Job_AWAITING_CSR)
	j, err := r.submit(id, csr(r.t, id))
	require.NoError(r.t, err)
	return j.GetId()
}

// onlyJob waits until the one job of a certificate has a status.
func (r *replica) onlyJob(id string, want renewalschedulerv1.Job_Status) (j *renewalschedulerv1.Job) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("the job of %s to be %s", id, want), func() bool {
		answer, err := r.jobs.ListJobs(r.as(), &renewalschedulerv1.ListJobsRequest{CertificateId: id})
		require.NoError(r.t, err)
		require.LessOrEqual(r.t, len(answer.GetJobs()), 1, "a certificate has two jobs")
		if len(answer.GetJobs()) == 0 {
			return false
		}
		j = answer.GetJobs()[0]
		return j.GetStatus() == want
	})
	return j
}

// onlyOrder waits until the one order of a certificate has a status.
func (r *replica) onlyOrder(id string, want issuancev1.Order_Status) (o *issuancev1.Order) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("the order of %s to be %s", id, want), func() bool {
		answer, err := r.orders.ListOrders(r.as(), &issuancev1.ListOrdersRequest{CertificateId: id})
		require.NoError(r.t, err)
		require.LessOrEqual(r.t, len(answer.GetOrders()), 1, "a certificate has two orders")
		if len(answer.GetOrders()) == 0 {
			return false
		}
		o = answer.GetOrders()[0]
		return o.GetStatus() == want
	})
	return o
}

// version reads the one version of a certificate and sees that it is the order's.
func (r *replica) version(id, orderID string) {
	r.t.Helper()
	answer, err := r.certificates.ListCertificateVersions(r.as(), &inventoryv1.ListCertificateVersionsRequest{CertificateId: id})
	require.NoError(r.t, err)
	require.Len(r.t, answer.GetVersions(), 1)
	require.Equal(r.t, orderID, answer.GetVersions()[0].GetOrderId())
	got, err := r.certificates.GetCertificate(r.as(), &inventoryv1.GetCertificateRequest{Id: id})
	require.NoError(r.t, err)
	require.Equal(r.t, inventoryv1.Certificate_ACTIVE, got.GetCertificate().GetStatus())
	require.EqualValues(r.t, 1, got.GetCertificate().GetCurrentVersion())
}

// poll reads what asyncpoller watches of an order; nil when it watches nothing.
func (r *replica) poll(orderID string) *asyncpollerv1.Poll {
	r.t.Helper()
	answer, err := r.polls.BatchGetPolls(r.t.Context(), &asyncpollerv1.BatchGetPollsRequest{OrderIds: []string{orderID}})
	require.NoError(r.t, err)
	if len(answer.GetPolls()) == 0 {
		return nil
	}
	return answer.GetPolls()[0]
}

// audited waits until each action on a resource is on the record once.
func (r *replica) audited(resource string, actions ...string) {
	r.t.Helper()
	for _, action := range actions {
		r.eventually(action+" of "+resource+" on the record", func() bool {
			answer, err := r.events.ListEvents(r.as(), &auditv1.ListEventsRequest{ResourceId: resource, Action: action})
			require.NoError(r.t, err)
			require.LessOrEqual(r.t, len(answer.GetEvents()), 1, "%s of %s is twice on the record", action, resource)
			return len(answer.GetEvents()) == 1
		})
	}
}

// intact verifies the whole record.
func (r *replica) intact() {
	r.t.Helper()
	verdict, err := r.events.VerifyEvents(r.as(), &auditv1.VerifyEventsRequest{})
	require.NoError(r.t, err)
	require.True(r.t, verdict.GetValid(), "%v", verdict.GetFirstInvalidEvent())
	require.Positive(r.t, verdict.GetEventsChecked())
}

// bought sees that the CA sold an order's certificate once.
func (r *replica) bought(orderID string) {
	r.t.Helper()
	n, err := r.fake.Bought(orderID)
	require.NoError(r.t, err)
	require.Equal(r.t, 1, n, "bought under %s", orderID)
}

func TestAnOrderThatTheCAKeepsPendingEndsInACertificateThatWasBoughtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const polls = 3
	s.fake.PlanAll(issuertest.Plan{Polls: polls})
	r := s.start()
	r.createIssuer()
	job := r.ask("slow")

	order := r.onlyOrder("slow", issuancev1.Order_PENDING)
	require.Equal(t, job, r.onlyJob("slow", renewalschedulerv1.Job_AWAITING_CA).GetId())
	require.Equal(t, job, order.GetJobId())
	require.NotEmpty(t, order.GetCaReference())
	s.eventually("the order to be watched", func() bool { return r.poll(order.GetId()) != nil })
	require.Contains(t, []asyncpollerv1.Poll_State{asyncpollerv1.Poll_WAITING, asyncpollerv1.Poll_LEASED}, r.poll(order.GetId()).GetState())

	for asked := range int32(polls) {
		// The watch would get there by itself; a person who asks need not wait for it.
		_, err := r.orders.PollOrder(r.as(), &issuancev1.PollOrderRequest{Id: order.GetId()})
		require.NoError(t, err)
		s.eventually("another poll", func() bool {
			p := r.poll(order.GetId())
			return p.GetAttempts() > asked && p.GetState() != asyncpollerv1.Poll_LEASED
		})
	}
	_, err := r.orders.PollOrder(r.as(), &issuancev1.PollOrderRequest{Id: order.GetId()})
	require.NoError(t, err)
	r.onlyOrder("slow", issuancev1.Order_ISSUED)
	done := r.onlyJob("slow", renewalschedulerv1.Job_COMPLETED)
	require.Equal(t, job, done.GetId())
	require.EqualValues(t, 1, done.GetAttempt())
	require.EqualValues(t, 1, done.GetKeys()[0].GetVersion())
	r.version("slow", order.GetId())
	s.eventually("the watch to end", func() bool { return r.poll(order.GetId()).GetState() == asyncpollerv1.Poll_DONE })
	r.audited(order.GetId(), "order.submitted", "order.pending", "order.issued")
	r.audited(job, "job.created", "job.completed")
	r.intact()
	r.bought(order.GetId())
	n, err := s.fake.Polls(order.GetId())
	require.NoError(t, err)
	require.Equal(t, polls+1, n, "polls after the last answer")
}

func TestAnOrderWhoseReplyIsLostIsFoundAtTheCAAndNotBoughtAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.fake.PlanAll(issuertest.Plan{LostReplies: 1})
	r := s.start()
	r.createIssuer()
	job := r.ask("lost")

	order := r.onlyOrder("lost", issuancev1.Order_UNKNOWN)
	require.Equal(t, "CA_REPLY_LOST", order.GetLastError().GetReason())
	require.Equal(t, renewalschedulerv1.Job_AWAITING_CA, r.onlyJob("lost", renewalschedulerv1.Job_AWAITING_CA).GetStatus())
	_, err := s.admin.Exec(t.Context(), "UPDATE issuance.orders SET due_time = now() WHERE id = $1", order.GetId()) // the rest is over
	require.NoError(t, err)

	r.onlyOrder("lost", issuancev1.Order_ISSUED)
	require.Equal(t, job, r.onlyJob("lost", renewalschedulerv1.Job_COMPLETED).GetId())
	r.version("lost", order.GetId())
	r.audited(order.GetId(), "order.unknown", "order.issued")
	r.intact()
	r.bought(order.GetId())
	submits, err := s.fake.Submits(order.GetId())
	require.NoError(t, err)
	require.Equal(t, 1, submits)
}

func TestWhenTheCASaysNoTheJobSaysWhy(t *testing.T) {
	t.Parallel()
	const no = "the domain is on the block list"
	for name, plan := range map[string]issuertest.Plan{
		"at once":      {Reject: no},
		"after a poll": {Reject: no, Polls: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.fake.PlanAll(plan)
			r := s.start()
			r.createIssuer()
			job := r.ask("blocked")
			order := r.onlyOrder("blocked", issuancev1.Order_REJECTED)
			failed := r.onlyJob("blocked", renewalschedulerv1.Job_FAILED)
			require.Equal(t, job, failed.GetId())
			require.Equal(t, "CA_REJECTED", failed.GetError().GetReason())
			require.Equal(t, no, failed.GetError().GetMessage())
			require.NotNil(t, failed.GetEndTime())
			r.audited(order.GetId(), "order.rejected")
			r.audited(job, "job.failed")
			r.intact()
		})
	}
}

// TestTwoReplicasOfEverythingDoEachThingOnce posts every request to both replicas at once, as a client does that was not
// answered in time.
func TestTwoReplicasOfEverythingDoEachThingOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.cfg.Postgres.Replicas = 2
	s.fake.PlanAll(issuertest.Plan{Polls: 1})
	replicas := []*replica{s.start(), s.start()}
	replicas[0].createIssuer()
	const n = 30
	var certificates sync.WaitGroup
	problems := make(chan error, n)
	for i := range n {
		id := fmt.Sprintf("web-%02d", i)
		csrPEM := csr(t, id)
		certificates.Go(func() { problems <- askBoth(replicas, id, csrPEM) })
	}
	certificates.Wait()
	for range n {
		require.NoError(t, <-problems)
	}
	var orders []string
	for i := range n {
		id, r := fmt.Sprintf("web-%02d", i), replicas[i%2]
		job := r.onlyJob(id, renewalschedulerv1.Job_COMPLETED)
		order := r.onlyOrder(id, issuancev1.Order_ISSUED)
		require.Equal(t, job.GetId(), order.GetJobId())
		r.version(id, order.GetId())
		r.bought(order.GetId())
		polls, err := s.fake.Polls(order.GetId())
		require.NoError(t, err)
		require.Equal(t, 2, polls, "the CA was asked by both replicas")
		r.audited(id, "certificate.created", "version.stored")
		r.audited(order.GetId(), "order.issued")
		r.audited(job.GetId(), "job.created", "job.completed")
		orders = append(orders, order.GetId())
	}
	sold, err := s.fake.Orders()
	require.NoError(t, err)
	require.ElementsMatch(t, orders, sold, "what the CA sold is what the journal has")
	replicas[1].intact()
}

// askBoth has both replicas create a certificate and take its CSR, each twice at the same time.
func askBoth(replicas []*replica, id, csrPEM string) error {
	if err := both(replicas, func(r *replica) error { return r.create(id) }); err != nil {
		return fmt.Errorf("create %s: %w", id, err)
	}
	jobs := make(chan string, len(replicas))
	err := both(replicas, func(r *replica) error {
		j, err := r.submit(id, csrPEM)
		jobs <- j.GetId()
		return err
	})
	if err != nil {
		return fmt.Errorf("submit CSR of %s: %w", id, err)
	}
	if a, b := <-jobs, <-jobs; a != b {
		return fmt.Errorf("one CSR of %s has two jobs: %s and %s", id, a, b)
	}
	return nil
}

func both(replicas []*replica, do func(*replica) error) error {
	var calls sync.WaitGroup
	errs := make([]error, len(replicas))
	for i, r := range replicas {
		calls.Go(func() { errs[i] = do(r) })
	}
	calls.Wait()
	return errors.Join(errs...)
}
