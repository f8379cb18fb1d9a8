package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/require"
)

// root is the top of the source tree, seen from here.
const root = "../.."

func testConfig(t *testing.T) Config {
	t.Helper()
	return Config{Root: root, Out: t.TempDir(), Repository: "ghcr.io/certctl", Version: "v1.2.3", Commit: "0123456789ab",
		Created: time.Date(2026, 11, 29, 12, 0, 0, 0, time.FixedZone("", 3600))}
}

// small are binaries of a program that does nothing, which takes a second to build.
func small(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/small\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nfunc main() {}\n"), 0o600))
	binaries := make(map[string]string)
	for _, arch := range Platforms() {
		binaries[arch] = filepath.Join(dir, arch)
		cfg := testConfig(t)
		cfg.Root = dir
		require.NoError(t, compile(t.Context(), cfg, Program{Name: "small", Module: ".", Package: "."}, arch, binaries[arch]))
	}
	return binaries
}

// images writes images of small binaries and reads the index of the layout back.
func images(t *testing.T, cfg Config, p Program) v1.ImageIndex {
	t.Helper()
	require.NoError(t, Write(cfg, p, small(t), io.Discard))
	return index(t, filepath.Join(cfg.Out, p.Name))
}

func index(t *testing.T, dir string) v1.ImageIndex {
	t.Helper()
	outer, err := layout.ImageIndexFromPath(dir)
	require.NoError(t, err)
	m, err := outer.IndexManifest()
	require.NoError(t, err)
	require.Len(t, m.Manifests, 1, "tools push a layout with one thing in it")
	inner, err := outer.ImageIndex(m.Manifests[0].Digest)
	require.NoError(t, err)
	return inner
}

// sums are the SHA-256 of all files below dir.
func sums(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	all := make(map[string][32]byte)
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		all[name] = sha256.Sum256(b)
		return err
	}))
	return all
}

func TestTheSameCommitGivesTheSameBytes(t *testing.T) {
	t.Parallel()
	p := Programs()[1]
	first, second := testConfig(t), testConfig(t)
	second.Created = second.Created.UTC() // the same moment, said in another zone
	images(t, first, p)
	require.NoError(t, os.MkdirAll(filepath.Join(second.Out, p.Name, "blobs"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(second.Out, p.Name, "blobs", "old"), nil, 0o600), "left over from a build before")
	images(t, second, p)
	require.Equal(t, sums(t, first.Out), sums(t, second.Out))
	require.Len(t, sums(t, first.Out), 2+2+2+2*3+1, "oci-layout and index.json, two archives, two SBOMs; manifest, configuration and layer of each, and the index")

	other := testConfig(t)
	other.Commit = "ba9876543210"
	images(t, other, p)
	require.NotEqual(t, sums(t, first.Out)[p.Name+"/index.json"], sums(t, other.Out)[p.Name+"/index.json"])
}

func TestALayoutIsValidAndHasTwoPlatforms(t *testing.T) {
	t.Parallel()
	for _, p := range Programs() {
		t.Run(p.Name, func(t *testing.T) {
			t.Parallel()
			idx := images(t, testConfig(t), p)
			require.NoError(t, validate.Index(idx))
			m, err := idx.IndexManifest()
			require.NoError(t, err)
			require.Equal(t, types.OCIImageIndex, m.MediaType)
			var platforms []string
			for _, d := range m.Manifests {
				require.Equal(t, types.OCIManifestSchema1, d.MediaType)
				require.Empty(t, d.ArtifactType)
				platforms = append(platforms, d.Platform.String())
			}
			require.Equal(t, []string{"linux/amd64", "linux/arm64/v8"}, platforms)
		})
	}
}

func TestAnImageRunsItsProgramAsNobodyInParticular(t *testing.T) {
	t.Parallel()
	for _, p := range Programs() {
		t.Run(p.Name, func(t *testing.T) {
			t.Parallel()
			idx := images(t, testConfig(t), p)
			m, err := idx.IndexManifest()
			require.NoError(t, err)
			for _, d := range m.Manifests {
				img, err := idx.Image(d.Digest)
				require.NoError(t, err)
				file, err := img.ConfigFile()
				require.NoError(t, err)
				require.Equal(t, "65532:65532", file.Config.User)
				require.Equal(t, []string{"/usr/local/bin/" + p.Name}, file.Config.Entrypoint)
				require.Empty(t, file.Config.Cmd)
				require.Equal(t, d.Platform.Architecture, file.Architecture)
				require.Equal(t, "2026-11-29T11:00:00Z", file.Config.Labels["org.opencontainers.image.created"])
				require.Equal(t, "v1.2.3", file.Config.Labels["org.opencontainers.image.version"])
				require.Equal(t, "0123456789ab", file.Config.Labels["org.opencontainers.image.revision"])
				require.Equal(t, Source, file.Config.Labels["org.opencontainers.image.source"])
			}
		})
	}
}

func TestTheRootFileSystemHoldsTheProgramAndNothingToRunElse(t *testing.T) {
	t.Parallel()
	p := Programs()[0]
	cfg := testConfig(t)
	idx := images(t, cfg, p)
	type file struct {
		mode fs.FileMode
		uid  int
	}
	got := make(map[string]file)
	for _, h := range headers(t, idx, "amd64") {
		require.Equal(t, cfg.Created.Unix(), h.ModTime.Unix(), h.Name)
		require.Equal(t, h.Uid, h.Gid, h.Name)
		require.Empty(t, h.Uname+h.Gname, h.Name)
		got[h.Name] = file{h.FileInfo().Mode(), h.Uid}
	}
	require.Equal(t, map[string]file{
		"etc/":                  {fs.ModeDir | 0o755, 0},
		"etc/group":             {0o644, 0},
		"etc/passwd":            {0o644, 0},
		"tmp/":                  {fs.ModeDir | fs.ModeSticky | 0o777, 0},
		"usr/":                  {fs.ModeDir | 0o755, 0},
		"usr/local/":            {fs.ModeDir | 0o755, 0},
		"usr/local/bin/":        {fs.ModeDir | 0o755, 0},
		"usr/local/bin/certctl": {0o755, 0},
		"var/":                  {fs.ModeDir | 0o755, 0},
		"var/lib/":              {fs.ModeDir | 0o755, 0},
		"var/lib/certctl/":      {fs.ModeDir | 0o700, 65532},
	}, got)
}

// layer is the one layer of the image for an architecture, unpacked from gzip.
func layer(t *testing.T, idx v1.ImageIndex, arch string) io.Reader {
	t.Helper()
	m, err := idx.IndexManifest()
	require.NoError(t, err)
	for _, d := range m.Manifests {
		if d.Platform.Architecture != arch {
			continue
		}
		img, err := idx.Image(d.Digest)
		require.NoError(t, err)
		layers, err := img.Layers()
		require.NoError(t, err)
		require.Len(t, layers, 1)
		r, err := layers[0].Uncompressed()
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		return bytes.NewReader(b)
	}
	require.Fail(t, "no image for "+arch)
	return nil
}

func headers(t *testing.T, idx v1.ImageIndex, arch string) []*tar.Header {
	t.Helper()
	var list []*tar.Header
	for r := tar.NewReader(layer(t, idx, arch)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		require.NoError(t, err)
		list = append(list, h)
	}
}

func TestAnArchiveHoldsTheSameImageUnderItsName(t *testing.T) {
	t.Parallel()
	cfg, p := testConfig(t), Programs()[1]
	m, err := images(t, cfg, p).IndexManifest()
	require.NoError(t, err)
	for i, arch := range Platforms() {
		path := filepath.Join(cfg.Out, p.Name+"-"+arch+".tar")
		manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(path) })
		require.NoError(t, err)
		require.Len(t, manifest, 1)
		require.Equal(t, []string{"ghcr.io/certctl/certctl-agent:v1.2.3"}, manifest[0].RepoTags)
		img, err := tarball.ImageFromPath(path, nil)
		require.NoError(t, err)
		require.NoError(t, validate.Image(img))
		archived, err := img.ConfigName()
		require.NoError(t, err)
		laidOut, err := index(t, filepath.Join(cfg.Out, p.Name)).Image(m.Manifests[i].Digest)
		require.NoError(t, err)
		want, err := laidOut.ConfigName()
		require.NoError(t, err)
		require.Equal(t, want, archived)
	}
}

func TestAVersionThatIsNoTagIsRefused(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Version = "v1+dirty"
	require.ErrorContains(t, Write(cfg, Programs()[0], small(t), io.Discard), "-version")
	require.ErrorContains(t, Write(testConfig(t), Programs()[0], nil, io.Discard), "no binary for amd64")
}

// realLayout makes the images of a real program. Both platforms have the same binary, which saves minutes.
func realLayout(t *testing.T, p Program) (Config, v1.ImageIndex) {
	t.Helper()
	cfg := testConfig(t)
	binary := filepath.Join(t.TempDir(), p.Name)
	require.NoError(t, compile(t.Context(), cfg, p, "amd64", binary))
	require.NoError(t, Write(cfg, p, map[string]string{"amd64": binary, "arm64": binary}, io.Discard))
	return cfg, index(t, filepath.Join(cfg.Out, p.Name))
}

func TestTheRealProgramsRunInTheirRootFileSystemWithoutRights(t *testing.T) {
	t.Parallel()
	for _, p := range Programs() {
		t.Run(p.Name, func(t *testing.T) {
			t.Parallel()
			cfg, idx := realLayout(t, p)
			components := sbom(t, cfg, p)
			require.Contains(t, components, "google.golang.org/grpc")
			require.Contains(t, components, "golang.org/x/crypto/x509roots/fallback", "the image has no other roots")
			require.Equal(t, cfg.Version, components["github.com/certctl/certctl/pkg"])
			require.Equal(t, p.Name == "certctl", components["github.com/jackc/pgx/v5"] != "", "the server's driver, which the agent has not")
			if os.Geteuid() != 0 {
				t.Log("not root: the program is not run in its root file system, which takes chroot")
				return
			}
			out := runChrooted(t.Context(), t, unpack(t, layer(t, idx, "amd64")), p)
			require.Contains(t, out, cfg.Version+" ("+cfg.Commit+")")
		})
	}
}

// sbom are the versions of what the SBOM lists, by name.
func sbom(t *testing.T, cfg Config, p Program) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(cfg.Out, p.Name+"-amd64.cdx.json"))
	require.NoError(t, err)
	var bom struct {
		BOMFormat, SpecVersion, SerialNumber string
		Metadata                             struct{ Timestamp string }
		Components                           []struct{ Name, Version, Purl string }
	}
	require.NoError(t, json.Unmarshal(b, &bom))
	require.Equal(t, "CycloneDX", bom.BOMFormat)
	require.Empty(t, bom.SerialNumber)
	require.Equal(t, "2026-11-29T11:00:00Z", bom.Metadata.Timestamp)
	components := make(map[string]string)
	for _, c := range bom.Components {
		require.Equal(t, "pkg:golang/"+c.Name+"@"+c.Version, c.Purl)
		require.NotEmpty(t, c.Version, c.Name)
		components[c.Name] = c.Version
	}
	return components
}

// unpack makes the root file system of an image on disk, with its owners: root only.
func unpack(t *testing.T, r io.Reader) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "tar", "-x", "-p", "--same-owner", "-C", dir)
	cmd.Stdin = r
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

func runChrooted(ctx context.Context, t *testing.T, dir string, p Program) string {
	t.Helper()
	cmd := exec.CommandContext(ctx, "/usr/local/bin/"+p.Name, "--version")
	cmd.Env, cmd.Dir = p.Env, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Credential: &syscall.Credential{Uid: nonroot, Gid: nonroot}}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return strings.TrimSpace(string(out))
}
