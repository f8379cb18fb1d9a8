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

// searched is a list with its documented filters, each with a value that is there, and its documented orders beside the normal one.
type searched struct {
	path    string
	filters map[string]url.Values
	orders  []string
}

// filters asks for each list by each filter in each order: the first page, one from the middle and the last one of the walk.
func filters(ctx context.Context, b *bench) error {
	lists, err := b.searched(ctx)
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
	asked := 0
	for _, l := range lists {
		for _, name := range slices.Sorted(maps.Keys(l.filters)) {
			for _, order := range append([]string{""}, l.orders...) {
				if err := f.ask(ctx, l.path, name, order, l.filters[name]); err != nil {
					return err
				}
				asked++
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
		Name: "filters", What: fmt.Sprintf("%d pairs of a filter and an order of %d lists; the first page, and those at the middle and the end of at most %d rows; one after the other: p95 of all",
			asked, len(lists), walkSteps*1000),
		Goal: "p95 ≤ 50 ms; no sequential scan", Met: l.P95 <= mostFiltering && len(notes) == 0,
		Value: fmt.Sprintf("p50 %s, p95 %s, p99 %s, max %s", l.P50, l.P95, l.P99, l.Max), Notes: notes,
	})
	return nil
}

// walkSteps is how many pages of 1000 rows a walk has.
const walkSteps = 4

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

func (f *filtering) ask(ctx context.Context, path, name, order string, filter url.Values) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	q := maps.Clone(filter)
	if order != "" {
		q.Set("order_by", order)
	}
	p, err := f.pages(f.client, path+"?"+q.Encode(), walkSteps)
	if err != nil {
		return fmt.Errorf("%s, %s, order %q: %w", path, name, order, err)
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
			f.slow[fmt.Sprintf("%s, %s, order %q, row %d", path, name, order, place*1000+1)] = best
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
