package store

import "github.com/certctl/certctl/pkg/page"

// ListSQL is the statement of a filter in the normal order, for EXPLAIN.
func ListSQL(f Filter) (string, []any, error) {
	sorting, err := page.NewSorting(page.Column{Field: "sequence", SQL: "sequence", Kind: page.Int}, "sequence desc")
	if err != nil {
		return "", nil, err
	}
	if f.Order, err = sorting.Parse(""); err != nil {
		return "", nil, err
	}
	f.Limit = 51
	return listSQL(f)
}
