package asyncpoller_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/account"
	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/rpc"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/pkg/testrpc"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/asyncpoller"
)

const (
	crowdOrders = 100_000
	crowdCAs    = 4
	crowdQuota  = 6 // connections, as CERTCTL_DATABASE_POOL_QUOTAS has it
	crowdLag    = 10 * time.Second
	crowdMemory = 150 << 20
)

// crowd is 100,000 orders that are pending at 4 CAs, the last of which hangs on every call.
type crowd struct {
	issuancev1.UnimplementedIssuanceInternalServiceServer

	mu   sync.Mutex
	due  map[string]time.Time // by order
	lags map[string][]time.Duration
}

// GetIssuerCredentials says that the id of an issuer is its type.
func (c *crowd) GetIssuerCredentials(_ context.Context, r *issuancev1.GetIssuerCredentialsRequest) (*issuancev1.GetIssuerCredentialsResponse, error) {
	return &issuancev1.GetIssuerCredentialsResponse{Type: r.GetIssuerId(), ConfigHash: "1", Config: []byte("{}")}, nil
}

// RecordPollResult keeps orders pending.
func (c *crowd) RecordPollResult(_ context.Context, r *issuancev1.RecordPollResultRequest) (*issuancev1.RecordPollResultResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.due[r.GetOrderId()] = r.GetNextPollTime().AsTime()
	return &issuancev1.RecordPollResultResponse{Order: &issuancev1.Order{Id: r.GetOrderId(), Status: issuancev1.Order_PENDING}}, nil
}

// crowdedCA answers after 50 ms that the order is pending, or hangs.
type crowdedCA struct {
	*crowd

	id    string
	hangs bool
	guard *account.Guard
}

func (c *crowdedCA) Account() *account.Guard { return c.guard }

func (c *crowdedCA) Submit(context.Context, issuer.SubmitRequest) (issuer.Submission, error) {
	return issuer.Submission{State: issuer.Pending}, nil
}

func (c *crowdedCA) Poll(ctx context.Context, ref issuer.Ref) (issuer.Submission, error) {
	leave, err := c.guard.Enter(ctx)
	if err != nil {
		return issuer.Submission{}, issuer.RetryAfter(0, err)
	}
	c.note(c.id, ref["order"])
	answer := time.NewTimer(50 * time.Millisecond)
	defer answer.Stop()
	if c.hangs {
		answer.Stop()
	}
	select {
	case <-answer.C:
		leave(account.Result{})
		return issuer.Submission{State: issuer.Pending, Detail: "an administrator has to approve the order"}, nil
	case <-ctx.Done():
		leave(account.Result{Failed: true})
		return issuer.Submission{}, issuer.RetryAfter(0, ctx.Err())
	}
}

// note keeps how long after its time an order is asked about.
func (c *crowd) note(ca, order string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lags[ca] = append(c.lags[ca], time.Since(c.due[order]))
}

func (c *crowd) types() issuer.Types {
	var out issuer.Types
	for n := range crowdCAs {
		id := fmt.Sprint("iss-", n)
		out = append(out, issuer.Type{Name: id, New: func(_ context.Context, _ issuer.Config, d issuer.Deps) (issuer.Issuer, error) {
			limits := account.Limits{PerSecond: 30, Burst: 60, Concurrency: 8}
			return &crowdedCA{crowd: c, id: id, hangs: n == crowdCAs-1, guard: d.Accounts.Guard(id, limits)}, nil
		}})
	}
	return out
}

// fill makes the rows: 50 orders of each CA are new and asked about every few seconds, the others wait slowly.
func (c *crowd) fill(t *testing.T, db *testpg.Database) {
	t.Helper()
	admin := db.Admin(t)
	rows, err := admin.Query(t.Context(), `INSERT INTO asyncpoller.polls (order_id, issuer_id, ca_reference, due_time, deadline_time, watch_time, create_time, attempts)
SELECT 'ord-' || n, 'iss-' || (n % $2::integer), format('{"order":"ord-%s"}', n),
	now() + interval '3 s' + CASE WHEN n <= 50 * $2::integer THEN interval '0' ELSE n * interval '2250 s' / $1::integer END, now() + interval '30 days',
	now() - CASE WHEN n <= 50 * $2::integer THEN interval '0' ELSE interval '1 day' END, now() - interval '1 day', CASE WHEN n <= 50 * $2::integer THEN 0 ELSE 30 END
FROM generate_series(1, $1::integer) n RETURNING order_id, due_time`, crowdOrders, crowdCAs)
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var id string
		var due time.Time
		require.NoError(t, rows.Scan(&id, &due))
		c.due[id] = due
	}
	require.NoError(t, rows.Err())
}

// peak gives the most memory that this process has had, the fake issuance and CAs of the test included.
func peak(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			require.NoError(t, err)
			return kib << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// TestAHundredThousandPendingOrdersArePolledInTime takes as many seconds as POLL_LOAD says, 60 or more, and wants the
// machine for itself:
//
//	POLL_LOAD=90 go test ./services/asyncpoller -run HundredThousand -v
func TestAHundredThousandPendingOrdersArePolledInTime(t *testing.T) { //nolint:paralleltest // it measures
	seconds, _ := strconv.Atoi(os.Getenv("POLL_LOAD"))
	if seconds == 0 {
		t.Skip("POLL_LOAD is not set")
	}
	c := &crowd{due: map[string]time.Time{}, lags: map[string][]time.Duration{}}
	db := testpg.NewDatabase(t, asyncpoller.Schema())
	c.fill(t, db)
	table := rpc.AuthzTable{}
	for _, m := range issuancev1.IssuanceInternalService_ServiceDesc.Methods {
		table["/"+issuancev1.IssuanceInternalService_ServiceDesc.ServiceName+"/"+m.MethodName] = rpc.Allow(rpcctx.RolePeer)
	}
	peers := testrpc.Serve(t, testrpc.Config{Table: table, Register: func(r grpc.ServiceRegistrar) {
		issuancev1.RegisterIssuanceInternalServiceServer(r, c)
	}})
	cfg := db.Config("asyncpoller")
	cfg.MaxConns, cfg.Listen = crowdQuota, false
	pool, err := pg.Open(t.Context(), cfg)
	require.NoError(t, err)
	defer pool.Close()
	service, err := asyncpoller.New(asyncpoller.Config{AccountShare: 0.6}, asyncpoller.Deps{
		DB: pool, Metrics: metrics.New("asyncpoller"), IssuerTypes: c.types(), Peers: asyncpoller.Peers{Issuance: peers.AsPeer(t, "asyncpoller")},
	})
	require.NoError(t, err)
	g := run.NewGroup(context.WithoutCancel(t.Context()), run.Config{})
	g.Go("service", service.Run)
	most := c.watch(t, db, time.Duration(seconds)*time.Second)
	g.Stop(nil)
	require.NoError(t, g.Wait())
	c.judge(t, time.Duration(seconds)*time.Second)
	t.Logf("connections: at most %d; memory: at most %d MiB", most, peak(t)>>20)
	require.LessOrEqual(t, most, crowdQuota)
	require.LessOrEqual(t, peak(t), crowdMemory)
}

// watch lets the time pass and gives the most connections that there were.
func (c *crowd) watch(t *testing.T, db *testpg.Database, d time.Duration) (most int) {
	t.Helper()
	admin := db.Admin(t)
	began := time.Now()
	require.Eventually(t, func() bool {
		var n int
		err := admin.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE usename = 'certctl_asyncpoller' AND datname = current_database()`).Scan(&n)
		most = max(most, n)
		return err == nil && time.Since(began) >= d
	}, d+time.Minute, 100*time.Millisecond)
	return most
}

func (c *crowd) judge(t *testing.T, d time.Duration) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range crowdCAs {
		id := fmt.Sprint("iss-", n)
		lags := c.lags[id]
		require.NotEmpty(t, lags)
		slices.Sort(lags)
		t.Logf("%s: %d polls, %.1f a second; asked after its time: median %s, 99 of 100 within %s, at most %s", id, len(lags),
			float64(len(lags))/d.Seconds(), lags[len(lags)/2].Round(time.Millisecond), lags[len(lags)*99/100].Round(time.Millisecond),
			lags[len(lags)-1].Round(time.Millisecond))
		if n == crowdCAs-1 {
			continue // it hangs
		}
		require.LessOrEqual(t, lags[len(lags)-1], crowdLag)
		require.Greater(t, len(lags), int(d.Seconds()*8), "11 orders become due in each second, and the new ones")
	}
	now, late := time.Now(), 0
	for id, due := range c.due {
		number, err := strconv.Atoi(strings.TrimPrefix(id, "ord-"))
		require.NoError(t, err)
		if number%crowdCAs != crowdCAs-1 && now.Sub(due) > crowdLag {
			late++
		}
	}
	require.Zero(t, late, "orders that were due and not asked about")
}
