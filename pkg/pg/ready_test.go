package pg_test

import (
	"context"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/secretbox"
)

// urlWithout is the address without a password in it.
func (s tcpServer) urlWithout(database string) secretbox.Secret {
	return secretbox.NewSecret(s.TCPURL(database, ""))
}

func TestAPasswordBesideTheURLNeedsNoEscaping(t *testing.T) {
	t.Parallel()
	s := newTCPServer(t, "")
	schema := inventory()
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{
		BaseURL: s.urlWithout("postgres"), Password: secretbox.NewSecret(basePassword), Schemas: []pg.Schema{schema},
	}))
	db, err := pg.Open(t.Context(), pg.Config{BaseURL: s.urlWithout("postgres"), Password: secretbox.NewSecret(basePassword), Service: "inventory", MaxConns: 2})
	require.NoError(t, err)
	db.Close()
	db, err = pg.Open(t.Context(), pg.Config{BaseURL: s.base("postgres"), Service: "inventory", MaxConns: 2})
	require.NoError(t, err, "the roles' passwords derive from the password, wherever it stands")
	db.Close()
}

// opening starts an Open that waits for its schema, and tells how it ends.
func opening(t *testing.T, s tcpServer, schema pg.Schema) <-chan error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return run.Go(func() error {
		db, err := pg.Open(ctx, pg.Config{BaseURL: s.base("postgres"), Service: schema.Name, MaxConns: 2, Schema: &schema})
		if err == nil {
			db.Close()
		}
		return err
	})
}

func TestOpenWaitsForRoleAndSchemaInAnyOrder(t *testing.T) {
	t.Parallel()
	s := newTCPServer(t, "")
	old := inventory()
	ended := opening(t, s, old)
	// The role is not there: Postgres calls that a wrong password.
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: s.base("postgres"), Schemas: []pg.Schema{old}}))
	require.NoError(t, <-ended)

	next := pg.Schema{Name: old.Name, FS: fstest.MapFS{}}
	for name, file := range old.FS.(fstest.MapFS) {
		next.FS.(fstest.MapFS)[name] = file
	}
	next.FS.(fstest.MapFS)["migrations/00009_more.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\nCREATE TABLE more (id int);\n")}
	ended = opening(t, s, next)
	select {
	case err := <-ended:
		require.Fail(t, "it did not wait for the schema", "%v", err)
	case <-time.After(300 * time.Millisecond): // an Open that does not wait is over in a few milliseconds
	}
	require.NoError(t, pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: s.base("postgres"), Schemas: []pg.Schema{next}}))
	require.NoError(t, <-ended)
	require.NoError(t, <-opening(t, s, old), "the version before runs on the newer schema")
}

func TestAWaitForTheSchemaEndsWithTheContextAndSaysWhatItWaitedFor(t *testing.T) {
	t.Parallel()
	s := newTCPServer(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	schema := inventory()
	_, err := pg.Open(ctx, pg.Config{BaseURL: s.base("postgres"), Service: schema.Name, MaxConns: 2, Schema: &schema})
	require.ErrorContains(t, err, "28P01")
	require.ErrorContains(t, err, "certctl migrate")
}

func TestAWaitForTheRightsToTheSchemaSaysWhoGivesThem(t *testing.T) {
	t.Parallel()
	s := newTCPServer(t, "")
	schema := inventory()
	migrate := func() error {
		return pg.Migrate(t.Context(), pg.MigrateConfig{BaseURL: s.base("postgres"), Schemas: []pg.Schema{schema}})
	}
	require.NoError(t, migrate())
	s.exec(t, "REVOKE USAGE ON SCHEMA inventory FROM certctl_inventory")
	core, logs := observer.New(zap.WarnLevel)
	ended := run.Go(func() error {
		db, err := pg.Open(t.Context(), pg.Config{BaseURL: s.base("postgres"), Service: schema.Name, MaxConns: 2, Schema: &schema, Log: zap.New(core)})
		if err == nil {
			db.Close()
		}
		return err
	})
	require.Eventually(t, func() bool { return logs.Len() > 0 }, 30*time.Second, time.Millisecond)
	require.Contains(t, logs.All()[0].ContextMap()["error"], "42501): run `certctl migrate`")
	require.NoError(t, migrate())
	require.NoError(t, <-ended)
}
