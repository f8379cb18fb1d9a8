package serve

import (
	"time"

	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/pg"
)

// databaseBack is when a caller may ask again whom the database was away for.
const databaseBack = time.Second

// explainer tells callers of a service that its database is away, so that they ask again, or that no database takes their
// text, in place of "internal error".
func explainer(service string) func(error) error {
	return func(err error) error {
		if errs.KindOf(err) != errs.Internal {
			return err
		}
		if pg.Unstorable(err) {
			return errs.New(errs.Invalid, "TEXT_INVALID", "a text of the request holds a NUL character or is not UTF-8").Wrap(err)
		}
		if !pg.Transient(err) {
			return err
		}
		return errs.New(errs.Unavailable, "DATABASE_UNAVAILABLE", "the database of %s is not available; try again", service).
			With("service", service).RetryAfter(databaseBack).Wrap(err)
	}
}
