package core_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuertest"
	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/asyncpoller/internal/core"
	"github.com/certctl/certctl/services/asyncpoller/internal/store"
)

// journal is issuance: it applies the end of an order once.
type journal struct {
	results []core.Result
	applied int
}

func (j *journal) Credentials(context.Context, string, string) (core.Credentials, error) {
	return core.Credentials{Type: issuertest.FakeTypeName, ConfigHash: "1", Config: []byte("{}")}, nil
}

func (j *journal) Record(_ context.Context, r core.Result) (bool, error) {
	j.results = append(j.results, r)
	if r.Outcome != core.StillPending && j.applied == 0 {
		j.applied++
	}
	return j.applied > 0, nil
}

// mortal is a desk whose process is killed before it writes.
type mortal struct {
	core.Desk
	killed bool
}

var errKilled = errors.New("killed")

func (m *mortal) End(ctx context.Context, l lease.Lease, n core.Note, state string, deadline time.Time) error {
	if m.killed {
		return errKilled
	}
	return m.Desk.End(ctx, l, n, state, deadline)
}

func TestAPollerKilledAfterItHandedOverHasTheResultHandedTwiceAndAppliedOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	fake, err := issuertest.NewFake(issuertest.FakeConfig{})
	require.NoError(t, err)
	fake.PlanAll(issuertest.Plan{Polls: issuertest.Forever})
	sub, err := fake.Submit(ctx, issuertest.NewRequest(t, "ord-1", issuertest.NewKey(t, certcheck.ECDSAP256), issuertest.Names(t, "a.example.com")))
	require.NoError(t, err)
	require.NoError(t, fake.Release("ord-1"))
	ref, err := json.Marshal(sub.Ref)
	require.NoError(t, err)

	now := time.Now()
	clock := func() time.Time { return now }
	st := store.New(testpg.New(t, store.Schema()), clock)
	_, err = core.Begin(ctx, st, core.Watch{OrderID: "ord-1", IssuerID: "iss-a", CAReference: string(ref), DeadlineTime: now.Add(time.Hour)}, now)
	require.NoError(t, err)

	j := &journal{}
	work := func(killed bool) error {
		p := core.NewPoller(core.Config{CallTimeout: time.Minute}, core.Deps{
			Desk: &mortal{Desk: st, killed: killed}, Journal: j, Types: issuer.Types{fake.Type()}, Log: zap.NewNop(), Now: clock,
		})
		claimed, err := st.Claim(ctx, core.Claim{Limit: 1, PerIssuer: 1, LeaseFor: time.Minute})
		require.NoError(t, err)
		require.Len(t, claimed, 1)
		return p.Work(ctx, claimed[0].Lease, claimed[0].Poll)
	}
	require.ErrorIs(t, work(true), errKilled)
	now = now.Add(2 * time.Minute) // the lease runs out: that is all that is left of the dead process
	require.NoError(t, work(false))

	require.Len(t, j.results, 2)
	require.Equal(t, j.results[0].CertificatePEM, j.results[1].CertificatePEM)
	require.NotEmpty(t, j.results[0].CertificatePEM)
	require.Equal(t, 1, j.applied)
	got, err := st.Get(ctx, "ord-1")
	require.NoError(t, err)
	require.Equal(t, core.Done, got[0].State)
	require.Equal(t, 2, got[0].Attempts)
}
