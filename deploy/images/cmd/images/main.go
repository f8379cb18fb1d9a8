// Command images makes the container images of certctl: see package images.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/certctl/certctl/deploy/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var cfg images.Config
	var created string
	f := flag.NewFlagSet("images", flag.ContinueOnError)
	f.StringVar(&cfg.Root, "root", ".", "top of the source tree")
	f.StringVar(&cfg.Out, "out", "bin/images", "directory for the images")
	f.StringVar(&cfg.Repository, "repository", "ghcr.io/certctl", "registry and path, to which the names of the images are added")
	f.StringVar(&cfg.Version, "version", "dev", "version, which is the tag, too")
	f.StringVar(&cfg.Commit, "commit", "unknown", "commit")
	f.StringVar(&created, "created", "1970-01-01T00:00:00Z", "time of the commit, RFC 3339")
	if err := f.Parse(args); err != nil {
		return err
	}
	var err error
	if cfg.Created, err = time.Parse(time.RFC3339, created); err != nil {
		return fmt.Errorf("-created: %w", err)
	}
	return images.Build(ctx, cfg, os.Stdout)
}
