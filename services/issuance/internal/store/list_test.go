package store

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/lease"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/testpg"
)

const fill = `
INSERT INTO issuers (id, name, type, config, config_hash, enabled, create_time)
 SELECT 'iss-' || n, 'Issuer ' || n % 977, 'type-' || n % 50, '{}', 'hash', true, now() - n * interval '1 second' FROM generate_series(1, 100000) n;
INSERT INTO profiles (id, name, allowed_san_patterns, allow_wildcards, allowed_key_algorithms, extended_key_usages, max_validity_seconds,
 requires_approval, approval_timeout_seconds, create_time)
 SELECT 'prof-' || n, 'Profile ' || n % 977, '{}', true, '{ECDSA_P256}', '{SERVER_AUTH}', 3600, false, 3600, now() - n * interval '1 second'
 FROM generate_series(1, 100000) n;
INSERT INTO orders (id, certificate_id, job_id, issuer_id, profile_id, status, dns_names, ip_addresses, email_addresses, uris,
 extended_key_usages, lifetime_seconds, csr, csr_sha256, request_sha256, create_time, deadline_time, due_time, end_time)
 SELECT 'ord-' || n, 'cert-' || n % 20000, CASE WHEN n % 3 = 0 THEN '' ELSE 'job-' || n END, 'iss-' || 1 + n % 40, 'prof-1',
 CASE WHEN n % 500 = 0 THEN 'PENDING' WHEN n % 100 = 1 THEN 'FAILED' ELSE 'ISSUED' END, '{a.example.com}', '{}', '{}', '{}',
 '{SERVER_AUTH}', 3600, 'csr', 'sum', 'sum', now() - n * interval '1 second', now(),
 CASE WHEN n % 500 = 0 THEN now() + interval '1 hour' END, CASE WHEN n % 500 <> 0 THEN now() END FROM generate_series(1, 100000) n;
INSERT INTO issued_certificates (issuer_id, serial_number, order_id, certificate_id, fingerprint_sha256, not_before, not_after, certificate_pem)
 SELECT 'iss-' || 1 + n % 40, to_hex(n), 'ord-' || n, 'cert-' || n % 20000, 'f', now(), now() + n * interval '1 minute', 'pem' FROM generate_series(1, 100000) n;
INSERT INTO revocations (id, issuer_id, serial_number, certificate_id, reason, revocation_time, not_after, status, crl_number, due_time)
 SELECT 'rev-' || n, 'iss-' || 1 + n % 40, to_hex(n), 'cert-' || n % 20000, 1, now(), now() + n * interval '1 minute',
 CASE WHEN n % 700 = 0 THEN 'PENDING' ELSE 'DONE' END, CASE WHEN n % 1000 <> 0 THEN 1 END, CASE WHEN n % 700 = 0 THEN now() END FROM generate_series(1, 100000) n;
INSERT INTO crls (issuer_id, number, der, entries, this_update, next_update, generation, size, tail)
 SELECT 'iss-' || i, n, 'head', 40 * 250, now(), now(), n, 250 * 1024, 'tail' FROM generate_series(1, 40) i, generate_series(1, 10) n;
INSERT INTO crl_parts (issuer_id, generation, part, begin_time, entries, size, der)
 SELECT 'iss-' || i, n, p, now(), 40 * p, 1024 * p, convert_to(repeat('x', 1024), 'UTF8') FROM generate_series(1, 40) i, generate_series(1, 10) n, generate_series(1, 250) p;
UPDATE orders SET account = 'account-' || length(id) % 3, ca_key = substr(id, 5), issue_time = create_time WHERE status = 'ISSUED';
INSERT INTO orphans (id, issuer_id, account, ca_key, ca_reference, ca_state, dns_names, reason, message, create_time, status)
 SELECT 'ord-o' || n, 'iss-' || 1 + n % 40, 'account-1', 'k' || n, '{}', CASE WHEN n % 3 = 0 THEN 'ISSUED' ELSE 'PENDING' END, '{}', 'r', 'm',
 now() - n * interval '1 second', CASE WHEN n % 5 = 0 THEN 'OPEN' ELSE 'DISMISSED' END FROM generate_series(1, 100000) n;
`

func TestEveryListAndEverySweepUsesAnIndexOn100000Rows(t *testing.T) {
	t.Parallel()
	d := testpg.NewDatabase(t, Schema())
	db := d.Open(t, "issuance")
	_, err := db.Pool.Exec(t.Context(), fill)
	require.NoError(t, err)
	_, err = d.Admin(t).Exec(t.Context(), `ANALYZE issuance.issuers, issuance.profiles, issuance.orders, issuance.issued_certificates, issuance.revocations, issuance.orphans, issuance.crls, issuance.crl_parts`)
	require.NoError(t, err)
	spy := &spy{db: db.Pool, t: t}
	ctx := t.Context()

	byTime := sorting(t, "o.id", "o.create_time")
	for _, order := range []string{"create_time", "create_time desc"} {
		for name, f := range map[string]OrderFilter{
			"nothing":        {},
			"certificate":    {CertificateID: "cert-7"},
			"issuer":         {IssuerID: "iss-7"},
			"job":            {JobID: "job-7"},
			"status":         {Statuses: []string{"FAILED"}},
			"statuses":       {Statuses: []string{"PENDING", "UNKNOWN"}},
			"created before": {CreatedBefore: time.Now().Add(-time.Hour)},
			"created after":  {CreatedAfter: time.Now().Add(-time.Hour)},
			"all":            {Statuses: []string{"ISSUED"}, CertificateID: "cert-7", IssuerID: "iss-7", JobID: "job-7"},
		} {
			f.Page = pageAfter(t, byTime, order, page.TimeValue(time.Now().Add(-30*time.Minute)), "ord-1800")
			_, err := ListOrders(ctx, spy, f)
			require.NoError(t, err, name)
			_, err = ListOrphans(ctx, spy, f)
			require.NoError(t, err, name)
			f.Page.After = nil
			_, err = ListOrders(ctx, spy, f)
			require.NoError(t, err, name)
			_, err = ListOrphans(ctx, spy, f)
			require.NoError(t, err, name)
		}
		for _, kind := range []string{"", "type-7"} {
			_, err := ListIssuers(ctx, spy, IssuerFilter{Type: kind, Page: pageAfter(t, sorting(t, "i.id", "i.create_time"), order, page.TimeValue(time.Now()), "iss-1")})
			require.NoError(t, err)
		}
		_, err := ListProfiles(ctx, spy, pageAfter(t, sorting(t, "p.id", "p.create_time"), order, page.TimeValue(time.Now()), "prof-1"))
		require.NoError(t, err)
	}
	for _, kind := range []string{"", "type-7"} {
		_, err = ListIssuers(ctx, spy, IssuerFilter{Type: kind, Page: pageAfter(t, named(t, "i.id", "i.name"), "name", page.TextValue("Issuer 5"), "iss-1")})
		require.NoError(t, err)
	}
	_, err = ListProfiles(ctx, spy, pageAfter(t, named(t, "p.id", "p.name"), "name desc", page.TextValue("Profile 5"), "prof-1"))
	require.NoError(t, err)

	_, err = GetOrders(ctx, spy, []string{"ord-1", "ord-2"})
	require.NoError(t, err)
	_, err = CountOpenOrders(ctx, spy, "iss-1")
	require.NoError(t, err)
	_, err = CountOpenOrdersOfProfile(ctx, spy, "prof-1")
	require.NoError(t, err)
	_, err = CountStuck(ctx, spy)
	require.NoError(t, err)
	_, err = Revocable(ctx, spy, Sought{CertificateIDs: []string{"cert-7"}, Of: []string{"cert-8"}, SerialNumbers: []string{"8"}}, time.Now())
	require.NoError(t, err)
	_, err = RevocationsOf(ctx, spy, []SerialNumber{{"iss-7", "7"}})
	require.NoError(t, err)
	latest, unlisted, err := LatestCRL(ctx, spy, "iss-7")
	require.NoError(t, err)
	require.False(t, unlisted)
	_, err = GetCRL(ctx, spy, "iss-7", latest.Number)
	require.NoError(t, err)
	last, err := LastCRLPart(ctx, spy, "iss-7")
	require.NoError(t, err)
	require.Equal(t, latest.CRLExtent, last.CRLExtent)
	some, err := CRLEntries(ctx, spy, latest, 512)
	require.NoError(t, err)
	require.Len(t, some, 3*1024-512)
	require.NoError(t, PutCRLPart(ctx, spy, last, []byte("more")))
	listed, err := RevocationsListed(ctx, spy, "iss-7", time.Now(), "5", 10)
	require.NoError(t, err)
	require.Len(t, listed, 10)
	_, err = ListRevocations(ctx, spy, "iss-7", latest.Number+1, 10)
	require.NoError(t, err)
	latest.Number++
	stored, err := InsertCRL(ctx, spy, latest)
	require.NoError(t, err)
	require.True(t, stored)
	orders, err := OrderLeases()
	require.NoError(t, err)
	_, err = orders.Claim(ctx, spy, 10, time.Minute)
	require.NoError(t, err)
	revocations, err := RevocationLeases()
	require.NoError(t, err)
	_, err = revocations.Claim(ctx, spy, 10, time.Minute)
	require.NoError(t, err)
	share := lease.Shared{Limit: 10, LeaseFor: time.Minute, PerGroup: 4, Room: map[string]int{"iss-7": 1}}
	_, err = orders.ClaimShared(ctx, spy, share)
	require.NoError(t, err)
	_, err = revocations.ClaimShared(ctx, spy, share)
	require.NoError(t, err)
	agent := ""
	_, err = LastIssued(ctx, spy, "cert-7", "iss-8", &agent)
	require.NoError(t, err)
	_, err = LastIssued(ctx, spy, "cert-7", "", nil)
	require.NoError(t, err)
	_, err = KnownOrders(ctx, spy, "account-1", "iss-8", []string{"7", "8"}, []string{"ord-9"})
	require.NoError(t, err)
	_, err = LostNames(ctx, spy, "account-1")
	require.NoError(t, err)
	_, err = OldestLost(ctx, spy, "account-1")
	require.NoError(t, err)
	_, err = SettleOrphans(ctx, spy, "account-1", []string{"k5", "k10"})
	require.NoError(t, err)
	_, err = IsRevoked(ctx, spy, "iss-8", "7")
	require.NoError(t, err)
	require.Greater(t, spy.explained, 50)
}

func sorting(t *testing.T, id, column string) *page.Sorting {
	t.Helper()
	s, err := page.NewSorting(page.Column{SQL: id, Kind: page.Text}, "create_time", page.Column{Field: "create_time", SQL: column, Kind: page.Time})
	require.NoError(t, err)
	return s
}

func named(t *testing.T, id, column string) *page.Sorting {
	t.Helper()
	s, err := page.NewSorting(page.Column{SQL: id, Kind: page.Text}, "name", page.Column{Field: "name", SQL: column, Kind: page.Text})
	require.NoError(t, err)
	return s
}

func pageAfter(t *testing.T, s *page.Sorting, orderBy string, key page.Value, id string) Page {
	t.Helper()
	o, err := s.Parse(orderBy)
	require.NoError(t, err)
	return Page{Order: o, After: o.Cursor(key, page.TextValue(id)), Size: 50}
}

// spy explains each query before it runs it, and fails the test when one reads a whole large table.
type spy struct {
	db        Querier
	t         *testing.T
	explained int
}

func (s *spy) explain(ctx context.Context, sql string, args []any) {
	rows, err := s.db.Query(ctx, "EXPLAIN "+sql, args...)
	require.NoError(s.t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(s.t, err)
	plan := strings.Join(lines, "\n")
	for _, table := range []string{"orders", "issuers", "profiles", "issued_certificates", "revocations", "orphans"} {
		require.NotContains(s.t, plan, "Seq Scan on "+table, "%s\n%v\n%s", sql, args, plan)
	}
	s.explained++
}

func (s *spy) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	s.explain(ctx, sql, args)
	return s.db.Query(ctx, sql, args...)
}

func (s *spy) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	s.explain(ctx, sql, args)
	return s.db.QueryRow(ctx, sql, args...)
}

func (s *spy) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	s.explain(ctx, sql, args)
	return s.db.Exec(ctx, sql, args...)
}
