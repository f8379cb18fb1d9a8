// Package report keeps what was measured, as JSON for machines and as a page for people.
package report

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/certctl/certctl/deploy/bench/internal/limit"
	"github.com/certctl/certctl/deploy/bench/internal/meter"
)

// Report is one run.
type Report struct {
	Command  string    `json:"command"`
	Commit   string    `json:"commit"`
	Time     time.Time `json:"time"`
	Machine  Machine   `json:"machine"`
	Versions Versions  `json:"versions"`
	Settings []string  `json:"settings"`
	Data     []Data    `json:"data"`
	Figures  []Figure  `json:"figures"`
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
	Certificates int              `json:"certificates"`
	Rows         map[string]int64 `json:"rows"`
	Bytes        int64            `json:"bytes"`
	// Seconds are what it took to fill.
	Seconds float64 `json:"seconds"`
}

// Figure is one thing that was measured.
type Figure struct {
	// Name is short and the same in all reports; What says it in words.
	Name string `json:"name"`
	What string `json:"what"`
	// Certificates is the size of the data.
	Certificates int `json:"certificates"`
	// Goal is what was to be reached; Met tells whether it was. Without a goal there is nothing to meet.
	Goal string `json:"goal,omitempty"`
	Met  bool   `json:"met"`
	// Value is what the goal is about, with its unit, where it is not in the reading.
	Value   string         `json:"value,omitempty"`
	Reading *meter.Reading `json:"reading,omitempty"`
	Limit   *limit.Limit   `json:"limit,omitempty"`
	// Ratio is the throughput over that of the limit.
	Ratio   float64  `json:"ratio,omitempty"`
	Notes   []string `json:"notes,omitempty"`
	Command string   `json:"command"`
}

// New begins a report of the command that runs.
func New(ctx context.Context, command string) *Report {
	return &Report{
		Command: command, Commit: output(ctx, "git", "rev-parse", "--short=12", "HEAD"), Time: time.Now().UTC().Truncate(time.Second),
		Machine:  Machine{CPU: field("/proc/cpuinfo", "model name"), Cores: runtime.NumCPU(), Memory: field("/proc/meminfo", "MemTotal"), Kernel: output(ctx, "uname", "-r")},
		Versions: Versions{Go: runtime.Version()},
	}
}

// Add takes a figure.
func (r *Report) Add(f Figure) {
	if f.Limit != nil && f.Reading != nil && f.Limit.Throughput > 0 {
		f.Ratio = f.Reading.Throughput / f.Limit.Throughput
	}
	r.Figures = append(r.Figures, f)
}

// Write writes the JSON.
func (r *Report) Write(path string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return os.WriteFile(path, append(b, '\n'), 0o644) //nolint:gosec // it is published
}

// Read reads what Write wrote.
func Read(path string) (*Report, error) {
	b, err := os.ReadFile(path)
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
