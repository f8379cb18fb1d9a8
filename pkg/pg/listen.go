package pg

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/tick"
)

const (
	listenPingAfter   = 30 * time.Second
	listenCloseWithin = 2 * time.Second
)

// Notification is one NOTIFY, or the word that some may have been missed.
type Notification struct {
	Channel string
	Payload string

	// Resync tells that listening has just begun, for the first time or after the connection was lost: what was
	// notified before is unknown, so look at the tables. Channel and Payload are empty.
	Resync bool
}

// Listen calls fn for each notification on the channels until ctx ends, then returns nil. All calls come from the same
// goroutine, one after the other; fn only wakes somebody up and does not block. The connection is dedicated
// and counts in Config.MaxConns; when it is lost, Listen connects again with backoff. It returns an error at once
// without Config.Listen or when the DB is listening already: there is one such connection, so name all channels in one call.
func (db *DB) Listen(ctx context.Context, channels []string, fn func(Notification)) error {
	if db.listenConn == nil {
		return errors.New("listen: the database was opened without Config.Listen")
	}
	if !db.listening.CompareAndSwap(false, true) {
		return errors.New("listen: already listening; name all channels in one call")
	}
	defer db.listening.Store(false)
	pause := newBackoff(100*time.Millisecond, 10*time.Second)
	for {
		err := db.listenOnce(ctx, channels, func(n Notification) {
			pause.Reset()
			fn(n)
		})
		if ctx.Err() != nil {
			return nil
		}
		wait := pause.NextBackOff()
		db.log.Warn("lost the LISTEN connection", zap.Duration("again_in", wait), zap.Error(Diagnose(err)))
		if tick.Wait(ctx, wait) != nil {
			return nil
		}
	}
}

func (db *DB) listenOnce(ctx context.Context, channels []string, fn func(Notification)) error {
	conn, err := with(ctx, db.Pool, func(*pgxpool.Pool) (*pgx.Conn, error) {
		cc := db.listenConn.Copy()
		db.Pool.passwords.put(cc)
		return pgx.ConnectConfig(ctx, cc)
	})
	if err != nil {
		return fmt.Errorf("connect for listen: %w", err)
	}
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), listenCloseWithin)
		defer cancel()
		_ = conn.Close(closeCtx)
	}()
	for _, channel := range channels {
		if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{channel}.Sanitize()); err != nil {
			return fmt.Errorf("listen on %s: %w", channel, err)
		}
	}
	fn(Notification{Resync: true})
	for {
		if err := waitOne(ctx, conn, fn); err != nil {
			return err
		}
	}
}

// waitOne waits for one notification. Silence is followed by a ping, because a peer that vanished is silent too.
func waitOne(ctx context.Context, conn *pgx.Conn, fn func(Notification)) error {
	waitCtx, cancel := context.WithTimeout(ctx, listenPingAfter)
	defer cancel()
	n, err := conn.WaitForNotification(waitCtx)
	switch {
	case err == nil:
		fn(Notification{Channel: n.Channel, Payload: n.Payload})
		return nil
	case ctx.Err() == nil && errors.Is(waitCtx.Err(), context.DeadlineExceeded) && !conn.IsClosed():
		pingCtx, cancelPing := context.WithTimeout(ctx, pingTimeout)
		defer cancelPing()
		return conn.Ping(pingCtx)
	default:
		return fmt.Errorf("wait for notification: %w", err)
	}
}
