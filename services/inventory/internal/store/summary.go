package store

import (
	"context"
	"fmt"
	"time"

	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/page"
)

// StatusCount is how many rows have a status.
type StatusCount struct {
	Status string
	Count  int32
}

// CountByStatus counts the rows of certificates, agents or deployments.
func (r Reads) CountByStatus(ctx context.Context, collection string) ([]StatusCount, error) {
	table, ok := map[string]string{Certificates: "certificates", Agents: "agents", Deployments: "deployments"}[collection]
	if !ok {
		return nil, fmt.Errorf("count by status: %q is not counted", collection)
	}
	return all[StatusCount](ctx, r.q, "count by status", `SELECT status, count(*)::int AS count FROM `+table+` GROUP BY status ORDER BY status`)
}

// CountExpiring counts active certificates that end before a time.
func (r Reads) CountExpiring(ctx context.Context, before time.Time) (int32, error) {
	return value[int32](ctx, r.q, "count expiring certificates", `SELECT count(*)::int FROM certificates WHERE status = 'ACTIVE' AND not_after < $1`, before)
}

// CountStuck counts rows that are not final and that nothing has looked at although they were due long ago: since a time. Every such
// row has a due time, a lease or a deadline by the constraints of its table.
func (r Reads) CountStuck(ctx context.Context, since time.Time) (int32, error) {
	return value[int32](ctx, r.q, "count stuck rows", `SELECT ((SELECT count(*) FROM deployments WHERE due_time < $1)
 + (SELECT count(*) FROM assignments WHERE status = 'LEASED' AND lease_until < $1)
 + (SELECT count(*) FROM assignments WHERE status IN ('OPEN', 'LEASED') AND deadline_time < $1 AND kind <> 'DEPLOY')
 + (SELECT count(*) FROM certificates WHERE status = 'ACTIVE' AND not_after < $1))::int`, since)
}

// PruneKeys deletes idempotency keys that have served their time.
func (s *Store) PruneKeys(ctx context.Context) (int, error) { return mutation.Prune(ctx, s.db.Pool) }

// DiscoveredCertificate is one row of discovered_certificates.
type DiscoveredCertificate struct {
	ID                string
	FingerprintSHA256 string
	CommonName        string
	DNSNames          []string
	IssuerDN          string
	SubjectDN         string
	SerialNumber      string
	NotBefore         time.Time
	NotAfter          time.Time
	Status            string
	FirstSeenTime     time.Time
	LastSeenTime      time.Time
}

const discoveredColumns = `f.id, f.fingerprint_sha256, f.common_name, f.dns_names, f.issuer_dn, f.subject_dn, f.serial_number, f.not_before,
 f.not_after, f.status, f.first_seen_time, f.last_seen_time`

// GetDiscovered reads one.
func (r Reads) GetDiscovered(ctx context.Context, id string) (DiscoveredCertificate, error) {
	return one[DiscoveredCertificate](ctx, r.q, "read discovered certificate", `SELECT `+discoveredColumns+` FROM discovered_certificates f WHERE f.id = $1`, id)
}

// ListDiscovered reads one page.
func (r Reads) ListDiscovered(ctx context.Context, statuses []string, s Slice) ([]DiscoveredCertificate, error) {
	w := &where{}
	w.among("f.status", statuses)
	end, err := w.page(s)
	if err != nil {
		return nil, err
	}
	return all[DiscoveredCertificate](ctx, r.q, "list discovered certificates", `SELECT `+discoveredColumns+` FROM discovered_certificates f`+end, w.args...)
}

// CountDiscovered counts what the filter finds.
func (r Reads) CountDiscovered(ctx context.Context, statuses []string) (int32, error) {
	w := &where{}
	w.among("f.status", statuses)
	return value[int32](ctx, r.q, "count discovered certificates", `SELECT count(*)::int FROM discovered_certificates f WHERE `+w.sql(), w.args...)
}

// sortings are the orders of the lists.
type sortings struct {
	certificates, versions, agents, joinTokens, targets, deployments, discovered *page.Sorting
}

// SortingOf gives what a list may be ordered by. "versions" and "join-tokens" are lists, too.
func (s *Store) SortingOf(collection string) *page.Sorting {
	return map[string]*page.Sorting{
		Certificates: s.sorts.certificates, "versions": s.sorts.versions, Agents: s.sorts.agents, "join-tokens": s.sorts.joinTokens,
		Targets: s.sorts.targets, Deployments: s.sorts.deployments, Discovered: s.sorts.discovered,
	}[collection]
}

func newSortings() (sortings, error) {
	var s sortings
	id := func(alias string) page.Column { return page.Column{SQL: alias + ".id", Kind: page.Text} }
	at := func(field, sql string) page.Column { return page.Column{Field: field, SQL: sql, Kind: page.Time} }
	text := func(field, sql string) page.Column { return page.Column{Field: field, SQL: sql, Kind: page.Text} }
	end := func(field string) page.Column {
		return page.Column{Field: field, SQL: "c.not_after", Kind: page.Time, NullAs: "'infinity'::timestamptz"}
	}
	for _, d := range []struct {
		into    **page.Sorting
		id      page.Column
		normal  string
		columns []page.Column
	}{
		{&s.certificates, id("c"), "create_time desc", []page.Column{
			at("create_time", "c.create_time"), at("update_time", "c.update_time"), text("name", "c.name"), end("not_after"), end("expires_at"),
		}},
		{&s.versions, page.Column{Field: "version", SQL: "v.version", Kind: page.Int}, "version desc", nil},
		{&s.agents, id("a"), "create_time desc", []page.Column{at("create_time", "a.create_time"), text("name", "a.name")}},
		{&s.joinTokens, id("j"), "create_time desc", []page.Column{at("create_time", "j.create_time")}},
		{&s.targets, id("t"), "create_time desc", []page.Column{at("create_time", "t.create_time"), text("name", "t.name")}},
		{&s.deployments, id("d"), "create_time desc", []page.Column{at("create_time", "d.create_time"), at("update_time", "d.update_time")}},
		{&s.discovered, id("f"), "last_seen_time desc", []page.Column{at("last_seen_time", "f.last_seen_time"), at("not_after", "f.not_after")}},
	} {
		sorting, err := page.NewSorting(d.id, d.normal, d.columns...)
		if err != nil {
			return sortings{}, wrap("make sortings", err)
		}
		*d.into = sorting
	}
	return s, nil
}
