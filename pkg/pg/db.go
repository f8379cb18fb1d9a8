package pg

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
)

const (
	connLifetime       = 30 * time.Minute
	connLifetimeJitter = 6 * time.Minute
	connIdleTime       = 5 * time.Minute
	healthCheckPeriod  = 30 * time.Second
	pingTimeout        = 5 * time.Second

	// attemptWithin bounds one attempt of Open, all addresses of the host together.
	attemptWithin = 10 * time.Second
)

// Config says how a service connects.
type Config struct {
	BaseURL     secretbox.Secret // CERTCTL_DATABASE_URL
	Password    secretbox.Secret // CERTCTL_DATABASE_PASSWORD; empty: the base URL's
	RoleSecret  secretbox.Secret // CERTCTL_DATABASE_ROLE_SECRET, a list; empty: the base URL's password
	SharedRoles bool             // CERTCTL_DATABASE_ROLES=shared: the base login serves all
	Service     string           // names the schema and, after "certctl_", the role

	// MaxConns is how many connections this process may have. With Listen one of them is kept for the LISTEN connection and
	// the pool gets one less.
	MaxConns int
	// Quota, in place of MaxConns, is how many all processes of the service may have: this one takes its share of it, by how
	// many there are at the time.
	Quota  int
	Listen bool

	// StartWait is how long Open waits for a server that is down or starting; zero asks once.
	StartWait time.Duration
	// Schema, if given, is waited for without end: until its migrations are there, and also while the server refuses the
	// role for what an operator is about to mend. A service that runs apart starts in any order with Postgres and migrate.
	Schema *Schema
	Log    *zap.Logger
}

func (c Config) check() error {
	least := 1
	if c.Listen {
		least = 2
	}
	switch {
	case c.Service == "":
		return errors.New("pg.Config.Service is empty")
	case c.Quota > 0:
		return nil // a share is minShare at least
	case c.MaxConns < least:
		return fmt.Errorf("pool of %s: MaxConns is %d, the least is %d", c.Service, c.MaxConns, least)
	}
	return nil
}

// DB is one service's way to its schema.
type DB struct {
	Pool *Pool

	log        *zap.Logger
	listenConn *pgx.ConnConfig // nil without Config.Listen
	listening  atomic.Bool
	stopShare  func()       // ends what follows the share; nil with a fixed size
	clockOff   atomic.Int64 // nanoseconds that the database's clock is ahead of this machine's
}

// Open connects as the service's role, whose search_path is the service's schema. It returns when a connection
// has worked. While the server is down, starting, or out of connections it tries again for StartWait; other refusals
// (password, missing database) return at once, unless there is a Schema to wait for. Errors are explained by Diagnose.
func Open(ctx context.Context, cfg Config) (*DB, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cc, known, err := connConfig(cfg)
	if err != nil {
		return nil, err
	}
	db := &DB{log: cfg.Log}
	size, instance := cfg.MaxConns, ""
	if cfg.Quota > 0 {
		instance = named(cc, cfg.Service)
		size = Share(cfg.Quota, 1)
	}
	if cfg.Listen {
		size--
		db.listenConn = cc.Copy()
	}
	if db.Pool, err = newPool(ctx, cc, known, size); err != nil {
		return nil, err
	}
	connect, mends, wait := db.Pool.Ping, Transient, cfg.StartWait
	if cfg.Schema != nil {
		connect = func(ctx context.Context) error { return schemaReady(ctx, db.Pool, *cfg.Schema) }
		mends, wait = mendable, endless
	}
	if err := untilUp(ctx, wait, cfg.Log, mends, connect); err != nil {
		db.Pool.Close()
		return nil, fmt.Errorf("open database for %s: %w", cfg.Service, err)
	}
	if cfg.Quota > 0 {
		db.followShare(ctx, cfg, instance)
	}
	return db, nil
}

// Close gives all pooled connections back and waits for it.
func (db *DB) Close() {
	if db.stopShare != nil {
		db.stopShare()
	}
	db.Pool.Close()
}

// connConfig turns the base URL into the service's own login.
func connConfig(cfg Config) (*pgx.ConnConfig, *passwords, error) {
	cc, err := parseBase(cfg.BaseURL, cfg.Password)
	if err != nil {
		return nil, nil, err
	}
	cc.RuntimeParams["application_name"] = "certctl/" + cfg.Service
	cc.RuntimeParams["search_path"] = cfg.Service
	if cfg.SharedRoles {
		for name, value := range roleSettings(cfg.Service) {
			cc.RuntimeParams[name] = value
		}
		return cc, &passwords{all: []secretbox.Secret{secretbox.NewSecret(cc.Password)}, log: cfg.Log}, nil
	}
	all, err := rolePasswords(cc, cfg.RoleSecret, cfg.Service)
	if err != nil {
		return nil, nil, err
	}
	cc.User = RoleName(cfg.Service)
	return cc, &passwords{all: all, log: cfg.Log}, nil
}

func newPool(ctx context.Context, cc *pgx.ConnConfig, known *passwords, size int) (*Pool, error) {
	pc, err := pgxpool.ParseConfig("")
	if err != nil {
		return nil, errors.New("the PG… variables of the environment are no valid settings for Postgres")
	}
	pc.ConnConfig = cc
	pc.MaxConns = int32(size) // a pool size; checked against the sum of all quotas
	pc.MinConns = 0
	pc.MaxConnLifetime = connLifetime
	pc.MaxConnLifetimeJitter = connLifetimeJitter
	pc.MaxConnIdleTime = connIdleTime
	pc.HealthCheckPeriod = healthCheckPeriod
	pc.PingTimeout = pingTimeout
	pc.BeforeConnect = func(_ context.Context, cc *pgx.ConnConfig) error {
		known.put(cc)
		return nil
	}
	pc.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		known.took(conn.Config())
		return nil
	}
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("make connection pool: %w", err)
	}
	p := &Pool{passwords: known}
	p.pool.Store(pool)
	return p, nil
}

// endless is a wait without end.
const endless = time.Duration(math.MaxInt64)

// waitLogEvery is how often somebody who looks into the log is told what is waited for.
const waitLogEvery = 30 * time.Second

// untilUp calls connect until it works, fails for a reason that waiting does not mend, or wait is over.
func untilUp(ctx context.Context, wait time.Duration, log *zap.Logger, mends func(error) bool, connect func(context.Context) error) error {
	began := time.Now()
	pause := newBackoff(100*time.Millisecond, 2*time.Second)
	var said time.Time
	for {
		tryCtx, cancel := context.WithTimeout(ctx, attemptWithin)
		err := connect(tryCtx)
		cancel()
		if err == nil {
			return nil
		}
		if !mends(err) || time.Since(began) >= wait {
			return Diagnose(err)
		}
		if said.IsZero() || time.Since(said) >= waitLogEvery {
			limit := zap.Skip()
			if wait != endless {
				limit = zap.Duration("at_most", wait)
			}
			log.Warn("waiting for the database", zap.Duration("waited", time.Since(began).Round(time.Second)), limit, zap.Error(Diagnose(err)))
			said = time.Now()
		}
		if sleepErr := tick.Wait(ctx, min(pause.NextBackOff(), wait-time.Since(began))); sleepErr != nil {
			return Diagnose(errors.Join(sleepErr, err))
		}
	}
}

func newBackoff(first, most time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = first, most
	b.Reset()
	return b
}
