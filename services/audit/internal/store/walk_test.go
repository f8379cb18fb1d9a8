package store_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/certctl/certctl/services/audit/internal/core"
	"github.com/certctl/certctl/services/audit/internal/store"
)

// reads counts the events that statements have read.
type reads struct{ events atomic.Int64 }

type isWalk struct{}

func (*reads) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, isWalk{}, strings.Contains(q.SQL, "FROM events WHERE sequence >"))
}

func (r *reads) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryEndData) {
	if walk, _ := ctx.Value(isWalk{}).(bool); walk {
		r.events.Add(q.CommandTag.RowsAffected())
	}
}

func TestAfterACheckpointOnlyWhatIsNewIsRead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := &reads{}
	s := store.New(b.database.OpenTraced(t, "audit", r), core.NewSealer([]byte("test key")), zap.NewNop())
	const old = 25_000 // more than one statement reads
	for range 5 {
		b.append(t, old/5)
	}

	report, err := s.VerifyNew(t.Context())
	require.NoError(t, err)
	require.Nil(t, report.Fault)
	require.EqualValues(t, old, report.Checked)
	require.EqualValues(t, old, r.events.Swap(0), "each event is read once")
	require.NoError(t, s.AddCheckpoint(t.Context(), report.Last))

	b.append(t, 7)
	report, err = s.VerifyNew(t.Context())
	require.NoError(t, err)
	require.Nil(t, report.Fault)
	require.EqualValues(t, old+7, report.Last.Sequence)
	require.EqualValues(t, 8, r.events.Swap(0), "the event of the checkpoint and those after it")

	report, err = s.Verify(t.Context(), 9_990, 20_010)
	require.NoError(t, err)
	require.Nil(t, report.Fault)
	require.EqualValues(t, 10_021, r.events.Load())
}

func TestAnEventCostsAWalkNoMemory(t *testing.T) {
	b := setup(t)
	for range 4 {
		b.append(t, 5000)
	}
	verify := func(last int64) float64 {
		return testing.AllocsPerRun(3, func() {
			r, err := b.store.Verify(t.Context(), 0, last)
			require.NoError(t, err)
			require.Equal(t, last, r.Checked)
		})
	}
	few, many := verify(100), verify(20_000)
	require.Less(t, many-few, 19_900*0.05, "%.0f allocations for 100 events, %.0f for 20,000", few, many)
}

// BenchmarkVerify walks 200,000 events: go test ./audit/internal/store -run '^$' -bench Verify.
func BenchmarkVerify(b *testing.B) {
	const size = 200_000
	s := setup(b)
	for range size / 5000 {
		s.append(b, 5000)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		r, err := s.store.Verify(b.Context(), 0, 0)
		require.NoError(b, err)
		require.EqualValues(b, size, r.Checked)
	}
	b.ReportMetric(size*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
