// Package store holds all SQL of issuance: issuers and their sealed secrets, profiles, the journal of orders, what was
// issued, revocations and CRLs. It moves states by compare-and-set and decides nothing.
package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/certctl/certctl/pkg/pg"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is issuance's part of the database.
func Schema() pg.Schema { return pg.Schema{Name: "issuance", FS: migrations} }

// ErrNotFound says that there is no such row.
var ErrNotFound = errors.New("no such row")

// ErrExists says that the id is taken.
var ErrExists = errors.New("the id is taken")

// ErrIssuerGone says that the issuer was deleted in the same moment.
var ErrIssuerGone = errors.New("the issuer was deleted meanwhile")

// Querier runs statements: the pool or a transaction.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// SQLSTATE unique_violation and foreign_key_violation.
const (
	codeUniqueViolation     = "23505"
	codeForeignKeyViolation = "23503"
)

func isUniqueViolation(err error) bool { return hasCode(err, codeUniqueViolation) }

func hasCode(err error, code string) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Code == code
}

// one turns "no rows" into ErrNotFound and says what was being done with anything else.
func one[T any](what string, v T, err error) (T, error) {
	switch {
	case err == nil:
		return v, nil
	case errors.Is(err, pgx.ErrNoRows):
		var none T
		return none, ErrNotFound
	default:
		var none T
		return none, fmt.Errorf("%s: %w", what, err)
	}
}

// collect reads all rows of a query.
func collect[T any](ctx context.Context, q Querier, what string, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	out, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return out, nil
}

// changed runs a statement and tells how many rows it changed.
func changed(ctx context.Context, q Querier, what, sql string, args ...any) (int, error) {
	tag, err := q.Exec(ctx, sql, args...)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	return int(tag.RowsAffected()), nil
}

// nullTime stores the zero time as NULL.
func nullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// timeOf reads NULL as the zero time.
func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// list never stores NULL for an empty array.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// TryBootstrap notes that a first start made something; false when it was made before.
func TryBootstrap(ctx context.Context, q Querier, name string) (bool, error) {
	n, err := changed(ctx, q, "note bootstrap", `INSERT INTO bootstrap (name) VALUES ($1) ON CONFLICT DO NOTHING`, name)
	return n == 1, err
}
