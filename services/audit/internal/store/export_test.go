package store

import (
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/search"
)

// ListStatements are those of a filter in the normal order, for EXPLAIN.
func ListStatements(f Filter) ([]string, []any, error) {
	s, err := ListSearch(f, "")
	if err != nil {
		return nil, nil, err
	}
	return s.Statements()
}

// ListSearch is what List finds for a page of 50, in an order of the API.
func ListSearch(f Filter, orderBy string) (search.Search, error) {
	sorting, err := page.NewSorting(page.Column{Field: "sequence", SQL: "sequence", Kind: page.Int}, "sequence desc", page.Column{Field: "time", SQL: "time", Kind: page.Time})
	if err != nil {
		return search.Search{}, err
	}
	if f.Order, err = sorting.Parse(orderBy); err != nil {
		return search.Search{}, err
	}
	f.Limit = 51
	return f.search(), nil
}

// EndSpans is what Append does when the end of the chain has moved.
var EndSpans = endSpans

// ScanEvent reads a row that ListSearch finds.
var ScanEvent = scanEvent
