package store_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/testpg"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

func TestNamesAreFoundAlsoWhereTrigramsCannotBeHad(t *testing.T) {
	t.Parallel()
	const file = "migrations/00001_init.sql"
	sql, err := store.Migrations.ReadFile(file)
	require.NoError(t, err)
	without := strings.ReplaceAll(string(sql), "CREATE EXTENSION IF NOT EXISTS pg_trgm", "CREATE EXTENSION IF NOT EXISTS no_such_extension")
	require.NotEqual(t, string(sql), without)
	d := testpg.NewDatabase(t, pg.Schema{Name: "inventory", FS: fstest.MapFS{file: {Data: []byte(without)}}})
	var indexes int
	require.NoError(t, d.Admin(t).QueryRow(t.Context(), `SELECT count(*) FROM pg_indexes WHERE indexname LIKE '%_search'`).Scan(&indexes))
	require.Zero(t, indexes)
	_, err = d.Admin(t).Exec(t.Context(), `INSERT INTO inventory.certificates (id, name, search_text, issuer_id, profile_id, policy_id, status)
 SELECT 'cert-' || g, 'Host' || g, 'host' || g, 'i', 'p', 'p', 'PENDING' FROM generate_series(1, 20) g`)
	require.NoError(t, err)
	s, err := store.New(store.Config{}, d.Open(t, "inventory"))
	require.NoError(t, err)
	found, err := s.ListCertificates(t.Context(), store.CertificateFilter{Name: "OST17"}, firstPage(t, s))
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, "cert-17", found[0].ID)
}
