package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/pkg/tick"
)

// site is a pair of files on an agent's host that a target of type file keeps.
type site struct{ fullchain, key string }

// site makes the directory of a site.
func (in *installation) site(id string) (site, error) {
	dir := filepath.Join(filepath.Dir(in.dir), "sites", id)
	return site{fullchain: filepath.Join(dir, "fullchain.pem"), key: filepath.Join(dir, "key.pem")}, os.MkdirAll(dir, 0o700)
}

// targetFor and certificateFor are the bodies of the requests that keep a site.
func targetFor(id, agent string, s site) object {
	return object{"id": "target-" + id, "name": id, "type": "file", "agent_id": agent,
		"config": object{"fullchain_path": s.fullchain, "key_path": s.key}}
}

func certificateFor(id string) object {
	return object{"id": id, "name": id, "dns_names": []string{id + ".example.com"}, "issuer_id": "iss-local", "target_ids": []string{"target-" + id}}
}

// keep has a site kept, and waits until its first certificate is there.
func (in *installation) keep(t *testing.T, agent, id string) {
	t.Helper()
	s, err := in.site(id)
	require.NoError(t, err)
	in.must(t, http.MethodPost, "/api/v1/targets", targetFor(id, agent, s))
	in.must(t, http.MethodPost, "/api/v1/certificates", certificateFor(id))
	in.inPlace(t, id, 1)
}

// inPlace waits until a version of a certificate is the current one and is what its only deployment serves, and sees
// that the files hold it.
func (in *installation) inPlace(t *testing.T, id string, version int) {
	t.Helper()
	var certificate object
	in.wait(t, fmt.Sprintf("version %d of %s in place", version, id), func() bool {
		certificate = in.look(t, "/api/v1/certificates/"+id)
		if certificate["current_version"] != float64(version) {
			return false
		}
		deployments := in.look(t, "/api/v1/deployments?certificate_id="+id).list("deployments")
		return len(deployments) == 1 && deployments[0].str("status") == "SERVED" && deployments[0]["served_version"] == float64(version)
	})
	require.Equal(t, "ACTIVE", certificate.str("status"))
	s, err := in.site(id)
	require.NoError(t, err)
	pair, err := tls.LoadX509KeyPair(s.fullchain, s.key)
	require.NoError(t, err, "the key on disk is not the certificate's")
	sum := sha256.Sum256(pair.Certificate[0])
	require.Equal(t, certificate.str("fingerprint_sha256"), hex.EncodeToString(sum[:]), "the files of %s are not its current version", id)
}

// look reads; what is not there for now (a service is on its way back) is empty.
func (in *installation) look(t *testing.T, path string) object {
	t.Helper()
	status, o, err := in.try(t.Context(), http.MethodGet, path, nil)
	if err != nil || status >= http.StatusInternalServerError {
		return object{}
	}
	require.Equal(t, http.StatusOK, status, "GET %s: %v", path, o)
	return o
}

// renew asks for a renewal and gives its job.
func (in *installation) renew(t *testing.T, id string) (job string) {
	t.Helper()
	return in.must(t, http.MethodPost, "/api/v1/certificates/"+id+"/renew", object{"force": true}).str("id")
}

// signedOnce sees that a job has led to one order, and that one to a certificate.
func (in *installation) signedOnce(t *testing.T, id, job string) {
	t.Helper()
	orders := in.must(t, http.MethodGet, "/api/v1/orders?certificate_id="+id+"&job_id="+job, nil).list("orders")
	require.Len(t, orders, 1, "job %s has ordered more than once, or nothing", job)
	require.Equal(t, "ISSUED", orders[0].str("status"))
}

func (in *installation) recordHolds(t *testing.T) {
	t.Helper()
	verdict := in.must(t, http.MethodPost, "/api/v1/audit/verify", object{})
	require.Equal(t, true, verdict["valid"], "%v", verdict)
	require.Positive(t, verdict["events_checked"])
}

// alive fails when a process of the server has ended by itself.
func (in *installation) stillRuns(t *testing.T) {
	t.Helper()
	for _, name := range in.server {
		select {
		case <-in.processes[name].done:
			require.Fail(t, "a process of the server has ended", "%s: %v", name, in.processes[name].err)
		default:
		}
	}
}

// insist posts until there is an answer, as clients do: the same Idempotency-Key makes the repeats harmless. "Not now",
// "not in time" and a lost connection are reasons to repeat; an internal error is not.
func (in *installation) insist(ctx context.Context, key, path string, body object) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		status, answer, err := in.postOnce(ctx, key, path, b)
		switch {
		case err != nil || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout:
			_ = tick.Wait(ctx, 5*interval)
		case status == http.StatusOK || status == http.StatusCreated:
			return nil
		default:
			return fmt.Errorf("POST %s: %d: %s", path, status, answer)
		}
	}
	return context.Cause(ctx)
}

func (in *installation) postOnce(ctx context.Context, key, path string, body []byte) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, in.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+in.key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	resp, err := in.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, answer, err
}

// load creates certificates for file targets until it is stopped.
type load struct {
	in    *installation
	agent string

	next     atomic.Int64
	answered atomic.Int64
	mu       sync.Mutex
	ids      []string // acknowledged
	errs     []error
}

// start runs a number of clients; stop waits until each has its last answer.
func (l *load) start(ctx context.Context, clients int) (stop func()) {
	var end atomic.Bool
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for !end.Load() && ctx.Err() == nil {
				l.one(ctx)
			}
		})
	}
	return func() {
		end.Store(true)
		running.Wait()
	}
}

func (l *load) one(ctx context.Context) {
	id := fmt.Sprintf("load-%03d", l.next.Add(1))
	s, err := l.in.site(id)
	if err == nil {
		err = l.in.insist(ctx, "target "+id, "/api/v1/targets", targetFor(id, l.agent, s))
	}
	if err == nil {
		err = l.in.insist(ctx, "certificate "+id, "/api/v1/certificates", certificateFor(id))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.errs = append(l.errs, err)
		return
	}
	l.ids = append(l.ids, id)
	l.answered.Add(1)
}

func TestAPostgresThatIsRestartedUnderLoadLosesNothing(t *testing.T) {
	t.Parallel()
	// What is committed is with the kernel, and so outlives the server, though not the machine.
	db := testpg.NewServer(t, testpg.ServerConfig{Settings: map[string]string{"synchronous_commit": "on"}})
	in := startOne(t, "CERTCTL_DATABASE_URL="+db.URL())
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	l := &load{in: in, agent: in.onlineAgent(t)}
	stop := l.start(ctx, 3)
	defer stop()
	for round, fault := range []func(testing.TB){db.Restart, db.Kill, db.Restart} {
		before := l.answered.Load()
		in.wait(t, "load", func() bool { return l.answered.Load() >= before+8 })
		fault(t)
		if round == 1 {
			db.Start(t)
		}
		in.stillRuns(t)
	}
	before := l.answered.Load()
	in.wait(t, "load after the last restart", func() bool { return l.answered.Load() >= before+8 })
	stop()
	require.NoError(t, errors.Join(l.errs...))
	t.Logf("%d certificates were acknowledged", len(l.ids))
	for _, id := range l.ids {
		in.inPlace(t, id, 1)
		jobs := in.look(t, "/api/v1/jobs?certificate_id="+id).list("jobs")
		require.Len(t, jobs, 1, id)
		in.completed(t, jobs[0].str("id"))
		in.signedOnce(t, id, jobs[0].str("id"))
	}
	all := in.must(t, http.MethodGet, "/api/v1/certificates?page_size=1&include_total=true", nil)
	require.EqualValues(t, len(l.ids), all["total_size"], "there are certificates that nobody was told of")
	in.stillRuns(t)
	in.recordHolds(t)
}

func TestAServerThatIsKilledAtRandomMomentsFinishesEachRenewalOnce(t *testing.T) {
	t.Parallel()
	const rounds, seed = 5, 20261123 // with two certificates each
	moments := rand.New(rand.NewPCG(seed, 1))
	in := startOne(t)
	agent := in.onlineAgent(t)
	ids := []string{"left", "right"}
	for _, id := range ids {
		in.keep(t, agent, id)
	}
	server := in.processes["certctl"]
	for round := range rounds {
		jobs := map[string]string{}
		for _, id := range ids {
			jobs[id] = in.renew(t, id)
		}
		after := time.Duration(moments.Int64N(int64(200 * time.Millisecond)))
		_ = tick.Wait(t.Context(), after)
		server.kill(t)
		server.start(t)
		in.ready(t)
		for id, job := range jobs {
			in.completed(t, job)
			in.inPlace(t, id, round+2)
			in.signedOnce(t, id, job)
		}
		t.Logf("killed %s after the renewal was asked for", after.Round(time.Millisecond))
	}
	for _, id := range ids {
		require.Len(t, in.must(t, http.MethodGet, "/api/v1/certificates/"+id+"/versions", nil).list("versions"), rounds+1)
	}
	require.Len(t, in.must(t, http.MethodGet, "/api/v1/agents", nil).list("agents"), 1, "the agent on this host enrolled again")
	in.recordHolds(t)
}

func TestAnAgentThatIsKilledWhileItDeploysEndsServing(t *testing.T) {
	t.Parallel()
	const rounds, seed = 12, 20261123
	moments := rand.New(rand.NewPCG(seed, 2))
	in := startSix(t)
	agent := in.onlineAgent(t)
	ids := []string{"east", "west"}
	for _, id := range ids {
		in.keep(t, agent, id)
	}
	p := in.processes["agent"]
	for round := range rounds {
		jobs := map[string]string{}
		for _, id := range ids {
			jobs[id] = in.renew(t, id)
		}
		after := time.Duration(moments.Int64N(int64(150 * time.Millisecond)))
		_ = tick.Wait(t.Context(), after)
		p.kill(t)
		p.start(t)
		for id, job := range jobs {
			in.completed(t, job)
			in.inPlace(t, id, round+2)
			in.signedOnce(t, id, job)
		}
		t.Logf("killed %s after the renewal was asked for", after.Round(time.Millisecond))
	}
	require.Len(t, in.must(t, http.MethodGet, "/api/v1/agents", nil).list("agents"), 1, "the agent enrolled again")
	in.stillRuns(t)
	in.recordHolds(t)
}
