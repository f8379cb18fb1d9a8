package serve

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/asyncpoll"
	"github.com/certctl/certctl/pkg/config"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/pkg/testrpc"
	asyncpollerv1 "github.com/certctl/certctl/proto/gen/go/certctl/asyncpoller/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/asyncpoller"
	"github.com/certctl/certctl/services/cmd/certctl/internal/settings"
)

// quick is how often the poller looks in these tests: the clock is turned faster than the settings allow.
const quick = 3 * time.Millisecond

// slowCAs is an issuance with one issuer of each type that has a wait budget of its own, and one that has none. Their CAs never
// get further, and note when they are asked on a clock that is turned.
type slowCAs struct {
	issuancev1.UnimplementedIssuanceInternalServiceServer

	mu    sync.Mutex
	now   time.Time
	asked map[string][]time.Time
}

func typesThatWait() []string {
	return []string{"digicert", "entrust-gateway", "entrust-ecs", "globalsign", "sectigo", "some-other"}
}

func (s *slowCAs) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// GetIssuerCredentials says that the id of an issuer is its type.
func (s *slowCAs) GetIssuerCredentials(_ context.Context, r *issuancev1.GetIssuerCredentialsRequest) (*issuancev1.GetIssuerCredentialsResponse, error) {
	return &issuancev1.GetIssuerCredentialsResponse{Type: r.GetIssuerId(), ConfigHash: "1", Config: []byte("{}")}, nil
}

// RecordPollResult keeps orders pending.
func (s *slowCAs) RecordPollResult(_ context.Context, r *issuancev1.RecordPollResultRequest) (*issuancev1.RecordPollResultResponse, error) {
	return &issuancev1.RecordPollResultResponse{Order: &issuancev1.Order{Id: r.GetOrderId(), Status: issuancev1.Order_PENDING}}, nil
}

// slowCA is the connector of a type.
type slowCA struct {
	*slowCAs

	typ string
}

func (c slowCA) Submit(context.Context, issuer.SubmitRequest) (issuer.Submission, error) {
	return issuer.Submission{State: issuer.Pending}, nil
}

func (c slowCA) Poll(context.Context, issuer.Ref) (issuer.Submission, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[c.typ] = append(c.asked[c.typ], c.now)
	return issuer.Submission{State: issuer.Pending}, nil
}

func (s *slowCAs) types() issuer.Types {
	var out issuer.Types
	for _, name := range typesThatWait() {
		out = append(out, issuer.Type{Name: name, New: func(context.Context, issuer.Config, issuer.Deps) (issuer.Issuer, error) {
			return slowCA{slowCAs: s, typ: name}, nil
		}})
	}
	return out
}

// start runs asyncpoller as serve does with these variables, and has it watch an order of each issuer.
func (s *slowCAs) start(t *testing.T, environ ...string) *pgxpool.Pool {
	t.Helper()
	var cfg settings.Server
	_, err := config.Load(&cfg, append(environ, "CERTCTL_DATA_DIR="+t.TempDir(), "CERTCTL_ASYNC_POLL_INTERVAL=1s"), config.Options{})
	require.NoError(t, err)
	p, err := newProcess(cfg, nameAsyncPoller)
	require.NoError(t, err)
	t.Cleanup(func() { asyncpoll.SetDefaultMaxWait(0) })
	t.Cleanup(p.close)
	table := rpc.AuthzTable{}
	for _, m := range issuancev1.IssuanceInternalService_ServiceDesc.Methods {
		table["/"+issuancev1.IssuanceInternalService_ServiceDesc.ServiceName+"/"+m.MethodName] = rpc.Allow(rpcctx.RolePeer)
	}
	peers := testrpc.Serve(t, testrpc.Config{Table: table, Register: func(r grpc.ServiceRegistrar) {
		issuancev1.RegisterIssuanceInternalServiceServer(r, s)
	}})
	db := testpg.NewDatabase(t, asyncpoller.Schema())
	poller := pollerConfig(cfg)
	poller.PollInterval = quick
	service, err := asyncpoller.New(poller, asyncpoller.Deps{
		DB: db.Open(t, nameAsyncPoller), IssuerTypes: s.types(), Now: s.clock,
		Peers: asyncpoller.Peers{Issuance: peers.AsPeer(t, nameAsyncPoller)},
	})
	require.NoError(t, err)
	server := testrpc.Serve(t, testrpc.Config{Table: service.AuthzTable(), Register: service.Register})
	g := run.NewGroup(context.WithoutCancel(t.Context()), run.Config{})
	g.Go("service", service.Run)
	t.Cleanup(func() {
		g.Stop(nil)
		require.NoError(t, g.Wait())
	})
	polls := asyncpollerv1.NewPollInternalServiceClient(server.AsPeer(t, nameIssuance))
	for _, name := range typesThatWait() {
		_, err := polls.CreatePoll(t.Context(), &asyncpollerv1.CreatePollRequest{
			OrderId: "ord-" + name, IssuerId: name, DeadlineTime: timestamppb.New(s.clock().Add(30 * 24 * time.Hour)),
		})
		require.NoError(t, err)
	}
	return db.Admin(t)
}

// waited turns the clock from one due time to the next until each CA is asked no more often than is done when nobody waits,
// and gives for how long each was.
func (s *slowCAs) waited(t *testing.T, db *pgxpool.Pool) map[string]time.Duration {
	t.Helper()
	began := s.clock()
	for {
		var next time.Time
		require.Eventually(t, func() bool {
			var waiting int
			err := db.QueryRow(t.Context(), `SELECT count(*), min(due_time) FROM asyncpoller.polls WHERE state = 'WAITING'`).Scan(&waiting, &next)
			return err == nil && waiting == len(typesThatWait()) && next.After(s.clock())
		}, patience, quick)
		if next.Sub(s.clock()) > 14*time.Minute {
			break
		}
		s.mu.Lock()
		s.now = next
		s.mu.Unlock()
	}
	out := map[string]time.Duration{}
	for name, asked := range s.asked {
		for i, at := range slices.Concat(asked, []time.Time{s.now.Add(time.Hour)}) {
			if i > 0 && at.Sub(asked[i-1]) > 14*time.Minute {
				out[name] = asked[i-1].Sub(began)
				break
			}
		}
	}
	return out
}

// TestEachVariableOfTheWaitBudgetHasItsEffectAtTheConnectors is not parallel: the general one is a value of the process.
func TestEachVariableOfTheWaitBudgetHasItsEffectAtTheConnectors(t *testing.T) {
	const general, digiCert, entrust, globalSign, sectigo = "CERTCTL_ASYNC_POLL_MAX_WAIT_SECONDS=180", "CERTCTL_DIGICERT_POLL_MAX_WAIT_SECONDS=60",
		"CERTCTL_ENTRUST_POLL_MAX_WAIT_SECONDS=120", "CERTCTL_GLOBALSIGN_POLL_MAX_WAIT_SECONDS=240", "CERTCTL_SECTIGO_POLL_MAX_WAIT_SECONDS=300"
	for name, c := range map[string]struct {
		environ []string
		minutes []float64 // in the order of typesThatWait
	}{
		"nothing is set":                    {nil, []float64{10, 10, 10, 10, 10, 10}},
		"the general one":                   {[]string{general}, []float64{3, 3, 3, 3, 3, 3}},
		"those of the CAs over the general": {[]string{general, digiCert, entrust, globalSign, sectigo}, []float64{1, 2, 2, 4, 5, 3}},
		"empty and zero are as if unset": {[]string{"CERTCTL_ASYNC_POLL_MAX_WAIT_SECONDS=0", "CERTCTL_DIGICERT_POLL_MAX_WAIT_SECONDS=", sectigo},
			[]float64{10, 10, 10, 10, 5, 10}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &slowCAs{now: time.Now().Truncate(time.Second), asked: map[string][]time.Time{}}
			db := s.start(t, c.environ...)
			got := s.waited(t, db)
			for i, typ := range typesThatWait() {
				require.InDelta(t, c.minutes[i], got[typ].Minutes(), 0.001, "%s: %v", typ, got)
			}
		})
	}
}

func TestTheReplicasOfBothServicesTogetherKeepTheRateOfAnAccount(t *testing.T) {
	t.Parallel()
	for _, replicas := range []int{0, 1, 3} {
		n := float64(max(replicas, 1))
		require.InDelta(t, 1, n*accountShare(nameIssuance, replicas)+n*accountShare(nameAsyncPoller, replicas), 1e-9)
		require.Greater(t, accountShare(nameAsyncPoller, replicas), accountShare(nameIssuance, replicas))
	}
}
