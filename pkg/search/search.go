// Package search reads pages of filtered lists from large tables, at a cost that depends neither on the place of the page nor on how
// often a value occurs.
//
// Left to itself Postgres takes rows that meet a filter to be spread evenly over an order. For a page it then walks along the order's
// index and drops what does not fit, and where what fits lies together at the other end, as with what is expired in a list by the time
// of the end, it walks through the whole table. Here that walk is bounded: when a stretch of the order did not fill the page, what fits
// is rare there, and it is collected by the filter's own index and sorted. That is bounded, too: what is rare at one place and frequent
// at others is left to Postgres in the end.
package search

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/certctl/certctl/pkg/page"
)

const (
	// Stretch is how many rows of an order are looked at for a page of the usual size.
	Stretch = 2500
	// PerRow is how many are looked at for each row of a larger page.
	PerRow = 20
	// Most is how many rows are collected and sorted for a page.
	Most = 25_000
)

// Table is what is searched.
type Table struct {
	// Columns are what rows are read with, as "c.id, c.name".
	Columns string
	// From is the table with its alias, as "certificates c".
	From string
	// ID is the column that ends each order; "id" if it is empty.
	ID string
	// Leads has what indexes can find before they are in an order: for the column of an order, as "c.create_time", those columns that
	// some index has before it and the id. What is the most selective comes first.
	Leads map[string][]string
	// Few are columns with an index whose values are each in few rows.
	Few []string
}

// Search is a page that is asked for.
type Search struct {
	Table  Table
	Filter Filter
	Order  page.Order
	After  page.Cursor
	// Limit is the number of rows to read: one more than the page has.
	Limit int
}

// Querier runs statements: a pool or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Find reads the page, with one statement or two, and seldom three. Errors of Postgres are not wrapped.
func Find[T any](ctx context.Context, q Querier, s Search, scan pgx.RowToFunc[T]) ([]T, error) {
	p, err := s.plan()
	if err != nil {
		return nil, err
	}
	planned := append([]any{pgx.QueryExecModeCacheDescribe}, p.args...) // with the values: which index is best depends on how many rows have them
	if p.unindexed && !p.few {
		return read(ctx, q, scan, p.plain(), s.Limit, planned)
	}
	if !p.few {
		rows, err := read(ctx, q, scan, p.walk(), s.Limit, p.args)
		if err != nil || len(p.rest) == 0 || len(rows) == s.Limit {
			return rows, err
		}
	}
	rows, err := read(ctx, q, scan, p.collect(), s.Limit, planned)
	if err != nil || len(rows) <= s.Limit {
		return rows, err
	}
	return read(ctx, q, scan, p.plain(), s.Limit, planned)
}

// Statements are those that Find may run for the page, and their arguments.
func (s Search) Statements() (statements []string, args []any, err error) {
	p, err := s.plan()
	if err != nil {
		return nil, nil, err
	}
	if p.unindexed && !p.few {
		return []string{p.plain()}, p.args, nil
	}
	if !p.few {
		statements = append(statements, p.walk())
	}
	if p.few || len(p.rest) > 0 {
		statements = append(statements, p.collect())
	}
	return statements, p.args, nil
}

func read[T any](ctx context.Context, q Querier, scan pgx.RowToFunc[T], sql string, limit int, args []any) ([]T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err //nolint:wrapcheck // whoever calls Find says what was being read
	}
	return pgx.AppendRows(make([]T, 0, limit), rows, scan) //nolint:wrapcheck // see above
}

// plan is a search whose conditions are told apart.
type plan struct {
	Search
	// lead are those that an index finds before it is in the order; rest are the others.
	lead, rest []condition
	// each is a lead with several values, and then the only condition beside bounds: for each value the index is in the order.
	each           *condition
	few, unindexed bool
	// after is the condition of the place; args are all arguments.
	after string
	args  []any
	alias string
}

func (s Search) plan() (*plan, error) {
	p := &plan{Search: s}
	after, args, err := s.Order.After(s.After, len(s.Filter.args)+1)
	if err != nil {
		return nil, err //nolint:wrapcheck // it is the caller's of the API
	}
	p.after, p.args = after, slices.Concat(s.Filter.args, args)
	_, p.alias, _ = strings.Cut(s.Table.From, " ")
	leading := s.leading()
	for i, c := range s.Filter.conditions {
		p.unindexed = p.unindexed || c.kind == unindexed
		p.few = p.few || c.kind == few || c.kind == equal && i != leading && slices.Contains(s.Table.Few, c.column)
		if i == leading || c.kind == bound && c.column == s.Order.Column() {
			p.lead = append(p.lead, c)
		} else {
			p.rest = append(p.rest, c)
		}
	}
	if len(p.rest) == 1 && p.rest[0].kind == among && leading < 0 && slices.Contains(s.Table.Leads[s.Order.Column()], p.rest[0].column) {
		p.each, p.rest = &p.rest[0], nil
	}
	return p, nil
}

// leading is the place of the equality that the order's index is chosen by; -1 without any.
func (s Search) leading() int {
	for _, column := range s.Table.Leads[s.Order.Column()] {
		i := slices.IndexFunc(s.Filter.conditions, func(c condition) bool { return c.kind == equal && c.column == column })
		if i >= 0 {
			return i
		}
	}
	return -1
}

// walk looks at a stretch of the order. Its bounds are no parameters: a plan that is kept would be made for any.
func (p *plan) walk() string {
	within := join(p.lead) + " AND " + p.after
	switch {
	case p.each != nil:
		return fmt.Sprintf("SELECT %s FROM unnest($%d::text[]) AS one (value) CROSS JOIN LATERAL (SELECT %s.* FROM %s WHERE %s = one.value AND %s ORDER BY %s LIMIT %d) %s ORDER BY %s LIMIT %d",
			p.Table.Columns, p.each.param, p.alias, p.Table.From, p.each.column, within, p.Order.SQL(), p.Limit, p.alias, p.Order.SQL(), p.Limit)
	case len(p.rest) == 0:
		return fmt.Sprintf("SELECT %s FROM %s WHERE %s ORDER BY %s LIMIT %d", p.Table.Columns, p.Table.From, within, p.Order.SQL(), p.Limit)
	default:
		return fmt.Sprintf("SELECT %s FROM (SELECT %s.*, %s AS page_key, %s AS page_id FROM %s WHERE %s ORDER BY %s LIMIT %d) %s WHERE %s ORDER BY %s LIMIT %d",
			p.Table.Columns, p.alias, p.Order.Expression(), p.id(), p.Table.From, within, p.Order.SQL(), max(Stretch, PerRow*p.Limit), p.alias, join(p.rest), p.byKey(p.alias), p.Limit)
	}
}

// id is the column that ends the order.
func (p *plan) id() string { return p.alias + "." + cmp.Or(p.Table.ID, "id") }

// byKey is the order where its expressions have become page_key and page_id.
func (p *plan) byKey(alias string) string {
	direction := "ASC"
	if p.Order.Descending() {
		direction = "DESC"
	}
	return fmt.Sprintf("%s.page_key %s, %s.page_id %s", alias, direction, alias, direction)
}

// collect looks at all that fit. One row more than the limit says that these were too many, and that the rows are not the page.
func (p *plan) collect() string {
	return fmt.Sprintf(`WITH fit AS MATERIALIZED (SELECT %[1]s AS page_id, %[2]s AS page_key FROM %[3]s WHERE %[4]s AND %[5]s),
 bounded AS MATERIALIZED (SELECT * FROM fit LIMIT %[6]d + 1)
SELECT %[7]s FROM (SELECT * FROM bounded s ORDER BY %[8]s LIMIT (SELECT CASE WHEN count(*) > %[6]d THEN %[9]d + 1 ELSE %[9]d END FROM bounded)) s
 JOIN %[3]s ON %[1]s = s.page_id ORDER BY %[8]s LIMIT %[9]d + 1`,
		p.id(), p.Order.Expression(), p.Table.From, p.Filter.SQL(), p.after, Most, p.Table.Columns, p.byKey("s"), p.Limit)
}

// plain leaves it to Postgres.
func (p *plan) plain() string {
	return fmt.Sprintf("SELECT %s FROM %s WHERE %s AND %s ORDER BY %s LIMIT %d", p.Table.Columns, p.Table.From, p.Filter.SQL(), p.after, p.Order.SQL(), p.Limit)
}
