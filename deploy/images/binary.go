package images

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// ldflags are those of the Makefile and of the Dockerfiles.
func ldflags(version, commit string) string {
	const pkg = "github.com/certctl/certctl/pkg/version"
	return fmt.Sprintf("-s -w -X %s.Version=%s -X %s.Commit=%s", pkg, version, pkg, commit)
}

// buildEnv is what a build must not take from the host. The module is built alone: what other modules of the workspace need
// for their tests does not choose versions for it.
func buildEnv() []string {
	return []string{"CGO_ENABLED=0", "GOOS=linux", "GOWORK=off", "GOFLAGS=", "GOEXPERIMENT=", "GOAMD64=v1", "GOARM64=v8.0", "GOFIPS140=off"}
}

// compile builds a program for an architecture into the file out.
func compile(ctx context.Context, cfg Config, p Program, arch, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags(cfg.Version, cfg.Commit), "-o", out, p.Package)
	cmd.Dir = filepath.Join(cfg.Root, p.Module)
	cmd.Env = append(append(os.Environ(), buildEnv()...), "GOARCH="+arch)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s for %s: %w\n%s", p.Name, arch, err, output)
	}
	return nil
}
