package casimulator_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	simulator "github.com/certctl/certctl/pkg/connector/casimulator"
	"github.com/certctl/certctl/pkg/connector/issuer"
	"github.com/certctl/certctl/pkg/connector/issuer/digicert"
	"github.com/certctl/certctl/pkg/connector/issuer/entrustecs"
	"github.com/certctl/certctl/pkg/connector/issuer/entrustgateway"
	"github.com/certctl/certctl/pkg/connector/issuer/globalsign"
	"github.com/certctl/certctl/pkg/connector/issuer/sectigo"
	"github.com/certctl/certctl/services/cmd/certctl/internal/casimulator"
)

// output is what a command that goes on prints.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// running starts the command and waits until it has said all that it says; stop ends it as a signal does.
func running(t *testing.T, args ...string) (out *output, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out = &output{}
	cmd := casimulator.Command()
	cmd.SetOut(out)
	cmd.SetErr(out)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs(append([]string{"--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"}, args...))
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()
	stop = func() error {
		cancel()
		return <-ended
	}
	require.Eventually(t, func() bool {
		select {
		case err := <-ended:
			require.NoError(t, err)
		default:
		}
		return bytes.Contains([]byte(out.String()), []byte("Ctrl-C"))
	}, 30*time.Second, 5*time.Millisecond)
	return out, stop
}

func TestEachCAsSettingsWorkAsTheyArePrinted(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "sim ulator")
	out, stop := running(t, "--data", dir)
	defer func() { require.NoError(t, stop()) }()
	for _, kind := range []issuer.Type{digicert.Type(), sectigo.Type(), globalsign.Type(), entrustgateway.Type(), entrustecs.Type()} {
		text, err := os.ReadFile(filepath.Join(dir, kind.Name+".json"))
		require.NoError(t, err)
		require.Contains(t, out.String(), string(text))
		require.Contains(t, out.String(), "--type "+kind.Name+" --config '@"+dir+"/"+kind.Name+".json'")
		settings, secrets, err := kind.SplitSecrets(json.RawMessage(text))
		require.NoError(t, err)
		i, err := kind.New(t.Context(), issuer.Config{Settings: settings, Secrets: secrets}, issuer.Deps{})
		require.NoError(t, err, kind.Name)
		tester, ok := i.(issuer.Tester)
		require.True(t, ok)
		require.NoError(t, tester.Test(t.Context()), kind.Name)
	}
}

func TestItEndsCleanlyAndStartsAgainWithItsOrders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, stop := running(t, "--data", dir)
	second := casimulator.Command()
	second.SetOut(&output{})
	second.SetErr(&output{})
	second.SetArgs([]string{"--data", dir, "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"})
	require.ErrorContains(t, second.ExecuteContext(t.Context()), "is held by process")
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	require.NoError(t, err)
	require.NoError(t, stop())

	_, stop = running(t, "--data", dir)
	again, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	require.NoError(t, err)
	require.Equal(t, ca, again)
	require.NoError(t, stop())
}

func TestMistakesAreNamed(t *testing.T) {
	t.Parallel()
	scenario := filepath.Join(t.TempDir(), "scenario.yaml")
	require.NoError(t, os.WriteFile(scenario, []byte("latency: 1s\nfaults: [{fault: fire}]\n"), 0o600))
	for _, args := range [][]string{
		{"--scenario", scenario}, {"--scenario", scenario + ".none"}, {"--listen", "nowhere"}, {"--control", "127.0.0.1:99999"}, {"order"},
	} {
		cmd := casimulator.Command()
		cmd.SetOut(&output{})
		cmd.SetErr(&output{})
		cmd.SetArgs(append([]string{"--listen", "127.0.0.1:0", "--data", t.TempDir()}, args...))
		require.Error(t, cmd.ExecuteContext(t.Context()), args)
	}
}

func TestANameForOthersIsInSettingsAndCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	out, stop := running(t, "--data", dir, "--listen", "0.0.0.0:0", "--host", "simulator.example")
	require.Contains(t, out.String(), `"base_url": "https://simulator.example:`)
	require.NoError(t, stop())
}

func TestHelpKnowsEveryFault(t *testing.T) {
	t.Parallel()
	help := casimulator.Command().Long
	for _, k := range simulator.Kinds() {
		require.NotEmpty(t, simulator.Describe(k), k)
		require.Regexp(t, `(?m)^  `+string(k)+` +\S`, help)
	}
	require.Contains(t, help, "drop_after")
	s, err := simulator.ParseScenario([]byte(simulator.Example))
	require.NoError(t, err)
	require.Len(t, s.Faults, 2)
}
