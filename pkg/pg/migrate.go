package pg

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
)

const (
	// migrateLockWait bounds the wait for another migrator of the same schema.
	migrateLockWait = 10 * time.Minute
	lockLogEvery    = 5 * time.Second

	// migrateLockTimeout keeps a migration from queueing long for a table lock, with all readers queueing behind it.
	migrateLockTimeout = "15s"

	versionTable = "goose_db_version"
)

// schemaName is what a service may be called: it becomes a schema, a role and a part of settings.
var schemaName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

// Schema is one service's part of the database.
type Schema struct {
	Name string // of the service, and of the schema
	FS   fs.FS  // holds migrations/*.sql for goose; names in them need no schema, search_path is set

	// AppendOnly names tables on which the service's role has SELECT and INSERT only, partitions and children included.
	AppendOnly []string
}

// MigrateConfig says what Migrate makes, and as whom.
type MigrateConfig struct {
	BaseURL     secretbox.Secret // the owner of all objects; needs CREATE on the database, and CREATEROLE without SharedRoles
	Password    secretbox.Secret // CERTCTL_DATABASE_PASSWORD; empty: the base URL's
	RoleSecret  secretbox.Secret // a list, of which the first becomes the roles' passwords
	SharedRoles bool             // makes no roles
	Schemas     []Schema

	// Quotas become CONNECTION LIMIT of the roles; a service that is not in it has no limit.
	Quotas map[string]int

	StartWait time.Duration // how long to wait for a server that is down
	Log       *zap.Logger
}

// Migrate brings each schema up: schema, tables, login role, rights, limits. It may be run at any time, by several at once
// (one at a time works on a schema, the others wait), and again without effect. A failing schema ends it; what was done
// before stays and is found done by the next run.
func Migrate(ctx context.Context, cfg MigrateConfig) error {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cc, err := parseBase(cfg.BaseURL, cfg.Password)
	if err != nil {
		return err
	}
	cc.RuntimeParams["application_name"] = "certctl/migrate"
	cc.RuntimeParams["statement_timeout"] = "0"
	err = untilUp(ctx, cfg.StartWait, cfg.Log, Transient, func(ctx context.Context) error { return pingOnce(ctx, cc) })
	if err != nil {
		return fmt.Errorf("connect to migrate: %w", err)
	}
	for _, s := range cfg.Schemas {
		m := migrator{cfg: cfg, base: cc, schema: s, log: cfg.Log.With(zap.String("schema", s.Name))}
		if err := m.run(ctx); err != nil {
			return fmt.Errorf("migrate schema %s: %w", s.Name, adviseRights(Diagnose(err)))
		}
	}
	return nil
}

func pingOnce(ctx context.Context, cc *pgx.ConnConfig) error {
	conn, err := pgx.ConnectConfig(ctx, cc.Copy())
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// migrator works on one schema.
type migrator struct {
	cfg    MigrateConfig
	base   *pgx.ConnConfig
	schema Schema
	log    *zap.Logger
}

func (m *migrator) run(ctx context.Context) error {
	if !schemaName.MatchString(m.schema.Name) {
		return fmt.Errorf("%q is no name for a schema (want %s)", m.schema.Name, schemaName)
	}
	cc := m.base.Copy()
	cc.RuntimeParams["search_path"] = m.schema.Name
	conn, err := pgx.ConnectConfig(ctx, cc)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	// Closing the connection also gives the advisory lock back, whatever happened.
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
		defer cancel()
		_ = conn.Close(closeCtx)
	}()
	if err := m.lock(ctx, conn); err != nil {
		return err
	}
	if err := createSchema(ctx, conn, m.schema.Name); err != nil {
		return err
	}
	if err := m.up(ctx, cc); err != nil {
		return err
	}
	if m.cfg.SharedRoles {
		return nil
	}
	return m.giveRights(ctx, conn)
}

// lock takes the advisory lock of the schema. It asks again and again instead of waiting inside Postgres: a waiting
// statement holds a snapshot, and CREATE INDEX CONCURRENTLY of the migrator that works would wait for that in turn.
func (m *migrator) lock(ctx context.Context, conn *pgx.Conn) error {
	id := lockID(m.schema.Name)
	began := time.Now()
	nextLog := began.Add(lockLogEvery)
	pause := newBackoff(50*time.Millisecond, time.Second)
	for {
		var got bool
		if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", id).Scan(&got); err != nil {
			return fmt.Errorf("take migration lock: %w", err)
		}
		if got {
			return nil
		}
		waited := time.Since(began)
		if waited > migrateLockWait {
			return fmt.Errorf("another migration of this schema has run for %s: look for it with "+
				"SELECT pid FROM pg_locks WHERE locktype = 'advisory', and end it with pg_terminate_backend(pid)", waited.Round(time.Second))
		}
		if time.Now().After(nextLog) {
			m.log.Info("waiting for another migration of this schema", zap.Duration("waited", waited))
			nextLog = time.Now().Add(lockLogEvery)
		}
		if err := tick.Wait(ctx, pause.NextBackOff()); err != nil {
			return fmt.Errorf("wait for another migration of this schema: %w", err)
		}
	}
}

func lockID(schema string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte("certctl migrate " + schema))
	return int64(h.Sum64()) // any 64 bits name a lock
}

// createSchema asks first: CREATE SCHEMA IF NOT EXISTS needs the right to create even when there is nothing to do.
func createSchema(ctx context.Context, conn *pgx.Conn, name string) error {
	var there bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)", name).Scan(&there); err != nil {
		return fmt.Errorf("look for schema: %w", err)
	}
	if there {
		return nil
	}
	if _, err := conn.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+ident(name)); err != nil {
		return fmt.Errorf("create schema: %w", err)
	}
	return nil
}

// up runs the migrations that are missing, as the base user.
func (m *migrator) up(ctx context.Context, cc *pgx.ConnConfig) (err error) {
	files, err := fs.Sub(m.schema.FS, "migrations")
	if err != nil {
		return fmt.Errorf("open migrations: %w", err)
	}
	cc = cc.Copy()
	cc.RuntimeParams["lock_timeout"] = migrateLockTimeout
	db := stdlib.OpenDB(*cc)
	defer func() { err = errors.Join(err, db.Close()) }()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(m.schema.Name+"."+versionTable),
		goose.WithDisableGlobalRegistry(true),
		goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	from, to, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("look for migrations: %w", err)
	}
	if from < to { // a later version of certctl may have been here
		m.log.Info("migrating; with many rows this takes minutes, let it end", zap.Int64("from", from), zap.Int64("to", to))
	}
	results, err := provider.Up(ctx)
	if err != nil {
		return fmt.Errorf("apply migrations: %w", err)
	}
	for _, r := range results {
		m.log.Info("migration applied", zap.String("path", r.Source.Path), zap.Duration("duration", r.Duration))
	}
	return nil
}

func ident(names ...string) string { return pgx.Identifier(names).Sanitize() }
