package store_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

// indexes are how the indexes of the schema are made, and whether they are valid.
func indexes(t *testing.T, admin *pgxpool.Pool) map[string]bool {
	t.Helper()
	rows, err := admin.Query(t.Context(), `SELECT pg_get_indexdef(i.indexrelid), i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE c.relnamespace = 'inventory'::regnamespace`)
	require.NoError(t, err)
	all := map[string]bool{}
	var (
		made  string
		valid bool
	)
	_, err = pgx.ForEachRow(rows, []any{&made, &valid}, func() error {
		all[made] = valid
		return nil
	})
	require.NoError(t, err)
	return all
}

// TestIndexesThatAnEndedRunLeftAreMadeAnew has a run be ended at different indexes: it is in no transaction.
func TestIndexesThatAnEndedRunLeftAreMadeAnew(t *testing.T) {
	t.Parallel()
	d := testpg.NewDatabase(t, store.Schema())
	admin := d.Admin(t)
	want := indexes(t, admin)
	for made, valid := range want {
		require.True(t, valid, made)
	}
	_, err := admin.Exec(t.Context(), `SET LOCAL search_path = inventory; DELETE FROM goose_db_version WHERE version_id = 6;
DROP INDEX certificates_by_owner; CREATE INDEX certificates_by_owner ON certificates (owner, create_time, id);
CREATE INDEX certificates_by_team_new ON certificates (team); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'certificates_by_team_new'::regclass;
DROP INDEX certificates_by_name; CREATE INDEX certificates_by_name_new ON certificates (name, id) INCLUDE (not_after)`)
	require.NoError(t, err)
	require.NotEqual(t, want, indexes(t, admin))
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: secretbox.NewSecret(d.URL()), Schemas: []pg.Schema{store.Schema()}}))
	require.Equal(t, want, indexes(t, admin))
}
