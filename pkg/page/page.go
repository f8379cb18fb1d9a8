// Package page is the arithmetic of list pages (AIP-158): sizes, orders, opaque tokens and the SQL fragments that
// continue a list after the last row that was seen (keyset paging), so that a list stays right under writes.
//
// A store reads Size+1 rows and gives them to Cut; when there are more, the handler encodes the keys of the last row
// into the next token:
//
//	size, err := page.Size(req.GetPageSize())
//	order, err := sorting.Parse(req.GetOrderBy())
//	scope := page.Scope{Collection: "certificates", Filters: page.FiltersOf(req), Order: order.String()}
//	after, err := codec.Decode(req.GetPageToken(), scope)
//	where, args, err := order.After(after, len(args)+1)
//	… WHERE <filters> AND <where> ORDER BY <order.SQL()> LIMIT size+1
//	rows, more := page.Cut(rows, size)
//	token := codec.Encode(scope, page.Cursor{order value of the last row, its id})
package page

import "github.com/certctl/certctl/pkg/errs"

const (
	// DefaultSize is the page size of a caller who names none.
	DefaultSize = 50
	// MaxSize is the largest page; a caller who asks for more gets this.
	MaxSize = 1000
)

// Size returns the page size to use for the one asked for. A negative one is an Invalid error on page_size.
func Size(asked int32) (int, error) {
	switch {
	case asked < 0:
		return 0, errs.Field("page_size", "must not be negative")
	case asked == 0:
		return DefaultSize, nil
	default:
		return min(int(asked), MaxSize), nil
	}
}

// Cut takes rows that were read with LIMIT size+1 and returns the page, and whether there are more rows after it.
func Cut[T any](rows []T, size int) (kept []T, more bool) {
	if len(rows) <= size {
		return rows, false
	}
	return rows[:size], true
}
