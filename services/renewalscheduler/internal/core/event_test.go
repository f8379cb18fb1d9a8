package core

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/testpg"
	eventv1 "github.com/certctl/certctl/proto/gen/go/certctl/event/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	"github.com/certctl/certctl/services/renewalscheduler/internal/store"
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

// countedCore is a core whose statements are counted.
func countedCore(t *testing.T) (*Core, *sent) {
	t.Helper()
	s := &sent{}
	return testCoreOn(t, testpg.NewDatabase(t, store.Schema()).OpenTraced(t, "renewalscheduler", s)), s
}

func eventOf(t *testing.T, kind string, m proto.Message) *eventv1.Event {
	t.Helper()
	payload, err := anypb.New(m)
	require.NoError(t, err)
	return &eventv1.Event{Type: kind, Payload: payload}
}

// plansFor makes plans of certificates that were not issued yet.
func (c *Core) plansFor(t *testing.T, ids ...string) {
	t.Helper()
	require.NoError(t, c.store.Tx(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		for _, id := range ids {
			if _, err := tx.EnsurePlan(ctx, &store.Plan{CertificateID: id, PolicyID: "pol-default", CertificateStatus: "PENDING", CreateTime: c.now()}); err != nil {
				return err
			}
		}
		return nil
	}))
}

func (c *Core) applyAll(t *testing.T, events ...*eventv1.Event) error {
	t.Helper()
	return c.store.Tx(t.Context(), func(ctx context.Context, tx *store.Tx) error { return c.Apply(ctx, tx, events) })
}

func TestFiftyEventsCostTheStatementsOfOne(t *testing.T) {
	t.Parallel()
	c, sent := countedCore(t)
	cost := map[int]int64{}
	for _, n := range []int{1, 50} {
		var events []*eventv1.Event
		for i := range n {
			id := fmt.Sprintf("cert-%d-%d", n, i)
			c.plansFor(t, id)
			events = append(events, eventOf(t, "order.changed", &issuancev1.OrderChanged{Order: &issuancev1.Order{Id: "ord-" + id, CertificateId: id}}))
		}
		for i := range n {
			id := fmt.Sprintf("cert-%d-%d", n, i)
			events = append(events, eventOf(t, "version.stored", &inventoryv1.VersionStored{
				CertificateId: id, Version: 1, OrderId: "ord-" + id, NotBefore: timestamppb.Now(), NotAfter: timestamppb.New(time.Now().Add(90 * 24 * time.Hour)),
			}))
		}
		before := sent.n.Load()
		require.NoError(t, c.applyAll(t, events...))
		cost[n] = sent.n.Load() - before
		for i := range n {
			p, err := c.store.Plan(t.Context(), fmt.Sprintf("cert-%d-%d", n, i))
			require.NoError(t, err)
			require.Equal(t, store.PlanScheduled, p.State)
			require.Equal(t, "ACTIVE", p.CertificateStatus)
		}
	}
	require.Equal(t, cost[1], cost[50])
	// Jobs of orders, twice; plans, their new keys, policies, keys, jobs, plans.
	require.LessOrEqual(t, cost[50], int64(8))
}

func TestTheNewestVersionOfADeliveryCounts(t *testing.T) {
	t.Parallel()
	c := newTestCore(t)
	c.plansFor(t, "cert-1")
	now := time.Now().Truncate(time.Second)
	end := func(days int) *timestamppb.Timestamp {
		return timestamppb.New(now.Add(time.Duration(days) * 24 * time.Hour))
	}
	version := func(n int32, agent string, days int) *eventv1.Event {
		return eventOf(t, "version.stored", &inventoryv1.VersionStored{
			CertificateId: "cert-1", Version: n, AgentId: agent, OrderId: fmt.Sprint("ord-", n), NotBefore: timestamppb.Now(), NotAfter: end(days),
		})
	}

	require.NoError(t, c.applyAll(t, version(1, "agt-1", 30), version(2, "agt-2", 90), version(3, "agt-1", 60)))

	keys, err := c.store.PlanKeys(t.Context(), "cert-1")
	require.NoError(t, err)
	require.Len(t, keys, 2)
	require.EqualValues(t, 3, keys[0].Version)
	require.True(t, keys[0].NotAfter.Equal(end(60).AsTime()))
	p, err := c.store.Plan(t.Context(), "cert-1")
	require.NoError(t, err)
	require.True(t, p.NotAfter.Equal(end(60).AsTime()))
}

func TestAVersionWithoutItsPlanComesAgain(t *testing.T) {
	t.Parallel()
	c := newTestCore(t)
	require.ErrorIs(t, c.applyAll(t, eventOf(t, "version.stored", &inventoryv1.VersionStored{CertificateId: "cert-none", Version: 1})), store.ErrNotFound)
}
