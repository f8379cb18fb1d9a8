package pg

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/certctl/certctl/pkg/tick"
)

const (
	// txAttempts bounds how often Tx runs its function.
	txAttempts = 5

	rollbackTimeout = 5 * time.Second
)

// Tx runs fn in a transaction: committed when fn returns nil, else rolled back. It runs fn again, up to five times in
// all, when Postgres gave the transaction up for another's sake (serialization failure, deadlock) or when nothing had
// been sent yet; so fn has no effects outside the transaction, and makes no RPC.
//
// A connection that is lost while it commits leaves open whether the change was made: that error is returned, Transient
// is true for it, and whoever tries again does so with a statement that may be repeated.
func (db *DB) Tx(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) error) error {
	return db.TxOptions(ctx, pgx.TxOptions{}, fn)
}

// TxOptions is Tx with an isolation level or access mode.
func (db *DB) TxOptions(ctx context.Context, o pgx.TxOptions, fn func(ctx context.Context, tx pgx.Tx) error) error {
	pause := newBackoff(10*time.Millisecond, 500*time.Millisecond)
	for attempt := 1; ; attempt++ {
		err := db.once(ctx, o, fn)
		if err == nil || attempt == txAttempts || !repeatable(err) {
			return err
		}
		if tick.Wait(ctx, pause.NextBackOff()) != nil {
			return err
		}
	}
}

func (db *DB) once(ctx context.Context, o pgx.TxOptions, fn func(ctx context.Context, tx pgx.Tx) error) error {
	tx, err := db.Pool.BeginTx(ctx, o)
	if err != nil {
		return fmt.Errorf("begin transaction: %w", Diagnose(err))
	}
	done := false
	defer func() {
		if done {
			return
		}
		// Also reached when fn panics. The context may be over, the rollback must happen all the same: a connection in an
		// open transaction would be thrown away by the pool.
		rollbackCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
		defer cancel()
		_ = tx.Rollback(rollbackCtx)
	}()
	if err := fn(ctx, tx); err != nil {
		return err
	}
	done = true
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit transaction: %w", err)
	}
	return nil
}

// repeatable tells whether the transaction certainly did not happen and may be run again at once.
func repeatable(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code == codeSerializationFailure || e.Code == codeDeadlock || e.Code == codeTooManyConnections
	}
	return pgconn.SafeToRetry(err)
}
