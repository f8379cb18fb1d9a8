package casimulator_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/connector/casimulator"
)

// TestTheDocumentationShowsEveryFault reads what users read: each scenario in it is one, and no kind of fault is left out.
func TestTheDocumentationShowsEveryFault(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../docs/ca-simulator.md")
	require.NoError(t, err)
	shown := map[casimulator.Kind]bool{}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(text, -1)
	require.NotEmpty(t, blocks)
	for _, block := range blocks {
		s, err := casimulator.ParseScenario(block[1])
		require.NoError(t, err, "%s", block[1])
		for _, f := range s.Faults {
			shown[f.Kind] = true
		}
	}
	for _, k := range casimulator.Kinds() {
		require.True(t, shown[k], k)
	}
	for _, o := range casimulator.Operations() {
		require.Contains(t, string(text), "`"+o+"`")
	}
}
