package issue_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/deploy/bench/internal/issue"
	"github.com/certctl/certctl/deploy/bench/internal/site"
	"github.com/certctl/certctl/pkg/testpg"
)

func TestAnIssuedCertificateCostsFewStatementsOverAllServices(t *testing.T) {
	t.Parallel()
	dir := testpg.Dir(t)
	binary := filepath.Join(dir, "program")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "github.com/certctl/certctl/services/cmd/certctl").CombinedOutput()
	require.NoError(t, err, "%s", out)
	s, err := site.Open(t.Context(), site.Config{Dir: dir, Binary: binary, Apart: true, Postgres: map[string]string{"shared_buffers": "128MB", "fsync": "off"}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop(context.WithoutCancel(t.Context()))) })
	require.NoError(t, s.Start(t.Context()))
	r, err := issue.Run(t.Context(), issue.Config{
		Issuance: s.Addresses["issuance"], InternalSecret: s.Secret, DatabaseURL: s.DatabaseURL, Processes: s.Processes(),
		Duration: 3 * time.Second, InFlight: 50, Most: 3000, Settle: time.Second,
	})

	require.NoError(t, err)
	require.Zero(t, r.Failed, r.Err)
	require.Positive(t, r.Orders)
	require.Equal(t, r.Orders, r.Done, "what was answered is stored, journalled and audited")
	require.LessOrEqual(t, r.Statements.All, 12.0, "%+v", r.Statements)
	require.Positive(t, r.Transactions)
	require.LessOrEqual(t, r.Transactions, 4.0, "over all services, with the idle loops of the time")
	require.Positive(t, r.CPU["issuance"])
	require.Positive(t, r.CPU[site.Postgres])
	require.Positive(t, r.Signings)
	require.Less(t, r.Drain, r.Elapsed)
}
