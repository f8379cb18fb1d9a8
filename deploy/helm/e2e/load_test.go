//go:build cluster

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"
)

// load asks for certificates, one after the other and in several lines, that an agent makes keys for and puts into files, while
// somebody else shakes the installation.
type load struct {
	a       *api
	agent   string
	prefix  string
	cancel  context.CancelFunc
	lines   sync.WaitGroup
	made    atomic.Int64
	retries atomic.Int64
	most    atomic.Int64 // connections to Postgres at a time

	mu       sync.Mutex
	problems []error
}

const (
	loadLines = 2
	loadPause = time.Second
	// leastUnderLoad is how many certificates have to be made meanwhile for a test to mean something.
	leastUnderLoad = 10
)

// shake runs f while certificates are made, and sees afterwards that each that was asked for was issued once. (That no service has more
// connections than its quota is for Postgres to enforce; here it is to be seen that all work with what they have.)
func (a *api) shake(prefix string, f func()) {
	a.r.t.Helper()
	ctx, cancel := context.WithCancel(a.r.t.Context())
	defer cancel()
	l := &load{a: a, agent: a.agent(), prefix: prefix, cancel: cancel}
	for line := range loadLines {
		l.lines.Go(func() { l.line(ctx, line) })
	}
	if out, err := try(a.r.t, "", "kubectl", "-n", a.r.ns, "get", "statefulset", a.r.name+"-postgres"); err == nil && out != "" {
		l.lines.Go(func() { l.watchConnections(ctx) })
	}
	f()
	least := l.made.Load() + leastUnderLoad
	require.Eventually(a.r.t, func() bool { return l.made.Load() >= least || l.failed() != nil }, patience, interval, "nothing is made any more")
	cancel()
	l.lines.Wait()
	require.NoError(a.r.t, l.failed())
	l.check()
	a.r.t.Logf("%s: %d certificates made, %d requests repeated, at most %d connections", prefix, l.made.Load(), l.retries.Load(), l.most.Load())
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.problems = append(l.problems, err)
}

func (l *load) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.problems) == 0 {
		return nil
	}
	return fmt.Errorf("%d failures, the first: %w", len(l.problems), l.problems[0])
}

// line has one certificate after the other made, whole: it ends between two.
func (l *load) line(ctx context.Context, line int) {
	work := context.WithoutCancel(ctx)
	for n := 0; ctx.Err() == nil; n++ {
		if err := l.one(work, fmt.Sprintf("%s-%d-%d", l.prefix, line, n)); err != nil {
			l.fail(err)
			return
		}
		l.made.Add(1)
		select {
		case <-ctx.Done():
		case <-time.After(loadPause):
		}
	}
}

func (l *load) do(ctx context.Context, method, path string, body object) (object, error) {
	o, retries, err := l.a.do(ctx, method, path, body)
	l.retries.Add(int64(retries))
	return o, err
}

// one has a certificate made and deployed.
func (l *load) one(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dir := "/data/" + id // the one directory that is the agent's to write
	_, err := l.do(ctx, http.MethodPost, "/api/v1/targets", object{"id": id, "name": id, "type": "file", "agent_id": l.agent,
		"config": object{"fullchain_path": dir + "-fullchain.pem", "key_path": dir + "-key.pem"}})
	if err != nil {
		return err
	}
	_, err = l.do(ctx, http.MethodPost, "/api/v1/certificates", object{"id": id, "name": id, "dns_names": []string{id + ".example.com"},
		"issuer_id": "iss-local", "target_ids": []string{id}})
	if err != nil {
		return err
	}
	for {
		answer, err := l.do(ctx, http.MethodGet, "/api/v1/deployments?certificate_id="+id, nil)
		if err != nil {
			return err
		}
		all := list(answer, "deployments")
		if len(all) == 1 && str(all[0], "status") == "SERVED" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("certificate %s was not deployed in time: %v", id, answer)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// watchConnections looks all the time how many connections the services have.
func (l *load) watchConnections(ctx context.Context) {
	for ctx.Err() == nil {
		out, err := try(l.a.r.t, "", "kubectl", "-n", l.a.r.ns, "exec", l.a.r.name+"-postgres-0", "--", "psql", "-U", "certctl", "-d", "certctl", "-Atc",
			"SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'certctl\\_%'")
		var n int64
		if _, scanErr := fmt.Sscan(out, &n); err == nil && scanErr == nil {
			l.most.Store(max(l.most.Load(), n))
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// check sees that each certificate has one version from one order, and no job is left or failed.
func (l *load) check() {
	t := l.a.r.t
	t.Helper()
	for line := range loadLines {
		for n := 0; ; n++ {
			id := fmt.Sprintf("%s-%d-%d", l.prefix, line, n)
			versions, _, err := l.a.do(t.Context(), http.MethodGet, "/api/v1/certificates/"+id+"/versions", nil)
			if err != nil {
				require.Positive(t, n)
				break // the last of its line
			}
			require.Len(t, list(versions, "versions"), 1, "certificate %s", id)
			require.Len(t, list(l.a.must(http.MethodGet, "/api/v1/orders?certificate_id="+id, nil), "orders"), 1, "certificate %s", id)
			jobs := list(l.a.must(http.MethodGet, "/api/v1/jobs?certificate_id="+id, nil), "jobs")
			for _, j := range jobs {
				require.Equal(t, "COMPLETED", str(j, "status"), "job of %s", id)
			}
		}
	}
	l.a.intact()
}
