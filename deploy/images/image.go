package images

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// user is what the images run as.
var user = fmt.Sprintf("%d:%d", nonroot, nonroot)

// platform is the image for an architecture.
type platform struct {
	arch  string
	image v1.Image
}

// plain is an image whose descriptor does not name an artifact type: it is no artifact, and some tools take the one that the
// library makes up for a sign that it is.
type plain struct{ v1.Image }

// ArtifactType answers none.
func (plain) ArtifactType() (string, error) { return "", nil }

// newImage puts a binary into an image.
func newImage(cfg Config, p Program, arch, binary string) (v1.Image, error) {
	layer, err := newLayer(p, binary, cfg.Created)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	created := v1.Time{Time: cfg.Created.UTC()}
	img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{Created: created, CreatedBy: "certctl make images"}})
	if err != nil {
		return nil, fmt.Errorf("add root file system: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", arch, created
	if arch == "arm64" {
		file.Variant = "v8"
	}
	file.Config = v1.Config{
		User: user, Env: p.Env, Entrypoint: []string{"/usr/local/bin/" + p.Name}, WorkingDir: "/",
		Labels: labels(cfg, p),
	}
	return mutate.ConfigFile(img, file)
}

// labels are the OCI annotations that the Dockerfiles set, too.
func labels(cfg Config, p Program) map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":    p.Title,
		"org.opencontainers.image.source":   Source,
		"org.opencontainers.image.version":  cfg.Version,
		"org.opencontainers.image.revision": cfg.Commit,
		"org.opencontainers.image.created":  cfg.Created.UTC().Format(time.RFC3339),
	}
}

// writeImages writes the layout and the archives.
func writeImages(cfg Config, p Program, list []platform, log io.Writer) error {
	tag, err := name.NewTag(cfg.Repository + "/" + p.Name + ":" + cfg.Version)
	if err != nil {
		return fmt.Errorf("name of the image of %s (-repository, -version): %w", p.Name, err)
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, pl := range list {
		path := filepath.Join(cfg.Out, p.Name+"-"+pl.arch+".tar")
		if err := tarball.WriteToFile(path, tag, pl.image); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		file, err := pl.image.ConfigFile()
		if err != nil {
			return fmt.Errorf("read configuration: %w", err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: plain{pl.image}, Descriptor: v1.Descriptor{Platform: file.Platform()}})
	}
	dir := filepath.Join(cfg.Out, p.Name)
	if err := writeLayout(dir, index, tag); err != nil {
		return fmt.Errorf("write %s: %w", dir, err)
	}
	digest, err := index.Digest()
	if err != nil {
		return fmt.Errorf("digest of %s: %w", dir, err)
	}
	_, err = fmt.Fprintf(log, "%s@%s\n", tag.Name(), digest)
	return err
}

// writeLayout writes an OCI layout that holds the index alone. Its annotations are the names by which tools find it.
func writeLayout(dir string, index v1.ImageIndex, tag name.Tag) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return path.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": tag.TagStr(),
		"io.containerd.image.name":          tag.Name(),
	}))
}
