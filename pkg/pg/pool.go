package pg

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"github.com/certctl/certctl/pkg/secretbox"
)

// Pool is a pool of connections that lives on when `certctl migrate` gives the role another password out of those that are
// known here: what needs a new connection and meets the refusal asks again with the next one.
type Pool struct {
	pool      *pgxpool.Pool
	passwords *passwords
}

// NewPool takes a pool whose connections have one password.
func NewPool(pool *pgxpool.Pool) *Pool {
	only := secretbox.NewSecret(pool.Config().ConnConfig.Password)
	return &Pool{pool: pool, passwords: &passwords{all: []secretbox.Secret{only}, log: zap.NewNop()}}
}

// Exec runs a statement.
func (p *Pool) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return withPassword(p.passwords, func() (pgconn.CommandTag, error) { return p.pool.Exec(ctx, sql, args...) })
}

// Query runs a query.
func (p *Pool) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return withPassword(p.passwords, func() (pgx.Rows, error) { return p.pool.Query(ctx, sql, args...) })
}

// QueryRow gives one row of a query, which runs when the row is scanned.
func (p *Pool) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return row(func(dest ...any) error {
		return p.passwords.each(func() error { return p.pool.QueryRow(ctx, sql, args...).Scan(dest...) })
	})
}

// Begin starts a transaction.
func (p *Pool) Begin(ctx context.Context) (pgx.Tx, error) { return p.BeginTx(ctx, pgx.TxOptions{}) }

// BeginTx starts a transaction with an isolation level or access mode.
func (p *Pool) BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error) {
	return withPassword(p.passwords, func() (pgx.Tx, error) { return p.pool.BeginTx(ctx, o) })
}

// Acquire takes a connection out of the pool; it is given back by its Release.
func (p *Pool) Acquire(ctx context.Context) (*pgxpool.Conn, error) {
	return withPassword(p.passwords, func() (*pgxpool.Conn, error) { return p.pool.Acquire(ctx) })
}

// Ping runs an empty statement.
func (p *Pool) Ping(ctx context.Context) error {
	return p.passwords.each(func() error { return p.pool.Ping(ctx) })
}

// Config gives a copy of how the pool was set up.
func (p *Pool) Config() *pgxpool.Config { return p.pool.Config() }

// Stat tells how many connections there are, and what they do.
func (p *Pool) Stat() *pgxpool.Stat { return p.pool.Stat() }

// Close gives all connections back and waits for it.
func (p *Pool) Close() { p.pool.Close() }

type row func(dest ...any) error

// Scan implements pgx.Row.
func (r row) Scan(dest ...any) error { return r(dest...) }

// passwords are those that a role may have while its secret is being replaced. The one that worked last is tried first.
type passwords struct {
	all     []secretbox.Secret
	current atomic.Int32
	log     *zap.Logger
}

// put gives a new connection its password.
func (p *passwords) put(cc *pgx.ConnConfig) { cc.Password = p.all[p.current.Load()].Reveal() }

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
	i := slices.IndexFunc(p.all, func(s secretbox.Secret) bool { return s.Reveal() == refused.Config.Password })
	if i < 0 {
		return false
	}
	if p.current.CompareAndSwap(int32(i), int32((i+1)%len(p.all))) {
		p.log.Info("Postgres refuses a password of the role; the next of CERTCTL_DATABASE_ROLE_SECRET, or the base URL's, is tried",
			zap.String("role", refused.Config.User), zap.Int("item", i+1))
	}
	return true
}

// withPassword is passwords.each for what has a result.
func withPassword[T any](p *passwords, do func() (T, error)) (out T, err error) {
	err = p.each(func() (err error) {
		out, err = do()
		return err
	})
	return out, err
}
