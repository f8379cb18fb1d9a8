package pg

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/run"
)

// shareEvery is how often a process looks how many there are of its service.
const shareEvery = 5 * time.Second

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
		ticker := time.NewTicker(shareEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
				size = db.shareOnce(ctx, cfg, instance, size)
			}
		}
	})
	db.stopShare = func() {
		cancel()
		<-done
	}
}

// shareOnce looks once, and answers the share that is in force.
func (db *DB) shareOnce(ctx context.Context, cfg Config, instance string, size int) int {
	ctx, cancel := context.WithTimeout(ctx, shareEvery)
	defer cancel()
	processes, err := db.countProcesses(ctx, cfg.Service, instance)
	if err != nil {
		return size // Postgres is away; what needs it says so
	}
	share := Share(cfg.Quota, processes)
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
	db.log.Info("share of the connections changed", zap.Int("processes", processes), zap.Int("connections", share), zap.Int("quota", cfg.Quota))
	return share
}

// countProcesses counts the processes of a service, this one included. A role sees the sessions of its own in pg_stat_activity.
func (db *DB) countProcesses(ctx context.Context, service, instance string) (n int, err error) {
	err = db.Pool.QueryRow(ctx, `SELECT count(DISTINCT application_name) FROM pg_stat_activity
		WHERE usename = current_user AND datname = current_database() AND application_name LIKE $1 AND application_name <> $2`,
		"certctl/"+service+"/%", instance).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count processes of %s: %w", service, err)
	}
	return n + 1, nil
}
