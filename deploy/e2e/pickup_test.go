package e2e_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestAnAgentStartsOnARenewalAtOnce measures from the job to its order. By then the agent has heard of the task, made the
// key and answered with the CSR, so the pickup took less. It runs by itself: next to other tests it would measure them.
//
//nolint:paralleltest // see above
func TestAnAgentStartsOnARenewalAtOnce(t *testing.T) {
	const renewals = 60
	in := startOne(t)
	agent := in.onlineAgent(t)
	ids := []string{"red", "green", "blue"}
	for _, id := range ids {
		in.keep(t, agent, id)
	}
	took := make([]time.Duration, 0, renewals)
	for i := range renewals {
		id := ids[i%len(ids)]
		job := in.renew(t, id)
		in.completed(t, job)
		in.inPlace(t, id, i/len(ids)+2)
		took = append(took, in.pickup(t, job))
	}
	slices.Sort(took)
	p50, p99 := took[renewals/2], took[renewals*99/100]
	t.Logf("from the job to the agent's answer: p50 %s, p99 %s, all %v", p50, p99, took)
	require.Less(t, p99, 4*time.Second, "whoever was not told looks again after 5 s")
}

// pickup is the time from the creation of a job to that of its order.
func (in *installation) pickup(t *testing.T, job string) time.Duration {
	t.Helper()
	orders := in.must(t, http.MethodGet, "/api/v1/orders?job_id="+job, nil).list("orders")
	require.Len(t, orders, 1)
	return created(t, orders[0]).Sub(created(t, in.must(t, http.MethodGet, fmt.Sprintf("/api/v1/jobs/%s", job), nil)))
}

func created(t *testing.T, o object) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, o.str("create_time"))
	require.NoError(t, err)
	return at
}
