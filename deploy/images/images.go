// Package images makes the container images of certctl without a container engine: for each program a static binary and a root
// file system around it, as an OCI layout of two platforms, as an archive for each platform, and a list of what is in the
// binary (SBOM). The Dockerfiles beside it describe the same images. The same commit gives the same bytes.
package images

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Source is where the code is published; it stands in the images' labels.
const Source = "https://github.com/certctl/certctl"

// Program is a binary that has an image.
type Program struct {
	Name, Title string
	// Module is its folder in the source tree, Package the main package in that.
	Module, Package string
	// DataDir is the one place where it keeps files, absolute.
	DataDir string
	// Env is the environment of the image.
	Env []string
}

// Programs are those that have images.
func Programs() []Program {
	return []Program{
		{
			Name: "certctl", Title: "certctl server and command line", Module: "services", Package: "./cmd/certctl", DataDir: "/var/lib/certctl",
			Env: []string{"PATH=/usr/local/bin", "CERTCTL_DATA_DIR=/var/lib/certctl"},
		},
		{
			Name: "certctl-agent", Title: "certctl agent", Module: "agent", Package: "./cmd/certctl-agent", DataDir: "/var/lib/certctl-agent",
			Env: []string{"PATH=/usr/local/bin", "CERTCTL_DATA_DIR=/var/lib/certctl-agent"},
		},
	}
}

// Platforms are the architectures that images are made for. The system is Linux.
func Platforms() []string { return []string{"amd64", "arm64"} }

// Config says what to make.
type Config struct {
	// Root is the top of the source tree.
	Root string
	// Out is the directory that gets the images.
	Out string
	// Repository is registry and path, such as ghcr.io/certctl, to which the programs' names are added.
	Repository string
	// Version and Commit are stamped into binaries and labels; Version is the tag.
	Version, Commit string
	// Created is the time of the commit. Everything in the images has it, so that a second build gives the same.
	Created time.Time
}

// Build makes the images of all programs, and says on log what it made.
func Build(ctx context.Context, cfg Config, log io.Writer) error {
	work, err := os.MkdirTemp("", "certctl-images-")
	if err != nil {
		return fmt.Errorf("make working directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	for _, p := range Programs() {
		binaries := make(map[string]string, len(Platforms()))
		for _, arch := range Platforms() {
			binaries[arch] = filepath.Join(work, p.Name+"-"+arch)
			if err := compile(ctx, cfg, p, arch, binaries[arch]); err != nil {
				return err
			}
		}
		if err := Write(cfg, p, binaries, log); err != nil {
			return err
		}
	}
	return nil
}

// Write makes the images of one program from its binaries, which are paths by architecture.
func Write(cfg Config, p Program, binaries map[string]string, log io.Writer) error {
	if err := os.MkdirAll(cfg.Out, 0o755); err != nil { //nolint:gosec // what is in it is public
		return fmt.Errorf("make directory for images: %w", err)
	}
	list := make([]platform, 0, len(binaries))
	for _, arch := range Platforms() {
		path, ok := binaries[arch]
		if !ok {
			return fmt.Errorf("image of %s: there is no binary for %s", p.Name, arch)
		}
		img, err := newImage(cfg, p, arch, path)
		if err != nil {
			return fmt.Errorf("image of %s for %s: %w", p.Name, arch, err)
		}
		if err := writeSBOM(cfg, p, arch, path); err != nil {
			return fmt.Errorf("SBOM of %s for %s: %w", p.Name, arch, err)
		}
		list = append(list, platform{arch: arch, image: img})
	}
	return writeImages(cfg, p, list, log)
}
