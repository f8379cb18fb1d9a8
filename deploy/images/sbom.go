package images

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

const ours = "github.com/certctl/certctl/"

// writeSBOM writes beside the image what its binary is made of, as the binary itself tells. It has no serial number: the same
// binary gives the same file.
func writeSBOM(cfg Config, p Program, arch, binary string) (err error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("read what the binary is made of: %w", err)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("read binary: %w", err)
	}
	f, err := os.Create(filepath.Join(cfg.Out, p.Name+"-"+arch+".cdx.json"))
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	defer func() { err = cmp.Or(err, f.Close()) }()
	sum := sha256.Sum256(program)
	return cdx.NewBOMEncoder(f, cdx.BOMFileFormatJSON).SetPretty(true).
		EncodeVersion(newBOM(cfg, p, info, hex.EncodeToString(sum[:])), cdx.SpecVersion1_6)
}

func newBOM(cfg Config, p Program, info *debug.BuildInfo, sum string) *cdx.BOM {
	main := cdx.Component{
		BOMRef: "pkg:golang/" + info.Main.Path + "@" + cfg.Version, Type: cdx.ComponentTypeApplication, Name: p.Name, Version: cfg.Version,
		PackageURL: "pkg:golang/" + info.Main.Path + "@" + cfg.Version,
		Hashes:     &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: sum}},
	}
	components := []cdx.Component{library("std", strings.TrimPrefix(info.GoVersion, "go"))}
	for _, m := range info.Deps {
		version := m.Version
		if m.Replace != nil && !strings.HasPrefix(m.Path, ours) {
			m = m.Replace
			version = m.Version
		}
		if strings.HasPrefix(m.Path, ours) {
			version = cfg.Version // from the same tree
		}
		components = append(components, library(m.Path, version))
	}
	slices.SortFunc(components, func(a, b cdx.Component) int { return strings.Compare(a.BOMRef, b.BOMRef) })
	refs := make([]string, len(components))
	for i, c := range components {
		refs[i] = c.BOMRef
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Timestamp: cfg.Created.UTC().Format(time.RFC3339), Component: &main}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: main.BOMRef, Dependencies: &refs}}
	return bom
}

func library(path, version string) cdx.Component {
	url := "pkg:golang/" + path + "@" + version
	return cdx.Component{BOMRef: url, Type: cdx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: url}
}
