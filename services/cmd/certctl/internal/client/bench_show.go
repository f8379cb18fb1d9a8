package client

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/certctl/certctl/pkg/load"
	"github.com/certctl/certctl/services/cmd/certctl/internal/client/internal/show"
)

// show writes the report.
func (b *bench) show() error {
	if b.format == show.Table {
		return b.tables()
	}
	encoded, err := json.Marshal(b.report)
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	return b.printer().Encoded(encoded)
}

func (b *bench) tables() error {
	r := &b.report
	for _, section := range [][][]string{r.about(), r.networkRows(), r.stepRows(), r.readRows(), r.issuedRows(), r.headroomRows()} {
		if len(section) == 0 {
			continue
		}
		if err := show.Align(b.out(), section); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(b.out()); err != nil {
			return err
		}
	}
	lines := []string{"first bottleneck: " + r.Bottleneck.Text}
	if r.Bottleneck.Advice != "" {
		lines = append(lines, "what to do: "+r.Bottleneck.Advice)
	}
	for _, n := range r.Notes {
		lines = append(lines, "note: "+n)
	}
	_, err := fmt.Fprintln(b.out(), cleanLines(strings.Join(lines, "\n")))
	return err
}

func (r *benchReport) about() [][]string {
	return [][]string{
		{"server", fmt.Sprintf("%s, %s (%s)", r.URL, r.Server.Version, r.Server.Commit)},
		{"key", fmt.Sprintf("%s's, role %s", r.Caller.Name, r.Caller.Role)},
		{"certificates", counted(r.Inventory.Certificates)}, {"agents", counted(r.Inventory.Agents)},
		{"deployments", counted(r.Inventory.Deployments)}, {"jobs", counted(r.Inventory.Jobs)},
	}
}

// counted is a sum, and what it is of.
func counted(counts map[string]int32) string {
	parts := make([]string, 0, len(counts))
	for _, status := range slices.Sorted(maps.Keys(counts)) {
		if counts[status] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", status, counts[status]))
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	return fmt.Sprintf("%d: %s", total(counts), strings.Join(parts, ", "))
}

func (r *benchReport) networkRows() [][]string {
	n := r.Network
	if n.Health.Max == 0 {
		return nil
	}
	connect := "TCP connect"
	if n.Proxy {
		connect += " (to the proxy)"
	}
	rows := [][]string{
		append([]string{"NETWORK"}, latencyHeader()...),
		append([]string{connect}, latencyCells(n.TCP)...),
		append([]string{"TLS handshake"}, latencyCells(n.TLS)...),
		append([]string{"GET /health"}, latencyCells(n.Health)...),
	}
	return rows
}

func latencyHeader() []string { return []string{"P50", "P95", "P99", "MAX"} }

func latencyCells(l load.Latency) []string {
	if l.Max == 0 {
		return []string{"-", "-", "-", "-"}
	}
	return []string{milliseconds(l.P50), milliseconds(l.P95), milliseconds(l.P99), milliseconds(l.Max)}
}

func (r *benchReport) stepRows() [][]string {
	if len(r.Steps) == 0 {
		return nil
	}
	rows := [][]string{append(append([]string{"READS AT", "ANSWERS"}, latencyHeader()...), "HEALTH P50", "REFUSED", "FAILED", "VERDICT")}
	for _, s := range r.Steps {
		rows = append(rows, append(append([]string{fmt.Sprintf("%g/s", s.Rate), strconv.Itoa(s.Done)}, latencyCells(s.Latency)...),
			latencyCells(s.Health)[0], strconv.Itoa(s.Refused), strconv.Itoa(s.Failed), s.Verdict))
	}
	return rows
}

// readRows are the kinds of requests at the highest rate that was kept, and what of it is the network.
func (r *benchReport) readRows() [][]string {
	kept := r.kept()
	if kept == nil {
		return nil
	}
	rows := [][]string{append(append([]string{fmt.Sprintf("AT %g/s", kept.Rate), "ANSWERS"}, latencyHeader()...), "304")}
	for _, k := range kept.Reads {
		rows = append(rows, append(append([]string{k.Name, strconv.Itoa(k.Done)}, latencyCells(k.Latency)...), strconv.Itoa(k.NotModified)))
	}
	return append(rows, []string{r.share(*kept)})
}

// share is what of a request is not certctl's work: one round trip, which is what a TCP connection takes. Through a proxy that is
// not seen, and GET /health stands for it.
func (r *benchReport) share(s benchStep) string {
	if r.Network.Proxy {
		return fmt.Sprintf("of p50 %s, %s are network, proxy and gateway (GET /health at the same time)", milliseconds(s.Latency.P50), milliseconds(s.Health.P50))
	}
	return fmt.Sprintf("of p50 %s, %s are the network (TCP connect), and %s network and gateway without a service behind (GET /health at the same time)",
		milliseconds(s.Latency.P50), milliseconds(r.Network.TCP.P50), milliseconds(s.Health.P50))
}

func (r *benchReport) issuedRows() [][]string {
	i := r.Issuance
	if i == nil {
		return nil
	}
	return [][]string{
		append(append([]string{"WRITES", "ISSUED", "A SECOND"}, latencyHeader()...), "REVOKED", "ARCHIVED"),
		append(append([]string{"by " + i.Issuer, fmt.Sprintf("%d of %d", i.Issued, i.Created), fmt.Sprintf("%.3g", i.PerSecond)}, latencyCells(i.Latency)...),
			strconv.Itoa(i.Revoked), strconv.Itoa(i.Archived)),
	}
}

func (r *benchReport) headroomRows() [][]string {
	rows := [][]string{{"HEADROOM", "HOW MANY", "HOW", "FROM"}}
	for _, h := range r.Headroom {
		many := "-"
		if h.How != howNot {
			many = roundly(h.Value)
			if h.AtLeast {
				many = "at least " + many
			}
		}
		rows = append(rows, []string{h.What, many, h.How, h.From})
	}
	return rows
}

// roundly writes a count with three digits that say something, as a measurement has no more, and rounds down.
func roundly(v float64) string {
	if v < 1000 {
		return fmt.Sprintf("%.3g", v)
	}
	unit := math.Pow(10, math.Floor(math.Log10(v))-2)
	digits := strconv.FormatFloat(math.Floor(v/unit)*unit, 'f', 0, 64)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
