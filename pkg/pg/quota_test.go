package pg_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/pg"
)

func TestTheDefaultQuotasAddUpToTheDefaultSum(t *testing.T) {
	t.Parallel()
	quotas, err := pg.ParseQuotas(pg.DefaultQuotas, pg.DefaultMaxConns)
	require.NoError(t, err)
	require.Equal(t, 50, quotas.Sum())
	require.Equal(t, 16, quotas["inventory"])
	require.Equal(t, "asyncpoller=6,audit=4,inventory=16,issuance=12,renewalscheduler=12", quotas.String())
}

func TestQuotasThatDoNotAddUpAreRefusedWithBothSums(t *testing.T) {
	t.Parallel()
	_, err := pg.ParseQuotas("inventory=20,issuance=12,renewalscheduler=12,asyncpoller=6,audit=4", 50)
	require.ErrorContains(t, err, "add up to 54")
	require.ErrorContains(t, err, "CERTCTL_DATABASE_MAX_CONNS is 50")
}

func TestMalformedQuotasAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, says string }{
		"empty":           {"", "is not service=number"},
		"no number":       {"inventory", "is not service=number"},
		"not a number":    {"inventory=many", "want a number"},
		"below the least": {"inventory=1", "at least 2"},
		"negative":        {"inventory=-4", "at least 2"},
		"twice":           {"inventory=4,inventory=5", "named twice"},
		"one missing":     {"inventory=20,issuance=12,renewalscheduler=12,asyncpoller=6", "audit is missing"},
		"one unknown":     {pg.DefaultQuotas + ",gateway=2", `no service "gateway"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := pg.ParseQuotas(c.text, 50)
			require.ErrorContains(t, err, c.says)
			require.ErrorContains(t, err, "CERTCTL_DATABASE_POOL_QUOTAS")
		})
	}
}

func TestAProcessTakesItsShareLeavesOneAndTakesAtLeastTwo(t *testing.T) {
	t.Parallel()
	require.Equal(t, 8, pg.Share(16, 1))
	require.Equal(t, 4, pg.Share(16, 3))
	require.Equal(t, 2, pg.Share(4, 3))
	require.Equal(t, 8, pg.Share(16, 0), "none was counted")
}
