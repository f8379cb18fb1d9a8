package trial

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/deploy/bench/internal/report"
	"github.com/certctl/certctl/deploy/bench/internal/web"
	"github.com/certctl/certctl/pkg/load"
)

// example is a row that filters are made of.
type example struct {
	Name, Owner, Team, Environment, IssuerID, ProfileID, PolicyID, SerialNumber, FingerprintSHA256, LabelKey, LabelValue, TargetID, AgentID string
}

// example takes a row from somewhere in the middle.
func (b *bench) example(ctx context.Context) (e example, err error) {
	rows, err := b.conn.Query(ctx, `SELECT c.name, c.owner, c.team, c.environment, c.issuer_id, c.profile_id, c.policy_id, c.serial_number, c.fingerprint_sha256,
 l.key AS label_key, l.value AS label_value, t.id AS target_id, t.agent_id
FROM inventory.certificates c JOIN inventory.certificate_targets b ON b.certificate_id = c.id JOIN inventory.targets t ON t.id = b.target_id,
 LATERAL jsonb_each_text(c.labels) l WHERE c.owner <> '' AND c.team <> '' AND c.environment <> '' AND c.serial_number <> '' ORDER BY c.id OFFSET 100 LIMIT 1`)
	if err != nil {
		return e, fmt.Errorf("read an example: %w", err)
	}
	e, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByNameLax[example])
	if err != nil {
		return e, fmt.Errorf("read an example: %w", err)
	}
	return e, nil
}

// filterOf are the documented filters of certificates, each with a value that is there.
func filterOf(e example) map[string]url.Values {
	month := func(n int) string { return time.Now().AddDate(0, n, 0).UTC().Format(time.RFC3339) }
	one := func(name, value string) url.Values { return url.Values{name: {value}} }
	return map[string]url.Values{
		"none": {}, "status common": one("status", "ACTIVE"), "status rare": one("status", "REVOKED"), "two statuses": {"status": {"PENDING", "EXPIRED"}},
		"issuer": one("issuer_id", e.IssuerID), "profile": one("profile_id", e.ProfileID), "policy": one("policy_id", e.PolicyID), "owner": one("owner", e.Owner),
		"team": one("team", e.Team), "environment": one("environment", e.Environment), "name": one("name", e.Name), "part of a name": one("name", "shop"),
		"name not there": one("name", "no-such-name-anywhere"), "serial number": one("serial_number", e.SerialNumber),
		"fingerprint": one("fingerprint_sha256", e.FingerprintSHA256), "expires before": one("expires_before", month(1)), "expires after": one("expires_after", month(2)),
		"label": one("label."+e.LabelKey, e.LabelValue), "target": one("target_id", e.TargetID), "agent": one("agent_id", e.AgentID),
		"team, status and expiry": {"team": {e.Team}, "status": {"ACTIVE"}, "expires_before": {month(1)}}, "owner not there": one("owner", "nobody"),
	}
}

// orders are the documented ones of certificates.
func orders() []string {
	return []string{"", "name", "name desc", "not_after", "not_after desc", "create_time", "create_time desc", "update_time", "update_time desc"}
}

// filters asks for each filter in each order: the first page, one from the middle and the last.
func filters(ctx context.Context, b *bench) error {
	e, err := b.example(ctx)
	if err != nil {
		return err
	}
	c := b.client()
	defer c.Close()
	before, err := b.scans(ctx)
	if err != nil {
		return err
	}
	f := filtering{bench: b, client: c, worst: load.NewHistogram(), slow: map[string]time.Duration{}}
	all := filterOf(e)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for _, order := range orders() {
			if err := f.ask(name, order, all[name]); err != nil {
				return err
			}
		}
	}
	after, err := b.scans(ctx)
	if err != nil {
		return err
	}
	var notes []string
	for table, n := range after {
		if n > before[table] {
			notes = append(notes, fmt.Sprintf("%d sequential scans of %s", n-before[table], table))
		}
	}
	for what, took := range f.slow {
		notes = append(notes, fmt.Sprintf("%s: %s", what, took.Round(time.Millisecond)))
	}
	slices.Sort(notes)
	l := f.worst.Latency()
	b.add(report.Figure{
		Name: "filters", What: fmt.Sprintf("%d filters in %d orders, first, middle and last page, one after the other: p95 of all", len(all), len(orders())),
		Goal: "p95 ≤ 50 ms; no sequential scan", Met: l.P95 <= mostFiltering && len(notes) == 0,
		Value: fmt.Sprintf("p50 %s, p95 %s, p99 %s, max %s", l.P50, l.P95, l.P99, l.Max), Notes: notes,
	})
	return nil
}

// mostFiltering is what a page may take.
const mostFiltering = 50 * time.Millisecond

type filtering struct {
	*bench
	client *web.Client
	worst  *load.Histogram
	slow   map[string]time.Duration
}

// repeats is how often a page is asked for: the first may have to read from the disk.
const repeats = 3

func (f *filtering) ask(name, order string, filter url.Values) error {
	q := maps.Clone(filter)
	if order != "" {
		q.Set("order_by", order)
	}
	p, err := f.pages(f.client, certificates+"?"+q.Encode(), 40)
	if err != nil {
		return err
	}
	places := slices.Compact([]int{0, len(p.tokens) / 2, len(p.tokens) - 1})
	for _, place := range places {
		best := time.Hour
		for n := range repeats {
			began := time.Now()
			if _, err := f.client.Want(0, p.at(place, 48+n), "", http.StatusOK); err != nil {
				return err
			}
			took := time.Since(began)
			f.worst.Add(took)
			best = min(best, took)
		}
		if best > mostFiltering {
			f.slow[fmt.Sprintf("%s, order %q, page %d of %d", name, order, place+1, len(p.tokens))] = best
		}
	}
	return nil
}

// scans are the sequential scans of tables that are not small.
func (b *bench) scans(ctx context.Context) (map[string]int64, error) {
	// What sessions have done is seen when they tell, once a second.
	time.Sleep(2 * time.Second) //nolint:forbidigo // there is nothing to ask
	rows, err := b.conn.Query(ctx, `SELECT schemaname || '.' || relname, COALESCE(seq_scan, 0)::bigint FROM pg_stat_user_tables WHERE n_live_tup > 5000`)
	if err != nil {
		return nil, fmt.Errorf("read scans: %w", err)
	}
	all := map[string]int64{}
	var table string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&table, &n}, func() error { all[table] = n; return nil })
	return all, errors.Join(err)
}
