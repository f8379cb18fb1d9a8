package client_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/config"
	"github.com/certctl/certctl/pkg/errs"
	auditv1 "github.com/certctl/certctl/proto/gen/go/certctl/audit/v1"
	inventoryv1 "github.com/certctl/certctl/proto/gen/go/certctl/inventory/v1"
	schedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client"
)

// refuse lets getting a certificate fail.
func refuse(g *gateway, err error) {
	on(g, inventoryv1.CertificateService_GetCertificate_FullMethodName, func(*inventoryv1.GetCertificateRequest) (*inventoryv1.GetCertificateResponse, error) {
		return nil, err
	})
}

func TestErrorsOfTheServerSayWhatToDo(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	var v errs.Violations
	v.Add("dns_names[0]", "%q is not a DNS name", "a b\x1b[2J")
	v.Add("name", "is needed")
	for want, err := range map[string]error{
		"certificate cert-a not found": errs.New(errs.NotFound, "CERTIFICATE_NOT_FOUND", "certificate cert-a not found"),
		"the server refused the request:\n  dns_names[0]: \"a b\\x1b[2J\" is not a DNS name\n  name: is needed": v.Err(),
		"job job-9 is open\nfollow it with: certctl jobs watch job-9":                                           errs.New(errs.Conflict, "JOB_OPEN", "job job-9 is open").With("job_id", "job-9"),
		"not due\nrenew it all the same with --force":                                                           errs.New(errs.Conflict, "NOT_DUE", "not due"),
		"is revoked": errs.New(errs.Conflict, "WRONG_STATE", "is revoked"),
		"no\nthe role of the API key (from " + filepath.Join(g.dir, "api-key") + ") does not allow it": errs.New(errs.PermissionDenied, "ROLE", "no"),
		"own job\nsomebody else has to do it, with an API key of another name":                         errs.New(errs.PermissionDenied, "OWN_REQUEST", "own job"),
		"too many\ntry again in 3s": errs.New(errs.ResourceExhausted, "RATE", "too many").RetryAfter(3 * time.Second),
		"revision 3\nit was changed meanwhile: get it again and repeat the change": errs.New(errs.PreconditionFailed, "REVISION", "revision 3"),
		"inventory does not answer\ntry again in a moment":                         errs.New(errs.Unavailable, "AWAY", "inventory does not answer"),
		g.url + " did not answer in time":                                          errs.New(errs.DeadlineExceeded, "", ""),
		"internal error\nthe server's log has more, under request id req-1":        errors.New("secret detail"),
	} {
		refuse(g, err)
		r := g.run(t, "certificates", "get", "cert-a")
		require.EqualError(t, r.failure, want)
		require.Empty(t, r.out)
		require.Empty(t, r.err, "main prints errors")
		if errs.IsKind(err, errs.NotFound) {
			require.Equal(t, 3, r.code)
		} else {
			require.Equal(t, 1, r.code)
		}
	}
}

func TestAWrongCommandLineIsAUsageError(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	for line, want := range map[string]string{
		"certificates lst":                           `"lst" is no command of "certctl certificates"; did you mean list?`,
		"certificates get":                           "accepts 1 arg(s), received 0\nusage: certctl certificates get ID",
		"certificates list --nope":                   "unknown flag: --nope",
		"certificates list --status nope":            "write one of PENDING, ACTIVE, EXPIRED, REVOKED, ARCHIVED",
		"certificates list --expires-before soon":    "write a time, such as 2026-01-31T12:00:00Z, 2026-01-31, +30d or -1h",
		"certificates list --label x":                "write key=value",
		"certificates list -o xml":                   `output "xml" is not one of table, json, yaml, name`,
		"certificates list --all --page-token x":     "none of the others can be",
		"policies create --renew-at much":            "write a number",
		"policies create --automatic=perhaps":        "write true or false",
		"policies create --renew-before 12":          "write a duration, such as 90d",
		"targets create --set x":                     "--set x: write KEY=VALUE",
		"targets create --set-json x={":              "--set-json x: ",
		"targets create -f /does/not/exist":          "no such file",
		"certificates list --ca /does/not/exist":     "the CA cannot be read",
		"certificates list --url http://127.0.0.1:1": "https",
		"certificates list --url https://h/path":     "write https://HOST or https://HOST:PORT",
		"version extra":                              "unknown command",
	} {
		r := g.run(t, strings.Fields(line)...)
		require.ErrorContains(t, r.failure, want, line)
		require.Equal(t, 2, r.code, "%s: %v", line, r.failure)
	}
}

func TestACommandWithOthersBelowShowsItsHelp(t *testing.T) {
	t.Parallel()
	r := program{}.run(t, "certificates")
	require.NoError(t, r.failure)
	require.Contains(t, r.out, "revoke")
}

func TestWithoutAServerTheClientSaysHowToStartOne(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "none")
	r := program{environ: []string{"CERTCTL_DATA_DIR=" + dir}}.run(t, "agents", "list")
	require.Equal(t, 2, r.code)
	require.EqualError(t, r.failure, "no server is named, and there is none in "+dir+
		"\nstart one here with: certctl serve\nor name its data directory with --data-dir, or set CERTCTL_URL, CERTCTL_API_KEY and CERTCTL_CA for one elsewhere")
}

func TestADataDirectoryThatCannotBeReadSaysSo(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	// A directory in the place of the file fails for root too.
	require.NoError(t, os.Remove(filepath.Join(g.dir, "api-key")))
	require.NoError(t, os.Mkdir(filepath.Join(g.dir, "api-key"), 0o700))
	r := g.run(t, "agents", "list")
	require.Equal(t, 2, r.code)
	require.ErrorContains(t, r.failure, filepath.Join(g.dir, "api-key")+" of the local server cannot be read")
	require.ErrorContains(t, r.failure, "run this as the user that runs `certctl serve`")
}

func TestAServerThatIsNotThereSaysSo(t *testing.T) {
	t.Parallel()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := lis.Addr().String()
	require.NoError(t, lis.Close())
	g := newGateway(t)
	for _, args := range [][]string{{"agents", "list"}, {"version"}} {
		r := g.run(t, append(args, "--url", "https://"+address)...)
		require.Equal(t, 1, r.code)
		require.ErrorContains(t, r.failure, "https://"+address+" cannot be reached: ")
		require.ErrorContains(t, r.failure, "connection refused")
		require.ErrorContains(t, r.failure, "is the server running? Start one with: certctl serve")
	}
}

func TestACAThatIsNotTrustedSaysSo(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	environ := []string{"CERTCTL_URL=" + g.url, "CERTCTL_API_KEY=" + testKey, "CERTCTL_DATA_DIR=" + t.TempDir()}
	for _, args := range [][]string{{"agents", "list"}, {"version"}, {"certificates", "renew", "x"}} {
		r := program{environ: environ}.run(t, args...)
		require.Equal(t, 1, r.code)
		require.EqualError(t, r.failure, "the certificate of "+g.url+" is from a CA that is not trusted (trusted: the system's CAs)\n"+
			"name the file of its CA with --ca or CERTCTL_CA; `certctl serve` keeps it as ca.crt in its data directory")
	}
	r := program{environ: append(environ, "CERTCTL_CA="+filepath.Join(g.dir, "ca.crt"))}.run(t, "version")
	require.NoError(t, r.failure)
	r = program{environ: append(environ, "CERTCTL_CA="+filepath.Join(g.dir, "url"))}.run(t, "agents", "list")
	require.Equal(t, 2, r.code)
	require.ErrorContains(t, r.failure, "holds no certificate in PEM")
}

func TestACertificateForAnotherNameSaysSo(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	r := g.run(t, "agents", "list", "--url", strings.Replace(g.url, "127.0.0.1", "localhost", 1))
	require.ErrorContains(t, r.failure, "is for another name")
	require.ErrorContains(t, r.failure, "CERTCTL_TLS_NAMES")
}

func TestAKeyThatIsNotRightSaysWhereItCameFrom(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, []byte("wrong-from-file\n"), 0o600))
	base := []string{"CERTCTL_DATA_DIR=" + g.dir}
	for want, p := range map[string]struct{ environ, args []string }{
		"CERTCTL_API_KEY;":      {environ: []string{"CERTCTL_API_KEY=wrong"}},
		"CERTCTL_API_KEY_FILE;": {environ: []string{"CERTCTL_API_KEY_FILE=" + file}},
		file + ";":              {environ: []string{"CERTCTL_API_KEY=" + testKey}, args: []string{"--api-key-file", file}},
	} {
		r := program{environ: append(base, p.environ...)}.run(t, append(p.args, "agents", "list")...)
		if len(p.args) > 0 {
			r = program{environ: append(base, p.environ...)}.run(t, append([]string{"agents", "list"}, p.args...)...)
		}
		require.Equal(t, 1, r.code)
		require.EqualError(t, r.failure, "the API key is not valid\nthe API key was from "+want+" is it one of CERTCTL_AUTH_SECRET of the server?")
		require.NotContains(t, r.failure.Error(), "wrong")
	}
	require.NoError(t, os.WriteFile(file, []byte("two\nlines"), 0o600))
	r := g.run(t, "agents", "list", "--api-key-file", file)
	require.Equal(t, 2, r.code)
	require.ErrorContains(t, r.failure, "what is in "+file+" is no API key")
	require.NoError(t, os.Remove(filepath.Join(g.dir, "api-key")))
	require.ErrorContains(t, g.run(t, "agents", "list").failure, "no API key was sent: set CERTCTL_API_KEY")
}

func TestSettingsAreStrict(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	pagesOf(g, 1)
	r := program{environ: []string{"CERTCTL_DATA_DIR=" + g.dir, "CERTCTL_API_KEZ=x"}}.run(t, "certificates", "list")
	require.Equal(t, 2, r.code)
	require.ErrorContains(t, r.failure, "did you mean CERTCTL_API_KEY?")
	r = program{environ: []string{"CERTCTL_DATA_DIR=" + g.dir, "CERTCTL_QUITE_ANOTHER_THING=x"}}.run(t, "certificates", "list", "-o", "name")
	require.NoError(t, r.failure)
	require.Equal(t, "c0\n", r.out)
	require.Contains(t, r.err, "warning: CERTCTL_QUITE_ANOTHER_THING is set")
}

func TestSettingsAreDocumented(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	require.NoError(t, config.Document(&b, "Client", client.Settings{}))
	for _, want := range []string{"`CERTCTL_URL`", "`CERTCTL_API_KEY` or `CERTCTL_API_KEY_FILE`", "`CERTCTL_CA`", "`CERTCTL_DATA_DIR`"} {
		require.Contains(t, b.String(), want)
	}
}

func TestTheRecordIsVerified(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	resp := &auditv1.VerifyEventsResponse{Valid: true, EventsChecked: 42, Head: &auditv1.Checkpoint{Sequence: 42, Hash: "abc"}}
	on(g, auditv1.AuditService_VerifyEvents_FullMethodName, func(*auditv1.VerifyEventsRequest) (*auditv1.VerifyEventsResponse, error) { return resp, nil })

	require.Equal(t, "the record is intact: 42 events checked, head 42 abc\n", g.ok(t, "audit", "verify", "--first", "1").out)
	require.Equal(t, int64(1), requests[*auditv1.VerifyEventsRequest](g, auditv1.AuditService_VerifyEvents_FullMethodName)[0].GetFirstSequence())

	resp = &auditv1.VerifyEventsResponse{EventsChecked: 7, FirstInvalidEvent: &auditv1.InvalidEvent{Sequence: 7, Id: "evt-7", Reason: "HASH_MISMATCH", Message: "the hash does not fit"}}
	r := g.run(t, "audit", "verify", "-o", "json")
	require.Equal(t, 1, r.code)
	require.JSONEq(t, `false`, jsonField(t, r.out, "valid"))
	require.ErrorContains(t, r.failure, "the record is not intact: event 7 (evt-7): the hash does not fit (HASH_MISMATCH)")
	require.ErrorContains(t, r.failure, "somebody changed the audit log's database")

	resp.FirstInvalidEvent = &auditv1.InvalidEvent{Sequence: 2, Reason: "CHECKPOINT_MISMATCH", Message: "the checkpoint does not fit"}
	r = g.run(t, "audit", "verify")
	require.ErrorContains(t, r.failure, "the record is not intact: event 2: the checkpoint does not fit (CHECKPOINT_MISMATCH)")
	require.ErrorContains(t, r.failure, "the internal secret is not the one that the log was written with")
}

func TestVersionShowsClientAndServer(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	golden(t, `
	client  dev     unknown
	server  v9.8.7  abcdef0
	`, g.ok(t, "version").out)
	require.JSONEq(t, `{"client":{"version":"dev","commit":"unknown"},"server":{"version":"v9.8.7","commit":"abcdef0"}}`, g.ok(t, "version", "-o", "json").out)
	require.Equal(t, "client  dev  unknown\n", g.ok(t, "version", "--client").out)

	r := program{environ: []string{"CERTCTL_DATA_DIR=" + filepath.Join(t.TempDir(), "none")}}.run(t, "version")
	require.NoError(t, r.failure)
	require.Equal(t, "client  dev  unknown\n", r.out)
	require.Contains(t, r.err, "no server is named")

	r = program{environ: []string{"CERTCTL_DATA_DIR=" + g.dir, "CERTCTL_API_KEY=wrong"}}.run(t, "version")
	require.Equal(t, 1, r.code)
	require.ErrorContains(t, r.failure, "401")
	require.Equal(t, "client  dev  unknown\n", r.out)
}

func TestExplainIsForPeople(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, schedulerv1.JobService_ExplainCertificate_FullMethodName, &schedulerv1.ExplainCertificateRequest{}, &schedulerv1.ExplainCertificateResponse{
		CertificateId: "cert-a", Summary: "A renewal waits for approval.", Status: "ACTIVE",
		Decisions: []*schedulerv1.Decision{{Subject: "renew_time", Outcome: "in the last third", Rule: "policy pol-default"}},
		Next:      &schedulerv1.NextStep{Action: "the approval times out", Time: at(7 * day)},
		Blocker:   &schedulerv1.Blocker{Reason: "AWAITING_APPROVAL", Message: "nobody has approved yet", Owner: "an approver other than ci"},
		OpenJob:   &schedulerv1.Job{Id: "job-1", Type: schedulerv1.Job_RENEW, Status: schedulerv1.Job_AWAITING_APPROVAL, RequestedBy: "ci"},
		RenewTime: at(-time.Hour),
	})
	golden(t, `
	A renewal waits for approval.

	status      ACTIVE
	blocked     nobody has approved yet (AWAITING_APPROVAL)
	            who can help: an approver other than ci
	next        the approval times out, in 7d (2026-03-08T12:00:00Z)
	renewal     60m ago (2026-03-01T11:00:00Z)
	open        job job-1 (RENEW) is AWAITING_APPROVAL: somebody other than ci approves it with: certctl jobs approve job-1
	decided     renew_time: in the last third
	            because of policy pol-default
	`, g.ok(t, "certificates", "explain", "cert-a").out)
}

func TestExplainSaysWhereTheAnswersOfTheCAAre(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	answer(g, schedulerv1.JobService_ExplainCertificate_FullMethodName, &schedulerv1.ExplainCertificateRequest{}, &schedulerv1.ExplainCertificateResponse{
		CertificateId: "cert-a", Summary: "The CA has the order.", Status: "PENDING",
		OpenJob: &schedulerv1.Job{Id: "job-1", Type: schedulerv1.Job_ISSUE, Status: schedulerv1.Job_AWAITING_CA, OrderId: "ord-1"},
	})
	golden(t, `
	The CA has the order.

	status      PENDING
	open        job job-1 (ISSUE) is AWAITING_CA: the CA has ord-1
	            what the CA says: certctl orders get ord-1
	`, g.ok(t, "certificates", "explain", "cert-a").out)
}

func TestEveryCommandHasHelp(t *testing.T) {
	t.Parallel()
	seen := 0
	var walk func(path []string, c *cobra.Command)
	walk = func(path []string, c *cobra.Command) {
		path = append(slices.Clone(path), c.Name())
		require.NotEmpty(t, c.Short, path)
		r := program{}.run(t, append(path, "--help")...)
		require.NoError(t, r.failure, path)
		require.Contains(t, r.out, "certctl "+strings.Join(path, " "))
		seen++
		for _, below := range c.Commands() {
			walk(path, below)
		}
	}
	for _, c := range client.Commands(client.Config{}) {
		walk(nil, c)
	}
	require.Greater(t, seen, 60)
}
