package images

import (
	"archive/tar"
	"bytes"
	"embed"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// nonroot is the user of the images, known to rootfs/etc/passwd.
const nonroot = 65532

//go:embed rootfs/etc/passwd rootfs/etc/group
var rootfs embed.FS

// entry is a file or a directory of the root file system.
type entry struct {
	name string // without a leading slash; a directory ends with one
	mode int64
	uid  int
	data []byte
}

// entries is the root file system around a binary, parents before what is in them. Nothing is in it but this: no shell, no
// libraries, and no root certificates, which are in the binaries.
func entries(p Program, binary []byte) ([]entry, error) {
	list := []entry{
		{name: "etc/", mode: 0o755},
		{name: "etc/group", mode: 0o644},
		{name: "etc/passwd", mode: 0o644},
		{name: "tmp/", mode: 0o1777},
		{name: "usr/", mode: 0o755},
		{name: "usr/local/", mode: 0o755},
		{name: "usr/local/bin/", mode: 0o755},
		{name: "usr/local/bin/" + p.Name, mode: 0o755, data: binary},
		{name: "var/", mode: 0o755},
		{name: "var/lib/", mode: 0o755},
		{name: strings.TrimPrefix(p.DataDir, "/") + "/", mode: 0o700, uid: nonroot},
	}
	for i, e := range list {
		if e.data != nil || strings.HasSuffix(e.name, "/") {
			continue
		}
		data, err := rootfs.ReadFile("rootfs/" + e.name)
		if err != nil {
			return nil, fmt.Errorf("root file system: %w", err)
		}
		list[i].data = data
	}
	return list, nil
}

// newLayer packs the root file system.
func newLayer(p Program, binary string, created time.Time) (v1.Layer, error) {
	program, err := os.ReadFile(binary)
	if err != nil {
		return nil, fmt.Errorf("read binary: %w", err)
	}
	list, err := entries(p, program)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := pack(&b, list, created); err != nil {
		return nil, fmt.Errorf("pack root file system: %w", err)
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
}

// pack writes a tar file with nothing in it that depends on the host.
func pack(w io.Writer, list []entry, created time.Time) error {
	t := tar.NewWriter(w)
	for _, e := range list {
		h := &tar.Header{Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.uid, Size: int64(len(e.data)), ModTime: created, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if strings.HasSuffix(e.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(e.data); err != nil {
			return err
		}
	}
	return t.Close()
}
