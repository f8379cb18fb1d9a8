// Command chartdoc writes what is generated from the chart's values.yaml.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/certctl/certctl/deploy/helm/chartdoc"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: chartdoc CHART")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "chartdoc:", err)
		os.Exit(1)
	}
}

func write(chart string) error {
	files, err := chartdoc.Files(chart)
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(chart, name), content, 0o644); err != nil { //nolint:gosec // a file of the source tree
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}
