package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/config"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/testpg"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client"
	"github.com/certctl/certctl/services/cmd/certctl/internal/serve"
	"github.com/certctl/certctl/services/cmd/certctl/internal/settings"
)

// started gives the first write, and takes all.
type started chan struct{}

func (s started) Write(b []byte) (int, error) {
	select {
	case s <- struct{}{}:
	default:
	}
	return len(b), nil
}

// serveAll runs all of certctl in this process, with a Postgres of its own, and answers its data directory.
func serveAll(t *testing.T, environ ...string) string {
	t.Helper()
	dir := testpg.Dir(t)
	var cfg settings.Server
	_, err := config.Load(&cfg, append(environ, "CERTCTL_DATA_DIR="+dir, "CERTCTL_LISTEN_ADDR=127.0.0.1:0", "CERTCTL_LOG_LEVEL=error",
		"CERTCTL_LOCAL_AGENT=false"), config.Options{})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	up := make(started, 1)
	ended := run.Go(func() error { return serve.All(ctx, cfg, up) })
	select {
	case <-up:
	case err := <-ended:
		require.NoError(t, err)
		require.Fail(t, "it ended at once")
	}
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-ended)
	})
	return dir
}

// certctl runs the program at the present time.
func certctl(t *testing.T, dir string, args ...string) result {
	t.Helper()
	root := &cobra.Command{Use: "certctl"}
	root.AddCommand(client.Commands(client.Config{Environ: []string{"CERTCTL_DATA_DIR=" + dir}})...)
	var out, errOut bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errOut)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return result{out.String(), errOut.String(), err, client.ExitCode(err)}
}

var smokeName = regexp.MustCompile(`smoke-[a-z0-9]{12}`)

// verdicts are the first two words of each line.
func verdicts(out string) string {
	var all []string
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		all = append(all, words[0]+" "+words[1])
	}
	return strings.Join(all, ", ")
}

func TestSmokeProvesAnInstallation(t *testing.T) {
	t.Parallel()
	dir := serveAll(t)
	run := func(args ...string) result { return certctl(t, dir, append([]string{"smoke"}, args...)...) }

	r := run()
	require.NoError(t, r.failure)
	t.Log("\n" + r.out)
	require.Equal(t, "ok ready, ok create, ok job, ok issue, ok download, ok list, ok audit, ok verify, ok revoke, ok archive", verdicts(r.out))
	require.Empty(t, r.err)
	id := smokeName.FindString(r.out)
	var left struct {
		Status string `json:"status"`
	}
	shown := certctl(t, dir, "certificates", "get", id, "-o", "json")
	require.NoError(t, shown.failure)
	require.NoError(t, json.Unmarshal([]byte(shown.out), &left))
	require.Equal(t, "ARCHIVED", left.Status)
	versions := certctl(t, dir, "certificates", "versions", id, "-o", "json")
	require.Contains(t, versions.out, `"REVOKED"`)

	r = run("--issuer", "iss-nowhere")
	require.Equal(t, 1, r.code)
	require.Equal(t, "ok ready, FAILED create", verdicts(r.out))
	require.ErrorContains(t, r.failure, "step create failed: ")
	require.ErrorContains(t, r.failure, "issuer_id")
	require.ErrorContains(t, r.failure, "certctl issuers list")

	require.NoError(t, certctl(t, dir, "profiles", "create", "--id", "asks", "--name", "asks", "--requires-approval").failure)
	r = run("--profile", "asks", "--timeout", "3s")
	require.Equal(t, 4, r.code)
	require.Equal(t, "ok ready, ok create, FAILED job, ok archive", verdicts(r.out))
	require.ErrorContains(t, r.failure, "step job failed: not finished after 3s; job ")
	require.ErrorContains(t, r.failure, "AWAITING_APPROVAL")
	require.Contains(t, certctl(t, dir, "certificates", "get", smokeName.FindString(r.out)).out, "ARCHIVED", "also what failed is cleaned up")

	require.Equal(t, 2, run("-o", "json").code)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "api-key"), []byte("a-key-that-is-wrong"), 0o600))
	r = run()
	require.Equal(t, 1, r.code)
	require.Equal(t, "ok ready, FAILED create", verdicts(r.out))
	require.ErrorContains(t, r.failure, "is it one of CERTCTL_AUTH_SECRET of the server?")
}

func TestSmokeNeedsNoKeyWhereNoneIsAskedFor(t *testing.T) {
	t.Parallel()
	dir := serveAll(t, "CERTCTL_AUTH_TYPE=none")
	require.NoFileExists(t, filepath.Join(dir, "api-key"))
	r := certctl(t, dir, "smoke")
	require.NoError(t, r.failure)
	require.Contains(t, verdicts(r.out), "ok archive")
}

func TestSmokeSaysThatThereIsNoServer(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.http.Close()
	begin := time.Now()
	r := g.run(t, "smoke")
	require.Equal(t, 1, r.code)
	require.Equal(t, "FAILED ready", verdicts(r.out))
	require.ErrorContains(t, r.failure, "step ready failed: "+g.url+" cannot be reached")
	require.Less(t, time.Since(begin), time.Minute)
}

func TestSmokeCleansUpWhatWasIssuedLate(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	rest := g.http.Config.Handler
	g.http.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ready" {
			rest.ServeHTTP(w, r)
			return
		}
		_, _ = w.Write([]byte(`{"services":{"inventory":{"ready":true}}}`))
	})
	answer(g, inventoryv1.CertificateService_CreateCertificate_FullMethodName, (*inventoryv1.CreateCertificateRequest)(nil), &inventoryv1.CreateCertificateResponse{})
	waits := &schedulerv1.Job{Id: "job-1", Status: schedulerv1.Job_AWAITING_CSR}
	answer(g, schedulerv1.JobService_ListJobs_FullMethodName, (*schedulerv1.ListJobsRequest)(nil), &schedulerv1.ListJobsResponse{Jobs: []*schedulerv1.Job{waits}})
	answer(g, schedulerv1.JobService_GetJob_FullMethodName, (*schedulerv1.GetJobRequest)(nil), &schedulerv1.GetJobResponse{Job: waits})
	answer(g, schedulerv1.JobService_SubmitCsr_FullMethodName, (*schedulerv1.SubmitCsrRequest)(nil), &schedulerv1.SubmitCsrResponse{})
	answer(g, inventoryv1.CertificateService_GetCertificate_FullMethodName, (*inventoryv1.GetCertificateRequest)(nil),
		&inventoryv1.GetCertificateResponse{Certificate: &inventoryv1.Certificate{CurrentVersion: 1}})
	on(g, inventoryv1.CertificateService_RevokeCertificate_FullMethodName, func(*inventoryv1.RevokeCertificateRequest) (*inventoryv1.RevokeCertificateResponse, error) {
		return nil, errs.New(errs.Conflict, "NO", "the CA will not")
	})
	answer(g, inventoryv1.CertificateService_DeleteCertificate_FullMethodName, (*inventoryv1.DeleteCertificateRequest)(nil), &inventoryv1.DeleteCertificateResponse{})

	r := g.run(t, "smoke", "--timeout", "1s")
	require.Equal(t, 4, r.code)
	require.Equal(t, "ok ready, ok create, ok job, FAILED issue, FAILED revoke, ok archive", verdicts(r.out))
	require.ErrorContains(t, r.failure, "step issue failed: not finished after 1s")
	require.Contains(t, r.err, "not cleaned up: step revoke failed: the CA will not")
}
