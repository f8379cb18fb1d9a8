package store

import (
	"context"
	"strconv"
	"time"

	"github.com/certctl/certctl/pkg/mutation"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/search"
)

// Summary counts rows.
type Summary struct {
	// By status; a status that no row has is left out.
	Certificates, Agents, Deployments map[string]int32
	// Expiring are active certificates that end before each of the times that were asked for.
	Expiring []int32
	// Stuck is what CountStuck counts.
	Stuck int32
}

// Summary counts in one statement, each part by an index alone.
func (r Reads) Summary(ctx context.Context, expireBefore []time.Time, stuckSince time.Time) (Summary, error) {
	type part struct {
		What   string
		Status string
		Count  int32
	}
	parts, err := all[part](ctx, r.q, "count for the summary", `SELECT 'certificates' AS what, status, count(*)::int AS count FROM certificates GROUP BY status
UNION ALL SELECT 'agents', status, count(*)::int FROM agents GROUP BY status
UNION ALL SELECT 'deployments', status, count(*)::int FROM deployments GROUP BY status
UNION ALL SELECT 'expiring', e.place::text, (SELECT count(*)::int FROM certificates c WHERE c.status = 'ACTIVE' AND `+certificateEnd+` < e.before)
 FROM unnest($2::timestamptz[]) WITH ORDINALITY AS e (before, place)
UNION ALL SELECT 'stuck', '', `+stuck, stuckSince, expireBefore)
	if err != nil {
		return Summary{}, err
	}
	s := Summary{Certificates: map[string]int32{}, Agents: map[string]int32{}, Deployments: map[string]int32{}, Expiring: make([]int32, len(expireBefore))}
	for _, p := range parts {
		switch p.What {
		case "certificates":
			s.Certificates[p.Status] = p.Count
		case "agents":
			s.Agents[p.Status] = p.Count
		case "deployments":
			s.Deployments[p.Status] = p.Count
		case "expiring":
			place, err := strconv.Atoi(p.Status)
			if err != nil {
				return Summary{}, wrap("count for the summary", err)
			}
			s.Expiring[place-1] = p.Count
		default:
			s.Stuck = p.Count
		}
	}
	return s, nil
}

// stuck counts what CountStuck does, for the time $1.
const stuck = `((SELECT count(*) FROM deployments WHERE due_time < $1)
 + (SELECT count(*) FROM assignments WHERE status = 'LEASED' AND lease_until < $1)
 + (SELECT count(*) FROM assignments WHERE status IN ('OPEN', 'LEASED') AND deadline_time < $1 AND kind <> 'DEPLOY')
 + (SELECT count(*) FROM certificates c WHERE c.status = 'ACTIVE' AND ` + certificateEnd + ` < $1))::int`

// CountStuck counts rows that are not final and that nothing has looked at although they were due long ago: since a time. Every such
// row has a due time, a lease or a deadline by the constraints of its table.
func (r Reads) CountStuck(ctx context.Context, since time.Time) (int32, error) {
	return value[int32](ctx, r.q, "count stuck rows", `SELECT `+stuck, since)
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

// readDiscovered reads discoveredColumns.
func readDiscovered(r *pg.Columns) DiscoveredCertificate {
	return DiscoveredCertificate{
		ID: r.Text(), FingerprintSHA256: r.Text(), CommonName: r.Text(), DNSNames: r.Texts(), IssuerDN: r.Text(), SubjectDN: r.Text(),
		SerialNumber: r.Text(), NotBefore: r.Time(), NotAfter: r.Time(), Status: r.Text(), FirstSeenTime: r.Time(), LastSeenTime: r.Time(),
	}
}

const discoveredColumns = `f.id, f.fingerprint_sha256, f.common_name, f.dns_names, f.issuer_dn, f.subject_dn, f.serial_number, f.not_before,
 f.not_after, f.status, f.first_seen_time, f.last_seen_time`

// GetDiscovered reads one.
func (r Reads) GetDiscovered(ctx context.Context, id string) (DiscoveredCertificate, error) {
	return one[DiscoveredCertificate](ctx, r.q, "read discovered certificate", `SELECT `+discoveredColumns+` FROM discovered_certificates f WHERE f.id = $1`, id)
}

func discoveredCertificateTable() search.Table {
	return search.Table{Columns: discoveredColumns, From: "discovered_certificates f", Leads: map[string][]string{"f.last_seen_time": {"f.status"}, "f.not_after": {"f.status"}}}
}

// ListDiscovered reads one page.
func (r Reads) ListDiscovered(ctx context.Context, statuses []string, s Slice) ([]DiscoveredCertificate, error) {
	w := &where{}
	w.Among("f.status", statuses)
	return findBy(ctx, r.q, "list discovered certificates", w.search(discoveredCertificateTable(), s), pg.RowTo(readDiscovered))
}

// CountDiscovered counts what the filter finds.
func (r Reads) CountDiscovered(ctx context.Context, statuses []string) (int32, error) {
	w := &where{}
	w.Among("f.status", statuses)
	return value[int32](ctx, r.q, "count discovered certificates", `SELECT count(*)::int FROM discovered_certificates f WHERE `+w.SQL(), w.Args()...)
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
