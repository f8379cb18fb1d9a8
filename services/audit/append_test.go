package audit_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/metrics"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/pkg/testrpc"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	"github.com/certctl/certctl/services/audit"
)

// sent counts what goes to the database, beside the begin and end of transactions.
type sent struct{ n atomic.Int64 }

func (s *sent) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	if d.SQL != "begin" && d.SQL != "commit" {
		s.n.Add(1)
	}
	return ctx
}

func (s *sent) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestManyEventsCostTheStatementsOfOne(t *testing.T) {
	t.Parallel()
	w, s := newBench(t), &sent{}
	service, err := audit.New(audit.Config{InternalSecret: secretbox.NewSecret("the internal secret of the test"), ChainVerifyInterval: time.Hour},
		audit.Deps{DB: w.database.OpenTraced(t, "audit", s), Log: zap.NewNop(), Metrics: metrics.New("audit")})
	require.NoError(t, err)
	w.rpc = testrpc.Serve(t, testrpc.Config{Table: service.AuthzTable(), Register: service.Register})
	w.fill(t, 3)
	before := s.n.Load()
	w.fill(t, 1)
	one := s.n.Load() - before
	w.fill(t, 250)
	require.Equal(t, 2*one, s.n.Load()-before)
	// The lock, known events, the end of the chain, the new end, the revision. What is copied is counted apart.
	require.LessOrEqual(t, one, int64(5))
}

// BenchmarkAppend measures what peers deliver, in batches as relays send them and from several peers at once, until it is in the
// chain.
//
//	go test ./audit -run '^$' -bench Append -benchtime 100x
func BenchmarkAppend(b *testing.B) {
	const batch = 250
	w := benchOn(b, testpg.NewDatabase(b, audit.Schema()), "the internal secret of the test", zap.NewNop())
	requests := make(chan *eventv1.DeliverRequest, b.N)
	for i := range b.N {
		r := &eventv1.DeliverRequest{}
		for n := range batch {
			r.Events = append(r.Events, w.event(b, i*batch+n, nil))
		}
		requests <- r
	}
	close(requests)
	b.ResetTimer()
	var all errgroup.Group
	for _, peer := range []string{"inventory", "issuance", "renewalscheduler"} {
		sink := eventv1.NewEventSinkServiceClient(w.rpc.AsPeer(b, peer))
		all.Go(func() error {
			for r := range requests {
				if _, err := sink.Deliver(b.Context(), r); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(b, all.Wait())
	b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "events/s")
}
