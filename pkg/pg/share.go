package pg

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/run"
	"github.com/certctl/certctl/pkg/tick"
)

// shareEvery is how often a process looks how many there are of its service. A share leaves room for processes that have just started (Share),
// so that nobody is refused meanwhile.
const shareEvery = 15 * time.Second

// shareTimeout bounds a look.
const shareTimeout = 5 * time.Second

// named gives the connections of this process a name of their own, by which the others count it.
func named(cc *pgx.ConnConfig, service string) (instance string) {
	instance = "certctl/" + service + "/" + rand.Text()[:8]
	cc.RuntimeParams["application_name"] = instance
	return instance
}

// followShare keeps the pool at this process's share of the quota, until the DB is closed. The number of processes is what Postgres
// sees of them, so it is right whoever starts and stops them, and needs no setting that would have to change with it.
func (db *DB) followShare(ctx context.Context, cfg Config, instance string) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	size := db.shareOnce(ctx, cfg, instance, Share(cfg.Quota, 1))
	done := run.Go(func() error {
		for tick.Wait(ctx, tick.Jittered(shareEvery, tick.DefaultJitter)) == nil {
			size = db.shareOnce(ctx, cfg, instance, size)
		}
		return nil
	})
	db.stopShare = func() {
		cancel()
		if err := <-done; err != nil { // it panicked
			db.log.Error("following the share of the connections failed", zap.Error(err))
		}
	}
}

// shareOnce looks once, and answers the share that is in force.
func (db *DB) shareOnce(ctx context.Context, cfg Config, instance string, size int) int {
	ctx, cancel := context.WithTimeout(ctx, shareTimeout)
	defer cancel()
	asked := time.Now()
	processes, quota, at, err := db.countProcesses(ctx, cfg, instance)
	if err != nil {
		return size // Postgres is away; what needs it says so
	}
	db.noteClock(asked, time.Now(), at)
	share := Share(quota, processes)
	if share == size {
		return size
	}
	conns := share
	if cfg.Listen {
		conns--
	}
	if err := db.Pool.resize(context.WithoutCancel(ctx), conns); err != nil {
		db.log.Warn("the connection pool could not be resized", zap.Error(err))
		return size
	}
	db.log.Info("share of the connections changed", zap.Int("processes", processes), zap.Int("connections", share), zap.Int("quota", quota))
	return share
}

// countProcesses counts the processes of a service, this one included, and answers their quota: what Postgres allows the role, as the
// last migration has set it, else the setting (a login that all services share has no limit). A role sees the sessions of its own
// in pg_stat_activity. It also answers the time of the database.
func (db *DB) countProcesses(ctx context.Context, cfg Config, instance string) (n, quota int, at time.Time, err error) {
	err = db.Pool.QueryRow(ctx, `SELECT count(DISTINCT application_name), (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user), clock_timestamp()
		FROM pg_stat_activity
		WHERE usename = current_user AND datname = current_database() AND application_name LIKE $1 AND application_name <> $2`,
		"certctl/"+cfg.Service+"/%", instance).Scan(&n, &quota, &at)
	if err != nil {
		return 0, 0, at, fmt.Errorf("count processes of %s: %w", cfg.Service, err)
	}
	if quota <= 0 || cfg.SharedRoles {
		quota = cfg.Quota
	}
	return n + 1, quota, at, nil
}

// answeredWithin is how long an answer of the database to anybody stands for its health.
const answeredWithin = 5 * time.Second

// Healthy asks whether the database answers, for readiness. With a small share a ping may wait long under load for a connection that others
// have: when they are answered, that is no outage, and a process must not take itself out of the work because there is much of it.
func (db *DB) Healthy(ctx context.Context) error {
	err := db.Pool.Ping(ctx)
	if errors.Is(err, context.DeadlineExceeded) && time.Since(time.Unix(0, db.Pool.answered.Load())) < answeredWithin {
		return nil
	}
	return err
}
