package casimulator_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
)

func open(t *testing.T, c casimulator.Config) *casimulator.Simulator {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	sim, err := casimulator.New(c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sim.Close()) })
	return sim
}

// ask is a request to the handler, without a network.
func ask(t *testing.T, sim *casimulator.Simulator, method, path, body string) *httptest.ResponseRecorder {
	t.Helper()
	request := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	request.Header.Set("X-Dc-Devkey", sim.Credentials().DigiCertAPIKey)
	request.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	sim.Handler().ServeHTTP(w, request)
	return w
}

func orderJSON(t testing.TB, name string) string {
	t.Helper()
	return fmt.Sprintf(`{"certificate":{"common_name":%q,"csr":%q},"organization":{"id":123456},"order_validity":{"years":1},`+
		`"comments":"ref-%[1]s","skip_approval":true}`, name, csr(t, name))
}

func TestARestartedSimulatorIsTheSameCAInTheMiddleOfItsOrders(t *testing.T) {
	t.Parallel()
	now, dir := newClock(), t.TempDir()
	config := casimulator.Config{Dir: dir, Now: now.Now, Sync: true, Scenario: casimulator.Scenario{Latency: time.Hour}}
	first := start(t, config).digicert()
	id, certificate := dcSubmit(t, first, "example.com", nil)
	waiting, _ := dcSubmit(t, first, "wait.example.com", func(b map[string]any) { b["skip_approval"] = false })
	sectigoEnrol(t, first.sectigo(), "example.com")
	before := first.sim.Orders()
	ca, err := os.ReadFile(first.sim.CAFile())
	require.NoError(t, err)
	_, err = casimulator.New(config)
	require.ErrorContains(t, err, "is held by process", "one process has the directory")
	require.NoError(t, first.sim.Close())

	config.Scenario = casimulator.Scenario{} // an order keeps the latency that it was accepted with
	second := start(t, config).digicert()
	require.Equal(t, before, second.sim.Orders())
	again, err := os.ReadFile(second.sim.CAFile())
	require.NoError(t, err)
	require.Equal(t, ca, again)
	require.Equal(t, "processing", dcStatus(t, second, id))
	require.Equal(t, "needs_approval", dcStatus(t, second, waiting))
	now.forward(time.Hour)
	pem := dcBase + "/certificate/" + certificate + "/download/format/pem_all"
	body := second.do(t, http.StatusOK, "GET", pem, nil).body
	verified(t, certificates(t, body), "example.com")
	next, _ := dcSubmit(t, second, "next.example.com", nil)
	require.Greater(t, next, waiting)
	require.NoError(t, second.sim.Close())

	third := start(t, config).digicert()
	require.Equal(t, body, third.do(t, http.StatusOK, "GET", pem, nil).body, "a certificate that was shown stays as it is")
	require.Len(t, third.sim.Orders(), 4)
}

func TestALineThatWasTornIsCutOff(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	journal := filepath.Join(dir, "orders.jsonl")
	sim := open(t, casimulator.Config{Dir: dir})
	require.Equal(t, http.StatusCreated, ask(t, sim, "POST", dcBase+"/order/certificate/ssl_basic", orderJSON(t, "example.com")).Code)
	require.NoError(t, sim.Close())
	whole, err := os.ReadFile(journal)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(journal, append(whole, `{"ca":"digicert","id":"1000`...), 0o600))

	sim = open(t, casimulator.Config{Dir: dir})
	require.Len(t, sim.Orders(), 1)
	require.Equal(t, http.StatusCreated, ask(t, sim, "POST", dcBase+"/order/certificate/ssl_basic", orderJSON(t, "example.org")).Code)
	require.NoError(t, sim.Close())
	require.Len(t, open(t, casimulator.Config{Dir: dir}).Orders(), 2)
}

func TestAJournalThatIsDamagedIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "orders.jsonl"), []byte("not JSON\n"), 0o600))
	_, err := casimulator.New(casimulator.Config{Dir: dir})
	require.ErrorContains(t, err, "line 1")
}

func TestTheJournalIsCompactedAtTheStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	sim := open(t, casimulator.Config{Dir: dir, Scenario: casimulator.Scenario{Approval: casimulator.Approval{Needed: true}}})
	require.Equal(t, http.StatusCreated, ask(t, sim, "POST", dcBase+"/order/certificate/ssl_basic", orderJSON(t, "example.com")).Code)
	id := sim.Orders()[0].ID
	for range 1100 {
		require.NoError(t, sim.Decide("digicert", id, "forget", ""))
	}
	require.NoError(t, sim.Close())
	sim = open(t, casimulator.Config{Dir: dir})
	require.True(t, sim.Orders()[0].Forgotten)
	require.NoError(t, sim.Close())
	text, err := os.ReadFile(filepath.Join(dir, "orders.jsonl"))
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(text), "\n"))
}

// TestManyOrdersCostLittle shows that orders that wait cost memory and disk in proportion and nothing else, that one among them
// is found at once, and that they survive. It is of
// 10,000 orders; SIMULATOR_ORDERS=100000 makes it of more.
func TestManyOrdersCostLittle(t *testing.T) {
	number := 10_000
	if text := os.Getenv("SIMULATOR_ORDERS"); text != "" {
		var err error
		number, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	const perOrder = 3 << 10
	config := casimulator.Config{Dir: t.TempDir(), Scenario: casimulator.Scenario{Unlimited: true, Latency: 24 * time.Hour}}
	sim, err := casimulator.New(config)
	require.NoError(t, err)
	before := heap()
	request := csr(t, "example.com")
	for i := range number {
		body := fmt.Sprintf(`{"certificate":{"common_name":"host%d.example.com","csr":%q},"organization":{"id":123456},"order_validity":{"years":1},`+
			`"comments":"ref-%[1]d","skip_approval":true}`, i, request)
		require.Equal(t, http.StatusCreated, ask(t, sim, "POST", dcBase+"/order/certificate/ssl_basic", body).Code)
	}
	look := func(sim *casimulator.Simulator) {
		query := "/order/certificate?filters[common_name]=host77.example.com"
		require.Contains(t, ask(t, sim, "GET", dcBase+query, "").Body.String(), `"total":1`)
		page := ask(t, sim, "GET", dcBase+"/order/certificate?sort=-date_created&limit=1000&offset=4000", "")
		require.Equal(t, http.StatusOK, page.Code)
		require.Contains(t, page.Body.String(), fmt.Sprintf(`"total":%d`, number))
		require.Len(t, sim.Orders(), number)
		memory := (heap() - before) / int64(number)
		t.Logf("%d bytes of memory for an order", memory)
		require.Less(t, memory, int64(perOrder))
		require.NoError(t, sim.Close())
	}
	look(sim)
	size, err := os.Stat(filepath.Join(config.Dir, "orders.jsonl"))
	require.NoError(t, err)
	t.Logf("%d bytes of disk for an order", size.Size()/int64(number))
	require.Less(t, size.Size()/int64(number), int64(perOrder))
	sim, err = casimulator.New(config)
	require.NoError(t, err)
	look(sim)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkAcceptedOrder is one order with everything but the network.
func BenchmarkAcceptedOrder(b *testing.B) {
	sim, err := casimulator.New(casimulator.Config{Dir: b.TempDir(), Scenario: casimulator.Scenario{Unlimited: true, Latency: time.Hour}})
	require.NoError(b, err)
	defer sim.Close()
	body := orderJSON(b, "example.com")
	for b.Loop() {
		request := httptest.NewRequestWithContext(b.Context(), "POST", dcBase+"/order/certificate/ssl_basic", strings.NewReader(body))
		request.Header.Set("X-Dc-Devkey", sim.Credentials().DigiCertAPIKey)
		request.Header.Set("Content-Type", "application/json")
		sim.Handler().ServeHTTP(httptest.NewRecorder(), request)
	}
}
