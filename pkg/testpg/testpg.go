package testpg

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/certctl/certctl/pkg/internal/pgserver"
	"github.com/certctl/certctl/pkg/pg"
	"github.com/certctl/certctl/pkg/secretbox"
)

const (
	startWithin = time.Minute

	// poolSize leaves room for many parallel tests under max_connections.
	poolSize = 10
)

// cluster is the one server of the test process.
type cluster struct {
	site   *site
	server *pgserver.Server
	serial atomic.Int64

	mu        sync.Mutex
	templates map[string]bool // names of the template databases that are ready
}

// shared is the only state of the package: "one server per test process" is what it says.
//
//nolint:gochecknoglobals // see above
var shared = sync.OnceValues(startCluster)

func startCluster() (*cluster, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	s, err := newSite(ctx)
	if err != nil {
		return nil, err
	}
	server, err := pgserver.Start(s.config(0, nil))
	if err != nil {
		s.release()
		return nil, err
	}
	if err := server.Ready(ctx, server.Exited); err != nil {
		s.release()
		return nil, err
	}
	return &cluster{site: s, server: server, templates: map[string]bool{}}, nil
}

func use(t testing.TB) *cluster {
	t.Helper()
	c, err := shared()
	require.NoError(t, err, "the tests need a real Postgres")
	return c
}

// exec runs one statement as superuser, outside any test database.
func (c *cluster) exec(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, c.site.url(0, "postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, statement)
	return err
}

// Database is a database of one test.
type Database struct {
	url string
}

// New makes a database with one service's schema and opens it as that service's role. Database and connections end with the test.
func New(t testing.TB, schema pg.Schema) *pg.DB {
	t.Helper()
	return NewDatabase(t, schema).Open(t, schema.Name)
}

// NewDatabase makes a database with the schemas of several services.
func NewDatabase(t testing.TB, schemas ...pg.Schema) *Database {
	t.Helper()
	c := use(t)
	template := "template0"
	if len(schemas) > 0 {
		template = c.template(t, schemas)
	}
	name := fmt.Sprintf("test_%d", c.serial.Add(1))
	require.NoError(t, c.exec(t.Context(), "CREATE DATABASE "+name+" TEMPLATE "+template))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startWithin)
		defer cancel()
		require.NoError(t, c.exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"))
	})
	return &Database{url: c.site.url(0, name)}
}

// URL gives the address of a fresh, empty database as its superuser, for a test of the whole system: what
// CERTCTL_DATABASE_URL is in production, without a password, over a Unix socket.
func URL(t testing.TB) string {
	t.Helper()
	return NewDatabase(t).URL()
}

// URL gives the address of the database as its superuser.
func (d *Database) URL() string { return d.url }

// Config gives what a service opens the database with.
func (d *Database) Config(service string) pg.Config {
	return pg.Config{BaseURL: secretbox.NewSecret(d.url), Service: service, MaxConns: poolSize, Listen: true}
}

// Open connects as a service's role, as one replica of it does; it may be called several times.
func (d *Database) Open(t testing.TB, service string) *pg.DB {
	t.Helper()
	db, err := pg.Open(t.Context(), d.Config(service))
	require.NoError(t, err)
	t.Cleanup(db.Close)
	return db
}

// OpenTraced is Open with a tracer that is told of each statement, for a test that counts them or holds one up.
func (d *Database) OpenTraced(t testing.TB, service string, tracer pgx.QueryTracer) *pg.DB {
	t.Helper()
	db := d.Open(t, service)
	cfg := db.Pool.Config()
	cfg.ConnConfig.Tracer = tracer
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	db.Pool.Close()
	db.Pool = pg.NewPool(pool)
	return db
}

// Admin connects as the superuser, for a test that looks at what no service may see, or breaks it.
func (d *Database) Admin(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pc, err := pgxpool.ParseConfig(d.url)
	require.NoError(t, err)
	pc.MaxConns = poolSize
	pool, err := pgxpool.NewWithConfig(t.Context(), pc)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// template makes, once, the database that those with the same migrations are copied from.
func (c *cluster) template(t testing.TB, schemas []pg.Schema) string {
	t.Helper()
	name := "template_" + fingerprint(t, schemas)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.templates[name] {
		return name
	}
	ctx := t.Context()
	require.NoError(t, c.exec(ctx, "DROP DATABASE IF EXISTS "+name)) // left half-made by a test that failed here
	require.NoError(t, c.exec(ctx, "CREATE DATABASE "+name))
	require.NoError(t, pg.Migrate(ctx, pg.MigrateConfig{BaseURL: secretbox.NewSecret(c.site.url(0, name)), Schemas: schemas}))
	c.templates[name] = true
	return name
}

// fingerprint is a short hash over all that makes a template what it is.
func fingerprint(t testing.TB, schemas []pg.Schema) string {
	t.Helper()
	h := sha256.New()
	for _, s := range schemas {
		appendOnly := slices.Sorted(slices.Values(s.AppendOnly))
		_, _ = fmt.Fprintf(h, "%q %q\n", s.Name, appendOnly)
		names, err := fs.Glob(s.FS, "migrations/*.sql")
		require.NoError(t, err)
		require.NotEmpty(t, names, "schema %s has no migrations/*.sql", s.Name)
		for _, name := range names {
			content, err := fs.ReadFile(s.FS, name)
			require.NoError(t, err)
			_, _ = fmt.Fprintf(h, "%q %q\n", name, content)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Dir makes a directory that the unprivileged account of Postgres can get to when the tests run as root, unlike
// t.TempDir, with a path short enough for sockets. It is removed with the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ct-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o711))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return strings.TrimSuffix(dir, "/")
}
