package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

// The bounds of a run, unless flags say otherwise, and the most that flags can say.
const (
	benchRate         = 160
	benchP95          = 250 * time.Millisecond
	benchDuration     = 90 * time.Second
	benchConnections  = 4
	benchCertificates = 50

	mostRate         = 5000
	mostConnections  = 64
	mostCertificates = 1000
)

// benchOptions are the bounds of a run.
type benchOptions struct {
	// maxRate is in requests a second, p95 the latency beyond which a rate is too much, duration that of all rates together.
	maxRate     float64
	p95         time.Duration
	duration    time.Duration
	connections int

	// write has up to certificates issued, by issuer.
	write                   bool
	certificates            int
	issuer, profile, domain string
	yes                     bool
}

func (a *app) bench() *cobra.Command {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure a running installation within safe bounds, and tell how much more it can take",
		Long: "Measure a running installation, and tell how much more it can take and what the first bottleneck is.\n\n" +
			"It reads, and changes nothing: the first page and a later page of certificates, certificates by id, the list again with\n" +
			"If-None-Match, jobs and counts. The rate rises step by step, from 5 requests a second to --max-rate, and stops where the 95th\n" +
			"percentile is above --p95, where requests are refused or fail, or when it is interrupted. Requests come at the rate whatever the\n" +
			"answers take, and each is measured from when it was meant to start.\n\n" +
			"The gateway bounds the rate of each API key: give it a key of its own, so that nobody else who uses the key is refused.\n\n" +
			"With --write it has certificates issued too, which it revokes and archives afterwards. They stay readable, and their serial\n" +
			"numbers stay on the issuer's CRL until they would have expired.",
		Example: "  certctl bench\n  certctl bench --against https://certctl.example.com --api-key-file bench.key --max-rate 80\n" +
			"  certctl bench --write --certificates 100\n  certctl bench -o json > bench.json",
	}
	var o benchOptions
	against := c.Flags().String("against", "", "URL of the installation; the same as --url")
	c.Flags().Float64Var(&o.maxRate, "max-rate", benchRate, "the most requests a second")
	c.Flags().DurationVar(&o.p95, "p95", benchP95, "95th percentile of the latency, above which a rate is too much")
	c.Flags().DurationVar(&o.duration, "duration", benchDuration, "how long all rates together may take")
	c.Flags().IntVar(&o.connections, "connections", benchConnections, "connections to the gateway")
	c.Flags().BoolVar(&o.write, "write", false, "have certificates issued, and revoke and archive them")
	c.Flags().IntVar(&o.certificates, "certificates", benchCertificates, "how many, with --write")
	c.Flags().StringVar(&o.issuer, "issuer", "iss-local", "issuer to have them from")
	c.Flags().StringVar(&o.profile, "profile", "", "profile of them (default prof-default)")
	c.Flags().StringVar(&o.domain, "domain", "bench.invalid", "domain of their names")
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "let another CA than certctl's own issue them, which may cost money")
	complete(c, "issuer", a.flagIDs(listIssuers(), "name"))
	complete(c, "profile", a.flagIDs(listProfiles(), "name"))
	for _, name := range []string{"against", "max-rate", "p95", "duration", "connections", "certificates", "domain"} {
		complete(c, name, cobra.NoFileCompletions)
	}
	a.leaf(c, cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		if s.format == show.Name {
			return usage("bench has no names to show; use -o table, json or yaml")
		}
		if err := o.check(); err != nil {
			return err
		}
		s.quiet = true
		return (&bench{session: s, options: o}).run(ctx)
	})
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := sameURL(c, *against); err != nil {
			return err
		}
		return run(c, args)
	}
	return c
}

// sameURL lets --against stand for --url.
func sameURL(c *cobra.Command, against string) error {
	if against == "" {
		return nil
	}
	if c.Flag(flagURL).Changed {
		return usage("--against and --url are the same: give one of them")
	}
	if err := c.Flags().Set(flagURL, against); err != nil {
		return usage(err.Error())
	}
	return nil
}

func (o benchOptions) check() error {
	steps := len(benchRates(o.maxRate))
	switch {
	case !(o.maxRate >= 1 && o.maxRate <= mostRate):
		return usagef("--max-rate is between 1 and %d", mostRate)
	case o.p95 <= 0:
		return usage("--p95 is more than 0")
	case o.connections < 1 || o.connections > mostConnections:
		return usagef("--connections is between 1 and %d", mostConnections)
	case o.write && (o.certificates < 1 || o.certificates > mostCertificates):
		return usagef("--certificates is between 1 and %d", mostCertificates)
	case o.duration < time.Duration(steps)*shortestStep:
		return usagef("--duration is too short: there are %d rates up to %g a second, and each takes %s or more", steps, o.maxRate, shortestStep)
	}
	return nil
}

// bench is one run of the command.
type bench struct {
	*session
	options benchOptions
	conns   []*rest
	reads   []benchRead
	report  benchReport
}

// run measures, and shows what was measured also when it was interrupted.
func (b *bench) run(ctx context.Context) error {
	begin := time.Now()
	b.report = benchReport{Command: commandLine(b.cmd), URL: b.access.url, Time: b.cfg.Now().UTC(), Bounds: b.options.bounds(), Steps: []benchStep{}, Notes: []string{}}
	if err := b.connect(); err != nil {
		return err
	}
	defer b.disconnect()
	b.announce()
	if err := b.lookAround(ctx); err != nil {
		return err
	}
	failed := b.measure(ctx)
	b.report.Interrupted = ctx.Err() != nil
	b.report.Seconds = time.Since(begin).Seconds()
	b.report.conclude(b.options)
	if err := b.show(); err != nil {
		return err
	}
	switch {
	case b.report.Interrupted:
		return &Failure{Message: "interrupted; what was measured until then is shown", Code: exitError, cause: errors.Join(ctx.Err(), failed)}
	case failed != nil:
		return failed
	}
	return nil
}

// measure does what takes time, and stops at the first error.
func (b *bench) measure(ctx context.Context) error {
	if err := b.network(ctx); err != nil {
		return err
	}
	if err := b.findReads(ctx); err != nil {
		return err
	}
	b.climb(ctx)
	if err := b.history(ctx); err != nil || !b.options.write {
		return err
	}
	if b.report.kept() == nil {
		b.report.note("nothing was issued: the installation does not keep up with reads at the lowest rate")
		return nil
	}
	return b.issue(ctx)
}

func (b *bench) connect() error {
	for range b.options.connections {
		r, err := b.access.rest()
		if err != nil {
			return err
		}
		r.limit = benchCallTimeout
		b.conns = append(b.conns, r)
	}
	return nil
}

func (b *bench) disconnect() {
	for _, r := range b.conns {
		r.close()
	}
}

// announce says what is going to happen, before it does.
func (b *bench) announce() {
	o := b.options
	rates := benchRates(o.maxRate)
	b.note("reads from %s: %s requests a second, %s each, over %d connections; stops at a 95th percentile above %s, at 429, and at errors",
		b.access.url, joinRates(rates), o.step(), o.connections, o.p95)
	if o.write {
		b.note("then has up to %d certificates issued by %s, and revokes and archives them", o.certificates, o.issuer)
	} else {
		b.note("nothing is written; have certificates issued too with --write")
	}
}

func joinRates(rates []float64) string {
	texts := make([]string, 0, len(rates))
	for _, r := range rates {
		texts = append(texts, fmt.Sprintf("%g", r))
	}
	return strings.Join(texts, ", ")
}

// commandLine is what was asked for. The API key is in none of the flags.
func commandLine(c *cobra.Command) string {
	words := []string{c.CommandPath()}
	c.Flags().Visit(func(f *pflag.Flag) {
		if f.Name != "against" { // it has become --url
			words = append(words, fmt.Sprintf("--%s=%s", f.Name, f.Value))
		}
	})
	return strings.Join(words, " ")
}
