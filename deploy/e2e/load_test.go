package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/connector/certcheck"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/catalog"
	"github.com/certctl/certctl/pkg/connector/issuertest"
)

// The load of TestPendingOrdersOfFourCAsWaitAsRows: what `make test` runs, and what LOAD_ORDERS, LOAD_WINDOW and LOAD_LOOK
// make of it (see docs/dev/testing.md).
const (
	loadOrders = 2000             // pending orders, over four CAs
	loadWindow = 3 * time.Minute  // in which all of them become due for the first time
	loadLook   = 20 * time.Second // how long is looked at each half: CAs that answer, and one that hangs
)

// storing is what the rows take to be stored: none of them is due before.
const storing = 10 * time.Second

// What must hold. The lag is a time, and so is held against the most only in a run that was asked for (LOAD_ORDERS): the
// machines of `make test` are busy.
const (
	mostLag         = 10 * time.Second
	mostMemory      = 150 << 20
	mostConnections = 6 // asyncpoller's quota
)

func setting[T any](t *testing.T, name string, otherwise T, parse func(string) (T, error)) T {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	v, err := parse(text)
	require.NoError(t, err, name)
	return v
}

// pendingLoad is an installation whose database and CAs hold orders that nobody answers.
type pendingLoad struct {
	*installation
	*simulator

	t    *testing.T
	db   *pgx.Conn
	cas  []string
	look time.Duration
}

func TestPendingOrdersOfFourCAsWaitAsRows(t *testing.T) {
	orders := setting(t, "LOAD_ORDERS", loadOrders, strconv.Atoi)
	window := setting(t, "LOAD_WINDOW", loadWindow, time.ParseDuration)
	l := &pendingLoad{t: t, installation: startSix(t, "CERTCTL_ORPHAN_SEARCH_INTERVAL=24h"), cas: []string{"digicert", "sectigo", "globalsign", "entrust-ecs"},
		look: setting(t, "LOAD_LOOK", loadLook, time.ParseDuration)}
	l.simulator = l.simulates(t)
	l.tell(t, http.MethodPut, "/scenario", "unlimited: true\nlatency: 720h\n")
	var err error
	l.db, err = pgx.Connect(t.Context(), l.databaseURL())
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.db.Close(context.WithoutCancel(t.Context())) })
	for _, ca := range l.cas {
		l.connect(ca)
	}
	began := time.Now()
	l.fill(orders, window)
	t.Logf("%d pending orders at %d CAs stored in %s; all become due within %s", orders, len(l.cas), time.Since(began).Round(time.Second), window)

	quiet := l.observe("all CAs answer", nil)
	require.Positive(t, quiet.polls)
	l.tell(t, http.MethodPut, "/faults", `[{"ca":"globalsign","fault":"hang"}]`)
	hung := l.observe("GlobalSign hangs on every call", []string{"globalsign"})
	require.Positive(t, hung.polls)
	for _, o := range []observation{quiet, hung} {
		if os.Getenv("LOAD_ORDERS") != "" {
			require.LessOrEqual(t, o.lag, mostLag, "due orders are asked about in time")
		}
		require.LessOrEqual(t, o.memory, mostMemory, "what waits is rows, not memory")
		require.LessOrEqual(t, o.connections, mostConnections)
	}
	for path, p := range hung.p95 {
		t.Logf("p95 of %s: %s while all CAs answer, %s while one hangs: ratio %.2f", path, quiet.p95[path], p, float64(p)/float64(quiet.p95[path]))
	}
	// A CA that is back is asked again, whatever waits there, at the rate of its account.
	l.tell(t, http.MethodDelete, "/faults", "")
	l.wait(t, "GlobalSign to be asked again", func() bool { return l.lag() < mostLag })
	require.Zero(t, l.ended(), "an order that nobody answers stays pending")
	l.content(t)
}

func (l *pendingLoad) databaseURL() string {
	for _, s := range l.shared {
		if url, ok := strings.CutPrefix(s, "CERTCTL_DATABASE_URL="); ok {
			return url
		}
	}
	l.t.Fatal("no database")
	return ""
}

// settings of a CA, with an account that allows what the load asks for.
func (l *pendingLoad) settings(ca string) json.RawMessage {
	l.t.Helper()
	text, err := os.ReadFile(filepath.Join(l.simulator.dir, ca+".json"))
	require.NoError(l.t, err)
	var s map[string]any
	require.NoError(l.t, json.Unmarshal(text, &s))
	s["requests_per_second"], s["burst"], s["max_concurrent_requests"], s["timeout_seconds"] = 100, 200, 8, 20
	out, err := json.Marshal(s)
	require.NoError(l.t, err)
	return out
}

func (l *pendingLoad) connect(ca string) {
	l.t.Helper()
	l.must(l.t, http.MethodPost, "/api/v1/issuers", object{"id": ca, "name": ca, "type": ca, "config": l.settings(ca)})
}

// connector gives the same issuer in this process, to place orders with.
func (l *pendingLoad) connector(ca string) issuer.Issuer {
	l.t.Helper()
	typ, ok := catalog.Types().Lookup(ca)
	require.True(l.t, ok)
	settings, secrets, err := typ.SplitSecrets(l.settings(ca))
	require.NoError(l.t, err)
	in, err := typ.New(l.t.Context(), issuer.Config{Settings: settings, Secrets: secrets}, issuer.Deps{})
	require.NoError(l.t, err)
	return in
}

// fill places some orders at each CA, and stores many as the journal and the polls would hold them a day later: what waits are
// rows, and several of them ask the CA about the same order of it.
func (l *pendingLoad) fill(orders int, window time.Duration) {
	l.t.Helper()
	var mu sync.Mutex
	var journal, polls [][]any
	g, ctx := errgroup.WithContext(l.t.Context())
	for _, ca := range l.cas {
		in := l.connector(ca)
		r := issuertest.NewRequest(l.t, "ord-load", issuertest.NewKey(l.t, certcheck.ECDSAP256), issuertest.Names(l.t, "load."+ca+".example.com"))
		r.Lifetime = 60 * 24 * time.Hour
		g.Go(func() error {
			refs, err := l.placeMany(ctx, in, r)
			if err != nil {
				return fmt.Errorf("place orders at %s: %w", ca, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for n := range orders / len(l.cas) {
				id, ref, now := fmt.Sprintf("ord-load-%s-%06d", ca, n), refs[n%len(refs)], time.Now()
				journal = append(journal, []any{id, "cert-load", ca, "prof-default", "PENDING", r.Names.DNSNames, []string{}, []string{}, []string{},
					[]string{"SERVER_AUTH"}, int64(r.Lifetime.Seconds()), r.CSR.Raw, "sum", []byte("sum"), json.RawMessage(ref), now.Add(-24 * time.Hour),
					now.Add(30 * 24 * time.Hour), now.Add(24 * time.Hour)})
				polls = append(polls, []any{id, ca, ref, nil, now.Add(30 * 24 * time.Hour), now.Add(-24 * time.Hour), now.Add(-24 * time.Hour), 10})
			}
			return nil
		})
	}
	require.NoError(l.t, g.Wait())
	l.store(journal, polls, window)
}

// placedOrders is how many orders each CA has.
const placedOrders = 200

func (l *pendingLoad) placeMany(ctx context.Context, in issuer.Issuer, r issuer.SubmitRequest) ([]string, error) {
	var refs []string
	for n := range placedOrders {
		r.OrderID = fmt.Sprintf("ord-placed-%06d", n)
		ref, err := l.place(ctx, in, r)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

func (l *pendingLoad) store(journal, polls [][]any, window time.Duration) {
	l.t.Helper()
	base := time.Now().Add(storing)
	for _, row := range polls {
		row[3] = base.Add(time.Duration(rand.Int64N(int64(window))))
	}
	_, err := l.db.CopyFrom(l.t.Context(), pgx.Identifier{"issuance", "orders"}, []string{"id", "certificate_id", "issuer_id", "profile_id", "status", "dns_names",
		"ip_addresses", "email_addresses", "uris", "extended_key_usages", "lifetime_seconds", "csr", "csr_sha256", "request_sha256", "ca_reference", "create_time",
		"deadline_time", "due_time"}, pgx.CopyFromRows(journal))
	require.NoError(l.t, err)
	_, err = l.db.CopyFrom(l.t.Context(), pgx.Identifier{"asyncpoller", "polls"}, []string{"order_id", "issuer_id", "ca_reference", "due_time", "deadline_time",
		"watch_time", "create_time", "attempts"}, pgx.CopyFromRows(polls))
	require.NoError(l.t, err)
	// As autovacuum would have done by then.
	for _, table := range []string{"issuance.orders", "asyncpoller.polls"} {
		_, err = l.db.Exec(l.t.Context(), "VACUUM ANALYZE "+table)
		require.NoError(l.t, err)
	}
}

// place submits until the account lets it.
func (l *pendingLoad) place(ctx context.Context, in issuer.Issuer, r issuer.SubmitRequest) (ref string, err error) {
	for {
		sub, err := in.Submit(ctx, r)
		if wait, ok := issuer.RetryDelay(err); ok {
			select {
			case <-time.After(wait):
				continue
			case <-ctx.Done():
				return "", ctx.Err()
			}
		}
		if err != nil {
			return "", err
		}
		b, err := json.Marshal(sub.Ref)
		return string(b), err
	}
}

// observation is what was seen of asyncpoller and of the others during a look.
type observation struct {
	lag         time.Duration
	memory      int
	connections int
	polls       int
	p95         map[string]time.Duration
}

// observe looks for a while, but for the polls of some issuers.
func (l *pendingLoad) observe(what string, but []string) (o observation) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), l.look)
	defer cancel()
	before := l.polled()
	took := make(chan map[string]time.Duration, 1)
	go func() { took <- l.users(ctx) }()
	for ctx.Err() == nil {
		o.lag = max(o.lag, l.lag(but...))
		o.memory = max(o.memory, l.memory())
		o.connections = max(o.connections, l.connections())
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	o.p95 = <-took
	o.polls = l.polled() - before
	l.t.Logf("%s: %d polls in %s (%.0f/s), oldest due poll waited %s, asyncpoller %d MiB, %d connections, p95 %v",
		what, o.polls, l.look, float64(o.polls)/l.look.Seconds(), o.lag.Round(time.Millisecond), o.memory>>20, o.connections, o.p95)
	return o
}

// lag is how long the poll has been due that has been so the longest.
func (l *pendingLoad) lag(but ...string) time.Duration {
	l.t.Helper()
	var seconds float64
	require.NoError(l.t, l.db.QueryRow(l.t.Context(), `SELECT COALESCE(EXTRACT(epoch FROM max(now() - due_time)), 0)::float8 FROM asyncpoller.polls
 WHERE state = 'WAITING' AND due_time < now() AND issuer_id <> ALL($1)`, append([]string{}, but...)).Scan(&seconds))
	return time.Duration(seconds * float64(time.Second))
}

// ended counts orders that are not pending any more.
func (l *pendingLoad) ended() (n int) {
	l.t.Helper()
	require.NoError(l.t, l.db.QueryRow(l.t.Context(), `SELECT count(*) FROM issuance.orders WHERE status <> 'PENDING'`).Scan(&n))
	return n
}

func (l *pendingLoad) polled() (n int) {
	l.t.Helper()
	require.NoError(l.t, l.db.QueryRow(l.t.Context(), `SELECT count(*) FROM asyncpoller.poll_answers`).Scan(&n))
	return n
}

// connections counts those of asyncpoller's role.
func (l *pendingLoad) connections() (n int) {
	l.t.Helper()
	require.NoError(l.t, l.db.QueryRow(l.t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE usename LIKE '%asyncpoller'`).Scan(&n))
	return n
}

// memory is the resident set of asyncpoller's process, in bytes.
func (l *pendingLoad) memory() int {
	l.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", l.processes["asyncpoller"].cmd.Process.Pid))
	require.NoError(l.t, err)
	fields := strings.Fields(string(text))
	pages, err := strconv.Atoi(fields[1])
	require.NoError(l.t, err)
	return pages * os.Getpagesize()
}

// users asks for a list, for one order and for one certificate in turn, at a constant rate, and gives the 95th percentile of
// each, from the moment that the request was to be sent.
func (l *pendingLoad) users(ctx context.Context) map[string]time.Duration {
	paths := []string{"/api/v1/certificates?page_size=50", "/api/v1/orders?page_size=50&status=PENDING", "/api/v1/orders/ord-load-digicert-000001"}
	took := map[string][]time.Duration{}
	begin := time.Now()
	for n := 0; ctx.Err() == nil; n++ {
		at := begin.Add(time.Duration(n) * 20 * time.Millisecond)
		select {
		case <-time.After(time.Until(at)):
		case <-ctx.Done():
		}
		path := paths[n%len(paths)]
		status, _, err := l.try(ctx, http.MethodGet, path, nil)
		if err == nil && status == http.StatusOK {
			took[path] = append(took[path], time.Since(at))
		}
	}
	out := map[string]time.Duration{}
	for path, all := range took {
		slices.Sort(all)
		out[path] = all[len(all)*95/100].Round(100 * time.Microsecond)
	}
	return out
}
