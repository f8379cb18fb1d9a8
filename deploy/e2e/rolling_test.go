package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/tick"
)

// The load of TestARollingUpdateUnderLoadLosesNothing: what `make test` runs, and what ROLLING_AGENTS, ROLLING_RENEWERS and
// ROLLING_JOBS make of it.
const (
	rollingAgents   = 200
	rollingCreators = 2 // clients that create certificates, one after the other
	rollingRenewers = 4 // clients that renew them
	rollingReaders  = 3 // clients that read lists
	rollingJobs     = 3 // jobs that are completed between one process and the next
)

// What must hold of the times.
const (
	mostRepeating = time.Minute      // until a request that had to be repeated is answered
	mostStopping  = 15 * time.Second // from SIGTERM to the end of a process
)

// rolling is the work of clients while replicas are restarted.
type rolling struct {
	*fleet

	ending atomic.Bool
	made   atomic.Int64 // certificates created

	mu       sync.Mutex
	versions map[string]int // of each certificate
	idle     []string       // certificates that nobody works on
	jobs     map[string]bool
	repeated map[string]int // what made clients repeat their requests
	requests int
	patience time.Duration   // the longest that one had to repeat
	took     []time.Duration // of the jobs that were completed
	read     map[int]int     // answers to readers, by status
	errs     []error
}

// request is one that is repeated until it is answered.
type request struct {
	method, path string
	as           string // the key of the caller
	id           string // Idempotency-Key
	body         object
	tag          string // If-None-Match
}

// reply is the answer to a request.
type reply struct {
	status int
	tag    string
	body   object
}

// again tells why a client may repeat a request, as it is told to: "" if it may not. A connection that ends before the answer is
// complete is a reason; a server that is not the right one, and one that does not answer in time, is none.
func again(r reply, err error) string {
	var wrong *tls.CertificateVerificationError
	var late interface{ Timeout() bool }
	switch {
	case errors.As(err, &wrong), errors.As(err, &late) && late.Timeout(), errors.Is(err, context.Canceled):
		return ""
	case err != nil:
		return "connection lost"
	case r.status == http.StatusTooManyRequests, r.status == http.StatusBadGateway, r.status == http.StatusServiceUnavailable, r.status == http.StatusGatewayTimeout:
		return fmt.Sprintf("%d %s", r.status, r.body.str("message"))
	default:
		return ""
	}
}

// ask repeats a request until it is answered.
func (l *rolling) ask(ctx context.Context, client *http.Client, q request) (r reply, err error) {
	var first time.Time
	for {
		r, err = l.once(ctx, client, q)
		why := again(r, err)
		l.count(why, first)
		switch {
		case why != "" && first.IsZero():
			first = time.Now()
		case why != "" && time.Since(first) > mostRepeating:
			return r, fmt.Errorf("%s %s: still %s after %s: %v %w", q.method, q.path, why, mostRepeating, r.body, cmp.Or(err, io.EOF))
		case why != "":
		case err != nil:
			return r, err
		case r.status >= http.StatusBadRequest:
			return r, fmt.Errorf("%s %s: %d: %v", q.method, q.path, r.status, r.body)
		default:
			return r, nil
		}
		_ = tick.Wait(ctx, 5*interval)
	}
}

// count keeps the books of answers.
func (l *rolling) count(why string, first time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests++
	if why != "" {
		l.repeated[why]++
	} else if !first.IsZero() {
		l.patience = max(l.patience, time.Since(first))
	}
}

// once sends a request once.
func (in *installation) once(ctx context.Context, client *http.Client, q request) (r reply, err error) {
	var body io.Reader
	if q.body != nil {
		b, err := json.Marshal(q.body)
		if err != nil {
			return r, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, q.method, in.url+q.path, body)
	if err != nil {
		return r, err
	}
	req.Header.Set("Authorization", "Bearer "+q.as)
	for name, value := range map[string]string{"Idempotency-Key": q.id, "If-None-Match": q.tag} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		return r, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	r = reply{status: resp.StatusCode, tag: resp.Header.Get("ETag"), body: object{}}
	if err != nil || len(b) == 0 {
		return r, err
	}
	return r, json.Unmarshal(b, &r.body)
}

// start has clients work until stop, which waits for what they have begun.
func (l *rolling) start(ctx context.Context, renewers int) (stop func()) {
	var running sync.WaitGroup
	worker := func(http2 bool, work func(context.Context, *http.Client) error) {
		client := l.newClient(http2)
		running.Go(func() {
			for !l.ending.Load() && ctx.Err() == nil {
				if err := work(ctx, client); err != nil {
					l.mu.Lock()
					l.errs = append(l.errs, err)
					l.mu.Unlock()
				}
			}
		})
	}
	for range rollingCreators {
		worker(false, l.create)
	}
	for range renewers {
		worker(false, l.renew)
	}
	for range rollingReaders {
		worker(true, l.reader())
	}
	return func() {
		l.ending.Store(true)
		running.Wait()
	}
}

// create makes a certificate on the next agent, and waits until its job has ended.
func (l *rolling) create(ctx context.Context, client *http.Client) error {
	n := l.made.Add(1)
	id := fmt.Sprintf("roll-%05d", n)
	s, err := l.site(id)
	if err != nil {
		return err
	}
	target := targetFor(id, l.agents[int(n)%len(l.agents)], s)
	if _, err := l.ask(ctx, client, request{method: http.MethodPost, path: "/api/v1/targets", as: aliceKey, id: "target " + id, body: target}); err != nil {
		return err
	}
	began := time.Now()
	if _, err := l.ask(ctx, client, request{method: http.MethodPost, path: "/api/v1/certificates", as: aliceKey, id: "certificate " + id, body: certificateFor(id)}); err != nil {
		return err
	}
	for ctx.Err() == nil {
		r, err := l.ask(ctx, client, request{method: http.MethodGet, path: "/api/v1/jobs?certificate_id=" + id, as: aliceKey})
		if err != nil {
			return err
		}
		jobs := r.body.list("jobs")
		if len(jobs) > 1 {
			return fmt.Errorf("%s has %d jobs after its creation", id, len(jobs))
		}
		if len(jobs) == 1 {
			return l.follow(ctx, client, aliceKey, id, jobs[0].str("id"), began)
		}
		_ = tick.Wait(ctx, 5*interval)
	}
	return ctx.Err()
}

// renew renews a certificate that nobody else works on.
func (l *rolling) renew(ctx context.Context, client *http.Client) error {
	id, version := l.take()
	if id == "" {
		_ = tick.Wait(ctx, 5*interval)
		return nil
	}
	began := time.Now()
	r, err := l.ask(ctx, client, request{method: http.MethodPost, path: "/api/v1/certificates/" + id + "/renew", as: bobKey,
		id: fmt.Sprintf("renew %s %d", id, version), body: object{"force": true}})
	if err != nil {
		return err
	}
	return l.follow(ctx, client, bobKey, id, r.body.str("id"), began)
}

// take gives the certificate that has waited the longest.
func (l *rolling) take() (id string, version int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.idle) == 0 {
		return "", 0
	}
	id, l.idle = l.idle[0], l.idle[1:]
	return id, l.versions[id]
}

// follow waits until a job has ended, and books its version.
func (l *rolling) follow(ctx context.Context, client *http.Client, as, id, job string, began time.Time) error {
	l.mu.Lock()
	known := l.jobs[job]
	l.jobs[job] = true
	l.mu.Unlock()
	if known {
		return fmt.Errorf("job %s of %s was given to two requests", job, id)
	}
	for ctx.Err() == nil {
		r, err := l.ask(ctx, client, request{method: http.MethodGet, path: "/api/v1/jobs/" + job, as: as})
		if err != nil {
			return err
		}
		switch status := r.body.str("status"); status {
		case "FAILED", "CANCELLED", "EXPIRED":
			return fmt.Errorf("job %s of %s is %s: %v", job, id, status, r.body)
		case "COMPLETED":
			l.mu.Lock()
			defer l.mu.Unlock()
			l.versions[id]++
			l.idle = append(l.idle, id)
			l.took = append(l.took, time.Since(began))
			return nil
		}
		_ = tick.Wait(ctx, 5*interval)
	}
	return ctx.Err()
}

// reader reads lists in turn, each with the tag that it has seen last.
func (l *rolling) reader() func(context.Context, *http.Client) error {
	paths := []string{"/api/v1/certificates?page_size=50", "/api/v1/jobs?page_size=50", "/api/v1/agents?page_size=50", "/api/v1/targets?page_size=50"}
	tags := map[string]string{}
	n := 0
	return func(ctx context.Context, client *http.Client) error {
		path := paths[n%len(paths)]
		n++
		r, err := l.ask(ctx, client, request{method: http.MethodGet, path: path, as: viewerKey, tag: tags[path]})
		if err != nil {
			return err
		}
		tags[path] = r.tag
		l.mu.Lock()
		l.read[r.status]++
		l.mu.Unlock()
		_ = tick.Wait(ctx, 10*interval)
		return nil
	}
}

// completions counts the jobs that were completed.
func (l *rolling) completions() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.took)
}

func (l *rolling) median() time.Duration {
	return slices.Sorted(slices.Values(l.took))[len(l.took)/2]
}

// moreDone waits until so many more jobs have been completed.
func (l *rolling) moreDone(n int, when string) {
	l.t.Helper()
	before := l.completions()
	require.Eventually(l.t, func() bool { return l.completions() >= before+n }, patience+time.Duration(n)*time.Second, interval, "waited for: %d more jobs %s", n, when)
}

// TestARollingUpdateUnderLoadLosesNothing ends and starts every process while certificates are made and renewed. There is no release
// before this one, so that the same program stands for both versions.
func TestARollingUpdateUnderLoadLosesNothing(t *testing.T) {
	t.Parallel()
	agents := setting(t, "ROLLING_AGENTS", rollingAgents, strconv.Atoi)
	jobs := setting(t, "ROLLING_JOBS", rollingJobs, strconv.Atoi)
	f := startFleet(t, agents)
	l := &rolling{fleet: f, versions: map[string]int{}, jobs: map[string]bool{}, repeated: map[string]int{}, read: map[int]int{}}
	connections := f.watchConnections(t.Context())
	stop := l.start(t.Context(), setting(t, "ROLLING_RENEWERS", rollingRenewers, strconv.Atoi))
	defer stop()
	l.moreDone(jobs, "before the first")

	began := time.Now()
	for _, service := range append(servicesOf(), "gateway") {
		pair := f.of(service)
		f.restart(pair[0])
		l.moreDone(jobs, "after "+pair[0].name)
		f.replace(pair[1])
		l.moreDone(jobs, "after "+pair[1].name)
	}
	took := time.Since(began)
	stop()
	most := connections()
	t.Logf("12 processes in %s: %d certificates, %d jobs, half of them within %s, the slowest in %s; %d requests, of readers %v; repeated %v, for %s at most; connections %v",
		took.Round(time.Second), len(l.versions), len(l.took), l.median().Round(time.Millisecond), slices.Max(l.took).Round(time.Millisecond),
		l.requests, l.read, l.repeated, l.patience.Round(time.Millisecond), most)

	require.NoError(t, errors.Join(l.errs...))
	f.stillRuns(t)
	l.nothingIsLost()
	l.inPlaceEverywhere()
	f.allOnline(agents)
	require.Empty(t, f.errors.All(), "what agents complain of")
	f.recordHolds(t)
	for service, quota := range fleetQuotas {
		require.LessOrEqual(t, most[service], quota, service)
	}
	for _, r := range f.replicas {
		require.NotContains(t, r.output(), "SQLSTATE "+tooManyConnections, "%s was refused a connection", r.name)
		require.NotContains(t, r.output(), "panic:", r.name)
	}
}

// nothingIsLost compares what clients were told with what the services have.
func (l *rolling) nothingIsLost() {
	l.t.Helper()
	require.Empty(l.t, rows(l.t, l.database, "SELECT id || ' ' || state FROM renewalscheduler.jobs WHERE state <> 'COMPLETED'"))
	require.ElementsMatch(l.t, slices.Collect(maps.Keys(l.jobs)), rows(l.t, l.database, "SELECT id FROM renewalscheduler.jobs"), "jobs that nobody or somebody else was told of")
	require.ElementsMatch(l.t, slices.Collect(maps.Keys(l.jobs)), rows(l.t, l.database, "SELECT job_id FROM issuance.orders WHERE status = 'ISSUED'"), "one issued order per job")
	require.Empty(l.t, rows(l.t, l.database, "SELECT id || ' ' || status FROM issuance.orders WHERE status <> 'ISSUED'"))
	require.Len(l.t, rows(l.t, l.database, "SELECT serial_number FROM issuance.issued_certificates"), len(l.jobs), "one certificate per order")
	var want []string
	for id, n := range l.versions {
		for v := range n {
			want = append(want, fmt.Sprintf("%s %d", id, v+1))
		}
	}
	require.ElementsMatch(l.t, want, rows(l.t, l.database, "SELECT certificate_id || ' ' || version FROM inventory.certificate_versions"), "one version per job")
	require.ElementsMatch(l.t, slices.Collect(maps.Keys(l.versions)), rows(l.t, l.database, "SELECT id FROM inventory.certificates"))
	l.wait(l.t, "each version on the record once", func() bool {
		return len(rows(l.t, l.database, "SELECT id FROM audit.events WHERE action = 'version.stored'")) >= len(l.jobs)
	})
	require.Len(l.t, rows(l.t, l.database, "SELECT id FROM audit.events WHERE action = 'version.stored'"), len(l.jobs))
}

// inPlaceEverywhere waits until all current versions are served, and looks at the files.
func (l *rolling) inPlaceEverywhere() {
	l.t.Helper()
	l.wait(l.t, "all current versions to be served", func() bool {
		return len(rows(l.t, l.database, `SELECT d.certificate_id FROM inventory.deployments d JOIN inventory.certificates c ON c.id = d.certificate_id
 WHERE d.status = 'SERVED' AND d.served_version = c.current_version AND c.status = 'ACTIVE'`)) == len(l.versions)
	})
	for _, current := range rows(l.t, l.database, "SELECT id || ' ' || fingerprint_sha256 FROM inventory.certificates") {
		id, fingerprint, _ := strings.Cut(current, " ")
		s, err := l.site(id)
		require.NoError(l.t, err)
		pair, err := tls.LoadX509KeyPair(s.fullchain, s.key)
		require.NoError(l.t, err, "the key of %s on disk is not the certificate's", id)
		sum := sha256.Sum256(pair.Certificate[0])
		require.Equal(l.t, fingerprint, hex.EncodeToString(sum[:]), "the files of %s are not its current version", id)
	}
}
