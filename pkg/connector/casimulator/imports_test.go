package casimulator_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTheSimulatorIsIndependentOfTheConnectors holds that whatever the simulator is made of, nothing of it is what it
// is there to test.
func TestTheSimulatorIsIndependentOfTheConnectors(t *testing.T) {
	t.Parallel()
	const module = "github.com/certctl/certctl/"
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	require.NoError(t, err)
	packages := strings.Fields(string(out))
	require.Contains(t, packages, module+"pkg/connector/casimulator")
	for _, p := range packages {
		if own, ok := strings.CutPrefix(p, module); ok {
			require.True(t, own == "pkg/connector/casimulator" || !strings.HasPrefix(own, "pkg/connector") && strings.HasPrefix(own, "pkg/"), p)
		}
	}
}
