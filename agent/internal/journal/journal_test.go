package journal

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/certctl/certctl/proto/gen/go/certctl/agent/v1"
)

func TestAResultIsFoundAgainUntilItIsOutOfDate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "journal")
	j, err := Open(dir)
	require.NoError(t, err)
	r := &agentv1.ReportAssignmentRequest{AssignmentId: "a-1", Report: &agentv1.ReportAssignmentRequest_Csr{Csr: &agentv1.CsrResult{CsrPem: "csr"}}}
	require.NoError(t, j.Put(r))
	j, err = Open(dir)
	require.NoError(t, err)
	found, err := j.Get("a-1")
	require.NoError(t, err)
	require.True(t, proto.Equal(r, found))
	none, err := j.Get("a-2")
	require.NoError(t, err)
	require.Nil(t, none)

	require.NoError(t, j.Prune(time.Now().Add(retention-time.Minute)))
	require.FileExists(t, filepath.Join(dir, "a-1.result"))
	require.NoError(t, j.Prune(time.Now().Add(retention+time.Minute)))
	require.NoFileExists(t, filepath.Join(dir, "a-1.result"))
}

func TestAnIdThatIsAPathNamesNoFile(t *testing.T) {
	t.Parallel()
	j, err := Open(t.TempDir())
	require.NoError(t, err)
	for _, id := range []string{"", "../a", "/etc/passwd", "a/b", ".", "a.b", "A"} {
		require.Error(t, j.Put(&agentv1.ReportAssignmentRequest{AssignmentId: id}))
		r, err := j.Get(id)
		require.NoError(t, err)
		require.Nil(t, r)
	}
}

func TestADamagedResultIsAsNone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j, err := Open(dir)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.result"), []byte{0xff}, 0o600))
	r, err := j.Get("a")
	require.NoError(t, err)
	require.Nil(t, r)
}
