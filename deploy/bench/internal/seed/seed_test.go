package seed_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/deploy/bench/internal/seed"
	"github.com/certctl/certctl/deploy/bench/internal/site"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
)

const (
	// patience is how long a condition may take on a busy machine before it counts as failed.
	patience = 60 * time.Second
	interval = 50 * time.Millisecond
)

// binary is the program certctl.
var binary string

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "certctl-seed-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "certctl")
	build := exec.Command("go", "build", "-o", binary, "github.com/certctl/certctl/services/cmd/certctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build certctl: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// installation is a certctl that can be stopped, filled and started again.
type installation struct {
	*site.Site
	conn *pgx.Conn
}

func install(t *testing.T) *installation {
	t.Helper()
	in := &installation{}
	var err error
	in.Site, err = site.Open(t.Context(), site.Config{
		Dir: testpg.Dir(t), Binary: binary,
		Postgres: map[string]string{"fsync": "off", "wal_level": "minimal", "max_wal_senders": "0"},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, in.Stop(context.WithoutCancel(t.Context()))) })
	in.conn, err = in.Connect(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, in.conn.Close(context.WithoutCancel(t.Context()))) })
	return in
}

// worked waits until every loop of every service has run without an error.
func (in *installation) worked(t *testing.T) {
	t.Helper()
	eventually(t, "", func() string { return in.idle(t) })
}

// eventually waits until a look gives what is wanted, and shows what it gave last.
func eventually(t *testing.T, want string, look func() string) {
	t.Helper()
	got := ""
	defer func() {
		if t.Failed() {
			t.Log(got)
		}
	}()
	require.Eventually(t, func() bool {
		got = look()
		return got == want
	}, patience, interval)
}

func (in *installation) idle(t *testing.T) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+in.Metrics+"/loops", nil)
	require.NoError(t, err)
	client := &http.Client{Timeout: patience}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer func() { require.NoError(t, resp.Body.Close()) }()
	services := map[string][]struct {
		Name, LastError string
		Runs            int
	}{}
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&services))
	if len(services) < len(site.Services()) {
		return "there are no loops yet"
	}
	for service, loops := range services {
		for _, l := range loops {
			if l.Runs == 0 || l.LastError != "" {
				return fmt.Sprintf("%s, %s: %d runs %s", service, l.Name, l.Runs, l.LastError)
			}
		}
	}
	return ""
}

// call asks the API, which has to agree, and gives the answer.
func (in *installation) call(t *testing.T, method, path, body string) map[string]any {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, in.URL+path, bytes.NewBufferString(body))
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+in.Key)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: in.TLS(), DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer func() { require.NoError(t, resp.Body.Close()) }()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s %s: %s", method, path, text)
	answer := map[string]any{}
	require.NoError(t, json.Unmarshal(text, &answer))
	return answer
}

func (in *installation) text(t *testing.T, sql string) string {
	t.Helper()
	var s string
	require.NoError(t, in.conn.QueryRow(t.Context(), sql).Scan(&s))
	return s
}

// content is a hash over all rows of a table.
func (in *installation) content(t *testing.T, table string) string {
	t.Helper()
	return in.text(t, "SELECT coalesce(md5(string_agg(r::text, ' ' ORDER BY r::text)), '') FROM "+table+" r")
}

func TestAFilledInstallationServesItsRowsAndHasNothingToDo(t *testing.T) {
	t.Parallel()
	in := install(t)
	cfg := seed.Config{URL: in.DatabaseURL, Size: seed.Of(1000), Seed: 7, InternalSecret: in.Secret}
	require.NoError(t, in.Start(t.Context()))
	in.worked(t)
	own := in.text(t, "SELECT max(sequence)::text FROM audit.events")
	require.NoError(t, in.StopCertctl())
	schema := in.shape(t)

	_, err := seed.Fill(t.Context(), cfg)
	require.NoError(t, err)
	sum, err := seed.Fill(t.Context(), cfg) // what an earlier one made is replaced
	require.NoError(t, err)
	require.Equal(t, schema, in.shape(t), "indexes and constraints are as they were")
	in.counts(t, cfg.Size, sum, own)

	before := map[string]string{}
	for table := range sum.Rows {
		before[table] = in.content(t, table)
	}
	require.NoError(t, in.Start(t.Context()))
	in.worked(t)
	for table, content := range before {
		if strings.HasPrefix(table, "audit.") || strings.HasPrefix(table, "issuance.crl") {
			continue // the CRL is made, and on the record
		}
		require.Equal(t, content, in.content(t, table), "%s was changed", table)
	}
	require.Equal(t, fmt.Sprint(cfg.Size.Revoked), in.text(t, "SELECT max(entries)::text FROM issuance.crls WHERE issuer_id = 'iss-local'"))
	in.serves(t, cfg.Size)
	in.renews(t)
}

// shape is all that the tables have of constraints and indexes.
func (in *installation) shape(t *testing.T) string {
	t.Helper()
	return in.text(t, `SELECT string_agg(line, E'\n' ORDER BY line) FROM (
 SELECT conrelid::regclass || ' ' || conname || ' ' || convalidated || ' ' || pg_get_constraintdef(oid) AS line FROM pg_constraint WHERE conrelid <> 0
 UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid::regclass::text ~ '^(inventory|issuance|renewalscheduler|audit)') l`)
}

func (in *installation) counts(t *testing.T, size seed.Size, sum seed.Summary, own string) {
	t.Helper()
	require.Positive(t, sum.Bytes)
	for table, n := range sum.Rows {
		require.Equal(t, fmt.Sprint(n), in.text(t, "SELECT count(*)::text FROM "+table), table)
	}
	for table, n := range map[string]int{
		"inventory.certificates": size.Certificates, "inventory.agents": size.Agents, "renewalscheduler.plans": size.Certificates,
		"renewalscheduler.jobs": size.Jobs, "inventory.discovered_certificates": size.Discovered, "issuance.revocations": size.Revoked,
	} {
		require.EqualValues(t, n, sum.Rows[table], table)
	}
	require.Equal(t, own, in.text(t, fmt.Sprintf("SELECT (max(sequence) - %d)::text FROM audit.events", size.Events)), "what services recorded stays")
	require.Equal(t, "0", in.text(t, `SELECT (SELECT count(*) FROM inventory.certificate_versions v LEFT JOIN issuance.orders o ON o.id = v.order_id
 LEFT JOIN issuance.issued_certificates i ON i.order_id = v.order_id LEFT JOIN renewalscheduler.jobs j ON j.id = o.job_id
 LEFT JOIN renewalscheduler.job_keys k ON k.job_id = j.id AND k.order_id = o.id AND k.version = v.version AND k.agent_id = v.agent_id
 WHERE i.fingerprint_sha256 IS DISTINCT FROM v.fingerprint_sha256 OR i.serial_number <> v.serial_number OR o.serial_number <> v.serial_number
 OR o.certificate_id <> v.certificate_id OR k.job_id IS NULL)::text`), "versions, orders and jobs agree")
	require.Equal(t, "0", in.text(t, `SELECT (SELECT count(*) FROM inventory.deployments d JOIN inventory.targets t ON t.id = d.target_id
 JOIN inventory.certificate_versions v ON v.certificate_id = d.certificate_id AND v.version = d.desired_version
 LEFT JOIN inventory.certificate_targets b ON b.certificate_id = d.certificate_id AND b.target_id = d.target_id
 WHERE t.agent_id <> d.agent_id OR v.agent_id <> d.agent_id OR b.target_id IS NULL)::text`), "deployments are where the keys are")
	require.Equal(t, "0", in.text(t, `SELECT ((SELECT count(*) FROM renewalscheduler.plans WHERE due_time < now() + interval '12 hours')
 + (SELECT count(*) FROM inventory.deployments WHERE due_time < now() + interval '1 day'))::text`), "nothing is due")
}

// serves asks for what users look at.
func (in *installation) serves(t *testing.T, size seed.Size) {
	t.Helper()
	list := func(path, collection string) map[string]any {
		items, ok := in.call(t, http.MethodGet, path, "")[collection].([]any)
		require.True(t, ok && len(items) > 0, path)
		first, ok := items[0].(map[string]any)
		require.True(t, ok, path)
		return first
	}
	certificate := fmt.Sprint(list("/api/v1/certificates?status=ACTIVE", "certificates")["id"])
	list("/api/v1/certificates/"+certificate+"/versions", "versions")
	in.call(t, http.MethodGet, "/api/v1/certificates/"+certificate+"/explain", "")
	deployment := fmt.Sprint(list("/api/v1/deployments", "deployments")["id"])
	in.call(t, http.MethodGet, "/api/v1/deployments/"+deployment, "")
	list("/api/v1/jobs", "jobs")
	list("/api/v1/orders", "orders")
	list("/api/v1/agents", "agents")
	list("/api/v1/targets", "targets")
	list("/api/v1/issuers", "issuers")
	list("/api/v1/audit", "events")
	list("/api/v1/discovered-certificates", "discovered_certificates")
	summary := in.call(t, http.MethodGet, "/api/v1/stats/summary", "")
	require.EqualValues(t, 0, summary["stuck"])
	statuses, ok := summary["certificates"].(map[string]any)
	require.True(t, ok)
	require.EqualValues(t, size.Revoked, statuses["REVOKED"])
	require.Equal(t, true, in.call(t, http.MethodPost, "/api/v1/audit/verify", "{}")["valid"])
}

// renews has one certificate renewed whose key the caller keeps: the scheduler agrees with what it finds of it, and waits for the CSR.
func (in *installation) renews(t *testing.T) {
	t.Helper()
	id := in.text(t, `SELECT min(p.id) FROM renewalscheduler.plans p JOIN renewalscheduler.plan_keys k ON k.certificate_id = p.id
 WHERE p.state = 'SCHEDULED' AND k.agent_id = '' AND p.policy_id = 'pol-default'`)
	in.call(t, http.MethodPost, "/api/v1/certificates/"+id+"/renew", `{"force": true}`)
	eventually(t, "AWAITING_CSR", func() string {
		return in.text(t, "SELECT state || error_message FROM renewalscheduler.jobs WHERE end_time IS NULL AND certificate_id = '"+id+"'")
	})
}

func TestTheRecordCanBeMadeLongerByItself(t *testing.T) {
	t.Parallel()
	in := install(t)
	require.NoError(t, in.Start(t.Context()))
	in.worked(t)
	require.NoError(t, in.StopCertctl())
	cfg := seed.Config{URL: in.DatabaseURL, Size: seed.Of(100), InternalSecret: in.Secret}
	_, err := seed.Fill(t.Context(), cfg)
	require.NoError(t, err)
	cfg.Size.Events = 12_000
	sum, err := seed.Events(t.Context(), cfg)
	require.NoError(t, err)
	require.Greater(t, sum.Rows["audit.events"], int64(12_000))
	require.EqualValues(t, 3, sum.Rows["audit.checkpoints"], "two on the way, and the end")
	require.EqualValues(t, 6, sum.Rows["audit.spans"], "those that are full")
	require.NoError(t, in.Start(t.Context()))
	answer := in.call(t, http.MethodPost, "/api/v1/audit/verify", "{}")
	require.Equal(t, true, answer["valid"], "%v", answer)
}

func TestADatabaseThatCertctlHasNotSeenIsRefused(t *testing.T) {
	t.Parallel()
	_, err := seed.Fill(t.Context(), seed.Config{URL: testpg.URL(t), Size: seed.Of(100), InternalSecret: secretbox.NewSecret("a secret of a test, long enough for all")})
	require.ErrorContains(t, err, "issuance.issuers")
}
