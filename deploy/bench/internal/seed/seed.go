// Package seed fills the database of an installation with the rows that its services would have written in two years, so that it can be
// measured as one that has run for a while.
//
// What it writes is at rest: orders and jobs are final, no renewal is due within a day, no deployment is looked at within a month, and
// every certificate, job and order refers to rows that are there. Two things are not as services write them: all versions show the PEM of one certificate, whose serial number and
// names are not theirs, because a million signatures take too long; and a certificate has one version or two, not the dozen of two years.
package seed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/certctl/certctl/pkg/revision"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/services/audit"
)

// idle is how long no deployment is looked at after a fill.
const idle = 30 * day

// fewest certificates are as many as make at least one of each kind.
const fewest = 100

// Size is how many rows of each kind there are to be. Versions, orders and issued certificates follow from the certificates, about 1.1
// of each; targets are ten for each agent, and deployments about one for each certificate.
type Size struct {
	Certificates int
	Agents       int
	// Jobs are at least one for each version; a smaller number counts for nothing.
	Jobs       int
	Events     int
	Discovered int
	// Revoked of the certificates are revoked, all of iss-local, so that its CRL has as many entries.
	Revoked int
}

// Of gives the size that goes with a number of certificates: a hundredth of agents and of revoked certificates, an eighth more jobs, and
// as many audit events and discovered certificates.
func Of(certificates int) Size {
	n := max(certificates, fewest)
	return Size{Certificates: n, Agents: max(n/100, 5), Jobs: n + n/8, Events: n, Discovered: n, Revoked: max(n/100, 5)}
}

// Config says what to fill.
type Config struct {
	// URL is the superuser's address of a database in which certctl has been started once, and is stopped now.
	URL  string
	Size Size
	// Seed gives the same rows again, but for times, which are relative to now, and the one sample certificate.
	Seed int64
	// InternalSecret is that of the installation, or a list: the audit chain is sealed with it.
	InternalSecret secretbox.Secret
	// Progress is told what is done, a line at a time, by one goroutine or another; nil: nobody.
	Progress func(string)
}

// Summary is what was written.
type Summary struct {
	// Rows are those of each table, as "schema.table".
	Rows map[string]int64
	// Bytes is the size of the database afterwards.
	Bytes int64
	Took  time.Duration
}

// Fill replaces all certificates and what belongs to them, jobs, agents that it made before, discovered certificates and the audit record,
// in which what the services have recorded themselves comes last, in new places. Agents, issuers, profiles and policies that are there
// stay. When it fails, some tables are filled, others are not, and foreign keys may be missing: the database is to be thrown away.
//
// It works with any settings of Postgres, and is quickest with wal_level=minimal and max_wal_senders=0, where tables that were emptied by
// the same transaction are not logged, synchronous_commit=off, max_wal_size=4GB and checkpoint_timeout=30min.
//
// The first start of certctl after it makes the CRL that lists the revoked certificates: nobody else has the CA's key. Nothing else is
// left for it to do.
func Fill(ctx context.Context, cfg Config) (Summary, error) {
	return run(ctx, cfg, func(f *filler) error { return f.all(ctx) })
}

// Events replaces the audit record alone by one of Size.Events, about the certificates that Fill has made with the same Seed and Size.
// Their times are later than those of Fill by what has passed since then, so that the ids in them are not quite those of the rows.
func Events(ctx context.Context, cfg Config) (Summary, error) {
	return run(ctx, cfg, func(f *filler) error { return f.record(ctx) })
}

// filler is one run.
type filler struct {
	cfg   Config
	model *model
	conn  *pgx.Conn
	begin time.Time
	sum   Summary
}

func run(ctx context.Context, cfg Config, work func(f *filler) error) (Summary, error) {
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	if s := cfg.Size; s.Certificates < fewest || s.Agents < 1 || s.Revoked > s.Certificates || s.Certificates > math.MaxInt32/8 {
		return Summary{}, fmt.Errorf("fill: %+v is no size", s)
	}
	conn, err := pgx.Connect(ctx, cfg.URL)
	if err != nil {
		return Summary{}, fmt.Errorf("fill: connect: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	f := &filler{cfg: cfg, conn: conn, begin: time.Now(), sum: Summary{Rows: map[string]int64{}}}
	now := f.begin.UTC().Truncate(time.Second)
	certificate, err := newSample(now)
	if err != nil {
		return Summary{}, err
	}
	f.model = &model{size: cfg.Size, seed: uint64(cfg.Seed), now: stampOf(now), sample: certificate}
	if err := errors.Join(f.model.check(ctx, conn), ctx.Err()); err != nil {
		return Summary{}, err
	}
	f.model.build()
	f.say("drew %d certificates, %d versions and %d jobs", len(f.model.certificates), len(f.model.versions), len(f.model.jobs))
	if err := work(f); err != nil {
		return Summary{}, err
	}
	if err := conn.QueryRow(ctx, "SELECT pg_database_size(current_database())").Scan(&f.sum.Bytes); err != nil {
		return Summary{}, fmt.Errorf("read size of database: %w", err)
	}
	f.sum.Took = time.Since(f.begin)
	return f.sum, nil
}

func (f *filler) say(format string, args ...any) {
	f.cfg.Progress(fmt.Sprintf("%6.1fs  ", time.Since(f.begin).Seconds()) + fmt.Sprintf(format, args...))
}

func (f *filler) all(ctx context.Context) error {
	m := f.model
	d, err := f.newRecord(ctx)
	if err != nil {
		return err
	}
	if err := m.settings(ctx, f.conn); err != nil {
		return err
	}
	tables := slices.Concat(m.inventory(), d.tables(), m.issuance(), m.scheduler())
	keys, err := foreignKeys(ctx, f.conn, tables)
	if err != nil {
		return err
	}
	for _, k := range slices.Concat(slices.Collect(maps.Values(keys))...) {
		if err := k.drop(ctx, f.conn); err != nil {
			return err
		}
	}
	if err := f.hosts(ctx); err != nil {
		return err
	}
	if err := f.load(ctx, tables, keys); err != nil {
		return err
	}
	if err := f.load(ctx, d.anchors(), nil); err != nil {
		return err
	}
	return f.finish(ctx, map[string][]string{
		"inventory": {"certificates", "agents", "targets", "deployments", "discovered-certificates"}, "issuance": {"orders", "issuers", "profiles"},
		"renewalscheduler": {"jobs", "policies"}, "audit": {"audit"},
	})
}

func (f *filler) record(ctx context.Context) error {
	d, err := f.newRecord(ctx)
	if err != nil {
		return err
	}
	if err := f.load(ctx, d.tables(), nil); err != nil {
		return err
	}
	if err := f.load(ctx, d.anchors(), nil); err != nil {
		return err
	}
	return f.finish(ctx, map[string][]string{"audit": {"audit"}})
}

func (f *filler) newRecord(ctx context.Context) (*record, error) {
	chain, err := audit.NewChain(f.cfg.InternalSecret)
	if err != nil {
		return nil, err
	}
	d := &record{m: f.model, chain: chain}
	return d, d.keep(ctx, f.conn)
}

// loaders is how many tables are written at a time: a table keeps one process of Postgres busy, and half a core here.
const loaders = 2

// each runs n pieces of work, some at a time, on connections of their own.
func (f *filler) each(ctx context.Context, n int, work func(ctx context.Context, conn *pgx.Conn, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(loaders, n) {
		group.Go(func() error {
			conn, err := pgx.Connect(ctx, f.cfg.URL)
			if err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			if _, err := conn.Exec(ctx, `SET maintenance_work_mem = '512MB'; SET max_parallel_maintenance_workers = 0; SET synchronous_commit = off;
 SET jit = off; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0`); err != nil {
				return fmt.Errorf("set up connection: %w", err)
			}
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := work(ctx, conn, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// load fills tables, in their order, which begins with those that have the most to do. Who fills the last one of a schema puts the
// schema's foreign keys back.
func (f *filler) load(ctx context.Context, tables []table, keys map[string][]foreignKey) error {
	counts, left := make([]int64, len(tables)), map[string]*atomic.Int64{}
	for _, t := range tables {
		if left[t.schema] == nil {
			left[t.schema] = &atomic.Int64{}
		}
		left[t.schema].Add(1)
	}
	err := f.each(ctx, len(tables), func(ctx context.Context, conn *pgx.Conn, i int) (err error) {
		begin, t := time.Now(), tables[i]
		if counts[i], err = t.load(ctx, conn); err != nil {
			return err
		}
		if err := t.settle(ctx, conn); err != nil {
			return err
		}
		f.say("%s: %d rows in %.1f s", t, counts[i], time.Since(begin).Seconds())
		if left[t.schema].Add(-1) > 0 {
			return nil
		}
		for _, k := range keys[t.schema] {
			if err := k.add(ctx, conn); err != nil {
				return err
			}
		}
		f.say("%s: %d foreign keys", t.schema, len(keys[t.schema]))
		return nil
	})
	for i, t := range tables {
		f.sum.Rows[t.String()] = counts[i]
	}
	return err
}

// hosts replaces the agents of an earlier fill.
func (f *filler) hosts(ctx context.Context) error {
	if _, err := f.conn.Exec(ctx, "DELETE FROM inventory.agents WHERE id LIKE 'agent-________-____-8%'"); err != nil {
		return fmt.Errorf("delete agents of an earlier fill: %w", err)
	}
	for _, t := range f.model.hosts() {
		n, err := t.copy(ctx, f.conn, "WITH (FORMAT binary)")
		if err != nil {
			return fmt.Errorf("fill %s: %w", t, err)
		}
		if err := t.settle(ctx, f.conn); err != nil {
			return err
		}
		f.sum.Rows[t.String()] = n
	}
	return nil
}

// finish raises the revisions of what was replaced, so that no client takes what it has for current, and has all written out.
func (f *filler) finish(ctx context.Context, collections map[string][]string) error {
	for schema, names := range collections {
		if err := f.raise(ctx, schema, names...); err != nil {
			return err
		}
	}
	if _, err := f.conn.Exec(ctx, "CHECKPOINT"); err != nil {
		return fmt.Errorf("write out: %w", err)
	}
	f.say("written out")
	return nil
}

func (f *filler) raise(ctx context.Context, schema string, collections ...string) error {
	return pgx.BeginFunc(ctx, f.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL search_path = "+schema); err != nil {
			return fmt.Errorf("raise revisions of %s: %w", schema, err)
		}
		return revision.Bump(ctx, tx, collections...)
	})
}
