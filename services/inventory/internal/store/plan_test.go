package store_test

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

// seed makes 100,000 certificates with a version each; every filter of the test below names a small part of them.
const seed = `
INSERT INTO agents (id, name, instance_id, status) SELECT 'agent-' || g, 'agent-' || g, 'i', 'ONLINE' FROM generate_series(1, 200) g;
INSERT INTO targets (id, name, agent_id, type) SELECT 'target-' || g, 'target-' || g, 'agent-' || (1 + g % 200), 'file' FROM generate_series(1, 5000) g;
INSERT INTO certificates (id, name, dns_names, search_text, issuer_id, profile_id, policy_id, owner, team, environment, labels, status, current_version,
 not_after, revocation_time, create_time)
SELECT 'cert-' || g, 'host' || g, ARRAY['host' || g || '.example.com'], 'host' || g || E'\nhost' || g || '.example.com', 'iss-' || g % 100, 'prof-' || g % 100, 'pol-' || g % 100,
 'owner-' || g % 500, 'team-' || g % 200, 'env-' || g % 50, jsonb_build_object('app', 'app-' || g % 1000),
 CASE WHEN g % 200 = 0 THEN 'EXPIRED' WHEN g % 201 = 0 THEN 'PENDING' ELSE 'ACTIVE' END, 1, now() + (g || ' minutes')::interval, NULL, now() - (g || ' seconds')::interval
FROM generate_series(1, 100000) g;
INSERT INTO certificate_versions (certificate_id, version, order_id, serial_number, fingerprint_sha256, public_key_sha256, issuer_dn, subject_dn, not_before, not_after, certificate_pem)
SELECT 'cert-' || g, 1, 'ord-' || g, to_hex(g), md5(g::text), 'k', 'i', 's', now(), now(), 'p' FROM generate_series(1, 100000) g;
INSERT INTO certificate_targets (certificate_id, target_id) SELECT 'cert-' || g, 'target-' || (1 + g % 5000) FROM generate_series(1, 100000) g;
ANALYZE;`

func TestEveryFilterAndOrderOfCertificatesUsesAnIndex(t *testing.T) {
	t.Parallel()
	d := testpg.NewDatabase(t, store.Schema())
	db := d.Open(t, "inventory")
	s, err := store.New(store.Config{}, db)
	require.NoError(t, err)
	admin, err := d.Admin(t).Acquire(t.Context())
	require.NoError(t, err)
	defer admin.Release()
	_, err = admin.Exec(t.Context(), "SET search_path = inventory; "+seed)
	require.NoError(t, err)

	at := time.Now().Add(3 * time.Hour)
	late := time.Now().Add(99_000 * time.Minute)
	for name, c := range map[string]struct {
		filter store.CertificateFilter
		order  string
		after  bool
	}{
		"none":           {},
		"status":         {filter: store.CertificateFilter{Statuses: []string{"EXPIRED"}}},
		"statuses":       {filter: store.CertificateFilter{Statuses: []string{"EXPIRED", "PENDING"}}},
		"issuer":         {filter: store.CertificateFilter{IssuerID: "iss-7"}},
		"profile":        {filter: store.CertificateFilter{ProfileID: "prof-7"}},
		"policy":         {filter: store.CertificateFilter{PolicyID: "pol-7"}},
		"target":         {filter: store.CertificateFilter{TargetID: "target-7"}},
		"agent":          {filter: store.CertificateFilter{AgentID: "agent-7"}},
		"owner":          {filter: store.CertificateFilter{Owner: "owner-7"}},
		"team":           {filter: store.CertificateFilter{Team: "team-7"}},
		"environment":    {filter: store.CertificateFilter{Environment: "env-7"}},
		"name":           {filter: store.CertificateFilter{Name: "OST77777.exam"}},
		"serial":         {filter: store.CertificateFilter{SerialNumber: "abc"}},
		"fingerprint":    {filter: store.CertificateFilter{FingerprintSHA256: "abc"}},
		"expires before": {filter: store.CertificateFilter{ExpiresBefore: &at}},
		"expires after":  {filter: store.CertificateFilter{ExpiresAfter: &late}},
		"label":          {filter: store.CertificateFilter{Labels: map[string]string{"app": "app-7"}}},
		"by name":        {order: "name", after: true},
		"by end":         {order: "expires_at desc", after: true},
		"by creation":    {order: "create_time", after: true},
		"by change":      {order: "update_time desc", after: true},
	} {
		order, err := s.SortingOf(store.Certificates).Parse(c.order)
		require.NoError(t, err)
		slice := store.Slice{Order: order, Limit: 51}
		if c.after {
			key := page.TimeValue(time.Now())
			if c.order == "name" {
				key = page.TextValue("host5")
			}
			slice.After = page.Cursor{key, page.TextValue("cert-5")}
		}
		statements, args, err := store.SearchCertificates(c.filter, slice).Statements()
		require.NoError(t, err)
		for _, sql := range statements {
			// As the service's own role, through a plan with the values.
			rows, err := db.Pool.Query(t.Context(), "EXPLAIN "+sql, args...)
			require.NoError(t, err, name)
			plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
			require.NoError(t, err, name)
			text := strings.Join(plan, "\n")
			require.NotContains(t, text, "Seq Scan", "%s:\n%s", name, text)
			require.Contains(t, text, "Index", "%s:\n%s", name, text)
			if c.order != "" {
				require.NotContains(t, text, "Sort Key", "%s:\n%s", name, text)
			}
		}
		_, err = s.ListCertificates(t.Context(), c.filter, slice)
		require.NoError(t, err, name)
	}

	testpg.Vacuum(t, admin, "inventory.certificates")
	for _, sql := range []string{
		`SELECT status, count(*)::int AS count FROM certificates GROUP BY status`,
		`SELECT count(*)::int FROM certificates WHERE status = 'ACTIVE' AND COALESCE(not_after, 'infinity'::timestamptz) < now() + interval '7 days'`,
	} {
		rows, err := db.Pool.Query(t.Context(), "EXPLAIN "+sql)
		require.NoError(t, err)
		plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		require.Contains(t, strings.Join(plan, "\n"), "Index Only Scan", "the summary reads no whole rows")
	}

	// What has a status or an end may lie far away in an order: the index alone says so, without a row read for it.
	soon := time.Now().Add(1000 * time.Minute)
	for _, c := range []struct {
		filter    store.CertificateFilter
		order     string
		statement int
		index     string
	}{
		{store.CertificateFilter{ExpiresBefore: &soon}, "create_time", 0, "certificates_by_create_time"},
		{store.CertificateFilter{ExpiresBefore: &soon}, "update_time desc", 0, "certificates_by_update_time"},
		{store.CertificateFilter{ExpiresAfter: &soon}, "name", 0, "certificates_by_name"},
		{store.CertificateFilter{Statuses: []string{"ACTIVE"}, ExpiresBefore: &soon}, "update_time", 0, "certificates_by_status_change"},
		{store.CertificateFilter{Team: "team-7", Statuses: []string{"ACTIVE"}, ExpiresBefore: &soon}, "name desc", 1, "certificates_by_team"},
	} {
		order, err := s.SortingOf(store.Certificates).Parse(c.order)
		require.NoError(t, err)
		statements, args, err := store.SearchCertificates(c.filter, store.Slice{Order: order, Limit: 51}).Statements()
		require.NoError(t, err)
		rows, err := db.Pool.Query(t.Context(), "EXPLAIN "+statements[c.statement], args...)
		require.NoError(t, err)
		plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		require.Regexp(t, "Index Only Scan.* using "+c.index, strings.Join(plan, "\n"))
	}

	// An index that nobody could use for the place of a page or for what the filter names would still be an index: so
	// bound what is read, too.
	began := time.Now()
	found, err := s.ListCertificates(t.Context(), store.CertificateFilter{Name: "host77777"}, firstPage(t, s))
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Less(t, time.Since(began), time.Second)
}

// TestALookForLateWorkReadsIndexesAlone: it is made every few seconds, with as much work that is done, open or to be looked at later as
// there is.
func TestALookForLateWorkReadsIndexesAlone(t *testing.T) {
	t.Parallel()
	d := testpg.NewDatabase(t, store.Schema())
	db := d.Open(t, "inventory")
	s, err := store.New(store.Config{}, db)
	require.NoError(t, err)
	admin, err := d.Admin(t).Acquire(t.Context())
	require.NoError(t, err)
	defer admin.Release()
	_, err = admin.Exec(t.Context(), `SET search_path = inventory;
INSERT INTO agents (id, name, instance_id, status) VALUES ('agent-1', 'agent-1', 'i', 'ONLINE');
INSERT INTO targets (id, name, agent_id, type) SELECT 'target-' || g, 'target-' || g, 'agent-1', 'file' FROM generate_series(1, 100) g;
INSERT INTO certificates (id, name, issuer_id, profile_id, policy_id, search_text, status) SELECT 'cert-' || g, 'c' || g, 'i', 'p', 'p', 'c', 'PENDING' FROM generate_series(1, 1001) g;
INSERT INTO deployments (id, certificate_id, target_id, agent_id, status, desired_version, due_time, deadline_time)
 SELECT 'dep-' || g, 'cert-' || 1 + g / 100, 'target-' || 1 + g % 100, 'agent-1', CASE WHEN g % 100 = 0 THEN 'DEPLOYING' ELSE 'SERVED' END, 1,
 now() + interval '1 hour' + (g || ' minutes')::interval, now() + interval '1 year' FROM generate_series(0, 29999) g;
INSERT INTO assignments (id, agent_id, kind, status, mailbox, certificate_id, deployment_id, due_time, deadline_time, lease_id, lease_until, end_time)
 SELECT gen_random_uuid(), 'agent-1', 'DEPLOY', CASE g % 100 WHEN 0 THEN 'OPEN' WHEN 1 THEN 'LEASED' ELSE 'DONE' END, g, 'cert-1', 'dep-' || g, now(), now() + interval '1 hour',
 CASE g % 100 WHEN 1 THEN gen_random_uuid() END, CASE g % 100 WHEN 1 THEN now() + interval '1 hour' END, CASE WHEN g % 100 > 1 THEN now() END FROM generate_series(0, 29999) g;
ANALYZE`)
	require.NoError(t, err)
	testpg.Vacuum(t, admin, "inventory.assignments", "inventory.deployments")

	found, err := s.Late(t.Context())
	require.NoError(t, err)
	require.Zero(t, found)
	rows, err := db.Pool.Query(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) "+store.LateSQL)
	require.NoError(t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	plan := strings.Join(lines, "\n")
	require.NotContains(t, plan, "Seq Scan", plan)
	for _, index := range []string{"assignments_lease", "assignments_deadline", "deployments_due"} {
		require.Contains(t, plan, index, plan)
	}
	buffers := regexp.MustCompile(`Buffers: shared hit=(\d+)`).FindStringSubmatch(plan)
	require.Len(t, buffers, 2, plan)
	n, err := strconv.Atoi(buffers[1])
	require.NoError(t, err)
	require.LessOrEqual(t, n, 12, "a page or a few of each index: %s", plan)
}

func firstPage(t *testing.T, s *store.Store) store.Slice {
	t.Helper()
	order, err := s.SortingOf(store.Certificates).Parse("")
	require.NoError(t, err)
	return store.Slice{Order: order, Limit: 51}
}
