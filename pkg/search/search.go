// Package search reads pages of filtered lists from large tables, at a cost that depends neither on the place of the page nor on how
// often a value occurs.
//
// Left to itself Postgres takes rows that meet a filter to be spread evenly over an order. For a page it then walks along the order's
// index and drops what does not fit, and where what fits lies together at the other end, as with what is expired in a list by the time
// of the end, it walks through the whole table. Here that walk is bounded: when a stretch of the order did not fill the page, what fits
// is rare there, and it is collected by the filter's own index and sorted. That is bounded, too: what is rare at one place and frequent
// at others is left to Postgres in the end, and where Postgres takes it to be that frequent, nothing is collected in vain.
//
// Where an index has all that the conditions are about (Covered), both look at its entries and read none of the rows that do not fit, so
// that the bounds are wider.
//
// A time that nearly grows with the id is bounded in the order of the id by neither: what is after it begins far from the beginning. Such a
// table has Spans, and those are left out in which nothing fits.
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
	Most = 15_000
	// Wide is how many are looked at, or collected, where an index alone tells which fit: an entry is a fraction of the cost of a row.
	Wide = 100_000
	// Surely is how many times as many as may be collected Postgres has to guess that there are, for it is a guess.
	Surely = 3
	// FewSpans is in how many spans a page is looked for that they may not fill.
	FewSpans = 4
	// mostWalks is how many indexes a page is looked for along.
	mostWalks = 2
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
	// Covered has, for a column that indexes begin with (of an order, or of Leads), what each of those has beside it and the id: whether a
	// row meets conditions on these is told without reading the row.
	Covered map[string][]string
	// Spans is a relation with columns first and last, and those that conditions of SpannedBound are about: spans of the ID, none of which
	// has an ID of another, and of which some one has each. In the order of the ID, rows are looked for only in those that meet the
	// conditions, one after the other, so that what is left out is right whatever the order of the other column is.
	Spans string
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

// Find reads the page, with one statement or two, and seldom more. Errors of Postgres are not wrapped.
func Find[T any](ctx context.Context, q Querier, s Search, scan pgx.RowToFunc[T]) ([]T, error) {
	p, err := s.plan()
	if err != nil {
		return nil, err
	}
	planned := append([]any{pgx.QueryExecModeCacheDescribe}, p.args...) // with the values: which index is best depends on how many rows have them
	if p.unindexed && !p.few {
		return read(ctx, q, scan, p.plain(), s.Limit, planned)
	}
	for _, w := range p.walks {
		rows, err := read(ctx, q, scan, p.walk(w), s.Limit, p.args)
		if err != nil || w.whole || len(rows) == s.Limit {
			return rows, err
		}
	}
	frequent, err := p.frequent(ctx, q)
	if err != nil {
		return nil, err
	}
	if !frequent {
		rows, err := read(ctx, q, scan, p.collect(), s.Limit, planned)
		if err != nil || len(rows) <= s.Limit {
			return rows, err
		}
	}
	return read(ctx, q, scan, p.plain(), s.Limit, planned)
}

// frequent tells whether Postgres takes so many rows to fit that to collect them would be in vain.
func (p *plan) frequent(ctx context.Context, q Querier) (bool, error) {
	if p.few {
		return false, nil
	}
	rows, err := q.Query(ctx, "EXPLAIN (FORMAT JSON) SELECT FROM "+p.Table.From+" WHERE "+p.Filter.SQL(), append([]any{pgx.QueryExecModeCacheDescribe}, p.Filter.args...)...)
	if err != nil {
		return false, err //nolint:wrapcheck // as of read
	}
	type guess struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		}
	}
	guesses, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[[]guess])
	if err != nil {
		return false, err //nolint:wrapcheck // as of read
	}
	_, most := p.fit()
	return len(guesses) == 1 && guesses[0].Plan.Rows > Surely*float64(most), nil
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
	whole := false
	for _, w := range p.walks {
		statements = append(statements, p.walk(w))
		whole = whole || w.whole
	}
	if !whole {
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
	// walks are the ways to walk along an order, of which the first that fills the page is taken; none when what fits is in few rows.
	walks          []walk
	few, unindexed bool
	// after is the condition of the place; args are all arguments.
	after string
	args  []any
	alias string
}

// walk is a way along an index that is in the order.
type walk struct {
	// lead are the conditions that the index finds before it is in the order; rest are the others.
	lead, rest []condition
	// each is a lead with several values, and then the only condition beside bounds: for each value the index is in the order.
	each *condition
	// covered tells that the index alone says which rows meet the rest.
	covered bool
	// spanned tells that rows are looked for in spans.
	spanned bool
	// whole tells that it goes on until the page is full.
	whole bool
}

func (s Search) plan() (*plan, error) {
	p := &plan{Search: s}
	after, args, err := s.Order.After(s.After, len(s.Filter.args)+1)
	if err != nil {
		return nil, err //nolint:wrapcheck // it is the caller's of the API
	}
	p.after, p.args = after, slices.Concat(s.Filter.args, args)
	_, p.alias, _ = strings.Cut(s.Table.From, " ")
	leads := s.leading()
	for i, c := range s.Filter.conditions {
		p.unindexed = p.unindexed || c.kind == unindexed
		p.few = p.few || c.kind == few || c.kind == equal && i != leads[0] && slices.Contains(s.Table.Few, c.column)
	}
	if !p.few {
		for _, leading := range leads {
			p.walks = append(p.walks, s.along(leading))
		}
	}
	return p, nil
}

// along makes the walk by the index that has one of the conditions before the order; -1: the order's own.
func (s Search) along(leading int) (w walk) {
	index := s.Order.Column()
	w.spanned = s.spanned()
	for i, c := range s.Filter.conditions {
		switch {
		case i == leading:
			index = c.column
			w.lead = append(w.lead, c)
		case c.kind == bound && c.column == s.Order.Column(), w.spanned && c.span != "":
			w.lead = append(w.lead, c)
		default:
			w.rest = append(w.rest, c)
		}
	}
	if len(w.rest) == 1 && w.rest[0].kind == among && leading < 0 && slices.Contains(s.Table.Leads[s.Order.Column()], w.rest[0].column) {
		w.each, w.rest = &w.rest[0], nil
	}
	w.whole = len(w.rest) == 0 && (!w.spanned || leading < 0)
	w.covered = len(w.rest) > 0 && s.Table.covers(index, w.rest)
	return w
}

// spanned tells whether spans can be left out.
func (s Search) spanned() bool {
	_, alias, _ := strings.Cut(s.Table.From, " ")
	return s.Table.Spans != "" && strings.TrimPrefix(s.Order.Column(), alias+".") == cmp.Or(s.Table.ID, "id") &&
		slices.ContainsFunc(s.Filter.conditions, func(c condition) bool { return c.span != "" })
}

// covers tells whether an index that begins with a column says all of conditions on others.
func (t Table) covers(column string, conditions []condition) bool {
	return !slices.ContainsFunc(conditions, func(c condition) bool {
		return c.column == "" || c.column != column && !slices.Contains(t.Covered[column], c.column)
	})
}

// leading are the places of the equalities that indexes in the order are chosen by; -1, for the order's own, without any.
func (s Search) leading() (places []int) {
	for _, column := range s.Table.Leads[s.Order.Column()] {
		i := slices.IndexFunc(s.Filter.conditions, func(c condition) bool { return c.kind == equal && c.column == column })
		if i >= 0 && len(places) < mostWalks {
			places = append(places, i)
		}
	}
	if len(places) == 0 {
		return []int{-1}
	}
	return places
}

// walk looks at a stretch of the order. Its bounds are no parameters: a plan that is kept would be made for any.
func (p *plan) walk(w walk) string {
	within := join(w.lead) + " AND " + p.after
	switch {
	case w.each != nil:
		return fmt.Sprintf("SELECT %s FROM unnest($%d::text[]) AS one (value) CROSS JOIN LATERAL (SELECT %s.* FROM %s WHERE %s = one.value AND %s ORDER BY %s LIMIT %d) %s ORDER BY %s LIMIT %d",
			p.Table.Columns, w.each.param, p.alias, p.Table.From, w.each.column, within, p.Order.SQL(), p.Limit, p.alias, p.Order.SQL(), p.Limit)
	case len(w.rest) == 0:
		return p.inOrder(p.Table.Columns, within, p.Limit, w)
	case w.covered:
		return p.whole(fmt.Sprintf("SELECT %s.page_key, %s.page_id FROM (SELECT %s FROM %s WHERE %s ORDER BY %s LIMIT %d) %s WHERE %s ORDER BY %s LIMIT %d",
			p.alias, p.alias, p.told(w.rest), p.Table.From, within, p.Order.SQL(), max(Wide, PerRow*p.Limit), p.alias, join(w.rest), p.byKey(p.alias), p.Limit), p.Limit)
	default:
		stretch := p.inOrder(fmt.Sprintf("%s.*, %s AS page_key, %s AS page_id", p.alias, p.Order.Expression(), p.id()), within, max(Stretch, PerRow*p.Limit), w)
		return fmt.Sprintf("SELECT %s FROM (%s) %s WHERE %s ORDER BY %s LIMIT %d", p.Table.Columns, stretch, p.alias, join(w.rest), p.byKey(p.alias), p.Limit)
	}
}

// inOrder reads so many rows that meet the conditions, in the order. Spans that can have some are taken one after the other: they are
// sorted before their rows are, so that Postgres need not read those of all for that.
func (p *plan) inOrder(columns, conditions string, limit int, w walk) string {
	if !w.spanned {
		return fmt.Sprintf("SELECT %s FROM %s WHERE %s ORDER BY %s LIMIT %d", columns, p.Table.From, conditions, p.Order.SQL(), limit)
	}
	of := fmt.Sprintf("SELECT %s.* FROM %s WHERE %s AND %s BETWEEN s.first AND s.last ORDER BY %s LIMIT %d", p.alias, p.Table.From, conditions, p.id(), p.Order.SQL(), limit)
	spans := fmt.Sprintf("SELECT first, last FROM %s WHERE %s ORDER BY first %s", p.Table.Spans, p.spans(), p.direction())
	if !w.whole {
		spans += fmt.Sprintf(" LIMIT %d", FewSpans)
	}
	return fmt.Sprintf("SELECT %s FROM (%s) s CROSS JOIN LATERAL (%s) %s ORDER BY s.first %s, %s LIMIT %d",
		columns, spans, of, p.alias, p.direction(), p.Order.SQL(), limit)
}

// spans is the condition for spans that can have rows of the page.
func (p *plan) spans() string {
	var parts []string
	for _, c := range p.Filter.conditions {
		if c.span != "" {
			parts = append(parts, c.span)
		}
	}
	if place := len(p.Filter.args) + 1; len(p.args) >= place {
		if p.Order.Descending() {
			parts = append(parts, fmt.Sprintf("first < $%d", place))
		} else {
			parts = append(parts, fmt.Sprintf("last > $%d", place))
		}
	}
	return strings.Join(parts, " AND ")
}

// told are the keys, and the columns that conditions are about.
func (p *plan) told(conditions []condition) string {
	columns := []string{p.Order.Expression() + " AS page_key", p.id() + " AS page_id"}
	for _, c := range conditions {
		if !slices.Contains(columns, c.column) {
			columns = append(columns, c.column)
		}
	}
	return strings.Join(columns, ", ")
}

// whole reads the rows of keys, in their order. Each is looked up: Postgres would rather read a table that is not large as a whole.
func (p *plan) whole(keys string, limit int) string {
	return fmt.Sprintf("SELECT %s FROM (%s) s CROSS JOIN LATERAL (SELECT %s.* FROM %s WHERE %s = s.page_id OFFSET 0) %s ORDER BY %s LIMIT %d",
		p.Table.Columns, keys, p.alias, p.Table.From, p.id(), p.alias, p.byKey("s"), limit)
}

// id is the column that ends the order.
func (p *plan) id() string { return p.alias + "." + cmp.Or(p.Table.ID, "id") }

// byKey is the order where its expressions have become page_key and page_id.
func (p *plan) byKey(alias string) string {
	return fmt.Sprintf("%s.page_key %s, %s.page_id %s", alias, p.direction(), alias, p.direction())
}

func (p *plan) direction() string {
	if p.Order.Descending() {
		return "DESC"
	}
	return "ASC"
}

// collect looks at all that fit. One row more than the limit says that these were too many, and that the rows are not the page.
func (p *plan) collect() string {
	fit, most := p.fit()
	return fmt.Sprintf(`WITH %[1]s, bounded AS MATERIALIZED (SELECT * FROM fit LIMIT %[2]d + 1)
`, fit, most) + p.whole(fmt.Sprintf("SELECT * FROM bounded s ORDER BY %s LIMIT (SELECT CASE WHEN count(*) > %d THEN %d + 1 ELSE %d END FROM bounded)",
		p.byKey("s"), most, p.Limit, p.Limit), p.Limit+1)
}

// fit finds what fits, of which so many are taken. Where an index tells what fits but not its place in the order, only what fits is read
// for that.
func (p *plan) fit() (sql string, most int) {
	all := fmt.Sprintf("fit AS MATERIALIZED (SELECT %s AS page_id, %s AS page_key FROM %s WHERE %s AND %s)", p.id(), p.Order.Expression(), p.Table.From, p.Filter.SQL(), p.after)
	for _, c := range p.Filter.conditions {
		if (c.kind != equal && c.kind != bound) || p.Table.Covered[c.column] == nil || !p.Table.covers(c.column, p.Filter.conditions) {
			continue
		}
		if c.column == p.Order.Column() || p.Order.Column() == p.id() || slices.Contains(p.Table.Covered[c.column], p.Order.Column()) {
			return all, Wide
		}
		if len(p.Filter.conditions) == 1 { // all that the index tells would be looked up, one by one
			continue
		}
		return fmt.Sprintf(`told AS MATERIALIZED (SELECT %[1]s AS page_id FROM %[2]s WHERE %[3]s),
 fit AS MATERIALIZED (SELECT k.page_id, k.page_key FROM told CROSS JOIN LATERAL (SELECT %[1]s AS page_id, %[4]s AS page_key FROM %[2]s WHERE %[1]s = told.page_id AND %[5]s OFFSET 0) k)`,
			p.id(), p.Table.From, p.Filter.SQL(), p.Order.Expression(), p.after), Most
	}
	return all, Most
}

// plain leaves it to Postgres, but for spans that have nothing.
func (p *plan) plain() string {
	return p.inOrder(p.Table.Columns, p.Filter.SQL()+" AND "+p.after, p.Limit, walk{spanned: p.spanned(), whole: true})
}
