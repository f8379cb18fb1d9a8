package store

import "github.com/certctl/certctl/pkg/page"

// ListStatements are those of a filter in the normal order, for EXPLAIN.
func ListStatements(f Filter) ([]string, []any, error) {
	sorting, err := page.NewSorting(page.Column{Field: "sequence", SQL: "sequence", Kind: page.Int}, "sequence desc")
	if err != nil {
		return nil, nil, err
	}
	if f.Order, err = sorting.Parse(""); err != nil {
		return nil, nil, err
	}
	f.Limit = 51
	return f.search().Statements()
}
