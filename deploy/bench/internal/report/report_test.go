package report_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/deploy/bench/internal/report"
)

func TestAFigureTakesThePlaceOfTheOneThatWasMeasuredBefore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r, err := report.Open(t.Context(), dir, "bench -sizes 1000", false)
	require.NoError(t, err)
	require.NoError(t, r.Add(report.Figure{Name: "start", Certificates: 1000, Value: "1 s"}))
	require.NoError(t, r.Add(report.Figure{Name: "get/latency", Certificates: 1000, Value: "1 ms"}))

	r, err = report.Open(t.Context(), dir, "bench -sizes 1000,5000", true)
	require.NoError(t, err)
	require.NoError(t, r.Add(report.Figure{Name: "start", Certificates: 1000, Value: "2 s"}))
	require.NoError(t, r.Add(report.Figure{Name: "start", Certificates: 5000, Value: "3 s"}))
	require.NoError(t, r.Add(report.Figure{Name: "start", Certificates: 1000, Also: "9000 events", Value: "4 s"}))

	r, err = report.Read(dir)
	require.NoError(t, err)
	var values, commands []string
	for _, f := range r.Figures {
		values, commands = append(values, f.Value), append(commands, f.Command)
	}
	require.Equal(t, []string{"2 s", "1 ms", "3 s", "4 s"}, values)
	require.Equal(t, "bench -sizes 1000,5000 -only start", commands[0])
	require.Equal(t, "bench -sizes 1000 -only get", commands[1])
	page, err := os.ReadFile(filepath.Join(dir, "index.html"))
	require.NoError(t, err)
	require.Contains(t, string(page), "1,000 certificates, 9000 events")

	r, err = report.Open(t.Context(), dir, "bench", false)
	require.NoError(t, err)
	require.Empty(t, r.Figures, "a run of everything begins anew")
}

func TestFiguresOfAnotherMachineDoNotStay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r, err := report.Open(t.Context(), dir, "bench", false)
	require.NoError(t, err)
	r.Machine.CPU = "another"
	require.NoError(t, r.Add(report.Figure{Name: "start"}))
	r, err = report.Open(t.Context(), dir, "bench", true)
	require.NoError(t, err)
	require.Empty(t, r.Figures)
}
