package e2e_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// benchReport is what the test looks at of what `certctl bench -o json` prints.
type benchReport struct {
	Caller map[string]string
	Steps  []struct {
		Rate           float64
		Verdict, Error string
		Done, Refused  int
	}
	Bottleneck  struct{ Kind, Text string } `json:"first_bottleneck"`
	Headroom    []object
	Issuance    *struct{ Created, Issued, Revoked, Archived int }
	Interrupted bool
}

// benched runs certctl bench as a user far away does, with what the environment names and nothing else, and sends it a signal
// when it has told some of its progress.
func (in *installation) benched(t *testing.T, key, told string, signal os.Signal, args ...string) (report benchReport, progress string, code int) {
	t.Helper()
	var out bytes.Buffer
	progressed := &process{}
	cmd := exec.CommandContext(t.Context(), binaries.certctl, append([]string{"bench", "--against", in.url, "--ca", in.caFile, "-o", "json"}, args...)...)
	cmd.Env = []string{"CERTCTL_API_KEY=" + key, "CERTCTL_DATA_DIR=" + filepath.Join(t.TempDir(), "none")}
	cmd.Stdout, cmd.Stderr = &out, progressed
	require.NoError(t, cmd.Start())
	if signal != nil {
		in.wait(t, "progress of bench", func() bool { return bytes.Contains([]byte(progressed.output()), []byte(told)) })
		require.NoError(t, cmd.Process.Signal(signal))
	}
	if err := cmd.Wait(); err != nil {
		require.ErrorAs(t, err, new(*exec.ExitError))
	}
	require.NoError(t, json.Unmarshal(out.Bytes(), &report), "%s\n%s", out.String(), progressed.output())
	return report, progressed.output(), cmd.ProcessState.ExitCode()
}

func TestBenchMeasuresAnInstallation(t *testing.T) {
	t.Parallel()
	in := startOne(t, people, "CERTCTL_RATE_LIMIT_PER_CALLER=10", "CERTCTL_LOCAL_AGENT=false")

	// A viewer's key is enough to read, and the bound of its rate is seen as that.
	r, progress, code := in.benched(t, viewerKey, "", nil, "--max-rate", "80", "--duration", "8s", "--p95", "20s")
	require.Zero(t, code, progress)
	require.Equal(t, map[string]string{"name": "vera", "role": "viewer"}, r.Caller)
	last := r.Steps[len(r.Steps)-1]
	require.Equal(t, "refused", last.Verdict, progress)
	require.Equal(t, "rate_limit_api_key", r.Bottleneck.Kind, r.Bottleneck.Text)
	require.Contains(t, r.Bottleneck.Text, "CERTCTL_RATE_LIMIT_PER_CALLER")
	require.Equal(t, "kept", r.Steps[0].Verdict)

	// What was created before an interrupt is archived, be it issued or not.
	r, progress, code = in.benched(t, aliceKey, "creates 40 certificates", syscall.SIGINT, "--max-rate", "5", "--duration", "1s", "--p95", "20s", "--write", "--certificates", "40")
	require.Equal(t, 1, code, progress)
	require.True(t, r.Interrupted)
	require.NotNil(t, r.Issuance)
	left := in.must(t, "GET", "/api/v1/certificates?name=bench-&status=PENDING&status=ACTIVE&status=REVOKED", nil).list("certificates")
	require.Empty(t, left, progress)
}

// As many as it says are issued, and the figures for them are there.
func TestBenchMeasuresIssuance(t *testing.T) {
	t.Parallel()
	in := startOne(t, "CERTCTL_LOCAL_AGENT=false")
	begin := time.Now()
	r, progress, code := in.benched(t, in.key, "", nil, "--max-rate", "5", "--duration", "1s", "--p95", "20s", "--write", "--certificates", "20")
	require.Zero(t, code, progress)
	require.Equal(t, 20, r.Issuance.Issued)
	require.Equal(t, 20, r.Issuance.Revoked)
	require.Equal(t, 20, r.Issuance.Archived)
	for _, h := range r.Headroom {
		if h.str("what") == "certificates, by renewals" {
			require.Equal(t, "derived", h.str("how"))
			hourly, _ := h["value"].(float64)
			require.Greater(t, hourly, 20/time.Since(begin).Hours()*700, "it has issued at least so many in the time of the whole run")
		}
	}
}
