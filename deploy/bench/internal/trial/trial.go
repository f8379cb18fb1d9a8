// Package trial has what is measured: each trial makes figures of an installation with a given amount of data.
package trial

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/deploy/bench/internal/meter"
	"github.com/certctl/certctl/deploy/bench/internal/report"
	"github.com/certctl/certctl/deploy/bench/internal/seed"
	"github.com/certctl/certctl/deploy/bench/internal/site"
)

// Options say what to measure.
type Options struct {
	// Binary is the program certctl; Dir is where data lies, and is used again if it is there.
	Binary, Dir string
	// Sizes are numbers of certificates, each an installation of its own.
	Sizes []int
	// Only are names of trials; none: all.
	Only []string
	// For is how long each load lasts; Workers are its connections.
	For     time.Duration
	Workers int
	// Events are audit events; 0: as many as go with the certificates.
	Events int
	// Revoked are revoked certificates of the local issuer; 0: as many as go with the certificates.
	Revoked int
	// Agents connect at the same time.
	Agents int
	// Renewals are due at once in the storm.
	Renewals int
	// Idle is how long an idle installation is looked at.
	Idle time.Duration
	// Say is told what is being done.
	Say func(format string, args ...any)
}

// bench is an installation that is being measured.
type bench struct {
	Options
	report *report.Report
	size   int
	site   *site.Site
	conn   *pgx.Conn
	writer writer
}

// trial makes figures.
type trial struct {
	name string
	// apart needs each service in a process of its own.
	apart bool
	// largest runs with the largest size alone.
	largest bool
	run     func(ctx context.Context, b *bench) error
}

func trials() []trial {
	return []trial{
		{name: "start", run: start},
		{name: "lists", run: lists},
		{name: "conditional", run: conditional},
		{name: "get", run: get},
		{name: "filters", run: filters},
		{name: "summary", run: summary},
		{name: "sweep", run: sweep},
		{name: "issuance", apart: true, largest: true, run: issuance},
		{name: "audit", apart: true, largest: true, run: auditing},
		{name: "revoke", apart: true, largest: true, run: revoke},
		{name: "agents", apart: true, largest: true, run: agents},
		{name: "storm", apart: true, largest: true, run: storm},
		{name: "idle", apart: true, largest: true, run: idle},
	}
}

// Names of all trials.
func Names() []string {
	var names []string
	for _, t := range trials() {
		names = append(names, t.name)
	}
	return append(names, scaleName)
}

// Run measures and fills the report.
func Run(ctx context.Context, o Options, r *report.Report) error {
	for _, name := range o.Only {
		if !slices.Contains(Names(), name) {
			return fmt.Errorf("there is no trial %q; there are %s", name, strings.Join(Names(), ", "))
		}
	}
	for _, size := range o.Sizes {
		b := &bench{Options: o, report: r, size: size}
		for _, apart := range []bool{false, true} {
			if err := b.phase(ctx, apart); err != nil {
				return fmt.Errorf("%d certificates: %w", size, err)
			}
		}
		if size == slices.Max(o.Sizes) && (len(o.Only) == 0 || slices.Contains(o.Only, scaleName)) {
			if err := b.scale(ctx); err != nil {
				return fmt.Errorf("%s: %w", scaleName, err)
			}
		}
	}
	return nil
}

// due gives the trials of a phase.
func (b *bench) due(apart bool) []trial {
	return slices.DeleteFunc(trials(), func(t trial) bool {
		return t.apart != apart || t.largest && b.size != slices.Max(b.Sizes) || len(b.Only) > 0 && !slices.Contains(b.Only, t.name)
	})
}

// phase runs the trials that need the processes in one way.
func (b *bench) phase(ctx context.Context, apart bool) (err error) {
	due := b.due(apart)
	if len(due) == 0 {
		return nil
	}
	if err := b.open(ctx, site.Config{Apart: apart}); err != nil {
		return err
	}
	defer func() {
		_ = b.conn.Close(context.WithoutCancel(ctx))
		err = errors.Join(err, b.site.Stop(ctx))
	}()
	for _, t := range due {
		b.Say("%d certificates: %s", b.size, t.name)
		if err := t.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

// fillSettings make a fill quick; they are not those of the measurement.
func fillSettings() map[string]string {
	return map[string]string{"wal_level": "minimal", "max_wal_senders": "0", "synchronous_commit": "off", "checkpoint_timeout": "30min", "fsync": "off"}
}

// open starts an installation that holds its data.
func (b *bench) open(ctx context.Context, cfg site.Config) error {
	dir := filepath.Join(b.Dir, strings.ReplaceAll(strings.TrimSpace(strconv.Itoa(b.size)+" "+b.also()), " ", "-"))
	if err := b.fill(ctx, dir); err != nil {
		return err
	}
	var err error
	cfg.Dir, cfg.Binary = dir, b.Binary
	if b.site, err = site.Open(ctx, cfg); err != nil {
		return err
	}
	if b.conn, err = b.site.Connect(ctx); err != nil {
		return errors.Join(err, b.site.Stop(ctx))
	}
	err = b.conn.QueryRow(ctx, "SELECT 'PostgreSQL ' || current_setting('server_version')").Scan(&b.report.Versions.Postgres)
	if err := errors.Join(err, b.site.Start(ctx)); err != nil {
		return errors.Join(err, b.conn.Close(ctx), b.site.Stop(ctx))
	}
	return nil
}

// fill fills a directory that was not filled yet.
func (b *bench) fill(ctx context.Context, dir string) (err error) {
	mark := filepath.Join(dir, "filled")
	if _, err := os.Stat(mark); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the account of Postgres passes through
		return fmt.Errorf("make directory: %w", err)
	}
	s, err := site.Open(ctx, site.Config{Dir: dir, Binary: b.Binary, Postgres: fillSettings()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop(ctx)) }()
	if err := errors.Join(s.Start(ctx), s.StopCertctl()); err != nil { // makes what a first start makes
		return err
	}
	size := seed.Of(b.size)
	if b.Revoked > 0 {
		size.Revoked = min(b.Revoked, size.Certificates)
	}
	if b.Events > 0 {
		size.Events = b.Events
	}
	cfg := seed.Config{URL: s.DatabaseURL, Size: size, Seed: 1, InternalSecret: s.Secret, Progress: func(line string) { b.Say("fill: %s", line) }}
	sum, err := seed.Fill(ctx, cfg)
	if err != nil {
		return err
	}
	b.report.Filled(report.Data{Certificates: b.size, Also: b.also(), Rows: sum.Rows, Bytes: sum.Bytes, Seconds: sum.Took.Seconds()})
	b.Say("filled %d certificates in %s, %d MiB", b.size, sum.Took.Round(time.Second), sum.Bytes>>20)
	return os.WriteFile(mark, []byte(sum.Took.String()), 0o600)
}

// also is what there is more of than goes with the certificates.
func (b *bench) also() string {
	var more []string
	if b.Events > 0 {
		more = append(more, fmt.Sprintf("%d events", b.Events))
	}
	if b.Revoked > 0 {
		more = append(more, fmt.Sprintf("%d revoked", b.Revoked))
	}
	return strings.Join(more, " ")
}

// meter reads this installation.
func (b *bench) meter() meter.Meter { return meter.Meter{Processes: b.site.Processes, Conn: b.conn} }

// add takes a figure of this installation.
func (b *bench) add(f report.Figure) {
	f.Certificates, f.Also = b.size, b.also()
	if err := b.report.Add(f); err != nil {
		b.Say("the report is not written: %v", err)
	}
	line := f.Value
	if f.Reading != nil && f.Reading.Latency.Max > 0 {
		line = fmt.Sprintf("%.0f/s, p50 %s, p95 %s, p99 %s; %.2f statements; %.0f us of CPU; %s", f.Reading.Throughput, f.Reading.Latency.P50, f.Reading.Latency.P95,
			f.Reading.Latency.P99, f.Reading.Statements, f.Reading.Busy()*1e6/max(f.Reading.Throughput, 1), f.Value)
	}
	met := "no goal"
	if f.Goal != "" {
		met = map[bool]string{true: "met", false: "NOT MET"}[f.Met]
	}
	b.Say("  %-40s %s (%s)", f.Name, line, met)
}
