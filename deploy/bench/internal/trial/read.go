package trial

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/deploy/bench/internal/limit"
	"github.com/certctl/certctl/deploy/bench/internal/meter"
	"github.com/certctl/certctl/deploy/bench/internal/report"
	"github.com/certctl/certctl/deploy/bench/internal/web"
	"github.com/certctl/certctl/pkg/load"
)

// certificates is the list of 50, in its default order.
const certificates = "/api/v1/certificates"

func (b *bench) client() *web.Client {
	return web.New(b.site.Address(), b.site.Key, b.site.TLS(), b.Workers)
}

// share of the most that is had in a closed loop is what the open loop offers when no rate is asked for.
const share = 0.8

// offer loads with the requests that path gives: first in a closed loop, for the most there is, and then at a constant rate, for the
// latency. The rate is the wanted one, or a share of the most if that is less or none is wanted.
func (b *bench) offer(ctx context.Context, wanted float64, do func(ctx context.Context, w, n int) error) (most, open meter.Reading, err error) {
	if r := load.Run(ctx, load.Plan{Duration: b.For / 4, Workers: b.Workers}, do); r.Err != nil { // warm
		return most, open, r.Err
	}
	if most, err = b.meter().Run(ctx, load.Plan{Duration: b.For, Workers: b.Workers}, do); err != nil {
		return most, open, err
	}
	rate := share * most.Throughput
	if wanted > 0 {
		rate = min(rate, wanted)
	}
	open, err = b.meter().Run(ctx, load.Plan{Rate: rate, Duration: b.For, Workers: b.Workers}, do)
	return most, open, err
}

// clean tells whether nothing failed.
func clean(readings ...meter.Reading) bool {
	for _, r := range readings {
		if r.Failed > 0 {
			return false
		}
	}
	return true
}

// pair adds what was had in a closed loop, with its limit, and the latencies at a constant rate.
func (b *bench) pair(name, what, goal string, most, open meter.Reading, l *limit.Limit, met bool) {
	b.add(report.Figure{Name: name, What: what + "; as fast as they are answered", Goal: goal, Met: met, Reading: &most, Limit: l})
	b.add(report.Figure{Name: name + "/latency", What: what + "; at a constant rate", Goal: goal, Met: met, Reading: &open})
}

func start(ctx context.Context, b *bench) error {
	if err := b.site.StopCertctl(); err != nil {
		return err
	}
	if err := b.site.Start(ctx); err != nil {
		return err
	}
	const goal = 3 * time.Second
	b.add(report.Figure{Name: "start", What: "certctl serve on a database that is there, until /ready", Goal: "≤ 3 s to ready",
		Met: b.site.Ready <= goal, Value: b.site.Ready.Round(time.Millisecond).String()})
	return nil
}

// lists asks for the first page of each list as all clients do who poll it, and for certificates also for another page each time.
func lists(ctx context.Context, b *bench) error {
	c := b.client()
	defer c.Close()
	const goal = "≥ 1,500 req/s, p95 ≤ 20 ms, ≤ 2 statements"
	ok := func(most, open meter.Reading) bool {
		return most.Throughput >= 1500 && open.Latency.P95 <= 20*time.Millisecond && most.Statements <= 2.1 && clean(most, open)
	}
	first, err := c.Want(0, certificates, "", http.StatusOK)
	if err != nil {
		return err
	}
	bare, err := limit.TLS(ctx, b.Workers, len(first.Body), b.For/2)
	if err != nil {
		return err
	}
	pages, err := b.pages(c, certificates, 1000)
	if err != nil {
		return err
	}
	raw, err := b.raw(ctx, "inventory", "FROM certificates c WHERE $1 AND $2 ORDER BY c.create_time DESC, c.id DESC LIMIT $3",
		strings.NewReplacer("WHERE $1 AND $2 ", "WHERE TRUE AND TRUE ", "LIMIT $3", "LIMIT 51"))
	if err != nil {
		return err
	}
	most, open, err := b.offer(ctx, 1500, func(_ context.Context, w, _ int) error {
		_, err := c.Want(w, certificates, "", http.StatusOK)
		return err
	})
	if err != nil {
		return err
	}
	b.pair("lists/certificates", "list of 50 certificates, first page, default order, unchanged", goal, most, open, &bare, ok(most, open))
	most, open, err = b.offer(ctx, 1500, func(_ context.Context, w, _ int) error {
		_, err := c.Want(w, pages.random(), "", http.StatusOK)
		return err
	})
	if err != nil {
		return err
	}
	b.pair("lists/certificates-anywhere", "list of about 50 certificates, another page each time", goal, most, open, &raw, ok(most, open))
	for _, path := range []string{"/api/v1/jobs", "/api/v1/agents", "/api/v1/audit", "/api/v1/discovered-certificates"} {
		pages, err := b.pages(c, path, 200)
		if err != nil {
			return err
		}
		most, open, err := b.offer(ctx, 1500, func(_ context.Context, w, _ int) error {
			_, err := c.Want(w, pages.random(), "", http.StatusOK)
			return err
		})
		if err != nil {
			return err
		}
		b.pair("lists"+strings.TrimPrefix(path, "/api/v1"), "list of about 50 of "+path+", another page each time", goal, most, open, nil, ok(most, open))
	}
	return nil
}

// pages are places of a list.
type pages struct {
	path   string
	tokens []string
}

// pages walks through a list, in steps of a thousand, up to a number of steps.
func (b *bench) pages(c *web.Client, path string, steps int) (*pages, error) {
	p := &pages{path: path, tokens: []string{""}}
	separator := "?"
	if strings.Contains(path, "?") {
		separator = "&"
	}
	p.path += separator
	for range steps {
		a, err := c.Want(0, p.path+"page_size=1000&page_token="+url.QueryEscape(p.tokens[len(p.tokens)-1]), "", http.StatusOK)
		if err != nil {
			return nil, err
		}
		var page struct {
			Next string `json:"next_page_token"`
		}
		if err := json.Unmarshal(a.Body, &page); err != nil {
			return nil, fmt.Errorf("read page: %w", err)
		}
		if page.Next == "" {
			return p, nil
		}
		p.tokens = append(p.tokens, page.Next)
	}
	return p, nil
}

// random gives one of the pages, with 41 to 59 rows, so that nobody remembers it.
func (p *pages) random() string {
	return p.at(rand.IntN(len(p.tokens)), 41+rand.IntN(19)) //nolint:gosec // a choice that nobody shall guess is not needed
}

func (p *pages) at(place, size int) string {
	return fmt.Sprintf("%spage_size=%d&page_token=%s", p.path, size, url.QueryEscape(p.tokens[place]))
}

// raw measures the SQL of a statement that the service has run, which pg_stat_statements knows, by its end. It shows constants as
// parameters; constants puts them back.
func (b *bench) raw(ctx context.Context, schema, end string, constants *strings.Replacer) (limit.Limit, error) {
	var sql string
	err := b.conn.QueryRow(ctx, `SELECT query FROM public.pg_stat_statements WHERE right(query, length($1)) = $1 ORDER BY calls DESC LIMIT 1`, end).Scan(&sql)
	if errors.Is(err, pgx.ErrNoRows) {
		return limit.Limit{}, fmt.Errorf("no statement of %s ends with %q", schema, end)
	}
	if err != nil {
		return limit.Limit{}, fmt.Errorf("look for a statement: %w", err)
	}
	return limit.SQL(ctx, b.site.DatabaseURL, schema, constants.Replace(sql), b.Workers, b.For/2, func(int) []any { return nil })
}

func conditional(ctx context.Context, b *bench) error {
	c := b.client()
	defer c.Close()
	first, err := c.Want(0, certificates, "", http.StatusOK)
	if err != nil {
		return err
	}
	bare, err := limit.TLS(ctx, b.Workers, 0, b.For/2)
	if err != nil {
		return err
	}
	most, open, err := b.offer(ctx, 6000, func(_ context.Context, w, _ int) error {
		_, err := c.Want(w, certificates, first.Tag, http.StatusNotModified)
		return err
	})
	if err != nil {
		return err
	}
	b.pair("conditional", "unchanged list with If-None-Match: 304", "≥ 6,000 req/s, ≤ 1 indexed read", most, open, &bare,
		most.Throughput >= 6000 && most.Statements <= 1 && clean(most, open))
	return nil
}

func get(ctx context.Context, b *bench) error {
	c := b.client()
	defer c.Close()
	ids, err := b.ids(ctx, "SELECT id FROM inventory.certificates ORDER BY md5(id) LIMIT 50000")
	if err != nil {
		return err
	}
	a, err := c.Want(0, certificates+"/"+ids[0], "", http.StatusOK)
	if err != nil {
		return err
	}
	bare, err := limit.TLS(ctx, b.Workers, len(a.Body), b.For/2)
	if err != nil {
		return err
	}
	most, open, err := b.offer(ctx, 5000, func(_ context.Context, w, n int) error {
		_, err := c.Want(w, certificates+"/"+ids[n%len(ids)], "", http.StatusOK)
		return err
	})
	if err != nil {
		return err
	}
	b.pair("get", "one certificate by id, another each time", "≥ 5,000 req/s, p99 ≤ 10 ms", most, open, &bare,
		most.Throughput >= 5000 && open.Latency.P99 <= 10*time.Millisecond && clean(most, open))
	raw, err := limit.SQL(ctx, b.site.DatabaseURL, "inventory", "SELECT * FROM certificates WHERE id = $1", b.Workers, b.For/2, func(n int) []any { return []any{ids[n%len(ids)]} })
	if err != nil {
		return err
	}
	grpc, err := limit.GRPC(ctx, b.Workers, b.For/2)
	if err != nil {
		return err
	}
	for name, l := range map[string]*limit.Limit{"get/raw-sql": &raw, "get/bare-grpc": &grpc} {
		b.add(report.Figure{Name: name, What: "the same, beside " + l.What, Reading: &most, Limit: l})
	}
	return nil
}

// ids reads the one column of a statement.
func (b *bench) ids(ctx context.Context, statement string) ([]string, error) {
	rows, err := b.conn.Query(ctx, statement)
	if err != nil {
		return nil, fmt.Errorf("read ids: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func summary(ctx context.Context, b *bench) error {
	c := b.client()
	defer c.Close()
	r, err := b.meter().Run(ctx, load.Plan{Rate: 5, Duration: b.For, Workers: 2}, func(_ context.Context, w, _ int) error {
		_, err := c.Want(w, "/api/v1/stats/summary", "", http.StatusOK)
		return err
	})
	if err != nil {
		return err
	}
	b.add(report.Figure{Name: "summary", What: "stats/summary, five times a second", Goal: "≤ 50 ms", Met: r.Latency.Max <= 50*time.Millisecond && clean(r), Reading: &r})
	return nil
}
