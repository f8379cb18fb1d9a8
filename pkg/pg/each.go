package pg

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/certctl/certctl/pkg/batch"
)

// itemError is an error of one item among those that share a write.
type itemError struct{ cause error }

func (e *itemError) Error() string { return e.cause.Error() }
func (e *itemError) Unwrap() error { return e.cause }

// OfItem marks an error as that of one item, so that the others are written without it; nil stays nil.
func OfItem(err error) error {
	if err == nil {
		return nil
	}
	return &itemError{err}
}

// AllOrEach writes items together in one transaction or, when that fails over one of them, each alone: so one that cannot be written
// costs no other. When the database as a whole fails, all have its error.
func AllOrEach[T, R any](items []T, write func(items []T) ([]batch.Outcome[R], error)) []batch.Outcome[R] {
	out, err := write(items)
	if err == nil {
		return out
	}
	out = make([]batch.Outcome[R], len(items))
	for i := range items {
		if len(items) > 1 && separable(err) {
			out[i] = AllOrEach(items[i:i+1], write)[0]
		} else {
			out[i].Err = err
		}
	}
	return out
}

// separable tells whether an error may be that of one item, and not one of the database's condition.
func separable(err error) bool {
	if _, of := errors.AsType[*itemError](err); of {
		return true
	}
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && !Transient(e)
}
