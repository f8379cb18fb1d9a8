package e2e_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/http"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/targettest"
)

const name = "www.example.com"

func TestTourInOneProcess(t *testing.T) {
	t.Parallel()
	tour(t, startOne(t), func(in *installation) []string { return []string{"certctl"} })
}

func TestTourInSixProcesses(t *testing.T) {
	t.Parallel()
	tour(t, startSix(t), func(in *installation) []string { return []string{"issuance", "renewalscheduler", "inventory"} })
}

// tour is the README's: from nothing to a certificate that is served, renewed, survives kill -9, and is on the record.
func tour(t *testing.T, in *installation, victims func(*installation) []string) {
	agent := in.onlineAgent(t)
	in.everyLoopRuns(t)

	nginx := targettest.NewNginx(t)
	nginx.Put(t, targettest.NewAuthority(t).Issue(t, name)) // what the server had before certctl came
	nginx.Start(t)
	target := in.must(t, http.MethodPost, "/api/v1/targets", object{
		"name": "nginx", "type": "nginx", "agent_id": agent,
		"config":   object{"fullchain_path": nginx.Fullchain, "key_path": nginx.Key, "config_path": nginx.ConfigPath, "prefix": nginx.Dir},
		"endpoint": object{"address": nginx.Address, "server_name": name},
	})
	in.must(t, http.MethodPost, "/api/v1/profiles", object{"id": "one-hour", "name": "one hour", "max_validity": "3600s"})

	begin := time.Now()
	certificate := in.must(t, http.MethodPost, "/api/v1/certificates", object{
		"id": "www", "name": "www", "dns_names": []string{name}, "issuer_id": "iss-local", "profile_id": "one-hour", "target_ids": []string{target.str("id")},
	})
	require.Equal(t, "PENDING", certificate.str("status"))
	first := in.served(t, nginx.Address, 1)
	t.Logf("asked for to served: %s", time.Since(begin).Round(time.Millisecond))

	failed := handshakes(t, nginx.Address)
	job := in.must(t, http.MethodPost, "/api/v1/certificates/www/renew", object{"force": true})
	require.Equal(t, "RENEW", job.str("type"))
	second := in.served(t, nginx.Address, 2)
	require.NotEqual(t, first, second)
	in.completed(t, job.str("id"))
	require.Zero(t, failed(), "handshakes failed during the renewal")

	job = in.must(t, http.MethodPost, "/api/v1/certificates/www/renew", object{"force": true})
	for _, v := range victims(in) {
		in.processes[v].kill(t)
	}
	for _, v := range victims(in) {
		in.processes[v].start(t)
	}
	in.ready(t)
	in.completed(t, job.str("id"))
	third := in.served(t, nginx.Address, 3)
	require.NotEqual(t, second, third)
	orders := in.must(t, http.MethodGet, "/api/v1/orders?certificate_id=www&job_id="+job.str("id"), nil).list("orders")
	require.Len(t, orders, 1, "one certificate was to be signed for the renewal that was interrupted")
	require.Equal(t, "ISSUED", orders[0].str("status"))
	require.Len(t, in.must(t, http.MethodGet, "/api/v1/certificates/www/versions", nil).list("versions"), 3)
	in.chainHolds(t, nginx.Address)

	in.revokes(t)
	in.audited(t)
}

func (in *installation) onlineAgent(t *testing.T) (id string) {
	t.Helper()
	in.wait(t, "an agent that is online", func() bool {
		for _, a := range in.must(t, http.MethodGet, "/api/v1/agents", nil).list("agents") {
			if a.str("status") == "ONLINE" {
				id = a.str("id")
			}
		}
		return id != ""
	})
	return id
}

// everyLoopRuns sees each of the seventeen loops run once after the start; apart, each process shows its own.
func (in *installation) everyLoopRuns(t *testing.T) {
	t.Helper()
	if len(in.server) > 1 {
		return
	}
	want := []string{"renewal check", "job processor", "job retry", "job timeout reaper", "notification process", "notification retry", "digest",
		"agent health", "short-lived expiry", "network scan", "endpoint health", "cloud discovery", "credential expiry", "CRL generation",
		"enrolment GC", "poll dispatch", "chain verification"}
	missing := want
	defer func() {
		if len(missing) > 0 {
			t.Logf("loops that have not run: %v", missing)
		}
	}()
	in.wait(t, "every loop to run", func() bool {
		status, ready, err := in.try(t.Context(), http.MethodGet, "/ready", nil)
		if err != nil || status != http.StatusOK {
			return false
		}
		ran := map[string]bool{}
		collectLoops(ready, ran)
		missing = nil
		for _, w := range want {
			if !ran[w] {
				missing = append(missing, w)
			}
		}
		return len(missing) == 0
	})
}

// collectLoops finds the loops that have run in the details of /ready.
func collectLoops(v any, ran map[string]bool) {
	switch v := v.(type) {
	case object:
		collectLoops(map[string]any(v), ran)
	case map[string]any:
		if name, ok := v["name"].(string); ok {
			if runs, ok := v["runs"].(float64); ok && runs > 0 {
				ran[name] = true
			}
		}
		for _, c := range v {
			collectLoops(c, ran)
		}
	case []any:
		for _, c := range v {
			collectLoops(c, ran)
		}
	}
}

// served waits until the endpoint serves a version of the certificate, and the record says so.
func (in *installation) served(t *testing.T, address string, version int) (fingerprint string) {
	t.Helper()
	in.wait(t, fmt.Sprintf("version %d to be served", version), func() bool {
		c := in.must(t, http.MethodGet, "/api/v1/certificates/www", nil)
		if c["current_version"] != float64(version) {
			return false
		}
		deployments := in.must(t, http.MethodGet, "/api/v1/deployments?certificate_id=www", nil).list("deployments")
		if len(deployments) != 1 || deployments[0].str("status") != "SERVED" || deployments[0]["served_version"] != float64(version) {
			return false
		}
		fingerprint = c.str("fingerprint_sha256")
		return true
	})
	require.Equal(t, fingerprint, peerFingerprint(t, address), "what is served is not what the record says")
	return fingerprint
}

func peerFingerprint(t *testing.T, address string) string {
	t.Helper()
	sum := sha256.Sum256(connect(t, address)[0].Raw)
	return hex.EncodeToString(sum[:])
}

func connect(t *testing.T, address string) []*x509.Certificate {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{ServerName: name, InsecureSkipVerify: true}} // the chain is checked by who calls
	conn, err := d.DialContext(t.Context(), "tcp", address)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates
}

// chainHolds verifies what is served as a browser would, with the issuer's root.
func (in *installation) chainHolds(t *testing.T, address string) {
	t.Helper()
	status, ca, err := in.try(t.Context(), http.MethodGet, "/ca/iss-local.pem", nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM([]byte(ca.str("body"))))
	chain := connect(t, address)
	inter := x509.NewCertPool()
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: inter})
	require.NoError(t, err)
}

// handshakes connects all the time until the test ends; the answer counts those that failed.
func handshakes(t *testing.T, address string) (failed func() int64) {
	t.Helper()
	var bad, all atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	for range 2 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			d := tls.Dialer{Config: &tls.Config{ServerName: name, InsecureSkipVerify: true}}
			for ctx.Err() == nil {
				conn, err := d.DialContext(ctx, "tcp", address)
				all.Add(1)
				if err != nil {
					if ctx.Err() == nil {
						bad.Add(1)
					}
					continue
				}
				_ = conn.Close()
			}
		}()
		t.Cleanup(func() { cancel(); <-done })
	}
	return func() int64 {
		cancel()
		t.Logf("%d handshakes during the renewal", all.Load())
		require.Positive(t, all.Load())
		return bad.Load()
	}
}

func (in *installation) completed(t *testing.T, job string) {
	t.Helper()
	in.wait(t, "job "+job+" to complete", func() bool {
		status, j, err := in.try(t.Context(), http.MethodGet, "/api/v1/jobs/"+job, nil)
		if err != nil || status != http.StatusOK {
			return false // a service may be on its way back
		}
		require.NotContains(t, []string{"FAILED", "CANCELLED", "EXPIRED"}, j.str("status"), "%v", j)
		return j.str("status") == "COMPLETED"
	})
}

// revokes revokes the certificate and finds it in the CRL.
func (in *installation) revokes(t *testing.T) {
	t.Helper()
	serial := in.must(t, http.MethodGet, "/api/v1/certificates/www", nil).str("serial_number")
	in.must(t, http.MethodPost, "/api/v1/certificates/www/revoke", object{"reason": "SUPERSEDED"})
	require.Equal(t, "REVOKED", in.must(t, http.MethodGet, "/api/v1/certificates/www", nil).str("status"))
	in.wait(t, "the serial number in the CRL", func() bool {
		status, body, err := in.try(t.Context(), http.MethodGet, "/crl/iss-local.crl", nil)
		if err != nil || status != http.StatusOK {
			return false
		}
		crl, err := x509.ParseRevocationList([]byte(body.str("body")))
		require.NoError(t, err)
		for _, e := range crl.RevokedCertificateEntries {
			if e.SerialNumber.Text(16) == serial {
				return true
			}
		}
		return false
	})
	status, body, err := in.try(t.Context(), http.MethodPost, "/api/v1/certificates/www/renew", object{"force": true})
	require.NoError(t, err)
	require.Equal(t, http.StatusConflict, status, "%v", body)
}

// audited finds each step of the certificate's life on the record, and the record whole.
func (in *installation) audited(t *testing.T) {
	t.Helper()
	for _, action := range []string{"certificate.created", "version.stored", "certificate.renew.requested", "certificate.revoked"} {
		in.wait(t, action+" on the record", func() bool {
			return len(in.must(t, http.MethodGet, "/api/v1/audit?resource_id=www&action="+action, nil).list("events")) > 0
		})
	}
	for _, action := range []string{"order.issued", "deployment.served", "job.completed", "agent.enrolled"} {
		in.wait(t, action+" on the record", func() bool {
			return len(in.must(t, http.MethodGet, "/api/v1/audit?action="+action, nil).list("events")) > 0
		})
	}
	require.Contains(t, in.certctl(t, "audit", "verify"), "intact")
	verdict := in.must(t, http.MethodPost, "/api/v1/audit/verify", object{})
	require.Equal(t, true, verdict["valid"])
	require.Positive(t, verdict["events_checked"])
}

func TestATermSignalDrainsAndTheSecondStartFindsEverything(t *testing.T) {
	t.Parallel()
	in := startOne(t)
	in.onlineAgent(t)
	in.must(t, http.MethodPost, "/api/v1/certificates", object{"id": "kept", "name": "kept", "dns_names": []string{name}, "issuer_id": "iss-local"})
	issuer := in.must(t, http.MethodGet, "/ca/iss-local.pem", nil).str("body")
	took, err := in.processes["certctl"].stop(t)
	require.NoError(t, err, "the exit code after SIGTERM")
	require.Less(t, took, 15*time.Second)
	in.processes["certctl"].start(t)
	in.ready(t)
	require.Equal(t, "kept", in.must(t, http.MethodGet, "/api/v1/certificates/kept", nil).str("name"))
	require.Equal(t, issuer, in.must(t, http.MethodGet, "/ca/iss-local.pem", nil).str("body"), "the local CA was made anew")
	require.Len(t, in.must(t, http.MethodGet, "/api/v1/agents", nil).list("agents"), 1, "the agent on this host enrolled twice")
}

func TestASecondServeOnTheSameDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	in := startOne(t)
	cmd := exec.CommandContext(t.Context(), binaries.certctl, "serve")
	cmd.Env = environment("CERTCTL_DATA_DIR="+in.dir, "CERTCTL_LISTEN_ADDR="+targettest.FreeAddress(t))
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), fmt.Sprint(in.processes["certctl"].cmd.Process.Pid))
}
