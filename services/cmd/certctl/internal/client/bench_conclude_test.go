package client

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certctl/certctl/pkg/load"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
)

func TestRatesDoubleUpToTheMost(t *testing.T) {
	t.Parallel()
	require.Equal(t, []float64{5, 10, 20, 40, 80, 160}, benchRates(160))
	require.Equal(t, []float64{5, 10, 12}, benchRates(12))
	require.Equal(t, []float64{3}, benchRates(3))
	o := benchOptions{maxRate: 160, duration: 90 * time.Second, p95: 250 * time.Millisecond, connections: 4}
	require.Equal(t, 10*time.Second, o.step())
	o.duration = 30 * time.Second
	require.Equal(t, 5*time.Second, o.step())
	require.Equal(t, 40, o.atOnce(160))
	require.Equal(t, leastAtOnce, o.atOnce(5))
	require.Equal(t, mostAtOnce, o.atOnce(5000))
}

func TestThePolicyThatRenewsMostOftenCounts(t *testing.T) {
	t.Parallel()
	require.InDelta(t, 752, mostFrequent(nil).Hours, 1e-9)
	p := mostFrequent([]*schedulerv1.Policy{
		{Id: "by-hand", RenewAtFraction: proto.Float64(0.1), Automatic: proto.Bool(false)},
		{Id: "default"},
		{Id: "early", RenewBefore: durationpb.New(37 * 24 * time.Hour), Automatic: proto.Bool(true)},
		{Id: "half", RenewAtFraction: proto.Float64(0.5)},
		{Id: "too long", RenewBefore: durationpb.New(90 * 24 * time.Hour)},
	})
	require.Equal(t, "early", p.ID)
	require.InDelta(t, 240, p.Hours, 1e-9)
}

func TestHeadroomIsCalculatedFromWhatWasIssued(t *testing.T) {
	t.Parallel()
	r := benchReport{
		Steps:     []benchStep{{Rate: 5, Seconds: 10, Verdict: verdictKept}, {Rate: 10, Verdict: verdictSlow, Reads: []benchKind{{}}}},
		Inventory: benchInventory{Certificates: map[string]int32{"ACTIVE": 752, "EXPIRED": 8}, Agents: map[string]int32{"ONLINE": 3}},
		Policy:    mostFrequent(nil), Issuance: &benchIssued{Issuer: "iss-local", PerSecond: 2, Refused: 1},
	}
	r.conclude(benchOptions{p95: time.Second})
	got := make(map[string]benchHeadroom)
	for _, h := range r.Headroom {
		got[h.What] = h
	}
	for what, want := range map[string]float64{
		"API requests a second": 5, "renewals an hour": 7200, "renewals an hour needed now": 1, "certificates, by renewals": 7200 * 752,
		"certificates, all replaced in 24 h": 7200 * 24, "certificates, by lists": 760, "agents": 0,
	} {
		require.InDelta(t, want, got[what].Value, 1e-6, what)
	}
	require.False(t, got["API requests a second"].AtLeast, "a higher rate was too much")
	require.True(t, got["renewals an hour"].AtLeast, "the key's limit was in the way")
	require.Equal(t, howNot, got["agents"].How)

	r.Issuance, r.History = nil, &benchHistory{Renewals: 30, MostInAnHour: 12}
	r.conclude(benchOptions{p95: time.Second})
	require.Equal(t, benchHeadroom{What: "renewals an hour", Value: 12, AtLeast: true, How: howMeasured,
		From: "the most in one hour of the last 30 renewals; what it could do: use --write"}, r.Headroom[1])
	require.Equal(t, howNot, r.Headroom[3].How)
}

func TestTheBottleneckIsNamedForWhatItIs(t *testing.T) {
	t.Parallel()
	latency := func(ms int) load.Latency {
		d := time.Duration(ms) * time.Millisecond
		return load.Latency{P50: d, P95: d, Max: d}
	}
	reads := []benchKind{{Name: "list", Latency: latency(10)}, {Name: "stats", Latency: latency(400)}}
	for name, c := range map[string]struct {
		last benchStep
		kind string
		says string
	}{
		"kept":        {benchStep{Rate: 40, Verdict: verdictKept}, bottleneckNone, "none up to 40/s"},
		"key":         {benchStep{Verdict: verdictLimited, Limit: &benchLimit{Of: limitKey, PerSecond: 99.6}}, bottleneckKey, "which lets in about 100/s (CERTCTL_RATE_LIMIT_PER_CALLER)"},
		"address":     {benchStep{Verdict: verdictLimited, Limit: &benchLimit{Of: limitAddress}}, bottleneckAddress, "CERTCTL_RATE_LIMIT_PER_ADDRESS"},
		"in front":    {benchStep{Verdict: verdictLimited, Limit: &benchLimit{Of: limitFront}}, bottleneckFront, "in front of certctl"},
		"services":    {benchStep{Rate: 80, Verdict: verdictSlow, Latency: latency(400), Health: latency(5), Reads: reads}, bottleneckServices, `the slowest is "stats" with 400 ms, while GET /health has 5.0 ms`},
		"network":     {benchStep{Rate: 80, Verdict: verdictSlow, Latency: latency(400), Health: latency(200), Reads: reads}, bottleneckNetwork, "GET /health, which asks no service, has 200 ms"},
		"errors":      {benchStep{Rate: 20, Verdict: verdictFailing, Error: "audit is away"}, bottleneckErrors, "requests fail at 20/s: audit is away"},
		"interrupted": {benchStep{Verdict: verdictInterrupted}, bottleneckNone, "interrupted"},
	} {
		r := benchReport{Steps: []benchStep{c.last}}
		got := r.bottleneck(benchOptions{p95: 250 * time.Millisecond})
		require.Equal(t, c.kind, got.Kind, name)
		require.Contains(t, got.Text, c.says, name)
	}
	require.Equal(t, bottleneckNone, (&benchReport{}).bottleneck(benchOptions{}).Kind)
}

func TestTheHistoryCountsTheFullestHour(t *testing.T) {
	t.Parallel()
	require.Nil(t, historyOf(nil))
	begin := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var jobs []*schedulerv1.Job
	for _, minutes := range []int{500, 0, 10, 61, 65, 69, 130} {
		end := begin.Add(time.Duration(minutes) * time.Minute)
		jobs = append(jobs, &schedulerv1.Job{CreateTime: timestamppb.New(end.Add(-3 * time.Second)), EndTime: timestamppb.New(end)})
	}
	h := historyOf(append(jobs, &schedulerv1.Job{}))
	require.Equal(t, 7, h.Renewals)
	require.Equal(t, 4, h.MostInAnHour, "10, 61, 65 and 69")
	require.InEpsilon(t, 3*time.Second, h.Latency.P50, 0.002)
}

func TestCountsAreWrittenWithThreeDigitsThatSaySomething(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0.5: "0.5", 27.44: "27.4", 999: "999", 1000: "1,000", 98765: "98,700", 74_266_752: "74,200,000"} {
		require.Equal(t, want, roundly(v))
	}
}
