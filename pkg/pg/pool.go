package pg

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/puddle/v2"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
)

// Pool is a pool of connections that lives on when `certctl migrate` gives the role another password out of those that are
// known here, when Postgres has none left for a moment, and when its size changes: what needs a new connection asks again.
type Pool struct {
	pool      atomic.Pointer[pgxpool.Pool]
	passwords *passwords
	answered  atomic.Int64 // when the database last did, Unix nanoseconds
}

// NewPool takes a pool whose connections have one password.
func NewPool(pool *pgxpool.Pool) *Pool {
	only := secretbox.NewSecret(pool.Config().ConnConfig.Password)
	p := &Pool{passwords: &passwords{all: []secretbox.Secret{only}, log: zap.NewNop()}}
	p.pool.Store(pool)
	return p
}

// Exec runs a statement.
func (p *Pool) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return with(ctx, p, func(pool *pgxpool.Pool) (pgconn.CommandTag, error) { return pool.Exec(ctx, sql, args...) })
}

// Query runs a query.
func (p *Pool) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return with(ctx, p, func(pool *pgxpool.Pool) (pgx.Rows, error) { return pool.Query(ctx, sql, args...) })
}

// QueryRow gives one row of a query, which runs when the row is scanned.
func (p *Pool) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return row(func(dest ...any) error {
		return p.each(ctx, func(pool *pgxpool.Pool) error { return pool.QueryRow(ctx, sql, args...).Scan(dest...) })
	})
}

// Begin starts a transaction.
func (p *Pool) Begin(ctx context.Context) (pgx.Tx, error) { return p.BeginTx(ctx, pgx.TxOptions{}) }

// BeginTx starts a transaction with an isolation level or access mode.
func (p *Pool) BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error) {
	return with(ctx, p, func(pool *pgxpool.Pool) (pgx.Tx, error) { return pool.BeginTx(ctx, o) })
}

// Acquire takes a connection out of the pool; it is given back by its Release.
func (p *Pool) Acquire(ctx context.Context) (*pgxpool.Conn, error) {
	return with(ctx, p, func(pool *pgxpool.Pool) (*pgxpool.Conn, error) { return pool.Acquire(ctx) })
}

// Ping runs an empty statement.
func (p *Pool) Ping(ctx context.Context) error {
	return p.each(ctx, func(pool *pgxpool.Pool) error { return pool.Ping(ctx) })
}

// Config gives a copy of how the pool was set up.
func (p *Pool) Config() *pgxpool.Config { return p.pool.Load().Config() }

// Stat tells how many connections there are, and what they do.
func (p *Pool) Stat() *pgxpool.Stat { return p.pool.Load().Stat() }

// Close gives all connections back and waits for it.
func (p *Pool) Close() { p.pool.Load().Close() }

// resize puts a pool of another size in the place of this one. What is under way ends on the connections that it has.
func (p *Pool) resize(ctx context.Context, size int) error {
	old := p.pool.Load()
	cfg := old.Config()
	cfg.MaxConns = int32(size) // a share of a quota
	next, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("make connection pool: %w", err)
	}
	p.pool.Store(next)
	old.Close()
	return nil
}

const (
	// connectionWait is how long something waits when Postgres has no connection left for the role: another process of the
	// service has come and the others are about to make room.
	connectionWait = 3 * time.Second
	connectionPoll = 50 * time.Millisecond
)

// each does what needs a connection, and again when it got none for a reason that passes.
func (p *Pool) each(ctx context.Context, do func(*pgxpool.Pool) error) error {
	began := time.Now()
	for {
		pool := p.pool.Load()
		err := p.passwords.each(func() error { return do(pool) })
		switch {
		case err == nil:
			p.answered.Store(time.Now().UnixNano())
			return nil
		case p.pool.Load() != pool && ctx.Err() == nil && lostPool(err):
			continue // it was resized meanwhile
		case !refusedForNumber(err) || time.Since(began) > connectionWait || tick.Wait(ctx, connectionPoll) != nil:
			return err
		}
	}
}

// lostPool tells that there was no connection because the pool was closed: it gave none, or gave up the one that it was making,
// which looks as if the caller had.
func lostPool(err error) bool {
	return errors.Is(err, puddle.ErrClosedPool) || errors.Is(err, context.Canceled)
}

// refusedForNumber tells that no connection was made because the role has as many as it may.
func refusedForNumber(err error) bool {
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return connecting && hasCode(err, codeTooManyConnections)
}

// with is Pool.each for what has a result.
func with[T any](ctx context.Context, p *Pool, do func(*pgxpool.Pool) (T, error)) (out T, err error) {
	err = p.each(ctx, func(pool *pgxpool.Pool) (err error) {
		out, err = do(pool)
		return err
	})
	return out, err
}

type row func(dest ...any) error

// Scan implements pgx.Row.
func (r row) Scan(dest ...any) error { return r(dest...) }

// passwords are those that a role may have while its secret is being replaced. The one that worked last is tried first.
type passwords struct {
	all     []secretbox.Secret
	current atomic.Int32
	worked  atomic.Int32 // the last that Postgres took
	log     *zap.Logger
}

// put gives a new connection its password.
func (p *passwords) put(cc *pgx.ConnConfig) { cc.Password = p.all[p.current.Load()].Reveal() }

// took notes what a new connection was made with, and tells when that is another password than before. While Postgres takes none
// of them, who waits says so.
func (p *passwords) took(cc *pgx.ConnConfig) {
	if i := p.index(cc.Password); i >= 0 && p.worked.Swap(i) != i {
		p.log.Info("Postgres takes another password of the role than before, of CERTCTL_DATABASE_ROLE_SECRET or the base URL's",
			zap.String("role", cc.User), zap.Int32("item", i+1))
	}
}

func (p *passwords) index(password string) int32 {
	return int32(slices.IndexFunc(p.all, func(s secretbox.Secret) bool { return s.Reveal() == password })) // of a short list
}

// each does what needs a connection, again with the next password when Postgres refuses one. Twice around is enough, also
// when the password changes meanwhile.
func (p *passwords) each(do func() error) error {
	for attempt := 1; ; attempt++ {
		err := do()
		if err == nil || attempt >= 2*len(p.all) || !p.next(err) {
			return err
		}
	}
}

// next goes on to the next password if err is the refusal of one; false when there is no other. Of many that met the refusal
// of the same password, one turns.
func (p *passwords) next(err error) bool {
	refused, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok || !hasCode(err, codeInvalidPassword) || len(p.all) < 2 {
		return false
	}
	i := p.index(refused.Config.Password)
	if i < 0 {
		return false
	}
	p.current.CompareAndSwap(i, (i+1)%int32(len(p.all)))
	return true
}
