// Package report keeps what was measured, as JSON for machines and as a page for people.
package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/certctl/certctl/deploy/bench/internal/limit"
	"github.com/certctl/certctl/deploy/bench/internal/meter"
)

// Report is what was measured on one machine, in one run or in several: each figure says which.
type Report struct {
	Machine  Machine  `json:"machine"`
	Versions Versions `json:"versions"`
	Data     []Data   `json:"data"`
	Figures  []Figure `json:"figures"`

	path    string
	command string
	commit  string
}

// Machine is what everything ran on: Postgres, certctl and the load.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory string `json:"memory"`
	Kernel string `json:"kernel"`
}

// Versions of what took part.
type Versions struct {
	Go       string `json:"go"`
	Postgres string `json:"postgres"`
}

// Data is what an installation held.
type Data struct {
	Certificates int `json:"certificates"`
	// Also is what there is more of than goes with the certificates, in words.
	Also  string           `json:"also,omitempty"`
	Rows  map[string]int64 `json:"rows"`
	Bytes int64            `json:"bytes"`
	// Seconds are what it took to fill.
	Seconds float64 `json:"seconds"`
}

// Figure is one thing that was measured.
type Figure struct {
	// Name is short and the same in all reports; What says it in words.
	Name string `json:"name"`
	What string `json:"what"`
	// Certificates and Also are the size of the data.
	Certificates int    `json:"certificates"`
	Also         string `json:"also,omitempty"`
	// Goal is what was to be reached; Met tells whether it was. Without a goal there is nothing to meet.
	Goal string `json:"goal,omitempty"`
	Met  bool   `json:"met"`
	// Value is what the goal is about, with its unit, where it is not in the reading.
	Value   string         `json:"value,omitempty"`
	Reading *meter.Reading `json:"reading,omitempty"`
	Limit   *limit.Limit   `json:"limit,omitempty"`
	// Ratio is the throughput over that of the limit.
	Ratio float64  `json:"ratio,omitempty"`
	Notes []string `json:"notes,omitempty"`
	// Command, Commit and Time are those of the run.
	Command string    `json:"command"`
	Commit  string    `json:"commit"`
	Time    time.Time `json:"time"`
}

// Names of the files of a report.
const (
	jsonName = "report.json"
	pageName = "index.html"
)

// Open begins a report in a directory, for the command that runs. With further, the figures that are there stay until they are measured
// again, if they are from a machine like this.
func Open(ctx context.Context, dir, command string, further bool) (*Report, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make directory of the report: %w", err)
	}
	r := &Report{
		Machine: Machine{CPU: field("/proc/cpuinfo", "model name"), Cores: runtime.NumCPU(), Memory: field("/proc/meminfo", "MemTotal"), Kernel: output(ctx, "uname", "-r")},
	}
	if further {
		before, err := Read(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil && before.Machine == r.Machine {
			r = before
		}
	}
	r.Versions.Go, r.path, r.command, r.commit = runtime.Version(), dir, command, output(ctx, "git", "rev-parse", "--short=12", "HEAD")
	return r, nil
}

// Add takes a figure in place of the one that had its name and size, and writes the report.
func (r *Report) Add(f Figure) error {
	if f.Limit != nil && f.Reading != nil && f.Limit.Throughput > 0 {
		f.Ratio = f.Reading.Throughput / f.Limit.Throughput
	}
	f.Command, f.Commit, f.Time = r.command+" -only "+f.Trial(), r.commit, time.Now().UTC().Truncate(time.Second)
	r.Figures = replaced(r.Figures, f, func(a, b Figure) bool {
		return a.Name == b.Name && a.Certificates == b.Certificates && a.Also == b.Also
	})
	return r.Write(r.path)
}

// Filled takes the data of an installation.
func (r *Report) Filled(d Data) {
	r.Data = replaced(r.Data, d, func(a, b Data) bool { return a.Certificates == b.Certificates && a.Also == b.Also })
}

// replaced gives a list in which one has the place of that which is the same, or the last.
func replaced[T any](list []T, one T, same func(a, b T) bool) []T {
	if i := slices.IndexFunc(list, func(other T) bool { return same(other, one) }); i >= 0 {
		list[i] = one
		return list
	}
	return append(list, one)
}

// Trial is what made the figure.
func (f Figure) Trial() string {
	name, _, _ := strings.Cut(f.Name, "/")
	return name
}

// Write writes the JSON and the page to a directory.
func (r *Report) Write(dir string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, jsonName), append(b, '\n'), 0o644); err != nil { //nolint:gosec // it is published
		return fmt.Errorf("write report: %w", err)
	}
	return writePage(r, filepath.Join(dir, pageName))
}

// Read reads what Write wrote.
func Read(dir string) (*Report, error) {
	b, err := os.ReadFile(filepath.Join(dir, jsonName))
	if err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	return &r, nil
}

func output(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// field reads a line "name : value" of a file of the kernel.
func field(path, name string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
