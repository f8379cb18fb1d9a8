// Command bench measures certctl: it fills databases of several sizes, loads real processes, and writes what they reach beside what the
// machine could give. `make bench` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/certctl/certctl/deploy/bench/internal/limit"
	"github.com/certctl/certctl/deploy/bench/internal/report"
	"github.com/certctl/certctl/deploy/bench/internal/trial"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 3 && args[0] == limit.Server {
		size, err := strconv.Atoi(args[2])
		return errors.Join(err, limit.Serve(ctx, args[1], size))
	}
	if len(args) > 0 && args[0] == trial.Hosts {
		return trial.RunHosts(ctx, args[1:])
	}
	if len(args) == 2 && args[0] == "page" {
		return page(args[1])
	}
	return measure(ctx, args)
}

// page draws the report of a directory anew.
func page(dir string) error {
	r, err := report.Read(dir)
	if err != nil {
		return err
	}
	return r.Write(dir)
}

func measure(ctx context.Context, args []string) error {
	o := trial.Options{Say: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
	}}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&o.Binary, "certctl", "bin/certctl", "the program to measure")
	flags.StringVar(&o.Dir, "dir", filepath.Join(os.TempDir(), "certctl-bench"), "where data lies; what is there is used again")
	out := flags.String("out", "docs/bench", "directory for report.json and index.html; with -only, figures that are there stay")
	sizes := flags.String("sizes", "1000,100000", "numbers of certificates, each an installation of its own")
	only := flags.String("only", "", "measure these alone: "+strings.Join(trial.Names(), ","))
	flags.DurationVar(&o.For, "for", 10*time.Second, "how long each load lasts")
	flags.DurationVar(&o.Idle, "idle", time.Minute, "how long an idle installation is looked at")
	flags.IntVar(&o.Workers, "connections", 16, "connections of the load")
	flags.IntVar(&o.Agents, "agents", 10_000, "agents that are connected at once")
	flags.IntVar(&o.Renewals, "renewals", 10_000, "certificates of the storm")
	flags.IntVar(&o.Events, "events", 0, "audit events in the data (0: one for each certificate)")
	flags.IntVar(&o.Revoked, "revoked", 0, "revoked certificates in the data (0: one in a hundred)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *only != "" {
		o.Only = strings.Split(*only, ",")
	}
	for _, text := range strings.Split(*sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("-sizes: %q is no number of certificates", text)
		}
		o.Sizes = append(o.Sizes, n)
	}
	var err error
	if o.Binary, err = filepath.Abs(o.Binary); err != nil {
		return fmt.Errorf("-certctl: %w", err)
	}
	r, err := report.Open(ctx, *out, "go run ./deploy/bench/cmd/bench "+strings.Join(asked(flags), " "), *only != "")
	if err != nil {
		return err
	}
	return trial.Run(ctx, o, r)
}

// asked gives the flags that say what is measured, without those that name places of this machine.
func asked(flags *flag.FlagSet) []string {
	var out []string
	flags.Visit(func(f *flag.Flag) {
		if !slices.Contains([]string{"certctl", "dir", "out", "only"}, f.Name) {
			out = append(out, "-"+f.Name, f.Value.String())
		}
	})
	return out
}
